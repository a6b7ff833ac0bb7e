"""PerThread: an attribute of which each thread has its own value."""

from __future__ import annotations

import threading
from typing import Any


class PerThread:
    """A thread that has set the attribute sees its own value; the others see the one set last."""

    def __init__(self, *default: Any) -> None:
        self.default = default

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, scheduler: Any, owner: type | None = None) -> Any:
        if scheduler is None:
            return self
        state = scheduler.__dict__
        own = state.get("_of_thread")
        if own is not None and self.name in own.__dict__:
            return own.__dict__[self.name]
        if self.name in state:
            return state[self.name]
        if not self.default:
            message = f"{type(scheduler).__name__!r} object has no attribute {self.name!r}"
            raise AttributeError(message)
        return self.default[0]

    def __set__(self, scheduler: Any, value: Any) -> None:
        state = scheduler.__dict__
        own = state.get("_of_thread")
        if own is None:
            own = state.setdefault("_of_thread", threading.local())
        own.__dict__[self.name] = state[self.name] = value
