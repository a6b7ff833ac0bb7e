"""rescale_gain: the deviations of the conditional and of the guided output of each sample, and their ratio.

Means and squared deviations of chunks, each by two passes in registers, are combined by Chan's formula in one fixed
order: no float atomics, so the same inputs give the same bits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdiff.kernels import row
from fastdiff.kernels.launch import Launcher

BLOCK = 4096  # elements a program holds in registers
MOST_CHUNKS = 1024  # of a sample, so that one program can combine them
OPTIONS = {"num_warps": 8, "enable_fp_fusion": False}


@triton.jit
def statistics(value, inside, count):
    """Mean of a block's elements and their summed squared distance to it, zeros if there are none."""
    mean = tl.sum(value, 0) / tl.maximum(count, 1.0)
    apart = tl.where(inside, value - mean, 0.0)
    return mean, tl.sum(apart * apart, 0)


@triton.jit
def combined(mean, squares, count, more_mean, more_squares, more_count):
    """Mean and squared distances of two sets together (Chan, Golub and LeVeque, 1979)."""
    both = count + more_count
    apart = more_mean - mean
    mean += apart * (more_count / both)
    squares += more_squares + apart * apart * (count * (more_count / both))
    return mean, squares, both


@triton.jit
def gain(squares, guided_squares, rescale):
    """rescale*std/std(guided) + 1 - rescale, 1 where std(guided) is 0 or not a number."""
    ratio = tl.div_rn(tl.sqrt_rn(squares), tl.sqrt_rn(guided_squares))
    return tl.where(guided_squares > 0, rescale * ratio + (1.0 - rescale), 1.0)


@triton.jit(do_not_specialize=["chunks"])
def chunk_kernel(
    result_ptr,  # [B] gains of samples of one chunk, else float32 [B, 5, chunks] for combine_kernel
    output_ptr, uncond_ptr, table_ptr, index_ptr,
    total, inner, chunks, rescale, HALVES: tl.constexpr, ONE: tl.constexpr, BLOCKS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    sample = (tl.program_id(0) // chunks).to(tl.int64)
    chunk = tl.program_id(0) % chunks
    row_ptr = table_ptr + tl.load(index_ptr) * row.COLUMN_COUNT
    if HALVES:
        uncond_ptr = output_ptr + total
    g, g_uncond = row.weight(row_ptr, row.G), row.weight(row_ptr, row.G_UNCOND)

    mean = tl.zeros([], tl.float32)
    squares, guided_mean, guided_squares, seen = mean, mean, mean, mean
    first = chunk.to(tl.int64) * (BLOCKS * BLOCK)
    until = tl.minimum(first + BLOCKS * BLOCK, inner)
    ahead = tl.arange(0, BLOCK)
    for block in range(BLOCKS):
        at = first + block * BLOCK
        inside = at + ahead < until
        start = sample * inner + at
        cond = tl.load(output_ptr + start + ahead, mask=inside, other=0.0).to(tl.float32)
        guided = row.add_known(tl.zeros_like(cond), g, cond)
        guided = row.add(guided, g_uncond, uncond_ptr, start, ahead, inside)
        count = tl.maximum(tl.minimum(until - at, BLOCK), 0).to(tl.float32)
        more, more_squares = statistics(cond, inside, count)
        guided_more, guided_more_squares = statistics(tl.where(inside, guided, 0.0), inside, count)
        mean, squares, _ = combined(mean, squares, seen, more, more_squares, count)
        guided_mean, guided_squares, seen = combined(
            guided_mean, guided_squares, seen, guided_more, guided_more_squares, count
        )

    if ONE:
        tl.store(result_ptr + sample, gain(squares, guided_squares, rescale))
    else:
        result_ptr += sample * 5 * chunks + chunk
        tl.store(result_ptr, mean)
        tl.store(result_ptr + chunks, squares)
        tl.store(result_ptr + 2 * chunks, guided_mean)
        tl.store(result_ptr + 3 * chunks, guided_squares)
        tl.store(result_ptr + 4 * chunks, seen)


@triton.jit
def total_squares(means, squares, counts):
    """Squared distances of all chunks' elements to their common mean."""
    everything = tl.sum(counts, 0)
    mean = tl.sum(means * (counts / everything), 0)
    apart = means - mean
    return tl.sum(squares + apart * apart * counts, 0)


@triton.jit
def combine_kernel(gain_ptr, parts_ptr, chunks, rescale, MOST: tl.constexpr):
    sample = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, MOST)
    inside = at < chunks
    parts_ptr += sample * 5 * chunks + at
    means = tl.load(parts_ptr, mask=inside, other=0.0)
    squares = tl.load(parts_ptr + chunks, mask=inside, other=0.0)
    guided_means = tl.load(parts_ptr + 2 * chunks, mask=inside, other=0.0)
    guided_squares = tl.load(parts_ptr + 3 * chunks, mask=inside, other=0.0)
    counts = tl.load(parts_ptr + 4 * chunks, mask=inside, other=0.0)
    found = gain(
        total_squares(means, squares, counts), total_squares(guided_means, guided_squares, counts), rescale
    )
    tl.store(gain_ptr + sample, found)


CHUNKS, COMBINE = (Launcher(kernel, **OPTIONS) for kernel in (chunk_kernel, combine_kernel))


def launch(output: Tensor, uncond: Tensor | None, table: Tensor, index: Tensor, rescale: float) -> Tensor:
    """output, uncond: [B, ...] in one of the three float dtypes, dense, the batch outermost; or output alone with both
    branches, [2B, ...]; table: [N, 22] float64; index: [] int64. Returns [B] float32, 1 for a sample without elements;
    on the caller's current stream."""
    samples = output.shape[0] // 2 if uncond is None else output.shape[0]
    gains = output.new_empty(samples, dtype=torch.float32)
    if output.numel() == 0:
        return gains.fill_(1.0)
    total = output.numel() // 2 if uncond is None else output.numel()
    inner = total // samples
    blocks = triton.cdiv(inner, BLOCK * MOST_CHUNKS)  # of a chunk
    chunks = triton.cdiv(inner, BLOCK * blocks)
    result = gains if chunks == 1 else gains.new_empty(samples, 5, chunks)
    scalars = (total, inner, chunks, float(rescale))
    constants = (uncond is None, chunks == 1, blocks, BLOCK)
    CHUNKS(samples * chunks, (result, output, uncond, table, index), scalars, constants)
    if chunks > 1:
        COMBINE(samples, (gains, result), (chunks, float(rescale)), (triton.next_power_of_2(chunks),))
    return gains
