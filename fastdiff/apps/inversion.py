"""From a picture back to the noise it would be sampled from: DDIM run backwards, roughly or to rounding, as a plan.

    levels = ladder(schedule, 20)
    up = inversion(levels, prediction="v")                 # picture -> noise
    down = Plan.build(ddim, levels, prediction="v")        # noise -> picture
    noise = sample(model, picture, sampler=up, conditioning=...)

DDIM steps from a noisy level a to a lower one b by x_b = r x_a + g D(x_a, a), D being the denoised image. Back from b:

- *DDIM inversion* (arXiv:2010.02502, section 5.2) is the same row on reversed levels. It takes D at x_b in place of
  D at x_a: one model call a step, and an error that many steps make small.
- *exact inversion* then solves the step for x_a by turns, each of them one more row with x_b as its anchor:
  x <- x - (r x + g D(x) - x_b) / m. This is fixed-point inversion (arXiv:2309.04907), where m = 1 in the coordinates
  x / alpha, but with a divisor for each turn: if the eigenvalues of the step's Jacobian lie in [r, R], the roots of the
  Chebyshev polynomial on that interval shrink the error most in a given number of turns (Richardson iteration).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

from fastdiff.levels import Level, clean
from fastdiff.plan import Plan, Planner, Row
from fastdiff.predictions import Prediction, resolve
from fastdiff.samplers.first_order import ddim
from fastdiff.schedules import Schedule

TURNS = 8
STEEPEST = 1.75
"""R: the step's largest stretch, in x / alpha. It would be 1 for Gaussian data, whose denoiser shrinks differences;
between two pictures that the noise makes equally likely, it spreads them."""
FAINTEST, STRONGEST = 0.01, 40.0
"""sigma / alpha between which pictures are inverted: from about the rounding of 8-bit pixels to where nothing shows."""


def level_at(schedule: Schedule, strength: float, *, grain: int = 100) -> Level:
    """The level where sampling starts for image to image at `strength`, 0 (clean) to 1 (the first level).

    As `Plan.start_at` counts, but between levels too (log(sigma / alpha) is linear between those of `grain` steps), so
    that the dial is smooth however few steps are taken.
    """
    levels = schedule.levels(grain)
    place = grain * (1.0 - strength)
    i = min(int(place), grain - 1)
    part, a, b = place - i, levels[i], levels[i + 1]
    if not part or not a.alpha:
        return a
    if not b.sigma:
        return b if part == 1.0 else a.at(a.ratio * (1.0 - part))
    return a.at(math.exp((1.0 - part) * math.log(a.ratio) + part * math.log(b.ratio)))


def ladder(schedule: Schedule, steps: int, strength: float = 1.0) -> tuple[Level, ...]:
    """Levels to invert a picture on, noisiest first: in geometric progression, from a faint noise to `level_at`.

    steps: for strength 1; for less, as many as keep their ratio. Steps of an even, moderate ratio are what exact
    inversion converges on. Returns one level alone, the faintest, where `strength` does not reach it.
    """
    top = min(level_at(schedule, strength).ratio, STRONGEST)
    whole = math.log(STRONGEST / FAINTEST)
    climb = math.log(top / FAINTEST) if top > FAINTEST else 0.0
    count = math.ceil(steps * climb / whole - 1e-9)
    at = schedule.levels(1)[0].at
    return tuple(at(FAINTEST * math.exp(climb * i / count)) for i in range(count, 0, -1)) + (at(FAINTEST),)


def inversion(levels: Sequence[Level], *, prediction: str | Prediction, turns: int = TURNS) -> Plan:
    """The plan from a picture to the noise at levels[0].

    levels: noisiest first, as DDIM will walk them to bring the picture back; the picture counts as lying at the last.
    turns: how often each step is corrected, each for one more model call; 0 is DDIM inversion, 8 brings photographs
    back to rounding (docs/restyle.md).
    Raises ValueError where the last level is clean: the noise in a clean picture cannot be told.
    """
    if not levels[-1].sigma:
        raise ValueError(
            "inversion must end at a level with a little noise: use levels of ladder(schedule, steps)"
        )
    if isinstance(turns, bool) or not isinstance(turns, int) or not 0 <= turns <= 100:
        raise ValueError(f"turns must be an integer from 0 to 100, got {turns!r}")
    rising = tuple(reversed(levels))
    rows = [_taken_as(clean_of(levels), rising[0])]
    rows += [row for b, a in pairwise(rising) for row in _step(b, a, turns)]
    return Plan(
        rows=tuple(rows), levels=(rows[0].level, *rising), prediction=resolve(prediction), name="inversion"
    )


def descent(levels: Sequence[Level], *, prediction: str | Prediction, planner: Planner = ddim) -> Plan:
    """The plan down the same levels, from the noise that `inversion` found; DDIM leads to the same picture again."""
    rows = list(planner(tuple(levels))) if len(levels) > 1 else []
    rows.append(_taken_as(levels[-1], clean_of(levels)))
    name = getattr(planner, "__name__", "descent")
    return Plan(rows=tuple(rows), levels=(*levels, rows[-1].to), prediction=resolve(prediction), name=name)


def clean_of(levels: Sequence[Level]) -> Level:
    """The clean level of these levels' process."""
    process = levels[-1].process
    if process is None:
        raise ValueError("these levels know no process: make them with ladder(schedule, steps)")
    return clean(process)


def _taken_as(a: Level, b: Level) -> Row:
    """A picture at level a taken as one at b, where the noise of neither shows."""
    return Row(a, b, x=b.alpha / a.alpha, call=False)


def _step(b: Level, a: Level, turns: int) -> Iterator[Row]:
    """From b up to the noisier a: DDIM's row, then its corrections, in which r is that of the coordinates x / alpha."""
    (first,) = ddim((b, a))
    yield Row(b, a, x=first.x, history=first.history, accept=not turns)
    r = b.ratio / a.ratio
    for turn, m in enumerate(_divisors(r, turns), start=1):
        yield Row(
            a,
            a,
            x=1.0 - r / m,
            history=(-(1.0 - r) / m * a.alpha,),
            anchor=a.alpha / b.alpha / m,
            accept=turn == turns,
        )


def _divisors(r: float, turns: int) -> list[float]:
    """The Chebyshev nodes on [r, STEEPEST], largest first: careful turns before bold ones."""
    centre, half = (r + STEEPEST) / 2, (STEEPEST - r) / 2
    return [centre + half * math.cos(math.pi * (2 * i + 1) / (2 * turns)) for i in range(turns)]
