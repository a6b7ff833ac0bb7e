"""add_noise: the forward process x = alpha*x0 + sigma*noise in one pass."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from fastdiff import backend, reference
from fastdiff.ops import _checks
from fastdiff.ops._register import define, differentiate
from fastdiff.ops._remembered import ordinary


def add_noise(x0: Tensor, noise: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> Tensor:
    """alpha*x0 + sigma*noise, computed in float32 (float64 for float64) and rounded once.

    x0, noise: [B, ...], one dtype and device; alpha, sigma: a number, or one for each sample [B].
    Returns a tensor like x0 (dtype, memory format). Differentiable in every tensor.
    """
    if backend.is_direct("add_noise") and is_plain(x0, noise, alpha, sigma) and ordinary():
        try:  # the kernel checks all it reads, at a fraction of the cost
            # below autograd: finding out that no gradient is wanted costs as much again
            with torch._C._AutoDispatchBelowAutograd():
                return NATIVE(x0, noise, _direct(alpha), _direct(sigma))
        except (RuntimeError, TypeError):
            pass
    return _checked(x0, noise, alpha, sigma)


def is_plain(*values: object) -> bool:
    """Whether every tensor is on the CPU, itself and not a stand-in, and no derivative is wanted."""
    if _checks.transformed():
        return False
    recording = torch.is_grad_enabled()
    for value in values:
        if type(value) is Tensor:
            if not value.is_cpu or (recording and value.requires_grad):
                return False
        elif isinstance(value, Tensor):
            return False
    return True


def _direct(value: float | Tensor) -> Tensor:
    return value if isinstance(value, Tensor) else _number(value)


@functools.lru_cache(maxsize=64)
def _number(value: float) -> Tensor:
    """value as float32 [1] for the C++ kernel, which only reads it; asked for where no stand-in would be made."""
    return torch.full((1,), value, dtype=torch.float32, device="cpu")


def _checked(x0: Tensor, noise: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> Tensor:
    """add_noise with every check, conversion and copy, on whichever backend takes it."""
    _checks.floating("x0", x0)
    _checks.same("noise", noise, x0)
    alpha, sigma = per_level("alpha", alpha, x0), per_level("sigma", sigma, x0)
    name = backend.select("add_noise", x0.device.type, x0.dtype)
    if name == "reference" or _checks.transformed():
        return reference.add_noise(x0, noise, alpha, sigma)
    x0 = _checks.dense(x0)
    return OVERLOADS[name](x0, _checks.laid_out_like(noise, x0), alpha, sigma)


def per_level(name: str, value: float | Tensor, x0: Tensor) -> Tensor:
    """value as [1] or [B] in the compute dtype, on x0's device; but a number stays on the CPU where a GPU's kernel
    takes it by value, since filling a tensor there would be one more launch."""
    dtype = reference.compute_dtype(x0.dtype)
    if not isinstance(value, Tensor):
        by_value = x0.is_cuda and not torch.compiler.is_compiling()
        return torch.full((1,), float(value), dtype=dtype, device="cpu" if by_value else x0.device)
    if value.dim() == 0:
        value = value.reshape(1)
    elif tuple(value.shape) != (1,):
        if not x0.dim():
            raise ValueError(f"{name} has shape {tuple(value.shape)}: x0 has no batch, pass a number")
        _checks.vector(name, value, x0.shape[0], x0)
    _checks.floating(name, value)
    _checks.same_device(name, value, x0)
    return value.to(dtype).contiguous()


def _fake(x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    return torch.empty_like(x0)


def _setup(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    x0, noise, alpha, sigma = inputs
    ctx.save_for_backward(
        x0 if alpha.requires_grad else None, noise if sigma.requires_grad else None, alpha, sigma
    )


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x0, noise, alpha, sigma = ctx.saved_tensors
    needs = ctx.needs_input_grad
    wide = grad.to(reference.compute_dtype(grad.dtype))
    scaled = [
        (wide * reference.per_sample(level, grad)).to(grad.dtype) if need else None
        for need, level in zip(needs[:2], (alpha, sigma), strict=True)
    ]
    levels = [
        summed(wide * data.to(wide.dtype), level) if need and data is not None else None
        for need, data, level in zip(needs[2:], (x0, noise), (alpha, sigma), strict=True)
    ]
    return (*scaled, *levels)


def summed(product: Tensor, level: Tensor) -> Tensor:
    """The sum over each sample, or over everything where the level is shared."""
    if level.shape[0] == 1:
        return product.sum().reshape(1)
    return product.flatten(1).sum(1)


OVERLOADS = define(
    "add_noise(Tensor x0, Tensor noise, Tensor alpha, Tensor sigma) -> Tensor", reference.add_noise, _fake
)
differentiate("add_noise", _backward, _setup)
NATIVE = OVERLOADS["cpp"]
