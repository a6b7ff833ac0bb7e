"""The shapes that diffusion models give their norms and samplers, as [B, C, ...]."""

from __future__ import annotations

Shape = tuple[int, ...]

SD15: tuple[Shape, ...] = (
    (2, 320, 64, 64),
    (2, 640, 64, 64),
    (2, 960, 64, 64),
    (2, 640, 32, 32),
    (2, 1280, 32, 32),
    (2, 1920, 32, 32),
    (2, 1280, 16, 16),
    (2, 1280, 8, 8),
)
"""Norms of the Stable Diffusion 1.5 UNet at 512x512, both branches of guidance in one batch."""

SDXL: tuple[Shape, ...] = (
    (2, 320, 128, 128),
    (2, 640, 128, 128),
    (2, 960, 128, 128),
    (2, 1280, 64, 64),
    (2, 1920, 64, 64),
    (2, 1280, 32, 32),
    (2, 2560, 32, 32),
)
"""Norms of the SDXL UNet at 1024x1024."""

VAE: tuple[Shape, ...] = (
    (1, 512, 128, 128),
    (1, 512, 256, 256),
    (1, 256, 512, 512),
    (1, 256, 1024, 1024),
    (1, 128, 1024, 1024),
)
"""Norms of the image decoder at 1024x1024."""

VIDEO: tuple[Shape, ...] = ((1, 512, 8, 45, 80), (1, 512, 16, 180, 320))
"""Norms of a video decoder, [B, C, T, H, W]."""

LATENTS: Shape = (2, 4, 64, 64)
XL_LATENTS: Shape = (2, 4, 128, 128)
IMAGES: Shape = (4, 3, 512, 512)
