"""What planners share: the first-order step, fresh noise, coordinates, integrals of interpolating polynomials."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Concatenate, ParamSpec, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fastdiff.levels import Level
from fastdiff.plan import Row

P = ParamSpec("P")
Levels = Sequence[Level]
Weight: TypeAlias = Callable[[NDArray[np.float64]], NDArray[np.float64]]
SamplerRows = Callable[Concatenate[Levels, P], Iterable[Row]]


# Below this alpha the image is lost in the noise, and sigma / alpha says little: cosine betas end at 20,000, zero
# terminal SNR at infinity. Methods that multiply by it, or interpolate on its logarithm, would enlarge the model's
# error by hundreds; a first-order step, exact as long as the denoised image does not change, takes them past it.
NO_SIGNAL = 1e-3


def gains(start: Level, to: Level, sigma: float | None = None) -> tuple[float, float]:
    """Weights of x and denoised for the move start -> to, exact where denoised is constant (DDIM, arXiv:2010.02502).

    sigma: how much of the noise at `to` is carried over from x, all of it if None.
    """
    r = (to.sigma if sigma is None else sigma) / start.sigma
    return r, to.alpha - r * start.alpha


def check_amount(name: str, value: float) -> None:
    """ValueError unless value, how much noise to add, is a number of at least 0."""
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} must be a finite number of at least 0, got {value!r}")


def ancestral_split(start: Level, to: Level, eta: float) -> tuple[float, float]:
    """The noise at `to` as (carried over, fresh), in units of sigma: carried^2 + fresh^2 = to.sigma^2.

    eta = 0 carries all of it, eta = 1 gives the reverse process of DDPM (arXiv:2006.11239, equation 7).
    """
    check_amount("eta", eta)
    rho = to.ratio / start.ratio
    fresh = min(1.0, eta * math.sqrt(max(0.0, 1.0 - rho**2)))
    # Not sqrt(1 - fresh^2): with eta = 1 and a large step it would lose most of its digits.
    carried = math.sqrt(max(0.0, (1.0 - eta) * (1.0 + eta) + (eta * rho) ** 2))
    return to.sigma * carried, to.sigma * fresh


def first_order(start: Level, to: Level, eta: float = 0.0, s_noise: float = 1.0) -> Row:
    """The step of Euler, DDIM and, with eta > 0, of the ancestral samplers."""
    carried, fresh = ancestral_split(start, to, eta)
    r, gain = gains(start, to, carried)
    return Row(start, to, x=r, history=(gain,), noise=s_noise * fresh)


def in_linear_coordinates(planner: SamplerRows[P]) -> Callable[Concatenate[Levels, P], Iterator[Row]]:
    """Lets a planner write its weights for x / scale, where the ODE is dx/ds = (x - denoised) / s (fastdiff.levels)."""

    @functools.wraps(planner)
    def rescaled(levels: Levels, *args: P.args, **kwargs: P.kwargs) -> Iterator[Row]:
        lost = 0
        if levels[0].scale < NO_SIGNAL:
            yield first_order(levels[0], levels[1])
            levels, lost = levels[1:], 1
        if len(levels) < 2:
            return
        anchor = levels[0].scale
        for i, row in enumerate(planner(levels, *args, **kwargs)):
            up = row.to.scale
            yield replace(
                row,
                forget=row.forget if i else lost,
                x=row.x * up / row.level.scale,
                anchor=row.anchor * up / anchor,
                history=tuple(c * up for c in row.history),
                noise=row.noise * up,
                value=(row.value[0] / row.level.scale, row.value[1]),
            )
            anchor = up if row.accept else anchor

    return rescaled  # type: ignore[return-value]  # wraps() hides that it is a plain function


@functools.cache
def _gauss_legendre(points: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return np.polynomial.legendre.leggauss(points)


def lagrange_integrals(
    nodes: Sequence[float], low: float, high: float, weight: Weight | None = None
) -> list[float]:
    """The integrals from low to high of weight(y) times each Lagrange polynomial on the nodes.

    Gauss-Legendre quadrature: exact without a weight, to rounding with the smooth weights of this package.
    """
    points, masses = _gauss_legendre(4 if weight is None else 48)
    half = (high - low) / 2
    y = low + half * (points + 1)
    mass = half * masses * (1.0 if weight is None else weight(y))

    def basis(node: float) -> NDArray[np.float64]:
        return math.prod(
            ((y - other) / (node - other) for other in nodes if other != node), start=np.ones_like(y)
        )

    return [float(np.sum(mass * basis(node))) for node in nodes]
