"""Builds csrc/cuda for the CPU, where every CUDA thread is a fiber (tests/cuda_on_cpu/emulation.h). Needs no GPU, but
the headers of the CUDA toolkit: where there is no nvcc the test skips."""

from __future__ import annotations

import ctypes
import functools
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
HERE = Path(__file__).parent / "cuda_on_cpu"
TORCH = Path(torch.__file__).parent


@functools.cache
def library() -> Path:
    """The kernels, the C entries of cuda_on_cpu/*.cpp, and every registration*.cpp on the CPU key; built once a run."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("needs the CUDA toolkit for its headers: there is no nvcc on the PATH")
    folder = Path(tempfile.mkdtemp(prefix="fastdiff-emulated-"))
    _remove_at_exit(folder)
    base = [nvcc, "-x", "c++", "-std=c++17", "-O1", "-c", "-I", str(ROOT / "csrc" / "cuda"), "-I", str(HERE)]
    base += ["-Xcompiler=-fPIC,-Wall,-Wno-unknown-pragmas,-ffp-contract=off"]
    as_kernel = ["-include", str(HERE / "emulation.h")]
    with_torch = [
        "-DUSE_CUDA",
        "-DTORCH_TARGET_VERSION=0x020a000000000000",
        "-isystem",
        str(TORCH / "include"),
    ]
    commands = [[*base, *as_kernel, str(source)] for source in sorted((ROOT / "csrc" / "cuda").glob("*.cu"))]
    commands += [
        [*base, *with_torch, str(s)]
        for s in sorted(HERE.glob("*.cpp"))
        if s.name != "registration_on_cpu.cpp"
    ]
    for source in sorted((ROOT / "csrc" / "cuda").glob("*.cpp")):
        if not source.name.startswith("registration"):
            commands.append([*base, str(source)])
            continue
        define = f'-DREGISTRATION=\\"{source.name}\\"'
        commands.append([*base, *with_torch, define, str(HERE / "registration_on_cpu.cpp")])
    objects = [str(folder / f"{i}.o") for i in range(len(commands))]
    with ThreadPoolExecutor(2) as pool:
        for done in pool.map(_run, (c + ["-o", o] for c, o in zip(commands, objects, strict=True))):
            assert done.returncode == 0, done.stderr
    out = folder / "libemulated.so"
    link = [nvcc, "-shared", "-cudart", "none", "-Xlinker=-Bsymbolic", *objects, "-o", str(out)]
    done = _run([*link, f"-L{TORCH / 'lib'}", "-ltorch_cpu", "-lc10"])
    assert done.returncode == 0, done.stderr
    return out


@contextmanager
def order(loaded: ctypes.CDLL, which: int) -> Iterator[None]:
    """Threads and blocks run forward (0), backward (1), or shuffled by a seed (2 and more)."""
    loaded.emulated_order(which)
    try:
        yield
    finally:
        loaded.emulated_order(0)


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _remove_at_exit(folder: Path) -> None:
    import atexit

    atexit.register(shutil.rmtree, folder, ignore_errors=True)
