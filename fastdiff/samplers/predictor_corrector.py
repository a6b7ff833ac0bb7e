"""UniPC and SA-Solver: a corrector that costs no call.

The corrector adds to the predicted point a combination of stored values, so that one row holds both it and the next
prediction: with x_p the point the model saw, x_next = r (x_p + (C - P) values) + P' values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from fastdiff.levels import Level
from fastdiff.plan import Row
from fastdiff.samplers._moves import Levels, gains, lagrange_integrals
from fastdiff.samplers.linear_multistep import check_order

Weights = NDArray[np.float64]  # of the newest values: this level's, then earlier ones
MEMORY = 4


def _folded(
    levels: Levels,
    carry: Callable[[int], tuple[float, float]],
    predict: Callable[[int], Sequence[float]],
    correct: Callable[[int], Sequence[float] | None],
) -> Iterator[Row]:
    """Rows of a predictor and a corrector.

    carry(i): weights of x and of fresh noise in step i, from levels[i] to levels[i + 1].
    predict(i): weights of the values at levels i, i - 1, ... in step i.
    correct(i): weights of the values at levels i + 1, i, ... in the same step, None to leave the prediction as it is.
    """
    predicted, corrected = np.zeros(MEMORY), None
    for i in range(len(levels) - 1):
        r, noise = carry(i)
        history = _padded(predict(i))
        if corrected is not None:
            correction = corrected - np.concatenate([[0.0], predicted[:-1]])
            history_now = history + r * correction
        else:
            history_now = history
        used = int(np.max(np.nonzero(history_now)[0], initial=0)) + 1
        yield Row(levels[i], levels[i + 1], x=r, history=tuple(history_now[:used].tolist()), noise=noise)
        found = correct(i)
        predicted, corrected = history, None if found is None else _padded(found)


def _padded(weights: Sequence[float]) -> Weights:
    return np.array([*weights, *(0.0,) * (MEMORY - len(weights))])


def _orders(levels: Levels, order: int, *, lower_final: bool = True) -> list[int]:
    """The order of each step: grows with what is stored at finite lam, falls towards the end."""
    steps, start = len(levels) - 1, int(not levels[0].alpha)
    return [max(1, min(order, i + 1 - start, steps - i if lower_final else order)) for i in range(steps)]


def unipc(
    levels: Levels, *, order: int = 2, solver_type: str = "bh2", corrector: bool = True
) -> Iterator[Row]:
    """UniPC of order 1 to 3 on the denoised image (arXiv:2302.04867, algorithms 5 to 7).

    solver_type: "bh1" or "bh2", the paper's B(h) = h or exp(h) - 1. corrector: False is UniP alone.
    """
    check_order(order, 3)
    if solver_type not in ("bh1", "bh2"):
        raise ValueError(f"solver_type must be 'bh1' or 'bh2', got {solver_type!r}")
    orders = _orders(levels, order)

    def carry(i: int) -> tuple[float, float]:
        return levels[i + 1].sigma / levels[i].sigma, 0.0

    def predict(i: int) -> Sequence[float]:
        return _unified(levels, i, orders[i], solver_type, with_next=False)

    def correct(i: int) -> Sequence[float] | None:
        known = corrector and levels[i].alpha and levels[i + 1].sigma
        return _unified(levels, i, orders[i], solver_type, with_next=True) if known else None

    return _folded(levels, carry, predict, correct)


def _unified(levels: Levels, i: int, order: int, solver_type: str, *, with_next: bool) -> list[float]:
    """Weights of UniP (values at i, i - 1, ...) or of UniC (at i + 1, i, ...) for the step from i to i + 1."""
    a, b = levels[i], levels[i + 1]
    gain = gains(a, b)[1]
    if order == 1 and not with_next:
        return [gain]
    h = b.lam - a.lam
    scale = -h if solver_type == "bh1" else math.expm1(-h)
    nodes = [(levels[i - k].lam - a.lam) / h for k in range(1, order)] + ([1.0] if with_next else [])
    rho = _rho(nodes, h, scale)
    parts = [-b.alpha * scale * c / node for c, node in zip(rho, nodes)]  # weights of value(node) - value(a)
    earlier, following = parts[: order - 1], parts[order - 1 :]
    return [*following, gain - sum(parts), *earlier]


def _rho(nodes: list[float], h: float, scale: float) -> Sequence[float]:
    """The solution of the paper's R(h) rho = b(h); one unknown is 1/2 by its remark on order 2."""
    if len(nodes) == 1:
        return [0.5]
    b, phi, factorial = [], math.expm1(-h) / -h - 1.0, 1
    for k in range(1, len(nodes) + 1):
        b.append(phi * factorial / scale)
        factorial *= k + 1
        phi = phi / -h - 1.0 / factorial
    rho: list[float] = np.linalg.solve(np.vander(nodes, increasing=True).T, np.array(b)).tolist()
    return rho


def sa_solver(
    levels: Levels,
    *,
    predictor_order: int = 2,
    corrector_order: int = 2,
    tau: float | Callable[[Level], float] = 1.0,
) -> Iterator[Row]:
    """SA-Solver: stochastic Adams with a corrector (arXiv:2309.05019, algorithm 1, data prediction).

    tau: how much noise, 0 for the ODE, 1 for the SDE; a number, or a function of the level a step starts at.
    corrector_order: 0 leaves the corrector out.
    """
    check_order(predictor_order, 4)
    if corrector_order:
        check_order(corrector_order, 4)
    orders, corrected = _orders(levels, predictor_order), _orders(levels, max(1, corrector_order - 1))
    taus = [float(tau(level)) if callable(tau) else float(tau) for level in levels]

    def carry(i: int) -> tuple[float, float]:
        a, b = levels[i], levels[i + 1]
        if not b.sigma:
            return 0.0, 0.0
        spent = taus[i] ** 2 * (b.lam - a.lam) if taus[i] else 0.0  # lam is -inf at pure noise
        return b.sigma / a.sigma * math.exp(-spent), b.sigma * math.sqrt(-math.expm1(-2.0 * spent))

    def predict(i: int) -> Sequence[float]:
        return _adams(levels, i, range(i, i - orders[i], -1), taus[i])

    def correct(i: int) -> Sequence[float] | None:
        if not (corrector_order and levels[i].alpha and levels[i + 1].sigma):
            return None
        count = corrected[i] + 1 if corrector_order > 1 else 1
        return _adams(levels, i, range(i + 1, i + 1 - count, -1), taus[i])

    return _folded(levels, carry, predict, correct)


def _adams(levels: Levels, i: int, used: range, tau: float) -> list[float]:
    """Weights of the values at the levels `used` in the step from i to i + 1 (equations 14 and 17)."""
    a, b, rate = levels[i], levels[i + 1], 1.0 + tau**2
    h = b.lam - a.lam
    if math.isinf(h) or len(used) == 1:
        return [b.alpha * -math.expm1(-rate * h)]
    nodes = [levels[k].lam - a.lam for k in used]
    weights = lagrange_integrals(nodes, 0.0, h, lambda y: b.alpha * rate * np.exp(-rate * (h - y)))
    if len(used) == 2:
        # The authors' change of order h^3, which they keep for few steps (their released code).
        change = (
            b.alpha
            * rate
            * (h * h / 2 - (rate * h + math.expm1(-rate * h)) / rate**2)
            / abs(nodes[0] - nodes[1])
        )
        weights = [weights[0] + change, weights[1] - change]
    return weights
