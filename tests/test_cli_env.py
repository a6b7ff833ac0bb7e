"""fastdiff env: what is there, which backend each op uses and why; it prints whatever is broken."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fastdiff import backend, native
from fastdiff.cli import env
from fastdiff.models import checkpoint


def test_env_tells_which_backend_and_why(fastdiff: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = fastdiff("env", "--json")
    report = json.loads(out)
    assert code == 0 and torch.__version__.startswith(report["versions"]["torch"].split("+")[0])
    for op in ("solver_step", "add_noise", "group_norm_silu"):
        assert report["ops"][f"{op} on cpu"]["float32"].split(":")[0] in ("cpp", "reference", "triton")
    assert "solver_step on cpu" in fastdiff("env")[1]


def test_env_prints_when_things_are_broken(
    fastdiff: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a line\nanother")

    monkeypatch.setattr(checkpoint, "BUNDLED", Path("none"))
    for name in ("machine", "ops", "backends", "native_build"):
        monkeypatch.setattr(env, name, broken)
    code, out, _ = fastdiff("env")
    assert code == 0 and out.count("RuntimeError: a line another") == 4 and "torch" in out


def test_env_survives_a_broken_torch(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('libtorch.so: cannot open')")
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).resolve().parents[1])])
    command = [sys.executable, "-m", "fastdiff", "env"]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 and "libtorch.so: cannot open" in done.stdout and "numpy" in done.stdout


def test_env_survives_a_backend_that_cannot_run() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fastdiff", "env"],
        env={**os.environ, "FASTDIFF_BACKEND": "nonsense"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0 and "nonsense" in done.stdout


def test_explain_says_which_backend_takes_a_shape(fastdiff: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = fastdiff("env --explain 2x320x64x64 2x33 --dtype bfloat16 --device cpu --json")
    report = json.loads(out)
    assert code == 0 and len(report) == 2
    large, small = report.values()
    assert large.keys() == small.keys() == backend.KERNELS.keys()
    for op, text in large.items():
        seen = torch.float32 if op in ("solver_step", "dynamic_bound") else torch.bfloat16
        assert text.split(":")[0] == backend.select(op, "cpu", seen)
    assert small["group_norm_silu"] == "refused: 33 channels do not divide into 32 groups (--groups)"
    assert (
        "reference: cpp has no add_noise kernel for float64"
        in fastdiff("env --explain 3x4 --dtype float64 --device cpu")[1]
    )


def test_explain_says_what_happens_to_the_layout(fastdiff: Callable[..., tuple[int, str, str]]) -> None:
    if backend.select("randn_like", "cpu", torch.float32) == "reference":
        pytest.skip("no kernels here")
    strided = fastdiff("env --explain 2x32x8x8 --layout strided --device cpu")[1]
    assert strided.count("copied to a dense layout first") >= 5
    assert "in contiguous order" in fastdiff("env --explain 2x32x8x8 --layout channels_last --device cpu")[1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_explain_a_device_that_is_not_there(fastdiff: Callable[..., tuple[int, str, str]]) -> None:
    out = fastdiff("env --explain 2x32x8x8 --device cuda")[1]
    assert "reference: cuda cannot run here (torch sees no CUDA device)" in out


def test_explain_with_a_backend_asked_for(fastdiff: Callable[..., tuple[int, str, str]]) -> None:
    with backend.use("reference"):
        assert "reference: asked for" in fastdiff("env --explain 2x32x8x8 --device cpu")[1]
    if backend.unavailable("cpp") is None:
        with backend.use("cpp"):
            out = fastdiff("env --explain 2x32x8x8 --device cpu --dtype float64")[1]
            assert "refused: backend 'cpp' was asked for" in out


@pytest.mark.parametrize("shape", ["2x", "axb", "-2x3", "1x1x1x1x1x1x1x1x1"])
def test_explain_refuses_what_is_no_shape(shape: str, fastdiff: Callable[..., tuple[int, str, str]]) -> None:
    code, _, err = fastdiff("env", f"--explain={shape}")
    assert code == 1 and "write it as 2x320x64x64" in err and err.count("\n") == 1


def test_explain_says_what_the_kernels_choose(
    fastdiff: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    if backend.unavailable("cpp"):
        pytest.skip("no C++ kernels here")
    native.set_isa("generic")
    try:
        out = fastdiff("env --explain 2x32x8x8 0x32x8x8 --device cpu")[1]
    finally:
        native.set_isa("")
    assert out.count("instruction set generic") == len(backend.KERNELS) == out.count("nothing to do")
    assert "from a generator torch.randn draws, since" in out
