"""Every sampler k-diffusion also has agrees with it in float64: random models, grids and options, the same noise.

k-diffusion's package imports much that sampling does not need (torchvision, wandb, clip ...), so its sampling module is
loaded with those replaced by empty stand-ins.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import math
import sys
import zlib
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock, patch

import numpy as np
import pytest
import torch
from torch import Tensor

from fastdiff import schedules
from fastdiff.levels import Level
from fastdiff.plan import Plan, Row
from fastdiff.samplers import SAMPLERS
from oracles import RandomDenoiser, execute, relative_error

CONFIGURATIONS = 12
# Both sides round after each of up to 50 steps, each its own way; most differences are near 1e-14.
TOLERANCE = 1e-12
# k-diffusion's sigma_down is the root of a difference, which loses digits when a step is large and eta near 1.
ANCESTRAL_TOLERANCE = 3e-11


class _StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports any missing module of the packages k-diffusion names, as a mock."""

    packages = (
        "accelerate", "clean_fid", "cleanfid", "clip", "dctorch", "einops", "jsonmerge", "kornia", "natten", "skimage",
        "torchvision", "triton", "wandb", "xformers",
    )  # fmt: skip

    def find_spec(
        self, name: str, path: object = None, target: object = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name.split(".")[0] in self.packages:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        module = MagicMock(name=spec.name)
        module.__spec__, module.__path__, module.__name__ = spec, [], spec.name
        return module

    def exec_module(self, module: ModuleType) -> None:
        pass


def load_sampling() -> ModuleType | str:
    """k_diffusion.sampling, or why it cannot be loaded. Leaves sys.modules without the stand-ins."""
    before, finder = set(sys.modules), _StandIns()
    sys.meta_path.append(finder)  # last: what is really installed is used
    try:
        return importlib.import_module("k_diffusion.sampling")
    except Exception as error:
        return f"k_diffusion.sampling cannot be imported: {type(error).__name__}: {error}"
    finally:
        sys.meta_path.remove(finder)
        for name in set(sys.modules) - before:
            if isinstance(sys.modules[name], MagicMock):
                del sys.modules[name]


@pytest.fixture(scope="module")
def k() -> ModuleType:
    loaded = load_sampling()
    if isinstance(loaded, str):
        pytest.skip(loaded)
    return loaded


class Pairs:
    """Standard noise that depends on the two sigmas it lies between, to 9 digits (both sides round differently)."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def __call__(self, start: Tensor | float, end: Tensor | float) -> Tensor:
        seed = zlib.crc32(f"{float(start):.8e} {float(end):.8e}".encode())
        return torch.randn(self.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))

    def of_row(self, _: int, row: Row) -> Tensor:
        start, end = row.span or (row.level, row.to)
        return self(start.sigma, end.sigma)


class Case:
    """One random configuration: a model, a grid of sigmas from 1 to 50 steps, a starting point."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        rng = self.rng
        steps = [1, 2, 3, 4][seed] if seed < 4 else int(rng.integers(5, 51))
        low, high = float(rng.uniform(0.01, 0.3)), float(rng.uniform(2.0, 80.0))
        kinds = {
            "karras": lambda: schedules.karras(low, high, rho=float(rng.uniform(2, 9))),
            "exponential": lambda: schedules.exponential(low, high),
            "polyexponential": lambda: schedules.polyexponential(low, high, rho=float(rng.uniform(0.5, 2))),
            "vp": lambda: schedules.vp(),
            "beta": lambda: schedules.beta(low, high),
        }
        self.levels: list[Level] = list(kinds[str(rng.choice(list(kinds)))]().levels(steps))
        if rng.random() < 0.25 and steps > 1:  # a grid that ends above zero
            self.levels = self.levels[:-1]
        self.sigmas = torch.tensor([level.sigma for level in self.levels], dtype=torch.float64)
        self.x = torch.from_numpy(rng.normal(size=(3, 5))) * self.levels[0].sigma
        self.denoise, self.noise = RandomDenoiser(rng, 5), Pairs((3, 5))

    def model(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The denoiser as k-diffusion calls it: sigma [B], all the same."""
        return self.denoise(x, Level(t=0.0, alpha=1.0, sigma=float(sigma.reshape(-1)[0])))

    def ours(self, name: str, noise: Callable[[int, Row], Tensor], **options: Any) -> Tensor:
        plan = Plan.build(SAMPLERS[name], self.levels, prediction="sample", options=options)
        return execute(plan, self.denoise, self.x, noise)


@pytest.fixture(params=range(CONFIGURATIONS))
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


def agree(ours: Tensor, theirs: Tensor, tolerance: float = TOLERANCE) -> None:
    assert torch.isfinite(theirs).all()
    assert relative_error(ours, theirs) < tolerance


# Samplers with k-diffusion's noise_sampler argument, or without noise; how their options are drawn.
def _noisy(rng: np.random.Generator) -> dict[str, Any]:
    return {
        "eta": float(rng.choice([0.0, 0.4, 1.0, rng.uniform(0, 1.3)])),
        "s_noise": float(rng.uniform(0.8, 1.1)),
    }


OPTIONS: dict[str, Callable[[np.random.Generator], dict[str, Any]]] = {
    "euler_ancestral": _noisy,
    # Where eta > 1 makes all of the next level's noise fresh, k-diffusion's dpm_2_ancestral forgets to add it.
    "dpm_2_ancestral": lambda rng: {**_noisy(rng), "eta": float(rng.choice([0.0, 1.0, rng.uniform(0, 1)]))},
    "dpmpp_2s_ancestral": _noisy,
    "dpmpp_sde": lambda rng: {**_noisy(rng), "r": float(rng.uniform(0.2, 0.8))},
    "dpmpp_2m": lambda rng: {},
    "dpmpp_2m_sde": lambda rng: {**_noisy(rng), "solver_type": str(rng.choice(["midpoint", "heun"]))},
    "dpmpp_3m_sde": _noisy,
}


@pytest.mark.parametrize("name", OPTIONS)
def test_samplers_with_a_noise_source(k: ModuleType, case: Case, name: str) -> None:
    options = OPTIONS[name](case.rng)
    if len(case.levels) == 2 and not case.levels[1].sigma and name in ("dpmpp_2m_sde", "dpmpp_3m_sde"):
        # k-diffusion raises UnboundLocalError for a single step to zero; it is the denoised image.
        agree(case.ours(name, case.noise.of_row, **options), case.model(case.x, case.sigmas[0]))
        return
    source = {} if name == "dpmpp_2m" else {"noise_sampler": case.noise}
    theirs = getattr(k, f"sample_{name}")(case.model, case.x, case.sigmas, disable=True, **source, **options)
    down = name.endswith("ancestral") or name == "dpmpp_sde"
    agree(case.ours(name, case.noise.of_row, **options), theirs, ANCESTRAL_TOLERANCE if down else TOLERANCE)


@pytest.mark.parametrize("name", ["euler", "heun", "dpm_2"])
def test_samplers_with_churn(k: ModuleType, case: Case, name: str) -> None:
    rng, sigmas = case.rng, case.sigmas.tolist()
    limits = {
        "s_churn": float(rng.choice([0.0, rng.uniform(0, 60)])),
        "s_tmin": float(rng.choice([0.0, 0.2])),
        "s_tmax": float(rng.choice([math.inf, sigmas[0] / 2])),
        "s_noise": float(rng.uniform(0.9, 1.1)),
    }
    drawn = [torch.from_numpy(rng.normal(size=case.x.shape)) for _ in sigmas]
    supply: Iterator[Tensor] = iter(drawn)  # k-diffusion draws at every step, used or not
    with patch("torch.randn_like", lambda x: next(supply)):
        theirs = getattr(k, f"sample_{name}")(case.model, case.x, case.sigmas, disable=True, **limits)
    options = {"churn": limits["s_churn"], "s_min": limits["s_tmin"], "s_max": limits["s_tmax"]}
    ours = case.ours(
        name, lambda i, row: drawn[sigmas.index(row.level.sigma)], s_noise=limits["s_noise"], **options
    )
    agree(ours, theirs)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_lms(k: ModuleType, case: Case, order: int) -> None:
    # k-diffusion integrates its polynomials numerically and asks for 4 digits; on cubics it happens to get 15.
    theirs = k.sample_lms(case.model, case.x, case.sigmas, disable=True, order=order)
    agree(case.ours("lms", case.noise.of_row, order=order), theirs, 1e-10)


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 37])
def test_sigma_schedules(k: ModuleType, steps: int) -> None:
    low, high = 0.0312, 14.61
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        pairs = {
            "karras": (schedules.karras(low, high, rho=5.0), k.get_sigmas_karras(steps, low, high, rho=5.0)),
            "exponential": (schedules.exponential(low, high), k.get_sigmas_exponential(steps, low, high)),
            "polyexponential": (
                schedules.polyexponential(low, high, rho=0.7),
                k.get_sigmas_polyexponential(steps, low, high, rho=0.7),
            ),
            "vp": (schedules.vp(), k.get_sigmas_vp(steps)),
        }
    finally:
        torch.set_default_dtype(before)
    for name, (schedule, theirs) in pairs.items():
        ours = [level.sigma for level in schedule.levels(steps)]
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=TOLERANCE, err_msg=name)
