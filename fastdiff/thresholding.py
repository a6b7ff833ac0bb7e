"""Dynamic thresholding: bounds of the denoised image taken from itself (Imagen, arXiv:2205.11487, section 2.3).

Static thresholding is `clip` of a plan.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DynamicThreshold:
    """denoised -> clamp(denoised, -s, s) / s, s the given quantile of |denoised| of each image, at least 1.

    quantile: between 0 and 1. most: the largest s allowed, 1 is plain clipping to [-1, 1].
    """

    quantile: float = 0.995
    most: float = float("inf")

    def __post_init__(self) -> None:
        if not 0.0 <= self.quantile <= 1.0:
            raise ValueError(f"quantile must lie between 0 and 1, got {self.quantile}")
        if not self.most >= 1.0:
            raise ValueError(f"most, the largest bound, must be at least 1, got {self.most}")
