"""How noisy a photograph is, from itself."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# The difference of two Laplacians: blind to flat and evenly sloping parts (Immerkaer 1996, "Fast noise variance
# estimation"). White noise of deviation 1 comes out with deviation 6, the root of the sum of squares.
KERNEL = ((1.0, -2.0, 1.0), (-2.0, 4.0, -2.0), (1.0, -2.0, 1.0))
GAIN = 6.0
# The median of |N(0, 1)|: robust to edges, which are few (Donoho 1995, "De-noising by soft-thresholding").
MEDIAN = 0.6744897501960817
# Texture looks like noise to the kernel, so the noise is that of the middle one among tiles, not that of all pixels.
TILE = 32


def noise_level(picture: Tensor) -> float:
    """The standard deviation of white noise in a photograph, on the scale 0..255.

    picture: float [C, H, W] in [-1, 1], at least 3x3. The mean over the channels.
    """
    if min(picture.shape[-2:]) < 3:
        raise ValueError(
            f"a picture of {picture.shape[-1]}x{picture.shape[-2]} is too small to tell its noise: give noise"
        )
    kernel = torch.tensor(KERNEL, dtype=picture.dtype)[None, None]
    rough = F.conv2d(picture[:, None], kernel)[:, 0].abs() * (127.5 / (GAIN * MEDIAN))
    return float(torch.stack([_typical(channel) for channel in rough]).mean())


def _typical(rough: Tensor) -> Tensor:
    """The median over tiles of the medians in each: rough is [H, W]."""
    height, width = rough.shape
    rows, columns = max(1, height // TILE), max(1, width // TILE)
    medians = [
        part.median() for row in rough.tensor_split(rows, dim=0) for part in row.tensor_split(columns, dim=1)
    ]
    return torch.stack(medians).median()


def spoilt(picture: Tensor, noise: float, *, seed: int = 0) -> Tensor:
    """The picture with white noise of that deviation (of 0..255) added, not clipped: for trying out."""
    generator = torch.Generator().manual_seed(seed)
    return picture + noise / 127.5 * torch.randn(picture.shape, generator=generator, dtype=picture.dtype)
