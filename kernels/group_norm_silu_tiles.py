"""What the forward and the backward kernels of group_norm_silu do with a tile [channels, pixels] held in registers.

A unit is a slab of WIDTH = GROUPS*CG neighbouring channels (GROUPS whole groups) of one sample; a tile is BC of its
channels by BP of its pixels. Planar memory ([B, C, pixels]) and channels-last ([B, pixels, C], LAST) differ only in the
offsets. Sums over a tile's pixels are per channel [BC]; `member` [BC, BG] says which channel is in which group.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def place(
    unit,
    slabs,
    channels,
    pixels,
    first,  # channel of the slab
    start,  # pixel, 64-bit
    WIDTH: tl.constexpr,
    BC: tl.constexpr,
    BP: tl.constexpr,
    LAST: tl.constexpr,
    ALIGN: tl.constexpr,  # divides the contiguous one of pixels and channels: what vector accesses rest on
    WIDE: tl.constexpr,  # whether offsets within a tile need 64 bits; the tile's own place always has them
):
    """Where a tile lies: its sample, channels in the slab [BC] and in the sample [BC], its first element, the offsets
    from there [BC, BP], and the masks of the channels [BC] and elements [BC, BP] that exist."""
    sample = (unit // slabs).to(tl.int64)
    row = tl.arange(0, BC)
    local = first + row
    lead = (unit % slabs) * WIDTH + first
    pixel = tl.arange(0, BP)
    if WIDE:
        row = row.to(tl.int64)
        pixel = pixel.to(tl.int64)
    if LAST:
        length = channels // ALIGN * ALIGN
        known = (local < WIDTH) & (lead + row < length)
        inside = known[:, None] & (start + pixel < pixels)[None, :]
        base = (sample * pixels + start) * length + lead
        at = (pixel * length)[None, :] + row[:, None]
    else:
        length = pixels // ALIGN * ALIGN
        known = (local < WIDTH) & (lead + row < channels)
        inside = known[:, None] & (start + pixel < length)[None, :]
        base = (sample * channels + lead) * length + start
        at = (row * length)[:, None] + pixel[None, :]
    return sample, local, lead + row, base, at, known, inside


@triton.jit
def membership(local, known, CG: tl.constexpr, BG: tl.constexpr):
    """[BC, BG]: whether a channel of the tile exists and is in a group of the slab."""
    return ((local // CG)[:, None] == tl.arange(0, BG)[None, :]) & known[:, None]


@triton.jit
def by_group(values, member):
    """A tile [BC, BP], 0 where nothing is, -> its sums per group [BG]. Selected, not multiplied: NaN stays in its
    group."""
    if member.shape[1] == 1:
        return tl.sum(values) + tl.zeros((1,), tl.float32)
    else:
        return of_channels(tl.sum(values, axis=1), member)


@triton.jit
def of_channels(values, member):
    """Per channel [BC] -> the sums per group [BG]."""
    return tl.sum(tl.where(member, values[:, None], 0.0), axis=0)


@triton.jit
def by_channel(values, member):
    """Per group [BG] -> a column per channel [BC, 1], or one number where there is one group: a register, not BC."""
    if member.shape[1] == 1:
        return tl.sum(values, axis=0)
    else:
        return tl.sum(tl.where(member, values[None, :], 0.0), axis=1)[:, None]


@triton.jit
def anchor(
    x_ptr,
    unit,
    slabs,
    channels,
    pixels,
    CG: tl.constexpr,
    GROUPS: tl.constexpr,
    BG: tl.constexpr,
    LAST: tl.constexpr,
):
    """The first element of each group of a unit [BG]: sums of x - anchor lose nothing where x lies far from 0."""
    local = tl.arange(0, BG)
    channel = ((unit % slabs) * GROUPS + local) * CG
    at = (unit // slabs).to(tl.int64) * channels * pixels
    at += channel if LAST else channel * pixels.to(tl.int64)
    return tl.load(x_ptr + at, mask=(local < GROUPS) & (channel < channels), other=0.0).to(tl.float32)


@triton.jit
def embedded(x, around, add_ptr, sample, channels, channel, known, inside):
    """x [BC, BP] - around + add[sample, channel] (where given) in float32; 0 outside."""
    h = x.to(tl.float32) - around
    if add_ptr is not None:
        add = tl.load(add_ptr + sample * channels + channel, mask=known, other=0.0).to(tl.float32)
        h += add[:, None]
    return tl.where(inside, h, 0.0)


@triton.jit
def modulation(weight_ptr, bias_ptr, scale_ptr, shift_ptr, sample, channels, channel, known):
    """gain, offset [BC] of z = xhat*gain + offset: gain = weight*(1 + scale), offset = bias*(1 + scale) + shift."""
    gain = tl.where(known, 1.0, 0.0)
    offset = gain * 0.0
    at = sample * channels + channel
    if weight_ptr is not None:
        gain = tl.load(weight_ptr + channel, mask=known, other=0.0).to(tl.float32)
    if bias_ptr is not None:
        offset = tl.load(bias_ptr + channel, mask=known, other=0.0).to(tl.float32)
    if scale_ptr is not None:
        factor = 1.0 + tl.load(scale_ptr + at, mask=known, other=0.0).to(tl.float32)
        gain *= factor
        offset *= factor
    if shift_ptr is not None:
        offset += tl.load(shift_ptr + at, mask=known, other=0.0).to(tl.float32)
    return gain, offset


@triton.jit
def activated(z, ACTIVATION: tl.constexpr):
    """0: z, 1: silu, 2: gelu (erf)."""
    if ACTIVATION == 1:
        z = z / (1.0 + tl.exp(-z))
    elif ACTIVATION == 2:
        z = 0.5 * z * (1.0 + tl.erf(z * 0.7071067811865476))
    return z


@triton.jit
def slope(z, ACTIVATION: tl.constexpr):
    """The derivative of `activated` at z."""
    if ACTIVATION == 1:
        sigmoid = 1.0 / (1.0 + tl.exp(-z))
        return sigmoid * (1.0 + z * (1.0 - sigmoid))
    elif ACTIVATION == 2:
        density = 0.3989422804014327 * tl.exp(-0.5 * z * z)
        return 0.5 * (1.0 + tl.erf(z * 0.7071067811865476)) + z * density
    else:
        return z * 0.0 + 1.0


@triton.jit
def role(ticket, wave, waves, ahead, tiles, LAST: tl.constexpr):
    """What the program that drew `ticket` does: (unit, tile, whether it collects or finishes).

    Units go in waves that fit the L2 cache together. With `ahead`, wave w+1 is collected before wave w is finished, so
    that whoever finishes hardly ever waits; without, a wave is finished before the next is collected. Either way who
    finishes waits only for programs with smaller tickets, which run already: no deadlock.
    """
    span = wave * tiles
    block, at = ticket // span, ticket % span
    final = 2 * waves - 1
    early = (block == 0) | ((block % 2 == 1) & (block < final))
    collects = tl.where(ahead != 0, early, block % 2 == 0)
    which = tl.where(early, (block + 1) // 2, tl.where(block == final, waves - 1, block // 2 - 1))
    which = tl.where(ahead != 0, which, block // 2)
    if LAST:  # neighbouring programs share rows of pixels
        unit, tile = at % wave, at // wave
    else:
        unit, tile = at // tiles, at % tiles
    return which * wave + unit, tile, collects


@triton.jit
def arrived(counters_ptr, unit, tiles):
    """Announces that this program's stores for the unit are done; whether it was the last of the unit's tiles to do so,
    and then sees what all of them stored."""
    tl.debug_barrier()  # the atomic is one thread's: the others' stores come before it
    before = tl.atomic_add(counters_ptr + 1 + unit, 1, sem="acq_rel")
    tl.debug_barrier()
    return before == tiles - 1


@triton.jit
def publish(counters_ptr, unit):
    """Lets the programs that `wait` for the unit go on."""
    tl.debug_barrier()
    tl.atomic_add(counters_ptr + 1 + unit, 1, sem="release")


@triton.jit
def wait(counters_ptr, unit, tiles):
    """Until the unit is published."""
    while tl.atomic_add(counters_ptr + 1 + unit, 0, sem="acquire") <= tiles:
        pass
    tl.debug_barrier()
