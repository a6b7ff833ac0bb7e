"""group_norm_silu: act(group_norm(x + add)*(1 + scale) + shift), the block every diffusion UNet repeats, in one kernel.

The options are what a residual block has around its norm: the residual sum and the time embedding before it (add),
scale-shift conditioning after it (Dhariwal & Nichol 2021, arXiv:2105.05233), and the activation.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from fastdiff import backend, reference
from fastdiff.ops import _checks
from fastdiff.ops._group_norm_silu_grad import Recorded, backward, setup_context
from fastdiff.ops._register import define, define_alone, differentiate

Normed = tuple[Tensor, Tensor, Tensor, Tensor]
CODES = {name: code for code, name in enumerate(reference.ACTIVATIONS)}


def group_norm_silu(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    add: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    activation: str = "silu",
) -> Tensor:
    """act(group_norm(x + add, num_groups, weight, bias, eps)*(1 + scale) + shift), in float32 and rounded once.

    x: [B, C, ...], float32, float16, bfloat16 or float64, C divisible by num_groups; weight, bias: [C]; add, scale,
    shift: [B, C], one value for each sample and channel; all these float32 or x's dtype. activation: "silu", "gelu"
    (exact) or "none". Returns a tensor like x (dtype, memory format). Differentiable in every tensor. Raises
    ValueError or TypeError for what does not fit together.
    """
    try:  # the kernel checks all it reads, at a fraction of the cost
        if _is_direct(x, weight, bias, add, scale, shift):
            return _result(x, num_groups, weight, bias, eps, add, scale, shift, CODES[activation])
    except (AttributeError, KeyError, RuntimeError, TypeError):
        pass
    return _checked(x, num_groups, weight, bias, eps, add, scale, shift, activation, None)[0]


def add_group_norm_silu(
    x: Tensor,
    residual: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    add: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    activation: str = "silu",
) -> tuple[Tensor, Tensor]:
    """(x + residual, group_norm_silu(x + residual, ...)): where a residual block ends and the next one begins.

    residual: like x. The first result is the sum rounded to x's dtype, which the residual stream carries on (add is not
    in it); the norm is of the sum as rounded. Everything else as in group_norm_silu. Differentiable in every tensor,
    through both results.
    """
    y, summed = _checked(x, num_groups, weight, bias, eps, add, scale, shift, activation, residual)
    return summed, y


def _is_direct(*tensors: Tensor | None) -> bool:
    """Whether the C++ kernel may be called unchecked: it was chosen before, and every tensor is on the CPU."""
    if not backend.is_direct("group_norm_silu") or _checks.transformed():
        return False
    for tensor in tensors:  # noqa: SIM110 - a generator costs more
        if tensor is not None and not tensor.is_cpu:
            return False
    return True


def _result(*arguments: Any) -> Tensor:
    """The C++ kernel's first result, in eager mode."""
    if torch.is_inference_mode_enabled():
        y: Tensor = RESULT(*arguments)
    elif torch.is_grad_enabled() and torch._C._any_requires_grad(*arguments):
        y = Recorded.apply(*arguments, None, NATIVE)[0]
    else:
        with torch._C._AutoDispatchBelowAutograd():
            y = RESULT(*arguments)
    return y


def _run(op: OpOverload, *arguments: Any) -> Normed:
    """op(*arguments), recorded if a gradient is wanted, past the dispatcher's slower ways of finding that out."""
    if torch.compiler.is_compiling() or torch.is_inference_mode_enabled():
        outputs: Normed = op(*arguments)
    elif torch.is_grad_enabled() and torch._C._any_requires_grad(*arguments):
        outputs = Recorded.apply(*arguments, op)
    else:
        with torch._C._AutoDispatchBelowAutograd():
            outputs = op(*arguments)
    return outputs


def _checked(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    add: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    activation: str,
    residual: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """(y, summed) with every check and the copies that kernels need, on whichever backend takes it."""
    _check(x, num_groups, activation, residual)
    channels, samples = (x.shape[1],), tuple(x.shape[:2])
    weight, bias = _vector("weight", weight, channels, x), _vector("bias", bias, channels, x)
    add, scale, shift = (
        _vector(name, t, samples, x) for name, t in (("add", add), ("scale", scale), ("shift", shift))
    )
    name = backend.select("group_norm_silu", x.device.type, x.dtype)
    transformed = _checks.transformed()
    if name == "reference" or transformed:
        summed = x if residual is None else x + residual
        normed = summed.contiguous() if transformed else summed  # vmap knows no other memory format
        y = reference.group_norm_silu(
            normed, num_groups, weight, bias, eps, add=add, scale=scale, shift=shift, activation=activation
        )
        return y if transformed else _checks.laid_out_like(y, x), summed
    x = _plain(x)
    residual = None if residual is None else _checks.laid_out_like(residual, x)
    code, op = CODES[activation], OVERLOADS[name]
    if name == "cpp" and residual is None and torch.compiler.is_compiling() and not torch.is_grad_enabled():
        return RESULT(x, num_groups, weight, bias, eps, add, scale, shift, code), x
    y, summed, _, _ = _run(op, x, num_groups, weight, bias, eps, add, scale, shift, code, residual)
    return y, summed


def _plain(x: Tensor) -> Tensor:
    """x itself if dense with each channel's pixels together or each pixel's channels, else a contiguous copy."""
    if x.is_contiguous() or x.movedim(1, -1).is_contiguous():
        return x
    if torch.compiler.is_compiling():  # with sizes unknown it cannot sort strides
        return x.contiguous()
    return x if _checks.is_dense(x) and x.stride(1) in (1, x[:1, :1].numel()) else x.contiguous()


def _check(x: Tensor, num_groups: int, activation: str, residual: Tensor | None) -> None:
    _checks.floating("x", x)
    if x.dim() < 2:
        raise ValueError(f"x has shape {tuple(x.shape)}: it must be [B, C, ...]")
    channels = x.shape[1]
    if not isinstance(num_groups, (int, torch.SymInt)):
        raise TypeError(f"num_groups is {num_groups!r}: pass an int")
    if num_groups < 1 or channels % num_groups:
        raise ValueError(
            f"{channels} channels do not divide into {num_groups} groups: choose a divisor of {channels}"
        )
    if activation not in CODES:
        raise ValueError(f"activation is {activation!r}: choose one of {', '.join(CODES)}")
    if residual is not None:
        _checks.same("residual", residual, x)


def _vector(name: str, tensor: Tensor | None, shape: tuple[int, ...], x: Tensor) -> Tensor | None:
    """The tensor as kernels take it, contiguous; ValueError or TypeError unless it has this shape and fits x."""
    if tensor is None:
        return None
    _checks.floating(name, tensor)
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}: it must be {shape}")
    _checks.same_device(name, tensor, x)
    if tensor.dtype not in (x.dtype, torch.float32):
        if not torch.is_autocast_enabled(x.device.type):
            raise TypeError(
                f"{name} is {_checks.short(tensor.dtype)}: pass float32 or x's {_checks.short(x.dtype)}"
            )
        tensor = tensor.float()  # under autocast a Linear's output is half precision beside a float32 x
    return tensor.contiguous()


def _reference(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    add: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    activation: int,
    residual: Tensor | None,
) -> Normed:
    summed = x.new_empty(0) if residual is None else torch.empty_like(x).copy_(x + residual)
    x = x if residual is None else summed
    y = reference.group_norm_silu(
        x, num_groups, weight, bias, eps, add=add, scale=scale, shift=shift,
        activation=reference.ACTIVATIONS[activation],
    )  # fmt: skip
    return torch.empty_like(x).copy_(y), summed, *reference.group_statistics(x, num_groups, eps, add)


def _fake(
    x: Tensor, num_groups: int, weight: Tensor | None, bias: Tensor | None, eps: float, *options: Any
) -> Normed:
    residual = options[-1]
    mean, rstd = (
        x.new_empty((x.shape[0], num_groups), dtype=reference.compute_dtype(x.dtype)) for _ in range(2)
    )
    return torch.empty_like(x), x.new_empty(0) if residual is None else torch.empty_like(x), mean, rstd


OVERLOADS = define(
    "group_norm_silu(Tensor x, int num_groups, Tensor? weight, Tensor? bias, float eps, Tensor? add, Tensor? scale, "
    "Tensor? shift, int activation, Tensor? residual) -> (Tensor, Tensor, Tensor, Tensor)",
    _reference,
    _fake,
)
differentiate("group_norm_silu", backward, setup_context)
NATIVE = OVERLOADS["cpp"]


def _first(*arguments: Any) -> Tensor:
    outputs: Normed = NATIVE(*arguments, None)
    return outputs[0]


RESULT = define_alone(
    "group_norm_silu_result(Tensor x, int num_groups, Tensor? weight, Tensor? bias, float eps, Tensor? add, "
    "Tensor? scale, Tensor? shift, int activation) -> Tensor",
    _first,
    lambda x, *_: torch.empty_like(x),
)
"""group_norm_silu without a residual, without a gradient, and without the results that are kept for one: each tensor
that an op returns costs as much as normalising a small image."""
