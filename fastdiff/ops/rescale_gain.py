"""rescale_gain: guidance rescale (arXiv:2305.08891, equations 15 and 16) as a factor on each sample."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdiff import backend, reference
from fastdiff.ops import _checks, _solver_step_checks
from fastdiff.ops._register import define


def rescale_gain(
    output: Tensor, uncond: Tensor | None, table: Tensor, index: Tensor, *, rescale: float
) -> Tensor:
    """What solver_step takes as `gain`: rescale*std(output)/std(g*output + g_uncond*uncond) + 1 - rescale of each
    sample, with population deviations; 1 where the guided one is 0 or not a number.

    output, uncond: [B, ...], one float dtype; or output alone with both branches, [2B, ...], conditional first. The
    weights come from row `index` of `table`, [N, 22] float64. rescale: 0 to 1. Returns [B] float32 (float64 for
    float64). Differentiable, by the reference. Raises ValueError or TypeError.
    """
    _checks.floating("output", output)
    if output.dim() < 1 or (uncond is None and output.shape[0] % 2):
        raise ValueError(
            f"output has shape {tuple(output.shape)}: without uncond it must be [2B, ...], conditional first"
        )
    if uncond is not None:
        _checks.same("uncond", uncond, output)
    _solver_step_checks.check_row(output, table, index)
    if not 0.0 <= rescale <= 1.0:
        raise ValueError(f"rescale must lie between 0 and 1, got {rescale}")
    name = backend.select("rescale_gain", output.device.type, output.dtype)
    transformed = _checks.transformed()
    if name == "reference" or transformed or _checks.records(output, uncond):
        if transformed or torch.compiler.is_compiling():
            return _on_device(output, uncond, table, index, rescale)
        return reference.rescale_gain(output, uncond, table, index, rescale)
    output = _checks.dense(output)
    uncond = None if uncond is None else _checks.laid_out_like(uncond, output)
    if torch.compiler.is_compiling():
        return OVERLOADS[name](output, uncond, table, index, rescale)
    with _checks.refusals():
        return OVERLOADS[name](output, uncond, table, index, rescale)


def _on_device(output: Tensor, uncond: Tensor | None, table: Tensor, index: Tensor, rescale: float) -> Tensor:
    """The reference with the weights left in tensors, where the host may not read them."""
    both = (output, uncond) if uncond is not None else output.tensor_split(2)
    dtype, size = reference.compute_dtype(output.dtype), output[:1].numel()
    cond, other = (branch.to(dtype).reshape(len(branch), size) for branch in both)
    row = dict(
        zip(reference.COLUMNS, table.index_select(0, index.reshape(1))[0].to(dtype).unbind(), strict=True)
    )
    guided, against = (
        torch.where(row[name] == 0, 0.0, row[name] * branch)
        for name, branch in (("g", cond), ("g_uncond", other))
    )
    return reference.gain_between(cond, guided + against, rescale)


def _fake(output: Tensor, uncond: Tensor | None, *rest: object) -> Tensor:
    images = output.shape[0] // 2 if uncond is None else output.shape[0]
    return output.new_empty(images, dtype=reference.compute_dtype(output.dtype))


OVERLOADS = define(
    "rescale_gain(Tensor output, Tensor? uncond, Tensor table, Tensor index, float rescale) -> Tensor",
    reference.rescale_gain,
    _fake,
)
