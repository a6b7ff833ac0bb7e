"""The CUDA library as an install builds it, without a GPU: its machine code, and that torch can load it."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import sass
from fastdiff import _build

CUDA_TORCH_ONLY = (
    "aoti_torch_get_current_cuda_stream",
    "torch_c10_cuda_check_msg",
    "torch_c10_cuda_free_error_msg",
)
"""What the library takes from torch's CUDA half: all of it is in torch 2.10 and later."""

needs_nvcc = pytest.mark.skipif(_build.find_nvcc() is None, reason="needs the CUDA toolkit: there is no nvcc")
pytestmark = needs_nvcc


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _build.build("cuda", tmp_path_factory.mktemp("cuda"))


@pytest.mark.parametrize("arch", _build.CUDA_ARCHITECTURES)
def test_no_spills(library: Path, arch: str) -> None:
    kernels = sass.read(library, f"sm_{arch}")
    assert len(kernels) == 6  # rows and elements, in three dtypes
    for kernel in kernels:
        sass.assert_no_spills(kernel, registers=40)


@pytest.mark.parametrize("arch", _build.CUDA_ARCHITECTURES)
def test_128_bit_accesses(library: Path, arch: str) -> None:
    """Two vectors of either input, and of the output, a thread."""
    rows = [kernel for kernel in sass.read(library, f"sm_{arch}") if "add_noise_rows" in kernel.name]
    assert len(rows) == 3
    for kernel in rows:
        assert kernel.count("LDG.E.128") == 4, kernel
        assert kernel.count("STG.E.128") == 2, kernel


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


REGISTERS = """
import ctypes, sys, torch
from fastdiff import ops
has = torch._C._dispatch_has_kernel_for_dispatch_key
assert not has("fastdiff::add_noise", "CUDA")
ctypes.CDLL(sys.argv[1], mode=ctypes.RTLD_GLOBAL)
torch.ops.load_library(sys.argv[2])
assert has("fastdiff::add_noise", "CUDA")
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
    command = [sys.executable, "-c", REGISTERS, str(stand_ins), str(library)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
