"""out = alpha*x0 + sigma*noise in one pass: q_sample with noise that is there."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdiff.kernels.q_sample import Images, mix


def launch(x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """x0, noise: [B, ...] float32, float16 or bfloat16, dense in one layout with the batch outermost; alpha, sigma: [B]
    or [1], float64 or float32; all on one device, a weight of [1] also on the CPU. Returns a new tensor like x0, on the
    caller's current stream."""
    out = torch.empty_like(x0)
    if out.numel():
        mix(noise, Images(x0, out, None, alpha, sigma))
    return out
