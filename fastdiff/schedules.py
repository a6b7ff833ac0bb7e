"""Schedules: a forward process and the levels a sampler visits on it. Plain float64 arithmetic on the host.

schedules.scaled_linear_betas().levels(20)                    # Stable Diffusion, trailing timesteps
schedules.scaled_linear_betas(spacing="karras").levels(20)    # the same model on Karras sigmas
schedules.karras(0.03, 14.6).levels(20)                       # a denoiser called by sigma
schedules.flow(shift=3.0).levels(20)                          # rectified flow
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from fastdiff import spacings
from fastdiff.choices import unknown
from fastdiff.levels import (
    ALPHA_FLOOR,
    DiscreteTime,
    Level,
    LinearPath,
    Process,
    VarianceExploding,
    check_falling,
    clean,
)

__all__ = [
    "SCHEDULES",
    "Level",
    "Schedule",
    "beta",
    "cosine_betas",
    "edm",
    "exponential",
    "flow",
    "from_alphas_cumprod",
    "from_levels",
    "from_sigmas",
    "karras",
    "linear_betas",
    "polyexponential",
    "resolution_shift",
    "scaled_linear_betas",
    "sigmoid_betas",
    "vp",
    "zero_terminal_snr",
]

MAX_STEPS = 100_000


@dataclass(frozen=True, eq=False)
class Schedule:
    """A forward process and a rule that picks the levels of n steps on it.

    process: (alpha, sigma) for each model time, see fastdiff.levels.
    spacing: (process, steps) -> `steps` levels, noisiest first.
    final: the level after the last step; clean data if None.
    """

    process: Process
    spacing: Callable[[Process, int], Iterable[Level]]
    final: Level | None = None

    def levels(self, steps: int) -> tuple[Level, ...]:
        """The steps + 1 levels from the noisiest to the final one.

        Raises ValueError if steps is not a positive integer, or more than the process has training steps.
        """
        if isinstance(steps, bool) or not isinstance(steps, (int, np.integer)) or not 1 <= steps <= MAX_STEPS:
            raise ValueError(f"steps must be an integer from 1 to {MAX_STEPS}, got {steps!r}")
        levels = (*self.spacing(self.process, int(steps)), self.final or clean(self.process))
        check_falling(levels)
        return levels


def from_levels(levels: Iterable[Level]) -> Schedule:
    """A schedule of given levels (noisiest first, the final one included), whatever the number of steps asked."""
    given = tuple(levels)
    if len(given) < 2 or given[0].process is None:
        raise ValueError("from_levels needs at least two levels made by a process")
    return Schedule(given[0].process, partial(_given, given[:-1]), final=given[-1])


def from_sigmas(sigmas: Iterable[float]) -> Schedule:
    """A schedule of given sigmas [steps + 1], falling, usually to 0, as k-diffusion and ComfyUI pass them."""
    process = VarianceExploding()
    return from_levels(process.level(float(sigma)) for sigma in sigmas)


# Processes given by betas.


def from_alphas_cumprod(
    alphas_cumprod: NDArray[np.float64], *, spacing: str = "trailing", offset: int = 0, zero_snr: bool = False
) -> Schedule:
    """A schedule on a variance-preserving process given at its training indices.

    alphas_cumprod: float [T], the cumulated product of 1 - beta.
    spacing: "leading", "trailing", "linspace" (timesteps, arXiv:2305.08891 table 2), or "karras", "exponential",
        "polyexponential", "beta" (on sigma / alpha, between the process's smallest and largest).
    offset: added to the timesteps of "leading" (Stable Diffusion uses 1).
    zero_snr: rescale so that the last level is pure noise.
    """
    table = np.asarray(alphas_cumprod, dtype=np.float64)
    if (
        isinstance(offset, bool)
        or not isinstance(offset, int)
        or offset < 0
        or (offset and spacing != "leading")
    ):
        raise ValueError(
            f"offset must be an integer of at least 0, and 0 unless spacing is 'leading', got {offset!r}"
        )
    process = DiscreteTime(zero_terminal_snr(table) if zero_snr else table)
    if spacing in spacings.TIMESTEPS:
        return Schedule(process, partial(_at_timesteps, spacings.TIMESTEPS[spacing], offset))
    if spacing in spacings.RATIOS:
        low, high = process.level(0).ratio, process.level(len(process) - 1).ratio
        high = high if math.isfinite(high) else 1.0 / ALPHA_FLOOR
        return Schedule(process, partial(_at_ratios, spacings.RATIOS[spacing], low, high))
    raise unknown("spacing", spacing, [*spacings.TIMESTEPS, *spacings.RATIOS])


def linear_betas(
    *,
    T: int = 1000,
    start: float = 1e-4,
    end: float = 0.02,
    spacing: str = "trailing",
    offset: int = 0,
    zero_snr: bool = False,
) -> Schedule:
    """Betas linear in the index (DDPM, arXiv:2006.11239)."""
    return _from_betas(np.linspace(start, end, _training_steps(T)), spacing, offset, zero_snr)


def scaled_linear_betas(
    *,
    T: int = 1000,
    start: float = 0.00085,
    end: float = 0.012,
    spacing: str = "trailing",
    offset: int = 0,
    zero_snr: bool = False,
) -> Schedule:
    """Betas linear in their square root (latent diffusion, arXiv:2112.10752)."""
    betas = np.linspace(math.sqrt(start), math.sqrt(end), _training_steps(T)) ** 2
    return _from_betas(betas, spacing, offset, zero_snr)


def cosine_betas(
    *,
    T: int = 1000,
    s: float = 0.008,
    max_beta: float = 0.999,
    spacing: str = "trailing",
    offset: int = 0,
    zero_snr: bool = False,
) -> Schedule:
    """alpha_bar = cos^2 of the index (Nichol and Dhariwal, arXiv:2102.09672, equation 17)."""
    u = np.arange(_training_steps(T) + 1) / T
    bar = np.cos((u + s) / (1 + s) * math.pi / 2) ** 2
    return _from_betas(np.minimum(1 - bar[1:] / bar[:-1], max_beta), spacing, offset, zero_snr)


def sigmoid_betas(
    *,
    T: int = 1000,
    start: float = 1e-4,
    end: float = 0.02,
    spacing: str = "trailing",
    offset: int = 0,
    zero_snr: bool = False,
) -> Schedule:
    """Betas on a sigmoid over [-6, 6] (GeoDiff, arXiv:2203.02923)."""
    betas = (end - start) / (1 + np.exp(-np.linspace(-6, 6, _training_steps(T)))) + start
    return _from_betas(betas, spacing, offset, zero_snr)


def zero_terminal_snr(alphas_cumprod: NDArray[np.float64]) -> NDArray[np.float64]:
    """sqrt(alphas_cumprod) shifted and scaled: the last becomes 0, the first stays (arXiv:2305.08891, algorithm 1)."""
    root = np.sqrt(np.asarray(alphas_cumprod, dtype=np.float64))
    scaled: NDArray[np.float64] = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    return scaled


def _training_steps(T: int) -> int:
    if isinstance(T, bool) or not isinstance(T, (int, np.integer)) or T < 2:
        raise ValueError(f"T, the number of training steps, must be an integer of at least 2, got {T!r}")
    return int(T)


def _from_betas(betas: NDArray[np.float64], spacing: str, offset: int, zero_snr: bool) -> Schedule:
    if not (np.isfinite(betas).all() and (betas > 0).all() and (betas < 1).all()):
        raise ValueError("betas must lie strictly between 0 and 1: check start and end")
    products: NDArray[np.float64] = np.cumprod(1.0 - betas, dtype=np.float64)
    return from_alphas_cumprod(products, spacing=spacing, offset=offset, zero_snr=zero_snr)


# Schedules of sigmas: variance exploding, the model is called by sigma.


def karras(sigma_min: float = 0.02, sigma_max: float = 80.0, *, rho: float = 7.0) -> Schedule:
    """Sigmas linear in sigma^(1/rho) (arXiv:2206.00364, equation 5)."""
    return _sigmas(partial(spacings.karras, rho=rho), sigma_min, sigma_max)


def edm(sigma_min: float = 0.002, sigma_max: float = 80.0, *, rho: float = 7.0) -> Schedule:
    """The sigmas of EDM's own sampler: `karras` with the paper's range."""
    return karras(sigma_min, sigma_max, rho=rho)


def exponential(sigma_min: float = 0.02, sigma_max: float = 80.0) -> Schedule:
    """Sigmas in geometric progression."""
    return _sigmas(spacings.exponential, sigma_min, sigma_max)


def polyexponential(sigma_min: float = 0.02, sigma_max: float = 80.0, *, rho: float = 1.0) -> Schedule:
    """log sigma falling as u^rho (k-diffusion); rho = 1 is `exponential`."""
    return _sigmas(partial(spacings.polyexponential, rho=rho), sigma_min, sigma_max)


def beta(sigma_min: float = 0.02, sigma_max: float = 80.0, *, a: float = 0.6, b: float = 0.6) -> Schedule:
    """Sigmas at quantiles of a beta distribution (arXiv:2407.12173)."""
    return _sigmas(partial(spacings.beta, a=a, b=b), sigma_min, sigma_max)


def vp(*, beta_d: float = 19.9, beta_min: float = 0.1, eps: float = 1e-3) -> Schedule:
    """Sigmas of the continuous variance-preserving SDE (arXiv:2011.13456), t linear from 1 to eps."""
    if not (0 <= beta_d < math.inf and 0 < beta_min < math.inf and 0 < eps < 1):
        raise ValueError(
            f"vp needs beta_d >= 0, beta_min > 0 and 0 < eps < 1, got {beta_d}, {beta_min} and {eps}"
        )
    if not (0 <= beta_d < math.inf and 0 <= beta_min < math.inf and beta_d + beta_min > 0 and 0 < eps < 1):
        raise ValueError(
            f"vp needs beta_d, beta_min >= 0 and 0 < eps < 1, got {beta_d}, {beta_min} and {eps}"
        )
    return Schedule(VarianceExploding(), partial(_vp_levels, beta_d, beta_min, eps))


def _sigmas(grid: spacings.RatioGrid, sigma_min: float, sigma_max: float) -> Schedule:
    if not (0 < sigma_min < sigma_max < math.inf):
        raise ValueError(f"sigmas must satisfy 0 < sigma_min < sigma_max, got {sigma_min} and {sigma_max}")
    return Schedule(VarianceExploding(), partial(_at_ratios, grid, sigma_min, sigma_max))


# The linear path, which is also rectified flow.


def flow(*, shift: float = 1.0, T: float = 1.0) -> Schedule:
    """Uniform steps on x_t = (1 - t/T) x0 + (t/T) eps, from pure noise, shifted towards the noise by `shift`.

    With u = t/T, u -> shift * u / (1 + (shift - 1) u), which multiplies sigma / alpha by shift (SD3, arXiv:2403.03206,
    equation 23).
    See `resolution_shift` for a shift that depends on the image size.
    """
    if not (math.isfinite(shift) and shift > 0):
        raise ValueError(f"shift must be a positive finite number, got {shift}")
    return Schedule(LinearPath(T), partial(_uniform_flow, shift))


def resolution_shift(
    tokens: int, *, base: float = 0.5, top: float = 1.15, base_tokens: int = 256, top_tokens: int = 4096
) -> float:
    """The shift for an image of `tokens` latent patches (FLUX).

    exp of the line through (base_tokens, base) and (top_tokens, top).
    """
    if tokens < 1:
        raise ValueError(f"tokens must be positive, got {tokens}")
    return math.exp(base + (top - base) * (tokens - base_tokens) / (top_tokens - base_tokens))


def _uniform_flow(shift: float, process: Process, steps: int) -> list[Level]:
    times = [1.0 - i / steps for i in range(steps)]
    return [process.at(shift * u / (1.0 - u) if u < 1.0 else math.inf) for u in times]


def _given(levels: tuple[Level, ...], process: Process, steps: int) -> tuple[Level, ...]:
    return levels


def _vp_levels(beta_d: float, beta_min: float, eps: float, process: Process, steps: int) -> list[Level]:
    return [process.level(sigma) for sigma in spacings.vp(steps, beta_d, beta_min, eps)]


def _at_timesteps(grid: spacings.TimeGrid, offset: int, process: Process, steps: int) -> list[Level]:
    assert isinstance(process, DiscreteTime)
    if steps > len(process):
        raise ValueError(
            f"steps must be at most {len(process)}, the training steps of this schedule, got {steps}"
        )
    return [process.level(min(t + offset, len(process) - 1)) for t in grid(len(process), steps)]


def _at_ratios(
    grid: spacings.RatioGrid, low: float, high: float, process: Process, steps: int
) -> list[Level]:
    return [process.at(ratio) for ratio in grid(steps, low, high)]


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "linear_betas": linear_betas,
    "scaled_linear_betas": scaled_linear_betas,
    "cosine_betas": cosine_betas,
    "sigmoid_betas": sigmoid_betas,
    "karras": karras,
    "edm": edm,
    "exponential": exponential,
    "polyexponential": polyexponential,
    "beta": beta,
    "vp": vp,
    "flow": flow,
}
