"""Large pictures by overlapping windows: in each step, the model sees windows of its own size; what it says is blended.

Blending the outputs in every step, rather than finished pictures once, makes neighbours agree while they come about
(MultiDiffusion, Bar-Tal et al. 2023, arXiv:2302.08113, equation 3). Memory beyond the picture itself is that of a few
windows.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


def starts(side: int, window: int, overlap: int, *, wrap: bool) -> list[int]:
    """Where windows begin along a side: evenly, overlapping by `overlap` or more, the last one ending at the edge, or
    going on at the other edge where the picture wraps around."""
    if window >= side:  # alone it would have a seam where the picture's edges meet: a second one covers it
        return [0, side // 2] if wrap and overlap and side > 1 else [0]
    stride = window - overlap
    if wrap:
        count = -(-side // stride)
        return [i * side // count for i in range(count)]
    count = -(-(side - window) // stride) + 1
    return [round(i * (side - window) / (count - 1)) for i in range(count)]


def ramp(window: int, overlap: int) -> Tensor:
    """float32 [window]: the weight of a window along a side, rising over `overlap` from its edges, never 0."""
    distance = torch.arange(window, dtype=torch.float32)
    distance = torch.minimum(distance, distance.flip(0)) + 0.5
    return (distance / max(overlap, 0.5)).clamp(max=1.0)


@dataclass(eq=False)
class Windowed:
    """A model of large x that calls `model` on windows of it and blends what they say: a weighted mean of outputs.

    model: as `fastdiff.sample` calls it. window: (height, width) in x, at most x's own. overlap: of neighbours, in x.
    wrap: the picture's edges meet. at_once: windows in one call of the model.
    Conditioning, entered through dicts, lists and tuples: tensors with x's batch length go with each image's windows.
    """

    model: Callable[..., Tensor]
    window: tuple[int, int]
    overlap: int
    wrap: bool = False
    at_once: int = 4
    _weights: dict[tuple[int, int, torch.device], Tensor] = field(default_factory=dict, repr=False)

    def __call__(self, x: Tensor, t: Tensor, **conditioning: Any) -> Tensor:
        """The model's output for x: [B, C, H, W]."""
        height, width = x.shape[-2:]
        rows, columns = self._indices(height, 0, x.device), self._indices(width, 1, x.device)
        weight = self._weight(len(rows[0]), len(columns[0]), x.device)
        total = torch.zeros_like(x)
        share = torch.zeros(height, width, device=x.device)
        places = list(itertools.product(rows, columns))
        for first in range(0, len(places), self.at_once):
            group = places[first : first + self.at_once]
            windows = torch.cat([x[..., row[:, None], column] for row, column in group])
            output = self.model(windows, t.repeat(len(group)), **_repeated(conditioning, len(x), len(group)))
            for (row, column), part in zip(group, output.split(len(x))):
                total[..., row[:, None], column] += part * weight.to(part.dtype)
                share[row[:, None], column] += weight
        return total.div_(share.to(total.dtype))

    def _indices(self, side: int, axis: int, device: torch.device) -> list[Tensor]:
        window = min(self.window[axis], side)
        places = starts(side, window, min(self.overlap, window - 1), wrap=self.wrap)
        return [torch.arange(place, place + window, device=device) % side for place in places]

    def _weight(self, height: int, width: int, device: torch.device) -> Tensor:
        key = (height, width, device)
        if key not in self._weights:
            sides = [ramp(side, min(self.overlap, side - 1)) for side in (height, width)]
            self._weights[key] = torch.outer(*sides).to(device)
        return self._weights[key]


def _repeated(value: Any, batch: int, times: int) -> Any:
    if isinstance(value, Tensor):
        same = value.dim() > 0 and len(value) == batch
        return value.repeat(times, *[1] * (value.dim() - 1)) if same else value
    if isinstance(value, Mapping):
        return {name: _repeated(item, batch, times) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_repeated(item, batch, times) for item in value)
    return value
