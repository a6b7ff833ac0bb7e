"""What the formulas share: dtypes, and per-sample and per-channel values."""

from __future__ import annotations

import torch
from torch import Tensor


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype arithmetic is done in: float64 for float64, float32 for everything else."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """values [B] or [1] shaped to broadcast over like [B, ...]; one on the CPU goes with a tensor anywhere."""
    if values.device != like.device:
        return values.reshape(())
    return values.reshape(-1, *(1,) * (like.dim() - 1))


def per_channel(values: Tensor, like: Tensor) -> Tensor:
    """values [C] or [B, C] in like's dtype, shaped to broadcast over like [B, C, ...]."""
    return values.to(like.dtype).reshape(-1, like.shape[1], *(1,) * (like.dim() - 2))
