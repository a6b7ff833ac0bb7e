"""Loss scaling for float16, whose gradients would vanish below 6e-8 (Micikevicius et al. 2018, arXiv:1710.03740)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

DTYPES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""The dtype of the autocast region, None for none."""

FIRST, LARGEST, GROWTH = 2.0**16, 2.0**24, 2000


@dataclass
class LossScale:
    """The factor of the loss: halved when a gradient overflows, in which case that step is skipped, and doubled after
    GROWTH steps without. A power of two, so that scaling changes no digit.

    good: steps since the last change. skipped: steps so far that overflowed. active: whether there is any scaling.
    """

    scale: float = FIRST
    good: int = 0
    skipped: int = 0
    active: bool = True

    @staticmethod
    def of(precision: str) -> LossScale:
        """For a precision: 1, for ever, where there is no need."""
        return LossScale() if precision == "float16" else LossScale(scale=1.0, active=False)

    def update(self, finite: bool) -> None:
        """Learn from a step whose gradients were finite, or not."""
        if not self.active:
            return
        self.good = self.good + 1 if finite else 0
        if not finite:
            self.scale, self.skipped = self.scale / 2, self.skipped + 1
        elif self.good == GROWTH:
            self.scale, self.good = min(2 * self.scale, LARGEST), 0

    @property
    def exhausted(self) -> bool:
        """Whether an overflow cannot be the scale's fault."""
        return self.scale <= 1.0
