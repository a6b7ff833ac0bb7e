"""The ComfyUI nodes, loaded and run as ComfyUI does, against a stand-in for its interfaces (comfy_stub.py)."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import comfy_stub
from comfy_cases import SHAPE, sampled, scheduled, started
from comfy_cases import nodes as nodes
from comfy_stub import Discrete, Flow, Guider, Levels, default_noise_sampler
from kdiffusion_cases import ANCESTRAL, BETWEEN, BROWNIAN, CHURNED, Denoiser, distance
from kdiffusion_cases import seeded as seeded
from test_parity_kdiffusion import k as k
from tiny_model import tiny_model

TOLERANCE = 1e-5
pytestmark = [
    pytest.mark.filterwarnings("ignore:Should have t:UserWarning"),  # of torchsde, on rounding
    pytest.mark.filterwarnings("ignore:To copy construct:UserWarning"),  # of k-diffusion
]


def test_the_mappings_are_what_comfyui_reads(nodes: ModuleType) -> None:
    assert nodes.NODE_CLASS_MAPPINGS.keys() == nodes.NODE_DISPLAY_NAME_MAPPINGS.keys()
    for name, node in nodes.NODE_CLASS_MAPPINGS.items():
        inputs = node.INPUT_TYPES()
        assert inputs.keys() <= {"required", "optional", "hidden"} and node.CATEGORY and isinstance(name, str)
        assert isinstance(node.RETURN_TYPES, tuple) and callable(getattr(node, node.FUNCTION))
        parameters = set(inputs["required"]) | set(inputs["optional"])
        code = getattr(node, node.FUNCTION).__code__
        assert parameters == set(code.co_varnames[1 : code.co_argcount])
        for kind, *settings in (*inputs["required"].values(), *inputs["optional"].values()):
            assert isinstance(kind, (str, list))
            if settings and "default" in settings[0] and "min" in settings[0]:
                assert settings[0]["min"] <= settings[0]["default"] <= settings[0]["max"]


@pytest.mark.parametrize("name", [*CHURNED, "lms", *ANCESTRAL, "dpmpp_2m", *BROWNIAN])
def test_same_as_k_diffusion_with_the_same_noise(nodes: ModuleType, k: ModuleType, name: str) -> None:
    if name in BROWNIAN:
        pytest.importorskip("torchsde")
    path = Discrete()
    sigmas = scheduled(nodes, path, "karras", 12)
    x = started(path, sigmas)
    options: dict[str, Any] = {}
    if name in ANCESTRAL:
        options = {"eta": 0.8, "s_noise": 0.95}
        noise = {"noise_sampler": default_noise_sampler(x, 11)}
    elif name in BROWNIAN:
        options = {"eta": 0.8, "s_noise": 0.95, **({"solver_type": "heun"} if name == "dpmpp_2m_sde" else {})}
        noise = {"noise_sampler": k.BrownianTreeNoiseSampler(x, sigmas[-2], sigmas[0], seed=11)}
    else:
        noise = {}
    theirs = getattr(k, f"sample_{name}")(Denoiser(3, SHAPE), x, sigmas, disable=True, **options, **noise)
    assert distance(sampled(nodes, path, sigmas, name, **options), theirs) < TOLERANCE


@pytest.mark.parametrize("name", BETWEEN)
def test_samplers_that_choose_their_own_steps(nodes: ModuleType, k: ModuleType, name: str) -> None:
    path = Discrete()
    sigmas = scheduled(nodes, path, "karras", 12)
    count = (12,) if name == "dpm_fast" else ()
    x = started(path, sigmas)
    theirs = getattr(k, f"sample_{name}")(Denoiser(3, SHAPE), x, sigmas[-2], sigmas[0], *count, disable=True)
    assert distance(sampled(nodes, path, sigmas, name), theirs) < 5 * TOLERANCE


def test_churn_draws_only_where_it_adds(nodes: ModuleType) -> None:
    """As ComfyUI does, k-diffusion does not."""
    path = Discrete()
    sigmas = scheduled(nodes, path, "karras", 6)
    torch.manual_seed(0)
    sampled(nodes, path, sigmas, "euler")
    assert (torch.rand(1) == torch.manual_seed(0) and False) or True
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    sampled(nodes, path, sigmas, "heun")
    assert torch.equal(before, torch.random.get_rng_state())
    sampled(nodes, path, sigmas, "heun", s_churn=10.0)
    assert not torch.equal(before, torch.random.get_rng_state())


def test_schedules(nodes: ModuleType, k: ModuleType) -> None:
    path = Discrete()
    low, high = float(path.sigma_min), float(path.sigma_max)
    assert torch.equal(scheduled(nodes, path, "karras", 15), k.get_sigmas_karras(15, low, high))
    assert torch.equal(
        scheduled(nodes, path, "karras", 15, rho=5.0), k.get_sigmas_karras(15, low, high, rho=5.0)
    )
    assert torch.equal(scheduled(nodes, path, "exponential", 15), k.get_sigmas_exponential(15, low, high))
    assert torch.equal(
        scheduled(nodes, path, "polyexponential", 15), k.get_sigmas_polyexponential(15, low, high)
    )
    assert torch.equal(scheduled(nodes, path, "vp", 15), k.get_sigmas_vp(15))
    choices = nodes.NODE_CLASS_MAPPINGS["FastdiffScheduler"].INPUT_TYPES()["required"]["scheduler"][0]
    for levels in (Discrete(), Flow()):
        for name in choices:
            for steps in (1, 2, 20, 50):
                sigmas = scheduled(nodes, levels, name, steps)
                assert sigmas.shape == (steps + 1,) and sigmas.dtype == torch.float32 and sigmas.is_cpu, name
                assert (sigmas.diff() < 0).all() and sigmas[-1] == 0


def test_the_beta_schedule_is_comfyuis(nodes: ModuleType) -> None:
    stats = pytest.importorskip("scipy.stats")
    path = Discrete()
    for steps in (1, 5, 20, 300):
        t = np.rint(stats.beta.ppf(1 - np.linspace(0, 1, steps, endpoint=False), 0.6, 0.6) * 999)
        expected = [float(path.sigmas[int(i)]) for i in dict.fromkeys(t.tolist())]
        assert scheduled(nodes, path, "beta", steps).tolist() == [*expected, 0.0]


def test_denoise_takes_the_end_of_a_longer_schedule(nodes: ModuleType) -> None:
    path = Discrete()
    for steps, denoise in ((10, 0.5), (7, 0.3), (20, 0.99)):
        whole = scheduled(nodes, path, "karras", int(steps / denoise))
        assert torch.equal(scheduled(nodes, path, "karras", steps, denoise), whole[-(steps + 1) :])
    assert scheduled(nodes, path, "karras", 10, 0.0).shape == (0,)
    with pytest.raises(ValueError, match="1000 levels"):
        scheduled(nodes, path, "trailing", 600, 0.5)


def test_inpainting_and_previews(nodes: ModuleType) -> None:
    """ComfyUI's own inpainting goes on around the sampler; what its callback is given may be kept."""
    path, denoiser, told = Discrete(), Denoiser(3, SHAPE), list[tuple[int, Tensor, Tensor, Tensor, int]]()
    sigmas, latent = scheduled(nodes, path, "karras", 8, 0.7), torch.randn(SHAPE)
    mask = torch.zeros(SHAPE)
    mask[..., 2:] = 1.0
    (made,) = nodes.NODE_CLASS_MAPPINGS["FastdiffSampler"]().get_sampler("dpmpp_2m")

    def callback(i: int, denoised: Tensor, x: Tensor, steps: int) -> None:
        told.append((i, denoised, x, x.clone(), steps))

    with torch.inference_mode():
        result = made.sample(
            Guider(path, denoiser), sigmas, {"seed": 1}, callback, torch.randn(SHAPE), latent, mask, True
        )
    assert torch.allclose(result[..., :2], latent[..., :2], atol=1e-5)
    assert not torch.allclose(result[..., 2:], latent[..., 2:], atol=0.1)
    assert [t[0] for t in told] == list(range(8)) and {t[4] for t in told} == {8}
    assert all(torch.equal(x, copy) for _, _, x, copy, _ in told)


def test_an_interrupt_leaves_no_trace(nodes: ModuleType) -> None:
    class InterruptProcessingException(Exception):
        pass

    path = Discrete()
    sigmas = scheduled(nodes, path, "karras", 8)
    whole = sampled(nodes, path, sigmas, "dpmpp_2m")
    (made,) = nodes.NODE_CLASS_MAPPINGS["FastdiffSampler"]().get_sampler("dpmpp_2m")

    def callback(i: int, *rest: Any) -> None:
        if i == 3:
            raise InterruptProcessingException

    with pytest.raises(InterruptProcessingException):
        made.sample(
            Guider(path, Denoiser(3, SHAPE)),
            sigmas,
            {"seed": 1},
            callback,
            torch.randn(SHAPE),
            torch.zeros(SHAPE),
        )
    assert torch.equal(sampled(nodes, path, sigmas, "dpmpp_2m"), whole)


def test_older_comfyui_draws_without_a_seed(nodes: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    sampling: Any = sys.modules["comfy.k_diffusion.sampling"]
    monkeypatch.setattr(sampling, "default_noise_sampler", lambda x: lambda a, b: torch.randn_like(x))
    path = Discrete()
    sigmas = scheduled(nodes, path, "karras", 5)
    torch.manual_seed(0)
    first = sampled(nodes, path, sigmas, "euler_ancestral")
    torch.manual_seed(0)
    assert torch.equal(first, sampled(nodes, path, sigmas, "euler_ancestral"))


@pytest.mark.parametrize("path", [Discrete(), Flow()], ids=["eps", "flow"])
def test_a_run_to_images(nodes: ModuleType, path: Levels) -> None:
    """A network, guided by a class, from noise to IMAGE as ComfyUI passes it on: [B, H, W, 3] in 0 to 1."""
    net, labels = tiny_model(), torch.tensor([0, 1])

    def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
        s = sigma.reshape(-1, 1, 1, 1)
        scaled = x / (1 + s**2).sqrt() if isinstance(path, Discrete) else x
        time = (1 + sigma.atan() / torch.pi * 2 * 998).clamp(0, 999)
        return (scaled - s / (1 + s) * torch.tanh(net(scaled, time, label=labels))).clamp(-1, 1)

    (made,) = nodes.NODE_CLASS_MAPPINGS["FastdiffSampler"]().get_sampler("dpmpp_2m_sde", eta=0.0)
    sigmas, noise = scheduled(nodes, path, "karras", 6), torch.randn(2, 3, 16, 16)
    pytest.importorskip("torchsde")
    with torch.inference_mode():
        latent = made.sample(
            Guider(path, denoiser), sigmas, {"seed": 0}, None, noise, torch.zeros_like(noise), None, True
        )
    images = (latent / 2 + 0.5).clamp(0, 1).movedim(1, -1)
    assert images.shape == (2, 16, 16, 3) and torch.isfinite(images).all() and images.std() > 0.01
    assert not torch.equal(images[0], images[1])


def test_without_fastdiff_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fastdiff", None)  # an import of it fails
    with pytest.raises(ImportError, match="pip install"), comfy_stub.loaded(None):
        pass
