"""k-diffusion's samplers, with its signatures, its calls and its numbers, one fused step for each model call.

model(x, sigma, **extra_args) -> denoised, with sigma: [B]; x: [B, ...], noise of deviation sigmas[0]; sigmas: [N + 1],
usually falling to 0. callback hears a dict of x, i, sigma, sigma_hat and denoised after the first model call of each
step. disable: of the progress bar. All run without gradients, as k-diffusion's do: `sample_euler.__wrapped__` and so on
are the same functions without torch.no_grad(), for gradients through the whole loop.
"""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any, Concatenate, ParamSpec

import torch
from torch import Tensor

from fastdiff.kdiffusion.noise import BrownianTreeNoiseSampler, NoiseSampler, default_noise_sampler
from fastdiff.kdiffusion.run import Callback, Denoiser, Extra, Run
from fastdiff.kdiffusion.script import checked, script_of
from fastdiff.samplers._moves import check_amount

P = ParamSpec("P")


def walk(
    name: str, model: Denoiser, x: Tensor, sigmas: Tensor, extra_args: Extra, callback: Callback | None,
    disable: bool | None, options: Mapping[str, Any], noise_sampler: NoiseSampler | None = None, *, flow: bool = False,
    idle_draws: bool = True,
) -> Tensor:  # fmt: skip
    """Sampler `name` with the options of its planner (eta, s_noise, r, solver_type, order, or churn, s_min, s_max).

    flow: x = (1 - sigma) x0 + sigma noise, on which churn is refused. idle_draws: Run's.
    """
    if flow and options.get("churn"):
        raise ValueError("s_churn is for models that see x0 + sigma noise: leave it at 0 with a flow model")
    if len(sigmas) < 2:
        checked(sigmas)
        return x

    def about(i: int, sigma_hat: Tensor) -> dict[str, Tensor]:
        return {"sigma": sigmas[i], "sigma_hat": sigma_hat}

    script = script_of(name, sigmas, options, flow=flow)
    run = Run(model, x, about, extra_args, callback, disable, noise_sampler, idle_draws=idle_draws)
    return run.along(script)


def churn(sigmas: Tensor, amount: float, low: float, high: float, s_noise: float) -> dict[str, float]:
    """The planners' options of churn, the bounds rounded as a comparison with sigmas rounds them."""
    if not amount >= 0:
        raise ValueError(f"s_churn must be at least 0, got {amount}")
    dtype = sigmas.dtype if sigmas.is_floating_point() else torch.get_default_dtype()
    low, high = torch.tensor([low, high], dtype=dtype).tolist()
    return {
        "churn": min(float(amount), len(sigmas) - 1.0),
        "s_min": low,
        "s_max": high,
        "s_noise": float(s_noise),
    }


def _fresh(eta: float, s_noise: float) -> dict[str, float]:
    """How much noise is drawn afresh, and the factor on it."""
    check_amount("eta", eta)
    return {"eta": float(eta), "s_noise": float(s_noise)}


def _tree(x: Tensor, sigmas: Tensor, given: NoiseSampler | None) -> NoiseSampler:
    """The noise sampler given, or a Brownian path from the largest sigma to the smallest above 0."""
    if given is not None:
        return given
    values = checked(sigmas)
    if len(values) < 2:
        return default_noise_sampler(x)
    low, high = min(value for value in values if value), max(values)
    return BrownianTreeNoiseSampler(x, sigmas[values.index(low)], sigmas[values.index(high)])


def _sampler(name: str, body: Callable[Concatenate[str, P], Tensor], what: str) -> Callable[P, Tensor]:
    """body(name, ...) as the function sample_<name>, whose docstring says `what` it is."""
    signature = inspect.signature(body)
    own = [parameter for parameter in signature.parameters.values() if parameter.name != "name"]

    def sample(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        return body(name, *args, **kwargs)

    sample.__name__ = sample.__qualname__ = f"sample_{name}"
    sample.__doc__ = what
    sample.__signature__ = signature.replace(parameters=own)  # type: ignore[attr-defined]
    return torch.no_grad()(sample)


def _churned(
    name: str, model: Denoiser, x: Tensor, sigmas: Tensor, extra_args: Extra = None,
    callback: Callback | None = None, disable: bool | None = None, s_churn: float = 0.0, s_tmin: float = 0.0,
    s_tmax: float = math.inf, s_noise: float = 1.0,
) -> Tensor:  # fmt: skip
    options = churn(sigmas, s_churn, s_tmin, s_tmax, s_noise)
    return walk(name, model, x, sigmas, extra_args, callback, disable, options)


def _ancestral(
    name: str, model: Denoiser, x: Tensor, sigmas: Tensor, extra_args: Extra = None,
    callback: Callback | None = None, disable: bool | None = None, eta: float = 1.0, s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
) -> Tensor:  # fmt: skip
    source = default_noise_sampler(x) if noise_sampler is None else noise_sampler
    return walk(name, model, x, sigmas, extra_args, callback, disable, _fresh(eta, s_noise), source)


sample_euler = _sampler(
    "euler", _churned,
    "Euler's method, with noise put back by s_churn (arXiv:2206.00364, algorithm 2 without its correction).",
)  # fmt: skip
sample_heun = _sampler("heun", _churned, "Heun's method, two calls a step (arXiv:2206.00364, algorithm 2).")
sample_dpm_2 = _sampler(
    "dpm_2", _churned, "The midpoint method in log sigma, two calls a step (arXiv:2206.00927)."
)
sample_euler_ancestral = _sampler(
    "euler_ancestral", _ancestral, "Euler's method to a lower sigma, then fresh noise."
)
sample_dpm_2_ancestral = _sampler(
    "dpm_2_ancestral", _ancestral, "`sample_dpm_2` to a lower sigma, then fresh noise."
)
sample_dpmpp_2s_ancestral = _sampler(
    "dpmpp_2s_ancestral", _ancestral,
    "DPM-Solver++(2S) to a lower sigma, then fresh noise; two calls a step (arXiv:2211.01095).",
)  # fmt: skip


@torch.no_grad()
def sample_lms(
    model: Denoiser, x: Tensor, sigmas: Tensor, extra_args: Extra = None, callback: Callback | None = None,
    disable: bool | None = None, order: int = 4,
) -> Tensor:  # fmt: skip
    """Linear multistep of order 1 to 4: Adams-Bashforth on the uneven grid."""
    return walk("lms", model, x, sigmas, extra_args, callback, disable, {"order": operator.index(order)})


@torch.no_grad()
def sample_dpmpp_sde(
    model: Denoiser, x: Tensor, sigmas: Tensor, extra_args: Extra = None, callback: Callback | None = None,
    disable: bool | None = None, eta: float = 1.0, s_noise: float = 1.0, noise_sampler: NoiseSampler | None = None,
    r: float = 0.5,
) -> Tensor:  # fmt: skip
    """DPM-Solver++ (stochastic), noise in both of its stages; r, between 0 and 1, is where the first one ends."""
    source = _tree(x, sigmas, noise_sampler)
    options = {**_fresh(eta, s_noise), "r": float(r)}
    return walk("dpmpp_sde", model, x, sigmas, extra_args, callback, disable, options, source)


@torch.no_grad()
def sample_dpmpp_2m(
    model: Denoiser, x: Tensor, sigmas: Tensor, extra_args: Extra = None, callback: Callback | None = None,
    disable: bool | None = None,
) -> Tensor:  # fmt: skip
    """DPM-Solver++(2M), one call a step (arXiv:2211.01095)."""
    return walk("dpmpp_2m", model, x, sigmas, extra_args, callback, disable, {})


@torch.no_grad()
def sample_dpmpp_2m_sde(
    model: Denoiser, x: Tensor, sigmas: Tensor, extra_args: Extra = None, callback: Callback | None = None,
    disable: bool | None = None, eta: float = 1.0, s_noise: float = 1.0, noise_sampler: NoiseSampler | None = None,
    solver_type: str = "midpoint",
) -> Tensor:  # fmt: skip
    """DPM-Solver++(2M) SDE; solver_type "midpoint" or "heun"."""
    source = _tree(x, sigmas, noise_sampler)
    options = {**_fresh(eta, s_noise), "solver_type": solver_type}
    return walk("dpmpp_2m_sde", model, x, sigmas, extra_args, callback, disable, options, source)


@torch.no_grad()
def sample_dpmpp_3m_sde(
    model: Denoiser, x: Tensor, sigmas: Tensor, extra_args: Extra = None, callback: Callback | None = None,
    disable: bool | None = None, eta: float = 1.0, s_noise: float = 1.0, noise_sampler: NoiseSampler | None = None,
) -> Tensor:  # fmt: skip
    """DPM-Solver++(3M) SDE, one call a step."""
    source = _tree(x, sigmas, noise_sampler)
    return walk("dpmpp_3m_sde", model, x, sigmas, extra_args, callback, disable, _fresh(eta, s_noise), source)
