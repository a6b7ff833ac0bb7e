"""stepper: a run's steps in place, the buffers checked once, each step called past PyTorch where it can be.

On the CPU a step over small latents takes less time than its call: an op with seventeen arguments, most of them
optional tensors. What stays the same over a run is checked here; fastdiff._host checks what each step brings along and
calls the C++ kernel. Whatever does not fit goes to solver_step_, which converts it or says what is wrong.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from fastdiff import backend, native
from fastdiff.ops import _checks, _solver_step_checks
from fastdiff.ops._remembered import ordinary, remembered
from fastdiff.ops.solver_step import solver_step_

try:
    _host: Any = importlib.import_module("fastdiff._host")
except ImportError:  # installed without pybind11
    _host = None

TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}


class Stepper(Protocol):
    """Takes row number `row`. output, uncond, noise, bound, gain: as in solver_step_, by position."""

    def __call__(
        self,
        row: int,
        output: Tensor | None = None,
        uncond: Tensor | None = None,
        noise: Tensor | None = None,
        bound: Tensor | None = None,
        gain: Tensor | None = None,
        /,
    ) -> None: ...


class MovingStepper(Protocol):
    """Takes a row from `source` to x; x, input and history (or None) are not looked at but for their memory, which was
    made for it. False where it did not: the other tensors are not of the kind it knows, or the row writes its anchor;
    then nothing was written."""

    def __call__(
        self,
        row: int,
        output: Tensor,
        uncond: Tensor | None,
        noise: Tensor | None,
        bound: Tensor | None,
        gain: Tensor | None,
        source: Tensor,
        x: Tensor,
        input: Tensor | None,
        history: Tensor | None,
        anchor: Tensor | None,
        /,
    ) -> bool | None: ...


def stepper(
    x: Tensor,
    table: Tensor,
    *,
    anchor: Tensor | None = None,
    history: Tensor | None = None,
    mask: Tensor | None = None,
    known: Tensor | None = None,
    known_noise: Tensor | None = None,
    seeds: Tensor | None = None,
    input: Tensor | None = None,
) -> Stepper:
    """A function that takes rows of `table` in place on these tensors, which are solver_step_'s.

    Each call does what solver_step_ does, with the same errors. The tensors must keep their memory while steps are
    taken: where x or input has got other memory the step follows, at solver_step_'s cost; the others' old memory is
    used on, and held until then. seeds: used by rows that add noise and are given none.
    """
    if mask is not None:
        spread = _solver_step_checks.inpainting(x, mask, known, known_noise)
        mask, known, known_noise = (None if t is None else _checks.laid_out_like(t, x) for t in spread)
    steps = ByOp(x, table, anchor, history, mask, known, known_noise, seeds, input)
    return steps.short() or steps


def moving_stepper(
    x: Tensor, table: Tensor, *, history: Tensor | None = None, input: Tensor | None = None
) -> MovingStepper | None:
    """A function that takes rows from one tensor to another, all of them like these, as loops do that return a new one
    from each step; None where there is no way past PyTorch. It holds on to the table alone."""
    steps: MovingStepper | None = ByOp(x, table, None, history, None, None, None, None, input).short(
        moving=True
    )
    return steps


def follower(what: dict[str, Any]) -> Callable[..., Any] | None:
    """A scheduler's step that follows its last, told and taken: csrc/host/follow.h. Only where a moving_stepper is;
    None where fastdiff._host is of an older build."""
    make = getattr(_host, "follower", None)
    return None if make is None else make(what)


def _refused(*arguments: object) -> bool:
    return False


def _moving(table: Tensor) -> dict[str, Any]:
    """What of a prepared run differs where the state is given with each step."""
    own = {"x": 0, "history": 0, "input": 0, "state": None, "shown": None, "shown_address": 0}
    return own | {"written": (), "bump": None, "fallback": _refused, "kept": table.untyped_storage()}


@dataclass(frozen=True, eq=False)
class ByOp:
    """The steps through solver_step_, on whatever device and backend."""

    x: Tensor
    table: Tensor
    anchor: Tensor | None
    history: Tensor | None
    mask: Tensor | None
    known: Tensor | None
    known_noise: Tensor | None
    seeds: Tensor | None
    input: Tensor | None

    def __call__(
        self,
        row: int,
        output: Tensor | None = None,
        uncond: Tensor | None = None,
        noise: Tensor | None = None,
        bound: Tensor | None = None,
        gain: Tensor | None = None,
        /,
    ) -> None:
        if not 0 <= row < len(self.table):
            raise ValueError(f"index: there is no such row in the table: {row} of {len(self.table)}")
        solver_step_(
            self.x, output, self.table, row_numbers(len(self.table), self.x.device)[row], uncond=uncond,
            anchor=self.anchor, history=self.history, noise=noise, bound=bound, gain=gain, mask=self.mask,
            known=self.known, known_noise=self.known_noise, seeds=self.seeds if noise is None else None,
            input=self.input,
        )  # fmt: skip

    def short(self, *, moving: bool = False) -> Any:
        """The same past the dispatcher, or None where that cannot be; moving: as a MovingStepper."""
        x = self.x
        if not x.is_cpu or torch.compiler.is_compiling() or not ordinary():
            return None
        take = _native_step(native.library("cpu")) if _uses_cpp(x) and self._is_plain() else None
        try:
            if take is None:
                return None
            return _host.stepper(self._prepared(take) | (_moving(self.table) if moving else {}))
        except RuntimeError:  # a tensor of torch.func, which has no memory of its own
            return None

    def _prepared(self, take: int) -> dict[str, Any]:
        """What fastdiff._host knows of the run: csrc/host/stepper.h."""
        x = self.x
        shown = x if self.input is None else self.input
        sizes = x.shape
        run = {
            "take": take, "rows": len(self.table), "numel": x.numel(), "images": sizes[0],
            "slots": 0 if self.history is None else len(self.history),
            "input_type": 0 if self.input is None else TYPES[self.input.dtype],
            "copies": 0 if self.input is None else len(self.input) // sizes[0],
        }  # fmt: skip
        held = [None if t is None else t.untyped_storage() for t in self.__dict__.values()]
        written = tuple(t for t in (x, self.input) if t is not None and not t.is_inference())
        memory = {name: _address(tensor) for name, tensor in self.__dict__.items()}
        checks = {
            "tensor_type": Tensor, "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16,
            "shape": sizes, "doubled_shape": (2 * sizes[0], *sizes[1:]), "strides": x.stride(),
            "vector_shape": sizes[:1], "vector_strides": (1,), "state": x,
            "shown": shown, "shown_address": _address(shown),
            "written": written, "bump": _bump() if written else None,
            "fallback": self, "kept": held,
        }  # fmt: skip
        return run | memory | checks

    def _is_plain(self) -> bool:
        """Whether the tensors are what the C++ kernel reads, without a second look at any of them."""
        x, floats = self.x, (self.anchor, self.mask, self.known, self.known_noise)
        given = [t for t in self.__dict__.values() if t is not None]
        if not all(type(t) is Tensor and t.is_cpu and not t.requires_grad and not t.is_neg() for t in given):
            return False
        if (
            x.dtype != torch.float32
            or not x.numel()
            or not _checks.is_dense(x)
            or not self.table.is_contiguous()
        ):
            return False
        if x.shape[0] == 1 and x.stride(0) != x.numel():
            return False
        try:
            _solver_step_checks.check_table(x, self.table)
            _solver_step_checks.check_buffers(x, self.history, self.input)
            _solver_step_checks.check_seeds(x, None, self.seeds)
        except (TypeError, ValueError):
            return False
        if not all(t is None or (t.dtype == x.dtype and _alike(t, x)) for t in floats):
            return False
        ring, x_in = self.history, self.input
        if ring is not None and not (_alike(ring[0], x) and (len(ring) == 1 or ring.stride(0) == x.numel())):
            return False
        if x_in is not None and not (x_in.dtype in TYPES and x_in.stride() == x.stride()):
            return False
        return self.seeds is None or (x.is_contiguous() and self.seeds.is_contiguous())


def _uses_cpp(x: Tensor) -> bool:
    return backend.select("solver_step", "cpu", x.dtype) == "cpp"


def _alike(tensor: Tensor, x: Tensor) -> bool:
    return tensor.shape == x.shape and tensor.stride() == x.stride()


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


@functools.lru_cache(maxsize=4)
def _native_step(library: Any) -> int | None:
    """The address of the library's step, or None where _host is missing or of another age than the library."""
    name = getattr(_host, "STEP", None)
    function = getattr(ctypes.CDLL(str(library)), name, None) if name and library else None
    return None if function is None else ctypes.cast(function, ctypes.c_void_p).value


@functools.cache
def _bump() -> Any:
    """What raises the versions of a tuple of tensors: what torch.autograd.graph.increment_version calls, if it does."""
    direct: Any = getattr(torch._C, "_increment_version", None)
    try:
        direct((torch.zeros(1),))
    except (TypeError, RuntimeError):
        return torch.autograd.graph.increment_version
    return direct


@remembered(32)
def row_numbers(rows: int, device: torch.device) -> tuple[Tensor, ...]:
    """The row numbers as tensors on the device."""
    with torch.inference_mode(False):
        return torch.arange(rows, device=device).unbind(0)
