"""Noise: added to images, and drawn."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastdiff import counter
from fastdiff.reference.common import compute_dtype, per_sample


def add_noise(x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """alpha*x0 + sigma*noise. x0, noise: [B, ...]; alpha, sigma: [B] or [1]. Returns x0's shape and dtype."""
    dtype = compute_dtype(x0.dtype)
    alpha, sigma = per_sample(alpha.to(dtype), x0), per_sample(sigma.to(dtype), x0)
    return (alpha * x0.to(dtype) + sigma * noise.to(dtype)).to(x0.dtype)


def q_sample(
    x0: Tensor, noise: Tensor | None, alpha: Tensor, sigma: Tensor, state: Tensor | None, seeds: Tensor | None,
    stream: int, velocity: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """x = alpha*x0 + sigma*noise; the noise if it was drawn (else empty); alpha*noise - sigma*x0 if velocity (else
    empty); the generator's state afterwards (empty without one). noise given, or drawn as by randn_like."""
    drawn, after = x0.new_empty(0), x0.new_empty(0, dtype=torch.uint8)
    if noise is None:
        noise, after = randn_like(x0, state, seeds, stream)
        drawn = noise
    target = add_noise(noise, x0, alpha, -sigma) if velocity else x0.new_empty(0)
    return add_noise(x0, noise, alpha, sigma), drawn, target, after


def randn_like(x: Tensor, state: Tensor | None, seeds: Tensor | None, stream: int) -> tuple[Tensor, Tensor]:
    """Contiguous noise of x's shape, dtype and device, and the generator's state afterwards. state: what get_state()
    of a generator of x's device gives; or seeds: int64 [B], one for each x[i] (fastdiff/counter.py)."""
    if seeds is not None:
        noise = counter.normal(seeds, math.prod(x.shape[1:]), stream).to(x.dtype)
        return noise.reshape(x.shape).contiguous(), x.new_empty(0, dtype=torch.uint8)
    if state is None:
        raise ValueError("give one of noise, state and seeds")
    generator = torch.Generator(x.device)
    generator.set_state(state)
    noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
    return noise, generator.get_state()
