"""Builds csrc/cuda for the CPU, where every CUDA thread is a fiber (tests/cuda_on_cpu/emulation.h). Needs no GPU, but
the headers of the CUDA toolkit: where there is no nvcc the test skips."""

from __future__ import annotations

import atexit
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


def library() -> Path:
    """The kernels, the C entries of cuda_on_cpu/*.cpp, and every registration*.cpp on the CPU key, where it takes the
    place of the C++ kernels for the whole process."""
    return _linked("CPU")


def kernels() -> Path:
    """The same for the C entries alone: registered on a key that no tensor has, so that any process may load it."""
    return _linked("PrivateUse1")


@functools.cache
def _linked(key: str) -> Path:
    folder, shared = _compiled()
    define = [f"-DREGISTRATION_KEY={key}"]
    commands = [
        [
            *_with_torch(),
            *define,
            f'-DREGISTRATION=\\"{source.name}\\"',
            str(HERE / "registration_on_cpu.cpp"),
        ]
        for source in sorted((ROOT / "csrc" / "cuda").glob("registration*.cpp"))
    ]
    objects = [*shared, *_objects(commands, folder, f"{key}-")]
    out = folder / f"libemulated-{key}.so"
    link = [_nvcc(), "-shared", "-cudart", "none", "-Xlinker=-Bsymbolic", *objects, "-o", str(out)]
    done = _run([*link, f"-L{TORCH / 'lib'}", "-ltorch_cpu", "-lc10"])
    assert done.returncode == 0, done.stderr
    return out


@functools.cache
def _compiled() -> tuple[Path, list[str]]:
    """A folder, and the objects that both libraries share; compiled once a run."""
    folder = Path(tempfile.mkdtemp(prefix="fastdiff-emulated-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    cuda = ROOT / "csrc" / "cuda"
    as_kernel = ["-include", str(HERE / "emulation.h")]
    commands = [[*_plain(), *as_kernel, str(source)] for source in sorted(cuda.glob("*.cu"))]
    commands += [
        [*_plain(), str(s)] for s in sorted(cuda.glob("*.cpp")) if not s.name.startswith("registration")
    ]
    entries = (s for s in sorted(HERE.glob("*.cpp")) if s.name != "registration_on_cpu.cpp")
    commands += [[*_with_torch(), str(source)] for source in entries]
    return folder, _objects(commands, folder, "")


def _nvcc() -> str:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("needs the CUDA toolkit for its headers: there is no nvcc on the PATH")
    return nvcc


def _plain() -> list[str]:
    base = [
        _nvcc(),
        "-x",
        "c++",
        "-std=c++17",
        "-O1",
        "-c",
        "-I",
        str(ROOT / "csrc" / "cuda"),
        "-I",
        str(HERE),
    ]
    return [*base, "-Xcompiler=-fPIC,-Wall,-Wno-unknown-pragmas,-ffp-contract=off"]


def _with_torch() -> list[str]:
    target = "-DTORCH_TARGET_VERSION=0x020a000000000000"
    return [*_plain(), "-DUSE_CUDA", target, "-isystem", str(TORCH / "include")]


def _objects(commands: list[list[str]], folder: Path, prefix: str) -> list[str]:
    """Runs the compilers, two at once, and returns what they made."""
    objects = [str(folder / f"{prefix}{i}.o") for i in range(len(commands))]
    with ThreadPoolExecutor(2) as pool:
        for done in pool.map(_run, (c + ["-o", o] for c, o in zip(commands, objects, strict=True))):
            assert done.returncode == 0, done.stderr
    return objects


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
