"""The CUDA library as an install builds it, once a run, for tests that read its machine code. Needs nvcc, no GPU."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path

import pytest

import sass
from fastdiff import _build


@functools.cache
def library() -> Path:
    """The built library; skips the test where there is no CUDA toolkit."""
    if _build.find_nvcc() is None:
        pytest.skip("needs the CUDA toolkit: there is no nvcc")
    folder = Path(tempfile.mkdtemp(prefix="fastdiff-cuda-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return _build.build("cuda", folder)


@functools.cache
def kernels(arch: str) -> list[sass.Kernel]:
    """All kernels for one architecture ("90")."""
    return sass.read(library(), f"sm_{arch}")


def named(arch: str, name: str) -> list[sass.Kernel]:
    """The instances of one kernel template, by the function's name."""
    found = [kernel for kernel in kernels(arch) if f"{len(name)}{name}" in kernel.name]
    assert found, f"no kernel is called {name}"
    return found
