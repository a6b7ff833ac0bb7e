"""Prediction types: each recovers the denoised image from what its kind of model returns, at every level."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdiff import predictions, schedules
from fastdiff.levels import Level
from fastdiff.plan import Plan
from fastdiff.predictions import PREDICTIONS, Prediction
from fastdiff.samplers import SAMPLERS
from oracles import execute, mixture_2d, output_of, processes, relative_error

MIXTURE = mixture_2d()


@pytest.mark.parametrize("process", processes())
@pytest.mark.parametrize("name", PREDICTIONS)
@given(log_ratio=st.floats(-3.5, 2.5))
@settings(deadline=None, max_examples=30)
def test_denoised_comes_back(name: str, process: str, log_ratio: float) -> None:
    level = processes()[process].at(math.exp(log_ratio))
    x = (
        level.alpha * MIXTURE.means
        + level.sigma * torch.tensor([[0.3, -1.0], [1.2, 0.1], [-0.4, 0.5]]).double()
    )
    kind = PREDICTIONS[name]
    output = output_of(MIXTURE.denoise, name)(kind.scale(level) * x, level)
    p, q = kind.weights(level)
    assert relative_error(p * x + q * output, MIXTURE.denoise(x, level)) < 1e-10


@pytest.mark.parametrize("name", ["v", "flow", "sample"])
def test_pure_noise(name: str) -> None:
    level = schedules.flow().levels(4)[0]
    x = torch.tensor([[0.3, -1.0]]).double()
    p, q = PREDICTIONS[name].weights(level)
    output = output_of(MIXTURE.denoise, name)(x, level)
    assert relative_error(p * x + q * output, MIXTURE.denoise(x, level)) < 1e-12


def test_epsilon_at_pure_noise_says_what_to_do() -> None:
    with pytest.raises(ValueError, match="'v', 'flow' or 'sample'"):
        PREDICTIONS["epsilon"].weights(schedules.flow().levels(4)[0])


def test_edm_is_table_1_of_the_paper() -> None:
    sigma, data = 3.0, 0.7
    kind = predictions.edm(data)
    level = schedules.karras(0.1, sigma).levels(1)[0]
    total = sigma**2 + data**2
    assert kind.weights(level) == pytest.approx((data**2 / total, sigma * data / math.sqrt(total)))
    assert kind.scale(level) == pytest.approx(1 / math.sqrt(total))
    assert kind.time(level) == pytest.approx(math.log(sigma) / 4)


def test_edm_is_the_same_network_on_any_process() -> None:
    # x / alpha, sigma / alpha decide: a network trained one way can be sampled on another process.
    kind = predictions.edm()
    for process in processes().values():
        level = process.at(0.8)
        p, q = kind.weights(level)
        one = processes()["exploding"].at(0.8)
        assert (p * level.alpha, q) == pytest.approx(kind.weights(one))
        assert kind.scale(level) * level.alpha == pytest.approx(kind.scale(one))
        assert kind.time(level) == pytest.approx(kind.time(one))


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
def test_sigma_data_out_of_range(value: float) -> None:
    with pytest.raises(ValueError, match="sigma_data must be"):
        predictions.edm(value)


def test_names() -> None:
    assert predictions.resolve("v") is PREDICTIONS["v"]
    mine = Prediction("mine", lambda level: (0.0, 2.0))
    assert predictions.resolve(mine) is mine
    with pytest.raises(ValueError, match="did you mean epsilon") as caught:
        predictions.resolve("eps")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "heun", "lms", "unipc"])
def test_the_prediction_type_does_not_change_the_picture(sampler: str) -> None:
    levels = schedules.scaled_linear_betas().levels(12)
    x = torch.randn(8, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ends = [
        execute(Plan.build(SAMPLERS[sampler], levels, prediction=name), output_of(MIXTURE.denoise, name), x)
        for name in PREDICTIONS
    ]
    assert all(relative_error(end, ends[0]) < 1e-9 for end in ends[1:])


def test_a_level_is_enough() -> None:
    assert PREDICTIONS["v"].weights(Level(t=0.0, alpha=0.6, sigma=0.8)) == pytest.approx((0.6, -0.8))
    assert PREDICTIONS["flow"].weights(Level(t=0.5, alpha=0.5, sigma=0.5)) == pytest.approx((1.0, -0.5))
    assert PREDICTIONS["epsilon"].weights(Level(t=0.0, alpha=0.5, sigma=0.5)) == pytest.approx((2.0, -1.0))
