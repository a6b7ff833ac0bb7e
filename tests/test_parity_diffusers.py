"""Samplers against the schedulers of diffusers (sampler_cases.py), closed loop, on random models, the same noise."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")

from fastdiff.levels import DiscreteTime, Level, clean  # noqa: E402
from oracles import relative_error  # noqa: E402
from sampler_cases import CASES, LOOSE, TOLERANCE, Case, Levels, closed_loop, drawn_configuration  # noqa: E402
from widened import BETAS  # noqa: E402

pytestmark = pytest.mark.filterwarnings(
    "ignore:The `scale_model_input` function should be called", "ignore:__array_wrap__ must accept"
)

SEEDS = range(4)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_closed_loop(case: Case, seed: int) -> None:
    config, steps, rng = drawn_configuration(case, seed)
    ours, theirs = closed_loop(case, config, steps, rng)
    assert torch.isfinite(theirs).all()
    assert relative_error(ours, theirs) < case.tolerance, (config, steps)


# Not SA-Solver, whose coefficients of order 3 and 4 are good to 5e-5 only when diffusers computes them in float32.
IN_FLOAT32 = ("DDIM", "DPMSolverMultistep", "UniPC", "EulerDiscrete", "EulerAncestral", "Heun", "LMS")


@pytest.mark.parametrize(
    "case", [c for c in CASES if c.scheduler.startswith(IN_FLOAT32)], ids=lambda case: case.name
)
def test_closed_loop_in_float32(case: Case) -> None:
    # diffusers as it is, rows in float32: 1e-5 of the largest value after 50 steps.
    prediction = case.predictions[-1]
    config = {**BETAS[1], "prediction_type": prediction, **case.config}
    ours, theirs = closed_loop(case, config, 50, np.random.default_rng(0), torch.float32)
    assert theirs.dtype == torch.float32
    assert relative_error(ours, theirs) < 1e-5


@pytest.mark.parametrize("steps", [4, 5, 10, 20, 50])
def test_pndm_with_its_runge_kutta_start(steps: int) -> None:
    # diffusers puts the midpoints of the first steps at the middle training index, ours are in the middle of s: the
    # same where sigma / alpha is linear in the index.
    ratio = 0.01 * np.arange(1, 1001)
    bar = 1 / (1 + ratio**2)
    case = Case("PNDMScheduler", "pndm", first_of_each_step, prediction="epsilon")
    betas = 1 - bar / np.concatenate([[1.0], bar[:-1]])
    config = {
        "trained_betas": betas,
        "skip_prk_steps": False,
        "set_alpha_to_one": True,
        "prediction_type": "epsilon",
    }
    ours, theirs = closed_loop(case, config, steps, np.random.default_rng(steps))
    assert relative_error(ours, theirs) < LOOSE


def first_of_each_step(scheduler: Any) -> Levels:
    """Leading timesteps, whatever calls the scheduler makes between them."""
    process, n = DiscreteTime(scheduler.alphas_cumprod.numpy()), scheduler.num_inference_steps
    return [*(process.level(t) for t in range(1000 - 1000 // n, -1, -(1000 // n))), clean(process)]


@pytest.mark.parametrize("steps", [1, 2, 5, 30])
def test_ipndm(steps: int) -> None:
    # diffusers' own grid starts at alpha = 0, where it divides by 1e-8: given betas start below.
    sines = np.sin(np.linspace(0.95, 0.0, steps + 1) * math.pi / 2)
    case = Case("IPNDMScheduler", "ipndm", given_sines, prediction="v")
    ours, theirs = closed_loop(case, {"trained_betas": sines.tolist()}, steps, np.random.default_rng(steps))
    assert relative_error(ours, theirs) < TOLERANCE


def given_sines(scheduler: Any) -> Levels:
    pairs = zip(scheduler.alphas.tolist(), scheduler.betas.tolist())
    process = DiscreteTime(np.linspace(0.99, 0.01, 100))
    return [Level(t=0.0, alpha=a, sigma=s, scale=a, process=process) for a, s in pairs]


def test_unipc_bh1_is_finite_where_diffusers_is_not() -> None:
    case = Case("UniPCMultistepScheduler", "unipc", options={"solver_type": "bh1"}, spaced=False)
    config = {**BETAS[1], "prediction_type": "epsilon", "solver_type": "bh1"}
    ours, theirs = closed_loop(case, config, 10, np.random.default_rng(0))
    assert torch.isfinite(ours).all()
    assert not torch.isfinite(theirs).all(), "diffusers is mended: move bh1 back among the cases"
