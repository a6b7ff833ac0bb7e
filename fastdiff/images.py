"""Images on disk: float tensors to PNG and back, grids, film strips, recipes in the metadata, safe reading.

A batch of images is a tensor [B, 3, H, W] in [-1, 1]; a picture is a uint8 array [H, W, 3] (RGB), ready for a file.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import torch

try:
    from PIL import Image, ImageDraw, ImageFont, ImageOps, PngImagePlugin, UnidentifiedImageError
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("pictures need Pillow: pip install 'fastdiff[images]'") from error

from fastdiff import watermark
from fastdiff.files import write_atomic

Picture = npt.NDArray[np.uint8]
Readable = str | os.PathLike[str] | BinaryIO
"""A file's path, or an open binary file, such as io.BytesIO of what was received."""

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
MAX_PIXELS = (
    2**25
)  # 33 million: an 8k photograph; below Pillow's own limit, so that ours is the one that speaks
MAX_BYTES = 2**28
RECIPE_KEY = "fastdiff"  # the PNG text chunk that holds the recipe as JSON
WHITE = (255, 255, 255)
INK = (60, 60, 60)


def to_pictures(images: torch.Tensor) -> Picture:
    """[B, 3, H, W] in [-1, 1], any float dtype and device -> uint8 [B, H, W, 3]. Values outside the range are clipped.

    Raises ValueError for another shape or for NaN or infinity, which would silently become black.
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(
            f"got images of shape {list(images.shape)}; a batch of RGB images [B, 3, H, W] is needed"
        )
    values = images.detach().to("cpu", torch.float32)
    finite = torch.isfinite(values).flatten(1).all(dim=1)
    if not bool(finite.all()):
        bad = [i for i, good in enumerate(finite.tolist()) if not good]
        raise ValueError(
            f"images {bad[:8]} hold NaN or infinity: try more steps, a lower guidance or another sampler"
        )
    pixels = (values.clamp(-1, 1) + 1).mul(127.5).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).contiguous().numpy()


def to_tensor(picture: npt.NDArray[Any]) -> torch.Tensor:
    """uint8 or uint16 [H, W, 3] (or [B, H, W, 3]) -> float32 [3, H, W] (or [B, 3, H, W]) in [-1, 1]."""
    if picture.dtype not in (np.uint8, np.uint16) or picture.ndim not in (3, 4) or picture.shape[-1] != 3:
        raise ValueError(
            f"got {picture.dtype} of shape {list(picture.shape)}; uint8 or uint16 [..., H, W, 3] is needed"
        )
    top = float(np.iinfo(picture.dtype).max)
    scaled = picture.astype(np.float32) * np.float32(2 / top) - 1
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(scaled, -1, -3)))


def columns_for(count: int, *, group: int = 1, aspect: float = 1.0, wide: float = 1.5) -> int:
    """How many columns make `count` cells of `aspect` (width/height) a sheet about `wide` times as wide as high.

    Where it can, the answer is a multiple of `group` (cells that belong together stay in one row) and leaves no gap.
    """

    def cost(columns: int) -> float:
        rows = -(-count // columns)
        off_shape = abs(np.log(columns * aspect / rows / wide))
        return float(off_shape + (rows * columns - count) / columns + (0.4 if columns % group else 0.0))

    return min(range(1, count + 1), key=cost)


def grid(
    pictures: Picture,
    *,
    columns: int | None = None,
    gap: int = 4,
    captions: Sequence[str] | None = None,
    background: tuple[int, int, int] = WHITE,
) -> Picture:
    """uint8 [B, H, W, 3] -> one sheet [H', W', 3], row by row; `captions` (one an image) stand under the images."""
    count, height, width, _ = pictures.shape
    if count == 0:
        raise ValueError("got no images to arrange; at least one is needed")
    if captions is not None and len(captions) != count:
        raise ValueError(f"got {len(captions)} captions for {count} images; one an image is needed")
    columns = min(columns or columns_for(count, aspect=width / height), count)
    rows = -(-count // columns)
    line = caption_height(width) if captions else 0
    size = (columns * (width + gap) + gap, rows * (height + line + gap) + gap)
    sheet = Image.new("RGB", size, background)
    draw = ImageDraw.Draw(sheet)
    for i, picture in enumerate(pictures):
        left = gap + i % columns * (width + gap)
        top = gap + i // columns * (height + line + gap)
        sheet.paste(Image.fromarray(picture), (left, top))
        if captions:
            _caption(draw, captions[i], centre=left + width // 2, top=top + height, height=line, width=width)
    return np.asarray(sheet)


def enlarged(pictures: Picture, factor: int) -> Picture:
    """uint8 [B, H, W, 3] -> [B, factor * H, factor * W, 3], bicubic, for sheets of small pictures."""
    if factor == 1:
        return pictures
    size = (pictures.shape[2] * factor, pictures.shape[1] * factor)
    bigger = [Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC) for picture in pictures]
    return np.stack([np.asarray(picture) for picture in bigger])


def film_strip(trajectory: torch.Tensor, *, captions: Sequence[str] | None = None, gap: int = 2) -> Picture:
    """[S, B, 3, H, W] -> one sheet: a row an image, a column a step; `captions` name the columns, under the last."""
    steps, count = trajectory.shape[:2]
    frames = to_pictures(trajectory.transpose(0, 1).flatten(0, 1))
    if captions is None:
        return grid(frames, columns=steps, gap=gap)
    body = grid(frames[: (count - 1) * steps], columns=steps, gap=gap) if count > 1 else None
    foot = grid(frames[(count - 1) * steps :], columns=steps, gap=gap, captions=captions)
    return foot if body is None else np.concatenate([body[:-gap], foot])


def caption_height(width: int) -> int:
    """Pixels a caption takes under an image of this width."""
    return max(12, min(24, width // 6))


def _caption(draw: ImageDraw.ImageDraw, text: str, *, centre: int, top: int, height: int, width: int) -> None:
    size = max(8, int(height * 0.72))
    while size > 7 and draw.textlength(text, font=ImageFont.load_default(size)) > width:
        size -= 1
    draw.text((centre, top + height // 2 + 1), text, fill=INK, font=ImageFont.load_default(size), anchor="mm")


def read_image(
    path: Readable,
    *,
    max_pixels: int = MAX_PIXELS,
    background: tuple[int, int, int] = WHITE,
) -> torch.Tensor:
    """A PNG, JPEG, WebP or BMP file -> float32 [3, H, W] in [-1, 1].

    The size is checked before anything is decoded, EXIF orientation is applied, transparency is laid over `background`,
    grey and palette images become RGB, 16-bit grey keeps its precision. Of an animation, the first frame.
    Raises OSError if the file cannot be opened and ValueError if it is not an acceptable image.
    """
    with _opened(path, max_pixels=max_pixels) as image:
        try:
            image.load()
            upright = ImageOps.exif_transpose(image)
        except (
            OSError,
            SyntaxError,
            ValueError,
            EOFError,
            MemoryError,
            Image.DecompressionBombError,
        ) as error:
            raise ValueError(f"{path}: damaged or incomplete image ({_first_line(error)})") from error
        return to_tensor(_rgb(upright, background))


def read_recipe(path: Readable) -> dict[str, Any]:
    """The recipe that `write_png` stored in a PNG. Raises ValueError if the file carries none."""
    with _opened(path, max_pixels=MAX_PIXELS, formats=("PNG",)) as image:
        text = image.info.get(RECIPE_KEY)
    if not isinstance(text, str):
        raise ValueError(f"{path}: carries no fastdiff recipe; images written by `fastdiff generate` do")
    try:
        recipe = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: its recipe is not valid JSON ({_first_line(error)})") from error
    if not isinstance(recipe, dict):
        raise ValueError(f"{path}: its recipe is a {type(recipe).__name__}, not a JSON object")
    return recipe


def kind_of(path: Readable) -> tuple[str, int, int]:
    """(format, width, height) of an image file; nothing is decoded. Raises OSError and ValueError as `read_image`."""
    with _opened(path, max_pixels=MAX_PIXELS) as image:
        return (image.format or "", *image.size)


@contextlib.contextmanager
def _opened(path: Readable, *, max_pixels: int, formats: Sequence[str] = FORMATS) -> Iterator[Image.Image]:
    with open(path, "rb") if isinstance(path, (str, os.PathLike)) else contextlib.nullcontext(path) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        if size > MAX_BYTES:
            raise ValueError(
                f"{path}: {size / 2**20:.0f} MiB is more than the {MAX_BYTES // 2**20} MiB that are read"
            )
        try:
            image = Image.open(file, formats=list(formats))
        except Image.DecompressionBombError as error:
            raise ValueError(
                f"{path}: too many pixels ({_first_line(error)}); make it smaller first"
            ) from error
        except UnidentifiedImageError as error:
            raise ValueError(f"{path}: not a readable {', '.join(formats)} image") from error
        except (OSError, SyntaxError, ValueError) as error:
            raise ValueError(f"{path}: damaged or incomplete image ({_first_line(error)})") from error
        width, height = image.size
        if width * height > max_pixels:
            raise ValueError(
                f"{path}: {width}x{height} is more than the {max_pixels / 1e6:.0f} million pixels that are read; "
                "make it smaller first"
            )
        yield image


def _rgb(image: Image.Image, background: tuple[int, int, int]) -> npt.NDArray[Any]:
    """Any Pillow mode -> uint8 [H, W, 3], or uint16 where the file has 16-bit grey."""
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.int64).clip(0, 65535).astype(np.uint16)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.has_transparency_data:
        ground = Image.new("RGBA", image.size, (*background, 255))
        return np.asarray(Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB"))
    return np.asarray(image.convert("RGB"))


def write_png(
    path: str | os.PathLike[str],
    picture: Picture,
    *,
    recipe: dict[str, Any] | None = None,
    overwrite: bool = False,
) -> None:
    """Write uint8 [H, W, 3] as a PNG that appears whole or not at all; `recipe` goes into its metadata as JSON."""
    data = png_bytes(picture, recipe=recipe)
    write_atomic(path, lambda file: file.write(data), overwrite=overwrite)


def png_bytes(picture: Picture, *, recipe: dict[str, Any] | None = None) -> bytes:
    """What `write_png` writes. A recipe whose arguments say watermark is hidden in the pixels too, as a digest."""
    if recipe is not None and watermark.wanted(recipe):
        picture = watermark.embed(picture, watermark.payload_of(recipe))
    info = PngImagePlugin.PngInfo()
    if recipe is not None:
        info.add_text("Software", "fastdiff")
        info.add_text(RECIPE_KEY, json.dumps(recipe, sort_keys=True, allow_nan=False))
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG", pnginfo=info)
    return buffer.getvalue()


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
