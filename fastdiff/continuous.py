"""Variance-preserving processes in continuous time: the cosine path, and the SDE of linear betas.

Unlike the tables of fastdiff.schedules they know every time from 0 to T, so that a network can be trained at any.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from fastdiff import spacings
from fastdiff.choices import unknown
from fastdiff.levels import Level, Process
from fastdiff.schedules import Schedule

START = 1e-3
"""Share of the time at which the grids of sigma / alpha (karras and the like) end."""
MOST = 1400.0
"""Of beta_min + beta_max: at the last time (sigma / alpha)^2 is exp of half of it, less 1, which must be a float."""


def _preserving(process: Process, t: float, ratio: float) -> Level:
    """The level with alpha^2 + sigma^2 = 1 and sigma / alpha = ratio."""
    if math.isinf(ratio):
        return Level(t=t, alpha=0.0, sigma=1.0, scale=0.0, process=process)
    alpha = 1.0 / math.hypot(1.0, ratio)
    return Level(t=t, alpha=alpha, sigma=ratio * alpha, scale=alpha, process=process)


def _check_time(t: float, T: float) -> float:
    if not 0 <= t <= T:
        raise ValueError(f"time {t} lies outside 0 .. {T:g}")
    return t / T


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if isinstance(value, bool) or not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be a positive finite number, got {value}")


@dataclass(frozen=True)
class CosinePath:
    """sigma / alpha = shift * tan(pi t / 2T): the cosine path (Salimans and Ho 2022, arXiv:2202.00512).

    shift: above 1 for large pictures, as side / 64 (Hoogeboom et al. 2023, arXiv:2301.11093). T: time at pure noise.
    """

    T: float = 1000.0
    shift: float = 1.0

    def __post_init__(self) -> None:
        _check_positive(T=self.T, shift=self.shift)

    def level(self, t: float) -> Level:
        """The level of time t, 0 to T."""
        u = _check_time(t, self.T)
        return _preserving(self, t, math.inf if u == 1.0 else self.shift * math.tan(0.5 * math.pi * u))

    def at(self, ratio: float) -> Level:
        """The level with that sigma / alpha."""
        return _preserving(self, self.T * math.atan(ratio / self.shift) * 2.0 / math.pi, ratio)


@dataclass(frozen=True)
class LinearBetas:
    """The variance-preserving SDE with betas linear in time (Song et al. 2021, arXiv:2011.13456, equation 11).

    With u = t / T: -2 log(alpha) = beta_min u + (beta_max - beta_min) u^2 / 2.
    """

    T: float = 1000.0
    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        _check_positive(T=self.T, beta_min=self.beta_min, beta_max=self.beta_max)
        if self.beta_max <= self.beta_min:
            raise ValueError(f"beta_max must be more than beta_min, got {self.beta_max} and {self.beta_min}")
        if self.beta_min + self.beta_max > MOST:
            raise ValueError(
                f"beta_min + beta_max must be at most {MOST:g}, beyond which no signal is left, "
                f"got {self.beta_min} and {self.beta_max}"
            )

    def level(self, t: float) -> Level:
        """The level of time t, 0 to T."""
        u = _check_time(t, self.T)
        power = u * (self.beta_min + 0.5 * (self.beta_max - self.beta_min) * u)
        return _preserving(self, t, math.sqrt(math.expm1(power)))

    def at(self, ratio: float) -> Level:
        """The level with that sigma / alpha; beyond time T the time stays T."""
        if math.isinf(ratio):
            return _preserving(self, self.T, ratio)
        rise, power = self.beta_max - self.beta_min, math.log1p(ratio * ratio)
        # the root of a quadratic, in the form that keeps its digits where power is small
        u = 2.0 * power / (self.beta_min + math.sqrt(self.beta_min**2 + 2.0 * rise * power))
        return _preserving(self, self.T * min(1.0, u), ratio)


def cosine(*, T: float = 1000.0, shift: float = 1.0, spacing: str = "uniform") -> Schedule:
    """The cosine path in continuous time; from pure noise when spacing is "uniform" (in time)."""
    return _schedule(CosinePath(T, shift), T, spacing)


def linear(
    *, T: float = 1000.0, beta_min: float = 0.1, beta_max: float = 20.0, spacing: str = "uniform"
) -> Schedule:
    """The variance-preserving SDE of linear betas in continuous time."""
    return _schedule(LinearBetas(T, beta_min, beta_max), T, spacing)


def _schedule(process: Process, T: float, spacing: str) -> Schedule:
    """spacing: "uniform" in time, or a grid of sigma / alpha between the levels at START and 1 - START of the time."""
    if spacing == "uniform":
        return Schedule(process, partial(_at_times, T))
    if spacing not in spacings.RATIOS:
        raise unknown("spacing", spacing, ["uniform", *spacings.RATIOS])
    low, high = process.level(START * T).ratio, process.level((1 - START) * T).ratio
    return Schedule(process, partial(_at_ratios, spacings.RATIOS[spacing], low, high))


def _at_times(T: float, process: Process, steps: int) -> list[Level]:
    return [process.level(T * (steps - i) / steps) for i in range(steps)]


def _at_ratios(
    grid: spacings.RatioGrid, low: float, high: float, process: Process, steps: int
) -> list[Level]:
    return [process.at(ratio) for ratio in grid(steps, low, high)]


SCHEDULES: dict[str, Callable[..., Schedule]] = {"cosine": cosine, "linear": linear}
