"""The CUDA library as nvcc makes it, on a machine without a GPU: its machine code, and that torch can load it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import sass

ROOT = Path(__file__).resolve().parents[1]
ARCHITECTURES = ("80", "90")


@pytest.fixture(scope="module")
def nvcc() -> str:
    found = shutil.which("nvcc")
    if found is None:
        pytest.skip("needs the CUDA toolkit: there is no nvcc on the PATH")
    return found


@pytest.fixture(scope="module")
def kernels(nvcc: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[sass.Kernel]]:
    """Architecture -> the kernels of add_noise.cu. It includes nothing of torch, so nothing of torch is given."""
    out = tmp_path_factory.mktemp("cuda") / "add_noise.o"
    targets = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in ARCHITECTURES]
    source = ROOT / "csrc" / "cuda" / "add_noise.cu"
    subprocess.run([nvcc, "-std=c++17", "-O3", *targets, "-c", str(source), "-o", str(out)], check=True)
    return {arch: sass.read(out, f"sm_{arch}") for arch in ARCHITECTURES}


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_no_spills(kernels: dict[str, list[sass.Kernel]], arch: str) -> None:
    assert len(kernels[arch]) == 6  # rows and elements, in three dtypes
    for kernel in kernels[arch]:
        sass.assert_no_spills(kernel, registers=40)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_128_bit_accesses(kernels: dict[str, list[sass.Kernel]], arch: str) -> None:
    """Two vectors from either input in flight before anything is stored."""
    rows = [kernel for kernel in kernels[arch] if "add_noise_rows" in kernel.name]
    assert len(rows) == 3
    for kernel in rows:
        assert kernel.count("LDG.E.128") == 4, kernel
        assert kernel.count("STG.E.128") == 2, kernel
