"""DPM-Solver++ (arXiv:2211.01095) and its stochastic forms: exponential integrators in lam = log(alpha / sigma)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

from fastdiff.levels import Level
from fastdiff.plan import Row
from fastdiff.samplers._moves import Levels, ancestral_split, check_amount, first_order, gains
from fastdiff.samplers.linear_multistep import check_order


def _noisy_gains(a: Level, b: Level, h: float, eta: float) -> tuple[float, float, float]:
    """Weights of x, denoised and noise of the first-order step of the SDE with noise eta (arXiv:2211.01095)."""
    check_amount("eta", eta)
    spent = eta * h if eta else 0.0  # h is infinite from pure noise
    r = b.sigma / a.sigma * math.exp(-spent)
    return r, b.alpha - r * a.alpha, b.sigma * math.sqrt(-math.expm1(-2.0 * spent))


def dpmpp_2m(levels: Levels) -> Iterator[Row]:
    """Second order with one call a step: extrapolates the denoised image (arXiv:2211.01095, algorithm 2)."""
    return dpmpp_2m_sde(levels, eta=0.0)


def dpmpp_2m_sde(
    levels: Levels, *, eta: float = 1.0, s_noise: float = 1.0, solver_type: str = "midpoint"
) -> Iterator[Row]:
    """The stochastic form of `dpmpp_2m`; solver_type "midpoint" or "heun" (k-diffusion)."""
    if solver_type not in ("midpoint", "heun"):
        raise ValueError(f"solver_type must be 'midpoint' or 'heun', got {solver_type!r}")
    for i, (a, b) in enumerate(pairwise(levels)):
        if not b.sigma:
            yield first_order(a, b)
            continue
        h = b.lam - a.lam
        r, gain, noise = _noisy_gains(a, b, h, eta)
        slope = h / (a.lam - levels[i - 1].lam) if i else 0.0
        if solver_type == "heun" and slope:
            tilt = b.alpha * slope * (1.0 + math.expm1(-h * (1.0 + eta)) / (h * (1.0 + eta)))
        else:
            tilt = 0.5 * gain * slope
        yield Row(a, b, x=r, history=(gain + tilt, -tilt) if i else (gain,), noise=s_noise * noise)


def dpmpp_3m_sde(levels: Levels, *, eta: float = 1.0, s_noise: float = 1.0) -> Iterator[Row]:
    """Third order with one call a step (k-diffusion); eta = 0 is deterministic."""
    for i, (a, b) in enumerate(pairwise(levels)):
        if not b.sigma:
            yield first_order(a, b)
            continue
        h = b.lam - a.lam
        r, gain, noise = _noisy_gains(a, b, h, eta)
        steps = [h / (c.lam - p.lam) for p, c in pairwise(levels[max(0, i - 2) : i + 1])][::-1]
        history = _third_order(gain, b.alpha, h * (1.0 + eta), steps)
        yield Row(a, b, x=r, history=history, noise=s_noise * noise)


def _third_order(gain: float, alpha: float, h: float, steps: list[float]) -> tuple[float, ...]:
    """Weights of the newest denoised images; steps: this step over each earlier one, newest first."""
    if not steps or not math.isfinite(h):
        return (gain,)
    phi_2 = math.expm1(-h) / h + 1.0
    if len(steps) == 1:
        return gain + alpha * phi_2 * steps[0], -alpha * phi_2 * steps[0]
    phi_3 = phi_2 / h - 0.5
    i0, i1 = steps
    # Newton's divided differences d1_0 = (D - D1) i0 and d1_1 = (D1 - D2) i1; 1 / (r0 + r1) with r = 1 / i.
    across = i0 * i1 / (i0 + i1)
    part = i1 / (i0 + i1)
    first = phi_2 * (1.0 + part) - phi_3 * across  # weight of d1_0
    second = -phi_2 * part + phi_3 * across  # weight of d1_1
    return gain + alpha * first * i0, alpha * (second * i1 - first * i0), -alpha * second * i1


def dpmpp_2s_ancestral(levels: Levels, *, eta: float = 1.0, s_noise: float = 1.0) -> Iterator[Row]:
    """Second-order single steps to a lower level, then fresh noise; two calls a step (k-diffusion)."""
    for a, b in pairwise(levels):
        carried, fresh = ancestral_split(a, b, eta)
        if not carried or not a.alpha:
            yield first_order(a, b, eta, s_noise)
            continue
        m = a.at(math.sqrt(a.ratio * carried / b.alpha))
        r, gain = gains(a, m)
        yield Row(a, m, x=r, history=(gain,), accept=False)
        r, gain = gains(a, b, carried)
        yield Row(m, b, anchor=r, history=(gain,), noise=s_noise * fresh, span=(a, b))


def dpmpp_sde(levels: Levels, *, eta: float = 1.0, s_noise: float = 1.0, r: float = 0.5) -> Iterator[Row]:
    """Second-order stochastic single steps, noise in both stages; two calls a step (k-diffusion)."""
    if not 0 < r < 1:
        raise ValueError(f"r, where the first stage ends, must lie between 0 and 1, got {r}")
    for a, b in pairwise(levels):
        if not b.sigma or not a.alpha:
            yield first_order(a, b, eta, s_noise)
            continue
        m = a.at(a.ratio ** (1 - r) * b.ratio**r)
        stage, whole = first_order(a, m, eta, s_noise), first_order(a, b, eta, s_noise)
        yield Row(a, m, x=stage.x, history=stage.history, noise=stage.noise, accept=False)
        gain, w = whole.history[0], 1.0 / (2.0 * r)
        yield Row(m, b, anchor=whole.x, history=(w * gain, (1 - w) * gain), noise=whole.noise, span=(a, b))


def dpmpp_singlestep(levels: Levels, *, order: int = 3) -> Iterator[Row]:
    """Groups of up to `order` steps share a starting point, so that one call a step suffices (arXiv:2211.01095)."""
    check_order(order, 3)
    start = 0
    for size in _groups(len(levels) - 1, order, first_alone=not levels[0].alpha):
        group = levels[start : start + size + 1]
        for j in range(size):
            yield _single(group, j)
        start += size


def _groups(steps: int, order: int, *, first_alone: bool) -> list[int]:
    """Sizes of the groups: full ones, the rest in one, and the last step, which may reach clean data, alone."""
    head = [1] if first_alone and steps > 1 else []
    full, rest = divmod(steps - len(head) - 1, order)
    return [*head, *[order] * full, *([rest] if rest else []), 1]


def _single(group: Levels, j: int) -> Row:
    """From the start of the group to its level j + 1, with the j + 1 denoised images since then."""
    start, here, to = group[0], group[j], group[j + 1]
    r, gain = gains(start, to)
    accept = j == len(group) - 2
    if j == 0:
        return Row(here, to, x=r, history=(gain,), accept=accept)
    h = to.lam - start.lam
    part = (here.lam - start.lam) / h
    tilt = 0.5 * gain / part if j == 1 else to.alpha * (math.expm1(-h) / h + 1.0) / part
    history = (tilt, gain - tilt) if j == 1 else (tilt, 0.0, gain - tilt)
    return Row(here, to, anchor=r, history=history, accept=accept)
