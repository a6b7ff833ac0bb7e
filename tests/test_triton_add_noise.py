"""The Triton kernel of add_noise: its values (interpreted here, or on a GPU) and its code for two GPUs nobody needs."""

from __future__ import annotations

import re

import pytest
import torch

import sass
from add_noise_cases import CASES, DTYPES, check_repeatable, check_specials, check_values, make

pytest.importorskip("triton", reason="Triton is not installed: pip install triton")
import triton_code
from fastdiff import backend, ops
from fastdiff.kernels import add_noise as kernel
from fastdiff.kernels import q_sample
from triton_code import Code, compiled, launches, needs_compiler, rounding

SINGLE = torch.float32


@pytest.fixture
def device() -> str:
    return triton_code.device()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_device_values(name: str, dtype: torch.dtype, device: str) -> None:
    check_values(kernel.launch, CASES[name], dtype, device, rounding=rounding(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_device_far_from_zero(dtype: torch.dtype, device: str) -> None:
    case = CASES["rows_off_the_vectors"]
    check_values(kernel.launch, case, dtype, device, mean=1000.0, rounding=rounding(dtype))


def test_device_one_weight_in_memory(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, where a weight on the CPU goes by value, and one on the GPU does not."""
    monkeypatch.setattr(q_sample, "by_value", lambda level: (level, 0.0))
    for name in ("one_weight", "one_alpha"):
        check_values(kernel.launch, CASES[name], torch.float32, device)


def test_device_one_weight_by_value(device: str) -> None:
    x0, noise, alpha, sigma = make(CASES["one_alpha"], torch.float32, device)
    out = kernel.launch(x0, noise, alpha.cpu(), sigma)
    assert torch.equal(out, kernel.launch(x0, noise, alpha.expand(len(x0)).contiguous(), sigma))


def test_device_specials_stay_put(device: str) -> None:
    check_specials(kernel.launch, torch.float32, device)


def test_device_repeatable(device: str) -> None:
    check_repeatable(kernel.launch, torch.bfloat16, device)


def test_device_through_the_op(device: str) -> None:
    """The op's door finds the kernel when the backend is triton, and its gradients go through it."""
    x0, noise, alpha, sigma = make(CASES["latents"], torch.float32, device)
    x0.requires_grad_()
    with backend.use("triton"):
        assert backend.select("add_noise", device, torch.float32) == "triton"
        out = ops.add_noise(x0, noise, alpha, sigma)
    assert torch.equal(out, kernel.launch(x0.detach(), noise, alpha, sigma))
    out.sum().backward()
    assert torch.equal(x0.grad, alpha.reshape(-1, 1, 1, 1).expand_as(x0))


def test_device_opcheck(device: str) -> None:
    inputs = [t.requires_grad_() for t in make(CASES["channels_last"], torch.float32, device)]
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")  # test_gpu.py runs all of them
    torch.library.opcheck(torch.ops.fastdiff.add_noise.triton, tuple(inputs), test_utils=checks)


def code(
    monkeypatch: pytest.MonkeyPatch,
    arch: int,
    dtype: torch.dtype,
    *,
    aligned: bool,
    weights: torch.dtype = torch.float32,
) -> Code:
    """The kernel as images of a model would launch it, or (not aligned) samples of no multiple of 16 elements."""
    x0 = torch.empty((2, 4, 64, 64) if aligned else (2, 3, 31, 37), dtype=dtype)
    level = torch.empty(2, dtype=weights)
    (launch,) = launches(monkeypatch, kernel.launch, x0, x0, level, level)
    return compiled(launch, arch)


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("arch", [80, 90])
def test_compiles_to_vector_code(arch: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """128 bits at a time both ways, no spills, and rounding to nearest at the store."""
    result = code(monkeypatch, arch, dtype, aligned=True)
    sass.assert_no_spills(result.kernel, registers=64)
    vectors = q_sample.BLOCK * dtype.itemsize // 16 // (32 * q_sample.OPTIONS["num_warps"])
    assert result.kernel.count("LDG.E.128") == 2 * vectors
    assert result.kernel.count("STG.E.128") == result.kernel.count("STG") == vectors
    if dtype != torch.float32:
        assert re.search(r"cvt\.rn\.(b?f16x?2?)\.f32", result.asm["ptx"])


@needs_compiler
@pytest.mark.parametrize("arch", [80, 90])
def test_compiles_for_odd_samples(arch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """And with weights in float64. A 32-bit sample size makes no 32-bit offsets of samples past 2^31 elements."""
    result = code(monkeypatch, arch, torch.bfloat16, aligned=False, weights=torch.float64)
    sass.assert_no_spills(result.kernel, registers=64)
    offsets = re.findall(r"tt\.addptr %\w+_ptr, .* : !tt\.ptr<bf16>, (i\d+)", result.asm["ttir"])
    assert offsets and set(offsets) == {"i64"}, result.asm["ttir"]
