"""What the tests of the ops share: one tolerance table, the criterion, and the backends this machine can run."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fastdiff import backend, models, native
from fastdiff.cli import main
from fastdiff.models import checkpoint
from graph_cases import place  # noqa: F401
from standing_in import stand_in  # noqa: F401
from tiny_model import tiny_model

TOLERANCE = {
    torch.float64: 1e-13,
    torch.float32: 5e-7,
    torch.float16: 5e-4,
    torch.bfloat16: 4e-3,
}
"""What an op may differ from float64 beyond the criterion, relative to the largest value: about one rounding."""

HALF_AND_SINGLE = [torch.float32, torch.float16, torch.bfloat16]


def assert_accurate(actual: Tensor, exact: Tensor, composed: Tensor) -> None:
    """The error of actual against float64 is at most twice that of the plain PyTorch composition in actual's dtype."""
    assert actual.shape == exact.shape
    assert torch.isfinite(actual).all()
    if exact.numel() == 0:
        return
    error = (actual.double() - exact).abs().max().item()
    allowed = 2 * (composed.double() - exact).abs().max().item()
    allowed += TOLERANCE[actual.dtype] * exact.abs().max().item()
    assert error <= allowed, f"error {error:.3g}, allowed {allowed:.3g}"


def runnable(op: str) -> list[str]:
    """The backends that have a kernel for op and run on this machine's CPU."""
    candidates = ["reference", *(name for name in ("cpp", "triton") if name in backend.KERNELS[op])]
    return [name for name in candidates if name == "reference" or not backend.unavailable(name)]


def instruction_sets() -> list[str]:
    """The levels of the C++ kernels that this processor has."""
    if native.problem("cpu"):
        return []
    found = []
    for name in ("generic", "avx2", "avx512"):
        try:
            native.set_isa(name)
        except ValueError:
            continue
        found.append(name)
    native.set_isa("")
    return found


@pytest.fixture(params=["reference", *(f"cpp-{isa}" for isa in instruction_sets())])
def everywhere(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs a test on the reference and on the C++ kernels at every level the processor has."""
    name, _, isa = request.param.partition("-")
    with backend.use(name):
        if isa:
            native.set_isa(isa)
        yield request.param
        if isa:
            native.set_isa("")


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Fresh memory holds NaN, so that an element no kernel wrote shows."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def single_thread() -> None:
    """Torch on one thread: most tensors here are small, and waking another thread costs more than it brings."""
    torch.set_num_threads(1)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Torch on `count` threads, for a test of what they change."""
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that runs in milliseconds."""
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    models.save(path, tiny_model(), dtype=torch.float32)
    return path


@pytest.fixture
def fastdiff(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Runs a command line in an empty folder with the tiny model as the bundled one: (code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checkpoint, "BUNDLED", tiny)

    def command(line: str = "", *more: str) -> tuple[int, str, str]:
        try:
            code = main([*shlex.split(line), *more])
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return command
