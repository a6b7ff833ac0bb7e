"""Steering: the sampler meets a model whose estimates are corrected, whatever its kind and however it is called."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import fastdiff
from fastdiff.apps.settings import Settings
from fastdiff.apps.source import Native
from fastdiff.apps.steering import Steered
from fastdiff.plan import Plan
from fastdiff.predictions import PREDICTIONS
from fastdiff.samplers import SAMPLERS
from tiny_model import tiny_model

SHAPE = (2, 3, 16, 16)
COARSE = torch.rand((1, 3, 4, 4), generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture(scope="module")
def source() -> Native:
    return Native(tiny_model())


def shrinks(denoised, x, level):
    """Made to shrink to COARSE: affine in denoised."""
    return denoised + F.interpolate(COARSE - F.avg_pool2d(denoised, 4), scale_factor=4)


def sampled(source, model, plan, **changes):
    options = {"sampler": plan, "conditioning": source.conditioning(["cat", "brick"]), "seed": [1, 2]}
    return fastdiff.sample(model, changes.pop("x", SHAPE), **options | changes)


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m", "heun", "restart", "unipc"])
def test_a_correction_that_changes_nothing_changes_nothing(source, sampler):
    plan = Settings(steps=6, sampler=sampler).plan(source)
    guidance = fastdiff.Guidance(2.0, source.conditioning([None, None]))
    plain = sampled(source, source, plan, guidance=guidance)
    same = sampled(
        source, Steered(source, plan, lambda denoised, x, level: denoised), plan, guidance=guidance
    )
    assert torch.allclose(plain, same, atol=2e-4 * float(plain.abs().max()))


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_the_result_obeys_what_is_known_under_guidance_too(source, sampler):
    plan = Settings(steps=5, sampler=sampler).plan(source)
    guidance = fastdiff.Guidance(3.0, source.conditioning([None, None]))
    made = sampled(source, Steered(source, plan, shrinks), plan, guidance=guidance)
    assert torch.allclose(F.avg_pool2d(made, 4), COARSE.expand(2, -1, -1, -1), atol=2e-3)


@pytest.mark.parametrize("prediction", sorted(PREDICTIONS))
def test_every_prediction_is_read_and_written_back(prediction):
    plan = Plan.build(
        SAMPLERS["euler"], fastdiff.schedules.karras(0.1, 10.0).levels(4), prediction=prediction
    )
    seen = []

    def correct(denoised, x, level):
        seen.append((x, level))
        return torch.full_like(denoised, 0.25)

    def model(x, t):
        return 0.1 * x

    made = fastdiff.sample(Steered(model, plan, correct), 10 * torch.ones(SHAPE), sampler=plan)
    assert torch.allclose(made, torch.full(SHAPE, 0.25), atol=1e-5)
    assert [level for _, level in seen] == [row.level for row in plan.rows]
    assert torch.allclose(seen[0][0], 10 * torch.ones(SHAPE))  # the sampler's x, not the scaled input


def test_a_run_that_starts_part_way_steers_the_shortened_plan(source):
    plan = Settings(steps=8, sampler="heun").plan(source).start_at(0.5)
    picture = torch.zeros(SHAPE)
    made = sampled(source, Steered(source, plan, shrinks), plan, x=picture, strength=1.0)
    assert torch.allclose(F.avg_pool2d(made, 4), COARSE.expand(2, -1, -1, -1), atol=1e-4)


def test_another_plan_is_refused(source):
    plan, other = (Settings(steps=steps, spacing="karras").plan(source) for steps in (5, 7))
    with pytest.raises(ValueError, match="none of the plan's"):
        sampled(source, Steered(source, plan, shrinks), other)


def test_an_adaptive_plan_is_refused(source):
    with pytest.raises(ValueError, match="cannot be steered"):
        Steered(source, Settings(sampler="dpm_adaptive").plan(source), shrinks)


def test_latents_are_refused_unless_the_correction_is_for_them(source):
    class Latents(Native):
        exact = False

    latent, plan = Latents(source.net), Settings(steps=2).plan(source)
    with pytest.raises(ValueError, match="works on latents"):
        Steered(latent, plan, shrinks)
    Steered(latent, plan, shrinks, latents=True)
