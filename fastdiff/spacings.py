"""Where on a process a sampler stops. Timestep grids give training indices, ratio grids values of sigma / alpha."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

TimeGrid = Callable[[int, int], list[float]]
RatioGrid = Callable[[int, float, float], list[float]]


def leading(T: int, steps: int) -> list[float]:
    """Every (T // steps)-th index from 0, noisiest first."""
    return [float(i * (T // steps)) for i in range(steps)][::-1]


def trailing(T: int, steps: int) -> list[float]:
    """Equal parts of T counted from its end, so that the last index is always used."""
    return [float(t) for t in np.round(np.arange(T, 0, -T / steps))[:steps] - 1]


def linspace(T: int, steps: int) -> list[float]:
    """Equally spaced from 0 to T - 1, rounded; both ends are used (the noisier one where there is a single step)."""
    if steps == 1:
        return [T - 1.0]
    upwards = np.round(np.linspace(0, T - 1, steps))  # in this direction ties round as in diffusers
    return [float(t) for t in upwards[::-1]]


def karras(steps: int, low: float, high: float, rho: float = 7.0) -> list[float]:
    """Linear in ratio^(1/rho), from high to low (arXiv:2206.00364, equation 5)."""
    if not (math.isfinite(rho) and rho > 0):
        raise ValueError(f"rho must be a positive finite number, got {rho}")
    root: NDArray[np.float64] = np.linspace(high ** (1 / rho), low ** (1 / rho), steps)
    return (root**rho).tolist()


def exponential(steps: int, low: float, high: float) -> list[float]:
    """Geometric, from high to low."""
    return polyexponential(steps, low, high, rho=1.0)


def polyexponential(steps: int, low: float, high: float, rho: float = 1.0) -> list[float]:
    """log ratio = log low + (log high - log low) u^rho, u from 1 to 0."""
    if not (math.isfinite(rho) and rho > 0):
        raise ValueError(f"rho must be a positive finite number, got {rho}")
    u = np.linspace(1.0, 0.0, steps) ** rho
    return np.exp(math.log(low) + u * (math.log(high) - math.log(low))).tolist()


def beta(steps: int, low: float, high: float, a: float = 0.6, b: float = 0.6) -> list[float]:
    """Quantiles of a beta(a, b) distribution mapped to [low, high] (arXiv:2407.12173)."""
    if not (0 < a < math.inf and 0 < b < math.inf):
        raise ValueError(f"a and b must be positive finite numbers, got {a} and {b}")
    quantiles = beta_quantiles(1.0 - np.linspace(0.0, 1.0, steps), a, b)
    return (low + (high - low) * quantiles).tolist()


def vp(steps: int, beta_d: float, beta_min: float, eps: float) -> list[float]:
    """sigma / alpha of the variance-preserving SDE at t linear from 1 to eps (arXiv:2011.13456)."""
    t: NDArray[np.float64] = np.linspace(1.0, eps, steps)
    return np.sqrt(np.expm1(beta_d * t**2 / 2 + beta_min * t)).tolist()


def beta_quantiles(p: NDArray[np.float64], a: float, b: float) -> NDArray[np.float64]:
    """The x with I_x(a, b) = p, by bisection (60 halvings: float64 precision). p: any shape, in [0, 1]."""
    low, high = np.zeros_like(p), np.ones_like(p)
    for _ in range(60):
        mid = (low + high) / 2
        below = _beta_cdf(mid, a, b) < p
        low, high = np.where(below, mid, low), np.where(below, high, mid)
    return np.where(p <= 0, 0.0, np.where(p >= 1, 1.0, (low + high) / 2))


def _beta_cdf(x: NDArray[np.float64], a: float, b: float) -> NDArray[np.float64]:
    """The regularised incomplete beta function I_x(a, b), by its continued fraction (DLMF 8.17.22). x: in (0, 1)."""
    far = x > (a + 1) / (a + b + 2)  # there by I_x(a, b) = 1 - I_{1-x}(b, a)
    y, p, q = np.where(far, 1 - x, x), np.where(far, b, a), np.where(far, a, b)
    fraction = np.ones_like(y)
    for m in range(60, 0, -1):  # evaluated from the tail inwards
        even = m * (q - m) * y / ((p + 2 * m - 1) * (p + 2 * m))
        odd = -(p + m - 1) * (p + q + m - 1) * y / ((p + 2 * m - 2) * (p + 2 * m - 1))
        fraction = 1.0 + odd / (1.0 + even / fraction)
    log_beta = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    with np.errstate(divide="ignore"):  # log(0) is right: the part is 0 there
        part = np.exp(p * np.log(y) + q * np.log1p(-y) - log_beta) / (p * fraction)
    return np.where(far, 1.0 - part, part)


TIMESTEPS: dict[str, TimeGrid] = {"leading": leading, "trailing": trailing, "linspace": linspace}
RATIOS: dict[str, RatioGrid] = {
    "karras": karras,
    "exponential": exponential,
    "polyexponential": polyexponential,
    "beta": beta,
}
