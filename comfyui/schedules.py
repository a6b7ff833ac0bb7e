"""Noise schedules for ComfyUI's models: SIGMAS, a 1-D float32 CPU tensor that falls to 0."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdiff import kdiffusion, spacings

Schedule = Callable[[Any, int, float | None], Tensor]  # (model_sampling, steps, rho) -> [steps + 1]


def sigmas_of(
    name: str, model_sampling: Any, steps: int, denoise: float = 1.0, rho: float | None = None
) -> Tensor:
    """The last `steps` steps of schedule `name` over the model's noise levels, with steps / denoise steps in all.

    model_sampling: has sigmas, rising, and sigma_min and sigma_max. denoise: 1 starts from noise, 0 gives no steps.
    rho: of karras and polyexponential, their own (7 and 1) if None. Raises ValueError.
    """
    if name not in SCHEDULES:
        raise ValueError(f"no schedule {name!r}: there are {', '.join(SCHEDULES)}")
    if not 0 <= denoise <= 1:
        raise ValueError(f"denoise must lie between 0 and 1, got {denoise}")
    if denoise == 0:
        return torch.empty(0)
    sigmas = SCHEDULES[name](model_sampling, int(steps / denoise), rho)
    return sigmas.float().cpu()[-(steps + 1) :]


def _ends(model_sampling: Any) -> tuple[float, float]:
    return float(model_sampling.sigma_min), float(model_sampling.sigma_max)


def _karras(model_sampling: Any, steps: int, rho: float | None) -> Tensor:
    return kdiffusion.get_sigmas_karras(steps, *_ends(model_sampling), rho=rho or 7.0)


def _exponential(model_sampling: Any, steps: int, rho: float | None) -> Tensor:
    return kdiffusion.get_sigmas_exponential(steps, *_ends(model_sampling))


def _polyexponential(model_sampling: Any, steps: int, rho: float | None) -> Tensor:
    return kdiffusion.get_sigmas_polyexponential(steps, *_ends(model_sampling), rho=rho or 1.0)


def _vp(model_sampling: Any, steps: int, rho: float | None) -> Tensor:
    """Of the variance-preserving SDE itself, whatever the model's levels are."""
    return kdiffusion.get_sigmas_vp(steps)


def _beta(model_sampling: Any, steps: int, rho: float | None) -> Tensor:
    """Quantiles of a beta(0.6, 0.6) distribution over the trained levels, each once (arXiv:2407.12173)."""
    quantiles = spacings.beta_quantiles(1.0 - np.linspace(0.0, 1.0, steps, endpoint=False), 0.6, 0.6)
    # rounded twice: the middle of an even number of levels is a tie, which the last digit must not decide
    indices = np.rint(np.round(quantiles * (len(model_sampling.sigmas) - 1), 6)).astype(int).tolist()
    return _trained(model_sampling, list(dict.fromkeys(indices)))


def _timesteps(grid: spacings.TimeGrid) -> Schedule:
    """Trained levels chosen as diffusers' timestep_spacing chooses them."""

    def schedule(model_sampling: Any, steps: int, rho: float | None) -> Tensor:
        trained = len(model_sampling.sigmas)
        if steps > trained:
            raise ValueError(
                f"{steps} steps in all, but the model has {trained} levels: take fewer, or raise denoise"
            )
        return _trained(model_sampling, [int(index) for index in grid(trained, steps)])

    return schedule


def _trained(model_sampling: Any, indices: list[int]) -> Tensor:
    return kdiffusion.append_zero(model_sampling.sigmas[indices].float())


SCHEDULES: dict[str, Schedule] = {
    "karras": _karras,
    "exponential": _exponential,
    "polyexponential": _polyexponential,
    "vp": _vp,
    "beta": _beta,
    **{name: _timesteps(grid) for name, grid in spacings.TIMESTEPS.items()},
}
