"""Independent truths the samplers are held against: a float64 executor of a plan's rows written without fastdiff's ops,
Gaussian mixtures whose denoiser has a closed form, and the probability-flow ODE solved to 1e-12."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from fastdiff.levels import DiscreteTime, Level, LinearPath, Process, VarianceExploding
from fastdiff.plan import Plan, Row

Denoiser = Callable[[Tensor, Level], Tensor]
Noise = Callable[[int, Row], Tensor]


def execute(plan: Plan, model: Denoiser, x: Tensor, noise: Noise | None = None) -> Tensor:
    """Walk the rows of a plan in x's dtype. model(x_in, level) is called with the scaled input; noise(i, row) gives
    standard noise. It reads the rows, not the table, and shares no code with fastdiff.ops."""
    anchor, history = x, []
    for i, row in enumerate(plan.rows):
        history = history[row.forget :]
        values = [torch.zeros_like(x), *history]
        if row.call:
            output = model(plan.prediction.scale(row.level) * x, row.level)
            denoised = _combined(plan.prediction.weights(row.level), (x, output))
            if plan.clip is not None:
                denoised = denoised.clamp(*plan.clip)
            values = history = [_combined(row.value, (x, denoised)), *history]
        drawn = noise(i, row) if row.noise and noise is not None else torch.zeros_like(x)
        following = _combined((row.x, row.anchor, row.noise, *row.history), (x, anchor, drawn, *values))
        x, anchor = following, following if row.accept else anchor
    return x


def _combined(weights: Sequence[float], tensors: Sequence[Tensor]) -> Tensor:
    """The weighted sum; what weighs nothing is not touched, so that 0 * inf cannot appear."""
    terms = [w * t for w, t in zip(weights, tensors) if w]
    return sum(terms[1:], terms[0]) if terms else torch.zeros_like(tensors[0])


def output_of(denoise: Denoiser, prediction: str, *, sigma_data: float = 0.5) -> Denoiser:
    """What a model of that prediction type returns if its denoised image is `denoise`, from the papers' definitions."""

    def model(x_in: Tensor, level: Level) -> Tensor:
        a, s = level.alpha, level.sigma
        x = x_in * math.sqrt(s * s + (sigma_data * a) ** 2) if prediction == "edm" else x_in
        x0 = denoise(x, level)
        if prediction == "edm":
            ratio, x_hat = s / a, x / a
            c_skip = sigma_data**2 / (ratio**2 + sigma_data**2)
            return (x0 - c_skip * x_hat) / (ratio * sigma_data / math.sqrt(ratio**2 + sigma_data**2))
        eps = (x - a * x0) / s
        return {"sample": x0, "epsilon": eps, "v": a * eps - s * x0, "flow": eps - x0}[prediction]

    return model


class RandomDenoiser:
    """A random smooth nonlinear denoiser of x [N, d], the same function of x / alpha and sigma / alpha everywhere."""

    def __init__(self, rng: np.random.Generator, d: int) -> None:
        self.mix = torch.from_numpy(rng.normal(size=(d, d)) / d)
        self.phase = torch.from_numpy(rng.normal(size=d))

    def __call__(self, x: Tensor, level: Level) -> Tensor:
        power = math.hypot(level.alpha, level.sigma)
        unit, angle = x / power, math.atan2(level.sigma, level.alpha)
        mix, phase = self.mix.to(x.dtype), self.phase.to(x.dtype)
        return 0.5 * unit * level.alpha / power + torch.sin(unit @ mix + phase + 2.0 * angle)


@dataclass(frozen=True)
class Mixture:
    """Data distributed as sum_k weights_k N(means_k, deviations_k^2 I). means: [K, d]; weights, deviations: [K]."""

    means: Tensor
    deviations: Tensor
    weights: Tensor

    def denoise(self, x: Tensor, level: Level) -> Tensor:
        """E[x0 | x] at a level. x: [N, d]."""
        a, variance = level.alpha, self.deviations**2
        total = a * a * variance + level.sigma**2  # [K]
        offset = x[:, None, :] - a * self.means  # [N, K, d]
        log_mass = self.weights.log() - offset.square().sum(-1) / (2 * total) - x.shape[-1] / 2 * total.log()
        posterior = self.means + (a * variance / total)[:, None] * offset
        return (log_mass.softmax(-1)[..., None] * posterior).sum(1)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Samples [count, d] of the data."""
        component = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        normal = torch.randn(count, self.means.shape[1], dtype=self.means.dtype, generator=generator)
        return self.means[component] + self.deviations[component, None] * normal

    def mean(self) -> Tensor:
        """The data's mean [d]."""
        return self.weights @ self.means

    def covariance(self) -> Tensor:
        """The data's covariance [d, d]."""
        offset = self.means - self.mean()
        within = (self.weights @ self.deviations**2) * torch.eye(self.means.shape[1], dtype=self.means.dtype)
        return within + (self.weights[:, None] * offset).T @ offset


def mixture_2d() -> Mixture:
    """Three unequal modes in the plane, well inside [-2, 2]."""
    means = torch.tensor([[-1.0, 0.5], [0.8, 0.9], [0.3, -1.1]], dtype=torch.float64)
    deviations = torch.tensor([0.5, 0.4, 0.6], dtype=torch.float64)
    return Mixture(means, deviations, torch.tensor([0.3, 0.5, 0.2], dtype=torch.float64))


def solve_ode(mixture: Mixture, x: Tensor, start: Level, end: Level) -> Tensor:
    """The probability-flow ODE from `start` to `end`, to about 1e-12. x: [N, d] at start.

    x / alpha follows the variance-exploding ODE in sigma / alpha on every process; solved in log(sigma / alpha).
    """
    exploding = VarianceExploding()

    def slope(log_ratio: float, flat: np.ndarray) -> np.ndarray:
        point = torch.from_numpy(flat).reshape(x.shape)
        return (point - mixture.denoise(point, exploding.level(math.exp(log_ratio)))).reshape(-1).numpy()

    span = (math.log(start.ratio), math.log(end.ratio))
    flat = (x / start.alpha).reshape(-1).numpy()
    solution = solve_ivp(slope, span, flat, method="DOP853", rtol=1e-13, atol=1e-14)
    return torch.from_numpy(solution.y[:, -1].copy()).reshape(x.shape) * end.alpha


def processes() -> dict[str, Process]:
    """A process of each kind, by name."""
    betas = np.linspace(math.sqrt(0.00085), math.sqrt(0.012), 1000) ** 2
    return {
        "exploding": VarianceExploding(),
        "preserving": DiscreteTime(np.cumprod(1 - betas)),
        "flow": LinearPath(),
    }


def levels_at(process: Process, ratios: Sequence[float]) -> list[Level]:
    """Levels of a process at given sigma / alpha."""
    return [process.at(float(ratio)) for ratio in ratios]


def relative_error(got: Tensor, expected: Tensor) -> float:
    """The largest difference over the largest expected value."""
    return float((got - expected).abs().max() / expected.abs().max())
