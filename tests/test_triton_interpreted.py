"""Runs the values' tests of the Triton kernels under Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed: pip install triton")

FILES = ("add_noise", "q_sample", "solver_step", "reductions", "group_norm_silu")


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="this is that run")
def test_interpreted() -> None:
    """Triton reads TRITON_INTERPRET when it is imported, so these run in a process of their own, all in one."""
    paths = [str(Path(__file__).parent / f"test_triton_{name}.py") for name in FILES]
    command = [sys.executable, "-m", "pytest", *paths, "-k", "device_", "-rs", "-p", "no:cacheprovider"]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout, done.stdout
