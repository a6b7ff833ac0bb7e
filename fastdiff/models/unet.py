"""A small class-conditional, fully convolutional UNet.

No attention and no layer that knows the image size: it takes any height and width that are multiples of
`UNetConfig.multiple`. `UNet.tiled` pads every 3x3 convolution circularly, which makes the network commute with
circular shifts by `multiple` pixels, so what it samples tiles seamlessly.

Sources: DDPM (Ho et al. 2020, arXiv:2006.11239) for the layout, Dhariwal & Nichol 2021 (arXiv:2105.05233) for
scale-shift conditioning, Ho & Salimans 2022 (arXiv:2207.12598) for the null class.
"""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdiff.models.config import UNetConfig
from fastdiff.nn import GroupNormSiLU


class Conv3x3(nn.Conv2d):
    """A 3x3 convolution with padding 1: zeros or, when `circular` is set, the opposite edge."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1) -> None:
        super().__init__(in_channels, out_channels, 3, stride=stride, padding=1)
        self.circular = False

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, in_channels, H, W] -> [B, out_channels, H / stride, W / stride]."""
        if not self.circular:
            return super().forward(x)
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="circular"), self.weight, self.bias, self.stride)


class ResBlock(nn.Module):
    """norm-SiLU-conv, norm-modulate-SiLU-conv, plus the (projected) input."""

    def __init__(self, in_channels: int, out_channels: int, embed_dim: int, groups: int) -> None:
        super().__init__()
        self.norm1 = GroupNormSiLU(groups, in_channels)
        self.conv1 = Conv3x3(in_channels, out_channels)
        self.emb = nn.Linear(embed_dim, 2 * out_channels)
        self.norm2 = GroupNormSiLU(groups, out_channels)
        self.conv2 = Conv3x3(out_channels, out_channels)
        self.skip = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()
        _zero(self.conv2)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """x: [B, in_channels, H, W], emb: [B, embed_dim] -> [B, out_channels, H, W]."""
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
        pixels = config.image_channels * config.patch**2
        self.label = nn.Embedding(config.num_classes + 1, emb)
        self.time = nn.Sequential(nn.Linear(config.time_dim, emb), nn.SiLU(), nn.Linear(emb, emb))
        self.stem = Conv3x3(pixels, widths[0])
        self.down, self.shrink = nn.ModuleList(), nn.ModuleList()
        self.up, self.grow = nn.ModuleList(), nn.ModuleList()
        for width, deeper, count in zip(widths[:-1], widths[1:], config.blocks[:-1]):
            self.down.append(_blocks(width, width, count, config))
            self.shrink.append(Conv3x3(width, deeper, stride=2))
        self.middle = _blocks(widths[-1], widths[-1], config.blocks[-1], config)
        for width, deeper, count in zip(widths[:-1], widths[1:], config.blocks[:-1]):
            self.grow.append(nn.Conv2d(deeper, width, 1))
            self.up.append(_blocks(2 * width, width, count, config))
        self.norm = GroupNormSiLU(config.groups, widths[0])
        self.head = Conv3x3(widths[0], pixels)
        _zero(self.head)

    def forward(self, x: Tensor, t: Tensor, *, label: Tensor | None = None) -> Tensor:
        """x: [B, image_channels, H, W]; t: float [B], the training index; label: int64 [B], or None for the null class.

        Raises ValueError if the size is not a multiple of `config.multiple` or the shapes do not fit together.
        """
        self._check(x, t, label)
        if label is None:
            label = torch.full((x.shape[0],), self.config.num_classes, device=x.device)
        features = time_features(t, self.config.time_dim).to(self.stem.weight.dtype)
        emb = F.silu(self.time(features) + self.label(label))
        h = self.stem(F.pixel_unshuffle(x, self.config.patch))
        skips: list[Tensor] = []
        for stage, shrink in zip(self.down, self.shrink):
            h = _apply(stage, h, emb)
            skips.append(h)
            h = shrink(h)
        h = _apply(self.middle, h, emb)
        for stage, grow in zip(reversed(self.up), reversed(self.grow)):
            h = F.interpolate(grow(h), scale_factor=2.0, mode="nearest")
            h = _apply(stage, torch.cat([h, skips.pop()], dim=1), emb)
        return F.pixel_shuffle(self.head(self.norm(h)), self.config.patch)

    def tiled(self, tiled: bool = True) -> UNet:
        """A model on the same weights whose pictures wrap around at their edges.

        A copy rather than a switch, so that threads that share a model do not change each other's padding.
        """
        twin = copy.deepcopy(self, {id(p): p for p in self.parameters()})
        for module in twin.modules():
            if isinstance(module, Conv3x3):
                module.circular = tiled
        return twin

    def _check(self, x: Tensor, t: Tensor, label: Tensor | None) -> None:
        channels, multiple = self.config.image_channels, self.config.multiple
        if x.ndim != 4 or x.shape[1] != channels:
            raise ValueError(f"x must be [B, {channels}, H, W], got {list(x.shape)}")
        if x.shape[2] % multiple or x.shape[3] % multiple or not x.shape[2] or not x.shape[3]:
            raise ValueError(
                f"height and width must be multiples of {multiple}, got {x.shape[2]}x{x.shape[3]}: "
                "round them up, then crop the pictures"
            )
        for name, value in (("t", t), ("label", label)):
            if value is not None and value.shape != (x.shape[0],):
                raise ValueError(
                    f"{name} must be [{x.shape[0]}], one for each sample, got {list(value.shape)}"
                )


def _blocks(first: int, width: int, count: int, config: UNetConfig) -> nn.ModuleList:
    widths = [first] + [width] * (count - 1)
    return nn.ModuleList(ResBlock(w, width, config.embed_dim, config.groups) for w in widths)


def _zero(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


def _apply(blocks: nn.Module, h: Tensor, emb: Tensor) -> Tensor:
    assert isinstance(blocks, nn.ModuleList)
    for block in blocks:
        h = block(h, emb)
    return h
