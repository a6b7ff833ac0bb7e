"""CUDA graphs themselves: the bits of eager runs, from row to row, from run to run and after every kind of change."""

from __future__ import annotations

import functools
import gc
import threading
import time

import pytest
import torch
from torch import nn

import fastdiff
from fastdiff import (
    BrownianNoise,
    CounterNoise,
    DynamicThreshold,
    Guidance,
    Inpaint,
    graphs,
    samplers,
    schedules,
)
from fastdiff.graphs import CannotCapture, graphed
from fastdiff.graphs.run import MOST

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU: torch sees none"),
]
KARRAS = schedules.karras(0.1, 10.0)
SHAPE = (2, 8, 16, 16)


class Net(nn.Module):
    def __init__(self, blocks: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(blocks))
        self.strength = 0.3

    def forward(self, x, t, shift=None):
        h = x
        for block in self.blocks:
            h = torch.nn.functional.silu(block(h)) + h
        h = torch.tanh(h) * (self.strength * torch.sin(t)).to(x.dtype).reshape(-1, 1, 1, 1) + 0.5 * x
        return h if shift is None else h + shift.to(x.dtype).reshape(-1, 1, 1, 1)


@pytest.fixture(autouse=True)
def exact():
    """The same convolution algorithm each time."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        yield
    graphs.clear()


@pytest.fixture
def net():
    return Net().cuda().eval()


@pytest.fixture
def x():
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(5)).cuda()


def run(net, x, **options):
    options = {"schedule": KARRAS, "steps": 6, "prediction": "sample"} | options
    return fastdiff.sample(net, x, **options)


def check(net, x, **options):
    results = []
    for graph in (False, True):
        made = {k: v() if isinstance(v, functools.partial) else v for k, v in options.items()}
        results.append(run(net, x, graph=graph, **made))
    assert torch.equal(*results), (results[0] - results[1]).abs().max()
    return results[1]


@pytest.mark.parametrize("sampler", sorted(samplers.SAMPLERS))
def test_every_sampler(net, x, sampler):
    for options in ({"seed": [1, 2]}, {"noise": functools.partial(CounterNoise, [1, 2])}):
        for steps in (3, 12):
            check(net, x, sampler=sampler, steps=steps, **options)


def test_twenty_schedules_through_one_capture(net, x, monkeypatch):
    captured = []
    from fastdiff.graphs.recorder import CudaRecorder

    record = CudaRecorder.record
    monkeypatch.setattr(
        CudaRecorder, "record", lambda self, function: (captured.append(1), record(self, function))[1]
    )
    for i in range(20):
        check(net, x, schedule=schedules.karras(0.02 + 0.01 * i, 5.0 + i), steps=3 + i, clip=3.0 - 0.1 * i)
    assert len(captured) == 1


@pytest.mark.parametrize("where", ["cpu", "cuda"])
def test_generators_advance(net, x, where):
    states = []
    for graph in (False, True):
        generator = torch.Generator(where).manual_seed(4)
        made = [run(net, x, sampler="euler_ancestral", generator=generator, graph=graph) for _ in range(3)]
        assert not torch.equal(made[0], made[1])
        states.append((generator.get_state().cpu(), *made))
    assert all(torch.equal(a, b) for a, b in zip(*states))
    torch.cuda.manual_seed(1)
    expected = run(net, x, sampler="euler_ancestral"), torch.randn(3, device="cuda")
    other = Net().cuda().eval()
    torch.cuda.manual_seed(1)
    ours = run(other, x, sampler="euler_ancestral", graph=True), torch.randn(3, device="cuda")
    assert all(torch.equal(a, b) for a, b in zip(ours, expected))


def test_a_model_that_draws(x):
    class Draws(Net):
        def forward(self, x, t):
            return super().forward(x + 0.1 * torch.randn_like(x), t)

    net = Draws().cuda().eval()
    results = []
    for graph in (False, True, True):
        torch.manual_seed(3)
        results.append([run(net, x, graph=graph) for _ in range(2)])
    for ours in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(ours, results[0]))
    assert not torch.equal(*results[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_guidance_thresholds_inpainting_and_dtypes(x, dtype):
    net = Net().cuda().eval().to(dtype)
    shift = {"conditioning": {"shift": torch.ones(2, device="cuda")}}
    unconditional = {"shift": torch.tensor([0.5, -0.5], device="cuda")}
    for options in ({}, {"doubled": False}, {"interval": (0.5, 4.0)}, {"rescale": 0.7}):
        check(net, x, dtype=dtype, guidance=Guidance(3.0, unconditional, **options), **shift)
    check(net, x, dtype=dtype, threshold=DynamicThreshold(0.9))
    check(net, x, dtype=dtype, inpaint=Inpaint(x.flip(0), (x > 0).float()), seed=1)
    check(net, x, dtype=dtype, sampler="dpmpp_sde", noise=functools.partial(BrownianNoise, [1, 2]))
    check(net.to(memory_format=torch.channels_last), x, dtype=dtype, sampler="euler_ancestral", seed=1)


CHANGES = {
    "attribute": lambda m: setattr(m, "strength", 0.9),
    "weight replaced": lambda m: setattr(m.blocks[0], "weight", nn.Parameter(m.blocks[0].weight + 1)),
    "weight moved": lambda m: setattr(m.blocks[0].weight, "data", m.blocks[0].weight.data * 2),
    "weight in place": lambda m: m.blocks[0].weight.data.mul_(2),
    "away and back": lambda m: m.cpu().cuda(),
    "one block more": lambda m: m.blocks.append(nn.Conv2d(8, 8, 1, device="cuda")),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_model_is_not_stale(net, x, name):
    check(net, x)
    CHANGES[name](net)
    gc.collect()
    torch.cuda.empty_cache()
    trash = [torch.full((64, 64), float("nan"), device="cuda") for _ in range(64)]
    check(net, x)
    assert len(trash) == 64


def test_callbacks(net, x):
    def change(event, net, seen):
        seen.append((event.x, event.denoised))
        if event.call == 3:
            net.strength = 0.9

    seen = []
    results = []
    for graph in (False, True):
        net.strength = 0.3
        seen.append([])
        results.append(run(net, x, callback=functools.partial(change, net=net, seen=seen[-1]), graph=graph))
    assert torch.equal(*results)
    for eager, ours in zip(*seen, strict=True):
        assert torch.equal(eager[0], ours[0]) and torch.equal(eager[1], ours[1])


def test_memory_is_bounded(net):
    def held(size):
        run(net, torch.randn(1, 8, size, size, device="cuda"), graph=True)
        torch.cuda.synchronize()
        return torch.cuda.memory_reserved()

    sizes = [held(16 + 8 * (i % 8)) for i in range(6 * MOST)]
    assert max(sizes[-8:]) <= max(sizes[: 2 * MOST]) * 1.25 + 2**21
    graphs.clear()
    gc.collect()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() < max(sizes)


def test_a_model_that_reads_on_the_host_runs_eagerly(x):
    class Reads(Net):
        def forward(self, x, t):
            return super().forward(x, t) if t.max().item() > 0 else x

    net = Reads().cuda().eval()
    expected = run(net, x)
    for _ in range(2):
        with pytest.raises(CannotCapture, match="cannot be captured"):
            run(net, x, graph=True)
        assert torch.equal(run(net, x, graph="auto"), expected)
    check(Net().cuda().eval(), x)  # a broken capture leaves nothing behind


def test_streams_and_threads(net, x):
    expected = [run(net, x + i, seed=i, sampler="euler_ancestral") for i in range(6)]
    torch.cuda.synchronize()
    wrong = []

    def work(i):
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(5):
                try:
                    ours = run(net, x + i, seed=i, sampler="euler_ancestral", graph=True)
                    torch.cuda.current_stream().synchronize()
                    if not torch.equal(ours, expected[i]):
                        wrong.append(i)
                except Exception as error:
                    wrong.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_nothing_waits(net, x):
    noise = CounterNoise([1, 2])
    for graph in (False, True):
        run(net, x, noise=noise, sampler="euler_ancestral", graph=graph)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            run(net, x, noise=noise, sampler="euler_ancestral", graph=graph)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@torch.no_grad()
def test_graphed(net, x):
    net.forward = graphed(net)
    times = torch.ones(2, device="cuda")
    kept = []
    for i in range(6):
        sample = x[..., : 8 + 8 * (i % 2)].contiguous() * (i + 1)
        kept.append((net(sample, times * i), net.forward.forward(sample, times * i)))
    for ours, expected in kept:
        assert torch.equal(ours, expected)
    assert (net.forward.report.captured, net.forward.report.eager) == (2, 2), net.forward.report
    for name, change in CHANGES.items():
        change(net)
        for _ in range(3):
            assert torch.equal(net(x, times), net.forward.forward(x, times)), name
    with torch.autocast("cuda", dtype=torch.bfloat16):
        for _ in range(4):
            assert torch.equal(net(x, times), net.forward.forward(x, times))
    streams = [torch.cuda.Stream() for _ in range(3)]
    for i in range(9):
        with torch.cuda.stream(streams[i % 3]):
            assert torch.equal(net(x, times), net.forward.forward(x, times))
    torch.cuda.synchronize()


def test_launches_are_saved():
    """A model of many small kernels is bound by its launches; replayed it is not."""
    net, x = Net(60).cuda().eval(), torch.randn(1, 8, 8, 8, device="cuda")
    seconds = {}
    for graph in (False, True):
        run(net, x, graph=graph, steps=20)
        torch.cuda.synchronize()
        best = float("inf")
        for _ in range(5):
            start = time.perf_counter()
            run(net, x, graph=graph, steps=20)
            torch.cuda.synchronize()
            best = min(best, time.perf_counter() - start)
        seconds[graph] = best
    assert seconds[True] < 0.7 * seconds[False], seconds
