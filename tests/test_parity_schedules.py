"""Betas, timesteps and sigmas against those of the diffusers schedulers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fastdiff import schedules
from widened import BETAS, in_float64

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize(
    ("make", "config"),
    [
        (schedules.linear_betas, BETAS[0]),
        (schedules.scaled_linear_betas, BETAS[1]),
        (schedules.cosine_betas, BETAS[2]),
        (schedules.sigmoid_betas, {"beta_schedule": "sigmoid"}),
    ],
    ids=["linear", "scaled_linear", "cosine", "sigmoid"],
)
def test_betas(make: Callable[..., schedules.Schedule], config: dict[str, Any], zero_snr: bool) -> None:
    theirs = (
        diffusers.DDPMScheduler(**config, rescale_betas_zero_snr=zero_snr).alphas_cumprod.double().numpy()
    )
    ours = make(zero_snr=zero_snr).process
    # A float32 product of 1000 numbers; with zero SNR the last steps divide two of them.
    np.testing.assert_allclose(ours.alphas**2, theirs, rtol=1e-4, atol=2e-7)
    np.testing.assert_allclose(ours.alphas**2 + ours.sigmas**2, 1.0, rtol=1e-15)
    assert (ours.alphas[-1] == 0.0) == zero_snr


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("offset", [0, 1])
def test_timesteps(spacing: str, offset: int) -> None:
    theirs = diffusers.DDIMScheduler(timestep_spacing=spacing, steps_offset=offset)
    schedule = schedules.linear_betas(spacing=spacing, offset=offset if spacing == "leading" else 0)
    for steps in [*range(2, 60), 99, 333, 500, 999]:
        theirs.set_timesteps(steps)
        ours = [level.t for level in schedule.levels(steps)[:-1]]
        assert ours == theirs.timesteps.tolist(), steps


@pytest.mark.parametrize("spacing", ["karras", "exponential", "beta"])
@pytest.mark.parametrize("steps", [2, 3, 10, 41])
def test_sigma_spacings(spacing: str, steps: int) -> None:
    with in_float64(diffusers.EulerDiscreteScheduler):
        theirs = diffusers.EulerDiscreteScheduler(**BETAS[1], **{f"use_{spacing}_sigmas": True})
        theirs.set_timesteps(steps)
    levels = schedules.scaled_linear_betas(spacing=spacing).levels(steps)
    ratios, times = [level.ratio for level in levels], [level.t for level in levels[:-1]]
    np.testing.assert_allclose(ratios, theirs.sigmas.numpy(), rtol=1e-9)
    np.testing.assert_allclose(times, theirs.timesteps.numpy(), atol=1e-6)


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 2, 7, 28])
def test_shifted_flow(shift: float, steps: int) -> None:
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    theirs.set_timesteps(sigmas=np.linspace(1.0, 1.0 / steps, steps))  # as the pipelines of SD3 and FLUX do
    levels = schedules.flow(shift=shift, T=1000.0).levels(steps)
    np.testing.assert_allclose([level.sigma for level in levels], theirs.sigmas.numpy(), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose([level.t for level in levels[:-1]], theirs.timesteps.numpy(), rtol=1e-6)


def test_edm_sigmas() -> None:
    theirs = diffusers.EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0)
    theirs.set_timesteps(18)
    ours = [level.sigma for level in schedules.edm().levels(18)]
    np.testing.assert_allclose(ours, theirs.sigmas.double().numpy(), rtol=1e-6)
