"""What the tests of captured loops share: a small denoiser, the same run eagerly and by graphs, and the places where
they run: the CPU, with a stand-in for CUDA graphs (standing_in.py), and a GPU where there is one."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import fastdiff
from fastdiff import Guidance, backend, graphs, schedules
from fastdiff.graphs import recorder
from gpu_only import GPU_ONLY
from standing_in import StandIn

KARRAS = schedules.karras(0.1, 10.0)
SHAPE = (2, 8, 8, 8)

needs_weights_on_the_device = pytest.mark.skipif(
    bool(backend.unavailable("cpp")), reason="the reference reads its weights on the host"
)


class Net(nn.Module):
    """A denoiser with a number, weights and a part that tests change."""

    def __init__(self, blocks: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(blocks))
        self.strength = 0.3

    def forward(self, x, t, shift=None, extra=None):
        h = x
        for block in self.blocks:
            h = nn.functional.silu(block(h)) + h
        h = torch.tanh(h) * (self.strength * torch.sin(t)).to(x.dtype).reshape(-1, 1, 1, 1) + 0.5 * x
        if shift is not None:
            h = h + shift.to(x.dtype).reshape(-1, 1, 1, 1)
        return h if extra is None else h * extra["by"] + extra["plus"][0]


class Reads(Net):
    """It branches on a value of the device's."""

    def forward(self, x, t, **more):
        return super().forward(x, t, **more) if t.max() > 0 else x


CHANGES: dict[str, Callable[[Net], object]] = {
    "attribute": lambda m: setattr(m, "strength", 0.9),
    "weight replaced": lambda m: setattr(m.blocks[0], "weight", nn.Parameter(m.blocks[0].weight + 1)),
    "weight moved": lambda m: setattr(m.blocks[0].weight, "data", m.blocks[0].weight.data * 2),
    "weight in place": lambda m: m.blocks[0].weight.data.mul_(2),
    "one block more": lambda m: m.blocks.append(nn.Conv2d(8, 8, 1, device=m.blocks[0].weight.device)),
}


@dataclass
class Place:
    """Where graphs are captured. recorders: those made so far, one for each model."""

    device: torch.device
    recorders: list[Any]

    @property
    def records(self) -> list[int]:
        """How many graphs each model has had captured."""
        return [each.records for each in self.recorders]

    def net(self, kind: type[Net] = Net, **options: int) -> Net:
        return kind(**options).to(self.device).eval()

    def randn(self, *shape: int, seed: int = 5) -> Tensor:
        return torch.randn(shape or SHAPE, generator=torch.Generator().manual_seed(seed)).to(self.device)

    def tensor(self, *values: float) -> Tensor:
        return torch.tensor(values, device=self.device)


class CountingRecorder(recorder.CudaRecorder):
    """CudaRecorder, counting as the stand-in does."""

    made: ClassVar[list[CountingRecorder]] = []

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.records = self.settled = 0
        CountingRecorder.made.append(self)

    def record(self, function):
        made = super().record(function)
        self.records += 1
        return made

    def settle(self) -> None:
        super().settle()
        self.settled += 1


@pytest.fixture(
    params=[
        pytest.param("cpu", marks=needs_weights_on_the_device),
        pytest.param("cuda", marks=GPU_ONLY),
    ]
)
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """The CPU and the GPU, on which the same bits come each time."""
    kind = {"cpu": StandIn, "cuda": CountingRecorder}[request.param]
    monkeypatch.setitem(recorder.RECORDERS, request.param, kind)
    monkeypatch.setattr(kind, "made", [])
    exact = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
    with exact:
        yield Place(torch.device(request.param), kind.made)
    graphs.clear()


def run(net: Any, x: Any, **options: Any) -> Tensor:
    options = {"schedule": KARRAS, "steps": 5, "prediction": "sample"} | options
    return fastdiff.sample(net, x, **options)


def check(net: Any, x: Any, **options: Any) -> Tensor:
    """The run by graphs has the bits of the eager one. Options may be partials that make them afresh."""
    results = []
    for graph in (False, True):
        made = {k: v() if isinstance(v, functools.partial) else v for k, v in options.items()}
        results.append(run(net, x, graph=graph, **made))
    assert torch.equal(*results), (results[0] - results[1]).abs().max()
    assert results[0].stride() == results[1].stride() and torch.isfinite(results[1]).all()
    return results[1]


def guided(place: Place, scale: float, **options: Any) -> Guidance:
    """Guidance away from what a shift of its own gives."""
    return Guidance(scale, {"shift": place.tensor(0.5, -0.5)}, **options)
