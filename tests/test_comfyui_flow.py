"""The ComfyUI sampler node with flow models: the rectified-flow variants of ComfyUI's samplers, written out here."""

from __future__ import annotations

from itertools import pairwise
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from comfy_cases import SHAPE, sampled, scheduled, started
from comfy_cases import nodes as nodes
from comfy_stub import Flow, default_noise_sampler
from fastdiff import kdiffusion
from kdiffusion_cases import BETWEEN, BROWNIAN, CHURNED, Denoiser, distance
from kdiffusion_cases import seeded as seeded
from test_parity_kdiffusion import k as k

TOLERANCE = 1e-5
pytestmark = [
    pytest.mark.filterwarnings("ignore:Should have t:UserWarning"),  # of torchsde, on rounding
    pytest.mark.filterwarnings("ignore:To copy construct:UserWarning"),  # of k-diffusion
]


def _rf_euler_ancestral(model: Any, x: Tensor, s: Tensor, eta: float, s_noise: float, noise: Any) -> Tensor:
    for a, b in pairwise(s):
        denoised = model(x, a.expand(len(x)))
        if b == 0:
            return denoised
        down = b * (1 + (b / a - 1) * eta)
        keep = (1 - b) / (1 - down)
        x = keep * (down / a * x + (1 - down / a) * denoised)
        x = x + noise(a, b) * s_noise * (b**2 - (keep * down) ** 2).clamp(min=0).sqrt() if eta else x
    return x


def _rf_dpm_2_ancestral(model: Any, x: Tensor, s: Tensor, eta: float, s_noise: float, noise: Any) -> Tensor:
    for a, b in pairwise(s):
        d = (x - model(x, a.expand(len(x)))) / a
        down = b * (1 + (b / a - 1) * eta)
        if b == 0:
            return x + d * (down - a)
        keep, mid = (1 - b) / (1 - down), (a * down).sqrt()
        x_2 = x + d * (mid - a)
        x = keep * (x + (x_2 - model(x_2, mid.expand(len(x)))) / mid * (down - a))
        x = x + noise(a, b) * s_noise * (b**2 - (keep * down) ** 2).clamp(min=0).sqrt()
    return x


def _rf_dpmpp_2s_ancestral(
    model: Any, x: Tensor, s: Tensor, eta: float, s_noise: float, noise: Any
) -> Tensor:
    for a, b in pairwise(s):
        denoised = model(x, a.expand(len(x)))
        if b == 0:
            return denoised
        down = b * (1 + (b / a - 1) * eta)
        middle = torch.tensor(0.9999, dtype=s.dtype)
        if a < 1:
            middle = 1 / (1 + ((1 - a) / a * (1 - down) / down).sqrt())
        x_2 = middle / a * x + (1 - middle / a) * denoised
        x = down / a * x + (1 - down / a) * model(x_2, middle.expand(len(x)))
        keep = (1 - b) / (1 - down)
        if eta:
            x = keep * x + noise(a, b) * s_noise * (b**2 - (keep * down) ** 2).clamp(min=0).sqrt()
    return x


def _rf_dpmpp_2m_sde(model: Any, x: Tensor, s: Tensor, eta: float, s_noise: float, noise: Any) -> Tensor:
    old, last = None, None
    for a, b in pairwise(s):
        denoised = model(x, a.expand(len(x)))
        if b == 0:
            return denoised
        h, alpha = a.logit() - b.logit(), 1 - b
        x = b / a * (-h * eta).exp() * x - alpha * (-h * (1 + eta)).expm1() * denoised
        if old is not None:
            x = x - 0.5 * alpha * (-h * (1 + eta)).expm1() * (h / last) * (denoised - old)
        x = x + noise(a, b) * b * (-(-2 * h * eta).expm1()).sqrt() * s_noise if eta else x
        old, last = denoised, h
    return x


def _rf_dpmpp_sde(model: Any, x: Tensor, s: Tensor, eta: float, s_noise: float, noise: Any) -> Tensor:
    for a, b in pairwise(s):
        first = model(x, a.expand(len(x)))
        if b == 0:
            return first
        middle = (0.5 * (a.logit() + b.logit())).sigmoid()  # r = 1/2, where the second call alone decides

        def to(end: Tensor, denoised: Tensor, a: Tensor = a, x: Tensor = x) -> Tensor:
            down, up = kdiffusion.get_ancestral_step(a / (1 - a), end / (1 - end), eta)
            kept = down * (1 - a) / a
            moved = (1 - end) * (kept / (1 - a) * x + (1 - kept) * denoised)
            return moved + (1 - end) * noise(a, end) * s_noise * up if eta else moved

        x = to(b, model(to(middle, first), middle.expand(len(x))))
    return x


def _rf_dpmpp_3m_sde(model: Any, x: Tensor, s: Tensor, eta: float, s_noise: float, noise: Any) -> Tensor:
    past: list[tuple[Tensor, Tensor]] = []  # denoised and step, newest first
    for a, b in pairwise(s):
        denoised = model(x, a.expand(len(x)))
        if b == 0:
            return denoised
        h, alpha = a.logit() - b.logit(), 1 - b
        g = h * (1 + eta)
        phi_2 = (-g).expm1() / g + 1
        x = b / a * (-h * eta).exp() * x - alpha * (-g).expm1() * denoised
        if past:
            slope = (denoised - past[0][0]) * h / past[0][1]
            if len(past) == 1:
                x = x + alpha * phi_2 * slope
            else:
                r0, r1 = past[0][1] / h, past[1][1] / h
                before = (past[0][0] - past[1][0]) / r1
                bend = (slope - before) / (r0 + r1)
                x = x + alpha * (phi_2 * (slope + bend * r0) - (phi_2 / g - 0.5) * bend)
        x = x + noise(a, b) * b * (-(-2 * h * eta).expm1()).sqrt() * s_noise if eta else x
        past = [(denoised, h), *past[:1]]
    return x


RF = {
    "euler_ancestral": _rf_euler_ancestral,
    "dpm_2_ancestral": _rf_dpm_2_ancestral,
    "dpmpp_2s_ancestral": _rf_dpmpp_2s_ancestral,
    "dpmpp_sde": _rf_dpmpp_sde,
    "dpmpp_2m_sde": _rf_dpmpp_2m_sde,
    "dpmpp_3m_sde": _rf_dpmpp_3m_sde,
}


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("name", RF)
def test_flow_models_with_fresh_noise(nodes: ModuleType, name: str, eta: float) -> None:
    path = Flow()
    sigmas = scheduled(nodes, path, "trailing", 9)
    assert sigmas[0] == 1.0
    x = started(path, sigmas)
    if name in BROWNIAN:
        pytest.importorskip("torchsde")
        source = kdiffusion.BrownianTreeNoiseSampler(x, sigmas[-2], sigmas[0], seed=11)
        sigmas = sigmas.clone()
        sigmas[0] = path.percent_to_sigma(1e-4)
    else:
        source = default_noise_sampler(x, 11)
    exact = RF[name](
        Denoiser(3, SHAPE), x.double(), sigmas.double(), eta, 0.9, lambda a, b: source(a.float(), b.float())
    )
    ours = sampled(nodes, path, scheduled(nodes, path, "trailing", 9), name, eta=eta, s_noise=0.9)
    assert distance(ours, exact) < 2e-5


@pytest.mark.parametrize("name", ["dpmpp_sde", "dpmpp_3m_sde"])
def test_flow_models_are_solved(nodes: ModuleType, name: str) -> None:
    """A constant image is found exactly, and many steps without noise go where Euler's many go."""
    pytest.importorskip("torchsde")
    path, image = Flow(), torch.randn(SHAPE)
    sigmas = scheduled(nodes, path, "trailing", 11)
    found = sampled(nodes, path, sigmas, name, denoiser=lambda x, sigma: image)
    assert torch.allclose(found, image, atol=1e-5)
    fine = scheduled(nodes, path, "trailing", 200)
    exact = sampled(nodes, path, scheduled(nodes, path, "trailing", 1000), "euler")
    assert distance(sampled(nodes, path, fine, name, eta=0.0), exact) < 0.05


@pytest.mark.parametrize("name", [*CHURNED, "lms", "dpmpp_2m", *BETWEEN])
def test_flow_models_without_fresh_noise(nodes: ModuleType, k: ModuleType, name: str) -> None:
    """dx/dsigma is the same on both paths, so ComfyUI runs k-diffusion's formulas unchanged."""
    path = Flow()
    sigmas = scheduled(nodes, path, "trailing", 9)
    x = started(path, sigmas)
    if name in BETWEEN:
        ends = (sigmas[-2], sigmas[0], 9) if name == "dpm_fast" else (sigmas[-2], sigmas[0])
        theirs = getattr(k, f"sample_{name}")(Denoiser(3, SHAPE), x, *ends, disable=True)
    else:
        theirs = getattr(k, f"sample_{name}")(Denoiser(3, SHAPE), x, sigmas, disable=True)
    assert distance(sampled(nodes, path, sigmas, name), theirs) < 5 * TOLERANCE
    if name in CHURNED:
        with pytest.raises(ValueError, match="s_churn"):
            sampled(nodes, path, sigmas, name, s_churn=5.0)
