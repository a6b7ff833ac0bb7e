"""Adams-Bashforth methods, which remember earlier slopes: lms, plms, pndm, ipndm, deis."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from fastdiff.levels import Level
from fastdiff.plan import Row
from fastdiff.samplers._moves import NO_SIGNAL, Levels, first_order, in_linear_coordinates, lagrange_integrals

# Weights of the newest slopes for one step on an even grid, by order.
ADAMS_BASHFORTH = {
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


def check_order(order: int, most: int) -> None:
    if isinstance(order, bool) or not isinstance(order, int) or not 1 <= order <= most:
        raise ValueError(f"order must be an integer from 1 to {most}, got {order!r}")


def slope(level: Level) -> tuple[float, float]:
    """The stored value is d = (x - denoised) / s."""
    return 1.0 / level.s, -1.0 / level.s


def adams(a: Level, b: Level, order: int, *, forget: int = 0) -> Row:
    h = b.s - a.s
    return Row(
        a, b, x=1.0, history=tuple(h * c for c in ADAMS_BASHFORTH[order]), value=slope(a), forget=forget
    )


@in_linear_coordinates
def lms(levels: Levels, *, order: int = 4) -> Iterator[Row]:
    """Adams-Bashforth with the weights of the actual, uneven grid (k-diffusion's LMS)."""
    check_order(order, 4)
    for i, (a, b) in enumerate(pairwise(levels)):
        nodes = [level.s for level in levels[max(0, i + 1 - order) : i + 1]][::-1]
        yield Row(a, b, x=1.0, history=tuple(lagrange_integrals(nodes, a.s, b.s)), value=slope(a))


@in_linear_coordinates
def ipndm(levels: Levels, *, order: int = 4) -> Iterator[Row]:
    """Adams-Bashforth with the weights of an even grid, started by its lower orders (arXiv:2204.13902, section 3.2)."""
    check_order(order, 4)
    return (adams(a, b, min(order, i + 1)) for i, (a, b) in enumerate(pairwise(levels)))


@in_linear_coordinates
def plms(levels: Levels) -> Iterator[Row]:
    """`ipndm` of order 4 after one improved-Euler step (arXiv:2202.09778 in the form of latent diffusion)."""
    for i, (a, b) in enumerate(pairwise(levels)):
        if i == 0 and b.s:
            h = b.s - a.s
            yield Row(a, b, x=1.0, history=(h,), value=slope(a), accept=False)
            yield Row(b, b, anchor=1.0, history=(h / 2, h / 2), value=slope(b))
        else:
            yield adams(a, b, min(4, i + 1), forget=int(i == 1))


@in_linear_coordinates
def pndm(levels: Levels) -> Iterator[Row]:
    """`plms` after three Runge-Kutta steps of four calls each (arXiv:2202.09778, algorithm 2)."""
    for i, (a, b) in enumerate(pairwise(levels)):
        forget = 3 if 0 < i <= 3 else 0
        if i < 3 and b.s:
            yield from _runge_kutta_4(a, b, forget)
        else:
            yield adams(a, b, min(4, i + 1), forget=forget)


def _runge_kutta_4(a: Level, b: Level, forget: int) -> Iterator[Row]:
    h, mid = b.s - a.s, a.at_s((a.s + b.s) / 2)
    yield Row(a, mid, x=1.0, history=(h / 2,), value=slope(a), accept=False, forget=forget)
    yield Row(mid, mid, anchor=1.0, history=(h / 2,), value=slope(mid), accept=False)
    yield Row(mid, b, anchor=1.0, history=(h,), value=slope(mid), accept=False)
    yield Row(b, b, anchor=1.0, history=(h / 6, h / 3, h / 3, h / 6), value=slope(b))


def deis(levels: Levels, *, order: int = 3) -> Iterator[Row]:
    """DEIS: the noise prediction as a polynomial in log(sigma / alpha), integrated (arXiv:2204.13902, log-rho)."""
    check_order(order, 3)
    past: list[float] = []  # log(sigma / alpha) where the noise prediction is stored, newest first
    lost = 0
    for a, b in pairwise(levels):
        if a.alpha < NO_SIGNAL:  # nothing to interpolate: the plain step, its value forgotten
            yield first_order(a, b)
            lost = 1
            continue
        past = [-a.lam, *past][: order if b.sigma else 1]
        weights = lagrange_integrals(past, -a.lam, -b.lam, np.exp) if b.sigma else [-a.ratio]
        noise = (1.0 / a.sigma, -a.alpha / a.sigma)
        history = tuple(b.alpha * c for c in weights)
        yield Row(a, b, x=b.alpha / a.alpha, history=history, value=noise, forget=lost)
        lost = 0
