"""Pictures in memory: what was uploaded, checked and made to fit, and what was made, as PNG bytes."""

from __future__ import annotations

import io
import secrets
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdiff.apps.work import digest
from fastdiff.images import png_bytes, read_image, read_recipe, to_pictures
from fastdiff.web.limits import Limits

SMALLEST = 16  # pixels of a side


class Received(io.BytesIO):
    """An upload, named so in errors."""

    def __str__(self) -> str:
        return "the picture"


@dataclass(frozen=True)
class Kept:
    """A picture kept as a PNG. id: unguessable. seed, prompt: of one that was made. digest: of an uploaded one."""

    png: bytes
    width: int
    height: int
    name: str = "picture"
    seed: int | None = None
    prompt: str | None = None
    digest: str | None = None
    id: str = field(default_factory=lambda: secrets.token_urlsafe(12))

    def tensor(self) -> Tensor:
        """float32 [3, H, W] in [-1, 1]."""
        return read_image(io.BytesIO(self.png))

    def describe(self) -> dict[str, Any]:
        """JSON data, for the page."""
        return {
            "id": self.id, "width": self.width, "height": self.height, "name": self.name, "seed": self.seed,
            "prompt": self.prompt,
        }  # fmt: skip


def kept(picture: Tensor, *, recipe: dict[str, Any] | None = None, **about: Any) -> Kept:
    """float32 [3, H, W] -> a Kept. ValueError if it holds NaN."""
    pixels = to_pictures(picture[None])[0]
    height, width = pixels.shape[:2]
    return Kept(png_bytes(pixels, recipe=recipe), width, height, **about)


def received(data: bytes, *, side: int, limits: Limits) -> Kept:
    """An uploaded PNG, JPEG, WebP or BMP, made smaller where its longer side is more than `side`.

    Raises ValueError in one line for anything that is no acceptable picture.
    """
    picture = read_image(Received(data), max_pixels=limits.upload_pixels)
    height, width = picture.shape[-2:]
    if max(height, width) > side:
        picture = smaller(picture, side / max(height, width))
    if min(picture.shape[-2:]) < SMALLEST:
        raise ValueError(
            f"the picture is {width}x{height}: its shorter side must be at least {SMALLEST} pixels"
            + (f" after its longer one was made {side}" if max(height, width) > side else "")
        )
    result = kept(picture)
    return Kept(result.png, result.width, result.height, digest=digest(result.tensor()))


def smaller(picture: Tensor, scale: float) -> Tensor:
    """A picture scaled down without aliasing, at least one pixel wide and high."""
    size = [max(1, round(side * scale)) for side in picture.shape[-2:]]
    return F.interpolate(picture[None], size, mode="bicubic", antialias=True)[0].clamp(-1, 1)


def mask_of(picture: Kept) -> Tensor:
    """A mask that was uploaded as a grey picture -> float32 [1, H, W], 1 where it is white. ValueError if none is."""
    mask = (picture.tensor().mean(dim=0, keepdim=True) + 1) / 2
    if not bool((mask > 0.5).any()):
        raise ValueError("the mask is empty: paint over what is to be made anew")
    return mask


def recipe_in(data: bytes) -> dict[str, Any] | None:
    """The recipe that a PNG carries, None if it carries none. ValueError for a damaged one."""
    if not data.startswith(b"\x89PNG") or b"fastdiff" not in data[: 2**21]:
        return None
    return read_recipe(Received(data))


def stretched(picture: Tensor, height: int, width: int) -> Tensor:
    """A picture enlarged to that size, for comparing: [3, height, width]."""
    if picture.shape[-2:] == torch.Size((height, width)):
        return picture
    return F.interpolate(picture[None], (height, width), mode="bicubic")[0].clamp(-1, 1)
