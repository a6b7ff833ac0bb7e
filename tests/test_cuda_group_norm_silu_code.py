"""Which variant of group_norm_silu's CUDA kernels real shapes get on an H100 and an A100, and the machine code of each:
without a GPU."""

from __future__ import annotations

import ctypes

import pytest

import compiled
import emulated
import sass
from fastdiff import _build

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
