"""group_norm_silu's CUDA kernels without a GPU: their values, run by the emulation on a small chip in every variant,
and their machine code. tests/test_gpu_group_norm.py has what only a GPU can show."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

import compiled
import emulated
import sass
from fastdiff import _build

PREAMBLE = """
import ctypes, sys
import torch
from conftest import assert_accurate
from emulated import order
from fastdiff import ops
from group_norm_cases import LAYOUTS, SHAPES, composed_gradients, composition, exact, exact_gradients, inputs

torch.set_num_threads(1)
torch.use_deterministic_algorithms(True, warn_only=True)  # fresh memory holds NaN
torch.ops.load_library(sys.argv[1])
loaded = ctypes.CDLL(sys.argv[1])
forward = torch.ops.fastdiff.group_norm_silu.default
backward = torch.ops.fastdiff.group_norm_silu_backward.default
A, B, C, D = VARIANTS = (1, 2, 3, 4)
WHOLE = (torch.float32, torch.float16, torch.bfloat16)


def variant(shape, groups, layout, dtype, gradient):
    sizes = [ctypes.c_int64(n) for n in (shape[0], shape[1], groups, torch.Size(shape[2:]).numel())]
    last = layout == "channels_last"
    return loaded.fastdiff_group_norm_variant(0, *sizes, last, WHOLE.index(dtype), gradient)


def draw(shape, groups, dtype, options="all", layout="contiguous", mean=0.0, vectors=None):
    generator = torch.Generator().manual_seed(0)
    given = inputs(
        shape, groups, dtype, generator, options=options, layout=layout, mean=mean, vectors=vectors
    )
    grad = LAYOUTS[layout](torch.randn(shape, generator=generator).to(dtype))
    return given, grad


def run(given, grad):
    y, summed, mean, rstd = forward(*given.arguments())
    dx, sums = backward(*given.backward_arguments(grad, mean, rstd))
    return y, summed, mean, rstd, dx, sums


def close(actual, exact, scale):
    error = (actual.double() - exact).abs().max().item() if exact.numel() else 0.0
    assert error <= 3e-5 * scale + 1e-6, (error, scale)


def check(given, grad):
    dtype = given.x.dtype
    y, summed, mean, rstd, dx, sums = run(given, grad)
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
    if "scale" in right and given.weight is not None:
        weight, bias = given.weight.double(), given.bias.double()
        most = (weight * sums[1]).abs().max().item() + (bias * sums[0]).abs().max().item()
        close(weight * sums[1] + bias * sums[0], right["scale"], most)
"""

EVERY_VARIANT = """
seen = set()
for i, (shape, groups) in enumerate([*SHAPES, ((1, 16, 40, 24), 2), ((2, 48, 9, 8), 4)]):
    for layout in ("contiguous", "channels_last", "odd_offset"):
        for wanted in VARIANTS if layout != "odd_offset" else (0, D):
            loaded.fastdiff_force_variant(wanted)
            dtype = torch.float32 if (i + wanted) % 2 else torch.bfloat16
            check(*draw(shape, groups, dtype, layout=layout))
            if 0 not in shape:
                got = variant(shape, groups, layout, dtype, False)
                seen.add((layout, got, wanted == got))
for layout in ("contiguous", "channels_last"):
    for wanted in VARIANTS:
        assert (layout, wanted, True) in seen, (layout, wanted)
"""

EVERY_OPTION = """
from group_norm_cases import OPTIONS
for i, options in enumerate(OPTIONS):
    for layout, wanted in (("contiguous", (B, D)[i % 2]), ("channels_last", (A, C)[i % 2])):
        loaded.fastdiff_force_variant(wanted)
        check(*draw((2, 16, 12, 14), 4, torch.float16, options, layout))
loaded.fastdiff_force_variant(0)
check(*draw((2, 16, 12, 14), 4, torch.bfloat16, "all", vectors=torch.float32))
check(*draw((2, 16, 12, 14), 4, torch.bfloat16, "all", "channels_last", vectors=torch.float32))
"""

NUMERICS = """
for layout in ("contiguous", "channels_last"):
    for wanted in VARIANTS:
        loaded.fastdiff_force_variant(wanted)
        given, grad = draw((2, 32, 24, 24), 4, WHOLE[wanted % 3], "affine", layout, mean=1000.0)
        assert_accurate(forward(*given.arguments())[0], exact(given)[1], composition(given)[1])
        # what is not finite stays in its group
        given, grad = draw((2, 32, 24, 24), 4, torch.float32, "affine", layout)
        given.x[0, 9, 3, 5], given.x[1, 31, 0, 0] = float("inf"), float("nan")
        y, _, _, _, dx, sums = run(given, grad)
        for t in (y, dx):
            groups = t.unflatten(1, (4, 8)).isfinite().flatten(2).all(2)
            assert groups.tolist() == [[True, False, True, True], [True, True, True, False]]
        # padding of another level than the rest, and a constant image
        given.x.fill_(0)[..., 12:, :] = 1000.0 + torch.randn(12, 24)
        assert_accurate(forward(*given.arguments())[0], exact(given)[1], composition(given)[1])
        given.x.fill_(3.0)
        assert_accurate(forward(*given.arguments())[0], exact(given)[1], composition(given)[1])
"""

REPEATS = """
for layout in ("contiguous", "channels_last"):
    for wanted in VARIANTS:
        loaded.fastdiff_force_variant(wanted)
        given, grad = draw((2, 24, 11, 16), 3, torch.bfloat16, layout=layout)
        results = []
        for which in (0, 1, 2):  # threads and blocks forward, backward, shuffled
            with order(loaded, which):
                results.append(run(given, grad))
        for other in results[1:]:
            for a, b in zip(results[0], other):
                assert torch.equal(a, b), (layout, wanted)
"""

ONE_TEAM_IN_L2 = """
# so small that a team fits and the next one does not: each phase is applied before the next is gathered
loaded.fastdiff_force_variant(C)
for layout, gradient, kib in (
    ("contiguous", False, 48), ("contiguous", True, 96), ("channels_last", False, 96), ("channels_last", True, 192)
):
    loaded.emulated_chip(4, 64 * 1024, kib << 10)
    loaded.fastdiff_forget_devices()
    shape, groups = (3, 16, 40, 24), 2
    assert variant(shape, groups, layout, torch.float32, gradient) == C, (layout, gradient)
    given, grad = draw(shape, groups, torch.float32, layout=layout)
    check(given, grad)
    results = []
    for which in (0, 1, 2):
        with order(loaded, which):
            results.append(run(given, grad))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other)), (layout, gradient)
loaded.emulated_chip(4, 64 * 1024, 1 << 20)
loaded.fastdiff_forget_devices()
"""

SHARED_CHIP = """
# where blocks cannot wait for each other, two launches do the work
for most in (0, 1):
    loaded.emulated_cooperative(ctypes.c_int64(most))
    loaded.fastdiff_forget_devices()
    for layout, wanted in (("contiguous", B), ("channels_last", C)):
        loaded.fastdiff_force_variant(wanted)
        check(*draw((2, 16, 12, 14), 4, torch.float32, layout=layout))
loaded.emulated_cooperative(ctypes.c_int64(2**62))
loaded.fastdiff_forget_devices()
"""

REFUSED = """
loaded.fastdiff_force_variant(0)
x, vector, matrix = torch.ones(2, 4, 3, 3), torch.ones(4), torch.ones(2, 4)
def call(x=x, groups=2, weight=None, add=None, activation=1, residual=None):
    return forward(x, groups, weight, None, 1e-5, add, None, None, activation, residual)
for message, arguments in {
    "float32, float16 and bfloat16": {"x": x.double()},
    "divide": {"groups": 3},
    "activation": {"activation": 3},
    "weight and bias": {"weight": torch.ones(3)},
    "add, scale and shift": {"add": torch.ones(4)},
    "residual must be like x": {"residual": x.half()},
    "planar or channels-last": {"x": torch.ones(2, 3, 4, 3).transpose(1, 2)},
    "must be dense": {"x": torch.ones(2, 4, 3, 6)[..., ::2]},
}.items():
    try:
        call(**arguments)
    except RuntimeError as problem:
        assert message in str(problem), problem
    else:
        raise AssertionError(f"accepted: {message}")
"""


def test_emulated() -> None:
    """Every variant and option, the numerics, the same bits in any order of threads, and what is refused, on a chip of
    4 SMs. In one process of its own, since it puts the kernels where the C++ backend has its own."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parent),
        "FASTDIFF_BACKEND": "reference",
        "FASTDIFF_BUILD": "0",
    }
    script = (
        PREAMBLE + EVERY_VARIANT + EVERY_OPTION + NUMERICS + REPEATS + ONE_TEAM_IN_L2 + SHARED_CHIP + REFUSED
    )
    command = [sys.executable, "-W", "ignore", "-c", script, str(emulated.library())]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]


H100 = (132, 227 * 1024, 50 << 20)
A100 = (108, 163 * 1024, 40 << 20)
"""SMs, bytes of shared memory, bytes of L2."""


@pytest.fixture
def plan() -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(emulated.kernels()))
    yield loaded
    loaded.emulated_chip(4, 64 * 1024, 1 << 20)
    loaded.fastdiff_forget_devices()


def chosen(
    plan: ctypes.CDLL,
    chip: tuple[int, int, int],
    shape: tuple[int, int, int],
    last: bool = False,
    grad: bool = False,
) -> str:
    """The variant that bfloat16 images of this batch, channels and pixels get in 32 groups."""
    plan.emulated_chip(*chip)
    plan.fastdiff_forget_devices()
    batch, channels, pixels = map(ctypes.c_int64, shape)
    return "-ABCD"[
        plan.fastdiff_group_norm_variant(0, batch, channels, ctypes.c_int64(32), pixels, last, 2, grad)
    ]


@pytest.mark.parametrize("last", [False, True], ids=["planar", "channels_last"])
def test_variants_of_real_shapes(plan: ctypes.CDLL, last: bool) -> None:
    """UNet blocks need one launch and one read of memory; a VAE's last blocks a second read, from L2 where a group of
    channels fits there."""
    for chip in (H100, A100):
        for channels, side in [(320, 64), (640, 64), (640, 32), (1280, 32), (1280, 16), (1280, 8)]:
            assert chosen(plan, chip, (2, channels, side * side), last) in "AB", (channels, side)
        assert chosen(plan, chip, (2, 1280, 64), last) == "A"
        assert chosen(plan, chip, (64, 320, 4096)) == "A"  # in training groups are many
    assert chosen(plan, H100, (2, 320, 128 * 128), last) in "AB"
    assert chosen(plan, H100, (1, 512, 128 * 128), last) == "B"
    assert chosen(plan, H100, (1, 256, 512 * 512)) == "C"
    assert chosen(plan, H100, (1, 256, 1024 * 1024)) == "C"
    for chip in (H100, A100):  # 29.5 MB a group: L2 has room for one, not for two
        assert chosen(plan, chip, (1, 512, 16 * 180 * 320)) == "C"
        assert chosen(plan, chip, (1, 512, 16 * 180 * 320), grad=True) == "D"
        assert chosen(plan, chip, (1, 512, 16 * 180 * 320), last=True) == "D"
    assert chosen(plan, H100, (1, 512, 16 * 256 * 320)) == "D"


def test_a_variant_can_be_forced(plan: ctypes.CDLL) -> None:
    shape = (2, 320, 4096)
    for code, name in enumerate("ABCD", start=1):
        plan.fastdiff_force_variant(code)
        assert chosen(plan, H100, shape) == name
    assert plan.fastdiff_force_variant(0) == 4
    assert chosen(plan, H100, (0, 320, 4096)) == "-"  # nothing to launch


needs_nvcc = pytest.mark.skipif(_build.find_nvcc() is None, reason="needs the CUDA toolkit: there is no nvcc")
KERNELS = {
    # name: instances, those that move 16 bytes at once, and how many such loads and stores stand in their code
    "norm_rows_held": (3, 3, 8, 8),
    "norm_rows_stream": (6, 3, 16, 8),
    "norm_columns_held": (3, 3, 8, 8),
    "norm_columns_stream": (3, 3, 16, 8),
    "norm_backward_rows_held": (3, 3, 8, 4),
    "norm_backward_rows_stream": (6, 3, 16, 4),
    "norm_backward_columns_held": (3, 3, 4, 1),
    "norm_backward_columns_stream": (3, 3, 8, 2),
}


@needs_nvcc
@pytest.mark.parametrize("arch", _build.CUDA_ARCHITECTURES)
@pytest.mark.parametrize("name", KERNELS)
def test_machine_code(name: str, arch: str) -> None:
    """Nothing spills, 128 registers leave an SM room for a block of 512 threads, and the main loops move 16 bytes."""
    instances, wide, loads, stores = KERNELS[name]
    found = [
        k for k in compiled.kernels(arch) if name in k.name and ("backward" in k.name) == ("backward" in name)
    ]
    assert len(found) == instances
    for kernel in found:
        sass.assert_no_spills(kernel, registers=128)
    counts = [(wide_accesses(k, "LDG"), wide_accesses(k, "STG")) for k in found]
    assert sum(a >= loads and b >= stores for a, b in counts) >= wide, counts


def wide_accesses(kernel: sass.Kernel, opcode: str) -> int:
    """128-bit accesses, with or without a hint to the caches."""
    return sum(n for name, n in kernel.instructions.items() if name.startswith(opcode) and ".128" in name)


@needs_nvcc
def test_no_float_atomics() -> None:
    """Sums in an order that repeats: the only atomic counts arrivals."""
    for kernel in compiled.kernels(_build.CUDA_ARCHITECTURES[-1]):
        if "norm_" in kernel.name:
            used = [n for n in kernel.instructions if n.startswith(("ATOM", "RED."))]
            assert not any(".F32" in n or ".F16" in n or ".F64" in n for n in used), used
