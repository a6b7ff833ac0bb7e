"""Clips on disk: float tensors to GIF or MP4 and GIF back, safe reading, recipes in the GIF.

A clip is a tensor [3, D, H, W] of D frames in [-1, 1], shown at `rate` frames a second.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdiff.files import check_writable, write_atomic
from fastdiff.images import Picture, to_pictures, to_tensor

MAX_BYTES = 2**26
MAX_FRAMES = 4096
MAX_PIXELS = 2**27
"""Of all frames together."""


def to_frames(clip: Tensor, *, zoom: int = 1) -> Picture:
    """[3, D, H, W] in [-1, 1] -> uint8 [D, zoom * H, zoom * W, 3]. ValueError for another shape, NaN and infinity."""
    if clip.ndim != 4 or clip.shape[0] != 3:
        raise ValueError(f"got a clip of shape {list(clip.shape)}; [3, frames, height, width] is needed")
    frames = to_pictures(clip.transpose(0, 1))
    return np.ascontiguousarray(frames.repeat(zoom, axis=1).repeat(zoom, axis=2))


def write_gif(
    path: str | os.PathLike[str],
    clip: Tensor,
    *,
    rate: int,
    zoom: int = 1,
    recipe: dict[str, Any] | None = None,
    overwrite: bool = False,
) -> None:
    """Write a clip as a GIF that appears whole or not at all; see `as_gif`."""
    data = as_gif(clip, rate=rate, zoom=zoom, recipe=recipe)
    write_atomic(path, lambda file: file.write(data), overwrite=overwrite)


def as_gif(clip: Tensor, *, rate: int, zoom: int = 1, recipe: dict[str, Any] | None = None) -> bytes:
    """The bytes of a GIF that loops; each frame has its own 256 colours.

    zoom: enlarge by whole pixels. recipe: goes into the file's comment. GIF counts time in hundredths of a second.
    """
    from PIL import Image

    pictures = [Image.fromarray(frame) for frame in to_frames(clip, zoom=zoom)]
    # Without dithering: it would flicker, and flat colours would not stay flat.
    frames = [picture.quantize(256, dither=Image.Dither.NONE) for picture in pictures]
    about = (
        {} if recipe is None else {"comment": json.dumps(recipe, sort_keys=True, allow_nan=False).encode()}
    )
    buffer = io.BytesIO()
    frames[0].save(
        buffer, format="GIF", save_all=True, append_images=frames[1:], duration=_duration(rate), loop=0,
        optimize=False, disposal=1, **about,
    )  # fmt: skip
    return buffer.getvalue()


def read_gif(path: str | os.PathLike[str]) -> tuple[Tensor, int]:
    """A GIF -> (float32 [3, D, H, W] in [-1, 1], frames a second, at least 1).

    Sizes are checked before frames are decoded. Raises OSError if the file cannot be opened, ValueError, in one line,
    if it is no acceptable GIF.
    """
    from PIL import Image, UnidentifiedImageError

    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size > MAX_BYTES:
            raise ValueError(f"{path}: more than the {MAX_BYTES // 2**20} MiB that are read of a GIF")
        try:
            with Image.open(file, formats=["GIF"]) as image:
                count, (width, height) = getattr(image, "n_frames", 1), image.size
                if count > MAX_FRAMES or count * width * height > MAX_PIXELS:
                    raise ValueError(
                        f"{path}: {count} frames of {width}x{height} are too many: shorten it first"
                    )
                duration = float(image.info.get("duration") or 100)
                frames = [_frame(image, i, (width, height)) for i in range(count)]
        except UnidentifiedImageError:
            raise ValueError(f"{path}: not a readable GIF") from None
        except (OSError, EOFError, SyntaxError, IndexError, Image.DecompressionBombError) as error:
            raise ValueError(f"{path}: damaged or incomplete GIF ({error or 'it ends early'})") from None
    return to_tensor(np.stack(frames)).transpose(0, 1).contiguous(), max(1, round(1000 / duration))


def read_recipe(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The recipe that `write_gif` stored. Raises ValueError if the file carries none."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path, formats=["GIF"]) as image:
            recipe = json.loads(image.info.get("comment", b""))
    except UnidentifiedImageError:
        raise ValueError(f"{path}: not a readable GIF") from None
    except (ValueError, RecursionError):
        recipe = None
    if not isinstance(recipe, dict):
        raise ValueError(f"{path}: carries no fastdiff recipe; GIFs written by `fastdiff generate` do")
    return recipe


def write_mp4(
    path: str | os.PathLike[str], clip: Tensor, *, rate: int, zoom: int = 1, overwrite: bool = False
) -> None:
    """Write a clip as an MP4 (H.264) that appears whole or not at all; sides are rounded down to even numbers.

    Raises ModuleNotFoundError where there is no ffmpeg, OSError with ffmpeg's own last line if it fails.
    """
    program = ffmpeg()
    check_writable(path, overwrite=overwrite)
    frames = to_frames(clip, zoom=zoom)
    frames = frames[:, : frames.shape[1] // 2 * 2, : frames.shape[2] // 2 * 2]
    size = f"{frames.shape[2]}x{frames.shape[1]}"
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "clip.mp4"
        command = [
            program, "-y", "-loglevel", "error", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-r", str(rate),
            "-i", "-", "-an", "-c:v", "libx264", "-crf", "16", "-pix_fmt", "yuv420p",
            "-movflags", "+faststart", str(made),
        ]  # fmt: skip
        done = subprocess.run(command, input=frames.tobytes(), capture_output=True, check=False)
        if done.returncode or not made.is_file():
            lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"]
            raise OSError(f"ffmpeg could not write {path}: {lines[-1]}")
        data = made.read_bytes()
    write_atomic(path, lambda file: file.write(data), overwrite=overwrite)


def ffmpeg() -> str:
    """The program's path: that of the machine, else that of imageio-ffmpeg. ModuleNotFoundError where there is none."""
    found = shutil.which("ffmpeg")
    if found is not None:
        return found
    try:
        import imageio_ffmpeg

        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except (ModuleNotFoundError, RuntimeError):
        raise ModuleNotFoundError(
            "MP4 needs ffmpeg: pip install 'fastdiff[video]', install ffmpeg, or write a .gif"
        ) from None


def strip(clips: Tensor) -> Tensor:
    """[B, 3, D, H, W] -> [B * D, 3, H, W], frame after frame, for a sheet of D columns."""
    return torch.flatten(clips.transpose(1, 2), 0, 1)


def _duration(rate: int) -> int:
    """Milliseconds a frame, at least 20: browsers slow shorter ones down."""
    return max(20, round(100 / rate) * 10)


def _frame(image: Any, index: int, size: tuple[int, int]) -> Picture:
    image.seek(index)
    if image.size != size:  # Pillow lets a frame that does not fit enlarge the picture
        raise OSError(f"frame {index} is larger than the first")
    return np.asarray(image.convert("RGB"))
