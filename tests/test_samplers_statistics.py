"""Stochastic samplers draw from the right distribution: exactly in the limit of many steps on Gaussian data, where mean
and variance pass through the rows in closed form, and within statistical error on a mixture."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from fastdiff import schedules
from fastdiff.plan import Plan, Row
from fastdiff.samplers import SAMPLERS
from oracles import execute, mixture_2d

STOCHASTIC: dict[str, tuple[str, dict[str, Any]]] = {
    "ddpm": ("ddpm", {}),
    "ddim-eta": ("ddim", {"eta": 0.7}),
    "euler_ancestral": ("euler_ancestral", {}),
    "dpm_2_ancestral": ("dpm_2_ancestral", {}),
    "dpmpp_2s_ancestral": ("dpmpp_2s_ancestral", {}),
    "dpmpp_sde": ("dpmpp_sde", {}),
    "dpmpp_2m_sde": ("dpmpp_2m_sde", {}),
    "dpmpp_2m_sde-heun": ("dpmpp_2m_sde", {"solver_type": "heun"}),
    "dpmpp_2m_sde-half": ("dpmpp_2m_sde", {"eta": 0.5}),
    "dpmpp_3m_sde": ("dpmpp_3m_sde", {}),
    "sa_solver": ("sa_solver", {}),
    "sa_solver-3-3": ("sa_solver", {"predictor_order": 3, "corrector_order": 3, "tau": 0.7}),
    "edm": ("edm", {"s_noise": 1.0, "churn": 20.0}),
    "restart": ("restart", {"repeats": 2}),
}
# Their variance errs like 1 / steps; that of the others falls faster. dpmpp_sde only under independent noises: see
# test_dpmpp_sde_wants_brownian_noise.
FIRST_ORDER = {"ddpm", "ddim-eta", "euler_ancestral", "dpmpp_sde"}
GRIDS = {
    "karras": schedules.karras(0.02, 40.0),
    "betas": schedules.scaled_linear_betas(),
    "flow": schedules.flow(),
}
MEAN, DEVIATION = 0.7, 0.4


def gaussian_moments(plan: Plan, *, brownian: bool = False) -> tuple[float, float]:
    """Mean and standard deviation of the end for data N(MEAN, DEVIATION^2), without drawing anything.

    Everything is affine in (1, the normal x starts with, each fresh normal): coefficient vectors walk the rows.
    brownian: the noise of a row over a span that begins where the last one's began contains that one, as increments of
    one Brownian path in sigma do; else all noises are independent.
    """
    noisy = [i for i, row in enumerate(plan.rows) if row.noise]
    unit = np.eye(2 + len(noisy))
    first = plan.rows[0].level
    x = anchor = first.alpha * MEAN * unit[0] + math.hypot(first.alpha * DEVIATION, first.sigma) * unit[1]
    history: list[np.ndarray] = []
    fresh = iter(unit[2:])
    part, last = Row(first, first), unit[0]
    for row in plan.rows:
        history = history[row.forget :]
        if row.call:
            a, s = row.level.alpha, row.level.sigma
            pull = a * DEVIATION**2 / (a * a * DEVIATION**2 + s * s)
            denoised = MEAN * unit[0] + pull * (x - a * MEAN * unit[0])
            history = [row.value[0] * x + row.value[1] * denoised, *history]
        values = history if row.call else [0.0 * x, *history]
        x = row.x * x + row.anchor * anchor + sum(c * value for c, value in zip(row.history, values))
        if row.noise:
            drawn, span = next(fresh), row.span or (row.level, row.to)
            if brownian and part.noise and span[0] == part.level:
                shared = (span[0].sigma - part.to.sigma) / (span[0].sigma - span[1].sigma)
                drawn = math.sqrt(shared) * last + math.sqrt(1 - shared) * drawn
            part, last = row, drawn
            x = x + row.noise * drawn
        anchor = x if row.accept else anchor
    return float(x[0]), float(np.linalg.norm(x[1:]))


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("name", STOCHASTIC)
def test_variance_converges_on_gaussian_data(name: str, grid: str) -> None:
    sampler, options = STOCHASTIC[name]
    errors = []
    for steps in (50, 100, 200):
        plan = Plan.build(SAMPLERS[sampler], GRIDS[grid].levels(steps), prediction="v", options=options)
        mean, deviation = gaussian_moments(plan)
        # Every sampler keeps the mean: denoised is affine with fixed point MEAN at the centre of each level.
        assert mean == pytest.approx(MEAN, abs=1e-6)
        errors.append(abs(deviation - DEVIATION))
    # The last step, to zero, leaves an error of its own: the denoised image varies less than the data.
    end = GRIDS[grid].levels(200)[-2].ratio
    left = end**2 / DEVIATION
    assert errors[2] < 0.75 * errors[0] + left, errors
    assert errors[2] < (0.03 if name in FIRST_ORDER else 0.006) * DEVIATION + left, errors


def test_dpmpp_sde_wants_brownian_noise() -> None:
    plan = Plan.build(SAMPLERS["dpmpp_sde"], GRIDS["karras"].levels(50), prediction="v")
    independent, brownian = (abs(gaussian_moments(plan, brownian=b)[1] - DEVIATION) for b in (False, True))
    assert brownian < independent / 5


@pytest.mark.parametrize("name", STOCHASTIC)
def test_a_mixture_is_sampled(name: str) -> None:
    sampler, options = STOCHASTIC[name]
    mixture, count, steps = mixture_2d(), 8_000, 100
    generator = torch.Generator().manual_seed(len(name))
    levels = GRIDS["karras" if len(name) % 2 else "flow"].levels(steps)
    plan = Plan.build(SAMPLERS[sampler], levels, prediction="sample", options=options)
    x = levels[0].alpha * mixture.draw(count, generator) + levels[0].sigma * normal(count, generator)
    drawn = execute(plan, mixture.denoise, x, lambda i, row: normal(count, generator))

    # Five standard errors from `count` samples, and what 100 steps leave.
    spread = mixture.covariance().diag().sqrt()
    assert ((drawn.mean(0) - mixture.mean()).abs() < (5 / math.sqrt(count) + 0.01) * spread).all()
    error = (drawn.T.cov() - mixture.covariance()).abs() / torch.outer(spread, spread)
    assert (error < 5 * math.sqrt(2 / count) + (0.05 if name in FIRST_ORDER else 0.02)).all(), error
    distance = (drawn[:, None] - mixture.means).square().sum(-1) / (2 * mixture.deviations**2)
    weights = ((mixture.weights / mixture.deviations**2).log() - distance).softmax(-1).mean(0)
    assert ((weights - mixture.weights).abs() < 5 * 0.5 / math.sqrt(count) + 0.01).all(), weights


def normal(count: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(count, 2, dtype=torch.float64, generator=generator)
