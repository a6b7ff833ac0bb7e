"""Which runs of `sample` go through graphs, and the captured loops of each model."""

from __future__ import annotations

import logging
import threading
import types
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastdiff import backend, ops
from fastdiff.executor import Run
from fastdiff.graphs.cache import Cache
from fastdiff.graphs.inputs import Unknown, described, device_of
from fastdiff.graphs.loop import Loop, key_of, kinds
from fastdiff.graphs.recorder import RECORDERS, CannotCapture, aside, reason_of
from fastdiff.graphs.watch import OWN

log = logging.getLogger(__name__)

MOST = 4
"""Captured loops that are kept for one model."""

ENOUGH = 4
"""Calls of the model in a run that make up for the capture; a shorter run must come again."""


class Loops:
    """The captured loops of one model on one device. One run at a time is on their buffers."""

    def __init__(self, model: object, device: torch.device) -> None:
        self.busy = threading.Lock()
        self.cache: Cache[Loop] = Cache(model, device, most=MOST)

    def ready(self, run: Run) -> Loop:
        """The loop for a run, captured as far as it needs. Raises CannotCapture."""
        reason = self.cache.check()
        if reason is not None:
            raise CannotCapture(reason)
        try:
            key = key_of(run)
        except Unknown as error:
            raise CannotCapture(f"the conditioning: {error}") from None
        if key in self.cache.refused:
            raise CannotCapture(self.cache.refused[key])
        loop = self.cache.get(key)
        if loop is not None and kinds(run) <= loop.replays.keys():
            return loop
        if loop is None:
            layout = _layout(run)  # the model's own errors come from here
            self.cache.drop(MOST - 1)
            loop = Loop(run, layout)
        try:
            for kind in kinds(run) - loop.replays.keys():
                loop.capture(run, kind, self.cache)
        except Exception as error:
            self.cache.refuse(key, f"the model cannot be captured: {reason_of(error)}")
            raise CannotCapture(self.cache.refused[key]) from error
        if self.cache.drop_stale():
            raise CannotCapture("the model's forward changes its own attributes")
        self.cache.put(key, loop)
        return loop


def walked(run: Run, *, must: bool) -> Tensor:
    """The result of a run, by graphs; without them where another thread's run is on the buffers, or, unless it `must`,
    where there can be none. Raises CannotCapture if it must and cannot."""
    reason = _unfit(run)
    try:
        if reason is not None:
            raise CannotCapture(reason)
        loops = _loops_of(run.call.model, run.x.device)
        if not loops.busy.acquire(blocking=False):
            return run.in_place()
    except CannotCapture as error:
        return _without(run, error, must)
    try:
        with loops.cache.recorder.turn():
            try:
                loop = loops.ready(run)
            except CannotCapture as error:
                return _without(run, error, must)
            result = loop.walk(run, loops.cache)
            if loop.used or run.plan.calls >= ENOUGH:
                loops.cache.paid(loop)
            loop.used = True
            return result
    finally:
        loops.busy.release()


def clear(model: Callable[..., Tensor] | None = None) -> None:
    """Forgets the captured loops of a model, or of all of them, and gives their memory back."""
    with _lock:
        kept = [_kept_by(_owner(model))] if model is not None else list(_ALL)
        for each in kept:
            if each is not None:
                owner = each.owner()
                if owner is not None:
                    vars(owner).pop(OWN, None)
                for loops in each.loops.values():
                    loops.cache.drop()


def _without(run: Run, error: CannotCapture, must: bool) -> Tensor:
    if must:
        raise error
    log.debug("no graph: %s", error)
    return run.in_place()


def _unfit(run: Run) -> str | None:
    """Why a run has no graph, as far as that does not depend on the model."""
    x, setting = run.x, run.setting
    if x.device.type not in RECORDERS:
        return f"graphs are captured on a CUDA device, and x is on the {x.device.type}: leave graph=False"
    if not x.numel() or not any(row.call for row in run.plan.rows):
        return "there is nothing to call the model for"
    needed = ["solver_step"]
    needed += ["dynamic_bound"] if setting.threshold is not None else []
    needed += ["rescale_gain"] if setting.guidance is not None and setting.guidance.rescale else []
    for op in needed:
        if backend.select(op, x.device.type, x.dtype) == "reference":
            return f"{op} runs on the reference, which reads its weights on the host: use float32, or another backend"
    tensors: list[Tensor] = [x]
    try:
        branches = run.call.branches
        described((branches.cond, branches.uncond, branches.both), tensors)
        device_of(tensors)
    except Unknown as error:
        return f"the conditioning: {error}"
    return aside()


@torch.no_grad()
def _layout(run: Run) -> Tensor:
    """A tensor laid out as the buffers should be: like the eager loop's, which take the layout of its first output."""
    if not run.plan.rows[0].call:
        return run.x
    devices = [run.x.device] if run.x.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        output, _ = run.call(0, run.first_input(run.x) if run.needs_input() else run.x.clone())
    return output if output.stride() != run.x.stride() and ops.is_dense(output) else run.x


class Kept:
    """The loops of a model, among its attributes: they may reach the model themselves, and then go with it as any
    cycle does. A copy of the model, or what a pickle brings back, has none."""

    def __init__(self, owner: object) -> None:
        self.owner = weakref.ref(owner)
        self.loops: dict[Any, Loops] = {}
        _ALL.add(self)

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()


_ALL: weakref.WeakSet[Kept] = weakref.WeakSet()
_lock = threading.Lock()


def _owner(model: Any) -> Any:
    """What lives as long as the model does: a bound method is made anew each time it is asked for."""
    return model.__self__ if isinstance(model, types.MethodType) else model


def _kept_by(owner: Any) -> Kept | None:
    """What this object keeps, and not one that it was copied from."""
    kept = getattr(owner, "__dict__", {}).get(OWN)
    return kept if isinstance(kept, Kept) and kept.owner() is owner else None


def _loops_of(model: Any, device: torch.device) -> Loops:
    owner = _owner(model)
    key = getattr(model, "__func__", None), device
    try:
        with _lock:
            kept = _kept_by(owner)
            if kept is None:
                kept = vars(owner)[OWN] = Kept(owner)
            if key not in kept.loops:
                kept.loops[key] = Loops(owner, device)
            return kept.loops[key]
    except TypeError as error:
        raise CannotCapture(
            f"graphs are kept with their model, and this one cannot keep any: {error}"
        ) from None
