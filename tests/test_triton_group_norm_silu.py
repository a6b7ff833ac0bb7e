"""The Triton kernels of group_norm_silu and its gradient: their values, interpreted or on a GPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import group_norm_cases as cases
from conftest import HALF_AND_SINGLE, assert_accurate

pytest.importorskip("triton", reason="Triton is not installed: pip install triton")
from fastdiff import backend, ops
from fastdiff.kernels import group_norm_silu, group_norm_silu_backward
from fastdiff.kernels import group_norm_silu_plan as plan
from triton_code import INTERPRETED, device

LAYOUTS = ("contiguous", "channels_last")
HOW = ("whole", "streamed")


@pytest.fixture(params=HOW)
def how(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A program for each group; or tiles so small that each group has several, in waves of one or two units."""
    if request.param == "streamed":
        monkeypatch.setattr(plan, "WHOLE", dict.fromkeys(plan.WHOLE, 0))
        monkeypatch.setattr(plan, "TILE", dict.fromkeys(plan.TILE, 128))
        monkeypatch.setattr(plan, "WAVE_BYTES", 1500)
    plan.plan.cache_clear()
    yield request.param
    plan.plan.cache_clear()


def draw(shape: tuple[int, ...], groups: int, dtype: torch.dtype, **wanted: object) -> cases.Inputs:
    """Drawn inputs, on the device."""
    made = cases.inputs(shape, groups, dtype, torch.Generator().manual_seed(0), **wanted)
    return cases.Inputs(*(t.to(device()) if isinstance(t, Tensor) else t for t in made))


def check(given: cases.Inputs) -> Tensor:
    """Values, statistics and layout of what launch makes; returns y."""
    x = given.x
    y, summed, mean, rstd = group_norm_silu.launch(*given.arguments())
    assert (y.dtype, y.shape, y.stride()) == (x.dtype, x.shape, x.stride())
    if given.residual is None:
        assert summed.numel() == 0
    else:  # the interpreter truncates to bfloat16
        near = torch.finfo(x.dtype).eps if INTERPRETED and x.dtype == torch.bfloat16 else 0.0
        torch.testing.assert_close(summed, x + given.residual, rtol=near, atol=0)
        assert summed.stride() == x.stride()
        given = given._replace(x=summed, residual=None)
    plain = cases.composition(given.to(x.dtype))[1]
    assert_accurate(y, cases.exact(given)[1], plain)
    if y.numel():
        wide = given.x.double() if given.add is None else given.x.double() + broadcast(given.add, given.x)
        wide = wide.reshape(len(x), given.num_groups, -1)
        near = 1e-7 * wide.abs().amax().item()
        torch.testing.assert_close(mean.double(), wide.mean(-1), rtol=1e-6, atol=near)
        deviation = (wide.var(-1, correction=0) + given.eps).rsqrt()
        torch.testing.assert_close(rstd.double(), deviation, rtol=1e-5, atol=0)
    return y


def broadcast(vector: Tensor, like: Tensor) -> Tensor:
    return vector.double().reshape(*vector.shape, *(1,) * (like.dim() - 2))


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("options", cases.OPTIONS)
def test_device_options(options: str, how: str) -> None:
    """Every option, in every dtype where a group is a program; the layouts and dtypes of vectors take turns."""
    number = list(cases.OPTIONS).index(options)
    for i, dtype in enumerate(HALF_AND_SINGLE if how == "whole" else [HALF_AND_SINGLE[number % 3]]):
        turn = (number + i) % 2
        vectors = torch.float32 if turn else dtype
        check(draw((1, 10, 7, 5), 2, dtype, options=options, layout=LAYOUTS[turn], vectors=vectors))


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("number", range(len(cases.SHAPES)))
def test_device_shapes(number: int) -> None:
    """Values and gradients, in one layout and the other by turns."""
    shape, groups = cases.SHAPES[number]
    given = draw(shape, groups, torch.float32, layout=LAYOUTS[number % 2])
    check(given)
    check_gradients(given)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_device_groups_that_share_a_program(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole and streamed; the last program has fewer groups, and a tile ends within a group's channels."""
    given = draw((1, 9, 3, 3), 3, torch.float32, layout=layout, options="all")
    for whole, bc, bp in ((True, 8, 16), (False, 4, 8)):
        monkeypatch.setattr(plan, "tiling", lambda *_: plan.Tiling(whole, 2, bc, 0, bp, 4))  # noqa: B023
        plan.plan.cache_clear()
        check(given)
        check_gradients(given)
    plan.plan.cache_clear()


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_device_units_finished_one_after_the_other(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Larger than a wave: no other is collected before one is finished."""
    monkeypatch.setattr(plan, "WHOLE", dict.fromkeys(plan.WHOLE, 0))
    monkeypatch.setattr(plan, "TILE", dict.fromkeys(plan.TILE, 128))
    monkeypatch.setattr(plan, "WAVE_BYTES", 600)
    plan.plan.cache_clear()
    given = draw((2, 10, 7, 5), 2, torch.float32, layout=layout, options="all")
    for backward in (False, True):
        _, wave, waves, ahead, *_ = plan.plan_for(given.x, 2, backward=backward).schedule
        assert (wave, ahead) == (1, 0) and waves >= 2
    check(given)
    check_gradients(given)
    plan.plan.cache_clear()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("means", [(1000.0,) * 4, (0.0, 1e4, -1e4, 0.0), (1e4, 0.0, 0.0, 0.0)], ids=str)
def test_device_far_from_zero(means: tuple[float, ...], layout: str, how: str) -> None:
    """Also channels of one group that lie far apart, wherever the kernel takes its bearings."""
    given = draw((1, 4, 11, 13), 1, torch.float32)
    x = given.x + torch.tensor(means, device=given.x.device).view(1, 4, 1, 1)
    check(given._replace(x=cases.LAYOUTS[layout](x)))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_device_nan_stays_in_its_group(layout: str, how: str) -> None:
    given = draw((2, 4, 5, 9), 2, torch.float32, layout=layout, options="residual")
    clean = group_norm_silu.launch(*given.arguments())[0]
    for bad in (torch.nan, torch.inf):
        given.x[1, 3, 3, 3] = bad
        y = group_norm_silu.launch(*given.arguments())[0]
        assert y[1, 2:].isnan().all()
        assert torch.equal(y[0], clean[0]) and torch.equal(y[1, :2], clean[1, :2])


def test_device_odd_offset_and_repeats(how: str) -> None:
    """The same bits again, and nearly so off any alignment."""
    given = draw((1, 8, 7, 9), 2, torch.float16, options="all")
    grad = torch.empty_like(given.x).normal_()
    moved = given._replace(x=cases.odd_offset(given.x), residual=cases.odd_offset(given.residual))
    first, again, shifted = (forward_and_backward(g, grad) for g in (given, given, moved))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    for a, b in zip(first, shifted, strict=True):  # other accesses, so another order of the sums
        torch.testing.assert_close(a, b, rtol=2e-3, atol=2e-3)


def forward_and_backward(given: cases.Inputs, grad: Tensor) -> tuple[Tensor, ...]:
    y, summed, mean, rstd = group_norm_silu.launch(*given.arguments())
    return y, summed, *group_norm_silu_backward.launch(*given.backward_arguments(grad, mean, rstd))


def check_gradients(given: cases.Inputs) -> None:
    """Every gradient the op makes on this backend, by the criterion."""
    grad = torch.empty_like(given.x).normal_(generator=torch.Generator(device()).manual_seed(1))
    inputs = given.requiring_grad()
    with backend.use("triton"):
        assert backend.select("group_norm_silu_backward", given.x.device.type, given.x.dtype) == "triton"
        common = {n: getattr(inputs, n) for n in ("add", "scale", "shift", "activation")}
        affine = (inputs.num_groups, inputs.weight, inputs.bias, inputs.eps)
        if inputs.residual is None:
            outputs, grads = (inputs.x, ops.group_norm_silu(inputs.x, *affine, **common)), (None, grad)
        else:
            outputs = ops.add_group_norm_silu(inputs.x, inputs.residual, *affine, **common)
            grads = (grad.flip(0), grad)
        found = cases.gradients(outputs, inputs, grads)
    exact, composed = cases.exact_gradients(given, grads), cases.composed_gradients(given, grads)
    for name, gradient in found.items():
        assert_accurate(gradient, exact[name], composed[name])


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("options", ["plain", "bias", "all", "all-gelu", "all-none"])
def test_device_gradients(options: str, how: str) -> None:
    number = list(cases.OPTIONS).index(options)
    for i, dtype in enumerate(HALF_AND_SINGLE if how == "whole" else [torch.float32]):
        layout = LAYOUTS[(number + i) % 2]
        if dtype == torch.bfloat16 and "all" in options:
            options = "affine"  # the sum that the interpreter truncates is another point than the truth's
        check_gradients(draw((1, 10, 7, 5), 2, dtype, options=options, layout=layout))


def test_device_opcheck() -> None:
    """test_gpu.py runs all of the checks."""
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    given = draw((2, 4, 3, 3), 2, torch.float32, options="all", layout="channels_last")
    _, _, mean, rstd = group_norm_silu.launch(*given.arguments())
    op = torch.ops.fastdiff.group_norm_silu.triton
    torch.library.opcheck(op, given.requiring_grad().arguments(), test_utils=checks)
    arguments = given.backward_arguments(torch.ones_like(given.x), mean, rstd)
    op = torch.ops.fastdiff.group_norm_silu_backward.triton
    torch.library.opcheck(op, arguments, test_utils=checks)
