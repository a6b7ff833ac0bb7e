"""Denoising: the level that fits the noise, its estimate, grey pictures, several looks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from skimage import data

from fastdiff import models
from fastdiff.apps.denoise import colour_noise, denoise, prepare
from fastdiff.apps.looks import Looks
from fastdiff.apps.noise_level import noise_level, spoilt
from fastdiff.apps.source import Native
from fastdiff.models.checkpoint import BUNDLED
from pictures import Knowing, latent, smooth, source

PICTURE = smooth()


def photograph(name, side=128, top=60, left=160):
    crop = getattr(data, name)()[top : top + side, left : left + side]
    crop = crop if crop.ndim == 3 else np.repeat(crop[..., None], 3, axis=2)
    return torch.from_numpy(crop.copy()).permute(2, 0, 1) / 127.5 - 1


def psnr(made, truth):
    return float(-10 * torch.log10(((made - truth) / 2).square().mean()))


@pytest.mark.parametrize("noise", [5, 25, 80])
def test_the_model_is_called_at_the_level_of_the_noise(noise):
    job = prepare(PICTURE, noise=noise, model=source())
    (row,) = job.work.plan.rows
    assert math.isclose(row.level.ratio, noise / 127.5, rel_tol=1e-6) and row.to.sigma == 0
    x = job.work.extra(slice(0, 1))["x"]
    assert torch.allclose(x[0, :, :30, :22], row.level.alpha * PICTURE)  # nothing is added


@pytest.mark.parametrize("steps, sampler", [(1, "ddim"), (3, "dpmpp_2m"), (5, "heun")])
def test_what_the_model_knows_comes_out(steps, sampler):
    answer = torch.full((1, 3, 32, 24), 0.3)
    made = denoise(
        spoilt(PICTURE, 20).clamp(-1, 1), noise=20, steps=steps, sampler=sampler, model=Knowing(answer)
    )
    assert torch.allclose(made.images, torch.full((1, 3, 30, 22), 0.3), atol=1e-4)


@pytest.mark.parametrize("name", ["astronaut", "camera", "rocket", "coffee"])
@pytest.mark.parametrize("noise", [5, 10, 25])
def test_the_noise_is_estimated(name, noise):
    noisy = spoilt(photograph(name, 256), noise).clamp(-1, 1)
    assert abs(noise_level(noisy) - noise) < 0.15 * noise + 1


def test_the_recipe_holds_the_estimate_and_makes_it_again():
    noisy = spoilt(photograph("rocket", 48), 15, seed=2).clamp(-1, 1)
    made = denoise(noisy, model=source())
    assert 10 < made.recipe["arguments"]["noise"] < 20 and made.recipe["command"] == "denoise"
    again = denoise(noisy, model=source(), **made.recipe["arguments"])
    assert torch.equal(again.images, made.images)


def test_the_bundled_model_removes_noise_and_several_looks_remove_more():
    model = Native(models.load(BUNDLED))
    truth = photograph("astronaut", 64)
    noisy = spoilt(truth, 25).clamp(-1, 1)
    once, often = (psnr(denoise(noisy, noise=25, average=n, model=model).images[0], truth) for n in (1, 4))
    assert once > psnr(noisy, truth) + 6 and often > once


def test_grey_stays_grey_and_its_noise_counts_as_what_it_is_in_three_channels():
    grey = spoilt(photograph("camera")[:1], 25).clamp(-1, 1)
    job = prepare(grey, noise=25, model=source())
    assert math.isclose(job.work.plan.rows[0].level.ratio, math.sqrt(3) * 25 / 127.5, rel_tol=1e-6)
    made = job.run()
    assert torch.equal(made.images[:, 0], made.images[:, 1]) and torch.equal(
        made.images[:, 0], made.images[:, 2]
    )
    colours = colour_noise(torch.zeros(1, 3, 64, 64), (3,), math.sqrt(3) * 0.2)
    assert colours.mean(dim=1).abs().max() < 1e-6
    white = colours + 0.2 * torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(1))
    flat = white[0].flatten(1)
    assert torch.allclose(flat @ flat.T / flat.shape[1], 0.12 * torch.eye(3), atol=0.01)


@pytest.mark.parametrize("count", [1, 3, 4, 7, 16])
def test_looks_come_back_to_where_they_were(count):
    looks = Looks.of(PICTURE, source(), count)
    seen = looks.seen(slice(0, count))
    assert seen.shape[-2:] == looks.size[::-1] and all(side % 4 == 0 for side in looks.size)
    assert torch.allclose(looks.merged(seen), PICTURE[None], atol=1e-6)


def test_several_looks_give_one_picture():
    made = denoise(PICTURE, noise=10, average=5, batch=2, model=source())
    assert made.images.shape == (1, *PICTURE.shape) and len(made.prompts) == len(made.seeds) == 1


def test_no_noise_changes_next_to_nothing():
    made = denoise(PICTURE, noise=0, model=Native(models.load(BUNDLED)))
    assert (made.images[0] - PICTURE).abs().max() < 0.03


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"noise": -1}, "noise must be a number from 0 to 255"),
        ({"noise": math.inf}, "noise"),
        ({"average": 17}, "average"),
        ({"steps": 0}, "steps"),
        ({"spacing": "karras"}, "leave spacing out"),
        ({"sampler": "dpm_adaptive"}, "another sampler"),
    ],
)
def test_what_cannot_work_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        prepare(PICTURE, **{"noise": 10, "model": source(), **changes})


def test_latents_and_specks_are_refused():
    with pytest.raises(ValueError, match="latents"):
        prepare(PICTURE, model=latent())
    with pytest.raises(ValueError, match="too small to tell its noise"):
        prepare(PICTURE[:, :2, :2], model=source())
