"""Plans of diffusers schedulers: traced once for a configuration and its timesteps, then shared by every thread."""

from __future__ import annotations

import functools
import itertools
import threading
from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdiff.diffusers.memory import Memory
from fastdiff.diffusers.solving import Line, lines, table
from fastdiff.diffusers.symbols import NotLinear
from fastdiff.diffusers.tracing import trace, trace_each
from fastdiff.noted import Weights
from fastdiff.plan import COLUMN

KEPT_PLANS = 256


@dataclass(frozen=True, eq=False)
class TracedPlan:
    """The rows of a run from step `begin`, as fastdiff.ops.solver_step_ reads them; `first`: the place of that step's
    timestep, another one where the timesteps were cut by hand.

    table: float64 [rows, 22]; folded: the same for a sample that came back as it was returned, so that a weight on the
    returned one adds to it; ring: values kept; reach: how many steps back an anchor may lie; seen: whether a row begins
    from a sample of lower precision as the model saw it, and not from the state behind it (`_from_seen`).
    """

    begin: int
    first: int
    lines: tuple[Line, ...]
    table: NDArray[np.float64]
    folded: NDArray[np.float64]
    ring: int
    reach: int
    scales: tuple[float, ...]
    seen: tuple[bool, ...]

    def __deepcopy__(self, memo: object) -> TracedPlan:
        return self  # nothing of it can change

    @property
    def memoryless(self) -> bool:
        """Whether no row reads anything of an earlier step."""
        return not self.ring and not self.reach

    @functools.cached_property
    def linked(self) -> bool:
        """Whether any row reads the sample as the step before returned it."""
        return any(line.linked for line in self.lines)

    @property
    def stochastic(self) -> bool:
        """Whether any row draws noise."""
        return any(line.draws for line in self.lines)

    def on(
        self, device: torch.device, *, folded: bool, weights: Weights = None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The table on a device, and its row numbers there; the same tensors each time. weights: of the model's two
        branches, where the step combines them."""
        return _placed(self, device, folded, weights)


@dataclass(frozen=True)
class Unfused:
    """Why a configuration runs diffusers' own step."""

    reason: str


Found = TracedPlan | Unfused


def find(
    memory: Memory, times: Sequence[Any], begin: int, first: int, options: Mapping[str, Any], *, alone: bool
) -> Found:
    """The plan through step() at `times`, from step `begin`, whose timestep stands at place `first`; traced if new.

    options: step()'s further arguments; alone: the steps know nothing of each other.
    """
    key = (
        memory.key,
        begin,
        first,
        tuple(float(time) for time in times),
        tuple(sorted(options.items(), key=str)),
    )
    with _lock:
        if key in _plans:
            _plans.move_to_end(key)
            return _plans[key]
    found = _trace(memory, times, begin, first, options, alone)
    with _lock:
        _plans[key] = found
        while len(_plans) > KEPT_PLANS:
            _plans.popitem(last=False)
    return found


def _trace(
    memory: Memory, times: Sequence[Any], begin: int, first: int, options: Mapping[str, Any], alone: bool
) -> Found:
    plain = memory.copy(begin)
    try:
        if alone:
            found, scales = _alone(plain, times, options)
        else:
            made = trace(plain, times, options)
            found, scales = lines(made), made.scales
        unfolded, ring = table(found)
    except NotLinear as refused:
        return Unfused(str(refused))
    except (RuntimeError, AttributeError) as error:  # of the symbols, which have neither channels nor pixels
        return Unfused(
            f"it looks into the image, at its channels or pixels ({type(error).__name__} on symbols)"
        )
    except Exception as error:  # the scheduler's own complaint, which its own step will make again
        return Unfused(f"{type(error).__name__}: {error}")
    folded = unfolded.copy()
    for row, line in zip(folded, found):
        if line.linked:
            row[COLUMN["a"]] += row[COLUMN["b"]]
            row[COLUMN["b"]] = 0.0
    reach = max((line.anchor for line in found if not line.linked), default=0)
    seen = _from_seen(found, folded, scales)
    return TracedPlan(begin, first, tuple(found), unfolded, folded, ring, reach, scales, seen)


def _from_seen(
    found: Sequence[Line], table: NDArray[np.float64], scales: Sequence[float]
) -> tuple[bool, ...]:
    """Which rows begin, in lower precision, from the sample as the model saw it.

    A row is x' = A*x + C*F(x), F near J*x. Rounding x by d for the model alone adds C*J*d to x', and its part to later
    rows that read the value; for both, (A + C*J)*d. From noise to a picture in one stride, a prediction of the noise is
    taken A = 30 times, and the two terms cancel. J is read off the growth of a state, with earlier values like this
    one: 1/scale is its deviation, of which the row's noise is a part. Two-stage methods and correctors read more than
    one sample: none of theirs.
    """
    if any(line.anchor for line in found):
        return (False,) * len(found)
    a, c0, c1, c2, c3, u, w, p = (
        table[:, COLUMN[name]] for name in ("a", "c0", "c1", "c2", "c3", "u", "w", "p")
    )
    n = np.array([0.0 if line.deviation else line.noise for line in found])  # a predicted one is left out
    deviation = 1.0 / np.array([scale or 1.0 for scale in (*scales, 1.0)])
    growth = np.sqrt(np.maximum(deviation[1:] ** 2 - n**2, 0.0)) / deviation[:-1]
    values = c0 + c1 + c2 + c3
    least = 1e-9 * np.abs(c0)
    value = np.divide(growth - a, values, out=np.zeros_like(c0), where=np.abs(values) > least)  # of each d
    weights = np.zeros(len(found))  # of the row's value, in the rows that read it
    for i, line in enumerate(found):
        for lag, weight in line.history.items():
            weights[i - lag] += weight**2
    both, alone = a + c0 * value, np.sqrt(weights) * (value - u - w * p)
    return tuple((2.0 * np.abs(both) < np.abs(alone)).tolist())  # clearly: J is a guess


def _alone(
    plain: Any, times: Sequence[Any], options: Mapping[str, Any]
) -> tuple[list[Line], tuple[float, ...]]:
    """Rows of steps that know nothing of each other; none after the first that fails."""
    once: dict[float, Any] = {}
    for time in times:
        once.setdefault(float(time), time)
    traces = dict(zip(once, trace_each(plain, list(once.values()), options)))
    known = {time: (lines(made)[0], made.scales[0]) for time, made in traces.items()}
    found = [known[float(time)] for time in itertools.takewhile(lambda time: float(time) in known, times)]
    return [line for line, _ in found], tuple(scale for _, scale in found)


_plans: OrderedDict[Hashable, Found] = OrderedDict()
_lock = threading.Lock()
_tables: OrderedDict[Hashable, tuple[TracedPlan, Tensor, tuple[Tensor, ...]]] = OrderedDict()


def _placed(
    plan: TracedPlan, device: torch.device, folded: bool, weights: Weights
) -> tuple[Tensor, tuple[Tensor, ...]]:
    key = (id(plan), device, folded, weights)
    with _lock:
        if key in _tables:
            _tables.move_to_end(key)
            return _tables[key][1:]
    with torch.inference_mode(False):  # kept beyond this run
        rows = torch.from_numpy((plan.folded if folded else plan.table).copy())
        if weights is not None:
            rows[:, [COLUMN["g"], COLUMN["g_uncond"]]] = torch.tensor(weights, dtype=rows.dtype, device="cpu")
        rows = rows if device.type == "cpu" else rows.to(device)
        index = torch.arange(len(rows), device=device).unbind(0)
    with _lock:
        _tables[key] = (plan, rows, index)  # the plan with it, so that its id stays taken
        while len(_tables) > KEPT_PLANS:
            _tables.popitem(last=False)
    return rows, index
