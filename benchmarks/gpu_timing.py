"""How long a GPU takes, by its own clock.

hot: in a captured graph of many calls, so without launch overhead; cold: in a graph of one call, the cache emptied
before it; launched: as Python calls it, waiting only at the end.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from timing import Case, Result, Spread, Timed, interleaved, spread

CACHE = 256 * 2**20
"""Bytes read to empty the L2 cache: several times an H100's 50 MB. Read, as writing would leave lines that go back to
memory while the next kernel is timed."""


def measured(case: Case, way: str, *, seconds: float, notes: dict[str, Any]) -> Result:
    """The times of a case; way: hot, cold or launched. Without a GPU (a rehearsal) as on the CPU."""
    if torch.cuda.is_available():
        spreads = {name: WAYS[way](each, seconds) for name, each in case.functions.items()}
    else:
        spreads = interleaved(case.functions, seconds=seconds, least=3)
    return Result(case.name, case.error, spreads, case.ours, case.moved, {"way": way, **notes})


def hot(each: Timed, seconds: float) -> Spread:
    """A graph of many calls, replayed."""
    calls = repeats(each.run, 2e-3)
    graph = captured(partial(several, each.run, calls))
    return spread([t / each.units for t in events(graph.replay, seconds, calls)])


def cold(each: Timed, seconds: float) -> Spread:
    """One call in a graph after the cache was filled with something else."""
    scratch, total = torch.zeros(CACHE // 4, device="cuda"), torch.zeros((), device="cuda")
    graph = captured(each.run)

    def empty() -> None:
        torch.sum(scratch, 0, out=total)

    return spread([t / each.units for t in events(graph.replay, seconds, 1, before=empty)])


def launched(each: Timed, seconds: float) -> Spread:
    """Calls from Python, one after another, with the device kept busy or not as it comes."""
    calls = repeats(each.run, 2e-3)
    return spread([t / each.units for t in events(partial(several, each.run, calls), seconds, calls)])


def several(work: Callable[[], Any], calls: int) -> None:
    """Many calls, whose results are dropped at once, so that the next reuses their memory."""
    for _ in range(calls):
        work()


WAYS: dict[str, Callable[[Timed, float], Spread]] = {"hot": hot, "cold": cold, "launched": launched}


def captured(work: Callable[[], Any]) -> torch.cuda.CUDAGraph:
    """A graph of work(), which is warmed up first on a stream of its own."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph


def repeats(work: Callable[[], Any], target: float) -> int:
    """How many calls take about `target` seconds."""
    work()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(5):
        work()
    torch.cuda.synchronize()
    return max(1, min(200, int(target * 5 / (time.perf_counter() - start))))


def events(
    work: Callable[[], Any], seconds: float, calls: int, *, before: Callable[[], Any] = lambda: None
) -> list[float]:
    """Microseconds a call of many runs of work(), by the device's clock, for about `seconds`."""
    work()
    torch.cuda.synchronize()
    found: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(found) < 15:
        pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(5)]
        for start, stop in pairs:
            before()
            start.record()
            work()
            stop.record()
        torch.cuda.synchronize()
        found += [start.elapsed_time(stop) * 1e3 / calls for start, stop in pairs]
    return found
