"""Random models, grids and options on which fastdiff.kdiffusion and k-diffusion are compared, and how they are run."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastdiff import kdiffusion

CHURNED = ("euler", "heun", "dpm_2")
ANCESTRAL = ("euler_ancestral", "dpm_2_ancestral", "dpmpp_2s_ancestral")
BROWNIAN = ("dpmpp_sde", "dpmpp_2m_sde", "dpmpp_3m_sde")
ALONG_SIGMAS = (*CHURNED, "lms", *ANCESTRAL, "dpmpp_2m", *BROWNIAN)
BETWEEN = ("dpm_fast", "dpm_adaptive")


@pytest.fixture(autouse=True)
def seeded() -> None:
    """What a test draws without a seed is the same each time."""
    torch.manual_seed(0)


class Denoiser:
    """A small random nonlinear denoiser, and what it was called with."""

    def __init__(self, seed: int, shape: tuple[int, ...]) -> None:
        generator = torch.Generator().manual_seed(seed)
        size = int(np.prod(shape[1:]))
        self.inner = torch.randn(size, size, generator=generator, dtype=torch.float64) / size**0.5
        self.outer = torch.randn(size, size, generator=generator, dtype=torch.float64) / size**0.5
        self.sigmas: list[Tensor] = []
        self.dtype: torch.dtype | None = None  # of what it returns, x's if None

    def __call__(self, x: Tensor, sigma: Tensor, scale: float = 1.0) -> Tensor:
        self.sigmas.append(sigma.clone())
        s = sigma.double().reshape(-1, 1)
        flat = x.double().flatten(1)
        hidden = torch.tanh(flat / (s**2 + 1).sqrt() @ self.inner + 0.3 * s.log())
        image = flat / (s**2 + 1) + scale * hidden @ self.outer * s / (s**2 + 1).sqrt()
        return image.reshape(x.shape).to(self.dtype or x.dtype)


class Draws:
    """A noise sampler that remembers what it was asked: the same noise for the same number of calls."""

    def __init__(self, x: Tensor) -> None:
        self.x, self.asked, self.generator = (
            x,
            list[tuple[Tensor, Tensor]](),
            torch.Generator().manual_seed(7),
        )

    def __call__(self, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        self.asked.append((torch.as_tensor(sigma).clone(), torch.as_tensor(sigma_next).clone()))
        noise = torch.randn(self.x.shape, generator=self.generator, dtype=torch.float64)
        return noise.to(self.x.dtype)


class Case:
    """One random configuration of a sampler."""

    def __init__(self, name: str, seed: int, *, steps: int | None = None) -> None:
        rng = np.random.default_rng([seed, *name.encode()])
        self.name, self.rng = name, rng
        self.steps = steps or int(rng.integers(2, 51))
        low, high = float(rng.uniform(0.01, 0.3)), float(rng.uniform(2.0, 80.0))
        self.low, self.high = low, high
        grids: list[Callable[[], Tensor]] = [
            lambda: kdiffusion.get_sigmas_karras(self.steps, low, high, rho=float(rng.uniform(2, 9))),
            lambda: kdiffusion.get_sigmas_exponential(self.steps, low, high),
            lambda: kdiffusion.get_sigmas_polyexponential(
                self.steps, low, high, rho=float(rng.uniform(0.5, 2))
            ),
            lambda: kdiffusion.get_sigmas_vp(self.steps),
        ]
        self.sigmas = grids[rng.integers(len(grids))]()
        if rng.random() < 0.3 and self.steps > 1:
            self.sigmas = self.sigmas[:-1]
        shape = [(3, 5), (2, 3, 4, 4), (1, 7), (4, 2, 3)][rng.integers(4)]
        start = high if name in BETWEEN else float(self.sigmas[0])
        self.x = (torch.from_numpy(rng.normal(size=shape)) * start).float()
        self.model = Denoiser(seed, shape)
        self.options = self._options(rng)

    def _options(self, rng: np.random.Generator) -> dict[str, Any]:
        noisy = {"eta": float(rng.choice([0.0, 0.4, 1.0])), "s_noise": float(rng.uniform(0.8, 1.1))}
        if self.name in CHURNED:
            return {
                "s_churn": float(rng.choice([0.0, rng.uniform(0, 60)])),
                "s_tmin": float(rng.choice([0.0, 0.2])),
                "s_tmax": float(rng.choice([np.inf, float(self.sigmas[0]) / 2])),
                "s_noise": float(rng.uniform(0.9, 1.1)),
            }
        if self.name == "lms":
            return {"order": int(rng.integers(1, 5))}
        if self.name == "dpmpp_sde":
            return {**noisy, "r": float(rng.uniform(0.2, 0.8))}
        if self.name == "dpmpp_2m_sde":
            return {**noisy, "solver_type": str(rng.choice(["midpoint", "heun"]))}
        return {} if self.name == "dpmpp_2m" else noisy

    def run(self, module: ModuleType, **more: Any) -> tuple[Tensor, dict[str, Any]]:
        """What module's sampler makes of the case, and what it called, with which sigmas and how often."""
        self.model.sigmas, told, x = [], list[dict[str, Any]](), more.pop("x", self.x)
        draws = Draws(x)
        sampler = getattr(module, f"sample_{self.name}")
        given: dict[str, Any] = {"disable": True, "callback": told.append, **self.options, **more}
        if self.name in (*ANCESTRAL, *BROWNIAN, *BETWEEN):
            given.setdefault("noise_sampler", draws)
        torch.manual_seed(5)
        if self.name in BETWEEN:
            count = (self.steps,) if self.name == "dpm_fast" else ()
            result = sampler(self.model, x, self.low, self.high, *count, **given)
        else:
            result = sampler(self.model, x, given.pop("sigmas", self.sigmas), **given)
        called = {
            "told": told, "sigmas": self.model.sigmas, "asked": draws.asked, "random": torch.random.get_rng_state()
        }  # fmt: skip
        return result, called


def distance(a: Tensor, b: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return float((a.double() - b.double()).abs().max() / b.double().abs().max().clamp(min=1e-30))
