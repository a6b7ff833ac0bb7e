"""Inversion: plans that run backwards, and what a round trip leaves of a picture."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from fastdiff import schedules
from fastdiff.apps.inversion import FAINTEST, descent, inversion, ladder, level_at
from fastdiff.sampling import sample
from fastdiff.schedules import Schedule
from tiny_model import tiny_model

SCHEDULES = {
    "discrete": schedules.cosine_betas(),
    "zero snr": schedules.scaled_linear_betas(zero_snr=True),
    "flow": schedules.flow(),
    "karras": schedules.karras(0.02, 20.0),
}


def gaussian(schedule: Schedule, deviation: float = 0.5):
    """The exact denoiser of normal data with mean 0.2, called by a level's time, as a prediction of the sample."""

    def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        level = schedule.process.level(float(t[0]))
        gain = level.alpha * deviation**2 / ((level.alpha * deviation) ** 2 + level.sigma**2)
        return 0.2 + gain * (x - 0.2 * level.alpha)

    return model


@pytest.mark.parametrize("name", SCHEDULES)
def test_corrected_inversion_leads_back_to_the_picture(name: str) -> None:
    schedule = SCHEDULES[name]
    picture = torch.linspace(-1, 1, 48, dtype=torch.float64).view(1, 3, 4, 4)
    levels = ladder(schedule, 20)
    down, errors = descent(levels, prediction="sample"), []
    for turns in (0, 2, 8):
        up = inversion(levels, prediction="sample", turns=turns)
        noise = sample(gaussian(schedule), picture, sampler=up)
        errors.append(float((sample(gaussian(schedule), noise, sampler=down) - picture).abs().max()))
    # A discrete process interpolates between its times, which the model sees in float32.
    assert errors[0] > 1e-3 and errors[1] < 0.2 * errors[0] and errors[2] < 1e-5


def test_inversion_of_a_network_leads_back_to_the_picture() -> None:
    net = tiny_model()
    picture = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    label = {"label": torch.tensor([0, 2])}
    levels = ladder(net.schedule, 40, 0.5)
    up = inversion(levels, prediction=net.prediction, turns=12)
    noise = sample(net, picture, sampler=up, conditioning=label)
    back = sample(net, noise, sampler=descent(levels, prediction=net.prediction), conditioning=label)
    plain = inversion(levels, prediction=net.prediction, turns=0)
    rough = sample(net, picture, sampler=plain, conditioning=label)
    rough = sample(net, rough, sampler=descent(levels, prediction=net.prediction), conditioning=label)
    assert float((back - picture).abs().max()) < 0.05 * float((rough - picture).abs().max())


def test_gaussian_data_become_standard_noise() -> None:
    schedule = SCHEDULES["karras"]
    picture = 0.2 + 0.5 * torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    up = inversion(ladder(schedule, 60), prediction="sample", turns=4)
    noise = sample(gaussian(schedule), picture, sampler=up) / up.levels[-1].sigma
    assert abs(float(noise.std()) - 1.0) < 0.1


def test_a_ladder_has_even_steps_and_reaches_as_far_as_the_strength() -> None:
    schedule = schedules.cosine_betas()
    for strength in (0.2, 0.5, 1.0):
        levels = ladder(schedule, 20, strength)
        ratios = [a.ratio / b.ratio for a, b in itertools.pairwise(levels)]
        assert max(ratios) / min(ratios) < 1.0001 and levels[-1].ratio == pytest.approx(FAINTEST)
        assert levels[0].ratio == pytest.approx(min(level_at(schedule, strength).ratio, 40.0))
    assert len(ladder(schedule, 20)) == 21 and len(ladder(schedule, 20, 0.0)) == 1


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_dial_is_smooth_and_ends_where_sampling_does(name: str) -> None:
    schedule = SCHEDULES[name]
    ratios = [level_at(schedule, i / 500).ratio for i in range(501)]
    assert ratios[0] == 0.0 and ratios[-1] == schedule.levels(10)[0].ratio
    assert all(a < b for a, b in itertools.pairwise(ratios) if math.isfinite(b))
    assert level_at(schedule, 0.5).ratio == pytest.approx(schedule.levels(100)[50].ratio)


def test_what_cannot_be_inverted_is_refused() -> None:
    with pytest.raises(ValueError, match="little noise"):
        inversion(schedules.cosine_betas().levels(5), prediction="v")
    with pytest.raises(ValueError, match="turns"):
        inversion(ladder(schedules.cosine_betas(), 5), prediction="v", turns=-1)


def test_nothing_to_climb_gives_the_picture() -> None:
    levels = ladder(schedules.cosine_betas(), 20, 0.0)
    picture = torch.rand(1, 3, 8, 8)
    noise = sample(lambda x, t: x, picture, sampler=inversion(levels, prediction="v"))
    back = sample(lambda x, t: x, noise, sampler=descent(levels, prediction="v"))
    torch.testing.assert_close(back, picture)
