"""One entry of a form: its type, range and default, how it reads what a page sent, and how a page should show it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastdiff.choices import unknown

TEXT_LENGTH = 1000


@dataclass(frozen=True)
class Field:
    """A named value of an operation.

    kind: "integer" | "number" (low to high), "flag", "text", "choice" (one of choices), "choices" (several of them).
    default: what the page starts with; None: the field may be left empty. few: whether it is among the few controls
    shown first. slider: shown as a slider rather than a box. empty: what stands where nothing is given.
    half: shares its row with the next one.
    """

    name: str
    label: str
    kind: str
    default: Any = None
    low: float = 0
    high: float = 0
    step: float = 1
    choices: tuple[str, ...] = ()
    hint: str = ""
    few: bool = False
    slider: bool = False
    empty: str = "automatic"
    half: bool = False

    def read(self, value: object) -> Any:
        """The value, checked. Raises ValueError in one line for any other."""
        if value is None or value == "":
            if self.default is None or self.kind == "text":
                return None
            raise ValueError(f"{self.name} is missing")
        return READERS[self.kind](self, value)

    def describe(self) -> dict[str, Any]:
        """JSON data, for the page."""
        return {
            "name": self.name, "label": self.label, "kind": self.kind, "default": self.default, "low": self.low,
            "high": self.high, "step": self.step, "choices": self.choices, "hint": self.hint, "few": self.few,
            "slider": self.slider, "empty": self.empty, "half": self.half,
        }  # fmt: skip


def read_all(fields: Sequence[Field], given: object) -> dict[str, Any]:
    """Every field's value from a JSON object; what is not given has its default. ValueError for anything else."""
    if not isinstance(given, Mapping):
        raise ValueError(f"fields must be an object of names and values, got a {type(given).__name__}")
    known = {field.name: field for field in fields}
    for name in given:
        if name not in known:
            raise unknown("field", str(name)[:80], known)
    return {
        name: field.read(given[name]) if name in given else field.default for name, field in known.items()
    }


def _integer(field: Field, value: object) -> int:
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not whole or not field.low <= value <= field.high:  # type: ignore[operator]
        raise ValueError(
            f"{field.name} must be a whole number from {field.low} to {field.high}, got {short(value)}"
        )
    return int(value)  # type: ignore[call-overload]


def _number(field: Field, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not field.low <= value <= field.high:
        raise ValueError(
            f"{field.name} must be a number from {field.low:g} to {field.high:g}, got {short(value)}"
        )
    return value if math.isfinite(value) else 0.0


def _flag(field: Field, value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{field.name} must be true or false, got {short(value)}")
    return value


def _text(field: Field, value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{field.name} must be text, got {short(value)}")
    # a lone surrogate is no text: it cannot be written anywhere
    if len(value) > TEXT_LENGTH or not value.isprintable():
        raise ValueError(f"{field.name} must be at most {TEXT_LENGTH} printable characters on one line")
    return value.strip() or None  # type: ignore[return-value]


def _choice(field: Field, value: object) -> str:
    if not isinstance(value, str) or value not in field.choices:
        raise unknown(field.name, short(value), field.choices)
    return value


def _choices(field: Field, value: object) -> list[str]:
    if not isinstance(value, list) or not value or len(value) > len(field.choices):
        raise ValueError(f"{field.name} must be a list of at least one of: {', '.join(field.choices)}")
    return [_choice(field, item) for item in value]


READERS = {
    "integer": _integer,
    "number": _number,
    "flag": _flag,
    "text": _text,
    "choice": _choice,
    "choices": _choices,
}


def short(value: object) -> str:
    """A value as it stands in an error: at most 60 characters, which can be written as UTF-8."""
    try:
        text = ascii(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits has no text
        text = type(value).__name__
    return text if len(text) <= 60 else f"{text[:57]}..."
