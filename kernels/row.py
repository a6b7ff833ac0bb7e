"""What kernels make of a row of a plan: its weights, read from device memory, and sums that weights of 0 leave out."""

from __future__ import annotations

import triton
import triton.language as tl

from fastdiff.reference import COLUMNS, WIDTH

COLUMN_COUNT = tl.constexpr(WIDTH)
P, Q, LO, HI, U, W = (tl.constexpr(COLUMNS.index(name)) for name in ("p", "q", "lo", "hi", "u", "w"))
A, B, C0, C1, C2, C3, N = (
    tl.constexpr(COLUMNS.index(name)) for name in ("a", "b", "c0", "c1", "c2", "c3", "n")
)
K, G, G_UNCOND, CALL, SLOT, ACCEPT, ALPHA, SIGMA, F = (
    tl.constexpr(COLUMNS.index(name))
    for name in ("k", "g", "g_uncond", "call", "slot", "accept", "alpha", "sigma", "f")
)


@triton.jit
def weight(row_ptr, column):
    return tl.load(row_ptr + column).to(tl.float32)


@triton.jit
def where_weighed(weight, ahead, inside):
    """inside, or nothing where the weight is 0. Compares elements, as the interpreter cannot spread a condition."""
    return inside & (ahead < tl.where(weight != 0, 1 << 30, 0))


@triton.jit
def add(total, weight, ptr, start, ahead, inside):
    """total + weight*tensor, unread where the weight is 0; NaN where a weight asks for a tensor that was not given."""
    if ptr is not None:
        here = where_weighed(weight, ahead, inside)
        value = tl.load(ptr + start + ahead, mask=here, other=0.0).to(tl.float32)
        result = tl.fma(value, weight, total)
    else:
        result = tl.where(weight != 0, float("nan"), total)
    return result


@triton.jit
def add_known(total, weight, value):
    """total + weight*value for a value that is there, and may be NaN where the weight is 0."""
    return tl.where(weight != 0, tl.fma(value, weight, total), total)


@triton.jit
def of_sample(ptr, sample, wanted):
    """One sample's value, 1 where there is none or it is not wanted."""
    if ptr is not None:
        value = tl.load(ptr + sample, mask=wanted, other=1.0).to(tl.float32)
    else:
        value = 1.0
    return value


@triton.jit
def guided(row_ptr, wanted, x, output_ptr, uncond_ptr, gain_ptr, sample, start, ahead, inside):
    """F = gain*(g*output + g_uncond*uncond), 0 and unread unless wanted."""
    g = tl.where(wanted, weight(row_ptr, G), 0.0)
    g_uncond = tl.where(wanted, weight(row_ptr, G_UNCOND), 0.0)
    total = add(tl.zeros_like(x), g, output_ptr, start, ahead, inside)
    total = add(total, g_uncond, uncond_ptr, start, ahead, inside)
    return total * of_sample(gain_ptr, sample, wanted)


@triton.jit
def predicted(row_ptr, w, x, guided):
    """p*x + q*F, 0 where w is."""
    p = tl.where(w != 0, weight(row_ptr, P), 0.0)
    q = tl.where(w != 0, weight(row_ptr, Q), 0.0)
    return add_known(add_known(tl.zeros_like(x), p, x), q, guided)
