"""The CUDA library as an install builds it, without a GPU: its machine code, and that torch can load it."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

import compiled
import sass
from fastdiff import _build

CUDA_TORCH_ONLY = (
    "aoti_torch_get_current_cuda_stream",
    "torch_c10_cuda_check_msg",
    "torch_c10_cuda_free_error_msg",
)
"""What the library takes from torch's CUDA half: all of it is in torch 2.10 and later."""


class Design(NamedTuple):
    """instances: how many of the template there are, wide of them with so many 128-bit loads and stores at least;
    threads: how many an SM is to hold at once."""

    instances: int
    threads: int
    wide: int = 0
    loads: int = 0
    stores: int = 0


DESIGNS = {
    "add_noise_rows": Design(3, threads=1536, wide=3, loads=4, stores=2),
    "add_noise_elements": Design(3, threads=1536),
    # by vectors or elements, noise given or drawn. loads: x, both outputs, anchor, history, noise if given, mask, what
    # is known and its noise; stores: x_next, value, anchor, input and its twin
    # loads: x0 and the noise given; stores: x, the noise, the velocity, in each of the four places that a draw fills
    "q_sample_given_kernel": Design(3, threads=1536, wide=3, loads=2, stores=3),
    "q_sample_drawn_kernel": Design(3, threads=1280, wide=3, loads=4, stores=12),
    "q_sample_counted_kernel": Design(3, threads=1280, wide=3, loads=1, stores=3),
    "solver_step_kernel": Design(4, threads=1024, wide=2, loads=10, stores=5),
    # by vectors or elements, values kept or not; kept: x and both outputs, four times a thread
    "dynamic_bound_kernel": Design(4, threads=1024, wide=1, loads=12),
    "rescale_gain_kernel": Design(2, threads=1024, wide=1, loads=8),
    "rescale_gain_finish": Design(1, threads=1024),
}

needs_nvcc = pytest.mark.skipif(_build.find_nvcc() is None, reason="needs the CUDA toolkit: there is no nvcc")
pytestmark = needs_nvcc


@pytest.fixture
def library() -> Path:
    return compiled.library()


@pytest.mark.parametrize("arch", _build.CUDA_ARCHITECTURES)
def test_nothing_spills(arch: str) -> None:
    for kernel in compiled.kernels(arch):
        sass.assert_no_spills(kernel, registers=255)


@pytest.mark.parametrize("arch", _build.CUDA_ARCHITECTURES)
@pytest.mark.parametrize("kernel", DESIGNS)
def test_design(kernel: str, arch: str) -> None:
    """As many registers as the occupancy it was written for leaves a thread, and 128-bit accesses."""
    design = DESIGNS[kernel]
    found = compiled.named(arch, kernel)
    assert len(found) == design.instances
    for instance in found:
        assert instance.registers <= 65536 // design.threads // 8 * 8, instance
    wide = [
        k for k in found if k.count("LDG.E.128") >= design.loads and k.count("STG.E.128") >= design.stores
    ]
    assert len(wide) >= design.wide, found


@pytest.mark.parametrize("arch", _build.CUDA_ARCHITECTURES)
def test_a_step_does_not_wait_for_its_row_to_load(arch: str) -> None:
    """x and the model's output are on their way before the block meets over the row's weights."""
    for kernel in compiled.named(arch, "solver_step_kernel"):
        if kernel.count("LDG.E.128"):
            first = list(kernel.instructions)  # in the order in which they first occur
            barrier = next(i for i, name in enumerate(first) if name.startswith("BAR.SYNC"))
            assert first.index("LDG.E.128") < barrier


def test_newer_gpus_find_ptx(library: Path) -> None:
    listed = subprocess.run(
        [sass.cuobjdump(), "-lptx", str(library)], check=True, capture_output=True, text=True
    )
    assert f"sm_{_build.CUDA_ARCHITECTURES[-1]}.ptx" in listed.stdout


def test_lacks_only_the_cuda_half_of_torch(library: Path) -> None:
    """Where torch has no CUDA, loading fails for a symbol of its CUDA half: nothing else is amiss."""
    if torch.version.cuda:
        pytest.skip("this torch has CUDA: test_gpu.py loads the library")
    with pytest.raises(OSError, match="|".join(CUDA_TORCH_ONLY)):
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL | 2)  # 2: resolve every symbol now


OPS = ("add_noise", "q_sample", "randn_like", "solver_step", "solver_step_", "dynamic_bound", "rescale_gain")
REGISTERS = """
import ctypes, sys, torch
from fastdiff import ops
has = torch._C._dispatch_has_kernel_for_dispatch_key
assert not has("fastdiff::add_noise", "CUDA")
ctypes.CDLL(sys.argv[1], mode=ctypes.RTLD_GLOBAL)
torch.ops.load_library(sys.argv[2])
for op in sys.argv[3:]:
    assert has(f"fastdiff::{op}", "CUDA"), op
"""


def test_registers_on_the_cuda_key(library: Path, tmp_path: Path) -> None:
    """With stand-ins for what only a CUDA build of torch has, the library loads and takes the op's CUDA key."""
    if torch.version.cuda:
        pytest.skip("this torch has CUDA: test_gpu.py loads the library")
    (tmp_path / "stand_ins.c").write_text(
        "".join(f"int {name}(void) {{ return 0; }}\n" for name in CUDA_TORCH_ONLY)
    )
    compiler, stand_ins = str(_build.find_compiler()), tmp_path / "stand_ins.so"
    _build.run([compiler, "-x", "c", "-shared", "-fPIC", str(tmp_path / "stand_ins.c"), "-o", str(stand_ins)])
    command = [sys.executable, "-c", REGISTERS, str(stand_ins), str(library), *OPS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
