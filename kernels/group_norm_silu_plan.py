"""How the kernels of group_norm_silu cut a tensor: by a rule, or as MEASURED says for its shape."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

from torch import Tensor

WHOLE = {(False, 2): 40960, (False, 4): 20480, (True, 2): 16384, (True, 4): 10240}
"""(backward, bytes of an element) -> elements that a program holds in registers, without spilling, between statistics
and store; backward holds two tensors."""

LAST = 20480
"""The same for channels-last, where a thread has several channels and their weights."""

TILE = {False: 8192, True: 4096}
"""Elements of a streamed tile: with 8 warps 32 a thread, few enough for four programs on a multiprocessor."""

WAVE_BYTES = 12 << 20
"""What is collected before it is read again. Two waves and what is written between them share the L2 cache (50 MB)."""

LONE_BYTES = 36 << 20
"""A unit larger than a wave, and up to this with all that is read of it, is finished before the next is collected: one
may stay in the L2 cache where two cannot."""

PROGRAMS = 264
"""Enough for every multiprocessor of an H100 twice: small groups share a program only above that."""


class Tiling(NamedTuple):
    """The choices. whole: one program a slab; groups: of a slab; bc, tail: channels of a tile and of a second one; bp:
    its pixels."""

    whole: bool
    groups: int
    bc: int
    tail: int
    bp: int
    warps: int


MEASURED: dict[tuple[bool, bool, int, int, int], Tiling] = {}
"""(backward, channels-last, channels of a group, pixels, bytes of an element) -> what was fastest on an H100."""


class Plan(NamedTuple):
    """What a launch needs, besides tensors, for one shape, layout and dtype."""

    whole: bool
    shape: tuple[int, int, int, int]  # CG, GROUPS, BG, BC
    tail: int
    bp: int
    last: bool
    align: int
    wide: bool
    warps: int
    sizes: tuple[int, int, int, int]  # channels, pixels, groups, slabs
    units: int
    schedule: tuple[int, int, int, int, int, int]  # units, wave, waves, ahead, tiles, across
    programs: int
    bg: int
    bk: int


def plan_for(x: Tensor, groups: int, *, backward: bool = False) -> Plan:
    """x: [B, C, ...], dense, planar or channels-last."""
    batch, channels = x.shape[:2]
    pixels = x.numel() // (batch * channels)
    last = pixels > 1 and channels > 1 and x.stride(1) == 1
    return plan(batch, channels, pixels, groups, last, x.element_size(), backward)


@lru_cache(maxsize=4096)
def plan(
    batch: int, channels: int, pixels: int, groups: int, last: bool, itemsize: int, backward: bool
) -> Plan:
    """The measured tiling, or one by the rule, and what follows from it."""
    cg = channels // groups
    chosen = MEASURED.get((backward, last, cg, pixels, itemsize))
    chosen = chosen or tiling(batch, cg, pixels, groups, last, itemsize, backward)
    return laid_out(chosen, batch, channels, pixels, groups, last, itemsize, backward)


def laid_out(
    chosen: Tiling,
    batch: int,
    channels: int,
    pixels: int,
    groups: int,
    last: bool,
    itemsize: int,
    backward: bool,
) -> Plan:
    """The plan of a tiling."""
    width, slabs = chosen.groups * (channels // groups), -(-groups // chosen.groups)
    units, bg = batch * slabs, power(chosen.groups)
    across = -(-pixels // chosen.bp)
    tiles = across * -(-width // chosen.bc)
    unit = width * pixels * itemsize
    lone = unit > WAVE_BYTES and (1 + backward) * unit <= LONE_BYTES
    waves = -(-units // max(1, WAVE_BYTES // unit))
    wave = -(-units // waves)
    reach = (chosen.bp + 1) * channels if last else (max(chosen.bc, chosen.tail) + 1) * pixels
    return Plan(
        whole=chosen.whole,
        shape=(channels // groups, chosen.groups, bg, chosen.bc),
        tail=chosen.tail,
        bp=chosen.bp,
        last=last,
        align=math.gcd(channels if last else pixels, 16),
        wide=reach >= 2**31,
        warps=chosen.warps,
        sizes=(channels, pixels, groups, slabs),
        units=units,
        schedule=(units, wave, waves, int(not lone), tiles, across),
        programs=units if chosen.whole else 2 * waves * wave * tiles,
        bg=bg,
        bk=max(1, min(power(tiles), 512 // bg)),
    )


def tiling(
    batch: int, cg: int, pixels: int, groups: int, last: bool, itemsize: int, backward: bool
) -> Tiling:
    """The rule: whole groups where they fit registers and, channels-last, do not read shreds of cache lines."""
    bc, tail = head_and_tail(cg)
    elements = (bc + tail) * power(pixels)
    part = cg * itemsize  # bytes of a pixel in a group
    whole_lines = not last or pixels <= 256 or (part >= 32 and part % 16 == 0)
    limit = min(WHOLE[backward, itemsize], LAST) if last else WHOLE[backward, itemsize]
    if elements <= limit and whole_lines:
        shared = neighbours(batch, cg, pixels, groups, last, itemsize)
        if shared > 1:
            bc, tail = power(shared * cg), 0
        elif elements >= 16384 and tail == 0 and bc > 1:
            bc, tail = bc // 2, bc // 2  # one after the other, with fewer registers
        elements = (bc + tail) * power(pixels)
        return Tiling(True, shared, bc, tail, power(pixels), warps(elements))
    shared = slab(cg, pixels, groups, itemsize) if last else 1
    bc = min(power(shared * cg), 256) if last else rows(cg, pixels, TILE[backward])
    return Tiling(False, shared, bc, 0, TILE[backward] // bc, 8)


def neighbours(batch: int, cg: int, pixels: int, groups: int, last: bool, itemsize: int) -> int:
    """Groups that share a program which holds them whole: more while programs stay many and tiles small, or, channels-
    last, while a pixel's part is less than a cache line."""
    shared = 1
    while 2 * shared <= groups and batch * groups // (2 * shared) >= PROGRAMS // 4:
        elements = power(2 * shared * cg) * power(pixels)
        short = last and shared * cg * itemsize < 128 and elements <= 8192
        many = batch * groups // (2 * shared) >= PROGRAMS and elements <= 2048
        if not (short or many):
            break
        shared *= 2
    return shared


def slab(cg: int, pixels: int, groups: int, itemsize: int) -> int:
    """Groups whose channels make a streamed channels-last tile: at least 64 bytes of a pixel, few idle lanes, vectors
    whole, and a unit that a wave can hold where that is possible."""

    def cost(shared: int) -> tuple[bool, bool, float, int]:
        width = shared * cg
        idle = -(-groups // shared) * power(width) / (groups * cg)
        ragged = width * itemsize % 16 != 0
        large = width * pixels * itemsize > WAVE_BYTES and width * itemsize > 64
        return width * itemsize < 64, large, idle + 0.25 * ragged, -width

    candidates = [n for n in range(1, groups + 1) if n == 1 or n * cg <= 128]
    return min(candidates, key=cost)


def rows(cg: int, pixels: int, tile: int) -> int:
    """Channels of a streamed planar tile: what leaves the fewest lanes idle."""
    candidates = [1 << i for i in range(tile.bit_length()) if 1 << i <= power(cg)]
    return min(candidates, key=lambda bc: (-(-cg // bc) * bc * -(-pixels // (tile // bc)) * (tile // bc), bc))


def head_and_tail(cg: int) -> tuple[int, int]:
    """Powers of two, the second possibly 0, whose sum holds cg channels."""
    whole = power(cg)
    rest = 0 if whole == cg else power(cg - whole // 2)
    return (whole, 0) if rest in (0, whole // 2) else (whole // 2, rest)


def power(n: int) -> int:
    """The least power of two that is at least n."""
    return 1 << (n - 1).bit_length()


def warps(elements: int) -> int:
    """Of a program that holds so many elements: 16 to 40 elements a thread, which then has 128 or 64 registers."""
    return 32 if elements > 20480 else max(1, min(power(elements) // 512, 16))
