"""The function that ComfyUI's KSAMPLER calls: fastdiff's samplers with ComfyUI's noise, on whichever path a model has.

ComfyUI hands over (model, x, sigmas, extra_args, callback, disable, **options), where model(x, sigma, **extra_args)
gives the denoised image, x: [B, ...] float32, sigmas: [N + 1]. Flow models (comfy.model_sampling.CONST) see
(1 - sigma) x0 + sigma noise, the others x0 + sigma noise.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import comfy.model_sampling
import torch
from comfy.k_diffusion import sampling as comfy_sampling
from torch import Tensor

from fastdiff.kdiffusion import sample_dpm_adaptive, sample_dpm_fast
from fastdiff.kdiffusion.samplers import churn, walk

CHURNED = ("euler", "heun", "dpm_2")
ANCESTRAL = ("euler_ancestral", "dpm_2_ancestral", "dpmpp_2s_ancestral")
BROWNIAN = ("dpmpp_sde", "dpmpp_2m_sde", "dpmpp_3m_sde")
BETWEEN = {"dpm_fast": sample_dpm_fast, "dpm_adaptive": sample_dpm_adaptive}
SAMPLERS = ("dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m_sde", "dpmpp_sde", "dpmpp_2s_ancestral", "euler", "euler_ancestral",
            "heun", "dpm_2", "dpm_2_ancestral", "lms", *BETWEEN)  # fmt: skip
ALMOST_NOISE = (
    1e-4  # how far into sampling a flow model's first sigma is moved, where log(alpha / sigma) is finite
)

Options = Mapping[str, Any]


@torch.no_grad()
def sample(
    model: Any,
    x: Tensor,
    sigmas: Tensor,
    extra_args: Mapping[str, Any] | None = None,
    callback: Callable[[dict[str, Any]], Any] | None = None,
    disable: bool | None = None,
    *,
    sampler: str,
    **options: Any,
) -> Tensor:
    """Sampler `sampler` from x along sigmas. options: those of the sampler node; what a sampler has not is ignored.

    Raises ValueError for churn with a flow model, and for what the sampler refuses.
    """
    if len(sigmas) < 2:
        return x
    if sampler in BETWEEN:
        last = sigmas[-1] if sigmas[-1] > 0 else sigmas[-2]
        ends = (last, sigmas[0], len(sigmas) - 1) if sampler == "dpm_fast" else (last, sigmas[0])
        return BETWEEN[sampler](model, x, *ends, extra_args, callback, disable)
    path = model_sampling(model)
    flow = isinstance(path, getattr(comfy.model_sampling, "CONST", ()))
    noise = noise_sampler(sampler, x, sigmas, (extra_args or {}).get("seed"), options)
    if flow and sampler in BROWNIAN and sigmas[0] >= 1:
        sigmas = sigmas.clone()
        sigmas[0] = path.percent_to_sigma(ALMOST_NOISE)
    scale = getattr(path, "noise_scale", 1.0) if flow or sampler in BROWNIAN else 1.0
    return walk(
        sampler, model, x, sigmas, extra_args, callback, disable, planner_options(sampler, sigmas, scale, options),
        noise, flow=flow, idle_draws=False,
    )  # fmt: skip


def model_sampling(model: Any) -> Any:
    """The model_sampling object of ComfyUI's model, with the patches of this run."""
    guider = model.inner_model
    patcher = getattr(guider, "model_patcher", None)
    return (
        guider.inner_model.model_sampling if patcher is None else patcher.get_model_object("model_sampling")
    )


def planner_options(sampler: str, sigmas: Tensor, noise_scale: float, options: Options) -> dict[str, Any]:
    """What fastdiff.kdiffusion.samplers.walk takes for this sampler."""
    if sampler in CHURNED:
        return churn(sigmas, options["s_churn"], options["s_tmin"], options["s_tmax"], options["s_noise"])
    if sampler == "lms":
        return {"order": options["order"]}
    if sampler == "dpmpp_2m":
        return {}
    more = {"dpmpp_sde": "r", "dpmpp_2m_sde": "solver_type"}.get(sampler)
    fresh = {"eta": options["eta"], "s_noise": options["s_noise"] * noise_scale}
    return fresh | ({more: options[more]} if more else {})


def noise_sampler(
    sampler: str, x: Tensor, sigmas: Tensor, seed: int | None, options: Options
) -> Callable[..., Tensor] | None:
    """ComfyUI's own noise for this sampler and seed; a Brownian tree where options say: on the CPU or on x's device."""
    if sampler in BROWNIAN:
        ends = sigmas[sigmas > 0].min(), sigmas.max()
        on_cpu = options["noise_device"] == "cpu"
        return comfy_sampling.BrownianTreeNoiseSampler(x, *ends, seed=seed, cpu=on_cpu)
    if sampler in ANCESTRAL:
        source = comfy_sampling.default_noise_sampler
        # before mid-2025 it took no seed, and drew from torch's global generator
        return source(x, seed=seed) if "seed" in inspect.signature(source).parameters else source(x)
    return None
