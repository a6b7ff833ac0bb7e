"""Deterministic corruptions D(x0, t) of cold diffusion (Bansal et al. 2022, arXiv:2208.09392): blur and pixelation.

D(x0, 0) is x0 itself, D(x0, T) one colour, the picture's mean. Both act on each axis alone, as a matrix [n, n], so they
are linear, take pictures [B, C, H, W] as well as sounds [B, C, L] and clips [B, C, D, H, W], and any real t.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastdiff.choices import unknown

MAX_T = 100_000
FINEST = 0.5
"""Deviation, in pixels, of the blur at t = 1."""


@dataclass(frozen=True)
class Corruption:
    """x_t = D(x0, t) + jitter * t/T * eps.

    name: "blur" or "pixelate". T: the number of severities 1 .. T.
    jitter: deviation of a little Gaussian noise eps at t = T, without which all pictures of one mean colour would begin
    alike; 0 leaves the corruption deterministic.
    """

    name: str
    T: int = 50
    jitter: float = 0.0

    def __post_init__(self) -> None:
        if self.name not in MATRICES:
            raise unknown("corruption", self.name, MATRICES)
        if isinstance(self.T, bool) or not isinstance(self.T, int) or not 2 <= self.T <= MAX_T:
            raise ValueError(f"corruption T must be an integer from 2 to {MAX_T}, got {self.T!r}")
        number = isinstance(self.jitter, (int, float)) and not isinstance(self.jitter, bool)
        if not number or not 0 <= self.jitter <= 10:
            raise ValueError(f"corruption jitter must be a number from 0 to 10, got {self.jitter!r}")

    @staticmethod
    def of(options: Mapping[str, Any]) -> Corruption:
        """From {"name": ..., option: value}. ValueError for anything else."""
        try:
            return Corruption(**options)
        except TypeError as error:
            raise ValueError(
                f"corruption {options.get('name')} does not take these options: {error}"
            ) from None

    def __call__(self, x0: Tensor, t: Tensor) -> Tensor:
        """D(x0, t): x0 float [B, C, ...], t [B] from 0 to T -> like x0."""
        severity = t.to(x0.device, torch.float32)
        longest = max(x0.shape[2:])
        out = x0
        for axis in range(2, x0.ndim):
            matrix = MATRICES[self.name](x0.shape[axis], longest, severity, self.T).to(x0.dtype)
            moved = out.movedim(axis, -1)
            flat = moved.reshape(len(x0), -1, moved.shape[-1]) @ matrix.transpose(1, 2)
            out = flat.reshape(moved.shape).movedim(-1, axis)
        return out.contiguous()


def _blur(n: int, longest: int, t: Tensor, T: int) -> Tensor:
    """Gaussian blur with mirrored edges, float32 [B, n, n]; its deviation rises geometrically from FINEST at t = 1 to
    the longest side at t = T, where no more than the mean is left (the heat equation: Rissanen et al. 2022,
    arXiv:2206.13397, appendix A)."""
    basis, frequency = (part.to(t.device) for part in _cosines(n))
    rise = math.log(longest / FINEST) / (T - 1)
    sigma = torch.where(t < 1, FINEST * t, FINEST * torch.exp(rise * (t - 1)))
    decay = torch.exp(-0.5 * (sigma[:, None] * frequency) ** 2)
    decay = torch.where((t >= T)[:, None] & (frequency > 0), torch.zeros_like(decay), decay)
    return torch.einsum("ki,bk,kj->bij", basis, decay, basis)


@functools.lru_cache(maxsize=16)
def _cosines(n: int) -> tuple[Tensor, Tensor]:
    """The orthonormal cosine basis [n, n], a frequency a row, and those frequencies in radians a pixel."""
    frequency = math.pi * torch.arange(n, dtype=torch.float64) / n
    basis = torch.cos(frequency[:, None] * (torch.arange(n, dtype=torch.float64) + 0.5)) * math.sqrt(2 / n)
    basis[0] /= math.sqrt(2)
    return basis.float(), frequency.float()


def _pixelate(n: int, longest: int, t: Tensor, T: int) -> Tensor:
    """Means over blocks of 2^j pixels, float32 [B, n, n]; j rises in proportion to t until one block holds the longest
    side, and between two whole j the matrices are blended."""
    halvings = math.ceil(math.log2(longest)) if longest > 1 else 0
    stack = _blocks(n, halvings).to(t.device)
    place = (t / T * halvings).clamp(0, halvings)
    below = place.floor().long().clamp(max=max(halvings - 1, 0))
    share = (place - below)[:, None, None]
    return stack[below] * (1 - share) + stack[(below + 1).clamp(max=halvings)] * share


@functools.lru_cache(maxsize=16)
def _blocks(n: int, halvings: int) -> Tensor:
    """The matrices of block means for blocks of 1, 2, 4, ... pixels: float32 [halvings + 1, n, n]."""
    made = []
    for j in range(halvings + 1):
        block = torch.arange(n) >> j
        same = (block[:, None] == block).float()
        made.append(same / same.sum(1, keepdim=True))
    return torch.stack(made)


MATRICES = {"blur": _blur, "pixelate": _pixelate}
