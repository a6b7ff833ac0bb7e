"""dynamic_bound: the quantile of |p*x + q*F| of each sample, by radix selection.

The bits of a float32 that is not negative, read as an integer, are in the order of the numbers. Four digits, highest
first: count how often each of its 256 values occurs among the numbers that agree with the digits found so far, and take
the one that holds the rank looked for. A small sample is one program's; a large one is counted by many, a launch a
digit, into a workspace, in integers, whose sums have one value in any order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdiff.kernels import row
from fastdiff.kernels.launch import Launcher

BINS = 256
DIGITS = 4
ONE_PROGRAM = 2**14  # elements up to which a sample is one program's
BLOCK = 4096
CHUNK_BLOCKS = 2  # blocks a program counts of a larger one
OPTIONS = {"num_warps": 16, "enable_fp_fusion": False, "maxnreg": 128}  # what 16 warps can have

NOTHING = tl.constexpr(0x7FFFFFFF)  # above every key
INFINITY = tl.constexpr(0x7F800000)  # its key; those of NaN lie above


@triton.jit
def keys(
    row_ptr, x_ptr, output_ptr, uncond_ptr, gain_ptr, sample, inner, first, until, BLOCK: tl.constexpr
):  # fmt: skip
    """The bits of |p*x + q*F| for elements [first, first + BLOCK) of a sample, NOTHING from `until` on."""
    ahead = tl.arange(0, BLOCK)
    inside = first + ahead < until
    start = sample * inner + first
    x = tl.load(x_ptr + start + ahead, mask=inside, other=0.0)
    wanted = row.weight(row_ptr, row.Q) != 0
    guided = row.guided(row_ptr, wanted, x, output_ptr, uncond_ptr, gain_ptr, sample, start, ahead, inside)
    data = row.predicted(row_ptr, 1.0, x, guided)
    return tl.where(inside, tl.abs(data).to(tl.int32, bitcast=True), NOTHING), inside


@triton.jit
def digit(key, DIGIT: tl.constexpr):
    """Digits 0 to 2 have eight bits each, digit 3 the last seven."""
    return (key >> (23 - 8 * DIGIT)) & 255 if DIGIT < 3 else key & 127


@triton.jit
def above(key, DIGIT: tl.constexpr):
    """The digits before this one."""
    return key >> (31 - 8 * DIGIT) if DIGIT < 4 else key


@triton.jit
def descend(counts, rank, prefix, DIGIT: tl.constexpr, BINS: tl.constexpr):
    """The digits so far with this one, and the rank among the numbers that have them."""
    bins = tl.arange(0, BINS)
    found = tl.sum((tl.cumsum(counts, 0) <= rank).to(tl.int32), 0)
    rank -= tl.sum(tl.where(bins < found, counts, 0), 0)
    prefix = (prefix << 8 | found) if DIGIT < 3 else (prefix << 7 | found)
    return rank, prefix


@triton.jit
def count(
    row_ptr, x_ptr, output_ptr, uncond_ptr, gain_ptr, sample, inner, first, until, prefix,
    DIGIT: tl.constexpr, BINS: tl.constexpr, BLOCKS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """How often each value of a digit occurs after `prefix` in elements [first, until); and, with the first digit, the
    largest key; with the last, NOTHING less the smallest key whose other digits are larger; else 0."""
    counts = tl.zeros([BINS], tl.int32)
    extreme = tl.zeros([BLOCK], tl.int32)
    for block in range(BLOCKS):
        at = first + block * BLOCK
        key, inside = keys(row_ptr, x_ptr, output_ptr, uncond_ptr, gain_ptr, sample, inner, at, until, BLOCK)
        here = inside & (above(key, DIGIT) == prefix) if DIGIT > 0 else inside
        counts += tl.histogram(digit(key, DIGIT), BINS, mask=here)
        if DIGIT == 0:
            extreme = tl.maximum(extreme, tl.where(inside, key, 0))
        if DIGIT == 3:
            extreme = tl.maximum(extreme, tl.where(above(key, DIGIT) > prefix, -key + NOTHING, 0))
    return counts.to(tl.int64), tl.max(extreme, 0)


@triton.jit
def between(counts, largest, higher, rank, prefix, part, most, BINS: tl.constexpr):
    """The quantile within [1, most]. counts: of the last digit; largest, higher: of the first and the last, from count;
    rank, prefix: after the last; part: of the way from the number of this rank to the next."""
    bins = tl.arange(0, BINS)
    last = prefix & 127
    ties = tl.sum(tl.where(bins == last, counts, 0), 0)
    beside = tl.min(tl.where((bins > last) & (counts > 0), prefix - last + bins, NOTHING), 0)
    after = tl.where(rank + 1 < ties, prefix, tl.minimum(beside, -higher + NOTHING))
    low = prefix.to(tl.float32, bitcast=True)
    high = after.to(tl.float32, bitcast=True)
    value = tl.where((part > 0.0) & (low != high), low + part * (high - low), low)
    value = tl.minimum(tl.maximum(value, 1.0), most)
    return tl.where(largest > INFINITY, float("nan"), value)


@triton.jit(do_not_specialize=["rank"])
def whole_kernel(
    bound_ptr, x_ptr, output_ptr, uncond_ptr, table_ptr, index_ptr, gain_ptr,
    total, inner, rank, part, most, HALVES: tl.constexpr, BINS: tl.constexpr, BLOCKS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """A sample a program."""
    sample = tl.program_id(0).to(tl.int64)
    row_ptr = table_ptr + tl.load(index_ptr) * row.COLUMN_COUNT
    if HALVES:
        uncond_ptr = output_ptr + total
    left = tl.zeros([], tl.int64) + rank
    prefix = tl.zeros([], tl.int32)
    largest = prefix
    start = tl.zeros([], tl.int64)
    for number in tl.static_range(4):
        counts, higher = count(
            row_ptr, x_ptr, output_ptr, uncond_ptr, gain_ptr, sample, inner, start, inner, prefix, number, BINS, BLOCKS,
            BLOCK,
        )  # fmt: skip
        if number == 0:
            largest = higher
        left, prefix = descend(counts, left, prefix, number, BINS)
    bound = between(counts, largest, higher, left, prefix, part, most, BINS)
    tl.store(bound_ptr + sample, bound)


@triton.jit
def found_so_far(counts_ptr, rank, DIGIT: tl.constexpr, BINS: tl.constexpr):
    """Rank and digits after those before DIGIT, whose counts are complete."""
    left = tl.zeros([], tl.int64) + rank
    prefix = tl.zeros([], tl.int32)
    for number in tl.static_range(DIGIT):
        counts = tl.load(counts_ptr + number * BINS + tl.arange(0, BINS))
        left, prefix = descend(counts, left, prefix, number, BINS)
    return left, prefix


@triton.jit(do_not_specialize=["rank", "chunks"])
def count_kernel(
    counts_ptr,  # int64 [B, 4*BINS + 2], zeros at first: each digit's counts, and what count finds beside
    x_ptr, output_ptr, uncond_ptr, table_ptr, index_ptr, gain_ptr,
    total, inner, rank, chunks, HALVES: tl.constexpr, DIGIT: tl.constexpr, BINS: tl.constexpr, BLOCKS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Adds what a chunk counts of one digit to its sample's."""
    sample = (tl.program_id(0) // chunks).to(tl.int64)
    first = (tl.program_id(0) % chunks).to(tl.int64) * (BLOCKS * BLOCK)
    row_ptr = table_ptr + tl.load(index_ptr) * row.COLUMN_COUNT
    if HALVES:
        uncond_ptr = output_ptr + total
    counts_ptr += sample * (4 * BINS + 2)
    _, prefix = found_so_far(counts_ptr, rank, DIGIT, BINS)
    until = tl.minimum(first + BLOCKS * BLOCK, inner)
    counts, extreme = count(
        row_ptr, x_ptr, output_ptr, uncond_ptr, gain_ptr, sample, inner, first, until, prefix, DIGIT, BINS, BLOCKS,
        BLOCK,
    )  # fmt: skip
    tl.atomic_add(counts_ptr + DIGIT * BINS + tl.arange(0, BINS), counts, mask=counts > 0)
    if DIGIT == 0:
        tl.atomic_max(counts_ptr + 4 * BINS, extreme.to(tl.int64))
    if DIGIT == 3:
        tl.atomic_max(counts_ptr + 4 * BINS + 1, extreme.to(tl.int64))


@triton.jit(do_not_specialize=["rank"])
def bound_kernel(bound_ptr, counts_ptr, rank, part, most, BINS: tl.constexpr):
    sample = tl.program_id(0).to(tl.int64)
    counts_ptr += sample * (4 * BINS + 2)
    left, prefix = found_so_far(counts_ptr, rank, 4, BINS)
    counts = tl.load(counts_ptr + 3 * BINS + tl.arange(0, BINS))
    largest = tl.load(counts_ptr + 4 * BINS).to(tl.int32)
    higher = tl.load(counts_ptr + 4 * BINS + 1).to(tl.int32)
    tl.store(bound_ptr + sample, between(counts, largest, higher, left, prefix, part, most, BINS))


WHOLE, COUNT, BOUND = (Launcher(kernel, **OPTIONS) for kernel in (whole_kernel, count_kernel, bound_kernel))


def launch(
    x: Tensor,
    output: Tensor,
    table: Tensor,
    index: Tensor,
    uncond: Tensor | None,
    gain: Tensor | None,
    quantile: float,
    most: float,
) -> Tensor:
    """x: [B, ...] float32, dense, the batch outermost; output, uncond: like x in any of the three float dtypes, or
    output alone with both branches, [2B, ...]; table: [N, 22] float64; index: [] int64; gain: [B] float32. Returns [B]
    float32, NaN for a sample that holds NaN, 1 for one without elements; on the caller's current stream."""
    samples = x.shape[0]
    if x.numel() == 0:
        return x.new_ones(samples)
    bound, inner = x.new_empty(samples), x.numel() // samples
    rank = int(quantile * (inner - 1))
    part, halves = quantile * (inner - 1) - rank, uncond is None and output.shape[0] != samples
    images = (x, output, uncond, table, index, gain)
    if inner <= ONE_PROGRAM:
        constants = (halves, BINS, triton.cdiv(inner, BLOCK), BLOCK)
        WHOLE(samples, (bound, *images), (x.numel(), inner, rank, part, float(most)), constants)
        return bound
    counts = torch.zeros(samples, DIGITS * BINS + 2, dtype=torch.int64, device=x.device)
    chunks = triton.cdiv(inner, CHUNK_BLOCKS * BLOCK)
    for number in range(DIGITS):
        scalars, constants = (x.numel(), inner, rank, chunks), (halves, number, BINS, CHUNK_BLOCKS, BLOCK)
        COUNT(samples * chunks, (counts, *images), scalars, constants)
    BOUND(samples, (bound, counts), (rank, part, float(most)), (BINS,))
    return bound
