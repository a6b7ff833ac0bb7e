"""Solving: a trace as rows of the fused step's table.

    x_next = a*x + b*anchor + c0*value + c1*h1 + c2*h2 + c3*h3 + f*output + n*noise

value is what the scheduler itself remembers of a step; the anchor is an earlier sample, or (`linked`) the sample as the
step before returned it, which a corrector discards in favour of its own: then both weights stand in the table, and the
row is folded into one weight where the sample came back as it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fastdiff.diffusers.learned import Deviation
from fastdiff.diffusers.symbols import KINDS, NOISES, NotLinear, Step, Vector
from fastdiff.diffusers.tracing import Trace
from fastdiff.plan import COLUMN, MAX_HISTORY
from fastdiff.reference import COLUMNS

WIDTH = len(KINDS)
X, OUTPUT, DENOISED, GIVEN = (KINDS.index(kind) for kind in ("x", "output", "denoised", "given"))
TOLERANCE = 2e-7
"""Of the largest term: what diffusers' float32 arithmetic on its weights leaves of what cancels exactly."""
FIRST = 12
"""Rows that are checked before the others are read."""


@dataclass(frozen=True)
class Extra:
    """A further result of step(), like pred_original_sample: the weights of this step's own symbols."""

    x: float
    output: float
    denoised: float
    noise: float


@dataclass(frozen=True)
class Line:
    """One row as solved.

    history: weights by steps back, 0 the row's own value; anchor: how many steps back the sample is that anchors it, 0
    for none, -1 for an image given to the step; linked: the anchor is the sample as the step before returned it;
    deviation: of the noise at each pixel; channels: how many of the output's the step takes, None for all.
    """

    x: float
    history: dict[int, float]
    value: tuple[float, float]
    output: float
    noise: float
    draws: tuple[torch.dtype | None, ...]
    drawn: int
    anchor: int
    weight: float
    linked: bool
    denoised: tuple[float, float, float, float]
    dynamic: bool
    span: tuple[float, float] | None
    extras: tuple[Extra | None, ...]
    deviation: Deviation | None = None
    channels: int | None = None


def lines(trace: Trace) -> list[Line]:
    """The rows of a trace. NotLinear where the fused step's form cannot hold one."""
    solver = Solver(trace)
    try:
        return solver.lines(linked=False)
    except NotLinear:
        # A corrector starts each step from its own last result, not from the sample it is given.
        return solver.lines(linked=True)


class Solver:
    """Reads the rows off a trace. values: what is kept of each step, over its own symbols: [N, kinds]; pivots: the
    symbol by which a value's weight is read off, one that nothing else brings along; sizes: about how large the images
    are that the symbols stand for, so that a small weight of a large sample is not taken for a rounding error."""

    def __init__(self, trace: Trace) -> None:
        self.steps = trace.steps
        self.sizes = np.ones((len(trace.steps), WIDTH))
        self.sizes[:, X] = [1.0 / abs(scale) if scale else 1.0 for scale in trace.scales]
        self.sources = np.array([DENOISED if step.clamp else OUTPUT for step in trace.steps])
        self.values = np.zeros((len(trace.steps), WIDTH))
        for number, kept in enumerate(trace.kept):
            source = self.sources[number]
            if kept is None or not (kept[source] or kept[X]):
                self.values[number, source] = 1.0
            else:
                self.values[number, [X, OUTPUT, DENOISED]] = kept[[X, OUTPUT, DENOISED]]
        own = np.arange(len(trace.steps))
        self.pivots = np.where(self.values[own, self.sources] != 0.0, self.sources, X)

    def lines(self, *, linked: bool) -> list[Line]:
        """All rows. NotLinear where no ring of values holds what they read: most often, that shows in the first few."""
        found: list[Line] = []
        for numbers in (range(len(self.steps[:FIRST])), range(FIRST, len(self.steps))):
            found += [self.line(number, linked=linked) for number in numbers]
            if numbers:
                slots(found)
        return found

    def line(self, number: int, *, linked: bool) -> Line:
        """Row `number`. linked: prefer the sample as the step before returned it to an earlier one as an anchor."""
        step = self.steps[number]
        target = step.outputs[0].reshape(-1, WIDTH)
        own, value, source = target[number], self.values[number], self.sources[number]
        sizes = self.sizes[: number + 1]
        unit = float(np.abs(target[: number + 1] * sizes).max()) or 1.0
        if step.clamp and value[OUTPUT]:
            raise NotLinear("a memory of both the clamped image and the output")
        c0 = own[source] / value[source] if value[source] else 0.0
        back, rest = self._past(number, target)
        anchor, weight = 0, 0.0
        left = np.argwhere(np.abs(rest * sizes[:number]) > TOLERANCE * unit)
        if not len(left):
            linked = False
        elif len(left) == 1 and left[0][1] == X and not linked:
            anchor, weight = number - int(left[0][0]), float(rest[left[0][0], X])
        else:
            anchor, linked = 1, True
            weight, back = self._link(number, target, unit)
        # What a corrector's recursion leaves of long ago cancels, but for diffusers' own rounding.
        least = (TOLERANCE if linked else 1e-12) * unit
        large = np.abs(back) * np.abs(self.values * self.sizes)[:number].max(1, initial=1.0)
        history = {number - int(j): float(back[j]) for j in np.flatnonzero(large > least)}
        history |= {0: float(c0)} if c0 else {}
        noises = [(i, float(own[place])) for i, place in enumerate(NOISES) if own[place]]
        if len(noises) > 1:
            finite = np.isfinite(unit)
            raise NotLinear("two noises added in one step" if finite else "weights that are not finite")
        if own[GIVEN]:
            if anchor:
                raise NotLinear("an image given to a step that reads an earlier one")
            anchor, weight = -1, float(own[GIVEN])
        x = own[X] - c0 * value[X]
        x = 0.0 if abs(x) * sizes[number, X] < 1e-12 * unit else float(x)
        return Line(
            x=x, history=history, value=(value[X], value[source]),
            output=float(own[OUTPUT]) if step.clamp else 0.0, noise=noises[0][1] if noises else 0.0,
            draws=tuple(step.draws), drawn=noises[0][0] if noises else -1, anchor=anchor, weight=weight,
            linked=linked, denoised=_denoised(step, number),
            dynamic=step.clamp is not None and step.clamp.dynamic,
            span=step.spans[0] if step.spans else None,
            extras=tuple(_extra(extra, number) for extra in step.outputs[1:]),
            deviation=step.deviation, channels=step.channels,
        )  # fmt: skip

    def _past(self, number: int, target: Vector) -> tuple[Vector, Vector]:
        """Earlier values' weights in target, oldest first, and what of earlier symbols is left."""
        rest, values, own = target[:number].copy(), self.values[:number], np.arange(number)
        weights = rest[own, self.pivots[:number]] / values[own, self.pivots[:number]]
        rest -= weights[:, None] * values
        return weights, rest

    def _link(self, number: int, target: Vector, unit: float) -> tuple[float, Vector]:
        """What remains of the past, as a weight of the sample the step before returned, and the values' weights."""
        before = self.steps[number - 1].outputs[0].reshape(-1, WIDTH)
        _, rest = self._past(number, target)
        _, passed = self._past(number, before)
        weight = float((rest * passed).sum() / max(float((passed * passed).sum()), 1e-300))
        back, left = self._past(number, target - weight * before)
        if np.abs(left * self.sizes[:number]).max() > TOLERANCE * unit:
            raise NotLinear("a memory that neither the last outputs nor one earlier sample holds")
        return weight, back


def _denoised(step: Step, number: int) -> tuple[float, float, float, float]:
    """(p, q, lo, hi) of the clamped image; the output itself where there is no clamp."""
    if step.clamp is None:
        return 0.0, 1.0, -np.inf, np.inf
    argument = step.clamp.argument.copy()
    p, q = float(argument[number * WIDTH + X]), float(argument[number * WIDTH + OUTPUT])
    argument[[number * WIDTH + X, number * WIDTH + OUTPUT]] = 0.0
    if argument.any():
        raise NotLinear("a clamp of more than the sample and the output, such as noise")
    return p, q, step.clamp.lo, step.clamp.hi


def _extra(extra: Vector, number: int) -> Extra | None:
    if not len(extra):
        return None
    parts = extra.reshape(-1, WIDTH).copy()
    made = Extra(*(float(parts[number, kind]) for kind in (X, OUTPUT, DENOISED, NOISES[0])))
    parts[number, [X, OUTPUT, DENOISED, NOISES[0]]] = 0.0
    if parts.any():
        raise NotLinear("a further result made of more than this step's sample and output")
    return made


def slots(found: Sequence[Line]) -> tuple[list[int], int]:
    """Where each row writes its value, and the ring's length: the newest values that nobody reads again are dropped."""
    read_until = [-1] * len(found)
    for i, line in enumerate(found):
        for lag in line.history:
            read_until[i - lag] = max(read_until[i - lag], i)
    stack: list[int] = []
    places: list[int] = []
    reads: list[list[int]] = []
    for i, line in enumerate(found):
        while stack and read_until[stack[-1]] < i:
            stack.pop()
        reads.append([stack.index(i - lag) for lag in line.history if lag])
        if any(len(stack) - slot > MAX_HISTORY for slot in reads[-1]):
            raise NotLinear(f"a memory of more than {MAX_HISTORY} values")
        places.append(len(stack))
        stack.append(i)
    return places, ring_size(places, reads)


def ring_size(places: Sequence[int], reads: Sequence[Sequence[int]]) -> int:
    """The smallest ring in which no value that is still to be read is overwritten; 0 if none is read."""

    def fits(size: int) -> bool:
        held: dict[int, int] = {}
        for place, read in zip(places, reads):
            if any(held.get(slot % size) != slot for slot in read):
                return False
            held[place % size] = place
        return True

    return next(size for size in range(1, len(places) + 1) if fits(size)) if any(reads) else 0


def table(found: Sequence[Line]) -> tuple[NDArray[np.float64], int]:
    """The float64 table [rows, 22] of the rows, anchors apart from x, and the ring's length."""
    places, ring = slots(found)
    out = np.zeros((len(found), len(COLUMNS)))
    stack: list[int] = []
    for i, line in enumerate(found):
        stack = stack[: places[i]]
        p, q, lo, hi = line.denoised
        own = line.history.get(0, 0.0)
        row = {
            "p": p, "q": q, "lo": lo, "hi": hi, "u": line.value[0], "w": line.value[1], "a": line.x,
            "b": line.weight, "c0": own, "n": line.noise, "k": 1.0, "g": 1.0, "call": 1.0,
            "slot": places[i], "f": line.output,
        }  # fmt: skip
        for lag, weight in line.history.items():
            if lag:
                row[f"c{len(stack) - stack.index(i - lag)}"] = weight
        for name, weight in row.items():
            out[i, COLUMN[name]] = weight
        stack.append(i)
    return out, ring
