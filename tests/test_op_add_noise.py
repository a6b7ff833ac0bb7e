"""add_noise on every backend: values, layouts, gradients, and its registration in PyTorch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import HALF_AND_SINGLE, assert_accurate, threads
from fastdiff import backend, ops

SHAPES = [(2, 3), (3, 4, 17), (2, 4, 64, 64), (1, 3, 5, 7, 9), (5, 1), (1, 1, 1, 1), (0, 3, 4), (2, 0)]


def draw(shape, dtype, generator, count=2):
    return [torch.randn(shape, generator=generator).to(dtype) for _ in range(count)]


def composition(x0, noise, alpha, sigma):
    shape = (-1, *(1,) * (x0.dim() - 1))
    return alpha.to(x0.dtype).view(shape) * x0 + sigma.to(x0.dtype).view(shape) * noise


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", HALF_AND_SINGLE)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values(everywhere, shape, dtype, generator):
    x0, noise = draw(shape, dtype, generator)
    alpha, sigma = torch.rand(2, shape[0], generator=generator)
    exact = composition(x0.double(), noise.double(), alpha.double(), sigma.double())
    actual = ops.add_noise(x0, noise, alpha, sigma)
    assert actual.dtype == dtype
    assert_accurate(actual, exact, composition(x0, noise, alpha, sigma))


def test_float64(generator):
    x0, noise = draw((3, 4, 5), torch.float64, generator)
    alpha, sigma = torch.rand(2, 3, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(ops.add_noise(x0, noise, alpha, sigma), composition(x0, noise, alpha, sigma))


@pytest.mark.parametrize("dtype", HALF_AND_SINGLE)
def test_numbers_and_single_values(everywhere, dtype, generator):
    x0, noise = draw((3, 4, 5), dtype, generator)
    expected = ops.add_noise(x0, noise, torch.full((3,), 0.25), torch.full((3,), 0.5))
    for alpha, sigma in [(0.25, 0.5), (torch.tensor(0.25), torch.tensor([0.5]))]:
        assert torch.equal(ops.add_noise(x0, noise, alpha, sigma), expected)


@pytest.mark.parametrize("dtype", HALF_AND_SINGLE)
def test_the_number_of_threads_does_not_matter(dtype, generator):
    x0, noise = draw((3, 4, 150, 151), dtype, generator)
    alpha, sigma = torch.rand(2, 3, generator=generator)
    expected = ops.add_noise(x0, noise, alpha, sigma)
    for count in (2, 3, 7):
        with threads(count):
            assert torch.equal(ops.add_noise(x0, noise, alpha, sigma), expected)


@pytest.mark.parametrize("dtype", HALF_AND_SINGLE)
def test_layouts(everywhere, dtype, generator):
    base, other = draw((4, 6, 9, 11), dtype, generator)
    alpha, sigma = torch.rand(2, 4, generator=generator)
    expected = ops.add_noise(base, other, alpha, sigma)
    channels_last = base.to(memory_format=torch.channels_last)
    actual = ops.add_noise(channels_last, other, alpha, sigma)
    assert actual.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(actual, expected)
    padded = torch.empty(4 * 6 * 9 * 11 + 1, dtype=dtype)[1:].view(base.shape).copy_(base)  # odd offset
    assert torch.equal(ops.add_noise(padded, other, alpha, sigma), expected)
    sliced = slice(1, 8, 3)
    actual = ops.add_noise(base[..., sliced], other[..., sliced], alpha, sigma)
    assert torch.equal(actual, expected[..., sliced])
    expanded = ops.add_noise(base[:1].expand(4, -1, -1, -1), other, alpha, sigma)
    assert torch.equal(expanded, ops.add_noise(base[:1].repeat(4, 1, 1, 1), other, alpha, sigma))


def test_nan_stays_in_its_element(everywhere):
    x0, noise = torch.zeros(2, 100), torch.zeros(2, 100)
    x0[0, 3], noise[1, 99] = torch.nan, torch.inf
    bad = ~torch.isfinite(ops.add_noise(x0, noise, 0.5, 0.5))
    assert bad.nonzero().tolist() == [[0, 3], [1, 99]]


@pytest.mark.parametrize("name", ["reference", "auto"])
def test_gradients(name, generator):
    dtype = torch.float64 if name == "reference" else torch.float32
    tensors = [t.requires_grad_() for t in draw((3, 4, 5), dtype, generator)]
    tensors += [torch.rand(3, dtype=dtype, generator=generator).requires_grad_() for _ in range(2)]
    with backend.use(name):
        if dtype == torch.float64:
            torch.autograd.gradcheck(ops.add_noise, tensors)
            torch.autograd.gradgradcheck(ops.add_noise, tensors)
        weight = torch.randn(3, 4, 5, generator=generator, dtype=dtype)
        actual = torch.autograd.grad((ops.add_noise(*tensors) * weight).sum(), tensors)
    expected = torch.autograd.grad((composition(*tensors) * weight).sum(), tensors)
    torch.testing.assert_close(actual, expected)


def test_the_same_tensor_twice(generator):
    (x,) = draw((2, 5), torch.float32, generator, 1)
    x.requires_grad_()
    (grad,) = torch.autograd.grad(ops.add_noise(x, x, 0.25, 0.5).sum(), x)
    torch.testing.assert_close(grad, torch.full_like(x, 0.75))


@pytest.mark.parametrize("overload", ["default", "triton"])
def test_opcheck(overload, generator):
    x0, noise = draw((2, 3, 4), torch.float32, generator)
    op = getattr(torch.ops.fastdiff.add_noise, overload)
    for levels in [(torch.rand(2), torch.rand(2)), (torch.rand(1), torch.rand(1).requires_grad_())]:
        torch.library.opcheck(op, (x0.requires_grad_(), noise.requires_grad_(), *levels))
    torch.library.opcheck(op, (x0.detach().half(), noise.detach().half(), torch.rand(2), torch.rand(1)))


def test_compile_export_and_vmap(generator):
    x0, noise = draw((2, 3, 8), torch.float32, generator)
    alpha, sigma = torch.rand(2, 2, generator=generator)
    expected = ops.add_noise(x0, noise, alpha, sigma)
    compiled = torch.compile(ops.add_noise, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x0, noise, alpha, sigma), expected)

    class Noise(torch.nn.Module):
        def forward(self, *tensors):
            return ops.add_noise(*tensors)

    exported = torch.export.export(Noise(), (x0, noise, alpha, sigma))
    assert torch.equal(exported.module()(x0, noise, alpha, sigma), expected)
    stack = torch.stack([x0, noise])
    batched = torch.vmap(ops.add_noise, in_dims=(0, 0, None, None))(stack, stack.flip(0), alpha, sigma)
    torch.testing.assert_close(batched[0], expected)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((torch.zeros(2, 3), torch.zeros(2, 4), 1.0, 1.0), ValueError, r"noise has shape \(2, 4\)"),
        ((torch.zeros(2, 3), torch.zeros(2, 3).half(), 1.0, 1.0), TypeError, "noise is float16"),
        ((torch.zeros(2, 3).long(), torch.zeros(2, 3), 1.0, 1.0), TypeError, "x0 is int64"),
        ((torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(3), 1.0), ValueError, r"alpha has shape \(3,\)"),
        ((torch.zeros(2, 3), torch.zeros(2, 3), 1.0, torch.zeros(2).long()), TypeError, "sigma is int64"),
        (([1.0], torch.zeros(2, 3), 1.0, 1.0), TypeError, "x0 is a list"),
        ((torch.zeros(2, 3), torch.zeros(2, 3, device="meta"), 1.0, 1.0), ValueError, "noise is on meta"),
    ],
)
def test_errors(arguments, error, words):
    with pytest.raises(error, match=words):
        ops.add_noise(*arguments)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    dtype=st.sampled_from(HALF_AND_SINGLE),
    offset=st.integers(0, 3),
    shared=st.booleans(),
)
def test_any_shape_and_offset(shape, dtype, offset, shared):
    generator = torch.Generator().manual_seed(sum(shape))
    numel = torch.Size(shape).numel()
    x0, noise = (
        torch.randn(numel + offset, generator=generator).to(dtype)[offset:].view(shape) for _ in "ab"
    )
    alpha, sigma = torch.rand(2, 1 if shared else shape[0], generator=generator)
    exact = composition(x0.double(), noise.double(), alpha.double(), sigma.double())
    assert_accurate(ops.add_noise(x0, noise, alpha, sigma), exact, composition(x0, noise, alpha, sigma))
