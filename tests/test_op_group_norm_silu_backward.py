"""The gradients of group_norm_silu: the explicit formula, the kernels, and what autograd makes of them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from conftest import HALF_AND_SINGLE, assert_accurate, instruction_sets, threads
from fastdiff import backend, ops
from fastdiff.ops._group_norm_silu_grad import OVERLOADS as BACKWARD
from group_norm_cases import (
    ANYTHING,
    EVERYTHING,
    LAYOUTS,
    OPTIONS,
    SHAPES,
    Inputs,
    any_inputs,
    composed_gradients,
    draw,
    exact_gradients,
    gradients,
    inputs,
    running_on,
    through_ops,
)


def check(case: Inputs, generator: torch.Generator, *, together: bool = False) -> None:
    """Every gradient within the criterion, through the sum too where there is one, and in its tensor's dtype.
    together: the vectors' as one, since of one vector's few values the composition's error may be 0 by luck."""
    x, case = case.x, case.requiring_grad()
    grad = draw(x.shape, x.dtype, generator)
    grads = (draw(x.shape, x.dtype, generator) if case.residual is not None else None, grad)
    actual = gradients(through_ops(case), case, grads)
    exact, composed = exact_gradients(case, grads), composed_gradients(case, grads)
    for name, tensor in case.tensors().items():
        assert actual[name].dtype == tensor.dtype and actual[name].shape == tensor.shape
    vectors = [name for name in actual if name not in ("x", "residual")]
    if together and vectors:
        for found in actual, exact, composed:
            found["vectors"] = torch.cat([found.pop(name).flatten() for name in vectors])
    for name in actual:
        assert_accurate(actual[name], exact[name], composed[name])


@pytest.mark.parametrize("activation", ["silu", "gelu", "none"])
@pytest.mark.parametrize(("shape", "groups"), SHAPES, ids=str)
def test_the_explicit_formula_in_float64(shape, groups, activation, generator):
    # .triton runs the reference on float64, behind the op's own gradient
    op = torch.ops.fastdiff.group_norm_silu.triton
    for options in (activation,), (*EVERYTHING, activation):
        case = inputs(shape, groups, torch.float64, generator, options=options).requiring_grad()
        y, summed, _, _ = op(*case.arguments())
        grads = (
            draw(shape, y.dtype, generator) if "residual" in options else None,
            draw(shape, y.dtype, generator),
        )
        actual = gradients((summed, y), case, grads)
        torch.testing.assert_close(actual, exact_gradients(case, grads), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("options", OPTIONS)
def test_gradcheck(options, generator):
    case = inputs((2, 4, 3), 2, torch.float64, generator, options=options).requiring_grad()
    names = list(case.tensors())

    def function(*tensors):
        given = case._replace(**dict(zip(names, tensors, strict=True)))
        return [t for t in torch.ops.fastdiff.group_norm_silu.triton(*given.arguments())[:2] if t.numel()]

    assert torch.autograd.gradcheck(function, list(case.tensors().values()))
    assert torch.autograd.gradgradcheck(function, list(case.tensors().values()))


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", HALF_AND_SINGLE)
@pytest.mark.parametrize("options", OPTIONS)
def test_options(everywhere, options, dtype, generator):
    for layout in ("contiguous", "channels_last"):
        check(inputs((2, 12, 5, 7), 3, dtype, generator, options=options, layout=layout), generator)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", HALF_AND_SINGLE)
@pytest.mark.parametrize(("shape", "groups"), [s for s in SHAPES if s[0] != (4, 10)], ids=str)
def test_shapes(everywhere, shape, groups, dtype, generator):
    for layout in ("contiguous", "channels_last"):
        for options in ("affine", "all"):
            check(inputs(shape, groups, dtype, generator, options=options, layout=layout), generator)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_and_single_precision_vectors(everywhere, layout, generator):
    for dtype in (torch.bfloat16, torch.float32):
        case = inputs(
            (3, 16, 6, 10), 4, dtype, generator, options="all", layout=layout, vectors=torch.float32
        )
        check(case, generator)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", HALF_AND_SINGLE)
def test_mean_1000_deviation_1(everywhere, layout, dtype, generator):
    check(inputs((2, 16, 24, 24), 4, dtype, generator, mean=1000.0, layout=layout), generator)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_large_groups(everywhere, layout, generator):
    check(inputs((1, 16, 64, 64), 1, torch.float32, generator, options="all", layout=layout), generator)
    check(inputs((1, 8, 256, 256), 1, torch.float32, generator, options="all", layout=layout), generator)
    check(inputs((2, 64, 48, 40), 8, torch.bfloat16, generator, options="all", layout=layout), generator)


def test_float16_does_not_overflow(everywhere, generator):
    case = inputs((1, 8, 32, 32), 2, torch.float16, generator)
    check(case._replace(x=case.x * 3000), generator)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_groups_of_one_value_have_no_gradient(everywhere, layout, generator):
    for shape, groups in (((3, 6), 6), ((2, 3, 4, 4), 3)):
        x = LAYOUTS[layout](torch.ones(shape)).requires_grad_()
        y = ops.group_norm_silu(x, groups)
        (grad,) = torch.autograd.grad(y, x, torch.ones(shape))
        torch.testing.assert_close(grad, torch.zeros(shape), rtol=0, atol=1e-3)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("where", ["x", "grad"])
def test_nan_stays_in_its_group(everywhere, layout, where, generator):
    case = inputs((2, 8, 9, 5), 2, torch.float32, generator, options="all", layout=layout)
    grad = draw((2, 8, 9, 5), torch.float32, generator)
    clean = gradients(through_ops(leaf := case.requiring_grad()), leaf, (None, grad))
    spoilt = (case.x if where == "x" else grad).clone()
    spoilt[1, 5, 3, 3] = torch.nan
    case, grad = (case._replace(x=spoilt), grad) if where == "x" else (case, spoilt)
    actual = gradients(through_ops(leaf := case.requiring_grad()), leaf, (None, grad))
    assert torch.isnan(actual["x"][1, 4:]).all()
    for name in ("x", "residual", "add"):
        assert torch.equal(actual[name][0], clean[name][0])
        assert torch.equal(actual[name][1, :4], clean[name][1, :4])
    for name in ("scale", "shift"):
        assert torch.equal(actual[name][0], clean[name][0])


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_repeats_and_threads_are_bit_equal(layout, generator):
    case = inputs((2, 64, 40, 40), 8, torch.float32, generator, options="all", layout=layout)
    grad = draw((2, 64, 40, 40), torch.float32, generator)

    def run() -> dict[str, torch.Tensor]:
        leaf = case.requiring_grad()
        return gradients(through_ops(leaf), leaf, (None, grad))

    expected = run()
    for count in (1, 2, 3):
        with threads(count):
            assert all(torch.equal(found, expected[name]) for name, found in run().items())


def test_a_tensor_used_twice(everywhere, generator):
    x = draw((2, 6, 5, 4), torch.float32, generator).requires_grad_()
    vector = draw((2, 6), torch.float32, generator).requires_grad_()

    def function(x, vector):
        first = ops.group_norm_silu(x, 2, add=vector, scale=vector)
        summed, second = ops.add_group_norm_silu(x, x, 3, add=vector, shift=vector)
        return first * x + summed * second

    actual = torch.autograd.grad(function(x, vector).sum(), (x, vector))
    with backend.use("reference"):
        wide = [t.detach().double().requires_grad_() for t in (x, vector)]
        exact = torch.autograd.grad(function(*wide).sum(), wide)
    torch.testing.assert_close(actual, tuple(t.float() for t in exact), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("wanted", [(name,) for name in ("x", *EVERYTHING)], ids=str)
def test_only_what_is_asked_for(everywhere, wanted, generator):
    case = inputs((2, 6, 5, 4), 3, torch.float32, generator, options="all")
    leaf = case.requiring_grad()
    alone = case._replace(**{name: getattr(leaf, name) for name in wanted})
    all_of_them = gradients(through_ops(leaf), leaf, (None, torch.ones(2, 6, 5, 4)))
    through_ops(alone)[1].sum().backward()
    for name in wanted:
        torch.testing.assert_close(getattr(alone, name).grad, all_of_them[name])


def test_the_sum_alone(everywhere, generator):
    case = inputs((2, 6, 5, 4), 3, torch.float32, generator, options="all").requiring_grad()
    grad = draw((2, 6, 5, 4), torch.float32, generator)
    summed, _ = through_ops(case)
    summed.backward(grad)
    assert torch.equal(case.x.grad, grad) and torch.equal(case.residual.grad, grad)
    assert case.weight.grad is None or not case.weight.grad.any()


@settings(max_examples=400, deadline=None, derandomize=True)
@given(place=st.sampled_from(["reference", *instruction_sets()]), **ANYTHING)
def test_anything(place, **drawn):
    assume(drawn["groups"] * drawn["per_group"] >= 4)
    with running_on(place):
        check(any_inputs(**drawn), torch.Generator().manual_seed(0), together=True)


@pytest.mark.parametrize("overload", ["cpp", "triton"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_opcheck_of_the_backward(overload, layout, generator):
    case = inputs((2, 8, 4, 3), 4, torch.float32, generator, options="all", layout=layout)
    grad = LAYOUTS[layout](draw((2, 8, 4, 3), torch.float32, generator))
    _, _, mean, rstd = torch.ops.fastdiff.group_norm_silu(*case.arguments())
    torch.library.opcheck(BACKWARD[overload], case.backward_arguments(grad, mean, rstd))
