"""torch.randn on CUDA as its source has it, one thread of its kernel at a time: what drawing kernels are held to."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor


def philox(low: np.ndarray, high: np.ndarray, seed: int) -> list[np.ndarray]:
    """Four words for counters (low, high), as curand's Philox4_32_10 makes them."""
    mask = np.uint64(0xFFFFFFFF)
    c = [low & mask, low >> np.uint64(32), high & mask, high >> np.uint64(32)]
    k = [seed & 0xFFFFFFFF, seed >> 32]
    for _ in range(10):
        a, b = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = [
            (b >> np.uint64(32)) ^ c[1] ^ np.uint64(k[0]),
            b & mask,
            (a >> np.uint64(32)) ^ c[3] ^ np.uint64(k[1]),
            a & mask,
        ]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


def curand_normal4(words: list[np.ndarray]) -> list[np.ndarray]:
    """In float64 from the roundings that decide a value: those of u and v, made by one fused operation each."""
    values = []
    for x, y in (words[:2], words[2:]):
        single = [w.astype(np.float32).astype(np.float64) for w in (x, y)]
        u = (single[0] * 2.0**-32 + 2.0**-33).astype(np.float32).astype(np.float64)
        turn = np.float64(np.float32(2.0**-32) * np.float32(6.2831855))
        v = (single[1] * turn + turn / 2).astype(np.float32).astype(np.float64)
        s = np.sqrt(-2.0 * np.log(u))
        values += [s * np.sin(v), s * np.cos(v)]
    return values


def distribution_kernel(out: np.ndarray, seed: int, offset: int, device: tuple[int, int]) -> int:
    """distribution_elementwise_grid_stride_kernel over `out`, and by how much calc_execution_policy advances."""
    numel, (processors, threads) = len(out), device
    grid = min(processors * (threads // 256), (numel + 255) // 256)
    total = 256 * grid
    advance = ((numel - 1) // (total * 4) + 1) * 4
    rounded = ((numel - 1) // (total * 4) + 1) * total * 4
    idx = np.arange(total, dtype=np.uint64)
    for call, start in enumerate(range(0, rounded, total * 4)):
        low = np.full_like(idx, offset // 4 + call)
        for ii, values in enumerate(curand_normal4(philox(low, idx, seed))):
            li = idx.astype(np.int64) + start + total * ii
            inside = li < numel
            out[li[inside]] = values[inside]
    return advance


def torch_randn(
    count: int, seed: int, offset: int, device: tuple[int, int], bytes_each: int, most: int = 2**31 - 1
) -> tuple[Tensor, int]:
    """distribution_nullary_kernel: the values, and the generator's offset afterwards."""
    out = np.full(count, np.nan)
    for first, size, start, after in pieces(count, offset, device, bytes_each, most):
        if size:
            distribution_kernel(out[first : first + size], seed, start, device)
        offset = after
    return torch.from_numpy(out), offset


def pieces(
    count: int, offset: int, device: tuple[int, int], bytes_each: int, most: int
) -> Iterator[tuple[int, int, int, int]]:
    """(first, size, offset before, offset after) in SplitUntil32Bit's order; size 0 for an advance without a draw."""

    def advance(numel: int) -> int:
        grid = min(device[0] * (device[1] // 256), (numel + 255) // 256)
        return ((numel - 1) // (256 * grid * 4) + 1) * 4

    def fits(numel: int) -> bool:
        return numel <= most and 1 + (numel - 1) * bytes_each <= most

    if not fits(count):
        yield 0, 0, offset, offset + advance(count)
        offset += advance(count)
    stack = [(0, count)]
    while stack:
        while not fits(stack[-1][1]):
            first, size = stack.pop()
            half = size // 2
            stack += [(first + half, size - half), (first, half)]
        first, size = stack.pop()
        yield first, size, offset, offset + advance(size)
        offset += advance(size)
