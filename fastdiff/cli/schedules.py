"""Schedules by name on the command line: NAME or NAME:key=value,key=value, such as karras:sigma_min=0.03,sigma_max=15."""

from __future__ import annotations

import inspect

from fastdiff import schedules
from fastdiff.choices import unknown
from fastdiff.schedules import Schedule

NAMES = {
    "linear_betas": schedules.linear_betas,
    "scaled_linear_betas": schedules.scaled_linear_betas,
    "cosine_betas": schedules.cosine_betas,
    "sigmoid_betas": schedules.sigmoid_betas,
    "karras": schedules.karras,
    "edm": schedules.edm,
    "exponential": schedules.exponential,
    "polyexponential": schedules.polyexponential,
    "beta": schedules.beta,
    "vp": schedules.vp,
    "flow": schedules.flow,
}


def parse_schedule(text: str) -> Schedule:
    """The schedule that `text` describes. Raises ValueError for an unknown name or option, or a value out of range."""
    name, _, rest = text.partition(":")
    if name not in NAMES:
        raise unknown("schedule", name, NAMES)
    make = NAMES[name]
    known = inspect.signature(make).parameters
    options: dict[str, object] = {}
    for item in filter(None, rest.split(",")):
        key, equals, value = (part.strip() for part in item.partition("="))
        if key not in known:
            raise unknown(f"option of schedule {name}", key, known)
        if not equals or not value:
            raise ValueError(f"schedule option {item!r} has no value: write {key}={known[key].default}")
        options[key] = _value(key, value, known[key].default)
    return make(**options)  # type: ignore[operator]


def _value(key: str, text: str, default: object) -> object:
    """`text` read as the type that the option's default has."""
    if isinstance(default, bool):
        if text.lower() not in ("true", "false"):
            raise ValueError(f"schedule option {key} is true or false, got {text!r}")
        return text.lower() == "true"
    if isinstance(default, str):
        return text
    try:
        return int(text) if isinstance(default, int) else float(text)
    except ValueError:
        raise ValueError(f"schedule option {key} is a number, got {text!r}") from None
