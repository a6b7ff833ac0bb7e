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
    if name == "reference" or _checks.records(output, uncond):
        return reference.rescale_gain(output, uncond, table, index, rescale)
    output = _checks.dense(output)
    uncond = None if uncond is None else _checks.laid_out_like(uncond, output)
    if torch.compiler.is_compiling():
        return OVERLOADS[name](output, uncond, table, index, rescale)
    with _checks.refusals():
        return OVERLOADS[name](output, uncond, table, index, rescale)


def _fake(output: Tensor, uncond: Tensor | None, *rest: object) -> Tensor:
    images = output.shape[0] // 2 if uncond is None else output.shape[0]
    return output.new_empty(images, dtype=reference.compute_dtype(output.dtype))


OVERLOADS = define(
    "rescale_gain(Tensor output, Tensor? uncond, Tensor table, Tensor index, float rescale) -> Tensor",
    reference.rescale_gain,
    _fake,
)
