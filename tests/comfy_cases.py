"""What the tests of the ComfyUI nodes share: the loaded nodes, and runs of them as SamplerCustom makes them."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

import comfy_stub
from comfy_stub import Guider, Levels
from fastdiff import kdiffusion
from kdiffusion_cases import Denoiser

SHAPE = (2, 3, 4, 4)


@pytest.fixture(scope="module")
def nodes() -> Iterator[ModuleType]:
    with comfy_stub.loaded(kdiffusion.BrownianTreeNoiseSampler) as module:
        yield module


def scheduled(nodes: ModuleType, path: Levels, *arguments: Any, **options: Any) -> Tensor:
    node = nodes.NODE_CLASS_MAPPINGS["FastdiffScheduler"]()
    (sigmas,) = node.get_sigmas(Guider(path, lambda x, s: x).model_patcher, *arguments, **options)
    return sigmas


def sampled(nodes: ModuleType, path: Levels, sigmas: Tensor, sampler: str, **options: Any) -> Tensor:
    """From the same noise with a sampler node's output, as SamplerCustom runs it."""
    denoiser = options.pop("denoiser", None) or Denoiser(3, SHAPE)
    (made,) = nodes.NODE_CLASS_MAPPINGS["FastdiffSampler"]().get_sampler(sampler, **options)
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        extra = {"seed": 11, "model_options": {}}
        return made.sample(Guider(path, denoiser), sigmas, extra, None, noise, torch.zeros(SHAPE), None, True)


def started(path: Levels, sigmas: Tensor) -> Tensor:
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(2))
    return path.noise_scaling(
        sigmas[0], noise, torch.zeros(SHAPE), float(sigmas[0]) >= float(path.sigma_max) - 1e-6
    )
