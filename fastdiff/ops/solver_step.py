"""solver_step: one row of a sampling plan, the whole update between two model calls, in one kernel.

    F        = gain*(g*output + g_uncond*uncond)
    denoised = clamp(p*x + q*F, lo, hi)                  with bound: clamp(p*x + q*F, -bound, bound)/bound
    value    = u*x + w*denoised
    x_next   = a*x + b*anchor + c0*value + c1*h1 + c2*h2 + c3*h3 + n*noise + f*F
               with mask: mask*x_next + (1 - mask)*(alpha*known + sigma*known_noise)
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
from fastdiff.ops import _checks, _solver_step_checks
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
    mask: Tensor | None = None,
    known: Tensor | None = None,
    known_noise: Tensor | None = None,
    seeds: Tensor | None = None,
    input_dtype: torch.dtype | None = None,
    doubled: bool = False,
) -> Step:
    """Row `index` of `table`, as new tensors. Differentiable in every image tensor but mask, in bound and in gain.

    x, anchor, history (at most 3, newest first): [B, ...] float32 (float64 on the reference); noise, output, uncond:
    [B, ...] of any float dtype, None where the row has no model output; output may hold both branches, [2B, ...],
    conditional first. table: [N, 22] float64; index: [] int64; bound, gain: [B] float32.
    mask: 1 where the step stands, 0 where `known`, noised by known_noise to the level of x_next, takes its place;
    the three broadcast to x. seeds: [B] int64, instead of noise: counter.normal(seeds, ..., stream=index + 1).

    Returns Step(x, value, input): value is empty without output, input is of input_dtype and twice the batch if
    doubled. Raises ValueError or TypeError, also for a tensor that a non-zero weight misses.
    """
    past = (*history, None, None, None)
    if len(history) > 3:
        raise ValueError(f"history holds {len(history)} tensors: a row reads at most 3, newest first")
    images = {"anchor": anchor, "h1": past[0], "h2": past[1], "h3": past[2]}
    outputs, vectors = {"output": output, "uncond": uncond}, {"bound": bound, "gain": gain}
    _solver_step_checks.check(x, table, index, outputs, images, vectors)
    _solver_step_checks.check_noise(x, noise)
    _solver_step_checks.check_seeds(x, noise, seeds)
    blend = [*_solver_step_checks.inpainting(x, mask, known, known_noise)]
    dtype = input_dtype or x.dtype
    if dtype not in _checks.FLOATS:
        raise TypeError(f"input_dtype is {_checks.short(dtype)}: pass float32, float16, bfloat16 or float64")
    name = backend.select("solver_step", x.device.type, x.dtype)
    if name == "reference" or dtype == torch.float64 or _solver_step_checks.by_formula(table, index):
        return Step(
            *_reference(
                x,
                output,
                table,
                index,
                uncond,
                *images.values(),
                noise,
                bound,
                gain,
                *blend,
                seeds,
                dtype,
                doubled,
            )
        )
    x = _checks.dense(x)
    output, uncond = _solver_step_checks.outputs_like(output, uncond, x)
    bound, gain = _solver_step_checks.vectors_like(x, bound, gain)
    noise, seeds = _drawn(x, index, noise, seeds)
    tensors = (anchor, *past[:3], noise, *blend)
    anchor, h1, h2, h3, noise, *blend = (None if t is None else _checks.laid_out_like(t, x) for t in tensors)
    arguments = (
        x, output, table, index, uncond, anchor, h1, h2, h3, noise, bound, gain, *blend, seeds, dtype, doubled,
    )  # fmt: skip
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
    mask: Tensor | None = None,
    known: Tensor | None = None,
    known_noise: Tensor | None = None,
    seeds: Tensor | None = None,
    source: Tensor | None = None,
    input: Tensor | None = None,
) -> None:
    """The same row in place, for loops: nothing is allocated and no gradient recorded.

    x becomes x_next, and so does anchor if the row is accepted. history: [S, *x.shape], a ring: value goes to slot % S,
    h_j comes from (slot - j) % S, read before value is written. input: [B, ...] or [2B, ...], the model's dtype,
    receives k*x_next (twice). All of these are dense, laid out like x; the others are copied where they are not.
    source: where given, the row's x is read from it, which stays as it is, and x is only written; float32 like x, apart
    from it in memory.
    """
    rest = (uncond, anchor, history, noise, bound, gain, mask, known, known_noise, seeds, source, input)
    done = False
    if backend.is_direct("solver_step") and not _checks.transformed():
        try:  # the kernel checks all it reads: checking here first would cost more than the step itself
            here = x.is_cpu and (output is None or output.is_cpu)
            if here and not _checks.records(x, output, *rest):
                NATIVE_(x, output, table, index, *rest)
                done = True
        except (AttributeError, RuntimeError):
            pass
    if not done:
        _checked_step_(x, output, table, index, *rest)
    # a compiled graph raises the versions itself; so do the reference's own operations
    if not torch.compiler.is_compiling() and not x.is_inference():
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
    bound: Tensor | None,
    gain: Tensor | None,
    mask: Tensor | None,
    known: Tensor | None,
    known_noise: Tensor | None,
    seeds: Tensor | None,
    source: Tensor | None,
    input: Tensor | None,
) -> None:
    """The step in place with every check and the copies that kernels need, on whichever backend takes it."""
    images, vectors = {"anchor": anchor, "source": source}, {"bound": bound, "gain": gain}
    _solver_step_checks.check(x, table, index, {"output": output, "uncond": uncond}, images, vectors)
    _solver_step_checks.check_noise(x, noise)
    _solver_step_checks.check_buffers(x, history, input)
    _solver_step_checks.check_seeds(x, noise, seeds)
    blend = [*_solver_step_checks.inpainting(x, mask, known, known_noise)]
    if torch.is_grad_enabled():
        recorded = {"x": x, "output": output, "uncond": uncond, "noise": noise}
        recorded |= {"known": known, "known_noise": known_noise}
        for given, tensor in (recorded | images | vectors).items():
            if tensor is not None and tensor.requires_grad:
                raise ValueError(f"{given} requires grad: use solver_step, or torch.no_grad()")
    name = backend.select("solver_step", x.device.type, x.dtype)
    formula = name == "reference" or _checks.transformed()
    if formula or (input is not None and input.dtype == torch.float64):
        with torch.no_grad():
            _reference_(
                x,
                output,
                table,
                index,
                uncond,
                anchor,
                history,
                noise,
                bound,
                gain,
                *blend,
                seeds,
                source,
                input,
            )
        return
    output, uncond = _solver_step_checks.outputs_like(output, uncond, x)
    bound, gain = _solver_step_checks.vectors_like(x, bound, gain)
    noise, seeds = _drawn(x, index, noise, seeds)
    tensors = (noise, source, *blend)
    noise, source, *blend = (None if t is None else _checks.laid_out_like(t, x) for t in tensors)
    arguments = (
        x, output, table, index, uncond, anchor, history, noise, bound, gain, *blend, seeds, source, input,
    )  # fmt: skip
    if torch.compiler.is_compiling():
        INPLACE[name](*arguments)
        return
    with _checks.refusals():  # a layout or a missing tensor, which only the kernel knows of
        INPLACE[name](*arguments)


def _drawn(
    x: Tensor, index: Tensor, noise: Tensor | None, seeds: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """(noise, seeds) as the kernels take them: they draw in the order of memory, which must be that of the pixels."""
    if seeds is None or x.is_contiguous():
        return noise, seeds
    return reference.row_noise(x, seeds, int(index)), None


def _reference(x: Tensor, output: Tensor | None, table: Tensor, index: Tensor, *rest: Any) -> Sample:
    uncond, anchor, h1, h2, h3, noise, bound, gain, mask, known, known_noise, seeds, dtype, doubled = rest
    step = reference.solver_step(
        x, output, table, index, uncond=uncond, anchor=anchor, history=(h1, h2, h3), noise=noise, bound=bound,
        gain=gain, mask=mask, known=known, known_noise=known_noise, seeds=seeds, input_dtype=dtype, doubled=doubled,
    )  # fmt: skip
    return step.x, step.value, step.input


def _fake(x: Tensor, output: Tensor | None, table: Tensor, index: Tensor, *rest: Any) -> Sample:
    input_dtype, doubled = rest[-2:]
    value = x.new_empty(0) if output is None else torch.empty_like(x)
    x_in = torch.empty_like(x, dtype=input_dtype)
    return torch.empty_like(x), value, torch.cat([x_in, x_in]) if doubled else x_in


def _reference_(x: Tensor, output: Tensor | None, table: Tensor, index: Tensor, *rest: Tensor | None) -> None:
    names = (
        "uncond", "anchor", "history", "noise", "bound", "gain", "mask", "known", "known_noise", "seeds", "source",
        "input",
    )  # fmt: skip
    reference.solver_step_(x, output, table, index, **dict(zip(names, rest, strict=True)))


def _fake_(*tensors: Tensor | None) -> None:
    return None


OVERLOADS = define(
    "solver_step(Tensor x, Tensor? output, Tensor table, Tensor index, Tensor? uncond, Tensor? anchor, Tensor? h1, "
    "Tensor? h2, Tensor? h3, Tensor? noise, Tensor? bound, Tensor? gain, Tensor? mask, Tensor? known, "
    "Tensor? known_noise, Tensor? seeds, ScalarType input_dtype, bool doubled) -> (Tensor, Tensor, Tensor)",
    _reference,
    _fake,
)
differentiate("solver_step", backward, setup_context)

INPLACE = define(
    "solver_step_(Tensor(a!) x, Tensor? output, Tensor table, Tensor index, Tensor? uncond, Tensor(b!)? anchor, "
    "Tensor(c!)? history, Tensor? noise, Tensor? bound, Tensor? gain, Tensor? mask, Tensor? known, "
    "Tensor? known_noise, Tensor? seeds, Tensor? source, Tensor(d!)? input) -> ()",
    _reference_,
    _fake_,
)
NATIVE_ = INPLACE["cpp"]
