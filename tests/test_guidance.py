"""Classifier-free guidance, its interval and its rescaling."""

from __future__ import annotations

import pytest
import torch

import fastdiff
from fastdiff import Guidance, ops, schedules
from solver_step_cases import INDEX, make_table

KARRAS = schedules.karras(0.1, 10.0)
COND, UNCOND = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.25, 0.5, -1.0])


def model(x, t, *, shift, sizes=None):
    if sizes is not None:
        sizes.append(len(x))
    return (x + 3 * shift[:, None]) / (1 + t[:, None]) + shift[:, None]


def guided(scale, low=0.0, high=float("inf"), rescale=0.0):
    """The same by hand: the guided denoiser as a model of its own."""

    def call(x, t):
        cond, uncond = model(x, t, shift=COND), model(x, t, shift=UNCOND)
        mixed = uncond + scale * (cond - uncond)
        if rescale:
            back = mixed * (cond.std(1, keepdim=True) / mixed.std(1, keepdim=True))
            mixed = rescale * back + (1 - rescale) * mixed
        return mixed if low <= t[0] <= high else cond

    return call


def run(call, **changes):
    options = {
        "schedule": KARRAS,
        "steps": 7,
        "prediction": "sample",
        "seed": 1,
        "sampler": "dpmpp_2m",
    } | changes
    return fastdiff.sample(call, (3, 40), **options)


@pytest.mark.parametrize("doubled", [True, False])
@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5, 7.5, -1.0])
@pytest.mark.parametrize("rescale", [0.0, 0.7, 1.0])
def test_guidance_equals_a_guided_model(scale, rescale, doubled):
    guidance = Guidance(scale, {"shift": UNCOND}, rescale=rescale, doubled=doubled)
    result = run(model, conditioning={"shift": COND}, guidance=guidance)
    torch.testing.assert_close(result, run(guided(scale, rescale=rescale)), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("doubled", [True, False])
def test_outside_its_interval_the_model_runs_once_and_unguided(doubled):
    sizes = []
    guidance = Guidance(3.0, {"shift": UNCOND}, interval=(0.5, 4.0), doubled=doubled)
    result = run(model, conditioning={"shift": COND, "sizes": sizes}, guidance=guidance)
    torch.testing.assert_close(result, run(guided(3.0, 0.5, 4.0)), rtol=2e-5, atol=2e-5)
    inside = sum(0.5 <= level.sigma <= 4.0 for level in KARRAS.levels(7)[:-1])
    assert 0 < inside < 7
    assert sorted(sizes) == ([3] * (7 - inside) + [6] * inside if doubled else [3] * (7 + inside))


def test_scale_one_costs_nothing():
    sizes = []
    run(model, conditioning={"shift": COND, "sizes": sizes}, guidance=Guidance(1.0))
    assert sizes == [3] * 7


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("prediction", "schedule"), [("v", schedules.cosine_betas()), ("flow", schedules.flow()), ("edm", KARRAS)]
)
def test_guidance_works_in_every_prediction_type_and_half_precision(prediction, schedule, dtype):
    def halved(x, t, shift):
        return (x + shift[:, None].to(x.dtype)) / 2

    options = {"schedule": schedule, "prediction": prediction, "dtype": dtype}
    guidance = Guidance(2.0, {"shift": UNCOND})
    result = run(halved, conditioning={"shift": COND}, guidance=guidance, **options)
    expected = run(halved, conditioning={"shift": UNCOND + 2.0 * (COND - UNCOND)}, **options)
    tolerance = 1e-4 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(result.float(), expected.float(), rtol=tolerance, atol=tolerance)


def test_shared_conditioning_is_passed_as_it_is():
    seen = []

    def call(x, t, shift, mode):
        seen.append(mode)
        return model(x, t, shift=shift)

    run(call, conditioning={"shift": COND, "mode": "fast"}, guidance=Guidance(2.0, {"shift": UNCOND}))
    assert set(seen) == {"fast"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": float("nan")}, "finite"),
        ({"scale": 2.0, "rescale": 1.5}, "between 0 and 1"),
        ({"scale": 2.0, "interval": (3.0, 1.0)}, "low < high"),
    ],
)
def test_bad_guidance_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Guidance(**arguments)


def test_conditioning_that_cannot_be_doubled_is_refused_with_the_way_out():
    with pytest.raises(ValueError, match="doubled=False"):
        run(model, conditioning={"shift": COND}, guidance=Guidance(2.0, {"shift": None}))


def test_rescaling_leaves_a_constant_output_alone():
    table = make_table(g=3.0, g_uncond=-2.0)
    gain = ops.rescale_gain(torch.ones(2, 9), torch.ones(2, 9), table, INDEX, rescale=1.0)
    assert torch.equal(gain, torch.ones(2))


def test_nested_conditioning_is_doubled_too():
    def call(x, t, added):
        assert added["name"] == "sdxl"
        return model(x, t, shift=added["embeds"][0])

    cond, uncond = ({"embeds": [shift], "name": "sdxl"} for shift in (COND, UNCOND))
    result = run(call, conditioning={"added": cond}, guidance=Guidance(3.0, {"added": uncond}))
    plain = run(model, conditioning={"shift": COND}, guidance=Guidance(3.0, {"shift": UNCOND}))
    assert torch.equal(result, plain)


def test_numbers_for_images_can_be_rescaled():
    cond, table = torch.tensor([1.0, 2.0]), make_table(g=3.0, g_uncond=-2.0)
    gain = ops.rescale_gain(cond, cond - 1, table, INDEX, rescale=0.5)
    assert torch.equal(gain, torch.ones(2))
