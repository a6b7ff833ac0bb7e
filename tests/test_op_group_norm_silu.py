"""group_norm_silu on every backend: values, layouts, special inputs and errors. See _options and _backward for more."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from conftest import HALF_AND_SINGLE, assert_accurate, threads
from fastdiff import ops
from group_norm_cases import SHAPES, draw


def affine(channels, dtype, generator):
    return tuple(draw((channels,), dtype, generator, mean, 0.5) for mean in (1.0, 0.0))


def composition(x, groups, weight=None, bias=None, eps=1e-5):
    if x.numel() == 0:
        return x.clone()
    return F.silu(torch.group_norm(x, groups, weight, bias, eps))


def check(x, groups, weight=None, bias=None, eps=1e-5):
    wide = [None if t is None else t.double() for t in (weight, bias)]
    narrow = [None if t is None else t.to(x.dtype) for t in (weight, bias)]
    actual = ops.group_norm_silu(x, groups, weight, bias, eps)
    assert actual.dtype == x.dtype
    assert_accurate(actual, composition(x.double(), groups, *wide, eps), composition(x, groups, *narrow, eps))
    return actual


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", HALF_AND_SINGLE)
@pytest.mark.parametrize(("shape", "groups"), SHAPES, ids=str)
def test_values(everywhere, shape, groups, dtype, generator):
    check(draw(shape, dtype, generator, 0.5, 2.0), groups, *affine(shape[1], dtype, generator))


@pytest.mark.parametrize(("shape", "groups"), SHAPES, ids=str)
def test_float64(shape, groups, generator):
    check(
        draw(shape, torch.float64, generator, 0.5, 2.0), groups, *affine(shape[1], torch.float64, generator)
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("given", [(True, True), (True, False), (False, True)], ids=str)
def test_affine_in_float32_or_missing(everywhere, dtype, given, generator):
    weight, bias = affine(12, torch.float32, generator)
    check(draw((2, 12, 8, 8), dtype, generator), 3, weight if given[0] else None, bias if given[1] else None)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", HALF_AND_SINGLE)
def test_mean_1000_deviation_1(everywhere, memory_format, dtype, generator):
    # E[x^2] - E[x]^2 in float32 would be off by about 0.5 here
    x = draw((2, 16, 48, 48), dtype, generator, 1000.0).to(memory_format=memory_format)
    check(x, 4, *affine(16, dtype, generator))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("means", [(0.0, 1000.0, -1000.0, 0.0), (1e4, 0.0, 0.0, 0.0)], ids=str)
def test_channels_of_a_group_that_lie_far_apart(everywhere, memory_format, means, generator):
    # a kernel that takes its bearings from the first elements must notice
    x = draw((1, 4, 70, 70), torch.float32, generator) + torch.tensor(means).view(1, 4, 1, 1)
    check(x.to(memory_format=memory_format), 1)
    x = draw((1, 4, 70, 70), torch.float32, generator, scale=1e-3)
    x[:, 0] += 100.0
    check(x.to(memory_format=memory_format), 2)


def test_float16_does_not_overflow(everywhere, generator):
    check(draw((1, 8, 32, 32), torch.float16, generator, 0.0, 8000.0), 2)


def test_constant_groups_and_single_elements(everywhere):
    x = torch.full((2, 4, 5, 5), 3.0)
    weight, bias = torch.ones(4), torch.tensor([0.0, 1.0, -1.0, 2.0])
    expected = F.silu(bias).view(1, 4, 1, 1).expand_as(x)
    torch.testing.assert_close(ops.group_norm_silu(x, 2, weight, bias), expected, rtol=0, atol=1e-4)
    single = torch.tensor([[3.0, -7.0, 0.5, 0.0]])
    torch.testing.assert_close(
        ops.group_norm_silu(single, 4, weight, bias), F.silu(bias)[None], rtol=0, atol=1e-4
    )


def test_a_group_of_a_million(everywhere, generator):
    check(draw((1, 4, 512, 512), torch.float32, generator, 5.0), 1)


@pytest.mark.parametrize("dtype", HALF_AND_SINGLE)
def test_layouts(everywhere, dtype, generator):
    x = draw((3, 24, 10, 6), dtype, generator)
    weight, bias = affine(24, dtype, generator)
    expected = ops.group_norm_silu(x, 4, weight, bias)
    near = {"rtol": 2e-2 if dtype == torch.bfloat16 else 2e-3, "atol": 2e-3}
    channels_last = x.to(memory_format=torch.channels_last)
    actual = ops.group_norm_silu(channels_last, 4, weight, bias)
    assert actual.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(actual, expected, **near)
    padded = torch.empty(x.numel() + 1, dtype=dtype)[1:].view(x.shape).copy_(x)  # odd offset
    assert torch.equal(ops.group_norm_silu(padded, 4, weight, bias), expected)
    wide = torch.cat([x, x], dim=3)[..., :6]  # sliced
    assert torch.equal(ops.group_norm_silu(wide, 4, weight, bias), expected)
    expanded = ops.group_norm_silu(x[:1].expand(3, -1, -1, -1), 4, weight, bias)
    torch.testing.assert_close(expanded, expected[:1].expand(3, -1, -1, -1), **near)
    turned = x.permute(0, 1, 3, 2).contiguous().permute(0, 1, 3, 2)  # dense, in no named format
    torch.testing.assert_close(ops.group_norm_silu(turned, 4, weight, bias), expected, **near)
    shuffled = x.permute(2, 0, 1, 3).contiguous().permute(1, 2, 0, 3)  # the batch is not outermost
    torch.testing.assert_close(ops.group_norm_silu(shuffled, 4, weight, bias), expected, **near)
    volume = x.view(3, 24, 5, 2, 6).to(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(ops.group_norm_silu(volume, 4, weight, bias).view_as(x), expected, **near)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_nan_stays_in_its_group(everywhere, memory_format, bad, generator):
    x = draw((2, 8, 9, 9), torch.float32, generator).to(memory_format=memory_format)
    clean = ops.group_norm_silu(x, 2)
    x[1, 5, 3, 3] = bad
    actual = ops.group_norm_silu(x, 2)
    assert torch.isnan(actual[1, 4:]).all()
    assert torch.equal(actual[0], clean[0]) and torch.equal(actual[1, :4], clean[1, :4])


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_repeats_and_threads_are_bit_equal(memory_format, generator):
    x = draw((2, 64, 40, 40), torch.float32, generator).to(memory_format=memory_format)
    expected = ops.group_norm_silu(x, 8)
    for count in (1, 2, 3):
        with threads(count):
            assert torch.equal(ops.group_norm_silu(x, 8), expected)


def test_large_values_follow_silu(everywhere):
    scale = torch.tensor([1e-3, 1.0, 30.0, 88.0, 200.0, 1e30])
    x = torch.tensor([-1.0, 1.0]).expand(1, 6, 2).contiguous()
    expected = composition(x.double(), 6, scale.double())
    actual = ops.group_norm_silu(x, 6, scale)
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((torch.zeros(2, 6, 3), 4), ValueError, "6 channels do not divide into 4 groups"),
        ((torch.zeros(2, 6, 3), 0), ValueError, "0 groups"),
        ((torch.zeros(6), 2), ValueError, r"must be \[B, C, ...\]"),
        ((torch.zeros(2, 6).int(), 2), TypeError, "x is int32"),
        ((torch.zeros(2, 6), 2, torch.zeros(5)), ValueError, r"weight has shape \(5,\)"),
        ((torch.zeros(2, 6), 2, None, torch.zeros(6).half()), TypeError, "bias is float16: pass float32"),
        ((torch.zeros(2, 6), 2, torch.zeros(6, device="meta")), ValueError, "weight is on meta"),
    ],
)
def test_errors(arguments, error, words):
    with pytest.raises(error, match=words):
        ops.group_norm_silu(*arguments)
