"""Pictures that applications start from: checked, padded to what a model takes, and cut back afterwards."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastdiff.apps.settings import MAX_SIDE, Settings
from fastdiff.apps.source import Source


def checked(picture: object) -> Tensor:
    """The picture as float32 [3, H, W] in [-1, 1] on the CPU, grey [1, H, W] ones with three channels.

    Raises TypeError or ValueError for anything but such a picture, finite, of at most MAX_SIDE pixels a side.
    """
    if not isinstance(picture, Tensor) or not picture.is_floating_point():
        kind = f"{picture.dtype} tensor" if isinstance(picture, Tensor) else type(picture).__name__
        raise TypeError(
            f"the picture is a {kind}: pass a float tensor [3, H, W] in [-1, 1], as images.read_image does"
        )
    values = picture.detach().to("cpu", torch.float32)
    if values.ndim != 3 or values.shape[0] not in (1, 3) or not values.numel():
        raise ValueError(f"the picture has shape {list(values.shape)}: [3, H, W] is needed")
    check_sides(values.shape[-1], values.shape[-2])
    if not bool(torch.isfinite(values).all()):
        raise ValueError("the picture holds NaN or infinity")
    if float(values.abs().max()) > 1.001:
        raise ValueError(
            f"the picture's values reach {float(values.abs().max()):.4g}: scale them to lie in [-1, 1]"
        )
    return values.expand(3, -1, -1).clamp(-1, 1).contiguous()


def check_sides(width: int, height: int) -> None:
    """ValueError for pictures of more than MAX_SIDE pixels a side."""
    if max(width, height) > MAX_SIDE:
        raise ValueError(
            f"the picture would be {width}x{height}: at most {MAX_SIDE} pixels a side are worked on; make it smaller"
        )


def scale_for(how: Settings, source: Source, prompts: tuple[str | None, ...]) -> float:
    """The scale of guidance: none where there is nothing to guide to, which would cost twice as much for nothing."""
    scale = how.scale(source)
    return 1.0 if all(prompt is None for prompt in prompts) and how.negative is None else scale


@dataclass(frozen=True)
class Frame:
    """The size a model works at for a picture of any size: the next multiple, filled by reflection right and below.

    width, height: of the picture. multiple: of the sides.
    """

    width: int
    height: int
    multiple: int

    @classmethod
    def of(cls, picture: Tensor, source: Source) -> Frame:
        """The frame of a picture [..., H, W] for a model."""
        return cls(picture.shape[-1], picture.shape[-2], source.multiple)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the frame."""
        up = self.multiple
        return -(-self.width // up) * up, -(-self.height // up) * up

    def pad(self, picture: Tensor) -> Tensor:
        """[..., height, width] -> the size of the frame."""
        right, below = self.size[0] - self.width, self.size[1] - self.height
        return reflected(picture, bottom=below, right=right)

    def crop(self, pictures: Tensor) -> Tensor:
        """The size of the frame -> [..., height, width]."""
        return pictures[..., : self.height, : self.width]


def reflected(picture: Tensor, *, left: int = 0, top: int = 0, right: int = 0, bottom: int = 0) -> Tensor:
    """[..., H, W] made larger on its sides by reflection, however small it is."""
    if not (left or top or right or bottom):
        return picture
    widths = [(0, 0)] * (picture.ndim - 2) + [(top, bottom), (left, right)]
    # numpy reflects again and again where a picture is smaller than its margin; torch refuses that
    return torch.from_numpy(np.pad(picture.numpy(), widths, mode="reflect"))


def many(images: slice, count: int) -> int:
    """How many of `count` images a slice holds."""
    return len(range(*images.indices(count)))
