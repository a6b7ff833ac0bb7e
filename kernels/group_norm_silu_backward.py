"""The gradient of group_norm_silu in one launch, cut and scheduled as the forward is (see group_norm_silu.py).

With xhat = (x + add - mean)*rstd, z = xhat*gain + offset and dz = grad*act'(z):

    dx = rstd*(gain*dz - m1 - xhat*m2),  m1, m2: the means over a group of gain*dz and of gain*dz*xhat

so that a first reading makes three sums per channel, of dz, dz*xhat and xhat, and a second one dx. The sum of dx per
channel follows from the three and needs no reading.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdiff.kernels.group_norm_silu_plan import plan_for
from fastdiff.kernels.group_norm_silu_tiles import (
    arrived,
    by_channel,
    embedded,
    membership,
    modulation,
    of_channels,
    place,
    publish,
    role,
    slope,
    wait,
)
from fastdiff.kernels.launch import Launcher

SIZES = ["samples", "channels", "pixels", "groups", "slabs"]
SIZES += ["units", "wave", "waves", "ahead", "tiles", "across"]


@triton.jit
def statistics(mean_ptr, rstd_ptr, unit, slabs, groups, GROUPS: tl.constexpr, BG: tl.constexpr):
    """mean, rstd [BG] of a unit."""
    local = tl.arange(0, BG)
    group = (unit % slabs) * GROUPS + local
    mask = (local < GROUPS) & (group < groups)
    at = (unit // slabs).to(tl.int64) * groups + group
    mean = tl.load(mean_ptr + at, mask=mask, other=0.0)
    return mean, tl.load(rstd_ptr + at, mask=mask, other=0.0)


@triton.jit
def differentials(
    x,
    grad,
    mean,
    rstd,
    member,
    add_ptr,
    gain,
    offset,
    sample,
    channels,
    channel,
    known,
    inside,
    ACTIVATION: tl.constexpr,
):
    """xhat and dz of a tile [BC, BP], both 0 outside."""
    h = embedded(x, by_channel(mean, member), add_ptr, sample, channels, channel, known, inside)
    xhat = h * by_channel(rstd, member)
    return xhat, grad.to(tl.float32) * slope(xhat * gain[:, None] + offset[:, None], ACTIVATION)


@triton.jit
def store_dx(dx_ptr, base, at, inside, xhat, dz, gain, rstd, m1, m2, member):
    """dx of a tile. rstd, m1, m2: [BG]; gain: [BC]."""
    scale = by_channel(rstd, member)
    dx = dz * (scale * gain[:, None]) - by_channel(rstd * m1, member) - xhat * by_channel(rstd * m2, member)
    tl.store(dx_ptr + base + at, dx.to(dx_ptr.dtype.element_ty), mask=inside)


@triton.jit
def store_sums(sums_ptr, plane, place, sum_dz, sum_dz_xhat, sum_dx, known):
    """The three sums of a tile's channels [BC] at `place` of each plane [B, C]."""
    tl.store(sums_ptr + place, sum_dz, mask=known)
    tl.store(sums_ptr + plane + place, sum_dz_xhat, mask=known)
    tl.store(sums_ptr + 2 * plane + place, sum_dx, mask=known)


@triton.jit
def sum_of_dx(sum_dz, sum_xhat, gain, rstd, m1, m2, member, pixels):
    """The sum of dx per channel, a column or [BC, 1], from the sums [BC] of dz and of xhat."""
    inner = gain[:, None] * sum_dz[:, None] - by_channel(m1, member) * pixels.to(tl.float32)
    dx = by_channel(rstd, member) * (inner - by_channel(m2, member) * sum_xhat[:, None])
    return tl.sum(dx, axis=1)


@triton.jit(do_not_specialize=SIZES)
def whole_kernel(
    dx_ptr,
    grad_ptr,
    x_ptr,
    sums_ptr,
    mean_ptr,
    rstd_ptr,
    weight_ptr,
    bias_ptr,
    add_ptr,
    scale_ptr,
    shift_ptr,
    samples,
    channels,
    pixels,
    groups,
    slabs,
    CG: tl.constexpr,
    GROUPS: tl.constexpr,
    BG: tl.constexpr,
    BC: tl.constexpr,
    TAIL: tl.constexpr,
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
    mean, rstd = statistics(mean_ptr, rstd_ptr, unit, slabs, groups, GROUPS, BG)
    sample, local, channel, base, at, known, inside = place(
        unit, slabs, channels, pixels, 0, start, WIDTH, BC, BP, LAST, ALIGN, WIDE
    )
    member = membership(local, known, CG, BG)
    x = tl.load(x_ptr + base + at, mask=inside, other=0.0)
    grad = tl.load(grad_ptr + base + at, mask=inside, other=0.0)
    if TAIL:
        _, local2, channel2, base2, at2, known2, inside2 = place(
            unit, slabs, channels, pixels, BC, start, WIDTH, TAIL, BP, LAST, ALIGN, WIDE
        )
        member2 = membership(local2, known2, CG, BG)
        x2 = tl.load(x_ptr + base2 + at2, mask=inside2, other=0.0)
        grad2 = tl.load(grad_ptr + base2 + at2, mask=inside2, other=0.0)

    gain, offset = modulation(weight_ptr, bias_ptr, scale_ptr, shift_ptr, sample, channels, channel, known)
    xhat, dz = differentials(
        x, grad, mean, rstd, member, add_ptr, gain, offset,
        sample, channels, channel, known, inside, ACTIVATION,
    )  # fmt: skip
    sum_dz, sum_xhat, sum_dz_xhat = tl.sum(dz, axis=1), tl.sum(xhat, axis=1), tl.sum(dz * xhat, axis=1)
    m1, m2 = of_channels(gain * sum_dz, member), of_channels(gain * sum_dz_xhat, member)
    if TAIL:
        gain2, offset2 = modulation(
            weight_ptr, bias_ptr, scale_ptr, shift_ptr, sample, channels, channel2, known2
        )
        xhat2, dz2 = differentials(
            x2, grad2, mean, rstd, member2, add_ptr, gain2, offset2,
            sample, channels, channel2, known2, inside2, ACTIVATION,
        )  # fmt: skip
        sum_dz2, sum_xhat2 = tl.sum(dz2, axis=1), tl.sum(xhat2, axis=1)
        sum_dz_xhat2 = tl.sum(dz2 * xhat2, axis=1)
        m1 += of_channels(gain2 * sum_dz2, member2)
        m2 += of_channels(gain2 * sum_dz_xhat2, member2)
    m1 /= count
    m2 /= count

    store_dx(dx_ptr, base, at, inside, xhat, dz, gain, rstd, m1, m2, member)
    plane = samples.to(tl.int64) * channels
    sum_dx = sum_of_dx(sum_dz, sum_xhat, gain, rstd, m1, m2, member, pixels)
    store_sums(sums_ptr, plane, sample * channels + channel, sum_dz, sum_dz_xhat, sum_dx, known)
    if TAIL:
        store_dx(dx_ptr, base2, at2, inside2, xhat2, dz2, gain2, rstd, m1, m2, member2)
        sum_dx = sum_of_dx(sum_dz2, sum_xhat2, gain2, rstd, m1, m2, member2, pixels)
        store_sums(sums_ptr, plane, sample * channels + channel2, sum_dz2, sum_dz_xhat2, sum_dx, known2)


@triton.jit
def combine(
    partial_ptr,
    sums_ptr,
    means_ptr,
    rstd,
    weight_ptr,
    scale_ptr,
    unit,
    sample,
    slabs,
    samples,
    channels,
    pixels,
    tiles,
    across,
    CG: tl.constexpr,
    GROUPS: tl.constexpr,
    BG: tl.constexpr,
    BC: tl.constexpr,
    BK: tl.constexpr,
):
    """Adds a unit's partial sums in the order of its tiles; stores its sums, and m1 and m2 for those who finish."""
    WIDTH: tl.constexpr = CG * GROUPS
    plane = samples.to(tl.int64) * channels
    column, row = tl.arange(0, BC), tl.arange(0, BK)[:, None]
    m1, m2 = tl.zeros((BG,), tl.float32), tl.zeros((BG,), tl.float32)
    lead = tiles * 0
    while lead < tiles:  # a row of tiles shares its channels
        local = lead // across * BC + column
        channel = (unit % slabs) * WIDTH + local
        known = (local < WIDTH) & (channel < channels)
        sum_dz = tl.zeros((BC,), tl.float32)
        sum_dz_xhat, sum_xhat = sum_dz, sum_dz
        first = tiles * 0
        while first < across:
            at = partial_ptr + (unit.to(tl.int64) * tiles + lead + first + row) * (3 * BC) + column[None, :]
            mask = (first + row < across) & known[None, :]
            sum_dz += tl.sum(tl.load(at, mask=mask, other=0.0, cache_modifier=".cg"), axis=0)
            sum_dz_xhat += tl.sum(tl.load(at + BC, mask=mask, other=0.0, cache_modifier=".cg"), axis=0)
            sum_xhat += tl.sum(tl.load(at + 2 * BC, mask=mask, other=0.0, cache_modifier=".cg"), axis=0)
            first += BK
        # the sum of xhat is kept where the sum of dx will be, until m1 and m2 are known
        store_sums(sums_ptr, plane, sample * channels + channel, sum_dz, sum_dz_xhat, sum_xhat, known)
        gain, _ = modulation(weight_ptr, None, scale_ptr, None, sample, channels, channel, known)
        member = membership(local, known, CG, BG)
        m1 += of_channels(gain * sum_dz, member)
        m2 += of_channels(gain * sum_dz_xhat, member)
        lead += across
    count = pixels.to(tl.float32) * CG
    m1 /= count
    m2 /= count
    slot = means_ptr + unit.to(tl.int64) * (2 * BG) + tl.arange(0, BG)
    tl.store(slot, m1)
    tl.store(slot + BG, m2)
    tl.debug_barrier()
    lead = tiles * 0
    while lead < tiles:
        local = lead // across * BC + column
        channel = (unit % slabs) * WIDTH + local
        known = (local < WIDTH) & (channel < channels)
        at = sums_ptr + sample * channels + channel
        sum_dz = tl.load(at, mask=known, other=0.0)
        sum_xhat = tl.load(at + 2 * plane, mask=known, other=0.0)
        gain, _ = modulation(weight_ptr, None, scale_ptr, None, sample, channels, channel, known)
        member = membership(local, known, CG, BG)
        sum_dx = sum_of_dx(sum_dz, sum_xhat, gain, rstd, m1, m2, member, pixels)
        tl.store(at + 2 * plane, sum_dx, mask=known)
        lead += across


@triton.jit(do_not_specialize=SIZES)
def streamed_kernel(
    dx_ptr,
    grad_ptr,
    x_ptr,
    sums_ptr,
    mean_ptr,
    rstd_ptr,
    weight_ptr,
    bias_ptr,
    add_ptr,
    scale_ptr,
    shift_ptr,
    partial_ptr,  # [units, tiles, 3, BC] float32: the sums per channel of each tile
    means_ptr,  # [units, 2, BG] float32: m1 and m2
    counters_ptr,  # as in the forward
    samples,
    channels,
    pixels,
    groups,
    slabs,
    units,
    wave,
    waves,
    ahead,
    tiles,
    across,
    CG: tl.constexpr,
    GROUPS: tl.constexpr,
    BG: tl.constexpr,
    BC: tl.constexpr,
    BP: tl.constexpr,
    LAST: tl.constexpr,
    ALIGN: tl.constexpr,
    WIDE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BK: tl.constexpr,
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
            x = tl.load(x_ptr + base + at, mask=inside, other=0.0, eviction_policy="evict_last")
            grad = tl.load(grad_ptr + base + at, mask=inside, other=0.0, eviction_policy="evict_last")
        else:
            x = tl.load(x_ptr + base + at, mask=inside, other=0.0, eviction_policy="evict_first")
            grad = tl.load(grad_ptr + base + at, mask=inside, other=0.0, eviction_policy="evict_first")
        mean, rstd = statistics(mean_ptr, rstd_ptr, unit, slabs, groups, GROUPS, BG)
        gain, offset = modulation(
            weight_ptr, bias_ptr, scale_ptr, shift_ptr, sample, channels, channel, known
        )
        xhat, dz = differentials(
            x, grad, mean, rstd, member, add_ptr, gain, offset,
            sample, channels, channel, known, inside, ACTIVATION,
        )  # fmt: skip
        if collects:
            slot = partial_ptr + (unit.to(tl.int64) * tiles + tile) * (3 * BC) + tl.arange(0, BC)
            tl.store(slot, tl.sum(dz, axis=1))
            tl.store(slot + BC, tl.sum(dz * xhat, axis=1))
            tl.store(slot + 2 * BC, tl.sum(xhat, axis=1))
            if arrived(counters_ptr, unit, tiles):
                combine(
                    partial_ptr, sums_ptr, means_ptr, rstd, weight_ptr, scale_ptr, unit, sample, slabs,
                    samples, channels, pixels, tiles, across, CG, GROUPS, BG, BC, BK,
                )  # fmt: skip
                publish(counters_ptr, unit)
        else:
            wait(counters_ptr, unit, tiles)
            means = means_ptr + unit.to(tl.int64) * (2 * BG) + tl.arange(0, BG)
            m1 = tl.load(means, cache_modifier=".cg")
            m2 = tl.load(means + BG, cache_modifier=".cg")
            store_dx(dx_ptr, base, at, inside, xhat, dz, gain, rstd, m1, m2, member)


WHOLE = Launcher(whole_kernel, enable_fp_fusion=True)
STREAMED = Launcher(streamed_kernel, enable_fp_fusion=True)


def launch(
    grad: Tensor,
    x: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    add: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    activation: int,
) -> tuple[Tensor, Tensor]:
    """x: [B, C, ...] float32, float16 or bfloat16, dense, planar or channels-last; grad: as x lies; mean, rstd:
    [B, groups] float32; weight, bias: [C]; add, scale, shift: [B, C]. Returns dx like x and the sums over pixels of dz,
    dz*xhat and dx: [3, B, C] float32, on the caller's current stream."""
    dx = torch.empty_like(x)
    sums = torch.empty((3, *x.shape[:2]), dtype=torch.float32, device=x.device)
    if x.numel() == 0:
        return dx, sums.zero_()
    plan = plan_for(x, num_groups, backward=True)
    tensors = (dx, grad, x, sums, mean, rstd, weight, bias, add, scale, shift)
    sizes = (x.shape[0], *plan.sizes)
    if plan.whole:
        constants = (*plan.shape, plan.tail, plan.bp, plan.last, plan.align, plan.wide, activation)
        WHOLE(plan.programs, tensors, sizes, constants, num_warps=plan.warps)
        return dx, sums
    floats = plan.units * plan.schedule[4] * 3 * plan.shape[3]
    partial = torch.empty(floats, dtype=torch.float32, device=x.device)
    means = torch.empty(plan.units * 2 * plan.bg, dtype=torch.float32, device=x.device)
    counters = torch.zeros(1 + plan.units, dtype=torch.int32, device=x.device)
    constants = (*plan.shape, plan.bp, plan.last, plan.align, plan.wide, activation, plan.bk)
    scratch = (*tensors, partial, means, counters)
    STREAMED(plan.programs, scratch, (*sizes, *plan.schedule), constants, num_warps=plan.warps)
    return dx, sums
