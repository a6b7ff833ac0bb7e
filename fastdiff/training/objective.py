"""What the network is asked to say, and how much each noise level counts.

One row of numbers a picture serves every prediction type. With x = alpha*x0 + sigma*eps and denoised = p*x + q*F
(fastdiff.predictions), the exact output is F = (1 - p*alpha)/q * x0 - p*sigma/q * eps, and an error of F is an error of
the clean image q times as large. Min-SNR weighting (Hang et al. 2023, arXiv:2303.09556: min(SNR, gamma) on the error of
the clean image) is therefore min(SNR, gamma) * q^2: min(SNR, gamma) / (SNR + 1) for v, min(SNR, gamma) / SNR for
epsilon.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fastdiff.corruptions import Corruption
from fastdiff.levels import Level
from fastdiff.models.checkpoint import check_fit, make_schedule
from fastdiff.ops import add_noise
from fastdiff.predictions import PREDICTIONS, Prediction
from fastdiff.training.config import TrainConfig
from fastdiff.training.times import Quantile, quantile, training_levels
from fastdiff.uniform_noise import uniform


class Objective(Protocol):
    """What a batch is trained on. marks: float32 [B, columns], what each picture of it drew; they are split with it."""

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """The marks of `count` pictures, on the CPU."""
        ...

    def noise(self, shape: torch.Size, generator: torch.Generator) -> Tensor:
        """Noise of that shape, on the CPU."""
        ...

    def corrupted(self, x0: Tensor, noise: Tensor, marks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(network input, time [B], target) for x0, noise: [B, C, ...]."""
        ...

    def loss(self, output: Tensor, target: Tensor, marks: Tensor) -> Tensor:
        """A float32 scalar, a mean over the pictures."""
        ...


def make_objective(config: TrainConfig) -> Objective:
    """The objective of a configuration. ValueError for what does not fit together."""
    if config.corruption != "noise":
        return Restoring(Corruption.of(config.schedule))
    schedule = make_schedule(config.schedule)
    check_fit(config.schedule, config.prediction)
    column = _Column(
        PREDICTIONS[config.prediction], config.weighting, config.min_snr_gamma, config.snr_offset
    )
    at = quantile(schedule, config.times)
    table = None if at else torch.tensor([column(level) for level in training_levels(schedule)]).float()
    return Denoising(column, at, table, even=config.noise == "uniform")


@dataclass(frozen=True)
class _Column:
    """A level's (time, alpha, sigma, weight on x0, weight on eps, loss weight, input scale).

    The error of the clean image counts min(SNR, gamma) + offset: with offset 1, high noise levels, where SNR vanishes
    and the class and colours of a picture are decided, are learned as fast as the others. Plain: the network's error
    counts.
    """

    prediction: Prediction
    weighting: str
    gamma: float
    offset: float

    def __call__(self, level: Level) -> tuple[float, ...]:
        p, q = self.prediction.weights(level)
        snr = (level.alpha / level.sigma) ** 2
        on_x0, on_eps = (1 - p * level.alpha) / q, -p * level.sigma / q
        weight = 1.0 if self.weighting == "plain" else (min(snr, self.gamma) + self.offset) * q * q
        time, scale = self.prediction.time(level), self.prediction.scale(level)
        return time, level.alpha, level.sigma, on_x0, on_eps, weight, scale


@dataclass(frozen=True, eq=False)
class Denoising:
    """Noise is added and taken off. table: float32 [T, 7], the columns of each discrete level; even: uniform noise."""

    column: _Column
    at: Quantile | None
    table: Tensor | None
    even: bool = False

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """float32 [count, 7]; levels stratified: one uniform offset, evenly spread (Kingma et al. 2021)."""
        offset = torch.rand((), generator=generator, dtype=torch.float64)
        u = (offset + torch.arange(count, dtype=torch.float64) / count) % 1.0
        u = u[torch.randperm(count, generator=generator)]
        if self.table is not None:
            return self.table[(u * len(self.table)).long()]
        assert self.at is not None
        return torch.tensor([self.column(self.at(share)) for share in u.tolist()]).float()

    def noise(self, shape: torch.Size, generator: torch.Generator) -> Tensor:
        """Gaussian or uniform, of unit variance."""
        return uniform(shape, generator) if self.even else torch.randn(shape, generator=generator)

    def corrupted(self, x0: Tensor, noise: Tensor, marks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(network input, time, target)."""
        time, alpha, sigma, on_x0, on_eps, _, scale = marks.to(x0.device).unbind(1)
        target = _over(on_x0, x0) * x0 + _over(on_eps, x0) * noise
        return add_noise(x0, noise, alpha * scale, sigma * scale), time, target

    def loss(self, output: Tensor, target: Tensor, marks: Tensor) -> Tensor:
        """The weighted mean squared error."""
        error = (output.float() - target).square().flatten(1).mean(1)
        return (marks[:, 5].to(error.device) * error).mean()


@dataclass(frozen=True)
class Restoring:
    """A deterministic corruption is undone: |R(D(x0, t), t) - x0| (Bansal et al. 2022, arXiv:2208.09392, eq. 2)."""

    corruption: Corruption

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """float32 [count, 1], severities 1 .. T, stratified."""
        offset = torch.rand((), generator=generator, dtype=torch.float64)
        u = (offset + torch.arange(count, dtype=torch.float64) / count) % 1.0
        t = (u * self.corruption.T).floor() + 1
        return t[torch.randperm(count, generator=generator)].float()[:, None]

    def noise(self, shape: torch.Size, generator: torch.Generator) -> Tensor:
        """The jitter, standard normal; no more than zeros where there is none."""
        return torch.randn(shape, generator=generator) if self.corruption.jitter else torch.zeros(shape)

    def corrupted(self, x0: Tensor, noise: Tensor, marks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(network input, severity, clean pictures)."""
        t = marks[:, 0].to(x0.device)
        share = self.corruption.jitter * t / self.corruption.T
        return self.corruption(x0, t) + _over(share, x0) * noise, t, x0

    def loss(self, output: Tensor, target: Tensor, marks: Tensor) -> Tensor:
        """The mean absolute error."""
        return (output.float() - target).abs().mean()


def _over(column: Tensor, x: Tensor) -> Tensor:
    """[B] -> [B, 1, ...], to be multiplied with x: [B, ...]."""
    return column.view(-1, *[1] * (x.ndim - 1))
