"""The two nodes: a sampler, and the noise levels it goes along. Both feed SamplerCustom and SamplerCustomAdvanced."""

from __future__ import annotations

from typing import Any

import comfy.samplers
from torch import Tensor

from .sampling import SAMPLERS, sample
from .schedules import SCHEDULES, sigmas_of

Inputs = dict[str, dict[str, tuple[Any, ...]]]


def _number(default: float, low: float, high: float, step: float, tooltip: str) -> tuple[str, dict[str, Any]]:
    bounds = {"default": default, "min": low, "max": high, "step": step, "round": False}
    return "FLOAT", {**bounds, "tooltip": tooltip}


class FastdiffSampler:
    """SAMPLER: one of fastdiff's samplers with its options."""

    CATEGORY = "sampling/custom_sampling/samplers"
    DESCRIPTION = "k-diffusion's samplers with each step in one fused kernel: the same pictures, sooner."
    RETURN_TYPES = ("SAMPLER",)
    FUNCTION = "get_sampler"

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        fresh = "noise drawn afresh at each step, of the ancestral and SDE samplers: 0 none, 1 all of it"
        factor = "factor on the noise that is added"
        return {
            "required": {"sampler": (list(SAMPLERS), {"default": "dpmpp_2m"})},
            "optional": {
                "eta": _number(1.0, 0.0, 100.0, 0.01, fresh),
                "s_noise": _number(1.0, 0.0, 100.0, 0.01, factor),
                "s_churn": _number(
                    0.0, 0.0, 100.0, 0.01, "noise put back before each step by euler, heun and dpm_2"
                ),
                "s_tmin": _number(0.0, 0.0, 5000.0, 0.01, "s_churn acts from this sigma"),
                "s_tmax": _number(5000.0, 0.0, 5000.0, 0.01, "s_churn acts up to this sigma"),
                "order": ("INT", {"default": 4, "min": 1, "max": 4, "tooltip": "of lms"}),
                "solver_type": (["midpoint", "heun"], {"tooltip": "of dpmpp_2m_sde"}),
                "r": _number(0.5, 0.01, 0.99, 0.01, "where the first stage of dpmpp_sde ends"),
                "noise_device": (["cpu", "gpu"], {"tooltip": "where the SDE samplers' noise is made"}),
            },
        }

    def get_sampler(
        self, sampler: str, eta: float = 1.0, s_noise: float = 1.0, s_churn: float = 0.0, s_tmin: float = 0.0,
        s_tmax: float = 5000.0, order: int = 4, solver_type: str = "midpoint", r: float = 0.5,
        noise_device: str = "cpu",
    ) -> tuple[Any]:  # fmt: skip
        options = {
            "sampler": sampler, "eta": eta, "s_noise": s_noise, "s_churn": s_churn, "s_tmin": s_tmin, "s_tmax": s_tmax,
            "order": order, "solver_type": solver_type, "r": r, "noise_device": noise_device,
        }  # fmt: skip
        return (comfy.samplers.KSAMPLER(sample, extra_options=options),)


class FastdiffScheduler:
    """SIGMAS: noise levels of a model, steps + 1 of them."""

    CATEGORY = "sampling/custom_sampling/schedulers"
    DESCRIPTION = "Noise levels between those of the model, falling to 0."
    RETURN_TYPES = ("SIGMAS",)
    FUNCTION = "get_sigmas"

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        strength = "1 starts from noise; less starts part-way, for image to image"
        return {
            "required": {
                "model": ("MODEL",),
                "scheduler": (list(SCHEDULES), {"default": "karras"}),
                "steps": ("INT", {"default": 20, "min": 1, "max": 10000}),
                "denoise": _number(1.0, 0.0, 1.0, 0.01, strength),
            },
            "optional": {
                "rho": _number(0.0, 0.0, 100.0, 0.01, "of karras and polyexponential; 0: 7 and 1, their own"),
            },
        }

    def get_sigmas(
        self, model: Any, scheduler: str, steps: int, denoise: float = 1.0, rho: float = 0.0
    ) -> tuple[Tensor]:
        path = model.get_model_object("model_sampling")
        return (sigmas_of(scheduler, path, steps, denoise, rho or None),)


NODE_CLASS_MAPPINGS = {
    "FastdiffSampler": FastdiffSampler,
    "FastdiffScheduler": FastdiffScheduler,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "FastdiffSampler": "fastdiff sampler",
    "FastdiffScheduler": "fastdiff scheduler",
}
