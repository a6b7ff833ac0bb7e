"""Plans of diffusers schedulers: traced once for a configuration and its timesteps, then shared by every thread."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdiff.diffusers.solving import Line, lines, table
from fastdiff.diffusers.symbols import NotLinear
from fastdiff.diffusers.tracing import plain_copy, trace
from fastdiff.plan import COLUMN

KEPT_PLANS = 256


@dataclass(frozen=True, eq=False)
class TracedPlan:
    """The rows of a run from step `begin`, as fastdiff.ops.solver_step_ reads them.

    table: float64 [rows, 22]; folded: the same for a sample that came back as it was returned, so that a weight on the
    returned one adds to it; ring: values kept; reach: how many steps back an anchor may lie.
    """

    begin: int
    lines: tuple[Line, ...]
    table: NDArray[np.float64]
    folded: NDArray[np.float64]
    ring: int
    reach: int
    scales: tuple[float, ...]

    @property
    def memoryless(self) -> bool:
        """Whether no row reads anything of an earlier step."""
        return not self.ring and not self.reach

    @property
    def stochastic(self) -> bool:
        """Whether any row draws noise."""
        return any(line.draws for line in self.lines)

    def on(self, device: torch.device, *, folded: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The table on a device, and its row numbers there; the same tensors each time."""
        return _placed(self, device, folded)


@dataclass(frozen=True)
class Unfused:
    """Why a configuration runs diffusers' own step."""

    reason: str


Found = TracedPlan | Unfused


def find(
    scheduler: Any,
    base: type,
    times: Sequence[Any],
    begin: int,
    options: Mapping[str, Any],
) -> Found:
    """The plan of `scheduler`, a subclass of diffusers' `base`, through step() at times[begin:]; traced if new."""
    key = (
        base, state_key(scheduler), begin, tuple(float(time) for time in times), tuple(sorted(options.items())),
    )  # fmt: skip
    with _lock:
        if key in _plans:
            _plans.move_to_end(key)
            return _plans[key]
    found = _trace(scheduler, base, times[begin:], begin, options)
    with _lock:
        _plans[key] = found
        while len(_plans) > KEPT_PLANS:
            _plans.popitem(last=False)
    return found


def _trace(
    scheduler: Any,
    base: type,
    times: Sequence[Any],
    begin: int,
    options: Mapping[str, Any],
) -> Found:
    plain = plain_copy(scheduler, base)
    if hasattr(plain, "_step_index"):
        plain._step_index = begin
    try:
        made = trace(plain, times, options)
        found = lines(made)
        unfolded, ring = table(found, made.scales)
    except NotLinear as refused:
        return Unfused(str(refused))
    except Exception as error:  # the scheduler's own complaint, which its own step will make again
        return Unfused(f"{type(error).__name__}: {error}")
    folded = unfolded.copy()
    for row, line in zip(folded, found):
        if line.linked:
            row[COLUMN["a"]] += row[COLUMN["b"]]
            row[COLUMN["b"]] = 0.0
    reach = max((line.anchor for line in found if not line.linked), default=0)
    return TracedPlan(begin, tuple(found), unfolded, folded, ring, reach, made.scales)


def state_key(scheduler: Any) -> Hashable:
    """All that a scheduler's steps depend on, but for where it stands."""
    state = vars(scheduler)
    named = [(name, _frozen(value)) for name, value in state.items() if not name.startswith("_")]
    return (repr(dict(scheduler.config)), getattr(scheduler, "num_inference_steps", None), *named)


def _frozen(value: Any) -> Hashable:
    if isinstance(value, Tensor):
        return value.detach().cpu().contiguous().numpy().tobytes() if value.numel() <= 65536 else None
    if isinstance(value, np.ndarray):
        return value.tobytes()
    if isinstance(value, (list, tuple)):
        return tuple(_frozen(item) for item in value)
    return value if isinstance(value, int | float | str) else None


_plans: OrderedDict[Hashable, Found] = OrderedDict()
_lock = threading.Lock()
_tables: OrderedDict[Hashable, tuple[TracedPlan, Tensor, tuple[Tensor, ...]]] = OrderedDict()


def _placed(plan: TracedPlan, device: torch.device, folded: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
    key = (id(plan), device, folded)
    with _lock:
        if key in _tables:
            return _tables[key][1:]
    with torch.inference_mode(False):  # kept beyond this run
        rows = torch.tensor(plan.folded if folded else plan.table, device="cpu").to(device)
        index = torch.arange(len(rows), device=device).unbind(0)
    with _lock:
        _tables[key] = (plan, rows, index)  # the plan with it, so that its id stays taken
        while len(_tables) > KEPT_PLANS:
            _tables.popitem(last=False)
    return rows, index
