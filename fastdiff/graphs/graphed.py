"""`graphed`: a module's forward as CUDA graphs, one for each shape it is called with, behind the same signature."""

from __future__ import annotations

import copy
import inspect
import logging
import threading
import types
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastdiff.graphs.cache import Cache
from fastdiff.graphs.inputs import Buffers, Unknown, described, device_of, mapped
from fastdiff.graphs.recorder import RECORDERS, Replay, aside, reason_of, record, settings

log = logging.getLogger(__name__)

ONCE = "a shape is captured when it comes the second time"


def graphed(
    module: nn.Module, *, most: int = 4, also: Callable[[], Hashable] | None = None, captures_at: int = 2
) -> Graphed:
    """The module's forward, with the same signature, replayed from a CUDA graph where that can be:

        unet.forward = graphed(unet)     # from now on; `del unet.forward` takes it off again
        image = pipe("a lighthouse").images[0]
        print(unet.forward.report)

    A call whose shapes, dtypes and plain values come the second time (`captures_at`) is captured, and replayed from
    then on: inputs are copied in, results copied out, so that a caller may keep or change them. `most` graphs are kept,
    in one pool of memory. A change of the module (weights replaced or moved, adapters, processors, hooks,
    attributes) is noticed at the next call; weights written in place need no notice. also(): whatever else the result
    depends on, a hashable value.

    The call runs as before, eagerly, where gradients are recorded, on devices without graphs, under torch.compile or
    another capture, for inputs that are not tensors, plain values and containers of these, and for modules with hooks,
    compiled parts, a forward that was replaced, or tensors elsewhere (offloading): `report.reason` says why. What the
    forward does beside launching kernels (counting, printing, drawing from a generator) happens at captures only.
    Threads may share it.
    """
    return Graphed(module, most=most, also=also, captures_at=captures_at)


@dataclass
class Report:
    """What became of the calls so far. reason: why the last one did not replay a graph, None if it did."""

    replayed: int = 0
    eager: int = 0
    captured: int = 0
    reason: str | None = None

    def __str__(self) -> str:
        why = f"; the last call: {self.reason}" if self.reason else ""
        return f"{self.replayed} calls replayed, {self.eager} eager, {self.captured} captured{why}"


@dataclass
class _Graph:
    """One captured call."""

    inputs: Buffers
    made: Any
    replay: Replay
    used: bool = False


class Graphed:
    """A module's forward, replayed: made by `graphed`. A copy, or one loaded from a pickle, has no graphs yet."""

    def __init__(
        self, module: nn.Module, *, most: int, also: Callable[[], Hashable] | None, captures_at: int
    ) -> None:
        if not isinstance(module, nn.Module):
            raise TypeError(f"module is {type(module).__name__}: pass a torch.nn.Module")
        if most < 1 or captures_at < 1:
            raise ValueError(f"most and captures_at must be at least 1, got {most} and {captures_at}")
        forward = module.forward
        if isinstance(forward, Graphed) and forward.module is module:
            forward = forward.forward  # asked for again: this one takes its place
        self._set({"module": module, "forward": forward, "options": (most, also, captures_at)})

    def _set(self, state: dict[str, Any]) -> None:
        self.module: nn.Module = state["module"]
        self.forward: Callable[..., Any] = state["forward"]
        self.most, self.also, self.captures_at = state["options"]
        self.report = Report()
        self.__wrapped__ = self.forward
        self.__signature__ = inspect.signature(self.forward)
        self._lock = threading.RLock()
        self._cache: Cache[_Graph] | None = None
        self._seen: dict[Hashable, int] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """module.forward(*args, **kwargs), in tensors of the caller's own."""
        if torch.compiler.is_compiling():
            return self.forward(*args, **kwargs)
        reason = aside()
        if reason is None:
            reason, result = self._by_graph(args, kwargs)
            if reason is None:
                return result
        self.report.eager += 1
        self.report.reason = reason
        return self.forward(*args, **kwargs)

    def clear(self) -> None:
        """Forgets every graph, and why there were none; their memory goes back to the device."""
        with self._lock:
            if self._cache is not None:
                self._cache.drop()
            self._cache = None
            self._seen.clear()

    def _by_graph(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str | None, Any]:
        """(None, the result), or (why this call has no graph, None)."""
        tensors: list[Tensor] = []
        try:
            form = described((args, kwargs), tensors)
            device = device_of(tensors)
        except Unknown as error:
            return str(error), None
        if device.type not in RECORDERS:
            return f"there are no graphs on the {device.type}", None
        key = form, settings(device.type), self.also and self.also()
        with self._lock:
            cache = self._on(device)
            reason = cache.check()
            if reason is not None:
                return reason, None
            graph = cache.get(key)
            if graph is not None:
                cache.paid(graph)
                return None, self._replayed(cache, graph, tensors)
            reason = cache.refused.get(key) or self._too_early(key)
            return (reason, None) if reason else self._captured(cache, key, tensors, (args, kwargs))

    def _on(self, device: torch.device) -> Cache[_Graph]:
        if self._cache is None or self._cache.device != device:
            self.clear()
            self._cache = Cache(self.module, device, most=self.most, skip=(self,))
        return self._cache

    def _too_early(self, key: Hashable) -> str | None:
        """Counts how often a key has come: the first calls also warm up, and one that stays alone needs no graph."""
        times = self._seen.pop(key, 0) + 1
        if len(self._seen) >= 64:
            self._seen.pop(next(iter(self._seen)))
        self._seen[key] = times
        return ONCE if times < self.captures_at else None

    def _captured(
        self, cache: Cache[_Graph], key: Hashable, tensors: list[Tensor], given: tuple[Any, ...]
    ) -> tuple[str | None, Any]:
        """Captures the call and replays it once."""
        cache.drop(self.most - 1)
        try:
            inputs = Buffers(given, cache.device)
            with cache.recorder.turn():
                inputs.load(tensors)
                fixed, named = inputs.tree
                replay, made = record(cache.recorder, cache.device, lambda: self.forward(*fixed, **named))
            mapped(made, lambda tensor: tensor)
        except (
            Exception
        ) as error:  # the eager call that follows raises it again, if it is not the capture's own
            reason = f"it could not be captured: {reason_of(error)}"
            log.warning("%s: %s", type(self.module).__name__, reason)
            cache.refuse(key, reason)
            return reason, None
        if cache.watch.changed():
            cache.wasted += 1
            return "its forward changes the module's own attributes", None
        graph = _Graph(inputs, made, replay)
        cache.put(key, graph)
        self.report.captured += 1
        return None, self._replayed(cache, graph, tensors)

    def _replayed(self, cache: Cache[_Graph], graph: _Graph, tensors: list[Tensor]) -> Any:
        with cache.recorder.turn():
            graph.inputs.load(tensors)
            graph.replay()
            result = mapped(graph.made, torch.clone)
        self.report.replayed += 1
        self.report.reason = None
        return result

    def __deepcopy__(self, memo: dict[int, Any]) -> Graphed:
        made = object.__new__(Graphed)
        memo[id(self)] = made
        made.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return made

    def __getstate__(self) -> dict[str, Any]:
        own = getattr(self.forward, "__func__", None) is type(self.module).forward
        options = (self.most, self.also, self.captures_at)
        return {"module": self.module, "forward": None if own else self.forward, "options": options}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if state["forward"] is None:
            # Bound afresh: the module's attribute is this very object where it took the forward's place.
            state["forward"] = types.MethodType(type(state["module"]).forward, state["module"])
        self._set(state)
