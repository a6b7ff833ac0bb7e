"""CUDA graphs, what only a GPU can show: random numbers within them, memory, streams, waits and time. The bits of
every kind of run are in test_graph_loop.py and test_graph_loop_models.py, which run there too."""

from __future__ import annotations

import functools
import gc
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from fastdiff import BrownianNoise, CounterNoise, graphs
from fastdiff.graphs import graphed
from fastdiff.graphs.run import MOST
from gpu_only import GPU_ONLY
from graph_cases import CHANGES, Net, check, run

pytestmark = [
    *GPU_ONLY,
    pytest.mark.parametrize("place", ["cuda"], indirect=True, ids=["cuda"]),
]


def test_a_model_that_draws(place):
    class Draws(Net):
        def forward(self, x, t):
            return super().forward(x + 0.1 * torch.randn_like(x), t)

    net, x, results = place.net(Draws), place.randn(), []
    for graph in (False, True, True):
        torch.manual_seed(3)
        results.append([run(net, x, graph=graph) for _ in range(2)])
    for ours in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(ours, results[0]))
    assert not torch.equal(*results[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_a_brownian_path_and_channels_last(place, dtype):
    net, x = place.net().to(dtype), place.randn()
    check(net, x, dtype=dtype, sampler="dpmpp_sde", noise=functools.partial(BrownianNoise, [1, 2]))
    check(net.to(memory_format=torch.channels_last), x, dtype=dtype, sampler="euler_ancestral", seed=1)


def test_a_model_moved_away_and_back_is_not_stale(place):
    net, x = place.net(), place.randn()
    before = check(net, x)
    net.cpu().cuda()
    torch.cuda.empty_cache()
    assert torch.equal(check(net, x), before)


def test_memory_is_bounded(place):
    net = place.net()

    def held(size):
        run(net, place.randn(1, 8, size, size), graph=True)
        torch.cuda.synchronize()
        return torch.cuda.memory_reserved()

    sizes = [held(16 + 8 * (i % 8)) for i in range(6 * MOST)]
    assert max(sizes[-8:]) <= max(sizes[: 2 * MOST]) * 1.25 + 2**21
    graphs.clear()
    gc.collect()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() < max(sizes)


def test_streams_and_threads(place):
    net, x = place.net(), place.randn()
    expected = [run(net, x + i, seed=i, sampler="euler_ancestral") for i in range(6)]
    torch.cuda.synchronize()

    def work(i):
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(5):
                ours = run(net, x + i, seed=i, sampler="euler_ancestral", graph=True)
                torch.cuda.current_stream().synchronize()
                assert torch.equal(ours, expected[i]), i

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))


@pytest.mark.parametrize("graph", [False, True])
def test_nothing_waits(place, graph):
    """In "error" mode torch raises where the host waits for the device."""
    net, x, noise = place.net(), place.randn(), CounterNoise([1, 2])
    expected = run(net, x, noise=noise, sampler="euler_ancestral", graph=graph)
    torch.cuda.synchronize()
    waited, result = None, None
    torch.cuda.set_sync_debug_mode("error")
    try:
        result = run(net, x, noise=noise, sampler="euler_ancestral", graph=graph)
    except RuntimeError as error:
        waited = error
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert waited is None
    assert torch.equal(result, expected)


@torch.no_grad()
def test_graphed(place):
    net, x = place.net(), place.randn()
    net.forward = graphed(net)
    times = torch.ones(2, device="cuda")
    kept = []
    for i in range(6):
        sample = x[..., : 4 + 4 * (i % 2)].contiguous() * (i + 1)
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


def test_launches_are_saved(place):
    """A model of many small kernels is bound by its launches; replayed it is not."""
    net, x, seconds = place.net(blocks=60), place.randn(), {}
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
