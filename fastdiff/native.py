"""Loads the native libraries: those built at install, else those compiled on first use and cached.

FASTDIFF_CACHE names the cache folder (default $XDG_CACHE_HOME/fastdiff or ~/.cache/fastdiff), FASTDIFF_BUILD=0 forbids
compiling on first use, and FASTDIFF_ISA (generic, avx2, avx512) narrows the CPU kernels to that instruction set.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from fastdiff import _build
from fastdiff.errors import BuildError

log = logging.getLogger(__name__)

_lock = threading.RLock()
_problems: dict[str, str | None] = {}
_loaded: dict[str, Path] = {}
_forked = False


def _after_fork() -> None:
    global _lock, _forked
    _lock = threading.RLock()  # a thread that held it is not here to let go
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def problem(device: str) -> str | None:
    """Why the native library for device type "cpu" or "cuda" cannot be had, or None once it is loaded.

    The first call finds the library or compiles it (seconds); a failure is logged once and remembered.
    """
    if device not in _problems:
        with _lock:
            if device not in _problems:
                _problems[device] = _try_to_load(device)
    return _problems[device]


def library(device: str) -> Path | None:
    """The loaded library's file, or None."""
    return _loaded.get(device)


@functools.cache
def isa() -> str:
    """The instruction set the CPU kernels use: generic, avx2 or avx512."""
    function = _cpu_library().fastdiff_isa
    function.restype = ctypes.c_char_p
    return str(function().decode())


def set_isa(name: str) -> None:
    """Makes the CPU kernels use another instruction set ("": the widest). Raises ValueError if it is not there."""
    if _cpu_library().fastdiff_set_isa(name.encode()):
        raise ValueError(
            f"instruction set {name!r} is not available here: choose among generic, avx2 and avx512"
        )
    isa.cache_clear()


def cache_folder() -> Path:
    """Where libraries compiled on first use are kept."""
    chosen = os.environ.get("FASTDIFF_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastdiff"


def _cpu_library() -> ctypes.CDLL:
    reason = problem("cpu")
    if reason:
        raise BuildError(f"the C++ kernels are not there: {reason}")
    return _opened(_loaded["cpu"])


@functools.cache
def _opened(path: Path) -> ctypes.CDLL:
    return ctypes.CDLL(str(path))


def _try_to_load(device: str) -> str | None:
    try:
        path = _find(device) or _compile(device)
        torch.ops.load_library(path)
    except (_build.BuildFailed, OSError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error) else type(error).__name__
        log.warning("fastdiff runs without its %s kernels, more slowly: %s", device, reason)
        return reason
    _loaded[device] = path
    if _forked and device == "cpu":
        _opened(path).fastdiff_forked()  # torch's threads stayed behind
    log.debug("loaded %s", path)
    return None


def _find(device: str) -> Path | None:
    """A library made from these very sources for this torch, if there is one."""
    installed, root = _build.find_torch(), _build.source_root()
    if installed is None or root is None:
        return None
    name = _build.library_name(device, root, installed)
    return next((p for p in (_build.INSTALLED / name, cache_folder() / name) if p.exists()), None)


def _compile(device: str) -> Path:
    if os.environ.get("FASTDIFF_BUILD") == "0":
        raise _build.BuildFailed(
            "it is not built and FASTDIFF_BUILD=0 forbids compiling it: run pip install -e ."
        )
    if os.name != "posix":
        raise _build.BuildFailed("it is not built, and compiling on first use needs Linux or macOS")
    folder = cache_folder()
    with _exclusively(folder):
        found = _find(device)  # another process may have compiled it while this one waited
        if found:
            return found
        log.info("compiling the %s kernels; this happens once and takes seconds", device)
        return _build.build(device, folder)


@contextmanager
def _exclusively(folder: Path) -> Iterator[None]:
    """Holds a file lock on the cache folder, against other processes."""
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(handle, fcntl.LOCK_UN)
