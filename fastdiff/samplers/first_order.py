"""One model call a step and no memory: ddim, ddpm, euler_ancestral, lcm, tcd.

DDIM, DDPM and Euler-ancestral are one method: carry over part of the noise, draw the rest afresh.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

from fastdiff.levels import DiscreteTime, Level
from fastdiff.plan import Row
from fastdiff.samplers._moves import Levels, first_order, gains


def ddim(levels: Levels, *, eta: float = 0.0, s_noise: float = 1.0) -> Iterator[Row]:
    """DDIM (arXiv:2010.02502, equation 12); eta from 0, deterministic, to 1, ancestral."""
    return (first_order(a, b, eta, s_noise) for a, b in pairwise(levels))


def euler_ancestral(levels: Levels, *, eta: float = 1.0, s_noise: float = 1.0) -> Iterator[Row]:
    """Euler steps to a lower level, then fresh noise (k-diffusion)."""
    return ddim(levels, eta=eta, s_noise=s_noise)


def ddpm(levels: Levels, *, variance: str = "small") -> Iterator[Row]:
    """The reverse process of DDPM (arXiv:2006.11239, equation 7).

    variance: "small", the posterior's, or "large", the forward step's (section 3.2).
    """
    if variance not in ("small", "large"):
        raise ValueError(f"variance must be 'small' or 'large', got {variance!r}")
    for a, b in pairwise(levels):
        row = first_order(a, b, eta=1.0)
        if variance == "large" and row.noise:
            forward = math.sqrt(a.sigma**2 - (a.alpha / b.alpha * b.sigma) ** 2)
            row = Row(a, b, x=row.x, history=row.history, noise=forward)
        yield row


def lcm(levels: Levels, *, timestep_scaling: float | None = None, sigma_data: float = 0.5) -> Iterator[Row]:
    """Denoise, put fresh noise back, repeat (latent consistency models, arXiv:2310.04378).

    timestep_scaling: use the boundary scaling c_skip, c_out of the paper's appendix at t * timestep_scaling (10 in
        diffusers); None takes the denoised image as it is.
    """
    for a, b in pairwise(levels):
        c_skip, c_out = 0.0, 1.0
        if timestep_scaling is not None:
            time = a.t * timestep_scaling
            c_skip, c_out = sigma_data**2 / (time**2 + sigma_data**2), time / math.hypot(time, sigma_data)
        exact = timestep_scaling is None
        yield Row(a, b, x=b.alpha * c_skip, history=(b.alpha * c_out,), noise=b.sigma, exact=exact)


def tcd(levels: Levels, *, eta: float = 0.3) -> Iterator[Row]:
    """Trajectory consistency: a deterministic step past the next level, then noise back up to it (arXiv:2402.19159).

    eta: the paper's gamma, from 0 (deterministic) to 1 (like lcm).
    """
    if not 0.0 <= eta <= 1.0:
        raise ValueError(f"eta must lie between 0 and 1, got {eta}")
    for a, b in pairwise(levels):
        past = _earlier(b, 1.0 - eta) if b.sigma else b
        keep = b.alpha / past.alpha
        r, gain = gains(a, past)
        fresh = math.sqrt(max(0.0, b.sigma**2 - (keep * past.sigma) ** 2))
        yield Row(a, b, x=keep * r, history=(keep * gain,), noise=fresh)


def _earlier(level: Level, part: float) -> Level:
    """The level at `part` of this one's model time; a training index is rounded down."""
    if level.process is None:
        raise ValueError("tcd needs levels made by a fastdiff.schedules schedule")
    time = level.t * part
    return level.process.level(math.floor(time + 1e-9) if isinstance(level.process, DiscreteTime) else time)
