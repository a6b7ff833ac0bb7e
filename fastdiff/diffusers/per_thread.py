"""PerThread: an attribute that belongs to a loop over a scheduler, and so to the thread that runs it.

set_timesteps begins a loop. A thread that took part in one sees that loop's values; the others see what was set last. A
loop may wander: each step of a web server's generator may run in another thread, which joins the loop whose timesteps
it is given.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

LOOPS = 32
"""Loops under way on one scheduler that are told apart."""


class PerThread:
    """A value for each loop."""

    def __init__(self, *default: Any) -> None:
        self.default = default

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, scheduler: Any, owner: type | None = None) -> Any:
        if scheduler is None:
            return self
        state = scheduler.__dict__
        own = state.get("_of_thread")
        if own is not None:
            loop = own.__dict__.get("loop")
            if loop is not None and self.name in loop:
                return loop[self.name]
        if self.name in state:
            return state[self.name]
        if not self.default:
            message = f"{type(scheduler).__name__!r} object has no attribute {self.name!r}"
            raise AttributeError(message)
        return self.default[0]

    def __set__(self, scheduler: Any, value: Any) -> None:
        own = _of_thread(scheduler)
        if "loop" not in own.__dict__:
            begin_loop(scheduler)
        own.loop[self.name] = scheduler.__dict__[self.name] = value


def _of_thread(scheduler: Any) -> threading.local:
    state = scheduler.__dict__
    own: threading.local | None = state.get("_of_thread")
    if own is None:
        own = state.setdefault("_of_thread", threading.local())
    return own


def begin_loop(scheduler: Any) -> None:
    """Values of this thread's own from here on, at first those it sees."""
    own = _of_thread(scheduler)
    own.loop = dict(own.__dict__.get("loop", {}))
    loops = scheduler.__dict__.setdefault("_loops", [])
    loops.append(own.loop)
    del loops[:-LOOPS]


def loops_of(scheduler: Any) -> Iterator[dict[str, Any]]:
    """The values of every loop, the newest first."""
    yield from reversed(list(scheduler.__dict__.get("_loops", ())))


def in_loop(scheduler: Any) -> bool:
    """Whether this thread has set timesteps, or joined a loop that has."""
    return "timesteps" in _of_thread(scheduler).__dict__.get("loop", {})


def join_loop(scheduler: Any, loop: dict[str, Any]) -> None:
    """See that loop's values in this thread."""
    _of_thread(scheduler).loop = loop


def without_threads(state: dict[str, Any]) -> dict[str, Any]:
    """A scheduler's attributes as this thread sees them."""
    plain = dict(state)
    own = plain.pop("_of_thread", None)
    plain.pop("_loops", None)
    return plain | ({} if own is None else own.__dict__.get("loop", {}))
