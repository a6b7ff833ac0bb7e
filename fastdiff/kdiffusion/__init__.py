"""k-diffusion's samplers and noise schedules: the same calls and the same pictures, each step one fused kernel.

from fastdiff import kdiffusion as K   # instead of: import k_diffusion.sampling as K
x = K.sample_dpmpp_2m(model, x, K.get_sigmas_karras(20, 0.03, 14.6))

k-diffusion itself is not needed. docs/kdiffusion.md says what is the same and what differs.
"""

from __future__ import annotations

from fastdiff.kdiffusion.dpm_solver import sample_dpm_adaptive, sample_dpm_fast
from fastdiff.kdiffusion.noise import BatchedBrownianTree, BrownianTreeNoiseSampler, default_noise_sampler
from fastdiff.kdiffusion.samplers import (
    sample_dpm_2,
    sample_dpm_2_ancestral,
    sample_dpmpp_2m,
    sample_dpmpp_2m_sde,
    sample_dpmpp_2s_ancestral,
    sample_dpmpp_3m_sde,
    sample_dpmpp_sde,
    sample_euler,
    sample_euler_ancestral,
    sample_heun,
    sample_lms,
)
from fastdiff.kdiffusion.sigmas import (
    append_zero,
    get_ancestral_step,
    get_sigmas_exponential,
    get_sigmas_karras,
    get_sigmas_polyexponential,
    get_sigmas_vp,
    to_d,
)

__all__ = [
    "BatchedBrownianTree",
    "BrownianTreeNoiseSampler",
    "append_zero",
    "default_noise_sampler",
    "get_ancestral_step",
    "get_sigmas_exponential",
    "get_sigmas_karras",
    "get_sigmas_polyexponential",
    "get_sigmas_vp",
    "sample_dpm_2",
    "sample_dpm_2_ancestral",
    "sample_dpm_adaptive",
    "sample_dpm_fast",
    "sample_dpmpp_2m",
    "sample_dpmpp_2m_sde",
    "sample_dpmpp_2s_ancestral",
    "sample_dpmpp_3m_sde",
    "sample_dpmpp_sde",
    "sample_euler",
    "sample_euler_ancestral",
    "sample_heun",
    "sample_lms",
    "to_d",
]


def __getattr__(name: str) -> object:
    if name == "log_likelihood":
        raise AttributeError(
            "fastdiff.kdiffusion has no log_likelihood: it is torchdiffeq's integrator around a gradient, in which no "
            "step can be fused; k_diffusion.sampling.log_likelihood works beside this module"
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
