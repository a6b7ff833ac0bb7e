"""Runs the tests of a file against csrc/cuda on the CPU, in a process of their own, since the emulated kernels take the
place of the C++ ones on the CPU key."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
import torch

import emulated

LIBRARY = os.environ.get("FASTDIFF_EMULATED_LIBRARY")
"""The library to load, in that process."""

is_the_run = pytest.mark.skipif(LIBRARY is not None, reason="this is that run")
needs_the_run = pytest.mark.skipif(LIBRARY is None, reason="test_emulated runs it in a process of its own")


def outcomes(file: str) -> dict[str, int]:
    """Runs the tests of `file` that need_the_run: how many passed, and whatever else became of them."""
    environment = {
        **os.environ,
        "FASTDIFF_EMULATED_LIBRARY": str(emulated.library()),
        "FASTDIFF_BACKEND": "reference",
    }
    # without the project's own -q, so that one is left, with which the last line counts
    options = ["-o", "addopts=", "-q", "-k", "device_", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", file, *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    if done.returncode:
        pytest.fail(done.stdout + done.stderr)
    summary = done.stdout.splitlines()[-1]
    found = re.findall(r"(\d+) (passed|skipped|xfailed|xpassed)", summary)
    return {what: int(count) for count, what in found}


def load() -> None:
    """Puts the emulated kernels on the CPU key of fastdiff's ops."""
    from fastdiff import native

    native.problem("cpu")  # loaded first, so that it does not take the key back later
    torch.ops.load_library(LIBRARY)
