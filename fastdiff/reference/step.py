"""One row of a plan as a step, and the two numbers a sample that it can need from the whole image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastdiff import counter
from fastdiff.reference.common import compute_dtype
from fastdiff.reference.row import branches, clamp, guide, weighted_sum, weights


class Step(NamedTuple):
    """What one row makes. x: x_next; value: what goes on the history (empty without a model output);
    input: k*x_next in the model's dtype (twice along the batch if doubled)."""

    x: Tensor
    value: Tensor
    input: Tensor


def solver_step(
    x: Tensor,
    output: Tensor | None,
    table: Tensor,
    index: Tensor,
    *,
    uncond: Tensor | None = None,
    anchor: Tensor | None = None,
    history: Sequence[Tensor | None] = (),
    noise: Tensor | None = None,
    bound: Tensor | None = None,
    gain: Tensor | None = None,
    mask: Tensor | None = None,
    known: Tensor | None = None,
    known_noise: Tensor | None = None,
    seeds: Tensor | None = None,
    input_dtype: torch.dtype | None = None,
    doubled: bool = False,
) -> Step:
    """One row of a plan (see COLUMNS). x, anchor, history (newest first), noise, mask, known, known_noise: [B, ...];
    output, uncond: [B, ...] or None where the row has no model output, output also [2B, ...]; bound, gain, seeds: [B].
    A term of weight 0 is neither read nor multiplied."""
    w = weights(table, index)
    value = x.new_empty(0) if output is None else torch.zeros_like(x)
    output, uncond = branches(output, uncond, len(x))
    if noise is None and seeds is not None and w["n"]:
        noise = row_noise(x, seeds, int(index))
    terms = [(w["a"], x), (w["b"], anchor)]
    if w["call"]:
        if output is None:
            raise ValueError("this row has a model output: pass output")
        guided = guide(output, uncond, gain, w, x) if w["f"] or (w["q"] and w["w"]) else None
        data = weighted_sum([(w["p"], x), (w["q"], guided)], x) if w["w"] else None
        denoised = None if data is None else clamp(data, w["lo"], w["hi"], bound)
        value = weighted_sum([(w["u"], x), (w["w"], denoised)], x)
        terms += [(w["f"], guided), (w["c0"], value)]
    past = (*history, None, None, None)
    terms += [(w["c1"], past[0]), (w["c2"], past[1]), (w["c3"], past[2]), (w["n"], noise)]
    x_next = weighted_sum(terms, x)
    if mask is not None:
        kept = weighted_sum([(w["alpha"], known), (w["sigma"], known_noise)], x)
        # What the mask leaves out need not be finite.
        x_next = torch.where(mask != 0, mask * x_next, 0.0) + torch.where(mask != 1, (1 - mask) * kept, 0.0)
    x_in = (w["k"] * x_next).to(input_dtype or x.dtype)
    return Step(x_next, value, torch.cat([x_in, x_in]) if doubled else x_in)


def solver_step_(
    x: Tensor,
    output: Tensor | None,
    table: Tensor,
    index: Tensor,
    *,
    uncond: Tensor | None = None,
    anchor: Tensor | None = None,
    history: Tensor | None = None,
    noise: Tensor | None = None,
    bound: Tensor | None = None,
    gain: Tensor | None = None,
    mask: Tensor | None = None,
    known: Tensor | None = None,
    known_noise: Tensor | None = None,
    seeds: Tensor | None = None,
    source: Tensor | None = None,
    input: Tensor | None = None,
) -> None:
    """The same row in place: x becomes x_next (of source, if given), anchor too if accepted, value goes on the ring
    history [S, B, ...] at slot % S (h_j is read at (slot - j) % S), and input ([B, ...] or [2B, ...]) receives the next
    model input."""
    w = weights(table, index)
    slot = int(w["slot"])
    ring: list[Tensor | None] = (
        [] if history is None else [history[(slot - j) % len(history)] for j in (1, 2, 3)]
    )
    doubled = input is not None and len(input) != len(x)
    step = solver_step(
        x if source is None else source, output, table, index, uncond=uncond, anchor=anchor, history=ring,
        noise=noise, bound=bound, gain=gain, mask=mask, known=known, known_noise=known_noise, seeds=seeds,
        input_dtype=None if input is None else input.dtype, doubled=doubled,
    )  # fmt: skip
    x.copy_(step.x)
    if anchor is not None and w["accept"]:
        anchor.copy_(step.x)
    if history is not None and w["call"]:
        history[slot % len(history)].copy_(step.value)
    if input is not None:
        input.copy_(step.input)


def row_noise(x: Tensor, seeds: Tensor, row: int) -> Tensor:
    """The noise of row number `row` for seeds [B], in x's dtype: stream row + 1 of each, in contiguous order."""
    size = x.numel() // max(len(x), 1)
    return counter.normal(seeds, size, row + 1).reshape(x.shape).to(x.dtype)


def dynamic_bound(
    x: Tensor,
    output: Tensor,
    table: Tensor,
    index: Tensor,
    uncond: Tensor | None,
    gain: Tensor | None,
    quantile: float,
    most: float,
) -> Tensor:
    """The given quantile of |p*x + q*F| of each sample, F as in solver_step, within [1, most]: [B]."""
    w = weights(table, index)
    guided = guide(*branches(output, uncond, len(x)), gain, w, x) if w["q"] else None
    return quantile_bound(weighted_sum([(w["p"], x), (w["q"], guided)], x), quantile, most)


def quantile_bound(data: Tensor, quantile: float, most: float) -> Tensor:
    """The quantile of |data| of each sample, linearly interpolated, within [1, most]: [B]. NaN where there is NaN."""
    if not data.numel():
        return data.new_ones(len(data))
    flat = data.reshape(len(data), -1).abs()
    # torch.quantile refuses more than 2^24 values; the order statistics around the quantile do not.
    place = quantile * (flat.shape[1] - 1)
    below = int(place)
    ranked = torch.topk(flat, flat.shape[1] - below, dim=1).values  # NaN first
    low, high = ranked[:, -1], ranked[:, max(-2, -ranked.shape[1])]
    between = torch.where(low == high, low, low + (place - below) * (high - low)) if place > below else low
    return torch.where(ranked[:, 0].isnan(), torch.nan, between).clamp(1.0, most)


def rescale_gain(
    output: Tensor, uncond: Tensor | None, table: Tensor, index: Tensor, rescale: float
) -> Tensor:
    """rescale*std(output)/std(g*output + g_uncond*uncond) + 1 - rescale of each sample (population deviations), 1 where
    the guided one is 0: [B]. output, uncond: [B, ...]; or output alone, [2B, ...], conditional first."""
    w = weights(table, index)
    both = (output, uncond) if uncond is not None else output.tensor_split(2)
    dtype, size = compute_dtype(output.dtype), output[:1].numel()
    cond, other = (branch.to(dtype).reshape(len(branch), size) for branch in both)
    return gain_between(cond, weighted_sum([(w["g"], cond), (w["g_uncond"], other)], cond), rescale)


def gain_between(cond: Tensor, guided: Tensor, rescale: float) -> Tensor:
    """rescale*std(cond)/std(guided) + 1 - rescale of each line, 1 where std(guided) is 0. Both [B, N]; returns [B]."""
    if not cond.shape[1]:
        return cond.new_ones(len(cond))
    wanted, found = cond.std(1, correction=0), guided.std(1, correction=0)
    # the inner where: a deviation of 0 has no gradient
    ratio = wanted / torch.where(found > 0, found, 1.0)
    return torch.where(found > 0, rescale * ratio + (1.0 - rescale), 1.0)
