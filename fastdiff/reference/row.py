"""A row of a plan: its columns, and the sums it is made of."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastdiff.reference.common import per_sample

COLUMNS = (
    "p", "q", "lo", "hi",  # denoised = clamp(p*x + q*F, lo, hi)
    "u", "w",  # value = u*x + w*denoised
    "a", "b", "c0", "c1", "c2", "c3", "n",  # x_next = a*x + b*anchor + c0*value + c1*h1 + c2*h2 + c3*h3 + n*noise + f*F
    "k",  # input = k*x_next
    "g", "g_uncond",  # F = gain*(g*output + g_uncond*uncond)
    "call",  # 1 if the row has a model output
    "slot",  # model calls before this row: where the history ring stands
    "accept",  # 1 if x_next becomes the anchor
    "alpha", "sigma",  # the level of x_next, on which a mask puts what is known
    "f",  # F's own weight in x_next
)  # fmt: skip
"""The columns of a table of rows, in order; every backend reads them by these positions."""

WIDTH = len(COLUMNS)


def weights(table: Tensor, index: Tensor | int) -> dict[str, float]:
    """Row `index` of a table [N, 22] as Python floats by column name."""
    return dict(zip(COLUMNS, table[int(index)].tolist(), strict=True))


def branches(
    output: Tensor | None, uncond: Tensor | None, images: int
) -> tuple[Tensor | None, Tensor | None]:
    """The conditional and the unconditional output: of a doubled batch [2B, ...], its halves."""
    if output is None or uncond is not None or len(output) == images > 0:
        return output, uncond
    return output[:images], output[images:]


def guide(
    output: Tensor | None, uncond: Tensor | None, gain: Tensor | None, w: dict[str, float], x: Tensor
) -> Tensor:
    """F = gain*(g*output + g_uncond*uncond), in x's dtype."""
    guided = weighted_sum([(w["g"], output), (w["g_uncond"], uncond)], x)
    return guided if gain is None else per_sample(gain.to(x.dtype), x) * guided


def clamp(data: Tensor, lo: float, hi: float, bound: Tensor | None) -> Tensor:
    """data within [lo, hi], or within +-bound of each sample and divided by it (dynamic thresholding)."""
    if bound is None:
        return data.clamp(lo, hi)
    limit = per_sample(bound.to(data.dtype), data)
    return torch.minimum(torch.maximum(data, -limit), limit) / limit


def weighted_sum(terms: Sequence[tuple[float, Tensor | None]], like: Tensor) -> Tensor:
    """Sum of weight*tensor over the terms whose weight is not 0, in like's dtype."""
    total: Tensor | None = None
    for weight, tensor in terms:
        if weight == 0:
            continue
        if tensor is None:
            raise ValueError(
                "a row weighs a tensor that was not given: pass output, uncond, anchor, history, noise or known"
            )
        term = weight * tensor.to(like.dtype)
        total = term if total is None else total + term
    return torch.zeros_like(like) if total is None else total
