"""What group_norm_silu takes around its norm: each option alone and all together, on every backend."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import HALF_AND_SINGLE, assert_accurate, instruction_sets, threads
from fastdiff import ops
from group_norm_cases import (
    ANYTHING,
    LAYOUTS,
    OPTIONS,
    SHAPES,
    Inputs,
    any_inputs,
    composition,
    exact,
    inputs,
    running_on,
    through_ops,
)

EXTRA = [name for name in OPTIONS if name not in ("plain", "affine", "weight", "bias")]


def check(case: Inputs) -> None:
    """The op within the criterion, in x's dtype and memory format."""
    x, (summed, y) = case.x, through_ops(case)
    assert y.dtype == x.dtype and summed.dtype == x.dtype
    assert y.is_contiguous() or not x.is_contiguous()
    assert y.movedim(1, -1).is_contiguous() or not x.movedim(1, -1).is_contiguous()
    composed = composition(case.to(x.dtype))
    assert torch.equal(summed, composed[0])
    assert_accurate(y, exact(case)[1], composed[1])


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", [*HALF_AND_SINGLE, torch.float64])
@pytest.mark.parametrize("options", EXTRA)
def test_options(everywhere, options, dtype, generator):
    if dtype == torch.float64 and everywhere != "reference":
        pytest.skip("the kernels take no float64")
    for layout in ("contiguous", "channels_last"):
        check(inputs((2, 12, 5, 7), 3, dtype, generator, options=options, layout=layout))


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", HALF_AND_SINGLE)
@pytest.mark.parametrize(("shape", "groups"), SHAPES, ids=str)
def test_all_options_on_every_shape(everywhere, shape, groups, dtype, generator):
    for layout in ("contiguous", "channels_last"):
        check(inputs(shape, groups, dtype, generator, options="all", layout=layout, mean=0.5))


@pytest.mark.parametrize("dtype", HALF_AND_SINGLE)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_options_in_every_layout(everywhere, layout, dtype, generator):
    check(inputs((3, 16, 6, 10), 4, dtype, generator, options="all", layout=layout))
    check(inputs((3, 16, 6, 5, 2), 4, dtype, generator, options="all", layout=layout, vectors=torch.float32))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_one_vector_may_be_half_precision_and_another_single(everywhere, layout, generator):
    case = inputs((2, 8, 6, 6), 2, torch.bfloat16, generator, options="all", layout=layout)
    for name in ("weight", "add", "scale", "shift"):
        check(case._replace(**{name: getattr(case, name).float()}))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_vectors_that_are_not_contiguous(everywhere, layout, generator):
    case = inputs((2, 8, 6, 6), 2, torch.float32, generator, options="all", layout=layout)
    expected = through_ops(case)[1]
    both = torch.cat([case.scale, case.shift], dim=1)  # as a Linear makes them
    scale, shift = both.chunk(2, dim=1)
    apart = case._replace(scale=scale, shift=shift, weight=torch.stack([case.weight] * 2, 1)[:, 0])
    assert torch.equal(through_ops(apart)[1], expected)
    one = case.add[:1].expand(2, -1)
    torch.testing.assert_close(
        through_ops(case._replace(add=one))[1], through_ops(case._replace(add=one.clone()))[1]
    )


def test_a_residual_in_another_layout(everywhere, generator):
    case = inputs((2, 8, 6, 6), 2, torch.float32, generator, options="residual")
    for layout in ("channels_last", "sliced", "expanded"):
        check(case._replace(residual=LAYOUTS[layout](case.residual)))
        check(case._replace(x=LAYOUTS[layout](case.x)))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_an_embedding_that_dwarfs_the_image(everywhere, layout, generator):
    # the statistics must be those of x + add: where add differs within a group, its spread is the group's
    case = inputs((2, 8, 24, 24), 2, torch.float32, generator, options="add", layout=layout)
    check(case._replace(add=case.add * 1000))
    check(case._replace(add=torch.full((2, 8), 1000.0)))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_groups_of_one_value_and_of_equal_values(everywhere, layout, generator):
    # their variance is 0: what remains of x is its rounding error times 1/sqrt(eps), about 316
    lone = inputs((2, 6), 6, torch.float32, generator, options="all")
    equal = inputs((2, 6, 4, 5), 3, torch.float32, generator, options="all")
    equal = equal._replace(
        **{n: LAYOUTS[layout](torch.full_like(getattr(equal, n), 3.0)) for n in ("x", "residual")},
        add=torch.full((2, 6), 0.1),
    )
    for case in (lone, equal):
        torch.testing.assert_close(through_ops(case)[1].double(), exact(case)[1], rtol=0, atol=1e-3)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("name", ["x", "residual", "add", "scale", "shift"])
def test_nan_stays_where_it_came_in(everywhere, layout, name, generator):
    case = inputs((2, 8, 9, 5), 2, torch.float32, generator, options="all", layout=layout)
    clean = through_ops(case)[1]
    spoilt = getattr(case, name).clone()
    spoilt[1, 5] = torch.nan
    actual = through_ops(case._replace(**{name: spoilt}))[1]
    reached = (
        slice(5, 6) if name in ("scale", "shift") else slice(4, 8)
    )  # after the norm: the channel; before: the group
    assert torch.isnan(actual[1, reached]).all()
    rest = torch.ones(2, 8, dtype=torch.bool)
    rest[1, reached] = False
    assert torch.equal(actual[rest], clean[rest])


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_repeats_and_threads_are_bit_equal(layout, generator):
    case = inputs((2, 64, 40, 40), 8, torch.float32, generator, options="all", layout=layout)
    expected = through_ops(case)
    for count in (1, 2, 3):
        with threads(count):
            assert all(map(torch.equal, through_ops(case), expected))


@pytest.mark.parametrize("activation", ["silu", "gelu", "none"])
def test_large_values_follow_the_activation(everywhere, activation):
    size = torch.tensor([1e-3, 1.0, 3.0, 6.0, 30.0, 88.0, 200.0, 1e30])
    x = torch.tensor([-1.0, 1.0]).expand(1, 8, 2).contiguous()
    case = Inputs(x, 8, weight=size, activation=activation)
    torch.testing.assert_close(through_ops(case)[1].double(), exact(case)[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"activation": "relu"}, ValueError, "activation is 'relu': choose one of none, silu, gelu"),
        ({"add": torch.zeros(6)}, ValueError, r"add has shape \(6,\): it must be \(2, 6\)"),
        ({"scale": torch.zeros(2, 6, 1)}, ValueError, r"scale has shape \(2, 6, 1\)"),
        ({"shift": torch.zeros(2, 6).half()}, TypeError, "shift is float16: pass float32"),
        ({"scale": 2.0}, TypeError, "scale is a float"),
        ({"shift": torch.zeros(2, 6, device="meta")}, ValueError, "shift is on meta"),
    ],
)
def test_errors(changes, error, words):
    for _ in range(2):  # the second call may take another way to the kernel
        with pytest.raises(error, match=words):
            ops.group_norm_silu(torch.zeros(2, 6, 3), 2, **changes)
        ops.group_norm_silu(torch.zeros(2, 6, 3), 2)


def test_errors_of_the_residual():
    x = torch.zeros(2, 6, 3)
    with pytest.raises(ValueError, match=r"residual has shape \(2, 6, 4\): it must be \(2, 6, 3\)"):
        ops.add_group_norm_silu(x, torch.zeros(2, 6, 4), 2)
    with pytest.raises(TypeError, match="residual is bfloat16: pass float32"):
        ops.add_group_norm_silu(x, x.bfloat16(), 2)


@settings(max_examples=1000, deadline=None, derandomize=True)
@given(place=st.sampled_from(["reference", *instruction_sets()]), **ANYTHING)
def test_anything(place, **drawn):
    with running_on(place):
        check(any_inputs(**drawn))
