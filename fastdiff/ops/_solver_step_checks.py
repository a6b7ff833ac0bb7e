"""What solver_step and solver_step_ check of their tensors, and the copies that kernels need."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdiff import reference
from fastdiff.ops import _checks


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
    check_row(x, table, index)
    check_outputs(x, outputs["output"], outputs["uncond"])
    for name, tensor in images.items():
        if tensor is not None:
            _checks.same(name, tensor, x)
    for name, tensor in vectors.items():
        if tensor is not None:
            _checks.vector(name, tensor, x.shape[0], x)


def check_noise(x: Tensor, noise: Tensor | None) -> None:
    """ValueError or TypeError unless noise has x's shape, and a dtype that kernels convert to x's."""
    if noise is not None:
        _checks.same("noise", noise, x, dtypes=(x.dtype, torch.float32, torch.float16, torch.bfloat16))


def by_formula(table: Tensor, index: Tensor) -> bool:
    """Whether the reference must compute for torch.func or forward-mode differentiation. It reads its row on the host,
    so where vmap goes over rows, and nothing else is wanted, the ops are called one by one."""
    if not _checks.transformed():
        return False
    return _checks.forwards() or not any(torch._C._functorch.is_batchedtensor(t) for t in (table, index))


def check_row(x: Tensor, table: Tensor, index: Tensor) -> None:
    """ValueError unless table and index are a table of rows and the number of one, on x's device."""
    check_table(x, table)
    if not isinstance(index, Tensor):
        raise TypeError(f"index is {index!r}: pass an int64 scalar tensor")
    if index.dtype != torch.int64 or index.dim() != 0:
        raise ValueError(
            f"index is {_checks.short(index.dtype)} {list(index.shape)}: it must be an int64 scalar"
        )
    _checks.same_device("index", index, x)


def check_table(x: Tensor, table: Tensor) -> None:
    """ValueError unless table is a table of rows on x's device."""
    if not isinstance(table, Tensor):
        raise TypeError(f"table is a {type(table).__name__}: pass a float64 tensor [N, {reference.WIDTH}]")
    if table.dtype != torch.float64 or table.dim() != 2 or table.shape[1] != reference.WIDTH:
        raise ValueError(
            f"table is {_checks.short(table.dtype)} {list(table.shape)}: it must be float64 [N, {reference.WIDTH}]"
        )
    _checks.same_device("table", table, x)


def check_outputs(x: Tensor, output: Tensor | None, uncond: Tensor | None) -> None:
    """ValueError or TypeError unless the model's outputs fit x: two of its shape, or output alone twice as long."""
    if output is not None:
        _checks.floating("output", output)
    if output is not None and uncond is None and output.dim() and output.shape[0] == 2 * x.shape[0]:
        output = output[: x.shape[0]]
    for name, tensor in {"output": output, "uncond": uncond}.items():
        if tensor is not None:
            _checks.same(name, tensor, x, dtypes=_checks.FLOATS)


def check_buffers(x: Tensor, history: Tensor | None, input: Tensor | None) -> None:
    """ValueError or TypeError unless the ring and the input buffer fit x."""
    if history is not None:
        _checks.floating("history", history)
        if history.dim() != x.dim() + 1 or history.shape[1:] != x.shape or history.shape[0] < 1:
            raise ValueError(
                f"history has shape {list(history.shape)}: it must be [S, {', '.join(map(str, x.shape))}]"
            )
        _checks.same("history", history[0], x)
    if input is not None:
        _checks.floating("input", input)
        # not len(), which would fix a batch that torch.export leaves open
        images, held = x.shape[0], input.shape[0] if input.dim() else 1
        half = input[:images] if input.dim() else input
        _checks.same("input", half, x, dtypes=_checks.FLOATS)
        if held != images and held != 2 * images:
            raise ValueError(f"input holds {held} samples: it must hold {images} or, doubled, {2 * images}")


def inpainting(
    x: Tensor, mask: Tensor | None, known: Tensor | None, known_noise: Tensor | None
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """mask, known and known_noise broadcast to x's shape, in its dtype."""
    if mask is None:
        if known is not None or known_noise is not None:
            raise ValueError("known and known_noise are put back where a mask says so: pass mask too")
        return None, None, None
    _checks.floating("mask", mask)
    if mask.requires_grad and torch.is_grad_enabled():
        raise ValueError("mask requires grad, but has no gradient: pass mask.detach()")
    return _spread("mask", mask, x), _spread("known", known, x), _spread("known_noise", known_noise, x)


def _spread(name: str, tensor: Tensor | None, x: Tensor) -> Tensor | None:
    if tensor is None:
        return None
    _checks.floating(name, tensor)
    _checks.same_device(name, tensor, x)
    if tensor.dim() > x.dim() or any(
        size not in (1, full) for size, full in zip(reversed(tensor.shape), reversed(x.shape))
    ):
        raise ValueError(
            f"{name} has shape {tuple(tensor.shape)}: it must broadcast to x's, {tuple(x.shape)}"
        )
    return tensor.to(x.dtype).expand(x.shape)


def check_seeds(x: Tensor, noise: Tensor | None, seeds: Tensor | None) -> None:
    """ValueError or TypeError unless seeds are one int64 for each sample, and given instead of noise."""
    if seeds is None:
        return
    if noise is not None:
        raise ValueError("give noise or seeds to draw it from, not both")
    if not isinstance(seeds, Tensor):
        raise TypeError(f"seeds is a {type(seeds).__name__}: pass an int64 tensor, one seed for each image")
    if seeds.dtype != torch.int64 or tuple(seeds.shape) != (x.shape[0],):
        raise ValueError(
            f"seeds is {_checks.short(seeds.dtype)} {list(seeds.shape)}: it must be int64 [{x.shape[0]}], "
            "one seed for each image"
        )
    _checks.same_device("seeds", seeds, x)


def vectors_like(x: Tensor, *vectors: Tensor | None) -> tuple[Tensor | None, ...]:
    """bound and gain as the kernels take them: contiguous, in x's dtype."""
    return tuple(None if t is None else t.to(x.dtype).contiguous() for t in vectors)


def outputs_like(
    output: Tensor | None, uncond: Tensor | None, x: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """The model's outputs as the kernels take them: samples laid out like those of the dense x, both of one dtype
    that is not float64. Themselves, or copies."""
    dtypes = {t.dtype for t in (output, uncond) if t is not None}
    single = len(dtypes) > 1 or torch.float64 in dtypes
    outputs = (None if t is None else t.float() if single else t for t in (output, uncond))
    both, other = (None if t is None else _output_like(t, x) for t in outputs)
    return both, other


def _output_like(output: Tensor, x: Tensor) -> Tensor:
    if output.shape == x.shape:
        return _checks.laid_out_like(output, x)
    strides = (x[:1].numel(), *x.stride()[1:])
    if output.stride() == strides:
        return output
    return torch.empty_strided(output.shape, strides, dtype=output.dtype, device=output.device).copy_(output)
