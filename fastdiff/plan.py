"""Rows and plans: a sampler written as a table of weights, known before the first model call.

A planner turns levels into rows; `Plan.build` checks them and lays them out as the float64 table every backend reads.
Nothing in a plan changes after it is built, so threads may share it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastdiff.levels import Level, check_falling
from fastdiff.predictions import Prediction, resolve
from fastdiff.reference import COLUMNS

MAX_HISTORY = 3
COLUMN = {name: i for i, name in enumerate(COLUMNS)}


@dataclass(frozen=True, slots=True)
class Row:
    """One linear step from `level` to `to`:

        value  = value[0] * x + value[1] * denoised
        x_next = x * x + anchor * anchor_state + history[0] * value + history[1] * h1 + ... + noise * N(0, 1)
                 + output * F

    level: where x lies and the model is called; to: where x_next lies.
    x, anchor, history, noise: weights; history newest first, its first entry is for this row's own value.
    output: weight of the guided output F itself; where the denoised image is clamped, F is not.
    value: (u, w), what the row contributes to the history; denoised itself by default.
    span: the levels between which a Brownian noise source takes its increment, (level, to) if None.
    call: False for a row without a model call (noise put back by churn or restart).
    accept: x_next becomes the anchor.
    forget: how many of the newest stored values are dropped before this row.
    exact: the row maps constant data to itself; False only where the source does not (LCM's boundary scaling).
    """

    level: Level
    to: Level
    x: float = 0.0
    history: tuple[float, ...] = ()
    anchor: float = 0.0
    noise: float = 0.0
    output: float = 0.0
    value: tuple[float, float] = (0.0, 1.0)
    span: tuple[Level, Level] | None = None
    call: bool = True
    accept: bool = True
    forget: int = 0
    exact: bool = True


Planner = Callable[..., Iterable[Row]]


@dataclass(frozen=True, eq=False)
class Plan:
    """A validated, immutable table of rows. Build one with `Plan.build`.

    table: float64 [rows, 22], the columns of fastdiff.reference.COLUMNS, read-only.
    times: the model's time for each row, NaN for rows without a call.
    slots: how many values the history ring must hold; needs_anchor: whether any row reads the anchor; scales_input:
    whether the model sees anything but x itself.
    """

    rows: tuple[Row, ...]
    levels: tuple[Level, ...]
    prediction: Prediction
    clip: tuple[float, float] | None = None
    planner: Planner | None = field(default=None, repr=False)
    name: str = "custom"
    table: NDArray[np.float64] = field(init=False, repr=False)
    times: tuple[float, ...] = field(init=False, repr=False)
    slots: int = field(init=False)
    needs_anchor: bool = field(init=False)
    scales_input: bool = field(init=False)

    @classmethod
    def build(
        cls,
        planner: Planner,
        levels: Sequence[Level],
        *,
        prediction: str | Prediction = "epsilon",
        clip: float | tuple[float, float] | None = None,
        options: Mapping[str, Any] | None = None,
        name: str | None = None,
    ) -> Plan:
        """Lay out `planner(levels, **options)`.

        levels: noisiest first, the final one included (Schedule.levels).
        clip: bounds of the denoised image, (lo, hi) or one number c for (-c, c) (static thresholding).
        Raises ValueError if the levels do not fall, or if a row does not fit its neighbours, is not finite, or does
        not map constant data to itself.
        """

        check_falling(levels)
        planned = functools.partial(planner, **(options or {}))
        return cls(
            rows=rows_of(planned, levels),
            levels=tuple(levels),
            prediction=resolve(prediction),
            clip=clip_bounds(clip),
            planner=planned,
            name=str(name or getattr(planner, "__name__", "custom")),
        )

    def __post_init__(self) -> None:
        slots = _slots(self.rows)
        table = np.array([_weights(self, i, slots[i]) for i in range(len(self.rows))], dtype=np.float64)
        table = table.reshape(len(self.rows), len(COLUMNS))
        times = tuple(self.prediction.time(row.level) if row.call else math.nan for row in self.rows)
        if not np.isfinite(np.delete(table, [COLUMN["lo"], COLUMN["hi"]], axis=1)).all():
            raise ValueError(
                f"{self.name} has no finite weights on these levels: start below pure noise, or change the sampler"
            )
        _check(self.rows, self.levels, self.prediction)
        table.flags.writeable = False
        object.__setattr__(self, "table", table)
        object.__setattr__(self, "times", times)
        object.__setattr__(self, "slots", _ring(self.rows, slots))
        object.__setattr__(self, "needs_anchor", any(row.anchor for row in self.rows))
        scales = any(self.prediction.scale(row.level) != 1.0 for row in self.rows if row.call)
        object.__setattr__(self, "scales_input", scales)

    def __setstate__(self, state: dict[str, Any]) -> None:
        state["table"].flags.writeable = False  # which pickle forgets
        for name, value in state.items():
            object.__setattr__(self, name, value)

    def __deepcopy__(self, memo: object) -> Plan:
        return self  # nothing of it can change

    @property
    def calls(self) -> int:
        """How often the model is called."""
        return sum(row.call for row in self.rows)

    @property
    def stochastic(self) -> bool:
        """Whether any row adds noise."""
        return any(row.noise for row in self.rows)

    @property
    def needs_path(self) -> bool:
        """Whether noise is drawn for a stage and for the step around it: both must then come from one Brownian path."""
        return any(row.noise and not row.accept for row in self.rows)

    @property
    def input_scale(self) -> float:
        """The factor that makes the first model input of the starting point."""
        return self.prediction.scale(self.rows[0].level) if self.rows and self.rows[0].call else 1.0

    def start_at(self, strength: float) -> Plan:
        """The plan that starts part-way, for image to image: the last `strength` of the steps, planned afresh.

        strength: 0 (no steps, the image comes back) to 1 (all of them).
        """
        if self.planner is None:
            raise ValueError(
                "this plan was not built by a planner, so it cannot start part-way: use Plan.build"
            )
        kept = tail(self.levels, strength)
        rows = rows_of(self.planner, kept) if len(kept) > 1 else ()
        return replace(self, rows=rows, levels=kept)

    def __str__(self) -> str:
        head = f"{self.name}: {len(self.levels) - 1} steps, {self.calls} model calls, prediction {self.prediction.name}"
        direct = any(row.output for row in self.rows)
        titles = ["t", "sigma", "to", "x", "anchor", "c0", "c1", "c2", "c3", "noise", *["output"] * direct]
        lines = [head, " ".join(f"{title:>9}" for title in titles)]
        for row, time in zip(self.rows, self.times, strict=True):
            weights = [row.x, row.anchor, *row.history, *(0.0,) * (4 - len(row.history)), row.noise]
            weights += [row.output] * direct
            cells = [format(value, ".5g") for value in (time, row.level.sigma, row.to.sigma)]
            cells += [format(weight, ".5g") if weight else "." for weight in weights]
            lines.append(" ".join(f"{cell:>9}" for cell in cells))
        return "\n".join(lines)


def rows_of(planner: Planner, levels: Sequence[Level]) -> tuple[Row, ...]:
    """The planner's rows. TypeError if it yields anything else."""
    rows = planner(tuple(levels))
    rows = tuple(rows) if isinstance(rows, Iterable) else (rows,)
    for row in rows:
        if not isinstance(row, Row):
            raise TypeError(
                f"the planner gave {type(row).__name__} where a fastdiff.plan.Row belongs: yield Row(...)"
            )
    return rows


def tail(levels: tuple[Level, ...], strength: float) -> tuple[Level, ...]:
    """The levels of the last `strength`, 0 to 1, of the steps, rounded down."""
    if not 0.0 <= strength <= 1.0:
        raise ValueError(f"strength must lie between 0 and 1, got {strength}")
    steps = len(levels) - 1
    return levels[steps - min(steps, int(steps * strength + 1e-9)) :]


def clip_bounds(clip: float | tuple[float, float] | None) -> tuple[float, float] | None:
    """(lo, hi) of the denoised image; a number c means (-c, c)."""
    bounds = (-clip, clip) if isinstance(clip, (int, float)) else clip
    if bounds is not None and not (bounds[0] < bounds[1]):
        raise ValueError(f"clip must be a positive bound or a pair (lo, hi) with lo < hi, got {clip}")
    return bounds


def _weights(plan: Plan, i: int, slot: int) -> list[float]:
    """The table's line for row i."""
    row, following = plan.rows[i], plan.rows[i + 1 : i + 2]
    p, q = plan.prediction.weights(row.level) if row.call else (0.0, 0.0)
    lo, hi = plan.clip or (-math.inf, math.inf)
    k = plan.prediction.scale(following[0].level) if following and following[0].call else 1.0
    history = [*row.history, *(0.0,) * (1 + MAX_HISTORY - len(row.history))]
    u, w = row.value if row.call else (0.0, 0.0)
    named = {
        "p": p, "q": q, "lo": lo, "hi": hi, "u": u, "w": w, "a": row.x, "b": row.anchor,
        "c0": history[0], "c1": history[1], "c2": history[2], "c3": history[3], "n": row.noise, "k": k,
        "g": 1.0, "g_uncond": 0.0, "call": float(row.call), "slot": float(slot), "accept": float(row.accept),
        "alpha": row.to.alpha, "sigma": row.to.sigma, "f": row.output,
    }  # fmt: skip
    return [named[column] for column in COLUMNS]


def _slots(rows: Sequence[Row]) -> list[int]:
    """Where each row writes its value: the number of values kept so far."""
    slots, kept = [], 0
    for row in rows:
        kept -= row.forget
        if kept < 0:
            raise ValueError("a row forgets more values than are stored")
        slots.append(kept)
        kept += row.call
    return slots


def _ring(rows: Sequence[Row], slots: Sequence[int]) -> int:
    """The smallest ring in which no value that is still to be read is overwritten; 0 if none is read back."""
    if not any(any(row.history[1:]) for row in rows):
        return 0

    def fits(size: int) -> bool:
        held: dict[int, int] = {}
        for row, slot in zip(rows, slots):
            reads = [slot - j for j, c in enumerate(row.history) if j and c]
            if any(held.get(read % size) != read for read in reads):
                return False
            if row.call:
                held[slot % size] = slot
        return True

    return next(size for size in range(1, len(rows) + 1) if fits(size))


def _output_of_constant(row: Row, prediction: Prediction) -> float:
    """What the model puts out for constant data 1 without noise, x = alpha: F with p*alpha + q*F = 1. NaN where the
    output says nothing of the image (q = 0), so that nothing follows for a row that weighs it."""
    p, q = prediction.weights(row.level)
    return (1.0 - p * row.level.alpha) / q if q else math.nan


def _check(rows: Sequence[Row], levels: Sequence[Level], prediction: Prediction) -> None:
    """Rows join up, read only what is stored, and map constant data exactly, as far as that is known."""
    if not rows and len(levels) > 1:
        raise ValueError("the planner made no rows for these levels: it must yield at least one a step")
    here = anchor = rows[0].level if rows else levels[0]
    if rows and (here.alpha, here.sigma) != (levels[0].alpha, levels[0].sigma):
        raise ValueError("the first row does not start at the first level")
    stored: list[float] = []  # how much of constant data each stored value holds, newest first
    for i, row in enumerate(rows):
        if (row.level.alpha, row.level.sigma) != (here.alpha, here.sigma):
            raise ValueError(f"row {i} starts at sigma {row.level.sigma:.6g}, but x lies at {here.sigma:.6g}")
        if len(row.history) > 1 + MAX_HISTORY:
            raise ValueError(
                f"row {i} has {len(row.history)} history weights, at most {1 + MAX_HISTORY} are possible"
            )
        stored = stored[row.forget :]
        own = row.value[0] * row.level.alpha + row.value[1]
        values = [own if row.call else 0.0, *stored]
        if any(row.history[len(values) :]) or (row.history and row.history[0] and not row.call):
            raise ValueError(f"row {i} reads more stored values than there are")
        if row.output and not row.call:
            raise ValueError(f"row {i} weighs a model output, but has none: it needs call=True")
        terms = [
            row.x * row.level.alpha,
            row.anchor * anchor.alpha,
            *(c * v for c, v in zip(row.history, values)),
            row.output * _output_of_constant(row, prediction) if row.output else 0.0,
        ]
        off = abs(sum(terms) - row.to.alpha)  # NaN where the output of constant data is not known
        if row.exact and off > 1e-10 * (1.0 + sum(map(abs, terms))):
            raise ValueError(f"row {i} maps constant data 1 to {sum(terms):.12g}, not to {row.to.alpha:.12g}")
        stored = [own, *stored] if row.call else stored
        here = row.to
        anchor = row.to if row.accept else anchor
    if rows and (here.alpha, here.sigma) != (levels[-1].alpha, levels[-1].sigma):
        raise ValueError("the last row does not end at the last level")
