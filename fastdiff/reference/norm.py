"""Group normalisation with what comes before and after it, and its gradient."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdiff.reference.common import compute_dtype, per_channel


def silu_derivative(z: Tensor) -> Tensor:
    """d/dz of z*sigmoid(z)."""
    sigmoid = torch.sigmoid(z)
    return sigmoid * (1 + z * (1 - sigmoid))


def gelu_derivative(z: Tensor) -> Tensor:
    """d/dz of z*Phi(z), Phi the normal distribution function."""
    return 0.5 * (1 + torch.erf(z / math.sqrt(2))) + z * torch.exp(-z * z / 2) / math.sqrt(2 * math.pi)


ACTIVATE: dict[str, Callable[[Tensor], Tensor]] = {"none": lambda z: z, "silu": F.silu, "gelu": F.gelu}
"""What group_norm_silu ends with."""

ACTIVATIONS = tuple(ACTIVATE)
"""Their names, in the order of their codes in the op's schema."""

DERIVATIVE: dict[str, Callable[[Tensor], Tensor]] = {
    "none": torch.ones_like,
    "silu": silu_derivative,
    "gelu": gelu_derivative,
}
"""The derivatives of ACTIVATE."""


def group_norm_silu(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    *,
    add: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    activation: str = "silu",
) -> Tensor:
    """act(group_norm(x + add)*(1 + scale) + shift). x: [B, C, ...]; weight, bias: [C]; add, scale, shift: [B, C].
    Returns x's shape and dtype."""
    h = x.to(compute_dtype(x.dtype))
    weight, bias = (None if t is None else t.to(h.dtype) for t in (weight, bias))
    if weight is None and bias is not None:  # PyTorch's backward fails on a bias alone
        weight = torch.ones_like(bias)
    if add is not None:
        h = h + per_channel(add, h)
    if h.numel():  # torch.group_norm, as F.group_norm refuses groups of one value
        h = torch.group_norm(h, num_groups, weight, bias, eps)
    else:  # of nothing: the gradients of weight and bias are 0
        h = h + sum(per_channel(t, h) for t in (weight, bias) if t is not None)
    if scale is not None:
        h = h * (1 + per_channel(scale, h))
    if shift is not None:
        h = h + per_channel(shift, h)
    return ACTIVATE[activation](h).to(x.dtype)


def group_norm_silu_backward(
    grad: Tensor,
    x: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    *,
    add: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    activation: str = "silu",
) -> tuple[Tensor, Tensor]:
    """The gradient of group_norm_silu for x, and sums over the pixels [3, B, C] of dz, of dz*xhat and of dx.

    xhat = (x + add - mean)*rstd, z = (xhat*weight + bias)*(1 + scale) + shift, dz = grad*act'(z). mean, rstd:
    [B, num_groups]. All other gradients follow from the sums: shift's is the first, add's the last, scale's
    weight*sums[1] + bias*sums[0], weight's the batch's sum of (1 + scale)*sums[1], bias's of (1 + scale)*sums[0].
    """
    h = x.to(compute_dtype(x.dtype))
    batch, channels = x.shape[:2]
    per_group, pixels = channels // num_groups, math.prod(x.shape[2:])

    def given(values: Tensor | None, missing: float) -> Tensor | float:
        return missing if values is None else per_channel(values, h)

    def of_channels(values: Tensor) -> Tensor:
        """[B, groups] as [B, C, 1...]."""
        return per_channel(values.repeat_interleave(per_group, dim=1), h)

    def group_mean(values: Tensor) -> Tensor:
        return of_channels(values.reshape(batch, num_groups, per_group * pixels).mean(2))

    def pixel_sum(values: Tensor) -> Tensor:
        return values.reshape(batch, channels, pixels).sum(2)

    xhat = (h + given(add, 0.0) - of_channels(mean)) * of_channels(rstd)
    slope = given(weight, 1.0) * (1 + given(scale, 0.0))  # dz/dxhat
    z = xhat * slope + given(bias, 0.0) * (1 + given(scale, 0.0)) + given(shift, 0.0)
    dz = grad.to(h.dtype) * DERIVATIVE[activation](z)
    dxhat = dz * slope
    dx = of_channels(rstd) * (dxhat - group_mean(dxhat) - xhat * group_mean(dxhat * xhat))
    return dx.to(x.dtype), torch.stack([pixel_sum(dz), pixel_sum(dz * xhat), pixel_sum(dx)])


def group_statistics(
    x: Tensor, num_groups: int, eps: float, add: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Mean and 1/sqrt(variance + eps) of each group of x + add. x: [B, C, ...]. Returns two of [B, num_groups]."""
    h = x.to(compute_dtype(x.dtype))
    if h.numel() == 0:
        return h.new_zeros((len(h), num_groups)), h.new_zeros((len(h), num_groups))
    h = h if add is None else h + per_channel(add, h)
    variance, mean = torch.var_mean(h.reshape(len(h), num_groups, -1), dim=-1, correction=0)
    return mean, torch.rsqrt(variance + eps)
