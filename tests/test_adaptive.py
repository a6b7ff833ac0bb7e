"""dpm_adaptive: the error follows the tolerance; k-diffusion's accepted steps."""

from __future__ import annotations

import pytest
import torch

import fastdiff
from fastdiff import schedules
from oracles import mixture_2d, output_of, solve_ode

MIXTURE = mixture_2d()
PROCESSES = {
    "sample": schedules.karras(0.05, 20.0),
    "v": schedules.cosine_betas(zero_snr=True),
    "epsilon": schedules.scaled_linear_betas(spacing="karras"),
    "flow": schedules.flow(shift=2.0),
}


def run(prediction, x, steps=12, **options):
    schedule = PROCESSES[prediction]
    output, calls = output_of(MIXTURE.denoise, prediction), []

    def model(x_in, t):
        calls.append(float(t[0]))
        return output(x_in, schedule.process.level(float(t[0])))

    result = fastdiff.sample(
        model,
        x,
        schedule=schedule,
        sampler="dpm_adaptive",
        steps=steps,
        prediction=prediction,
        options=options,
        seed=0,
    )
    return result, len(calls)


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("prediction", ["sample", "epsilon"])
def test_a_tighter_tolerance_means_a_smaller_error_and_more_calls(prediction, order):
    levels = PROCESSES[prediction].levels(12)
    noise = torch.randn(32, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = levels[0].sigma * noise
    before_last = solve_ode(MIXTURE, x, levels[0], levels[-2])
    exact = MIXTURE.denoise(before_last, levels[-2])  # the last, plain step goes to the denoised image
    errors, calls = [], []
    for tolerance in (1e-1, 1e-2, 2e-3):
        result, count = run(prediction, x, order=order, rtol=tolerance, atol=tolerance / 10)
        errors.append(float((result - exact).abs().max()))
        calls.append(count)
    assert calls[0] < calls[1] < calls[2]
    assert errors[1] < errors[0] / 2 and errors[2] < errors[1] / 2
    assert errors[2] < 4e-3  # twice the tolerance: the local errors of many steps add up


@pytest.mark.parametrize("prediction", PROCESSES)
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_every_process_from_its_first_level_even_from_pure_noise(prediction, steps):
    sigma = PROCESSES[prediction].levels(steps)[0].sigma
    result, calls = run(prediction, sigma * torch.randn(8, 2, dtype=torch.float64), steps=steps)
    assert result.isfinite().all() and calls >= 1


def test_fresh_noise_keeps_the_distribution():
    x = 20.0 * torch.randn(4000, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    result, _ = run("sample", x, eta=1.0, rtol=0.01, atol=0.002)
    # Five standard errors of 4000 samples, and the discretisation's own small bias.
    assert (result.mean(0) - MIXTURE.mean()).abs().max() < 0.1
    assert (torch.cov(result.T) - MIXTURE.covariance()).abs().max() < 0.12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": 4}, "order"),
        ({"rtol": 0.0}, "rtol > 0"),
        ({"h_init": -1.0}, "h_init > 0"),
        ({"stap": 1}, "stap"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        run("sample", torch.zeros(1, 2), **options)


def test_nan_from_the_model_is_named():
    with pytest.raises(ValueError, match="NaN"):
        fastdiff.sample(
            lambda x, t: x * float("nan"),
            (1, 2),
            schedule=PROCESSES["sample"],
            sampler="dpm_adaptive",
            prediction="sample",
        )
