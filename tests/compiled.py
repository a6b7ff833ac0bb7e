"""The CUDA library as an install builds it, for tests that read its machine code; built once for the same sources.
Needs nvcc, no GPU."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

import sass
from fastdiff import _build, native


@functools.cache
def library() -> Path:
    """The built library; skips the test where there is no CUDA toolkit."""
    if _build.find_nvcc() is None:
        pytest.skip("needs the CUDA toolkit: there is no nvcc")
    root, torch = _build.source_root(), _build.find_torch()
    assert root and torch
    path = native.cache_folder() / _build.library_name(
        "cuda", root, torch
    )  # minutes to compile: kept between runs
    return path if path.exists() else _build.build("cuda", path.parent)


@functools.cache
def kernels(arch: str) -> list[sass.Kernel]:
    """All kernels for one architecture ("90")."""
    return sass.read(library(), f"sm_{arch}")


def named(arch: str, name: str) -> list[sass.Kernel]:
    """The instances of one kernel template, by the function's name."""
    found = [kernel for kernel in kernels(arch) if f"{len(name)}{name}" in kernel.name]
    assert found, f"no kernel is called {name}"
    return found
