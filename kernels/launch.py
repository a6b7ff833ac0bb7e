"""Launching a Triton kernel again without asking again what it is.

Triton binds, specialises and looks up at every call, which costs more than a small kernel runs. A Launcher does so once
for each kind of call and then hands the arguments to the compiled kernel.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

_KNOBS: Any = importlib.import_module("triton.knobs").runtime


class Compiled(NamedTuple):
    """What a repeated call needs: run(x, y, z, stream, *middle, *arguments)."""

    run: Callable[..., Any]
    middle: tuple[Any, ...]
    stream: Callable[[int], int]  # of a device, the caller's


class Launcher:
    """Calls one @triton.jit kernel, with Triton's own launch the first time of each kind and directly from then on.

        scale = Launcher(scale_kernel, num_warps=4, enable_fp_fusion=False)
        scale(blocks, (out, x, weight), (size,), (stride, BLOCK))

    The kernel's parameters stand in this order: pointers, then integers and floats, then constexprs; all are passed.

    grid: the number of programs, or a tuple of up to three. tensors: on one GPU, the first never None; None for a later
    one makes that pointer the constexpr None (`if ptr is not None:` in the kernel). scalars: int or float.
    constants: hashable, and for one parameter of one type always (1, True and 1.0 are one key). num_warps: for this
    call, instead of the Launcher's. Runs on the tensors' device and the caller's current stream, from any thread.

    Calls are of one kind if their tensors agree in device, dtype and whether they are 16-byte aligned, their integers
    in whether they are 1, multiples of 16, and fit 32 or 64 bits, and their constants are equal: just what Triton
    compiles anew for. Hooks (Proton's), the interpreter and a Triton whose insides look different get its own launch.
    """

    def __init__(self, kernel: Any, **options: Any) -> None:
        self.kernel = kernel
        self.options = options
        self._compiled: dict[tuple[Any, ...], Compiled | None] = {}

    def __call__(
        self,
        grid: int | tuple[int, ...],
        tensors: Sequence[Tensor | None],
        scalars: Sequence[int | float] = (),
        constants: tuple[Any, ...] = (),
        *,
        num_warps: int | None = None,
    ) -> None:
        assert tensors[0] is not None
        device = tensors[0].get_device()
        if device >= 0 and device != torch.cuda.current_device():
            with torch.cuda.device(device):
                return self(grid, tensors, scalars, constants, num_warps=num_warps)
        pointers, key = self._kind(device, tensors, scalars, constants, num_warps)
        compiled = self._compiled.get(key)
        if compiled is None or _hooked():
            return self._launch(key, grid, tensors, scalars, constants, num_warps)
        x, y, z = (grid, 1, 1) if isinstance(grid, int) else (*grid, 1, 1)[:3]
        stream = compiled.stream(device)
        compiled.run(x, y, z, stream, *compiled.middle, *pointers, *scalars, *constants)

    def _kind(
        self,
        device: int,
        tensors: Sequence[Tensor | None],
        scalars: Sequence[int | float],
        constants: tuple[Any, ...],
        num_warps: int | None,
    ) -> tuple[list[int | None], tuple[Any, ...]]:
        """The tensors' addresses, and what calls must have in common to run the same compiled kernel."""
        pointers: list[int | None] = []
        key: list[Any] = [device, num_warps, constants]
        for tensor in tensors:
            if tensor is None:
                pointers.append(None)
                key.append(None)
                continue
            pointer = tensor.data_ptr()
            pointers.append(pointer)
            key.append(tensor.dtype)
            if pointer & 15:
                key.append("unaligned")
        for scalar in scalars:
            if type(scalar) is float:
                key.append("float")
            elif scalar == 1:
                key.append(1)
            else:
                width = 2 if -0x80000000 <= scalar <= 0x7FFFFFFF else 4 if scalar < 2**63 else 6
                key.append(width + (scalar % 16 == 0))
        return pointers, tuple(key)

    def _launch(
        self,
        key: tuple[Any, ...],
        grid: int | tuple[int, ...],
        tensors: Sequence[Tensor | None],
        scalars: Sequence[int | float],
        constants: tuple[Any, ...],
        num_warps: int | None,
    ) -> None:
        """Triton's own launch, which compiles; remembers what it made."""
        options = self.options if num_warps is None else {**self.options, "num_warps": num_warps}
        programs = (grid,) if isinstance(grid, int) else grid
        made = self.kernel[programs](*tensors, *scalars, *constants, **options)
        if key not in self._compiled:
            self._compiled[key] = direct(made)


def direct(made: Any) -> Compiled | None:
    """How to run the compiled kernel that a launch returned, or None if this Triton does it in a way unknown here."""
    if type(made).__name__ != "CompiledKernel":  # None under the interpreter
        return None
    try:
        run, function, metadata = made.run, made.function, made.packed_metadata
        stream = triton.runtime.driver.active.get_current_stream
    except AttributeError:
        return None
    if triton.__version__.startswith(("3.5.", "3.6.")) and _needs_no_scratch(run):
        # past the launcher's own Python, which only finds out that there is no scratch memory to allocate
        flags = (run.launch_cooperative_grid, run.launch_pdl)
        return Compiled(run.launch, (function, *flags, None, None, metadata, None, None, None), stream)
    return Compiled(run, (function, metadata, None, None, None), stream)


def _needs_no_scratch(run: Any) -> bool:
    names = ("launch", "launch_cooperative_grid", "launch_pdl")
    sizes = [getattr(run, name, None) for name in ("global_scratch_size", "profile_scratch_size")]
    return all(hasattr(run, name) for name in names) and sizes == [0, 0]


def _hooked() -> bool:
    """Whether something (a profiler) wants to hear of launches."""
    enter, leave = _KNOBS.launch_enter_hook, _KNOBS.launch_exit_hook
    return bool(getattr(enter, "calls", enter)) or bool(getattr(leave, "calls", leave))
