"""Drawing from a torch.Generator inside a kernel: the generator's state goes through the op, and back."""

from __future__ import annotations

import ctypes
import functools
import importlib
import os
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastdiff import backend, native, reference
from fastdiff.ops._register import define
from fastdiff.ops._remembered import ordinary

try:
    _host: Any = importlib.import_module("fastdiff._host")
except ImportError:  # installed without pybind11
    _host = None

FEWEST = 8192
"""Values below which torch.randn is quicker than carrying the state of a CPU generator to and fro."""

STATE = 5056
"""Bytes of a CPU generator's state."""
_CPU = torch.device("cpu")
TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}

# Of every generator: held from reading its state to writing it. A signal's handler may draw too, in the same thread.
_lock = threading.RLock()


def _after_fork() -> None:
    global _lock
    _lock = threading.RLock()  # a thread that held it is not here to let go


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def draw(
    op: str,
    like: Tensor,
    generator: torch.Generator | None,
    call: Callable[[str, Tensor], tuple[Tensor, ...]],
    fresh: Tensor | None = None,
) -> tuple[Tensor, ...] | None:
    """call(backend, state), without its last result: the state afterwards, which the generator receives (torch's global
    one of like's device if None). None where torch.randn must or had better draw: then nothing was drawn.

    fresh: a contiguous tensor like `like` that may be filled and returned.

    Only torch's own functions hold the generator's mutex, so that one of them, in another thread, may draw between
    reading and writing the state. Hence torch's global generator is left to torch.randn where there are other threads;
    a generator of one's own must not be shared with torch's functions in another thread while it draws here."""
    if torch.compiler.is_compiling():
        return None
    common = default_generator(like.device)
    source = generator or common
    if source is common and threading.active_count() > 1:
        return None
    name = None if source is None else kernel(op, like, source)
    if source is None or name is None:
        return None
    with _lock:
        filled = fill(fresh, source) if fresh is not None and name == "cpp" else None
        if fresh is not None and filled is not None:
            return (fresh,) if filled else None
        before = source.get_state()
        made = call(name, before)
        if not _same(source.get_state(), before):
            return None  # a signal's handler, or a thread that Python knows nothing of, drew meanwhile
        source.set_state(made[-1])
    return made[:-1]


def kernel(op: str, like: Tensor, generator: torch.Generator) -> str | None:
    """The backend whose kernel of `op` draws noise like `like` from the generator, or None for torch.randn."""
    if not _at_home(generator, like) or like.numel() < (FEWEST if like.is_cpu else 1):
        return None
    if type(like) not in (Tensor, torch.nn.Parameter) or torch._C._are_functorch_transforms_active():
        return None
    if like.is_cuda and torch.cuda.is_current_stream_capturing():
        return None  # torch registers the generator with the graph, so that each replay draws anew
    name = backend.select(op, "cpu" if like.is_cpu else like.device.type, like.dtype)
    if name == "reference" or distrust(name, like.device, like.dtype):
        return None
    return name


def _at_home(generator: torch.Generator, like: Tensor) -> bool:
    """Whether the generator draws on like's device; "cuda" without an index, as most are made: the current one."""
    here = generator.device
    if like.is_cpu:
        return here.type == "cpu"
    there = like.device
    index = torch.cuda.current_device() if here.type == "cuda" and here.index is None else here.index
    return here.type == there.type and index == there.index


def default_generator(device: torch.device) -> torch.Generator | None:
    """torch's global generator of this device, or None for a kind that kernels do not draw on."""
    if device.type == "cpu":
        return torch.default_generator
    if device.type == "cuda":
        torch.cuda.init()
        index = torch.cuda.current_device() if device.index is None else device.index
        return torch.cuda.default_generators[index]
    return None


def distrust(name: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the kernels of backend `name` may not draw in place of torch.randn, or None: compared once, bit by bit."""
    if name == "triton" and device.type == "cpu":
        return "the triton kernels draw as torch.randn does on a GPU"
    level = native.isa() if name == "cpp" else ""
    if level == "generic":
        return "torch.randn is quicker than the generic C++ kernels"
    return _compared(name, device, dtype, level)


@functools.cache
def _compared(name: str, device: torch.device, dtype: torch.dtype, level: str) -> str | None:
    """Draws several sizes from one generator by the kernel and from its twin by torch.randn. level: a key only."""
    sizes = (15, 16, 17, 31, 640, 5003, 70_001) if device.type == "cpu" else (1, 1000, 70_001, 2_000_003)
    ours, theirs = (torch.Generator(device).manual_seed(20) for _ in range(2))
    for size in sizes:
        like = torch.empty(size, dtype=dtype, device=device)
        drawn, after = OVERLOADS[name](like, ours.get_state(), None, 0)
        ours.set_state(after)
        expected = torch.randn(size, generator=theirs, dtype=dtype, device=device)
        if not (_same_bits(drawn, expected) and _same(ours.get_state(), theirs.get_state())):
            return f"{name} does not draw torch.randn's bits: not {size} values of {dtype} on {device.type}"
    return None


def fill(fresh: Tensor, generator: torch.Generator) -> bool | None:
    """Fills a contiguous CPU tensor past PyTorch's dispatcher, which takes a while for a small draw.

    False where somebody else drew from the generator meanwhile; None where the kernel must be called as an op. Then the
    generator is as it was.
    """
    take = _drawer(native.library("cpu"))
    if take is None or fresh.dtype not in TYPES or not ordinary():
        return None
    done: bool | None = take(generator, fresh.data_ptr(), fresh.numel(), TYPES[fresh.dtype])
    return done


def into(address: int, numel: int, dtype: torch.dtype, generator: Any) -> bool:
    """Draws into memory what torch.randn would, for callers that have made sure of `ordinary` and of the C++ kernels.

    False where it must or had better be drawn otherwise: then nothing was drawn. generator: as in `draw`, or anything.
    """
    common = torch.default_generator
    source = common if generator is None else generator
    if (
        type(source) is not torch.Generator
        or source.device.type != "cpu"
        or not backend.is_direct("randn_like")
    ):
        return False
    if source is common and threading.active_count() > 1:
        return False
    take = _drawer(native.library("cpu"))
    if take is None or numel < FEWEST or distrust("cpp", _CPU, dtype):
        return False
    with _lock:
        return take(source, address, numel, TYPES[dtype]) is True


@functools.lru_cache(maxsize=2)
def _drawer(library: Any) -> Any:
    """fastdiff._host's way to the library's draws, or None."""
    functions = _functions(library)
    if functions is None or not hasattr(_host, "filler"):
        return None
    return _host.filler(*(ctypes.cast(function, ctypes.c_void_p).value for function in functions))


class _Functions(NamedTuple):
    draw: Any
    same: Any


@functools.lru_cache(maxsize=2)
def _functions(library: Any) -> _Functions | None:
    """The C functions of the CPU library: csrc/cpu/q_sample.cpp."""
    found = None if library is None else ctypes.CDLL(str(library))
    if found is None or not hasattr(found, "fastdiff_draw_1"):
        return None
    draw, same, address = found.fastdiff_draw_1, found.fastdiff_same_state, ctypes.c_void_p
    draw.argtypes = (address, ctypes.c_int64, ctypes.c_int, address, address)
    same.argtypes = (address, address)
    return _Functions(draw, same)


def _same_bits(drawn: Tensor, expected: Tensor) -> bool:
    """Whether two tensors are equal, on the CPU without torch's threads: a forked process waits for those for ever."""
    if not drawn.is_cpu:
        return torch.equal(drawn, expected)
    return np.array_equal(drawn.view(torch.uint8).numpy(), expected.view(torch.uint8).numpy())


def _same(state: Tensor, other: Tensor) -> bool:
    """Whether two states of generators are equal, but for what lies between the fields of a CPU one."""
    functions = _functions(native.library("cpu")) if len(state) == len(other) == STATE else None
    if functions is not None:
        return bool(functions.same(state.data_ptr(), other.data_ptr()))
    return state.numpy()[:5044].tobytes() == other.numpy()[:5044].tobytes()


def _fake(x: Tensor, state: Tensor | None, seeds: Tensor | None, stream: int) -> tuple[Tensor, Tensor]:
    noise = torch.empty_like(x, memory_format=torch.contiguous_format)
    return noise, x.new_empty(0, dtype=torch.uint8) if state is None else torch.empty_like(state)


OVERLOADS: dict[str, Any] = define(
    "randn_like(Tensor x, Tensor? state, Tensor? seeds, int stream) -> (Tensor noise, Tensor state)",
    reference.randn_like,
    _fake,
)
