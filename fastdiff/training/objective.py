"""What the network is asked to say, and how much each noise level counts.

One table serves every prediction type. With x = alpha*x0 + sigma*eps and denoised = p*x + q*F (fastdiff.predictions),
the exact output is F = (1 - p*alpha)/q * x0 - p*sigma/q * eps, and an error of F is an error of the clean image q
times as large. Min-SNR weighting (Hang et al. 2023, arXiv:2303.09556: min(SNR, gamma) on the error of the clean image)
is therefore min(SNR, gamma) * q^2: min(SNR, gamma) / (SNR + 1) for v, min(SNR, gamma) / SNR for epsilon.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastdiff import schedules
from fastdiff.levels import DiscreteTime, Level, LinearPath
from fastdiff.ops import add_noise
from fastdiff.predictions import PREDICTIONS

FLOW_STEPS = 1000


def training_levels(schedule: schedules.Schedule) -> list[Level]:
    """Every level a batch may be drawn at: the training indices, or 1000 points of the linear path."""
    process = schedule.process
    if isinstance(process, DiscreteTime):
        return [process.level(t) for t in range(len(process))]
    if isinstance(process, LinearPath):
        return [process.level(process.T * (i + 1) / FLOW_STEPS) for i in range(FLOW_STEPS)]
    raise ValueError("training needs a schedule of betas or the linear path (flow)")


@dataclass(frozen=True, eq=False)
class Objective:
    """Per training level, float32 [T]: time, alpha, sigma, the target's weights on x0 and eps, the loss weight."""

    time: Tensor
    alpha: Tensor
    sigma: Tensor
    on_x0: Tensor
    on_eps: Tensor
    weight: Tensor

    @staticmethod
    def make(
        schedule: schedules.Schedule, *, prediction: str, gamma: float, offset: float = 0.0
    ) -> Objective:
        """The table of a schedule and prediction type. ValueError for epsilon at pure noise.

        The error of the clean image counts min(SNR, gamma) + offset: with offset 1, high noise levels, where SNR
        vanishes and the class and colours of a picture are decided, are learned as fast as the others.
        """
        rows = []
        for level in training_levels(schedule):
            p, q = PREDICTIONS[prediction].weights(level)
            snr = (level.alpha / level.sigma) ** 2
            on_x0, on_eps = (1 - p * level.alpha) / q, -p * level.sigma / q
            rows.append(
                (level.t, level.alpha, level.sigma, on_x0, on_eps, (min(snr, gamma) + offset) * q * q)
            )
        return Objective(*torch.tensor(rows, dtype=torch.float64).float().T.contiguous())

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """int64 [count] rows of the table, stratified: one uniform offset, evenly spread (Kingma et al. 2021)."""
        offset = torch.rand((), generator=generator, dtype=torch.float64)
        u = (offset + torch.arange(count, dtype=torch.float64) / count) % 1.0
        return (u * len(self.time)).long()[torch.randperm(count, generator=generator)]

    def noised(self, x0: Tensor, eps: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(network input, target) for x0, eps: [B, C, H, W] at table rows [B]."""
        shape = (-1, *[1] * (x0.ndim - 1))
        on_x0, on_eps, alpha, sigma = (
            column[rows].to(x0.device) for column in (self.on_x0, self.on_eps, self.alpha, self.sigma)
        )
        return add_noise(x0, eps, alpha, sigma), on_x0.view(shape) * x0 + on_eps.view(shape) * eps

    def loss(self, output: Tensor, target: Tensor, rows: Tensor) -> Tensor:
        """The weighted mean squared error, a float32 scalar."""
        error = (output.float() - target).square().flatten(1).mean(1)
        return (self.weight[rows].to(error.device) * error).mean()
