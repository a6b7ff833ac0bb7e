"""Inpainting: what the mask keeps, what it leaves alone, and diffusers' formula."""

from __future__ import annotations

import itertools

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler

import fastdiff
from fastdiff import DynamicThreshold, Guidance, Inpaint, backend, schedules
from fastdiff.levels import DiscreteTime, clean
from fastdiff.plan import Plan
from fastdiff.samplers import SAMPLERS

KARRAS = schedules.karras(0.1, 10.0)
SHAPE = (2, 3, 8, 6)


def drawn(shape=SHAPE, seed=3):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


IMAGE = drawn()
SHIFT = torch.tensor([0.2, -0.4]).reshape(2, 1, 1, 1)
MASK = (drawn(SHAPE[2:], 4) > 0).float()


def model(x, t):
    return x / (1 + t.reshape(-1, *[1] * (x.dim() - 1)) ** 2) + 0.1 * x.roll(1, -1)


def run(**changes):
    options = {"schedule": KARRAS, "steps": 6, "prediction": "sample", "seed": 1} | changes
    return fastdiff.sample(options.pop("model", model), options.pop("x", SHAPE), **options)


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_every_sampler_keeps_what_is_known_and_repaints_the_rest(sampler):
    result = run(sampler=sampler, inpaint=Inpaint(IMAGE, MASK))
    kept = (MASK == 0).expand(SHAPE)
    assert torch.equal(result[kept], IMAGE[kept])
    assert result.isfinite().all() and not torch.equal(result[~kept], IMAGE[~kept])
    plain, repainted = run(sampler=sampler), run(sampler=sampler, inpaint=Inpaint(IMAGE, torch.ones(1)))
    assert torch.equal(plain, repainted)


def test_the_adaptive_sampler_too():
    result = run(sampler="dpm_adaptive", inpaint=Inpaint(IMAGE, MASK))
    kept = (MASK == 0).expand(SHAPE)
    assert torch.equal(result[kept], IMAGE[kept])


def by_hand(steps, noise, sigmas):
    """Euler with what diffusers' inpainting pipelines do after each step."""
    x = noise * sigmas[0]
    for here, there in itertools.pairwise(sigmas):
        denoised = model(x, torch.full((len(x),), here))
        x = x + (there - here) * (x - denoised) / here
        x = (1 - MASK) * (IMAGE + there * noise) + MASK * x
    return x


def test_it_is_the_pipelines_formula():
    sigmas = [level.sigma for level in KARRAS.levels(6)]
    noise = drawn(seed=9)
    result = run(sampler="euler", x=noise * sigmas[0], inpaint=Inpaint(IMAGE, MASK, noise))
    torch.testing.assert_close(result, by_hand(6, noise, sigmas), rtol=1e-5, atol=1e-5)


def test_diffusers_loop():
    scheduler = DPMSolverMultistepScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", lower_order_final=True
    )
    scheduler.set_timesteps(8)
    process = DiscreteTime(scheduler.alphas_cumprod.numpy())
    levels = [process.at(s) if s else clean(process) for s in scheduler.sigmas.tolist()]
    plan = Plan.build(SAMPLERS["dpmpp_2m"], levels)
    noise = drawn(seed=9)

    def predicted(x, t=None):
        return torch.tanh(x)

    latents = noise
    for i, t in enumerate(scheduler.timesteps):  # as StableDiffusionInpaintPipeline.__call__ has it
        latents = scheduler.step(predicted(latents), t, latents, return_dict=False)[0]
        proper = IMAGE
        if i + 1 < len(scheduler.timesteps):
            proper = scheduler.add_noise(IMAGE, noise, scheduler.timesteps[i + 1 : i + 2])
        latents = (1 - MASK) * proper + MASK * latents
    result = fastdiff.sample(predicted, noise, sampler=plan, inpaint=Inpaint(IMAGE, MASK, noise))
    torch.testing.assert_close(result, latents, rtol=1e-4, atol=1e-4)


def test_the_noise_is_the_starting_points_own():
    noise = fastdiff.sample(lambda x, t: x, SHAPE, schedule=KARRAS, steps=1, prediction="sample", seed=1)
    start = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(noise, start * KARRAS.levels(1)[0].sigma)
    given = run(inpaint=Inpaint(IMAGE, MASK, start))
    assert torch.equal(run(inpaint=Inpaint(IMAGE, MASK)), given)


@pytest.mark.parametrize("doubled", [True, False])
def test_with_guidance_a_threshold_and_half_precision(doubled):
    def conditioned(x, t, shift):
        return model(x, t.to(x.dtype)) + shift.to(x.dtype)

    guidance = Guidance(3.0, {"shift": SHIFT / 2}, rescale=0.5, doubled=doubled)
    options = {
        "model": conditioned,
        "conditioning": {"shift": SHIFT},
        "guidance": guidance,
        "threshold": DynamicThreshold(0.9),
        "dtype": torch.bfloat16,
        "sampler": "heun",
    }
    result = run(x=drawn().float(), **options, inpaint=Inpaint(IMAGE, MASK > 0))
    kept = (MASK == 0).expand(SHAPE)
    assert torch.equal(result[kept], IMAGE[kept])
    assert torch.equal(
        run(x=drawn(), **options), run(x=drawn(), **options, inpaint=Inpaint(IMAGE, MASK * 0 + 1))
    )


def test_image_to_image_and_other_layouts():
    x = IMAGE.to(memory_format=torch.channels_last)
    result = run(x=x, strength=0.5, inpaint=Inpaint(IMAGE[:1], MASK))
    kept = (MASK == 0).expand(SHAPE)
    assert torch.equal(result[kept], IMAGE[:1].expand(SHAPE)[kept])
    plain = run(x=IMAGE, strength=0.5, inpaint=Inpaint(IMAGE[:1], MASK))
    torch.testing.assert_close(result, plain)


def test_gradients_reach_the_known_image():
    image = IMAGE.double().requires_grad_()

    def inpainted(image):
        start = drawn(seed=5).double() * 10
        return run(x=start, steps=3, inpaint=Inpaint(image, MASK * 0.5, start), differentiable=True)

    assert torch.equal(
        inpainted(image),
        run(
            x=drawn(seed=5).double() * 10,
            steps=3,
            inpaint=Inpaint(IMAGE, MASK * 0.5, drawn(seed=5).double() * 10),
        ),
    )
    torch.autograd.gradcheck(lambda i: inpainted(i).sum((1, 2, 3)), image)


@pytest.mark.parametrize("name", ["reference", "auto"])
@pytest.mark.parametrize("worst", [float("nan"), float("inf")])
def test_what_the_model_makes_of_the_known_part_need_not_be_finite(name, worst):
    def broken(x, t):
        return torch.where(MASK == 0, worst, model(x, t))

    with backend.use(name):
        result = run(model=broken, sampler="dpmpp_2m", inpaint=Inpaint(IMAGE, MASK))
        nothing = run(model=lambda x, t: x * worst, inpaint=Inpaint(IMAGE, torch.zeros(1)))
    kept = (MASK == 0).expand(SHAPE)
    assert torch.equal(result[kept], IMAGE[kept]) and torch.equal(nothing, IMAGE)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: Inpaint(IMAGE, 1.0), TypeError, "mask of Inpaint is float"),
        (lambda: Inpaint(IMAGE.int(), MASK), TypeError, "int32: pass floats"),
        (lambda: run(inpaint=Inpaint(IMAGE[:, :, :3], MASK)), ValueError, "image to inpaint has shape"),
        (lambda: run(inpaint=(IMAGE, MASK)), TypeError, r"fastdiff.Inpaint\(image, mask\)"),
    ],
)
def test_what_does_not_fit_is_refused(make, error, words):
    with pytest.raises(error, match=words):
        make()
