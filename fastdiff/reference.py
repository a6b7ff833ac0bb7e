"""Plain PyTorch: the specification of every operation.

Each function reads as its formula. The kernels of the other backends are tested against these, and every op falls back
to them for what a kernel does not take (float64 above all). Half precision is computed in float32 and rounded once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdiff import counter

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

ACTIVATE: dict[str, Callable[[Tensor], Tensor]] = {"none": lambda z: z, "silu": F.silu, "gelu": F.gelu}
"""What group_norm_silu ends with."""

ACTIVATIONS = tuple(ACTIVATE)
"""Their names, in the order of their codes in the op's schema."""


def silu_derivative(z: Tensor) -> Tensor:
    """d/dz of z*sigmoid(z)."""
    sigmoid = torch.sigmoid(z)
    return sigmoid * (1 + z * (1 - sigmoid))


def gelu_derivative(z: Tensor) -> Tensor:
    """d/dz of z*Phi(z), Phi the normal distribution function."""
    return 0.5 * (1 + torch.erf(z / math.sqrt(2))) + z * torch.exp(-z * z / 2) / math.sqrt(2 * math.pi)


DERIVATIVE: dict[str, Callable[[Tensor], Tensor]] = {
    "none": torch.ones_like,
    "silu": silu_derivative,
    "gelu": gelu_derivative,
}
"""The derivatives of ACTIVATE."""


class Step(NamedTuple):
    """What one row makes. x: x_next; value: what goes on the history (empty without a model output);
    input: k*x_next in the model's dtype (twice along the batch if doubled)."""

    x: Tensor
    value: Tensor
    input: Tensor


def weights(table: Tensor, index: Tensor | int) -> dict[str, float]:
    """Row `index` of a table [N, 22] as Python floats by column name."""
    return dict(zip(COLUMNS, table[int(index)].tolist(), strict=True))


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype arithmetic is done in: float64 for float64, float32 for everything else."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """values [B] or [1] shaped to broadcast over like [B, ...]; one on the CPU goes with a tensor anywhere."""
    if values.device != like.device:
        return values.reshape(())
    return values.reshape(-1, *(1,) * (like.dim() - 1))


def per_channel(values: Tensor, like: Tensor) -> Tensor:
    """values [C] or [B, C] in like's dtype, shaped to broadcast over like [B, C, ...]."""
    return values.to(like.dtype).reshape(-1, like.shape[1], *(1,) * (like.dim() - 2))


def add_noise(x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """alpha*x0 + sigma*noise. x0, noise: [B, ...]; alpha, sigma: [B] or [1]. Returns x0's shape and dtype."""
    dtype = compute_dtype(x0.dtype)
    alpha, sigma = per_sample(alpha.to(dtype), x0), per_sample(sigma.to(dtype), x0)
    return (alpha * x0.to(dtype) + sigma * noise.to(dtype)).to(x0.dtype)


def q_sample(
    x0: Tensor, noise: Tensor | None, alpha: Tensor, sigma: Tensor, state: Tensor | None, seeds: Tensor | None,
    stream: int, velocity: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """x = alpha*x0 + sigma*noise; the noise if it was drawn (else empty); alpha*noise - sigma*x0 if velocity (else
    empty); the generator's state afterwards (empty without one). noise given, or drawn as by randn_like."""
    drawn, after = x0.new_empty(0), x0.new_empty(0, dtype=torch.uint8)
    if noise is None:
        noise, after = randn_like(x0, state, seeds, stream)
        drawn = noise
    target = add_noise(noise, x0, alpha, -sigma) if velocity else x0.new_empty(0)
    return add_noise(x0, noise, alpha, sigma), drawn, target, after


def randn_like(x: Tensor, state: Tensor | None, seeds: Tensor | None, stream: int) -> tuple[Tensor, Tensor]:
    """Contiguous noise of x's shape, dtype and device, and the generator's state afterwards. state: what get_state()
    of a generator of x's device gives; or seeds: int64 [B], one for each x[i] (fastdiff/counter.py)."""
    if seeds is not None:
        noise = counter.normal(seeds, math.prod(x.shape[1:]), stream).to(x.dtype)
        return noise.reshape(x.shape).contiguous(), x.new_empty(0, dtype=torch.uint8)
    if state is None:
        raise ValueError("give one of noise, state and seeds")
    generator = torch.Generator(x.device)
    generator.set_state(state)
    noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
    return noise, generator.get_state()


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


def branches(
    output: Tensor | None, uncond: Tensor | None, images: int
) -> tuple[Tensor | None, Tensor | None]:
    """The conditional and the unconditional output: of a doubled batch [2B, ...], its halves."""
    if output is None or uncond is not None or len(output) == images > 0:
        return output, uncond
    return output[:images], output[images:]


def row_noise(x: Tensor, seeds: Tensor, row: int) -> Tensor:
    """The noise of row number `row` for seeds [B], in x's dtype: stream row + 1 of each, in contiguous order."""
    size = x.numel() // max(len(x), 1)
    return counter.normal(seeds, size, row + 1).reshape(x.shape).to(x.dtype)


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
