"""group_norm_silu: silu(group_norm(x)), the block every diffusion UNet repeats, in one kernel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastdiff import backend, reference
from fastdiff.ops import _checks
from fastdiff.ops._register import define, differentiate

Gradients = tuple[Tensor | None, None, Tensor | None, Tensor | None, None]


def group_norm_silu(
    x: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """silu(group_norm(x, num_groups, weight, bias, eps)), with float32 statistics and one rounding.

    x: [B, C, ...], float32, float16, bfloat16 or float64, C divisible by num_groups; weight, bias: [C], float32 or x's
    dtype. Returns a tensor like x (dtype, memory format). Differentiable in x, weight and bias.
    """
    if backend.is_direct("group_norm_silu") and _checks.on_cpu(x, weight, bias):
        try:  # the kernel checks all it reads, at a fraction of the cost
            return NATIVE(x, num_groups, weight, bias, eps)[0]
        except (RuntimeError, TypeError):
            pass
    return _checked(x, num_groups, weight, bias, eps)


def _checked(x: Tensor, num_groups: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """group_norm_silu with every check and the copy that kernels need, on whichever backend takes it."""
    _check(x, num_groups, weight, bias)
    name = backend.select("group_norm_silu", x.device.type, x.dtype)
    if name == "reference":
        return reference.group_norm_silu(x, num_groups, weight, bias, eps)
    output: Tensor = OVERLOADS[name](_plain(x), num_groups, weight, bias, eps)[0]
    return output


def _plain(x: Tensor) -> Tensor:
    """x itself if dense with each channel's pixels together or each pixel's channels, else a contiguous copy."""
    if x.is_contiguous() or (_checks.is_dense(x) and x.stride(1) in (1, x[:1, :1].numel())):
        return x
    return x.contiguous()


def _check(x: Tensor, num_groups: int, weight: Tensor | None, bias: Tensor | None) -> None:
    _checks.floating("x", x)
    if x.dim() < 2:
        raise ValueError(f"x has shape {tuple(x.shape)}: it must be [B, C, ...]")
    channels = x.shape[1]
    if num_groups < 1 or channels % num_groups:
        raise ValueError(
            f"{channels} channels do not divide into {num_groups} groups: choose a divisor of {channels}"
        )
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is None:
            continue
        _checks.vector(name, tensor, channels, x)
        if tensor.dtype not in (x.dtype, torch.float32):
            raise TypeError(
                f"{name} is {_checks.short(tensor.dtype)}: pass float32 or x's {_checks.short(x.dtype)}"
            )


def _reference(
    x: Tensor, num_groups: int, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    y = torch.empty_like(x).copy_(reference.group_norm_silu(x, num_groups, weight, bias, eps))
    return (y, *reference.group_statistics(x, num_groups, eps))


def _fake(
    x: Tensor, num_groups: int, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = reference.compute_dtype(x.dtype)
    mean, rstd = (x.new_empty((x.shape[0], num_groups), dtype=dtype) for _ in range(2))
    return torch.empty_like(x), mean, rstd


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, ctx.num_groups, weight, bias, ctx.eps = inputs
    _, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd)
    ctx.save_for_backward(x, weight, bias, mean, rstd)


def _backward(ctx: Any, grad: Tensor, *_: Tensor | None) -> Gradients:
    x, weight, bias, mean, rstd = ctx.saved_tensors
    if torch.is_grad_enabled():  # a gradient of the gradient is wanted: differentiate the formula
        return _composed(ctx, x, weight, bias, grad)
    wide, (batch, channels) = mean.dtype, x.shape[:2]
    xw, scale = x.to(wide), None if weight is None else weight.to(wide)
    normed = _normalised(xw, scale, bias, mean, rstd)
    dz = torch.ops.aten.silu_backward(grad.to(wide), normed)
    needs = [ctx.needs_input_grad[i] for i in (0, 2, 3)]
    size = x[0, 0].numel() if batch else 0
    dx, dw, db = torch.ops.aten.native_group_norm_backward(
        dz.contiguous(), xw.contiguous(), mean, rstd, scale, batch, channels, size, ctx.num_groups, needs
    )
    return (
        dx.to(x.dtype) if needs[0] else None,
        None,
        dw.to(weight.dtype) if needs[1] else None,
        db.to(bias.dtype) if needs[2] else None,
        None,
    )


def _normalised(x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, rstd: Tensor) -> Tensor:
    """What went into silu: (x - mean)*rstd*weight + bias, as x*scale + shift in one pass. mean, rstd: [B, groups]."""
    per_group = x.shape[1] // mean.shape[1]
    mean, rstd = (t.double().repeat_interleave(per_group, dim=1) for t in (mean, rstd))
    scale = rstd if weight is None else rstd * weight
    shift = -mean * scale if bias is None else bias - mean * scale
    shape = (*x.shape[:2], *(1,) * (x.dim() - 2))
    return torch.addcmul(shift.to(x.dtype).view(shape), x, scale.to(x.dtype).view(shape))


def _composed(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, grad: Tensor) -> Gradients:
    """The gradients by autograd through the reference, themselves differentiable."""
    y = reference.group_norm_silu(x, ctx.num_groups, weight, bias, ctx.eps)
    tensors = [x, weight, bias]
    wanted = [t for t, i in zip(tensors, (0, 2, 3), strict=True) if t is not None and ctx.needs_input_grad[i]]
    found = iter(torch.autograd.grad(y, wanted, grad, create_graph=True))
    dx, dw, db = (next(found) if ctx.needs_input_grad[i] else None for i in (0, 2, 3))
    return dx, None, dw, db, None


OVERLOADS = define(
    "group_norm_silu(Tensor x, int num_groups, Tensor? weight, Tensor? bias, float eps) -> (Tensor, Tensor, Tensor)",
    _reference,
    _fake,
)
differentiate("group_norm_silu", _backward, _setup)
NATIVE = OVERLOADS["cpp"]
