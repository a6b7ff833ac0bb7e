"""Choosing a backend: by itself, by name, by the environment; and what happens where one cannot run."""

from __future__ import annotations

import logging
import multiprocessing
import os
import subprocess
import sys
import threading

import pytest
import torch

from fastdiff import backend, native, ops
from fastdiff.errors import BackendError, BuildError

needs_cpp = pytest.mark.skipif(native.problem("cpu") is not None, reason="no C++ kernels here")


def run_python(code, **environment):
    """A fresh interpreter with this environment; returns (exit code, stdout, stderr)."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
    )
    return done.returncode, done.stdout.strip(), done.stderr.strip()


@needs_cpp
def test_automatic_choice():
    assert backend.current() == "auto"
    assert backend.select("add_noise", "cpu", torch.float32) == "cpp"
    assert backend.select("add_noise", "cpu", torch.float64) == "reference"
    assert backend.select("solver_step", "cpu", torch.bfloat16) == "reference"
    assert "float64" in backend.explain("add_noise", "cpu", torch.float64)
    assert "device type 'xla'" in backend.explain("add_noise", "xla", torch.float32)


@needs_cpp
def test_use_lasts_until_the_block_ends():
    with backend.use("reference"):
        assert backend.current() == "reference"
        assert backend.select("add_noise", "cpu", torch.float32) == "reference"
        with backend.use("cpp"):
            assert backend.select("add_noise", "cpu", torch.float32) == "cpp"
            assert backend.explain("add_noise", "cpu", torch.float32) == "cpp: asked for"
        assert backend.current() == "reference"
    assert backend.current() == "auto"


def test_use_as_a_statement():
    try:
        backend.use("reference")
        assert backend.current() == "reference"
    finally:
        backend.use("auto")
    assert backend.current() == "auto"


def test_unknown_names():
    with pytest.raises(
        ValueError, match="unknown backend 'cuBLAS': choose one of reference, cpp, triton, cuda"
    ):
        backend.use("cuBLAS")
    assert backend.current() == "auto"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("name", ["cuda", "triton"])
def test_a_backend_that_cannot_run_raises(name, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(BackendError, match=f"backend '{name}' cannot run here: "):
        backend.use(name)
    monkeypatch.setattr(backend, "_asked", name)  # as FASTDIFF_BACKEND does
    with pytest.raises(BackendError, match=f"backend '{name}' cannot run here: "):
        ops.add_noise(torch.ones(1, 2, dtype=torch.float64), torch.ones(1, 2, dtype=torch.float64), 1.0, 1.0)


def test_the_environment():
    code = (
        "from fastdiff import backend; import torch; print(backend.select('add_noise', 'cpu', torch.float32))"
    )
    assert run_python(code, FASTDIFF_BACKEND="reference")[:2] == (0, "reference")
    status, _, stderr = run_python(code, FASTDIFF_BACKEND="nonsense")
    assert status and "unknown backend 'nonsense'" in stderr.splitlines()[-1]


def test_what_has_no_kernel_runs_on_the_reference_only_if_nobody_was_asked():
    x = torch.ones(2, 3, dtype=torch.float64)
    assert ops.add_noise(x, x, 0.5, 0.25).dtype == torch.float64
    if native.problem("cpu") is None:
        with backend.use("cpp"), pytest.raises(BackendError, match="cpp has no add_noise kernel for float64"):
            ops.add_noise(x, x, 0.5, 0.25)


def test_no_kernels_falls_back_with_one_warning(monkeypatch, caplog):
    monkeypatch.setattr(native, "_problems", {})
    monkeypatch.setattr(backend, "_chosen", {})
    monkeypatch.setattr(native, "_find", lambda device: None)
    monkeypatch.setenv("FASTDIFF_BUILD", "0")
    with caplog.at_level(logging.WARNING, "fastdiff"):
        for _ in range(2):
            assert backend.select("add_noise", "cpu", torch.float32) == "reference"
            assert backend.select("group_norm_silu", "cpu", torch.float32) == "reference"
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert "FASTDIFF_BUILD=0" in caplog.text
    with pytest.raises(BackendError, match="cannot run here: it is not built"):
        backend.use("cpp")
    with pytest.raises(BuildError):
        native.isa()


@needs_cpp
def test_instruction_sets():
    assert native.isa() in ("generic", "avx2", "avx512")
    with pytest.raises(ValueError, match="instruction set 'mmx' is not available"):
        native.set_isa("mmx")


def test_importing_prints_and_loads_nothing():
    code = "import logging; logging.basicConfig(level=0); import fastdiff.ops as o; print(o.add_noise.__module__)"
    code += "; from fastdiff import native; print(native.library('cpu')); native.problem('cpu') or print(native.isa())"
    status, stdout, stderr = run_python(code, FASTDIFF_ISA="generic")
    expected = ["fastdiff.ops.add_noise", "None", *(["generic"] if native.problem("cpu") is None else [])]
    assert (status, stdout.splitlines()) == (0, expected)
    assert "fastdiff runs without" not in stderr


def test_threads():
    x = torch.randn(2, 4, 100, 100)
    expected = ops.add_noise(x, x, 0.5, 0.25)
    equal = []

    def work():
        for _ in range(20):
            equal.append(torch.equal(ops.add_noise(x, x, 0.5, 0.25), expected))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert equal == [True] * 80


def _child(seed):
    x = torch.randn(2, 64, 48, 48, generator=torch.Generator().manual_seed(seed))
    return ops.group_norm_silu(x, 8)[0, 0, 0, :4].tolist()  # enough work for threads


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_after_fork_and_spawn(method):
    expected = _child(0)  # the parent has used its threads, which a forked child does not have
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert pool.apply_async(_child, (0,)).get(timeout=60) == expected
