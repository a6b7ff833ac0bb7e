"""Uniform noise of unit variance, in place of Gaussian, for models that were trained on it.

On x = alpha * x0 + sigma * eps the probability-flow field is alpha' E[x0 | x] + sigma' E[eps | x], whatever eps is
distributed as (Lipman et al. 2023, arXiv:2210.02747; Albergo et al. 2023, arXiv:2303.08797). Deterministic samplers
therefore lead from uniform noise to data without any change but the starting point. Samplers that add noise at their
steps rest on -E[eps | x] / sigma being the score, which holds for Gaussian noise alone: they are refused.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fastdiff.levels import Level
from fastdiff.noise import check_count, checked_seed, generator_of

WIDTH = math.sqrt(3.0)
"""Noise lies in [-WIDTH, WIDTH], which has variance 1."""


def uniform(
    shape: Sequence[int], generator: torch.Generator | None = None, *, device: torch.device | str = "cpu"
) -> Tensor:
    """float32 noise of mean 0 and variance 1, uniform, on the generator's device ('cpu' unless told otherwise)."""
    return torch.rand(tuple(shape), generator=generator, device=device).mul_(2 * WIDTH).sub_(WIDTH)


class UniformNoise:
    """The noise source of deterministic samplers on a model trained with uniform noise: one seed for each image.

    fastdiff.sample(model, shape, noise=UniformNoise([0, 1]), sampler="dpmpp_2m", ...)
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self.seeds = [checked_seed(seed) for seed in seeds]

    def start(self, x: Tensor) -> Tensor:
        """Noise like x: float32 [B, ...]. ValueError unless there is a seed for each image."""
        check_count(self.seeds, x)
        images = [uniform(x.shape[1:], generator_of(seed)) for seed in self.seeds]
        return torch.stack(images).to(x.device) if images else torch.empty(x.shape, device=x.device)

    def step(self, x: Tensor, span: tuple[Level, Level], row: int) -> Tensor:
        """Refuses: ValueError."""
        raise ValueError(
            "this sampler adds Gaussian noise at its steps, and the model knows uniform noise: "
            "use a deterministic one, such as dpmpp_2m, ddim or heun"
        )
