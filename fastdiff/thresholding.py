"""Dynamic thresholding: bounds of the denoised image taken from itself (Imagen, arXiv:2205.11487, section 2.3).

Static thresholding is `clip` of a plan.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class DynamicThreshold:
    """denoised -> clamp(denoised, -s, s) / s, s the given quantile of |denoised| of each image, at least 1.

    quantile: between 0 and 1. most: the largest s allowed, 1 is plain clipping to [-1, 1].
    """

    quantile: float = 0.995
    most: float = float("inf")

    def __post_init__(self) -> None:
        if not 0.0 < self.quantile <= 1.0:
            raise ValueError(f"quantile must lie between 0 and 1, got {self.quantile}")
        if not self.most >= 1.0:
            raise ValueError(f"most, the largest bound, must be at least 1, got {self.most}")

    def bound(self, denoised: Tensor) -> Tensor:
        """denoised: [B, ...], before clamping. Returns s: [B], float32 (float64 if denoised is)."""
        if not denoised.numel():
            return denoised.new_ones(len(denoised), dtype=torch.float32)
        flat = denoised.reshape(len(denoised), -1).abs()
        flat = flat.to(torch.promote_types(flat.dtype, torch.float32))
        # torch.quantile refuses more than 2^24 values; the order statistics around the quantile do not.
        place = self.quantile * (flat.shape[1] - 1)
        below = int(place)
        ranked = torch.topk(flat, flat.shape[1] - below, dim=1).values
        low, high = ranked[:, -1], ranked[:, max(-2, -ranked.shape[1])]
        return torch.lerp(low, high, place - below).clamp(1.0, self.most)
