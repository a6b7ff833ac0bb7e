"""The gradient of group_norm_silu: one op for the large tensor, and small sums for everything else.

Kept for it: x (or x + residual as rounded), the statistics, and the vectors of one value a channel.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastdiff import backend, reference
from fastdiff.ops import _checks
from fastdiff.ops._register import define

Gradients = tuple[Tensor | None, ...]
NAMES = ("x", "num_groups", "weight", "bias", "eps", "add", "scale", "shift", "activation", "residual")
VECTORS = ("weight", "bias", "add", "scale", "shift")


class Recorded(torch.autograd.Function):
    """The op with its gradient, for eager mode: the dispatcher's own way to it costs 30 microseconds more a call."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, ...]:
        """arguments: the schema's, and the overload to call."""
        *inputs, op = arguments
        with torch._C._AutoDispatchBelowAutograd():
            output: tuple[Tensor, ...] = op(*inputs)
        setup_context(ctx, tuple(inputs), output)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Gradients:
        """The gradients of the arguments."""
        return (*backward(ctx, *grads), None)


def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """Keeps what the backward needs and no more."""
    x, ctx.num_groups, weight, bias, ctx.eps, add, scale, shift, ctx.activation, residual = inputs
    _, summed, mean, rstd = output
    if residual is None:
        ctx.mark_non_differentiable(summed, mean, rstd)
    else:
        ctx.mark_non_differentiable(mean, rstd)
    ctx.set_materialize_grads(False)
    kept = x if residual is None else summed
    ctx.save_for_backward(kept, mean, rstd, weight, bias, add, scale, shift)


def backward(
    ctx: Any, grad: Tensor | None, grad_summed: Tensor | None = None, *_: Tensor | None
) -> Gradients:
    """Gradients of the inputs, in the order of the schema."""
    needs = dict(zip(NAMES, ctx.needs_input_grad, strict=False))
    found: dict[str, Tensor | None] = {}
    if grad is not None:
        x, mean, rstd, *tensors = ctx.saved_tensors
        vectors = dict(zip(VECTORS, tensors, strict=True))
        dx, sums = _sums(ctx, grad, x, mean, rstd, vectors)
        found = {"x": dx, **_from_sums(sums, needs, vectors)}
    if grad_summed is not None:
        through = found.get("x")
        found["x"] = grad_summed if through is None else through + grad_summed
    found["residual"] = found.get("x")
    return tuple(found.get(name) if needs[name] else None for name in NAMES)


def _sums(
    ctx: Any, grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, vectors: dict[str, Tensor | None]
) -> tuple[Tensor, Tensor]:
    """(dx, sums): by the kernel for x or, where a gradient of the gradient is wanted, by the formula."""
    weight, bias, add, scale, shift = (vectors[n] for n in VECTORS)
    if torch.is_grad_enabled():
        name = "reference"
        mean, rstd = reference.group_statistics(x, ctx.num_groups, ctx.eps, add)  # they depend on x
    else:
        name = backend.select("group_norm_silu_backward", x.device.type, x.dtype)
    op = _reference if name == "reference" else OVERLOADS[name]
    grad = _checks.laid_out_like(grad, x)
    found: tuple[Tensor, Tensor] = op(
        grad, x, ctx.num_groups, weight, bias, mean, rstd, add, scale, shift, ctx.activation
    )
    return found


def _from_sums(sums: Tensor, needs: dict[str, bool], vectors: dict[str, Tensor | None]) -> dict[str, Tensor]:
    """The vectors' gradients from sums [3, B, C]: over the pixels, of dz, of dz*xhat and of the unrounded dx."""
    weight, bias, scale = (
        None if (t := vectors[n]) is None else t.to(sums.dtype) for n in ("weight", "bias", "scale")
    )
    found: dict[str, Tensor] = {}
    if needs["add"]:
        found["add"] = sums[2]
    if needs["shift"]:
        found["shift"] = sums[0]
    if needs["scale"]:
        normed = sums[1] if weight is None else weight * sums[1]
        found["scale"] = normed if bias is None else normed + bias * sums[0]
    if needs["weight"] or needs["bias"]:  # in one sum: each call of PyTorch costs as much as a small image
        both = sums[:2] if scale is None else sums[:2] + scale * sums[:2]
        found["bias"], found["weight"] = both.sum(1).unbind()
    return {n: g.to(t.dtype) for n, g in found.items() if needs[n] and (t := vectors[n]) is not None}


def _reference(
    grad: Tensor,
    x: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    add: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    activation: int,
) -> tuple[Tensor, Tensor]:
    dx, sums = reference.group_norm_silu_backward(
        grad, x, num_groups, weight, bias, mean, rstd, add=add, scale=scale, shift=shift,
        activation=reference.ACTIVATIONS[activation],
    )  # fmt: skip
    return torch.empty_like(x).copy_(dx), sums


def _fake(grad: Tensor, x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty((3, *x.shape[:2]), dtype=reference.compute_dtype(x.dtype))


OVERLOADS = define(
    "group_norm_silu_backward(Tensor grad, Tensor x, int num_groups, Tensor? weight, Tensor? bias, Tensor mean, "
    "Tensor rstd, Tensor? add, Tensor? scale, Tensor? shift, int activation) -> (Tensor, Tensor)",
    _reference,
    _fake,
)
