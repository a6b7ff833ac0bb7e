"""The shape of a UNet: a frozen, validated description that travels inside the checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class UNetConfig:
    """What a `fastdiff.models.UNet` is made of.

    num_classes: labels 0 .. num_classes - 1; num_classes itself is the null class.
    channels: width of each level, finest first; each level halves height and width.
    blocks: residual blocks of each level, on the way down and again on the way up; the last level has them once.
    embed_dim, time_dim: width of the conditioning vector and of the sinusoidal time features.
    groups: groups of every group norm; divides every width.
    image_channels, image_size: channels of a picture, and the side it was trained at (any multiple of `multiple` runs).
    patch: side of the space-to-depth patches that make the stem's input.
    context_dim: length of the vector, such as a text's embedding, that the network takes beside a label; 0 for none.
    dims: 2 for pictures; 1 for sounds, image_size being the number of samples; 3 for clips of `frames` square frames.
    frames: frames of a clip as trained. rate: samples or frames a second, with which sounds and clips are written.

    ValueError names the field that is wrong, what it was and what it may be.
    """

    num_classes: int
    channels: tuple[int, ...] = (64, 128, 192)
    blocks: tuple[int, ...] = (2, 2, 3)
    embed_dim: int = 192
    time_dim: int = 64
    groups: int = 16
    image_channels: int = 3
    image_size: int = 64
    patch: int = 2
    context_dim: int = 0
    dims: int = 2
    frames: int = 8
    rate: int = 8

    def __post_init__(self) -> None:
        for name, low, high in (
            ("num_classes", 1, 100_000), ("embed_dim", 1, 8192), ("time_dim", 2, 8192), ("groups", 1, 1024),
            ("image_channels", 1, 64), ("image_size", 1, 65536), ("patch", 1, 64),
            ("context_dim", 0, 65536),
            ("dims", 1, 3), ("frames", 1, 4096), ("rate", 1, 384_000),
        ):  # fmt: skip
            _check_int(name, getattr(self, name), low, high)
        for name, high in (("channels", 4096), ("blocks", 64)):
            value = getattr(self, name)
            if not isinstance(value, tuple) or not 1 <= len(value) <= 8:
                raise ValueError(f"UNetConfig.{name} must be a tuple of 1 to 8 integers, got {value!r}")
            for item in value:
                _check_int(name, item, 1, high)
        if len(self.channels) != len(self.blocks):
            raise ValueError(f"UNetConfig.blocks must have {len(self.channels)} entries, got {self.blocks}")
        if any(width % self.groups for width in self.channels):
            raise ValueError(f"UNetConfig.groups must divide each of {self.channels}, got {self.groups}")
        if self.time_dim % 2:
            raise ValueError(f"UNetConfig.time_dim must be even, got {self.time_dim}")
        if self.image_size % self.multiple:
            raise ValueError(
                f"UNetConfig.image_size must be a multiple of {self.multiple}, got {self.image_size}"
            )

        if self.dims == 3 and self.frames % self.multiple:
            raise ValueError(f"UNetConfig.frames must be a multiple of {self.multiple}, got {self.frames}")

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> UNetConfig:
        """From parsed JSON. ValueError for unknown fields, a missing num_classes, and whatever the class refuses."""
        known = [field.name for field in dataclasses.fields(UNetConfig)]
        unknown = sorted(set(data) - set(known))
        if unknown or "num_classes" not in data:
            wrong = f"unknown fields {', '.join(unknown)}" if unknown else "no num_classes"
            raise ValueError(f"the model config has {wrong}: its fields are {', '.join(known)}")
        plain: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in data.items()}
        return UNetConfig(**plain)

    @property
    def sides(self) -> tuple[int, ...]:
        """Those as trained, in a tensor's order: (length,), (height, width) or (frames, height, width)."""
        side = self.image_size
        return {1: (side,), 2: (side, side), 3: (self.frames, side, side)}[self.dims]

    @property
    def multiple(self) -> int:
        """Every side must be a multiple of this."""
        return int(self.patch * 2 ** (len(self.channels) - 1))


def _check_int(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"UNetConfig.{name} must be an integer from {low} to {high}, got {value!r}")
