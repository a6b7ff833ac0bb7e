"""Random numbers inside Triton kernels: fastdiff/counter.py's, bit for bit, and torch.randn's on CUDA.

Callers must compile with enable_fp_fusion=False: every product and every sum is rounded on its own.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra import libdevice

from fastdiff import counter

LN2_HIGH = tl.constexpr(counter.LN2_HIGH)
LN2_LOW = tl.constexpr(counter.LN2_LOW)
LOG = tl.constexpr(counter.LOG)
SIN = tl.constexpr(counter.SIN)
COS = tl.constexpr(counter.COS)


@triton.jit
def horner(coefficients: tl.constexpr, COUNT: tl.constexpr, x):
    total = tl.full(x.shape, coefficients[0], tl.float32)
    for i in tl.static_range(1, COUNT):
        total = total * x + coefficients[i]
    return total


@triton.jit
def log(u):
    """Natural logarithm of float32 u in (0, 1], never above 0."""
    bits = u.to(tl.int32, bitcast=True)
    exponent = (bits - 0x3F3504F3) >> 23
    f = (bits - (exponent << 23)).to(tl.float32, bitcast=True) - 1.0
    square = f * f
    e = exponent.to(tl.float32)
    tail = f * square * horner(LOG, 9, f) - 0.5 * square
    return e * LN2_LOW + tail + f + e * LN2_HIGH


@triton.jit
def box_muller(x, y):
    """Two normal values from two uint32 words."""
    u = ((x >> 8) + 1).to(tl.float32) * 5.9604644775390625e-08  # 2^-24
    radius = tl.sqrt_rn(-2.0 * log(u))
    turn = (y >> 8).to(tl.int32)
    quarter = turn >> 22
    v = ((turn & 0x3FFFFF) - 0x200000).to(tl.float32) * 2.384185791015625e-07  # 2^-22
    square = v * v
    sine = v * horner(SIN, 5, square)
    cosine = horner(COS, 5, square)
    swapped = (quarter & 1) == 1
    first = tl.where(swapped, -sine, cosine)
    second = tl.where(swapped, cosine, sine)
    turned = quarter >= 2
    return radius * tl.where(turned, -first, first), radius * tl.where(turned, -second, second)


@triton.jit
def words(seed, block, high):
    """The four words of Philox-4x32-10 with 64-bit key seed and 64-bit counter halves block and high."""
    return tl.philox(
        seed,
        (block & 0xFFFFFFFF).to(tl.uint32),
        (block >> 32).to(tl.uint32),
        (high & 0xFFFFFFFF).to(tl.uint32),
        (high >> 32).to(tl.uint32),
    )


@triton.jit
def normal(seed, stream, first, BLOCK: tl.constexpr):
    """Values [first, first + BLOCK) of stream `stream` of seed; first is a multiple of 4."""
    block = first // 4 + tl.arange(0, BLOCK // 4).to(tl.int64)
    x, y, z, w = words(seed, block, stream + tl.zeros_like(block))
    n0, n1 = box_muller(x, y)
    n2, n3 = box_muller(z, w)
    return tl.join(tl.join(n0, n2), tl.join(n1, n3)).reshape(BLOCK)


@triton.jit
def torch_normal(seed, block, thread, LIBDEVICE: tl.constexpr):
    """The four values that thread `thread` (uint32) of torch.randn draws on CUDA from its counter `block`.

    curand_normal4, as nvcc compiles it: fused where it fuses, logf, and the fast sine and cosine. LIBDEVICE is False
    under the interpreter, which has none of them; its values are then only close.
    """
    x, y, z, w = words(seed, block, thread)
    n0, n1 = curand_box_muller(x, y, LIBDEVICE)
    n2, n3 = curand_box_muller(z, w, LIBDEVICE)
    return n0, n1, n2, n3


@triton.jit
def curand_box_muller(x, y, LIBDEVICE: tl.constexpr):
    unit = tl.full(x.shape, 2.3283064365386963e-10, tl.float32)  # 2^-32
    turn = tl.full(x.shape, 1.462918119976564e-09, tl.float32)  # 2^-32 times 2 pi in float32
    u = tl.fma(x.to(tl.float32), unit, unit * 0.5)
    v = tl.fma(y.to(tl.float32), turn, turn * 0.5)
    if LIBDEVICE:
        s = tl.sqrt_rn(-2.0 * libdevice.log(u))
        sine, cosine = libdevice.fast_sinf(v), libdevice.fast_cosf(v)
    else:
        s = tl.sqrt_rn(-2.0 * tl.log(u))
        sine, cosine = tl.sin(v), tl.cos(v)
    # randn's own "* std + mean", which makes -0 a 0
    return sine * s + 0.0, cosine * s + 0.0
