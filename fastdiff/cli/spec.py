"""Samplers and schedules on the command line: NAME or NAME:key=value,..., such as ddim:eta=0.5 or flow:shift=3."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from fastdiff import adaptive
from fastdiff.choices import unknown
from fastdiff.samplers import SAMPLERS
from fastdiff.schedules import SCHEDULES, Schedule


def parse_schedule(text: str) -> Schedule:
    """The schedule that `text` describes. Raises ValueError for an unknown name or option, or a value out of range."""
    name, options = parse("schedule", text, SCHEDULES)
    return SCHEDULES[name](**options)


def parse_sampler(text: str) -> tuple[str, dict[str, Any]]:
    """The sampler's name and its options. Raises ValueError for an unknown name or option."""
    return parse("sampler", text, {**SAMPLERS, adaptive.NAME: adaptive.Options})


def parse(kind: str, text: str, known: Mapping[str, Callable[..., Any]]) -> tuple[str, dict[str, Any]]:
    """Split `text` into a known name and its options, each read as the type of the option's default."""
    name, _, rest = text.partition(":")
    if name not in known:
        raise unknown(kind, name, known)
    parameters = inspect.signature(known[name]).parameters.values()
    defaults = {p.name: p.default for p in parameters if isinstance(p.default, (str, int, float, type(None)))}
    options = {}
    for item in filter(None, rest.split(",")):
        key, _, value = (part.strip() for part in item.partition("="))
        if key not in defaults:
            raise unknown(f"option of {kind} {name}", key, defaults)
        options[key] = _read(f"{kind} option {key}", value, defaults[key])
    return name, options


def _read(what: str, text: str, default: object) -> object:
    """`text` as a value of the type that `default` has (any of the types it could be where that is None)."""
    if isinstance(default, str):
        return text
    if isinstance(default, bool):
        if text.lower() not in ("true", "false"):
            raise ValueError(f"{what} is true or false, got {text!r}")
        return text.lower() == "true"
    try:
        return int(text) if isinstance(default, int) else float(text)
    except ValueError:
        raise ValueError(f"{what} is a number, got {text!r}") from None
