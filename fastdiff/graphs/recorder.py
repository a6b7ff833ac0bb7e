"""Recorders: what turns a function on fixed tensors into something that replays its kernels, without its Python.

`CudaRecorder` makes CUDA graphs. Another device needs only a class with the same three methods in RECORDERS.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import torch

from fastdiff import backend
from fastdiff.errors import FastdiffError
from fastdiff.ops._remembered import ordinary

T = TypeVar("T")
Replay = Callable[[], None]


class CannotCapture(FastdiffError):
    """A graph was asked for (graph=True) where none can be captured; the message says why."""


class Recorder(Protocol):
    """Records on one device. Its recordings share memory, so that they are replayed one after the other."""

    def record(self, function: Callable[[], T]) -> tuple[Replay, T]:
        """Runs `function`, at least once, and returns what replays its kernels and what it returned, tensors that each
        replay writes anew. Any exception means that it cannot be recorded; nothing is left behind then."""
        ...

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Around all that touches the recordings' tensors: on whatever stream, after what came before."""
        ...

    def settle(self) -> None:
        """Waits until the device has done with the recordings, before their memory is given back."""
        ...


class CudaRecorder:
    """Captures CUDA graphs, all in one pool of memory."""

    WARM_UPS = 2
    """Runs before the capture, for what is done once: workspaces, plans, compilations, which no graph can hold."""

    _one_at_a_time = threading.RLock()  # again by one thread: a warm-up may come to another module's capture

    def __init__(self, device: torch.device) -> None:
        self.device = torch.device(
            "cuda", torch.cuda.current_device() if device.index is None else device.index
        )
        self.pool: Any = None  # CUDAGraph.pool()'s
        self.graphs: weakref.WeakSet[torch.cuda.CUDAGraph] = weakref.WeakSet()  # those in this pool
        self.done: torch.cuda.Event | None = None

    def record(self, function: Callable[[], T]) -> tuple[Replay, T]:
        """Warms up and captures on a stream of its own. Synchronises, once."""
        stream = torch.cuda.Stream(self.device)
        graph = torch.cuda.CUDAGraph()
        alive = list(self.graphs)  # held until the capture ends
        # A pool goes with the last graph in it, and PyTorch refuses its number while its memory is still cached.
        pool = self.pool if alive else None
        with self._one_at_a_time, torch.cuda.device(self.device):
            current = torch.cuda.current_stream(self.device)
            stream.wait_stream(current)
            with torch.cuda.stream(stream):
                for _ in range(self.WARM_UPS):
                    function()
            try:
                # Other threads may go on allocating: their calls are no part of the graph and do not break it.
                with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                    made = function()
            except BaseException:
                torch.cuda.set_stream(current)  # which torch.cuda.graph leaves, should its own end fail
                self.graphs.clear()  # never again into a pool that a capture was broken off in
                raise
            current.wait_stream(stream)
        self.pool = pool or graph.pool()
        self.graphs.add(graph)
        return graph.replay, made

    @contextmanager
    def turn(self) -> Iterator[None]:
        """On the caller's stream, after the last turn on any."""
        stream = torch.cuda.current_stream(self.device)
        if self.done is None:
            self.done = torch.cuda.Event()
        else:
            stream.wait_event(self.done)
        try:
            yield
        finally:
            self.done.record(stream)

    def settle(self) -> None:
        """Waits for the last turn."""
        if self.done is not None:
            self.done.synchronize()


RECORDERS: dict[str, Callable[[torch.device], Recorder]] = {"cuda": CudaRecorder}
"""device type -> what makes the recorder of a device."""


def record(recorder: Recorder, device: torch.device, function: Callable[[], T]) -> tuple[Replay, T]:
    """recorder.record(function), so that neither the random numbers of what follows nor its casts depend on it."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []), _casts_in_the_graph():
        return recorder.record(function)


def reason_of(error: BaseException) -> str:
    """In a line, why a capture failed: the first error, of which the end of the capture only makes another."""
    first = error
    while first.__context__ is not None:
        first = first.__context__
    return str(first).splitlines()[0] if str(first) else repr(first)


def recorder_for(device: torch.device) -> Recorder:
    """A new recorder. Raises CannotCapture for a device that has none."""
    if device.type not in RECORDERS:
        raise CannotCapture(
            f"graphs are captured on a CUDA device, and the images are on {device}: graph=False"
        )
    return RECORDERS[device.type](device)


@contextmanager
def _casts_in_the_graph() -> Iterator[None]:
    """Autocast keeps weights it has cast until its block ends; a graph must cast them itself, each time."""
    kept = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    torch.clear_autocast_cache()
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(kept)


def settings(device_type: str) -> tuple[object, ...]:
    """What outside a model decides which kernels it launches, and so belongs to a graph's key."""
    autocast = torch.is_autocast_enabled(device_type)
    cudnn = torch.backends.cudnn
    return (
        torch.is_inference_mode_enabled(),
        autocast and torch.get_autocast_dtype(device_type),
        torch.get_default_dtype(),
        torch.get_deterministic_debug_mode(),
        backend.current(),
        cudnn.enabled,
        cudnn.benchmark,
        cudnn.deterministic,
        *_precisions(),
        *_attention(),
    )


def _precisions() -> tuple[object, ...]:
    ask = getattr(torch._C, "_get_fp32_precision_getter", None)
    try:
        if ask is not None:  # where the older switches refuse to be read once the newer ones were set
            return tuple(ask("cuda", op) for op in ("matmul", "conv", "rnn"))
        return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    except RuntimeError:
        return ()


def _attention() -> tuple[bool, ...]:
    cuda = torch.backends.cuda
    return (
        cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.math_sdp_enabled(), cuda.cudnn_sdp_enabled(),
    )  # fmt: skip


def aside() -> str | None:
    """Why no graph may be captured or replayed at this moment, or None."""
    if torch.is_grad_enabled():
        return "gradients are recorded: use torch.no_grad()"
    if torch.compiler.is_compiling() or not ordinary():
        return "the call is being traced"
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        return "another graph is being captured"
    return None
