"""group_norm_silu: statistics and normalisation of x in one launch, reading x once where a group fits a program.

whole_kernel: one program a slab of whole groups, all of it in registers between the statistics and the store.
streamed_kernel: larger groups, in tiles. Programs that collect leave (count, mean, M2) of their tile; the last of a
slab combines them in the order of the tiles (Chan), whoever it is, so that repeats agree bit for bit; programs that
finish wait for that and read their tile again, which is still in the L2 cache (see `role`).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdiff.kernels.group_norm_silu_plan import Plan, plan_for
from fastdiff.kernels.group_norm_silu_tiles import (
    activated,
    anchor,
    arrived,
    by_channel,
    by_group,
    embedded,
    membership,
    modulation,
    place,
    publish,
    role,
    wait,
)
from fastdiff.kernels.launch import Launcher

SIZES = ["channels", "pixels", "groups", "slabs", "units", "wave", "waves", "ahead", "tiles", "across"]


@triton.jit
def summed_tile(summed_ptr, x_ptr, residual_ptr, base, at, inside, EVICT: tl.constexpr):
    """x, or x + residual rounded to x's dtype and stored in summed. [BC, BP] in x's dtype, 0 outside."""
    x = tl.load(x_ptr + base + at, mask=inside, other=0.0, eviction_policy=EVICT)
    if residual_ptr is not None:
        residual = tl.load(residual_ptr + base + at, mask=inside, other=0.0)
        x = (x.to(tl.float32) + residual.to(tl.float32)).to(x_ptr.dtype.element_ty)
        tl.store(summed_ptr + base + at, x, mask=inside)
    return x


@triton.jit
def squares_around(mean, h, member, inside):
    """Sums per group [BG] of (h - mean)^2 over a tile."""
    d = tl.where(inside, h - by_channel(mean, member), 0.0)
    return by_group(d * d, member)


@triton.jit
def store_statistics(
    mean_ptr, rstd_ptr, mean, rstd, unit, slabs, groups, GROUPS: tl.constexpr, BG: tl.constexpr
):
    """mean, rstd [BG] of a unit into [B, groups]."""
    local = tl.arange(0, BG)
    group = (unit % slabs) * GROUPS + local
    mask = (local < GROUPS) & (group < groups)
    at = (unit // slabs).to(tl.int64) * groups + group
    tl.store(mean_ptr + at, mean, mask=mask)
    tl.store(rstd_ptr + at, rstd, mask=mask)


@triton.jit
def finish_tile(
    y_ptr,
    h,
    mean,
    rstd,
    member,
    weight_ptr,
    bias_ptr,
    scale_ptr,
    shift_ptr,
    sample,
    channels,
    channel,
    known,
    base,
    at,
    inside,
    ACTIVATION: tl.constexpr,
):
    """y of a tile h [BC, BP], from its groups' mean and rstd [BG]."""
    gain, offset = modulation(weight_ptr, bias_ptr, scale_ptr, shift_ptr, sample, channels, channel, known)
    z = (h - by_channel(mean, member)) * (by_channel(rstd, member) * gain[:, None]) + offset[:, None]
    y = activated(z, ACTIVATION)
    tl.store(y_ptr + base + at, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=SIZES)
def whole_kernel(
    y_ptr,
    x_ptr,
    residual_ptr,
    summed_ptr,
    mean_ptr,
    rstd_ptr,
    weight_ptr,
    bias_ptr,
    add_ptr,
    scale_ptr,
    shift_ptr,
    channels,
    pixels,
    groups,
    slabs,  # of a sample
    eps,
    CG: tl.constexpr,  # channels of a group
    GROUPS: tl.constexpr,  # of a slab
    BG: tl.constexpr,
    BC: tl.constexpr,
    TAIL: tl.constexpr,  # channels of a second tile, as 10 channels are 8 and 2; or 0
    BP: tl.constexpr,
    LAST: tl.constexpr,
    ALIGN: tl.constexpr,
    WIDE: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    WIDTH: tl.constexpr = CG * GROUPS
    unit = tl.program_id(0)
    start = tl.zeros((), tl.int64)
    count = pixels.to(tl.float32) * CG
    sample, local, channel, base, at, known, inside = place(
        unit, slabs, channels, pixels, 0, start, WIDTH, BC, BP, LAST, ALIGN, WIDE
    )
    member = membership(local, known, CG, BG)
    x = summed_tile(summed_ptr, x_ptr, residual_ptr, base, at, inside, "")
    if TAIL:
        _, local2, channel2, base2, at2, known2, inside2 = place(
            unit, slabs, channels, pixels, BC, start, WIDTH, TAIL, BP, LAST, ALIGN, WIDE
        )
        member2 = membership(local2, known2, CG, BG)
        x2 = summed_tile(summed_ptr, x_ptr, residual_ptr, base2, at2, inside2, "")

    first = anchor(x_ptr, unit, slabs, channels, pixels, CG, GROUPS, BG, LAST)
    h = embedded(x, by_channel(first, member), add_ptr, sample, channels, channel, known, inside)
    total = by_group(h, member)
    if TAIL:
        h2 = embedded(x2, by_channel(first, member2), add_ptr, sample, channels, channel2, known2, inside2)
        total += by_group(h2, member2)
    mean = total / count
    squares = squares_around(mean, h, member, inside)
    if TAIL:
        squares += squares_around(mean, h2, member2, inside2)
    rstd = 1.0 / tl.sqrt_rn(squares / count + eps)

    store_statistics(mean_ptr, rstd_ptr, mean + first, rstd, unit, slabs, groups, GROUPS, BG)
    finish_tile(
        y_ptr, h, mean, rstd, member, weight_ptr, bias_ptr, scale_ptr, shift_ptr,
        sample, channels, channel, known, base, at, inside, ACTIVATION,
    )  # fmt: skip
    if TAIL:
        finish_tile(
            y_ptr, h2, mean, rstd, member2, weight_ptr, bias_ptr, scale_ptr, shift_ptr,
            sample, channels, channel2, known2, base2, at2, inside2, ACTIVATION,
        )  # fmt: skip


@triton.jit
def combine(partial_ptr, unit, tiles, count, BG: tl.constexpr, BK: tl.constexpr):
    """The unit's mean (from its anchor) and variance [BG], from the tiles' counts, means and M2, in their order."""
    base = partial_ptr + unit.to(tl.int64) * tiles * (3 * BG)
    group = tl.arange(0, BG)[None, :]
    row = tl.arange(0, BK)[:, None]
    total = tl.zeros((BG,), tl.float32)
    first = tiles * 0
    while first < tiles:  # not a range: in older versions the interpreter takes no tensor as its bound
        at, mask = base + (first + row) * (3 * BG) + group, (first + row < tiles) & (group < BG)
        part = tl.load(at, mask=mask, other=0.0, cache_modifier=".cg")
        means = tl.load(at + BG, mask=mask, other=0.0, cache_modifier=".cg")
        total += tl.sum(part * means, axis=0)
        first += BK
    mean = total / count
    squares = tl.zeros((BG,), tl.float32)
    first = tiles * 0
    while first < tiles:
        at, mask = base + (first + row) * (3 * BG) + group, (first + row < tiles) & (group < BG)
        part = tl.load(at, mask=mask, other=0.0, cache_modifier=".cg")
        means = tl.load(at + BG, mask=mask, other=0.0, cache_modifier=".cg")
        within = tl.load(at + 2 * BG, mask=mask, other=0.0, cache_modifier=".cg")
        d = means - mean[None, :]
        squares += tl.sum(within + part * d * d, axis=0)  # past the last tile both are 0
        first += BK
    return mean, squares / count


@triton.jit(do_not_specialize=SIZES)
def streamed_kernel(
    y_ptr,
    x_ptr,
    residual_ptr,
    summed_ptr,
    mean_ptr,
    rstd_ptr,
    weight_ptr,
    bias_ptr,
    add_ptr,
    scale_ptr,
    shift_ptr,
    partial_ptr,  # [units, tiles, 3, BG] float32: count, mean and M2 of each tile
    counters_ptr,  # [1 + units] int32, zeros: tickets drawn; of each unit the tiles collected, plus 1 when published
    channels,
    pixels,
    groups,
    slabs,
    units,
    wave,  # units of a wave
    waves,
    ahead,  # whether a wave is collected before the one before it is finished
    tiles,  # of a unit
    across,  # tiles along the pixels
    eps,
    CG: tl.constexpr,
    GROUPS: tl.constexpr,
    BG: tl.constexpr,
    BC: tl.constexpr,
    BP: tl.constexpr,
    LAST: tl.constexpr,
    ALIGN: tl.constexpr,
    WIDE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BK: tl.constexpr,  # tiles combined at a time
):
    WIDTH: tl.constexpr = CG * GROUPS
    ticket = tl.atomic_add(counters_ptr, 1, sem="relaxed")
    unit, tile, collects = role(ticket, wave, waves, ahead, tiles, LAST)
    if unit < units:
        start = (tile % across).to(tl.int64) * BP
        sample, local, channel, base, at, known, inside = place(
            unit, slabs, channels, pixels, (tile // across) * BC, start, WIDTH, BC, BP, LAST, ALIGN, WIDE
        )
        member = membership(local, known, CG, BG)
        if collects:
            x = summed_tile(summed_ptr, x_ptr, residual_ptr, base, at, inside, "evict_last")
            first = anchor(x_ptr, unit, slabs, channels, pixels, CG, GROUPS, BG, LAST)
            around = by_channel(first, member)
            h = embedded(x, around, add_ptr, sample, channels, channel, known, inside)
            part = by_group(inside.to(tl.float32), member)
            mean = by_group(h, member) / tl.maximum(part, 1.0)
            slot = partial_ptr + (unit.to(tl.int64) * tiles + tile) * (3 * BG) + tl.arange(0, BG)
            tl.store(slot, part)
            tl.store(slot + BG, mean)
            tl.store(slot + 2 * BG, squares_around(mean, h, member, inside))
            if arrived(counters_ptr, unit, tiles):
                count = pixels.to(tl.float32) * CG
                mean, variance = combine(partial_ptr, unit, tiles, count, BG, BK)
                rstd = 1.0 / tl.sqrt_rn(variance + eps)
                store_statistics(mean_ptr, rstd_ptr, mean + first, rstd, unit, slabs, groups, GROUPS, BG)
                publish(counters_ptr, unit)
        else:
            if residual_ptr is None:  # does not depend on what is waited for
                x = tl.load(x_ptr + base + at, mask=inside, other=0.0, eviction_policy="evict_first")
                wait(counters_ptr, unit, tiles)
            else:
                wait(counters_ptr, unit, tiles)
                x = tl.load(summed_ptr + base + at, mask=inside, other=0.0)
            h = embedded(x, 0.0, add_ptr, sample, channels, channel, known, inside)
            group = tl.arange(0, BG)
            mask = (group < GROUPS) & ((unit % slabs) * GROUPS + group < groups)
            group = sample * groups + (unit % slabs) * GROUPS + group
            mean = tl.load(mean_ptr + group, mask=mask, other=0.0, cache_modifier=".cg")
            rstd = tl.load(rstd_ptr + group, mask=mask, other=0.0, cache_modifier=".cg")
            finish_tile(
                y_ptr, h, mean, rstd, member, weight_ptr, bias_ptr, scale_ptr, shift_ptr,
                sample, channels, channel, known, base, at, inside, ACTIVATION,
            )  # fmt: skip


WHOLE = Launcher(whole_kernel, enable_fp_fusion=True)
STREAMED = Launcher(streamed_kernel, enable_fp_fusion=True)


def launch(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    add: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    activation: int,
    residual: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x: [B, C, ...] float32, float16 or bfloat16, dense, planar or channels-last; weight, bias: [C]; add,
    scale, shift: [B, C]; residual: as x lies. Returns y and summed like x (summed empty without residual), mean and
    rstd [B, groups] in float32, on the caller's current stream."""
    y, empty = torch.empty_like(x), x.new_empty(0)
    summed = empty if residual is None else torch.empty_like(x)
    mean = torch.empty((x.shape[0], num_groups), dtype=torch.float32, device=x.device)
    rstd = torch.empty_like(mean)
    if x.numel() == 0:
        return y, summed, mean.zero_(), rstd.zero_()
    plan = plan_for(x, num_groups)
    tensors = (
        y,
        x,
        residual,
        None if residual is None else summed,
        mean,
        rstd,
        weight,
        bias,
        add,
        scale,
        shift,
    )
    run(plan, tensors, eps, activation)
    return y, summed, mean, rstd


def run(plan: Plan, tensors: tuple[Tensor | None, ...], eps: float, activation: int) -> None:
    """Launches the kernel that `plan` names. tensors: as the kernels take them, up to shift."""
    x = tensors[1]
    assert x is not None
    if plan.whole:
        constants = (*plan.shape, plan.tail, plan.bp, plan.last, plan.align, plan.wide, activation)
        WHOLE(plan.programs, tensors, (*plan.sizes, eps), constants, num_warps=plan.warps)
        return
    partial = torch.empty(plan.units * plan.schedule[4] * 3 * plan.bg, dtype=torch.float32, device=x.device)
    counters = torch.zeros(1 + plan.units, dtype=torch.int32, device=x.device)
    constants = (*plan.shape, plan.bp, plan.last, plan.align, plan.wide, activation, plan.bk)
    scalars = (*plan.sizes, *plan.schedule, eps)
    STREAMED(plan.programs, (*tensors, partial, counters), scalars, constants, num_warps=plan.warps)
