"""Static and dynamic thresholding."""

from __future__ import annotations

import pytest
import torch

import fastdiff
from fastdiff import DynamicThreshold, ops, schedules
from solver_step_cases import INDEX, make_table

KARRAS = schedules.karras(0.1, 10.0)


def bound(images, quantile, most=torch.inf):
    """What a run computes where the model's output alone is the denoised image."""
    x, table = torch.zeros_like(images), make_table(q=1.0, w=1.0)
    return ops.dynamic_bound(x, images, table, INDEX, quantile=quantile, most=most)


@pytest.mark.parametrize("quantile", [0.0, 0.1, 0.5, 0.9, 0.995, 1.0])
@pytest.mark.parametrize("count", [1, 2, 7, 1000])
def test_the_bound_is_the_quantile(quantile, count):
    images = torch.randn(3, count, generator=torch.Generator().manual_seed(0)) * 5
    expected = torch.quantile(images.abs(), quantile, dim=1).clamp(1.0, 6.0)
    torch.testing.assert_close(bound(images, quantile, 6.0), expected)


def test_images_beyond_what_torch_quantile_takes():
    image = torch.linspace(-4, 4, 2**24 + 9)[None]
    assert bound(image, 0.995)[0] == pytest.approx(4 * 0.995, rel=1e-3)


@pytest.mark.parametrize(
    "arguments", [{"quantile": -0.1}, {"quantile": 1.1}, {"most": 0.5}, {"most": float("nan")}]
)
def test_bad_thresholds_are_refused(arguments):
    with pytest.raises(ValueError, match="must"):
        DynamicThreshold(**arguments)


def test_sampling_with_a_threshold_equals_a_thresholded_model():
    def model(x, t):
        return x / (1 + t[:, None] ** 2) + 2.0 * torch.sin(x)

    def thresholded(x, t):
        raw = model(x, t)
        bound = torch.quantile(raw.abs(), 0.9, dim=1, keepdim=True).clamp(1.0, 2.0)
        return raw.clamp(-bound, bound) / bound

    options = {"schedule": KARRAS, "steps": 9, "prediction": "sample", "seed": 0}
    result = fastdiff.sample(model, (3, 64), threshold=DynamicThreshold(0.9, most=2.0), **options)
    torch.testing.assert_close(result, fastdiff.sample(thresholded, (3, 64), **options), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("clip", [1.0, (-0.5, 2.0)])
def test_clipping_equals_a_clipped_model(clip):
    low, high = (-clip, clip) if isinstance(clip, float) else clip
    options = {"schedule": KARRAS, "steps": 9, "prediction": "sample", "seed": 0}
    result = fastdiff.sample(lambda x, t: x, (3, 64), clip=clip, **options)
    torch.testing.assert_close(result, fastdiff.sample(lambda x, t: x.clamp(low, high), (3, 64), **options))
    assert result.min() >= low and result.max() <= high


@pytest.mark.parametrize("clip", [0.0, -1.0, (1.0, 1.0), (2.0, -2.0), float("nan")])
def test_bad_bounds_are_refused(clip):
    with pytest.raises(ValueError, match="clip must be"):
        fastdiff.sample(lambda x, t: x, (2, 2), clip=clip, schedule=KARRAS, prediction="sample")


@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (2, 0, 4)])
def test_images_without_pixels(shape):
    assert torch.equal(bound(torch.empty(shape), 0.995), torch.ones(shape[0]))


def test_the_smallest_value_may_be_the_bound():
    options = {"schedule": KARRAS, "steps": 3, "prediction": "sample", "seed": 0}
    lowest = fastdiff.sample(lambda x, t: x, (3, 64), threshold=DynamicThreshold(0.0), **options)
    clipped = fastdiff.sample(lambda x, t: x, (3, 64), clip=1.0, **options)
    torch.testing.assert_close(lowest, clipped)  # it is below 1, where the bound ends


def test_gradients_reach_the_bound():
    x = torch.linspace(-3, 2.6, 12, dtype=torch.float64).reshape(1, 12).requires_grad_()  # no two as large
    weight = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    options = {
        "schedule": schedules.karras(0.5, 2.0),
        "steps": 3,
        "prediction": "sample",
        "differentiable": True,
    }

    def run(x, weight):
        return fastdiff.sample(lambda x, t: weight * x, x, threshold=DynamicThreshold(0.8), **options)

    assert torch.autograd.gradcheck(run, (x, weight))
