"""Noise levels and the forward processes they lie on.

A level is a pair (alpha, sigma) with x = alpha * x0 + sigma * eps. Every solver in this package is written in these two
numbers, because sigma / alpha is infinite where flow matching and zero-terminal-SNR schedules start (alpha = 0).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

# Where a grid of sigma / alpha needs an end, a process that reaches pure noise stops at this alpha, as in diffusers
# (alphas_cumprod[-1] = 2^-24).
ALPHA_FLOOR = 2.0**-12


class Process(Protocol):
    """A forward process: the (alpha, sigma) of the model's time t, and the level of a given sigma / alpha."""

    def level(self, t: float) -> Level: ...

    def at(self, ratio: float) -> Level: ...


@dataclass(frozen=True, slots=True)
class Level:
    """One noise level: x = alpha * x0 + sigma * eps, called by the model time `t`.

    `scale` leads to the coordinates x = scale * x_hat in which the sampling ODE reads
    dx_hat/ds = (x_hat - denoised) / s with s = sigma / scale: 1 for variance-exploding processes and for the linear
    path, alpha for variance-preserving ones.
    """

    t: float
    alpha: float
    sigma: float
    scale: float = 1.0
    process: Process | None = field(default=None, repr=False, compare=False)

    @property
    def ratio(self) -> float:
        """sigma / alpha; infinite for pure noise."""
        return self.sigma / self.alpha if self.alpha else math.inf

    @property
    def lam(self) -> float:
        """log(alpha / sigma), half the log-SNR; -inf for pure noise, inf for clean data."""
        if not self.alpha:
            return -math.inf
        return math.log(self.alpha / self.sigma) if self.sigma else math.inf

    @property
    def s(self) -> float:
        """The noise level in the coordinates x / scale."""
        return self.sigma / self.scale if self.scale else math.inf

    def at(self, ratio: float) -> Level:
        """The level of the same process with sigma / alpha = ratio."""
        if self.process is None:
            raise ValueError(
                "this level knows no process to interpolate on: make levels with a fastdiff.schedules schedule"
            )
        return self.process.at(ratio)

    def at_s(self, s: float) -> Level:
        """The level of the same process with sigma / scale = s."""
        # alpha / scale is 1 on variance-exploding and -preserving processes and 1 - s on the linear path: 1 - c s.
        c = (1.0 - self.alpha / self.scale) / self.s
        return self.at(s / (1.0 - c * s))


@dataclass(frozen=True)
class VarianceExploding:
    """x = x0 + sigma * eps, called by sigma (Karras et al. 2022, arXiv:2206.00364)."""

    def level(self, t: float) -> Level:
        return Level(t=t, alpha=1.0, sigma=t, process=self)

    def at(self, ratio: float) -> Level:
        return self.level(ratio)


@dataclass(frozen=True)
class LinearPath:
    """x_t = (1 - t/T) x0 + (t/T) eps: the linear interpolation path, also rectified flow (arXiv:2209.03003).

    T: the model's time at pure noise, 1 for most flow models, 1000 for those trained with diffusers' timesteps.
    """

    T: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.T) and self.T > 0):
            raise ValueError(f"T must be a positive finite number, got {self.T}")

    def level(self, t: float) -> Level:
        u = t / self.T
        return Level(t=t, alpha=1.0 - u, sigma=u, process=self)

    def at(self, ratio: float) -> Level:
        u = 1.0 if math.isinf(ratio) else ratio / (1.0 + ratio)
        # alpha from the ratio, not 1 - u: near u = 1 the difference would lose half of its digits.
        return Level(t=self.T * u, alpha=1.0 / (1.0 + ratio), sigma=u, process=self)


@dataclass(frozen=True, eq=False)
class DiscreteTime:
    """A variance-preserving process given at training indices 0 .. T-1 (DDPM, arXiv:2006.11239).

    alphas_cumprod: float64 [T], strictly decreasing in (0, 1], the last one may be 0. Between indices,
    log(sigma / alpha) is interpolated linearly, as k-diffusion and diffusers do.
    """

    alphas_cumprod: NDArray[np.float64]
    alphas: NDArray[np.float64] = field(init=False, repr=False)
    sigmas: NDArray[np.float64] = field(init=False, repr=False)
    _log_ratios: NDArray[np.float64] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        table = np.array(self.alphas_cumprod, dtype=np.float64)
        if table.ndim != 1 or len(table) < 2:
            raise ValueError(
                f"alphas_cumprod must be one-dimensional with at least 2 values, got shape {table.shape}"
            )
        if not (
            np.isfinite(table).all() and (np.diff(table) < 0).all() and 0 < table[0] <= 1 and table[-1] >= 0
        ):
            raise ValueError("alphas_cumprod must be finite and fall strictly from at most 1 to at least 0")
        floored = np.where(table > 0, table, ALPHA_FLOOR**2)
        arrays = {
            "alphas_cumprod": table,
            "alphas": np.sqrt(table),
            "sigmas": np.sqrt(1.0 - table),
            "_log_ratios": 0.5 * np.log(np.maximum(1.0 - floored, 1e-300) / floored),
        }
        self.__setstate__(arrays)

    def __setstate__(self, state: dict[str, NDArray[np.float64]]) -> None:
        for name, value in state.items():
            value.flags.writeable = False  # which pickle forgets
            object.__setattr__(self, name, value)

    def __deepcopy__(self, memo: object) -> DiscreteTime:
        return self  # nothing of it can change

    def __len__(self) -> int:
        return len(self.alphas_cumprod)

    def level(self, t: float) -> Level:
        if not 0 <= t <= len(self) - 1:
            raise ValueError(f"time {t} lies outside the training indices 0 .. {len(self) - 1}")
        if t == int(t):
            alpha, sigma = float(self.alphas[int(t)]), float(self.sigmas[int(t)])
            return Level(t=t, alpha=alpha, sigma=sigma, scale=alpha, process=self)
        ratio = math.exp(np.interp(t, np.arange(len(self)), self._log_ratios))
        return self._preserving(t, ratio)

    def at(self, ratio: float) -> Level:
        if ratio <= 0:
            return self._preserving(0.0, 0.0)
        if math.isinf(ratio):
            return Level(t=len(self) - 1.0, alpha=0.0, sigma=1.0, scale=0.0, process=self)
        t = float(np.interp(math.log(ratio), self._log_ratios, np.arange(len(self))))
        return self._preserving(t, ratio)

    def _preserving(self, t: float, ratio: float) -> Level:
        alpha = 1.0 / math.hypot(1.0, ratio)
        return Level(t=t, alpha=alpha, sigma=ratio * alpha, scale=alpha, process=self)


def check_falling(levels: Sequence[Level]) -> None:
    """ValueError unless there is a level and each is less noisy than the one before."""
    if not levels:
        raise ValueError("a plan needs at least one level: use Schedule.levels(steps)")
    ratios = [level.ratio for level in levels]
    if not all(a > b for a, b in pairwise(ratios)):
        raise ValueError(
            "the noise must fall at every step: these levels repeat or rise; use fewer steps or another spacing"
        )


def clean(process: Process) -> Level:
    """The level every schedule ends at: no noise left."""
    return replace(process.at(0.0), alpha=1.0, sigma=0.0, scale=1.0)
