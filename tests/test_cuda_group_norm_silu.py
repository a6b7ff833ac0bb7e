"""group_norm_silu's CUDA kernels on the CPU, in every variant, on an emulated chip of 4 SMs: values and gradients, the
same bits in any order of threads, and what is refused. test_gpu_group_norm.py has what only a GPU can show."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import emulated
import emulated_run
from conftest import HALF_AND_SINGLE, assert_accurate
from group_norm_cases import (
    LAYOUTS,
    OPTIONS,
    SHAPES,
    Inputs,
    composed_gradients,
    composition,
    exact,
    exact_gradients,
    inputs,
)

pytestmark = pytest.mark.usefixtures("poisoned")
A, B, C, D = VARIANTS = (1, 2, 3, 4)
PLANES = ("contiguous", "channels_last")
SHAPE = (2, 16, 12, 14)
forward = torch.ops.fastdiff.group_norm_silu
backward = torch.ops.fastdiff.group_norm_silu_backward


@emulated_run.is_the_run
def test_emulated() -> None:
    assert emulated_run.outcomes(__file__).keys() == {"passed"}


@pytest.fixture
def chip() -> Iterator[ctypes.CDLL]:
    """The emulated kernels, through which a variant can be forced and the chip changed; put back afterwards."""
    emulated_run.load()
    loaded = ctypes.CDLL(emulated_run.LIBRARY)
    yield loaded
    loaded.fastdiff_force_variant(0)
    loaded.emulated_chip(4, 64 * 1024, 1 << 20)
    loaded.emulated_cooperative(ctypes.c_int64(2**62))
    loaded.fastdiff_forget_devices()


def draw(
    shape: tuple[int, ...], groups: int, dtype: torch.dtype, options: str = "all", layout: str = "contiguous",
    **more: Any,
) -> tuple[Inputs, Tensor]:  # fmt: skip
    """The inputs, and a gradient of the result."""
    generator = torch.Generator().manual_seed(0)
    given = inputs(shape, groups, dtype, generator, options=options, layout=layout, **more)
    return given, LAYOUTS[layout](torch.randn(shape, generator=generator).to(dtype))


def run(given: Inputs, grad: Tensor) -> tuple[Tensor, ...]:
    """y, summed, mean, rstd, dx, sums."""
    made = forward.default(*given.arguments())
    return *made, *backward.default(*given.backward_arguments(grad, *made[2:]))


def close(actual: Tensor, exact: Tensor, scale: float) -> None:
    error = (actual.double() - exact).abs().max().item() if exact.numel() else 0.0
    assert error <= 3e-5 * scale + 1e-6, (error, scale)


def check(given: Inputs, grad: Tensor) -> None:
    dtype = given.x.dtype
    y, summed, _, _, dx, sums = run(given, grad)
    assert y.stride() == dx.stride() == given.x.stride()
    assert_accurate(y, exact(given)[1], composition(given.to(dtype))[1].to(dtype))
    if given.residual is not None:
        assert torch.equal(summed, given.x + given.residual)
    right, plain = exact_gradients(given, (None, grad)), composed_gradients(given, (None, grad))
    assert_accurate(dx, right["x"], plain["x"].to(dtype))
    if dx.numel() == 0:
        assert not sums.any()
        return
    pixels = tuple(range(2, dx.dim()))
    if "shift" in right:
        close(sums[0], right["shift"], right["shift"].abs().max().item())
    if "add" in right:
        close(sums[2], right["add"], right["x"].abs().sum(pixels).max().item())
    if "scale" in right and given.weight is not None and given.bias is not None:
        weight, bias = given.weight.double(), given.bias.double()
        most = (weight * sums[1]).abs().max().item() + (bias * sums[0]).abs().max().item()
        close(weight * sums[1] + bias * sums[0], right["scale"], most)


def check_any_order(chip: ctypes.CDLL, given: Inputs, grad: Tensor) -> None:
    """The same bits with threads and blocks forward, backward and shuffled."""
    results = []
    for which in (0, 1, 2):
        with emulated.order(chip, which):
            results.append(run(given, grad))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def variant(
    chip: ctypes.CDLL, shape: tuple[int, ...], groups: int, layout: str, dtype: torch.dtype, gradient: bool
) -> int:
    """The one that is taken."""
    sizes = [ctypes.c_int64(n) for n in (shape[0], shape[1], groups, torch.Size(shape[2:]).numel())]
    element = HALF_AND_SINGLE.index(dtype)
    return int(chip.fastdiff_group_norm_variant(0, *sizes, layout == "channels_last", element, gradient))


@emulated_run.needs_the_run
@pytest.mark.parametrize("wanted", VARIANTS, ids="ABCD")
@pytest.mark.parametrize("layout", PLANES)
def test_device_every_variant(layout: str, wanted: int, chip: ctypes.CDLL) -> None:
    chip.fastdiff_force_variant(wanted)
    taken = set()
    for i, (shape, groups) in enumerate([*SHAPES, ((1, 16, 40, 24), 2), ((2, 48, 9, 8), 4)]):
        dtype = torch.float32 if (i + wanted) % 2 else torch.bfloat16
        check(*draw(shape, groups, dtype, layout=layout))
        if 0 not in shape:
            taken.add(variant(chip, shape, groups, layout, dtype, False))
    assert wanted in taken


@emulated_run.needs_the_run
@pytest.mark.parametrize("wanted", [0, D], ids=["its own", "D"])
def test_device_odd_offsets(wanted: int, chip: ctypes.CDLL) -> None:
    chip.fastdiff_force_variant(wanted)
    for i, (shape, groups) in enumerate([*SHAPES, ((1, 16, 40, 24), 2), ((2, 48, 9, 8), 4)]):
        check(*draw(shape, groups, torch.float32 if i % 2 else torch.bfloat16, layout="odd_offset"))


@emulated_run.needs_the_run
@pytest.mark.parametrize("layout", PLANES)
def test_device_every_option(layout: str, chip: ctypes.CDLL) -> None:
    for i, options in enumerate(OPTIONS):
        chip.fastdiff_force_variant((B, D)[i % 2] if layout == "contiguous" else (A, C)[i % 2])
        check(*draw(SHAPE, 4, torch.float16, options, layout))
    chip.fastdiff_force_variant(0)
    check(*draw(SHAPE, 4, torch.bfloat16, "all", layout, vectors=torch.float32))


@emulated_run.needs_the_run
@pytest.mark.parametrize("wanted", VARIANTS, ids="ABCD")
@pytest.mark.parametrize("layout", PLANES)
def test_device_numerics(layout: str, wanted: int, chip: ctypes.CDLL) -> None:
    """A mean far from 0, what is not finite, padding of another level than the rest, and a constant image."""

    def accurate(given: Inputs) -> None:
        assert_accurate(forward.default(*given.arguments())[0], exact(given)[1], composition(given)[1])

    chip.fastdiff_force_variant(wanted)
    accurate(draw((2, 32, 24, 24), 4, HALF_AND_SINGLE[wanted % 3], "affine", layout, mean=1000.0)[0])
    given, grad = draw((2, 32, 24, 24), 4, torch.float32, "affine", layout)
    given.x[0, 9, 3, 5], given.x[1, 31, 0, 0] = float("inf"), float("nan")
    y, _, _, _, dx, _ = run(given, grad)
    for t in (y, dx):
        groups = t.unflatten(1, (4, 8)).isfinite().flatten(2).all(2)
        assert groups.tolist() == [[True, False, True, True], [True, True, True, False]]
    given.x.fill_(0)[..., 12:, :] = 1000.0 + torch.randn(12, 24)
    accurate(given)
    given.x.fill_(3.0)
    accurate(given)


@emulated_run.needs_the_run
@pytest.mark.parametrize("wanted", VARIANTS, ids="ABCD")
@pytest.mark.parametrize("layout", PLANES)
def test_device_repeats(layout: str, wanted: int, chip: ctypes.CDLL) -> None:
    chip.fastdiff_force_variant(wanted)
    check_any_order(chip, *draw((2, 24, 11, 16), 3, torch.bfloat16, layout=layout))


@emulated_run.needs_the_run
@pytest.mark.parametrize(
    ("layout", "gradient", "kib"),
    [("contiguous", False, 48), ("contiguous", True, 96), ("channels_last", False, 96), ("channels_last", True, 192)],
)  # fmt: skip
def test_device_one_team_in_l2(layout: str, gradient: bool, kib: int, chip: ctypes.CDLL) -> None:
    """So small that a team fits and the next one does not: each phase is applied before the next is gathered."""
    chip.fastdiff_force_variant(C)
    chip.emulated_chip(4, 64 * 1024, kib << 10)
    chip.fastdiff_forget_devices()
    shape, groups = (3, 16, 40, 24), 2
    assert variant(chip, shape, groups, layout, torch.float32, gradient) == C
    given, grad = draw(shape, groups, torch.float32, layout=layout)
    check(given, grad)
    check_any_order(chip, given, grad)


@emulated_run.needs_the_run
@pytest.mark.parametrize("most", [0, 1])
def test_device_a_shared_chip(most: int, chip: ctypes.CDLL) -> None:
    """Where blocks cannot wait for each other, two launches do the work."""
    chip.emulated_cooperative(ctypes.c_int64(most))
    chip.fastdiff_forget_devices()
    for layout, wanted in (("contiguous", B), ("channels_last", C)):
        chip.fastdiff_force_variant(wanted)
        check(*draw(SHAPE, 4, torch.float32, layout=layout))


X = torch.ones(2, 4, 3, 3)
REFUSED = {
    "float32, float16 and bfloat16": {"x": X.double()},
    "divide": {"groups": 3},
    "activation": {"activation": 3},
    "weight and bias": {"weight": torch.ones(3)},
    "add, scale and shift": {"add": torch.ones(4)},
    "residual must be like x": {"residual": X.half()},
    "planar or channels-last": {"x": torch.ones(2, 3, 4, 3).transpose(1, 2)},
    "must be dense": {"x": torch.ones(2, 4, 3, 6)[..., ::2]},
}


@emulated_run.needs_the_run
@pytest.mark.parametrize("words", REFUSED)
def test_device_refusals(words: str, chip: ctypes.CDLL) -> None:
    given = {"x": X, "groups": 2, "weight": None, "add": None, "activation": 1, "residual": None} | REFUSED[
        words
    ]
    x, groups, weight, add, activation, residual = given.values()
    with pytest.raises(RuntimeError, match=words):
        forward.default(x, groups, weight, None, 1e-5, add, None, None, activation, residual)
