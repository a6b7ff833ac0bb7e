"""The Triton kernels of dynamic_bound and rescale_gain: values against float64, and code."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import sass
from conftest import assert_accurate

pytest.importorskip("triton", reason="Triton is not installed: pip install triton")
from fastdiff import backend, ops, reference
from fastdiff.kernels import dynamic_bound, rescale_gain
from solver_step_cases import make_table
from triton_code import compiled, device, launches, needs_compiler

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
WEIGHTS = {"p": 1.3, "q": -0.7, "g": 2.0, "g_uncond": -1.0}


def tensors(shape: tuple[int, ...], dtype: torch.dtype, mean: float = 0.0) -> list[Tensor]:
    """x, output, uncond, gain."""
    generator = torch.Generator().manual_seed(3)
    images = [torch.randn(shape, generator=generator) * 3 + mean for _ in range(3)]
    images[1:] = [image.to(dtype) for image in images[1:]]
    return [t.to(device()) for t in (*images, torch.rand(shape[0], generator=generator) + 0.5)]


def row(**weights: float) -> tuple[Tensor, Tensor]:
    return make_table(**weights).to(device()), torch.tensor(1, device=device())


def wide(*values: Tensor | None) -> list[Tensor | None]:
    return [None if v is None else v.double() for v in values]


@pytest.mark.parametrize(
    "shape, quantiles",
    [((2, 4, 9, 7), (0.0, 0.5, 1.0)), ((2, 1), (0.3,)), ((1, 3, 40, 41), (0.995,)), ((1, 17_000), (0.995,))],
    ids=str,
)
def test_device_bound(shape: tuple[int, ...], quantiles: tuple[float, ...]) -> None:
    """Of a sample of one block, one element, several blocks and several programs; with both branches apart or in one
    output, and without guidance below a limit."""
    alone = WEIGHTS | {"g": 1.0, "g_uncond": 0.0}
    for quantile in quantiles:
        for dtype, weights in zip(DTYPES, (WEIGHTS, WEIGHTS, alone), strict=True):
            x, output, uncond, gain = tensors(shape, dtype)
            most = 5.0 if weights is alone else float("inf")
            given = {
                torch.float32: (output, uncond, gain),
                torch.float16: (torch.cat([output, uncond]), None, gain),
                torch.bfloat16: (output, None, None),
            }[dtype]
            table, index = row(**weights)
            found = dynamic_bound.launch(x, given[0], table, index, *given[1:], quantile, most)
            exact, composed = (
                reference.dynamic_bound(a, b, table, index, c, d, quantile, most)
                for a, b, c, d in (wide(x, *given), (x, *given))
            )
            assert_accurate(found, exact, composed)


@pytest.mark.parametrize("size", [300, 20_000])
def test_device_bound_specials(size: int) -> None:
    """NaN and Inf stay with their sample, equal values are counted as often as they occur, -0 is 0."""
    table, index = row(p=1.0)
    x = torch.randn(4, size, generator=torch.Generator().manual_seed(1)).round().to(device()) * 2
    x[0, size // 2], x[1, 7], x[2] = torch.nan, -torch.inf, -0.0
    for quantile in (0.3, 0.99995) if size < 1000 else (0.9,):
        found = dynamic_bound.launch(x, x, table, index, None, None, quantile, 1e9)
        expected = reference.dynamic_bound(x, x, table, index, None, None, quantile, 1e9)
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=0, equal_nan=True)


def test_device_bound_of_nothing() -> None:
    table, index = row(**WEIGHTS)
    for shape in ((3, 0), (0, 4)):
        x = torch.zeros(shape, device=device())
        assert torch.equal(dynamic_bound.launch(x, x, table, index, x, None, 0.9, 5.0), x.new_ones(shape[0]))


@pytest.mark.parametrize("mean", [0.0, 1000.0])
@pytest.mark.parametrize("shape", [(3, 4, 9, 7), (1, 3, 80, 81), (2, 3, 8192)], ids=str)
def test_device_gain(shape: tuple[int, ...], mean: float) -> None:
    table, index = row(g=3.5, g_uncond=-2.5)
    for dtype in DTYPES:
        _, output, uncond, _ = tensors(shape, dtype, mean)
        exact = reference.rescale_gain(output.double(), uncond.double(), table, index, 0.7)
        composed = reference.rescale_gain(output, uncond, table, index, 0.7)
        assert_accurate(rescale_gain.launch(output, uncond, table, index, 0.7), exact, composed)
        both = torch.cat([output, uncond])
        assert_accurate(rescale_gain.launch(both, None, table, index, 0.7), exact, composed)


def test_device_gain_of_samples_too_large_for_a_block_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs go round their chunks when there would be too many of these."""
    monkeypatch.setattr(rescale_gain, "MOST_CHUNKS", 2)
    table, index = row(g=3.5, g_uncond=-2.5)
    _, output, uncond, _ = tensors((2, 21_001), torch.float32, 100.0)
    exact = reference.rescale_gain(output.double(), uncond.double(), table, index, 0.7)
    composed = reference.rescale_gain(output, uncond, table, index, 0.7)
    assert_accurate(rescale_gain.launch(output, uncond, table, index, 0.7), exact, composed)


@pytest.mark.parametrize("size", [300, 9000])
def test_device_gain_specials(size: int) -> None:
    """1 for a constant guided sample and for one with NaN or Inf, which stay with their sample."""
    table, index = row(g=1.0, g_uncond=-1.0)
    output = torch.randn(4, size, generator=torch.Generator().manual_seed(2)).to(device())
    uncond = torch.zeros_like(output)
    uncond[0], uncond[1, 5], uncond[2, 9] = output[0], torch.nan, torch.inf
    found = rescale_gain.launch(output, uncond, table, index, 0.7)
    assert torch.equal(found[:3], torch.ones(3, device=device()))
    torch.testing.assert_close(found, reference.rescale_gain(output, uncond, table, index, 0.7))
    empty = torch.zeros(2, 0, device=device())
    assert torch.equal(rescale_gain.launch(empty, empty, table, index, 0.7), torch.ones(2, device=device()))


def test_device_through_the_ops() -> None:
    """Both run where the ops' doors send them, and again with the same bits."""
    x, output, uncond, gain = tensors((2, 5, 33, 7), torch.float16)
    table, index = row(**WEIGHTS)
    with backend.use("triton"):
        bounds = [
            ops.dynamic_bound(x, output, table, index, uncond=uncond, gain=gain, quantile=0.9)
            for _ in range(2)
        ]
        gains = [ops.rescale_gain(output, uncond, table, index, rescale=0.7) for _ in range(2)]
    assert torch.equal(*bounds) and torch.equal(*gains)
    expected = dynamic_bound.launch(x, output, table, index, uncond, gain, 0.9, float("inf"))
    assert torch.equal(bounds[0], expected)


@needs_compiler
@pytest.mark.parametrize(
    "arch, shape", [(80, (2, 4, 64, 64)), (90, (2, 4, 64, 64)), (90, (2, 4, 128, 128))], ids=str
)
def test_compiles_to_vector_code(arch: int, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Images are read 128 bits at a time, nothing spills, and no float is added atomically."""
    table, index, x = torch.empty(20, 22, dtype=torch.float64), torch.tensor(1), torch.empty(shape)
    both = torch.empty(2 * shape[0], *shape[1:], dtype=torch.bfloat16)
    found = launches(monkeypatch, dynamic_bound.launch, x, both, table, index, None, None, 0.995, 5.0)
    found += launches(monkeypatch, rescale_gain.launch, both, None, table, index, 0.7)
    for launch in {launch.launcher: launch for launch in found}.values():  # of a launch a digit, the last
        code = compiled(launch, arch)
        sass.assert_no_spills(code.kernel, registers=128)
        assert not any("ATOM" in name and "F32" in name for name in code.kernel.instructions)
        if launch.launcher not in (dynamic_bound.BOUND, rescale_gain.COMBINE):
            assert code.kernel.count("LDG.E.128") >= 4 and code.kernel.count("LDG.E.U16") == 0
