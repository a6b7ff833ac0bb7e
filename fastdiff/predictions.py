"""What a model's output means: each prediction type is just (alpha, sigma) -> (p, q), denoised = p * x + q * output."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from fastdiff.choices import unknown
from fastdiff.levels import Level


def _unscaled(level: Level) -> float:
    return 1.0


def _own_time(level: Level) -> float:
    return level.t


@dataclass(frozen=True)
class Prediction:
    """How the executor calls a model and reads its output.

    weights: level -> (p, q) with denoised = p * x + q * output.
    scale: level -> k, the model sees k * x.
    time: level -> t, the model is called with t.
    """

    name: str
    weights: Callable[[Level], tuple[float, float]]
    scale: Callable[[Level], float] = _unscaled
    time: Callable[[Level], float] = _own_time


def _epsilon(level: Level) -> tuple[float, float]:
    if not level.alpha:
        raise ValueError(
            "an epsilon prediction says nothing about the image at pure noise (alpha = 0): "
            "use a schedule with some signal left at its first level, or a model that predicts 'v', 'flow' or 'sample'"
        )
    return 1.0 / level.alpha, -level.sigma / level.alpha


def _sample(level: Level) -> tuple[float, float]:
    return 0.0, 1.0


def _v(level: Level) -> tuple[float, float]:
    power = level.alpha**2 + level.sigma**2
    return level.alpha / power, -level.sigma / power


def _flow(level: Level) -> tuple[float, float]:
    total = level.alpha + level.sigma
    return 1.0 / total, -level.sigma / total


def edm(sigma_data: float = 0.5) -> Prediction:
    """EDM preconditioning around a raw network (arXiv:2206.00364, table 1).

    The network sees c_in * x_hat and c_noise = log(sigma) / 4, where x_hat = x / alpha and sigma = sigma / alpha.
    """
    if not (math.isfinite(sigma_data) and sigma_data > 0):
        raise ValueError(f"sigma_data must be a positive finite number, got {sigma_data}")

    def total(level: Level) -> float:
        return math.hypot(level.sigma, sigma_data * level.alpha)

    def weights(level: Level) -> tuple[float, float]:
        c_skip = sigma_data**2 * level.alpha / total(level) ** 2
        return c_skip, sigma_data * level.sigma / total(level)

    def scale(level: Level) -> float:
        return 1.0 / total(level)

    def time(level: Level) -> float:
        if not level.alpha:
            raise ValueError(
                "the edm prediction has no time at pure noise (alpha = 0): start at finite sigma / alpha"
            )
        return 0.25 * math.log(level.ratio)

    return Prediction("edm", weights, scale, time)


PREDICTIONS: dict[str, Prediction] = {
    "epsilon": Prediction("epsilon", _epsilon),  # output = eps (arXiv:2006.11239)
    "sample": Prediction("sample", _sample),  # output = x0
    "v": Prediction("v", _v),  # output = alpha * eps - sigma * x0 (arXiv:2202.00512)
    "flow": Prediction("flow", _flow),  # output = eps - x0 (arXiv:2209.03003)
    "edm": edm(),
}


def resolve(prediction: str | Prediction) -> Prediction:
    """The prediction type of that name, or the given one."""
    if isinstance(prediction, Prediction):
        return prediction
    if prediction not in PREDICTIONS:
        raise unknown("prediction", prediction, PREDICTIONS)
    return PREDICTIONS[prediction]
