"""out = alpha*x0 + sigma*noise in one pass."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdiff.kernels.launch import Launcher

BLOCK = 1024
# The one fused multiply-add is written out, so no bit depends on Triton's default, which changes in 3.10.
OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}


@triton.jit(do_not_specialize=["tiles"])
def add_noise_kernel(
    out_ptr,
    x0_ptr,
    noise_ptr,
    alpha_ptr,
    sigma_ptr,
    inner,  # elements of one sample: sample b is [b*inner, (b + 1)*inner)
    tiles,  # programs a sample takes
    ALPHA_STRIDE: tl.constexpr,  # 1: one weight per sample, 0: one for all
    SIGMA_STRIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0)
    sample = (program // tiles).to(tl.int64)
    at = (program % tiles).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < inner
    at += sample * inner

    alpha = tl.load(alpha_ptr + sample * ALPHA_STRIDE).to(tl.float32)
    sigma = tl.load(sigma_ptr + sample * SIGMA_STRIDE).to(tl.float32)
    x0 = tl.load(x0_ptr + at, mask=inside, other=0.0).to(tl.float32)
    noise = tl.load(noise_ptr + at, mask=inside, other=0.0).to(tl.float32)

    out = tl.fma(x0, alpha, noise * sigma)

    tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty), mask=inside)


LAUNCH = Launcher(add_noise_kernel, **OPTIONS)


def launch(x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """x0, noise: [B, ...] float32, float16 or bfloat16, dense in one layout with the batch outermost; alpha, sigma: [B]
    or [1], float64 or float32; all on one device. Returns a new tensor like x0, on the caller's current stream."""
    out = torch.empty_like(x0)
    if x0.numel() == 0:
        return out
    alpha_stride, sigma_stride = int(alpha.numel() > 1), int(sigma.numel() > 1)
    samples = x0.shape[0] if alpha_stride or sigma_stride else 1  # one weight for all: one long sample
    inner = x0.numel() // samples
    tiles = triton.cdiv(inner, BLOCK)
    constants = (alpha_stride, sigma_stride, BLOCK)
    LAUNCH(samples * tiles, (out, x0, noise, alpha, sigma), (inner, tiles), constants)
    return out
