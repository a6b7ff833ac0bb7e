"""CudaRecorder's use of PyTorch's graphs, as far as it shows without a GPU: torch.cuda is stood in for."""

from __future__ import annotations

import contextlib
import itertools

import pytest
import torch

from fastdiff.graphs.recorder import CudaRecorder


class Stream:
    def wait_stream(self, other):
        pass


class Graph:
    """A graph that is in a pool of memory: of its own, or one that it was given."""

    numbers = itertools.count()

    def pool(self):
        return self.number

    def replay(self):
        pass


@pytest.fixture
def pools(monkeypatch):
    """The pools that captures were given, None for a new one."""
    given = []

    @contextlib.contextmanager
    def capture(graph, pool, **_):
        given.append(pool)
        graph.number = next(Graph.numbers) if pool is None else pool
        yield

    cuda = torch.cuda
    for name in ("device", "stream"):
        monkeypatch.setattr(cuda, name, lambda _: contextlib.nullcontext())
    monkeypatch.setattr(cuda, "Stream", lambda _: Stream())
    monkeypatch.setattr(cuda, "current_stream", lambda _: Stream())
    monkeypatch.setattr(cuda, "set_stream", lambda _: None)
    monkeypatch.setattr(cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(cuda, "graph", capture)
    return given


def test_a_pool_is_used_as_long_as_a_graph_is_in_it(pools):
    recorder = CudaRecorder(torch.device("cuda", 0))
    first, second = recorder.record(int), recorder.record(int)
    number = first[0].__self__.number
    assert pools == [None, number] and second[0].__self__.number == number
    del first
    third = recorder.record(int)
    del second, third
    fourth, _ = recorder.record(int)
    assert pools == [None, number, number, None]
    recorder.record(int)
    assert pools[-1] == fourth.__self__.number != number


def test_no_pool_that_a_capture_was_broken_off_in(pools):
    recorder, calls = CudaRecorder(torch.device("cuda", 0)), itertools.count()

    def failing():
        if next(calls) >= recorder.WARM_UPS:
            raise RuntimeError("not while capturing")

    first, _ = recorder.record(int)
    with pytest.raises(RuntimeError, match="not while capturing"):
        recorder.record(failing)
    second, _ = recorder.record(int)
    recorder.record(int)
    assert pools == [None, first.__self__.number, None, second.__self__.number]


def test_a_capture_may_come_while_another_warms_up(pools):
    outer, inner = (CudaRecorder(torch.device("cuda", 0)) for _ in range(2))
    captured = []

    def function():
        if not captured:
            captured.append(inner.record(int))
        return 7

    replay, made = outer.record(function)
    assert made == 7 and pools == [None, None] and replay.__self__ is not captured[0][0].__self__
