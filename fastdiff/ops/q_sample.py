"""q_sample: a noisy image, the noise in it and the velocity target, in one pass."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastdiff import backend, reference
from fastdiff.ops import _checks, _drawing
from fastdiff.ops._register import define, differentiate
from fastdiff.ops.add_noise import add_noise, is_plain, per_level, summed
from fastdiff.ops.randn import Seeds, checked_seeds, checked_stream, counted, drawn


class QSample(NamedTuple):
    """x = alpha*x0 + sigma*noise; noise as used, in x0's dtype; velocity = alpha*noise - sigma*x0, or None."""

    x: Tensor
    noise: Tensor
    velocity: Tensor | None


def q_sample(
    x0: Tensor,
    alpha: float | Tensor,
    sigma: float | Tensor,
    *,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
    seeds: Seeds | None = None,
    stream: int = 0,
    velocity: bool = False,
) -> QSample:
    """A sample of q(x_t | x_0) and what a model may be trained to predict from it (velocity: arXiv:2202.00512).

    x0: [B, ...]; alpha, sigma: a number, or one for each sample [B]. The noise is `noise`, like x0; or counter-based
    from seeds and stream (see ops.randn); or that of torch.randn(x0.shape, generator=generator, dtype=x0.dtype), bit
    for bit, with torch's global generator if none of the three is given. Computed in float32 (float64 for float64) and
    rounded once: x has the bits of add_noise(x0, noise, alpha, sigma). Results are laid out like x0.
    Differentiable in x0, noise, alpha and sigma. Raises ValueError or TypeError.
    """
    if sum(given is not None for given in (noise, generator, seeds)) > 1:
        raise ValueError("give one of noise, generator and seeds")
    _checks.floating("x0", x0)
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"generator is {generator!r}: pass a torch.Generator, or integers as seeds")
    if noise is not None and not velocity:
        return QSample(add_noise(x0, noise, alpha, sigma), noise, None)
    levels = per_level("alpha", alpha, x0), per_level("sigma", sigma, x0)
    if noise is None and x0.is_contiguous() and not _checks.transformed():
        made = _drawn_inside(x0, levels, generator, seeds, stream, velocity)
        if made is not None:
            return made
    if noise is None:
        like = torch.empty(x0.shape, dtype=x0.dtype, device=x0.device)
        noise = drawn(like, generator) if seeds is None else counted(like, seeds, stream)
        noise = _checks.laid_out_like(noise, x0) if _checks.is_dense(x0) else noise
    else:
        _checks.same("noise", noise, x0)
    return _mixed(x0, noise, levels, velocity)


def _mixed(x0: Tensor, noise: Tensor, levels: tuple[Tensor, Tensor], velocity: bool) -> QSample:
    """The same with noise that is there."""
    if not velocity:
        return QSample(add_noise(x0, noise, *levels), noise, None)
    name = backend.select("q_sample", x0.device.type, x0.dtype)
    dense = _checks.dense(x0)
    call = OVERLOADS[name] if name != "reference" and not _checks.transformed() else reference.q_sample
    x, _, target, _ = call(dense, _checks.laid_out_like(noise, dense), *levels, None, None, 0, True)
    return QSample(x, noise, target)


def _drawn_inside(
    x0: Tensor,
    levels: tuple[Tensor, Tensor],
    generator: torch.Generator | None,
    seeds: Seeds | None,
    stream: int,
    velocity: bool,
) -> QSample | None:
    """The same with noise drawn by the kernel, or None where that cannot be."""
    found: tuple[Tensor, ...] | None
    if seeds is not None:
        name = backend.select("q_sample", x0.device.type, x0.dtype)
        if name == "reference":
            return None
        values = checked_seeds(seeds, x0)
        found = _called(name, x0, None, *levels, None, values, checked_stream(stream), velocity)
    else:
        found = _drawing.draw(
            "q_sample",
            x0,
            generator,
            lambda name, state: _called(name, x0, None, *levels, state, None, 0, velocity),
        )
    return None if found is None else QSample(found[0], found[1], found[2] if velocity else None)


def _called(name: str, x0: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    """The op, past autograd where no gradient is wanted: finding that out there costs more than this."""
    if torch.compiler.is_compiling() or not is_plain(x0, *rest):
        made: tuple[Tensor, ...] = OVERLOADS[name](x0, *rest)
        return made
    with torch._C._AutoDispatchBelowAutograd():
        made = OVERLOADS[name](x0, *rest)
    return made


def _fake(
    x0: Tensor,
    noise: Tensor | None,
    alpha: Tensor,
    sigma: Tensor,
    state: Tensor | None,
    seeds: Tensor | None,
    stream: int,
    velocity: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    after = x0.new_empty(0, dtype=torch.uint8) if state is None else torch.empty_like(state)
    made = torch.empty_like(x0) if noise is None else x0.new_empty(0)
    return torch.empty_like(x0), made, torch.empty_like(x0) if velocity else x0.new_empty(0), after


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x0, noise, alpha, sigma, *_, ctx.velocity = inputs
    ctx.mark_non_differentiable(output[1], output[3])
    kept = alpha.requires_grad or sigma.requires_grad
    used = output[1] if noise is None else noise
    ctx.save_for_backward(x0 if kept else None, used if kept else None, alpha, sigma)


def _backward(
    ctx: Any, grad_x: Tensor | None, _: Any, grad_v: Tensor | None, __: Any
) -> tuple[Tensor | None, ...]:
    x0, noise, alpha, sigma = ctx.saved_tensors
    needs = ctx.needs_input_grad
    like = grad_x if grad_x is not None else grad_v
    if like is None:
        return (None,) * 8
    dtype = reference.compute_dtype(like.dtype)
    gx = torch.zeros_like(like, dtype=dtype) if grad_x is None else grad_x.to(dtype)
    gv = None if grad_v is None or not ctx.velocity else grad_v.to(dtype)
    a, b = (reference.per_sample(level, like) for level in (alpha, sigma))
    found: list[Tensor | None] = [None] * 8
    if needs[0]:
        found[0] = (a * gx if gv is None else a * gx - b * gv).to(like.dtype)
    if needs[1]:
        found[1] = (b * gx if gv is None else b * gx + a * gv).to(like.dtype)
    if needs[2]:
        found[2] = summed(gx * x0 if gv is None else gx * x0 + gv * noise, alpha)
    if needs[3]:
        found[3] = summed(gx * noise if gv is None else gx * noise - gv * x0, sigma)
    return tuple(found)


OVERLOADS = define(
    "q_sample(Tensor x0, Tensor? noise, Tensor alpha, Tensor sigma, Tensor? state, Tensor? seeds, int stream, "
    "bool velocity) -> (Tensor x, Tensor noise, Tensor velocity, Tensor state)",
    reference.q_sample,
    _fake,
)
differentiate("q_sample", _backward, _setup)
