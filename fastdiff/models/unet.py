"""A small class-conditional, fully convolutional UNet.

No attention and no layer that knows the image size: it takes any height and width that are multiples of
`UNetConfig.multiple`. `UNet.tiled` pads every 3x3 convolution circularly, which makes the network commute with
circular shifts by `multiple` pixels, so what it samples tiles seamlessly. With `UNetConfig.dims` 1 or 3 the same
network works on sounds [B, C, L] and on clips [B, C, D, H, W].

Sources: DDPM (Ho et al. 2020, arXiv:2006.11239) for the layout, Dhariwal & Nichol 2021 (arXiv:2105.05233) for
scale-shift conditioning, Ho & Salimans 2022 (arXiv:2207.12598) for the null class.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdiff.models.config import UNetConfig
from fastdiff.models.layers import CONVOLUTIONS, POINTWISE, shuffle, unshuffle, wrap
from fastdiff.nn import GroupNormSiLU

AXES = {1: ("length",), 2: ("height", "width"), 3: ("depth", "height", "width")}


class ResBlock(nn.Module):
    """norm-SiLU-conv, norm-modulate-SiLU-conv, plus the (projected) input."""

    def __init__(
        self, in_channels: int, out_channels: int, embed_dim: int, groups: int, *, dims: int = 2
    ) -> None:
        super().__init__()
        conv, pointwise = CONVOLUTIONS[dims], POINTWISE[dims]
        self.norm1 = GroupNormSiLU(groups, in_channels)
        self.conv1 = conv(in_channels, out_channels)
        self.emb = nn.Linear(embed_dim, 2 * out_channels)
        self.norm2 = GroupNormSiLU(groups, out_channels)
        self.conv2 = conv(out_channels, out_channels)
        self.skip = pointwise(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()
        _zero(self.conv2)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """x: [B, in_channels, ...], emb: [B, embed_dim] -> [B, out_channels, ...]."""
        h = self.conv1(self.norm1(x))
        scale, shift = self.emb(emb).chunk(2, dim=1)
        h = self.conv2(self.norm2(h, scale=scale, shift=shift))
        residual: Tensor = self.skip(x) + h
        return residual


def time_features(t: Tensor, dim: int) -> Tensor:
    """Sinusoidal features float32 [B, dim] of the training index t: [B], frequencies from 1 down to 1/10000."""
    half = dim // 2
    exponent = torch.arange(half, dtype=torch.float32, device=t.device) / half
    angle = t.float()[:, None] * torch.exp(-math.log(10000.0) * exponent)
    return torch.cat([angle.cos(), angle.sin()], dim=1)


class UNet(nn.Module):
    """model(x, t, label=...) -> the network's prediction, in x's shape."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        widths, emb = config.channels, config.embed_dim
        pixels = config.image_channels * config.patch**config.dims
        conv, pointwise = CONVOLUTIONS[config.dims], POINTWISE[config.dims]
        self.label = nn.Embedding(config.num_classes + 1, emb)
        self.time = nn.Sequential(nn.Linear(config.time_dim, emb), nn.SiLU(), nn.Linear(emb, emb))
        self.stem = conv(pixels, widths[0])
        self.down, self.shrink = nn.ModuleList(), nn.ModuleList()
        self.up, self.grow = nn.ModuleList(), nn.ModuleList()
        for width, deeper, count in zip(widths[:-1], widths[1:], config.blocks[:-1]):
            self.down.append(_blocks(width, width, count, config))
            self.shrink.append(conv(width, deeper, stride=2))
        self.middle = _blocks(widths[-1], widths[-1], config.blocks[-1], config)
        for width, deeper, count in zip(widths[:-1], widths[1:], config.blocks[:-1]):
            self.grow.append(pointwise(deeper, width, 1))
            self.up.append(_blocks(2 * width, width, count, config))
        self.norm = GroupNormSiLU(config.groups, widths[0])
        self.head = conv(widths[0], pixels)
        _zero(self.head)
        if config.context_dim:  # no bias: zeros, as nothing said, change nothing
            self.context = nn.Linear(config.context_dim, emb, bias=False)

    def forward(
        self, x: Tensor, t: Tensor, *, label: Tensor | None = None, context: Tensor | None = None
    ) -> Tensor:
        """x: [B, image_channels, H, W], or as many axes as config.dims; t: float [B], the training index; label:
        int64 [B], or None for the null class, or float [B, num_classes + 1], weights of classes whose embeddings are
        mixed (the null class last); context: float [B, context_dim], or None, which is as zeros, for nothing said.
        Returns what has x's shape.

        Raises ValueError if the size is not a multiple of `config.multiple` or the shapes do not fit together.
        """
        self._check(x, t, label, context)
        if label is None:
            label = torch.full((x.shape[0],), self.config.num_classes, device=x.device)
        features = time_features(t, self.config.time_dim).to(self.stem.weight.dtype)
        named = self._named(label)
        if context is not None:
            named = named + self.context(context.to(self.context.weight.dtype))
        emb = F.silu(self.time(features) + named)
        h = self.stem(unshuffle(x, self.config.patch))
        skips: list[Tensor] = []
        for stage, shrink in zip(self.down, self.shrink):
            h = _apply(stage, h, emb)
            skips.append(h)
            h = shrink(h)
        h = _apply(self.middle, h, emb)
        for stage, grow in zip(reversed(self.up), reversed(self.grow)):
            h = F.interpolate(grow(h), scale_factor=2.0, mode="nearest")
            h = _apply(stage, torch.cat([h, skips.pop()], dim=1), emb)
        return shuffle(self.head(self.norm(h)), self.config.patch)

    def _named(self, label: Tensor) -> Tensor:
        return (
            label.to(self.label.weight.dtype) @ self.label.weight
            if label.is_floating_point()
            else self.label(label)
        )

    def tiled(self, tiled: bool = True, *, axes: Collection[int] | None = None) -> UNet:
        """A model on the same weights whose pictures wrap around at their edges.

        axes: those that wrap, 0 being the first after the channels (time, in sounds and clips); None: all of them.
        A copy rather than a switch, so that threads that share a model do not change each other's padding.
        """
        twin = copy.deepcopy(self, {id(p): p for p in self.parameters()})
        wrap(twin, (range(self.config.dims) if axes is None else axes) if tiled else ())
        return twin

    def _check(self, x: Tensor, t: Tensor, label: Tensor | None, context: Tensor | None) -> None:
        channels, multiple, names = self.config.image_channels, self.config.multiple, AXES[self.config.dims]
        if x.ndim != 2 + self.config.dims or x.shape[1] != channels:
            raise ValueError(
                f"x must be [B, {channels}, {', '.join(n[0].upper() for n in names)}], got {list(x.shape)}"
            )
        if any(not side or side % multiple for side in x.shape[2:]):
            raise ValueError(
                f"{' and '.join(names)} must be multiples of {multiple}, got {'x'.join(map(str, x.shape[2:]))}: "
                "round them up, then crop what comes out"
            )
        mixed = label is not None and label.is_floating_point()
        classes, width = self.config.num_classes + 1, self.config.context_dim
        if context is not None and not width:
            raise ValueError("this network takes no context: it was made with context_dim 0")
        for name, value, rest in (
            ("t", t, ()),
            ("label", label, (classes,) * mixed),
            ("context", context, (width,)),
        ):
            if value is not None and value.shape != (x.shape[0], *rest):
                raise ValueError(
                    f"{name} must be {[x.shape[0], *rest]}, one for each sample, got {list(value.shape)}"
                )


def _blocks(first: int, width: int, count: int, config: UNetConfig) -> nn.ModuleList:
    widths = [first] + [width] * (count - 1)
    return nn.ModuleList(
        ResBlock(w, width, config.embed_dim, config.groups, dims=config.dims) for w in widths
    )


def _zero(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


def _apply(blocks: nn.Module, h: Tensor, emb: Tensor) -> Tensor:
    assert isinstance(blocks, nn.ModuleList)
    for block in blocks:
        h = block(h, emb)
    return h
