"""A stand-in for CUDA graphs on the CPU: the operations of one run, repeated on the memory of that run, without Python.

What holds for a CUDA graph holds here. A replay reads and writes the storages that were there at the capture, and fails
if one has been freed; numbers that Python passed are as they were; nothing of the Python code runs again. Results lie
in memory that each replay, and any replay of another graph in the same pool, writes over. Reading a tensor on the host,
making one from Python's data, and a generator of one's own are refused during a capture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from fastdiff.graphs import recorder

aten = torch.ops.aten
SYNCHRONISING = {
    aten._local_scalar_dense, aten.item, aten.nonzero, aten.equal, aten.is_nonzero, aten.masked_select, aten._unique2,
    aten.unique_dim, aten.unique_consecutive,
}  # fmt: skip
FROM_PYTHON = {aten.lift_fresh, aten.lift_fresh_copy}
READING = {
    Tensor.item, Tensor.tolist, Tensor.numpy, Tensor.cpu, Tensor.__bool__, Tensor.__int__, Tensor.__float__,
    Tensor.__index__, Tensor.__array__, Tensor.nonzero,
}  # fmt: skip


class Refused(RuntimeError):
    """What CUDA says as "operation not permitted when stream is capturing"."""


def check_synchronises(func: Any, shape: Any = (1,)) -> None:
    """Refused if an operation makes the host wait for the device, or copies to it. shape: of what it makes; a number
    may come from Python, as kernels take numbers by value."""
    if func.overloadpacket in SYNCHRONISING:
        raise Refused(f"{func} synchronises with the host")
    if func.overloadpacket in FROM_PYTHON and shape:
        raise Refused(f"{func}: a tensor made from Python's data must be copied to the device")


def storage_of(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def allocates(func: Any, args: Any, kwargs: Any, out: Any) -> list[Tensor]:
    """The outputs of an operation that lie in memory of their own."""
    given = {storage_of(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
    return [t for t in tree_leaves(out) if isinstance(t, Tensor) and storage_of(t) not in given]


class NoReading(TorchFunctionMode):
    """Refuses what reads a tensor on the host past the dispatcher."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in READING:
            raise Refused(f"{getattr(func, '__name__', func)} reads a tensor on the host")
        return func(*args, **(kwargs or {}))


@dataclass
class Place:
    """Where a tensor lay: in memory that is not the graph's own, which may be gone at a replay."""

    storage: StorageWeakRef
    geometry: tuple[Any, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor) -> Place:
        geometry = tensor.storage_offset(), tensor.shape, tensor.stride()
        return cls(StorageWeakRef(tensor.untyped_storage()), geometry, tensor.dtype)

    def tensor(self) -> Tensor:
        storage = torch.UntypedStorage._new_with_weak_ptr(self.storage.cdata)
        if storage is None:
            raise RuntimeError("a graph reads memory that has been freed since it was captured")
        return torch.empty(0, dtype=self.dtype).set_(storage, *self.geometry)


@dataclass
class Graph(TorchDispatchMode):
    """Records operations while it is active; `replay` repeats them."""

    pool: list[Graph]
    steps: list[tuple[Any, Any, Any, Any]] = field(default_factory=list)
    own: dict[int, Tensor] = field(default_factory=dict)
    numbers: dict[int, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()
        self.pool.append(self)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if kwargs.get("generator") is not None:
            raise Refused(f"{func}: the generator is not registered with the graph")
        out = func(*args, **kwargs)
        check_synchronises(func, out.shape if isinstance(out, Tensor) else ())
        if func.overloadpacket in FROM_PYTHON:
            self.numbers[storage_of(out)] = out
        fresh = allocates(func, args, kwargs, out)
        for tensor in fresh:
            self.own[storage_of(tensor)] = tensor
        if fresh or func._schema.is_mutable:  # a view needs no kernel
            args, kwargs, kept = tree_map_only(Tensor, self.held, (args, kwargs, fresh))
            self.steps.append((func, args, kwargs, kept))
        return out

    def held(self, tensor: Tensor) -> Tensor | Place:
        """A tensor as a replay will find it: an alias, which does not follow when the tensor is given other memory."""
        place = Place.of(tensor)
        inside = storage_of(tensor) in self.own or storage_of(tensor) in self.numbers
        return place.tensor() if inside else place

    def replay(self) -> None:
        for graph in self.pool:
            graph.poison()
        with torch.inference_mode():
            for func, args, kwargs, kept in self.steps:
                args, kwargs = tree_map_only(Place, Place.tensor, (args, kwargs))
                out = func(*args, **kwargs)
                for old, new in zip(kept, allocates(func, args, kwargs, out), strict=True):
                    old.copy_(new)

    def poison(self) -> None:
        """The pool's memory holds nothing that a replay does not write."""
        with torch.inference_mode():
            for tensor in self.own.values():
                if tensor.is_floating_point():
                    torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage()).fill_(float("nan"))


class StandIn:
    """A recorder for the CPU."""

    made: ClassVar[list[StandIn]] = []

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.pool: list[Graph] = []
        self.records = self.settled = 0
        StandIn.made.append(self)

    def record(self, function: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        function()
        graph = Graph(self.pool)
        with NoReading(), graph:
            made = function()
        self.records += 1
        self.replays = 0

        def replay() -> None:
            self.replays += 1
            graph.replay()

        return replay, made

    @contextmanager
    def turn(self) -> Iterator[None]:
        yield

    def settle(self) -> None:
        self.settled += 1


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[StandIn]]:
    """Graphs on the CPU; the recorders that were made."""
    monkeypatch.setitem(recorder.RECORDERS, "cpu", StandIn)
    monkeypatch.setattr(StandIn, "made", [])
    yield StandIn.made
