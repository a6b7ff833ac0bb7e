"""q_sample on every backend: values, layouts and errors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import HALF_AND_SINGLE, assert_accurate, threads
from fastdiff import counter, ops
from q_sample_cases import composition, images, twins

SHAPES = [(2, 3), (3, 4, 17), (2, 4, 64, 64), (1, 3, 5, 7, 9), (0, 3, 4), (2, 0)]


def check_given(shape, dtype, generator):
    x0, noise = images(shape, dtype, generator)
    alpha, sigma = torch.rand(2, shape[0], generator=generator)
    exact = composition(x0.double(), noise.double(), alpha.double(), sigma.double())
    plain = composition(x0, noise, alpha, sigma)
    made = ops.q_sample(x0, alpha, sigma, noise=noise, velocity=True)
    assert made.noise is noise
    assert torch.equal(made.x, ops.add_noise(x0, noise, alpha, sigma))
    for actual, e, p in zip((made.x, made.velocity), exact, plain, strict=True):
        assert actual.dtype == dtype
        assert_accurate(actual, e, p)
    assert ops.q_sample(x0, alpha, sigma, noise=noise).velocity is None


def check_drawn(drawing, shape, dtype, generator):
    (x0,) = images(shape, dtype, generator, 1)
    alpha, sigma = torch.rand(2, shape[0], generator=generator)
    if drawing == "generator":
        ours, theirs = twins(5)
        made = ops.q_sample(x0, alpha, sigma, generator=ours, velocity=True)
        expected = torch.randn(shape, generator=theirs, dtype=dtype)
        assert torch.equal(torch.rand(3, generator=ours), torch.rand(3, generator=theirs))
    else:
        seeds = torch.arange(shape[0]) + 9
        made = ops.q_sample(x0, alpha, sigma, seeds=seeds, stream=4, velocity=True)
        expected = counter.normal(seeds, torch.Size(shape[1:]).numel(), 4).to(dtype).view(shape)
    assert torch.equal(made.noise, expected)
    same = ops.q_sample(x0, alpha, sigma, noise=expected, velocity=True)
    assert torch.equal(made.x, same.x) and torch.equal(made.velocity, same.velocity)
    assert torch.equal(made.x, ops.add_noise(x0, expected, alpha, sigma))


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", HALF_AND_SINGLE)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_with_noise_given(everywhere, shape, dtype, generator):
    check_given(shape, dtype, generator)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", HALF_AND_SINGLE)
@pytest.mark.parametrize("shape", [*SHAPES, (3, 5, 50, 41)], ids=str)
@pytest.mark.parametrize("drawing", ["generator", "seeds"])
def test_drawn_noise_is_what_is_used(everywhere, drawing, shape, dtype, generator):
    check_drawn(drawing, shape, dtype, generator)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_float64(shape, generator):
    check_given(shape, torch.float64, generator)
    for drawing in ("generator", "seeds"):
        check_drawn(drawing, shape, torch.float64, generator)


@pytest.mark.parametrize("options", [{"seeds": [1, 2, 3, 4]}, {"generator": None}])
def test_layouts(everywhere, options, generator):
    base = torch.randn(4, 6, 39, 41, generator=generator)
    torch.manual_seed(3)
    expected = ops.q_sample(base, 0.5, 0.25, velocity=True, **options)
    padded = torch.empty(base.numel() + 1)[1:].view(base.shape).copy_(base)
    views = [
        base.contiguous(memory_format=torch.channels_last),
        padded,
        base.transpose(0, 1).clone().transpose(0, 1),
    ]
    for x0 in views:
        torch.manual_seed(3)
        made = ops.q_sample(x0, 0.5, 0.25, velocity=True, **options)
        for actual, wanted in zip(made, expected, strict=True):
            assert torch.equal(actual, wanted)
    assert made.x.shape == base.shape
    channels_last = ops.q_sample(views[0], 0.5, 0.25, velocity=True, **options)
    assert all(t.is_contiguous(memory_format=torch.channels_last) for t in channels_last)


@pytest.mark.parametrize(
    "drawn", [{"seeds": [1, 2, 3]}, {"noise": torch.randn(3, 4, 150, 151)}], ids=["drawn", "given"]
)
def test_the_number_of_threads_does_not_matter(drawn, generator):
    x0 = torch.randn(3, 4, 150, 151, generator=generator)
    expected = ops.q_sample(x0, 0.5, 0.25, velocity=True, **drawn)
    for count in (2, 3, 7):
        with threads(count):
            found = ops.q_sample(x0, 0.5, 0.25, velocity=True, **drawn)
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_nan_stays_in_its_element(everywhere):
    x0 = torch.zeros(2, 5000)
    x0[0, 3], x0[1, 4999] = torch.nan, torch.inf
    made = ops.q_sample(x0, 0.5, 0.5, generator=torch.Generator(), velocity=True)
    for t in (made.x, made.velocity):
        assert (~torch.isfinite(t)).nonzero().tolist() == [[0, 3], [1, 4999]]
    assert made.noise.isfinite().all()


@settings(max_examples=800, deadline=None, derandomize=True)
@given(
    shape=st.lists(st.integers(1, 7), min_size=1, max_size=5),
    dtype=st.sampled_from(HALF_AND_SINGLE),
    offset=st.integers(0, 3),
    alpha_shared=st.booleans(),
    sigma_shared=st.booleans(),
    exponent=st.integers(-8, 8),
)
def test_any_shape_offset_and_scale(shape, dtype, offset, alpha_shared, sigma_shared, exponent):
    generator = torch.Generator().manual_seed(sum(shape) + exponent)
    numel = torch.Size(shape).numel()
    flat = torch.randn(2, numel + offset, generator=generator)
    x0, noise = (
        (t * 2.0**e).to(dtype)[offset:].view(shape) for t, e in zip(flat, (exponent, 0), strict=True)
    )
    alpha, sigma = (
        torch.rand(1 if s else shape[0], generator=generator) for s in (alpha_shared, sigma_shared)
    )
    made = ops.q_sample(x0, alpha, sigma, noise=noise, velocity=True)
    assert torch.equal(ops.add_noise(x0, noise, alpha, sigma), made.x)
    exact = composition(x0.double(), noise.double(), alpha.double(), sigma.double())
    plain = composition(x0, noise, alpha, sigma)
    for actual, e, p in zip((made.x, made.velocity), exact, plain, strict=True):
        assert_accurate(actual, e, p)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"noise": torch.zeros(2, 3), "seeds": [1, 2]}, ValueError, "one of noise"),
        ({"generator": torch.Generator(), "seeds": [1, 2]}, ValueError, "one of noise"),
        ({"noise": torch.zeros(2, 4), "velocity": True}, ValueError, r"noise has shape \(2, 4\)"),
        ({"noise": torch.zeros(2, 3).half(), "velocity": True}, TypeError, "noise is float16"),
        ({"seeds": [1]}, ValueError, r"seeds has shape \(1,\)"),
        ({"seeds": [1, 2], "stream": "a"}, ValueError, "stream must be"),
        ({"alpha": torch.zeros(3)}, ValueError, r"alpha has shape \(3,\)"),
        ({"x0": torch.zeros(2, 3).long()}, TypeError, "x0 is int64"),
        ({"x0": [0.0]}, TypeError, "x0 is a list"),
    ],
)
def test_errors(options, error, words):
    arguments = {"x0": torch.zeros(2, 3), "alpha": 0.5, "sigma": 0.5} | options
    with pytest.raises(error, match=words):
        ops.q_sample(**arguments)
