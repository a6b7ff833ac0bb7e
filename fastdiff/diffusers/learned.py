"""Learned variance: the standard deviation of each pixel's noise, as a function of what the model predicted for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

WIDE = "wide"
"""Stands for a model output of twice the sample's channels, the variance in its second half, among step()'s options."""

PROBES = (0.25, 0.5, 1.0, 2.0)


@dataclass(frozen=True)
class Deviation:
    """exp(slope*v + offset) of a predicted v, or exp(offset) * v**slope.

    The first is how a variance between two bounds is learned (arXiv:2102.09672, equation 15), the second is a variance
    that is predicted as it stands.
    """

    slope: float
    offset: float
    power: bool

    @classmethod
    def of(cls, function: Callable[[Tensor], Tensor]) -> Deviation | None:
        """The deviation that a function is, float64 in and out; None if it has neither form."""
        points = torch.tensor(PROBES, dtype=torch.float64, device="cpu")
        logs = function(points).log()
        for power in (False, True):
            places = points.log() if power else points
            slope = (logs[-1] - logs[0]) / (places[-1] - places[0])
            offset = logs[-1] - slope * places[-1]
            if torch.allclose(slope * places + offset, logs, rtol=1e-11, atol=1e-11):
                return cls(round(float(slope), 12) if power else float(slope), float(offset), power)
        return None

    def times(self, noise: Tensor, predicted: Tensor) -> Tensor:
        """noise times the deviation: float32, float64 for noise of float64. Both are images of the same shape."""
        wide = torch.float64 if noise.dtype == torch.float64 else torch.float32
        values = predicted.to(wide)
        if self.power:
            deviation = values**self.slope
            scaled = (
                deviation if not self.offset else deviation * torch.tensor(self.offset, device="cpu").exp()
            )
            return scaled * noise
        # One kernel for the sum: a number of no dimensions may stay on the host.
        logarithm = torch.add(torch.tensor(self.offset, dtype=wide, device="cpu"), values, alpha=self.slope)
        return logarithm.exp() * noise if logarithm.requires_grad else logarithm.exp_().mul_(noise)
