"""What a UNet is built of, in one, two and three dimensions: convolutions that may wrap around, space-to-depth.

The axes of x: [B, C, L] is a sound, [B, C, H, W] a picture, [B, C, D, H, W] a clip of D frames.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LAYOUTS = {1: torch.contiguous_format, 2: torch.channels_last, 3: torch.channels_last_3d}
"""The memory format in which convolutions of so many dimensions are fastest."""

POINTWISE: dict[int, type[nn.Conv1d] | type[nn.Conv2d] | type[nn.Conv3d]] = {
    1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d,
}  # fmt: skip


class _Wrapping:
    """Padding by 1 at the edges: zeros or, along the axes in `circular`, the opposite edge."""

    circular: frozenset[int]
    weight: Tensor
    bias: Tensor | None
    stride: tuple[int, ...]

    def _wrapped(self, x: Tensor, convolve: Callable[..., Tensor]) -> Tensor:
        axes = range(x.ndim - 3, -1, -1)  # F.pad begins with the last axis
        around = [int(axis in self.circular) for axis in axes for _ in (0, 1)]
        x = F.pad(x, around, mode="circular")
        if not all(around):
            x = F.pad(x, [1 - wide for wide in around])
        return convolve(x, self.weight, self.bias, self.stride)


class Conv3(_Wrapping, nn.Conv1d):
    """A convolution of width 3. x: [B, in_channels, L] -> [B, out_channels, L / stride]."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1) -> None:
        nn.Conv1d.__init__(self, in_channels, out_channels, 3, stride=stride, padding=1)
        self.circular = frozenset()

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return self._wrapped(x, F.conv1d) if self.circular else nn.Conv1d.forward(self, x)


class Conv3x3(_Wrapping, nn.Conv2d):
    """A 3x3 convolution. x: [B, in_channels, H, W] -> [B, out_channels, H / stride, W / stride]."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1) -> None:
        nn.Conv2d.__init__(self, in_channels, out_channels, 3, stride=stride, padding=1)
        self.circular = frozenset()

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return self._wrapped(x, F.conv2d) if self.circular else nn.Conv2d.forward(self, x)


class Conv3x3x3(_Wrapping, nn.Conv3d):
    """A 3x3x3 convolution. x: [B, in_channels, D, H, W] -> [B, out_channels, D / stride, H / stride, W / stride]."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1) -> None:
        nn.Conv3d.__init__(self, in_channels, out_channels, 3, stride=stride, padding=1)
        self.circular = frozenset()

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return self._wrapped(x, F.conv3d) if self.circular else nn.Conv3d.forward(self, x)


CONVOLUTIONS: dict[int, type[Conv3] | type[Conv3x3] | type[Conv3x3x3]] = {1: Conv3, 2: Conv3x3, 3: Conv3x3x3}


def wrap(module: nn.Module, axes: Collection[int]) -> None:
    """Let every convolution inside wrap around along these axes, 0 being the first after the channels."""
    for part in module.modules():
        if isinstance(part, _Wrapping):
            part.circular = frozenset(axes)


def unshuffle(x: Tensor, patch: int) -> Tensor:
    """[B, C, patch*a, patch*b, ...] -> [B, C * patch**dims, a, b, ...], as F.pixel_unshuffle in two dimensions."""
    if x.ndim == 4:
        return F.pixel_unshuffle(x, patch)
    b, c, *sides = x.shape
    dims = len(sides)
    split = x.reshape(b, c, *(n for side in sides for n in (side // patch, patch)))
    places, offsets = range(2, 2 + 2 * dims, 2), range(3, 3 + 2 * dims, 2)
    moved = split.permute(0, 1, *offsets, *places)
    return moved.reshape(b, c * patch**dims, *(side // patch for side in sides))


def shuffle(x: Tensor, patch: int) -> Tensor:
    """The inverse of `unshuffle`, as F.pixel_shuffle in two dimensions."""
    if x.ndim == 4:
        return F.pixel_shuffle(x, patch)
    b, c, *sides = x.shape
    dims = len(sides)
    split = x.reshape(b, c // patch**dims, *[patch] * dims, *sides)
    order = [axis for i in range(dims) for axis in (2 + dims + i, 2 + i)]
    return split.permute(0, 1, *order).reshape(b, c // patch**dims, *(side * patch for side in sides))


def layout(dims: int) -> dict[str, Any]:
    """Keyword arguments of Tensor.to and Module.to for the memory format of so many dimensions."""
    return {"memory_format": LAYOUTS[dims]}
