"""Runge-Kutta methods on dx/ds = (x - denoised) / s: euler, heun, dpm_2 and its ancestral form, edm, restart."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

from fastdiff.levels import Level
from fastdiff.plan import Row
from fastdiff.samplers._moves import Levels, ancestral_split, check_amount, in_linear_coordinates
from fastdiff.spacings import karras

Move = Callable[[Level, Level], Iterator[Row]]


def euler_move(a: Level, b: Level) -> Iterator[Row]:
    yield Row(a, b, x=b.s / a.s, history=(1 - b.s / a.s,))


def two_stage(a: Level, m: Level, b: Level, w: float) -> Iterator[Row]:
    """A stage to m, then a -> b along the slope (1 - w) d(a) + w d(m), d(x) = (x - denoised) / s."""
    stage = next(euler_move(a, m))
    yield replace(stage, accept=False)
    h = b.s - a.s
    yield Row(
        m,
        b,
        x=w * h / m.s,
        history=(-w * h / m.s, -(1 - w) * h / a.s),
        anchor=1 + (1 - w) * h / a.s,
        span=(a, b),
    )


def heun_move(a: Level, b: Level) -> Iterator[Row]:
    return two_stage(a, b, b, 0.5) if b.s else euler_move(a, b)


def midpoint_move(a: Level, b: Level) -> Iterator[Row]:
    return two_stage(a, a.at_s(math.sqrt(a.s * b.s)), b, 1.0) if b.s else euler_move(a, b)


@dataclass(frozen=True)
class Churn:
    """Noise put back before a step (arXiv:2206.00364, algorithm 2).

    amount: S_churn; low, high: the levels sigma / alpha between which it acts; s_noise: its factor on the noise.
    """

    amount: float = 0.0
    low: float = 0.0
    high: float = math.inf
    s_noise: float = 1.0

    def walk(self, levels: Levels, move: Move) -> Iterator[Row]:
        check_amount("churn", self.amount)
        gamma = min(self.amount / (len(levels) - 1), math.sqrt(2.0) - 1.0)
        for a, b in pairwise(levels):
            if gamma > 0 and self.low <= a.ratio <= self.high and a.alpha:
                raised = a.at(a.ratio * (1.0 + gamma))
                yield raise_noise(a, raised, self.s_noise)
                a = raised
            yield from move(a, b)


def raise_noise(a: Level, b: Level, s_noise: float = 1.0) -> Row:
    """From a up to the noisier b, without a model call."""
    keep = (b.alpha / b.scale) / (a.alpha / a.scale)
    return Row(a, b, x=keep, noise=s_noise * math.sqrt(max(0.0, b.s**2 - (keep * a.s) ** 2)), call=False)


@in_linear_coordinates
def euler(
    levels: Levels, *, churn: float = 0.0, s_min: float = 0.0, s_max: float = math.inf, s_noise: float = 1.0
) -> Iterator[Row]:
    """Euler's method (arXiv:2206.00364), the same steps as DDIM; churn as in `edm`."""
    return Churn(churn, s_min, s_max, s_noise).walk(levels, euler_move)


@in_linear_coordinates
def heun(
    levels: Levels, *, churn: float = 0.0, s_min: float = 0.0, s_max: float = math.inf, s_noise: float = 1.0
) -> Iterator[Row]:
    """Heun's method, two calls a step (arXiv:2206.00364, algorithm 1)."""
    return Churn(churn, s_min, s_max, s_noise).walk(levels, heun_move)


def edm(
    levels: Levels, *, churn: float = 40.0, s_min: float = 0.05, s_max: float = 50.0, s_noise: float = 1.003
) -> Iterator[Row]:
    """EDM's stochastic sampler: Heun with noise put back at each step (arXiv:2206.00364, algorithm 2 and table 5)."""
    return heun(levels, churn=churn, s_min=s_min, s_max=s_max, s_noise=s_noise)


@in_linear_coordinates
def dpm_2(
    levels: Levels, *, churn: float = 0.0, s_min: float = 0.0, s_max: float = math.inf, s_noise: float = 1.0
) -> Iterator[Row]:
    """The midpoint method with the midpoint in log sigma (k-diffusion, after arXiv:2206.00927)."""
    return Churn(churn, s_min, s_max, s_noise).walk(levels, midpoint_move)


@in_linear_coordinates
def dpm_2_ancestral(levels: Levels, *, eta: float = 1.0, s_noise: float = 1.0) -> Iterator[Row]:
    """`dpm_2` to a lower level, then fresh noise (k-diffusion)."""
    for a, b in pairwise(levels):
        carried, fresh = ancestral_split(a, b, eta)
        down = b.at(carried / b.alpha)
        *stages, last = midpoint_move(a, down)
        yield from stages
        keep = (b.alpha / b.scale) / (down.alpha / down.scale)
        yield replace(
            last,
            to=b,
            x=keep * last.x,
            anchor=keep * last.anchor,
            history=tuple(keep * c for c in last.history),
            noise=s_noise * fresh / b.scale,
            span=(a, b),
        )


@in_linear_coordinates
def restart(
    levels: Levels, *, low: float = 0.1, high: float = 2.0, repeats: int = 1, steps: int | None = None
) -> Iterator[Row]:
    """Heun, with the stretch from `high` down to `low` walked again after noise is put back (arXiv:2306.14878).

    low, high: sigma / alpha at the ends of the stretch; low is taken to the nearest level. repeats: K of the paper.
    steps: Heun steps of each repetition, on a Karras grid; as many as the levels have in the stretch if None.
    """
    if not 0 < low < high:
        raise ValueError(f"restart needs 0 < low < high, got {low} and {high}")
    for name, count in (("repeats", repeats), ("steps", 1 if steps is None else steps)):
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"restart's {name} must be an integer of at least 1, got {count!r}")
    inner = [level for level in levels[1:-1] if level.ratio < high]
    back = min(inner, key=lambda level: abs(level.ratio - low), default=None)
    for a, b in pairwise(levels):
        yield from heun_move(a, b)
        if b is back:
            count = steps or max(2, sum(back.ratio < level.ratio <= high for level in levels))
            top = [b.at(ratio) for ratio in karras(count + 1, back.ratio, high)[:-1]]
            for _ in range(repeats):
                yield raise_noise(b, top[0])
                for c, d in pairwise([*top, b]):
                    yield from heun_move(c, d)
