"""What the doors of the ops check, with errors that say what was got and what to pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def floating(name: str, tensor: Tensor) -> None:
    """TypeError unless tensor is a real floating-point tensor the ops take."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} is a {type(tensor).__name__}: pass a torch.Tensor")
    if tensor.dtype not in FLOATS:
        raise TypeError(f"{name} is {short(tensor.dtype)}: pass float32, float16, bfloat16 or float64")


def same(name: str, tensor: Tensor, like: Tensor, *, dtypes: tuple[torch.dtype, ...] | None = None) -> None:
    """Unless tensor has like's shape and device and one of the dtypes (like's by default): ValueError or TypeError."""
    floating(name, tensor)
    if tensor.shape != like.shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}: it must be {tuple(like.shape)}, like x")
    same_device(name, tensor, like)
    accepted = dtypes or (like.dtype,)
    if tensor.dtype not in accepted:
        raise TypeError(f"{name} is {short(tensor.dtype)}: pass {' or '.join(map(short, accepted))}")


def vector(name: str, tensor: Tensor, length: int, like: Tensor) -> None:
    """ValueError or TypeError unless tensor is floating-point, one-dimensional, of this length and on like's device."""
    floating(name, tensor)
    if tuple(tensor.shape) != (length,):
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}: it must be ({length},)")
    same_device(name, tensor, like)


def same_device(name: str, tensor: Tensor, like: Tensor) -> None:
    """ValueError unless both are on one device."""
    if tensor.device != like.device:
        raise ValueError(
            f"{name} is on {tensor.device} and the data on {like.device}: move it with .to({str(like.device)!r})"
        )


def on_cpu(*values: object) -> bool:
    """Whether each value that is a tensor is on the CPU."""
    return all(value.is_cpu for value in values if isinstance(value, Tensor))


def transformed() -> bool:
    """Whether torch.func or forward-mode differentiation is at work: they see through PyTorch's own operations only,
    so that the doors compute by the reference."""
    return torch._C._are_functorch_transforms_active() or forwards()


def forwards() -> bool:
    """Whether forward-mode differentiation is at work."""
    return torch.autograd.forward_ad._current_level >= 0


def records(*values: Tensor | None) -> bool:
    """Whether autograd records what is done with these."""
    return torch.is_grad_enabled() and any(value is not None and value.requires_grad for value in values)


@contextmanager
def refusals() -> Iterator[None]:
    """Turns a kernel's refusal of its arguments, which PyTorch passes on as RuntimeError, into ValueError."""
    try:
        yield
    except RuntimeError as error:
        message = str(error).splitlines()[0] if str(error) else ""
        if not message.startswith("fastdiff: "):
            raise
        raise ValueError(message.removeprefix("fastdiff: ")) from error


def short(dtype: torch.dtype) -> str:
    """float32 for torch.float32."""
    return str(dtype).removeprefix("torch.")


def is_dense(x: Tensor) -> bool:
    """Whether x fills its memory without gaps or overlap, the batch outermost."""
    if x.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return x.shape[0] == 1 or x.stride(0) * x.shape[0] == expected


def dense(x: Tensor) -> Tensor:
    """x itself if it is dense, else a contiguous copy."""
    return x if is_dense(x) else x.contiguous()


def laid_out_like(tensor: Tensor, like: Tensor) -> Tensor:
    """tensor itself if its elements lie in memory as those of like, else a copy that does. Differentiable."""
    if tensor.stride() == like.stride():
        return tensor
    if torch._C._are_functorch_transforms_active() or _stacks(
        tensor
    ):  # no fresh tensor takes what vmap stacks
        order = sorted(range(like.dim()), key=like.stride, reverse=True)
        back = sorted(range(like.dim()), key=order.__getitem__)
        return tensor.permute(order).contiguous().permute(back)
    return torch.empty_like(like, dtype=tensor.dtype).copy_(tensor)


def _stacks(tensor: Tensor) -> bool:
    """Whether autograd.grad(is_grads_batched=True) made the tensor, by a vmap that is not torch.func's."""
    return not torch.compiler.is_compiling() and bool(torch._C._functorch.is_legacy_batchedtensor(tensor))
