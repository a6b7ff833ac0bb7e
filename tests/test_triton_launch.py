"""The cached launcher picks the binary that Triton itself would pick, on a driver that records instead of launching."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton", reason="Triton is not installed: pip install triton")
import triton.language as tl  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402

from fastdiff.kernels.launch import Launcher, direct  # noqa: E402

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing"
)

OPTIONS = {"enable_fp_fusion": False}


def add_kernel(out_ptr, x_ptr, more_ptr, size, scale, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.arange(0, BLOCK)
    inside = at < size
    total = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32) * scale
    if more_ptr is not None:
        total += tl.load(more_ptr + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + at, total.to(out_ptr.dtype.element_ty), mask=inside)


class Recorder:
    """A driver of one GPU: loads nothing, and writes down every launch as (binary, grid, stream, arguments)."""

    def __init__(self) -> None:
        self.launches: list[tuple[Any, ...]] = []
        self.stream = 7
        self.binaries: dict[str, int] = {}
        properties = {"max_shared_mem": 232448, "multiprocessor_count": 132}
        self.utils = SimpleNamespace(load_binary=self.load, get_device_properties=lambda device: properties)

    def load(self, name: str, binary: bytes, *rest: Any) -> tuple[int | None, ...]:
        number = self.binaries.setdefault(str(hash(binary)), len(self.binaries) + 1)
        return None, number, 32, 0, 1024  # no module to unload, function, registers, spills, most threads

    def launcher_cls(self, src: Any, metadata: Any) -> Any:
        def launch(x: int, y: int, z: int, stream: int, function: int, packed: Any, *rest: Any) -> None:
            arguments = tuple(a.data_ptr() if isinstance(a, torch.Tensor) else a for a in rest[3:])
            self.launches.append((function, (x, y, z), stream, packed, arguments))

        return launch

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return self.stream

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cuda", 0)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    recorder = Recorder()
    monkeypatch.setattr(type(triton.runtime.driver), "active", recorder, raising=False)
    yield recorder


@pytest.fixture
def kernel() -> Any:
    return triton.jit(add_kernel)


def tensors(*, offset: int = 0, dtype: torch.dtype = torch.float32, more: bool = True) -> tuple[Any, ...]:
    x = torch.zeros(4096, dtype=dtype)[offset:]
    return x, x, x if more else None


KINDS: dict[str, tuple[tuple[Any, ...], tuple[Any, ...], tuple[Any, ...]]] = {
    "aligned": (tensors(), (64, 0.5), (128,)),
    "unaligned": (tensors(offset=1), (64, 0.5), (128,)),
    "one unaligned": ((*tensors()[:2], tensors(offset=3)[2]), (64, 0.5), (128,)),
    "no third": (tensors(more=False), (64, 0.5), (128,)),
    "half": (tensors(dtype=torch.float16), (64, 0.5), (128,)),
    "odd size": (tensors(), (65, 0.5), (128,)),
    "size one": (tensors(), (1, 0.5), (128,)),
    "wide size": (tensors(), (2**31 + 1, 0.5), (128,)),
    "wide multiple": (tensors(), (2**32, 0.5), (128,)),
    "wider size": (tensors(), (2**63 + 1, 0.5), (128,)),
    "integer scale": (tensors(), (64, 3), (128,)),
    "another block": (tensors(), (64, 0.5), (256,)),
}


def test_picks_what_triton_picks(driver: Recorder, kernel: Any) -> None:
    """The first call, a repeated one and Triton's own launch send the same binary the same arguments."""
    launcher = Launcher(kernel, num_warps=2, **OPTIONS)
    for _ in range(2):  # the second time every kind is known, and has been through another kind meanwhile
        for name, (images, scalars, constants) in KINDS.items():
            launcher(3, images, scalars, constants)
            launcher((3, 1), images, scalars, constants)
            kernel[(3,)](*images, *scalars, *constants, num_warps=2, **OPTIONS)
            first, second, own = driver.launches[-3:]
            assert first == second == own, name
    assert len({launch[0] for launch in driver.launches}) == len(KINDS)
    assert driver.launches[-1][2] == 7


def test_repeats_past_triton(driver: Recorder, kernel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the first call of a kind goes through Triton's launch, whatever its grid, addresses and stream."""
    launcher = Launcher(kernel, **OPTIONS)
    launcher(1, tensors(), (64, 0.5), (128,))
    monkeypatch.setattr(kernel, "run", None)
    driver.stream = 8
    another = tensors()
    launcher((2, 3, 4), another, (48, 0.25), (128,))
    function, grid, stream, _, arguments = driver.launches[-1]
    assert (function, grid, stream) == (driver.launches[0][0], (2, 3, 4), 8)
    assert arguments == (*(t.data_ptr() for t in another), 48, 0.25, 128)
    with pytest.raises(TypeError):  # another kind would need it
        launcher(1, tensors(), (49, 0.5), (128,))


def test_warps_by_the_call(driver: Recorder, kernel: Any) -> None:
    launcher = Launcher(kernel, num_warps=4, **OPTIONS)
    for warps in (None, 8, None, 8):
        launcher(1, tensors(), (64, 0.5), (128,), num_warps=warps)
    assert [launch[3][0] for launch in driver.launches] == [4, 8, 4, 8]


def test_profilers_hear_of_launches(driver: Recorder, kernel: Any) -> None:
    """With a hook in place every launch is Triton's own."""
    launcher = Launcher(kernel, **OPTIONS)
    launcher(1, tensors(), (64, 0.5), (128,))
    calls = []
    run, kernel.run = kernel.run, lambda *a, **k: calls.append(1) or run(*a, **k)
    chain = triton.knobs.runtime.launch_enter_hook
    hook = lambda metadata: None  # noqa: E731
    chain.add(hook)
    launcher(1, tensors(), (64, 0.5), (128,))
    chain.remove(hook)
    launcher(1, tensors(), (64, 0.5), (128,))
    assert (len(driver.launches), len(calls)) == (3, 1)


def test_unknown_insides_are_left_alone(driver: Recorder, kernel: Any) -> None:
    """What a launch returns is used only if it is the compiled kernel this file knows."""
    assert direct(None) is None
    assert direct(type("CompiledKernel", (), {})()) is None


def test_threads_share_it(driver: Recorder, kernel: Any) -> None:
    launcher = Launcher(kernel, **OPTIONS)
    for images, scalars, constants in KINDS.values():
        launcher(1, images, scalars, constants)
    expected = [launch[0] for launch in driver.launches]
    with ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(launcher, 1, *kind) for _ in range(50) for kind in KINDS.values()]
    assert all(call.result() is None for call in calls)
    found = [launch[0] for launch in driver.launches]
    assert sorted(found) == sorted(expected * 51)
