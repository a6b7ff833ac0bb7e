"""solver_step: one row of a sampling plan, the whole update between two model calls, in one kernel.

    F        = gain*(g*output + g_uncond*uncond)
    denoised = clamp(p*x + q*F, lo, hi)                  with bound: clamp(p*x + q*F, -bound, bound)/bound
    value    = u*x + w*denoised
    x_next   = a*x + b*anchor + c0*value + c1*h1 + c2*h2 + c3*h3 + n*noise
    input    = k*x_next                                  in the model's dtype

The weights stand in a float64 table on x's device (fastdiff.reference.COLUMNS) and are read by row number, so that one
captured graph serves every step. A term whose weight is 0 is neither read nor multiplied.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastdiff import backend, reference
from fastdiff.ops import _checks
from fastdiff.ops._register import define, differentiate
from fastdiff.ops._solver_step_grad import backward, setup_context
from fastdiff.reference import Step

Sample = tuple[Tensor, Tensor, Tensor]


def solver_step(
    x: Tensor,
    output: Tensor | None,
    table: Tensor,
    index: Tensor,
    *,
    uncond: Tensor | None = None,
    anchor: Tensor | None = None,
    history: Sequence[Tensor] = (),
    noise: Tensor | None = None,
    bound: Tensor | None = None,
    gain: Tensor | None = None,
    input_dtype: torch.dtype | None = None,
    doubled: bool = False,
) -> Step:
    """Row `index` of `table`, as new tensors. Differentiable in every image tensor, bound and gain.

    x, anchor, noise, history (at most 3, newest first): [B, ...] float32 (float64 on the reference); output, uncond:
    [B, ...] of any float dtype, None where the row has no model output; table: [N, 20] float64; index: [] int64;
    bound, gain: [B] float32. Returns Step(x, value, input): value is empty without output, input is of input_dtype and
    twice the batch if doubled. Raises ValueError or TypeError, also for a tensor that a non-zero weight misses.
    """
    past = (*history, None, None, None)
    if len(history) > 3:
        raise ValueError(f"history holds {len(history)} tensors: a row reads at most 3, newest first")
    images = {"anchor": anchor, "h1": past[0], "h2": past[1], "h3": past[2], "noise": noise}
    check(x, table, index, {"output": output, "uncond": uncond}, images, {"bound": bound, "gain": gain})
    dtype = input_dtype or x.dtype
    if dtype not in _checks.FLOATS:
        raise TypeError(f"input_dtype is {_checks.short(dtype)}: pass float32, float16, bfloat16 or float64")
    name = backend.select("solver_step", x.device.type, x.dtype)
    if name == "reference" or dtype == torch.float64:
        return reference.solver_step(
            x, output, table, index, uncond=uncond, anchor=anchor, history=tuple(history), noise=noise, bound=bound,
            gain=gain, input_dtype=dtype, doubled=doubled,
        )  # fmt: skip
    x = _checks.dense(x)
    tensors = [None if t is None else _checks.laid_out_like(t, x) for t in (output, uncond, *images.values())]
    output, uncond, anchor, h1, h2, h3, noise = tensors
    arguments = (x, output, table, index, uncond, anchor, h1, h2, h3, noise, bound, gain, dtype, doubled)
    if torch.compiler.is_compiling():
        return Step(*OVERLOADS[name](*arguments))
    with _checks.refusals():
        return Step(*OVERLOADS[name](*arguments))


def solver_step_(
    x: Tensor,
    output: Tensor | None,
    table: Tensor,
    index: Tensor,
    *,
    uncond: Tensor | None = None,
    anchor: Tensor | None = None,
    history: Tensor | None = None,
    noise: Tensor | None = None,
    bound: Tensor | None = None,
    gain: Tensor | None = None,
    input: Tensor | None = None,
) -> None:
    """The same row in place, for loops: nothing is allocated and no gradient recorded.

    x becomes x_next, and so does anchor if the row is accepted. history: [S, *x.shape], a ring: value goes to slot % S,
    h_j comes from (slot - j) % S, read before value is written. input: [B, ...] or [2B, ...], the model's dtype,
    receives k*x_next (twice). All of these are dense, laid out like x; output, uncond and noise are copied where
    they are not.
    """
    grads = torch.is_grad_enabled() and (x.requires_grad or (output is not None and output.requires_grad))
    if x.is_cpu and not grads and backend.is_direct("solver_step"):
        try:  # the kernel checks all it reads: checking here first would cost more than the step itself
            NATIVE_(x, output, table, index, uncond, anchor, history, noise, bound, gain, input)
        except RuntimeError:
            _checked_step_(x, output, table, index, uncond, anchor, history, noise, bound, gain, input)
    else:
        _checked_step_(x, output, table, index, uncond, anchor, history, noise, bound, gain, input)
    if not x.is_inference():
        written: tuple[Tensor, ...] = (x,) if history is None else (x, history)
        if anchor is not None or input is not None:
            written += tuple(t for t in (anchor, input) if t is not None)
        torch.autograd.graph.increment_version(written)


def _checked_step_(
    x: Tensor,
    output: Tensor | None,
    table: Tensor,
    index: Tensor,
    uncond: Tensor | None,
    anchor: Tensor | None,
    history: Tensor | None,
    noise: Tensor | None,
    *rest: Tensor | None,
) -> None:
    """The step in place with every check and the copies that kernels need, on whichever backend takes it."""
    check_step_(x, output, table, index, uncond, anchor, history, noise, *rest)
    name = backend.select("solver_step", x.device.type, x.dtype)
    if name == "reference":
        with torch.no_grad():
            _reference_(x, output, table, index, uncond, anchor, history, noise, *rest)
        return
    output, uncond, noise = (
        None if t is None else _checks.laid_out_like(t, x) for t in (output, uncond, noise)
    )
    with _checks.refusals():  # a layout or a missing tensor, which only the kernel knows of
        INPLACE[name](x, output, table, index, uncond, anchor, history, noise, *rest)


def check_step_(
    x: Tensor,
    output: Tensor | None,
    table: Tensor,
    index: Tensor,
    uncond: Tensor | None,
    anchor: Tensor | None,
    history: Tensor | None,
    noise: Tensor | None,
    bound: Tensor | None,
    gain: Tensor | None,
    input: Tensor | None,
) -> None:
    """ValueError or TypeError unless the tensors of a step in place fit together."""
    images = {"anchor": anchor, "noise": noise}
    check(x, table, index, {"output": output, "uncond": uncond}, images, {"bound": bound, "gain": gain})
    check_buffers(x, history, input)
    if torch.is_grad_enabled():
        for name, tensor in {"x": x, "output": output, "uncond": uncond, **images}.items():
            if tensor is not None and tensor.requires_grad:
                raise ValueError(f"{name} requires grad: use solver_step, or torch.no_grad()")


def check(
    x: Tensor,
    table: Tensor,
    index: Tensor,
    outputs: dict[str, Tensor | None],
    images: dict[str, Tensor | None],
    vectors: dict[str, Tensor | None],
) -> None:
    """ValueError or TypeError unless the tensors of a step fit together."""
    _checks.floating("x", x)
    if x.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"x is {_checks.short(x.dtype)}: the state stays float32, pass x.float()")
    if x.dim() < 1:
        raise ValueError("x has no dimensions: it must be [B, ...]")
    if table.dtype != torch.float64 or table.dim() != 2 or table.shape[1] != reference.WIDTH:
        raise ValueError(
            f"table is {_checks.short(table.dtype)} {list(table.shape)}: it must be float64 [N, {reference.WIDTH}]"
        )
    if index.dtype != torch.int64 or index.dim() != 0:
        raise ValueError(
            f"index is {_checks.short(index.dtype)} {list(index.shape)}: it must be an int64 scalar"
        )
    _checks.same_device("table", table, x)
    _checks.same_device("index", index, x)
    for name, tensor in outputs.items():
        if tensor is not None:
            _checks.same(name, tensor, x, dtypes=_checks.FLOATS)
    for name, tensor in images.items():
        if tensor is not None:
            _checks.same(name, tensor, x)
    for name, tensor in vectors.items():
        if tensor is not None:
            _checks.vector(name, tensor, x.shape[0], x)


def check_buffers(x: Tensor, history: Tensor | None, input: Tensor | None) -> None:
    """ValueError or TypeError unless the ring and the input buffer fit x."""
    if history is not None:
        if history.dim() != x.dim() + 1 or history.shape[1:] != x.shape or len(history) < 1:
            raise ValueError(
                f"history has shape {list(history.shape)}: it must be [S, {', '.join(map(str, x.shape))}]"
            )
        _checks.same("history", history[0], x)
    if input is not None:
        half = input[: len(x)]
        _checks.same("input", half, x, dtypes=_checks.FLOATS)
        if len(input) not in (len(x), 2 * len(x)):
            raise ValueError(
                f"input holds {len(input)} samples: it must hold {len(x)} or, doubled, {2 * len(x)}"
            )


def _reference(
    x: Tensor,
    output: Tensor | None,
    table: Tensor,
    index: Tensor,
    uncond: Tensor | None,
    anchor: Tensor | None,
    h1: Tensor | None,
    h2: Tensor | None,
    h3: Tensor | None,
    noise: Tensor | None,
    bound: Tensor | None,
    gain: Tensor | None,
    input_dtype: torch.dtype,
    doubled: bool,
) -> Sample:
    step = reference.solver_step(
        x, output, table, index, uncond=uncond, anchor=anchor, history=(h1, h2, h3), noise=noise, bound=bound,
        gain=gain, input_dtype=input_dtype, doubled=doubled,
    )  # fmt: skip
    return step.x, step.value, step.input


def _fake(x: Tensor, output: Tensor | None, table: Tensor, index: Tensor, *rest: Any) -> Sample:
    input_dtype, doubled = rest[-2:]
    value = x.new_empty(0) if output is None else torch.empty_like(x)
    x_in = torch.empty_like(x, dtype=input_dtype)
    return torch.empty_like(x), value, torch.cat([x_in, x_in]) if doubled else x_in


def _reference_(x: Tensor, output: Tensor | None, table: Tensor, index: Tensor, *rest: Tensor | None) -> None:
    names = ("uncond", "anchor", "history", "noise", "bound", "gain", "input")
    reference.solver_step_(x, output, table, index, **dict(zip(names, rest, strict=True)))


def _fake_(*tensors: Tensor | None) -> None:
    return None


OVERLOADS = define(
    "solver_step(Tensor x, Tensor? output, Tensor table, Tensor index, Tensor? uncond, Tensor? anchor, Tensor? h1, "
    "Tensor? h2, Tensor? h3, Tensor? noise, Tensor? bound, Tensor? gain, ScalarType input_dtype, bool doubled) "
    "-> (Tensor, Tensor, Tensor)",
    _reference,
    _fake,
)
differentiate("solver_step", backward, setup_context)

INPLACE = define(
    "solver_step_(Tensor(a!) x, Tensor? output, Tensor table, Tensor index, Tensor? uncond, Tensor(b!)? anchor, "
    "Tensor(c!)? history, Tensor? noise, Tensor? bound, Tensor? gain, Tensor(d!)? input) -> ()",
    _reference_,
    _fake_,
)
NATIVE_ = INPLACE["cpp"]
