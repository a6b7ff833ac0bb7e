"""The graphs of one model on one device: a bounded number, none of them stale."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, Protocol, TypeVar

import torch

from fastdiff.graphs.recorder import recorder_for
from fastdiff.graphs.watch import Watch

PATIENCE = 16
"""Graphs captured and hardly used, or changes of the model, in a row, after which no more are captured."""


class Entry(Protocol):
    """What is kept. used: replayed more often than capturing it was worth."""

    used: bool


E = TypeVar("E", bound=Entry)


class Cache(Generic[E]):
    """Entries by key, of which the `most` last used are kept; all go when the model changes."""

    def __init__(
        self, model: object, device: torch.device, *, most: int, skip: tuple[object, ...] = ()
    ) -> None:
        self.device = device
        self.most = most
        self.recorder = recorder_for(device)
        self.watch = Watch(model, skip=skip)
        self.entries: OrderedDict[Hashable, E] = OrderedDict()
        self.refused: dict[Hashable, str] = {}
        self.wasted = 0

    def check(self) -> str | None:
        """Drops what is stale, and says why nothing can be captured now, if so."""
        if self.wasted >= PATIENCE:
            return "its inputs or the model's attributes change too often for graphs to pay"
        self.drop_stale()
        return self.watch.refusal(self.device)

    def drop_stale(self) -> bool:
        """Drops everything if the model has changed since this was last asked; whether it had."""
        changed = self.watch.changed()
        if changed:
            self.wasted += 1
            self.refused.clear()
            self.drop()
        return changed

    def get(self, key: Hashable) -> E | None:
        """The entry, as the one last used."""
        entry = self.entries.get(key)
        if entry is not None:
            self.entries.move_to_end(key)
        return entry

    def paid(self, entry: E) -> None:
        """An entry has been replayed often enough."""
        entry.used = True
        self.wasted = 0

    def put(self, key: Hashable, entry: E) -> None:
        """Keeps the entry, and drops the one least recently used if there are too many."""
        if key not in self.entries:
            self.drop(self.most - 1)
        self.entries[key] = entry

    def refuse(self, key: Hashable, reason: str) -> None:
        """Remembers why there is no entry for a key."""
        if len(self.refused) >= 64:
            self.refused.clear()
        self.refused[key] = reason

    def drop(self, most: int = 0) -> None:
        """Gives back the entries least recently used, down to `most`."""
        if len(self.entries) > most:
            self.recorder.settle()
        while len(self.entries) > most:
            _, entry = self.entries.popitem(last=False)
            self.wasted += not entry.used
