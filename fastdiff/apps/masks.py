"""Masks of what is to be made anew: checked, softened, brought to a model's resolution."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_FEATHER = 256


def checked_mask(mask: object, picture: Tensor) -> Tensor:
    """The mask as float32 [1, H, W] on the CPU. mask: [H, W] or [1, H, W], float from 0 to 1 or bool.

    Raises TypeError or ValueError for another shape than the picture's [3, H, W], for other values, and for a mask that
    is 0 everywhere.
    """
    if not isinstance(mask, Tensor):
        raise TypeError(f"the mask is a {type(mask).__name__}: pass a tensor [H, W], 1 where to repaint")
    values = mask.detach().to("cpu", torch.float32)
    values = values[None] if values.ndim == 2 else values
    if values.ndim != 3 or values.shape[0] != 1:
        raise ValueError(f"the mask has shape {list(mask.shape)}: [H, W] or [1, H, W] is needed")
    if values.shape[-2:] != picture.shape[-2:]:
        raise ValueError(
            f"the mask is {values.shape[-1]}x{values.shape[-2]} and the picture "
            f"{picture.shape[-1]}x{picture.shape[-2]}: they must be of one size"
        )
    if not bool(((values >= 0) & (values <= 1)).all()):
        raise ValueError("the mask's values must lie between 0, keep, and 1, repaint")
    if not bool(values.any()):
        raise ValueError("the mask is empty: mark what is to be repainted")
    return values


def feathered(mask: Tensor, pixels: int) -> Tensor:
    """The mask with edges that fall off over so many pixels outside it: what it marks stays marked. [1, H, W]."""
    soft, grown = mask, (mask > 0).float()
    for step in range(1, pixels + 1):
        grown = F.max_pool2d(grown, 3, stride=1, padding=1)
        soft = torch.maximum(soft, grown * (1 - step / (pixels + 1)))
    return soft


def shrunk(mask: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The mask at the resolution of x, [..., h, w]: 1 wherever a pixel under it is to be repainted at all."""
    return F.adaptive_max_pool2d((mask > 0).float(), shape[-2:])
