"""dynamic_bound: the bounds of dynamic thresholding (arXiv:2205.11487, section 2.3), a quantile of each sample."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdiff import backend, reference
from fastdiff.ops import _checks, _solver_step_checks
from fastdiff.ops._register import define


def dynamic_bound(
    x: Tensor,
    output: Tensor,
    table: Tensor,
    index: Tensor,
    *,
    uncond: Tensor | None = None,
    gain: Tensor | None = None,
    quantile: float = 0.995,
    most: float = float("inf"),
) -> Tensor:
    """What solver_step takes as `bound`: the quantile of |p*x + q*F| of each sample, linearly interpolated between two
    values, within [1, most]. F = gain*(g*output + g_uncond*uncond), the weights from row `index` of `table`.

    x: [B, ...] float32 (float64 on the reference); output, uncond: [B, ...] of any float dtype, or output alone with
    both branches, [2B, ...]; gain: [B]. quantile: 0 to 1. Returns [B] float32 (float64 for float64): NaN for a sample
    that holds NaN, 1 for one without elements. Differentiable, by the reference. Raises ValueError or TypeError.
    """
    outputs: dict[str, Tensor | None] = {"output": output, "uncond": uncond}
    _solver_step_checks.check(x, table, index, outputs, {}, {"gain": gain})
    if not 0.0 <= quantile <= 1.0 or not most >= 1.0:
        raise ValueError(
            f"quantile must lie between 0 and 1 and most be at least 1, got {quantile} and {most}"
        )
    name = backend.select("dynamic_bound", x.device.type, x.dtype)
    if (
        name == "reference"
        or _solver_step_checks.by_formula(table, index)
        or _checks.records(x, output, uncond, gain)
    ):
        return reference.dynamic_bound(x, output, table, index, uncond, gain, quantile, most)
    x = _checks.dense(x)
    (gain,) = _solver_step_checks.vectors_like(x, gain)
    both, uncond = _solver_step_checks.outputs_like(output, uncond, x)
    if torch.compiler.is_compiling():
        return OVERLOADS[name](x, both, table, index, uncond, gain, quantile, most)
    with _checks.refusals():
        return OVERLOADS[name](x, both, table, index, uncond, gain, quantile, most)


def _fake(x: Tensor, *rest: object) -> Tensor:
    return x.new_empty(x.shape[0])


OVERLOADS = define(
    "dynamic_bound(Tensor x, Tensor output, Tensor table, Tensor index, Tensor? uncond, Tensor? gain, float quantile, "
    "float most) -> Tensor",
    reference.dynamic_bound,
    _fake,
)
