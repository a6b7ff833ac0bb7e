"""The Triton kernel of add_noise: its values (interpreted here, or on a GPU) and its code for two GPUs nobody needs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import sass
from add_noise_cases import CASES, DTYPES, check_repeatable, check_specials, check_values, make

triton = pytest.importorskip("triton", reason="Triton is not installed: pip install triton")
from fastdiff import backend, ops  # noqa: E402
from fastdiff.kernels import add_noise as kernel  # noqa: E402

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
POINTERS = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float64: "*fp64"}


@pytest.fixture
def device() -> str:
    """Where kernels can run: interpreted on the CPU, or on a GPU."""
    if INTERPRETED:
        return "cpu"
    if torch.cuda.is_available():
        return "cuda"
    pytest.skip("needs a GPU or TRITON_INTERPRET=1, under which test_interpreted runs it")


def rounding(dtype: torch.dtype) -> float:
    """Units that a store may be off by: the interpreter truncates to bfloat16, GPUs round to nearest."""
    return 1.0 if INTERPRETED and dtype == torch.bfloat16 else 0.5


@pytest.mark.skipif(INTERPRETED, reason="this is that run")
def test_interpreted() -> None:
    """Triton reads TRITON_INTERPRET when it is imported, so the tests of values run in a process of their own."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        str(Path(__file__)),
        "-k",
        "device_",
        "-rs",
        "-p",
        "no:cacheprovider",
    ]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout, done.stdout


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_device_values(name: str, dtype: torch.dtype, device: str) -> None:
    check_values(kernel.launch, CASES[name], dtype, device, rounding=rounding(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_device_far_from_zero(dtype: torch.dtype, device: str) -> None:
    case = CASES["rows_off_the_vectors"]
    check_values(kernel.launch, case, dtype, device, mean=1000.0, rounding=rounding(dtype))


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


def compiled(arch: int, dtype: torch.dtype, *, aligned: bool, weights: torch.dtype = torch.float32) -> Any:
    """The kernel compiled ahead of time as Triton's own launcher would specialise it. aligned: samples of a multiple of
    16 elements, which is what every image of a model is."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.add_noise_kernel.arg_names
    constants = {"ALPHA_STRIDE": 1, "SIGMA_STRIDE": 1, "BLOCK": kernel.BLOCK}
    signature = dict.fromkeys(constants, "constexpr")
    signature |= dict.fromkeys(("out_ptr", "x0_ptr", "noise_ptr"), POINTERS[dtype])
    signature |= dict.fromkeys(("alpha_ptr", "sigma_ptr"), POINTERS[weights])
    signature |= {"inner": "i64" if aligned else "i32", "tiles": "i32"}
    multiples_of_16 = [n for n in names if n.endswith("_ptr") or (n == "inner" and aligned)]
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in multiples_of_16}
    source = ASTSource(
        kernel.add_noise_kernel, {n: signature[n] for n in names}, constexprs=constants, attrs=attributes
    )
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=kernel.OPTIONS)


needs_compiler = pytest.mark.skipif(INTERPRETED, reason="the interpreter has no compiler")


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("arch", [80, 90])
def test_compiles_to_vector_code(arch: int, dtype: torch.dtype, tmp_path: Path) -> None:
    """128 bits at a time both ways, no spills, and rounding to nearest at the store."""
    result = compiled(arch, dtype, aligned=True)
    (tmp_path / "kernel.cubin").write_bytes(result.asm["cubin"])
    (code,) = sass.read(tmp_path / "kernel.cubin", f"sm_{arch}")
    sass.assert_no_spills(code, registers=64)
    vectors = kernel.BLOCK * dtype.itemsize // 16 // (32 * kernel.OPTIONS["num_warps"])
    assert code.count("LDG.E.128") == 2 * vectors
    assert code.count("STG.E.128") == code.count("STG") == vectors
    if dtype != torch.float32:
        assert re.search(r"cvt\.rn\.(b?f16x?2?)\.f32", result.asm["ptx"])


@needs_compiler
@pytest.mark.parametrize("arch", [80, 90])
def test_compiles_for_odd_samples(arch: int, tmp_path: Path) -> None:
    """And with weights in float64."""
    result = compiled(arch, torch.bfloat16, aligned=False, weights=torch.float64)
    (tmp_path / "kernel.cubin").write_bytes(result.asm["cubin"])
    (code,) = sass.read(tmp_path / "kernel.cubin", f"sm_{arch}")
    sass.assert_no_spills(code, registers=64)


@needs_compiler
def test_addresses_are_64_bit() -> None:
    """A 32-bit sample size must not make 32-bit offsets of samples past 2^31 elements."""
    ttir = compiled(90, torch.float32, aligned=False).asm["ttir"]
    offsets = re.findall(r"tt\.addptr .* : (?:tensor<\d+x)?!tt\.ptr<f32>>?, (?:tensor<\d+x)?(i\d+)", ttir)
    assert offsets and set(offsets) == {"i64"}, ttir
