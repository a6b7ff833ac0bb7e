"""k-diffusion's noise schedules and helpers, with its bits: float32 on whatever device, a zero at the end."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

Device = torch.device | str


def append_zero(x: Tensor) -> Tensor:
    """x: [N] -> [N + 1]."""
    return torch.cat([x, x.new_zeros([1])])


def get_sigmas_karras(
    n: int, sigma_min: float, sigma_max: float, rho: float = 7.0, device: Device = "cpu"
) -> Tensor:
    """Linear in sigma^(1/rho) (arXiv:2206.00364, equation 5): [n + 1]."""
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return append_zero((high + torch.linspace(0, 1, n) * (low - high)) ** rho).to(device)


def get_sigmas_exponential(n: int, sigma_min: float, sigma_max: float, device: Device = "cpu") -> Tensor:
    """Geometric: [n + 1]."""
    return append_zero(torch.linspace(math.log(sigma_max), math.log(sigma_min), n, device=device).exp())


def get_sigmas_polyexponential(
    n: int, sigma_min: float, sigma_max: float, rho: float = 1.0, device: Device = "cpu"
) -> Tensor:
    """A power rho of a line in log sigma: [n + 1]."""
    low, high = math.log(sigma_min), math.log(sigma_max)
    return append_zero(torch.exp(torch.linspace(1, 0, n, device=device) ** rho * (high - low) + low))


def get_sigmas_vp(
    n: int, beta_d: float = 19.9, beta_min: float = 0.1, eps_s: float = 1e-3, device: Device = "cpu"
) -> Tensor:
    """The variance-preserving SDE at even times from 1 to eps_s (arXiv:2011.13456): [n + 1]."""
    t = torch.linspace(1, eps_s, n, device=device)
    return append_zero(torch.sqrt(torch.exp(beta_d * t**2 / 2 + beta_min * t) - 1))


def to_d(x: Tensor, sigma: Tensor, denoised: Tensor) -> Tensor:
    """dx/dsigma = (x - denoised) / sigma. x, denoised: [B, ...]; sigma: [] or [B]."""
    return (x - denoised) / sigma[(...,) + (None,) * (x.ndim - sigma.ndim)]


def get_ancestral_step(sigma_from: Any, sigma_to: Any, eta: float = 1.0) -> tuple[Any, Any]:
    """(sigma_down, sigma_up): where an ancestral step lands, and the fresh noise that takes it to sigma_to.

    Of numbers or of tensors, elementwise. All of sigma_to is fresh where eta asks for more, and where the noise rises.
    """
    if not eta:
        return sigma_to, 0.0
    wanted = eta * (sigma_to**2 * (sigma_from**2 - sigma_to**2) / sigma_from**2) ** 0.5
    # fmin passes by NaN, the root of a negative number, as Python's min of k-diffusion does: sigma_to is left.
    up = torch.fmin(sigma_to, wanted) if isinstance(sigma_to, Tensor) else min(sigma_to, wanted)
    return (sigma_to**2 - up**2) ** 0.5, up
