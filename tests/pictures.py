"""Pictures for tests of what changes pictures: smooth, noisy, with holes, and a network that denoises perfectly."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastdiff.apps.source import Native
from tiny_model import tiny_model


def smooth(height: int = 30, width: int = 22) -> Tensor:
    """A picture without fine detail, float32 [3, H, W] in [-0.8, 0.8]."""
    down = torch.linspace(0, math.pi, height)[:, None]
    right = torch.linspace(0, 2 * math.pi, width)[None]
    return torch.stack([0.8 * torch.sin(down + k) * torch.cos(right / 2 + k) for k in range(3)])


def source() -> Native:
    """The tiny untrained network."""
    return Native(tiny_model())


class Knowing(Native):
    """A source whose network always answers with one clean picture, [1 or B, 3, h, w], at its frame's size."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__(tiny_model())
        self.answer = answer

    def __call__(self, x: Tensor, t: Tensor, **conditioning: object) -> Tensor:
        levels = [self.schedule.process.level(float(time)) for time in t]
        alpha, sigma = (
            torch.tensor([getattr(level, name) for level in levels]).reshape(-1, 1, 1, 1)
            for name in ("alpha", "sigma")
        )
        return (alpha * x - self.answer) / sigma.clamp(min=1e-6)  # v, with alpha x - sigma v = answer


class Latent(Native):
    """Half the resolution, by means and repeated pixels: latents of a kind, whose decoding is not exact."""

    exact = False

    def shape(self, count: int, width: int, height: int) -> tuple[int, ...]:
        return (count, 3, height // 2, width // 2)

    def encode(self, pictures: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool2d(pictures, 2)

    def decode(self, x: Tensor) -> Tensor:
        return torch.nn.functional.interpolate(x, scale_factor=2).clamp(-1, 1)

    glimpse = decode


def latent() -> Latent:
    """The tiny network on latents; sides must be multiples of 8."""
    made = Latent(tiny_model())
    made.multiple = 8
    return made
