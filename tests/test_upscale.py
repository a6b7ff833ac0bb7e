"""Super-resolution: the result shrinks to what was given, whatever the sampler, the size and the prompt."""

from __future__ import annotations

import pytest
import torch

from fastdiff import models
from fastdiff.apps.source import Native
from fastdiff.apps.upscale import consistent, enlarged, prepare, shrunk, upscale
from fastdiff.models.checkpoint import BUNDLED
from pictures import latent, smooth, source

PICTURE = 0.5 * smooth(11, 7)


@pytest.fixture(scope="module")
def bundled():
    return Native(models.load(BUNDLED))


@pytest.mark.parametrize("factor", [2, 3, 4])
@pytest.mark.parametrize("method", ["restore", "sample"])
def test_the_result_shrinks_to_the_picture(bundled, factor, method):
    made = upscale(PICTURE, factor=factor, method=method, steps=3, model=bundled)
    assert made.images.shape == (1, 3, 11 * factor, 7 * factor)
    off = (shrunk(made.images, factor)[0] - PICTURE).abs()
    inside = (made.images.abs() < 1).float()  # where nothing was clipped
    whole = shrunk(inside, factor)[0] == 1
    assert float(whole.float().mean()) > 0.9 and off[whole].max() < 1e-4


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m", "heun", "unipc"])
def test_under_guidance_and_with_any_sampler(bundled, sampler):
    made = upscale(PICTURE, "brick", method="sample", sampler=sampler, steps=4, guidance=1.5, model=bundled)
    off = (shrunk(made.images, 2)[0] - PICTURE).abs()
    assert off.median() < 1e-4


def test_a_noisy_picture_is_not_taken_at_its_word(bundled):
    noisy = (PICTURE + 0.2 * torch.randn(PICTURE.shape, generator=torch.Generator().manual_seed(0))).clamp(
        -1, 1
    )
    rough, calm = (upscale(noisy, noise=noise, doubt=30, model=bundled).images for noise in (0.0, 25.0))
    true = enlarged(PICTURE[None], 2)
    assert (calm - true).square().mean() < (rough - true).square().mean()


def test_the_correction_is_a_projection():
    small, estimate = PICTURE[None], torch.randn(2, 3, 22, 14)
    correct = consistent(small, 2)
    level = source().schedule.process.at(1.0)
    once = correct(estimate, estimate, level)
    assert torch.allclose(shrunk(once, 2), small.expand(2, -1, -1, -1), atol=1e-6)
    assert torch.allclose(correct(once, once, level), once, atol=1e-6)


def test_the_smooth_enlargement_shrinks_back():
    assert (shrunk(enlarged(PICTURE[None], 4), 4) - PICTURE).abs().max() < 2e-3


def test_a_recipe_makes_it_again():
    made = upscale(PICTURE, "cat", factor=3, seed=2, method="sample", steps=2, model=source())
    again = upscale(PICTURE, model=source(), **made.recipe["arguments"])
    assert torch.equal(again.images, made.images) and made.recipe["command"] == "upscale"


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"factor": 1}, "factor must be an integer from 2 to 16"),
        ({"factor": 2.5}, "factor"),
        ({"method": "magic"}, "magic"),
        ({"noise": -1}, "noise"),
        ({"spacing": "karras"}, "spacing"),
        ({"method": "sample", "sampler": "dpm_adaptive"}, "cannot be steered"),
        ({"picture": torch.zeros(3, 2, 3000)}, "at most 4096"),
        ({"model": latent()}, "latents"),
    ],
)
def test_what_cannot_work_is_refused(changes, message):
    picture = changes.pop("picture", PICTURE)
    with pytest.raises(ValueError, match=message):
        prepare(picture, **{"model": source(), **changes})
