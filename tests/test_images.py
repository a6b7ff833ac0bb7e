"""Image files: conversion, arrangement, recipes, safe reading, files that appear whole or not at all."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastdiff import files, images


def noise_image(height: int = 6, width: int = 8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save(path: Path, picture: np.ndarray, mode: str | None = None, **options: object) -> Path:
    image = Image.fromarray(picture)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def test_every_byte_survives_the_round_trip() -> None:
    every = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    back = images.to_pictures(images.to_tensor(every)[None])[0]
    assert np.array_equal(back, every)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_range_is_clipped_and_every_dtype_taken(dtype: torch.dtype) -> None:
    batch = torch.tensor([-5.0, -1.0, 0.0, 1.0, 5.0], dtype=dtype).expand(1, 3, 2, 5)
    assert images.to_pictures(batch)[0, 0, :, 0].tolist() == [0, 0, 128, 255, 255]


def test_nan_is_an_error_that_names_the_image() -> None:
    batch = torch.zeros(3, 3, 2, 2)
    batch[1, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"images \[1\] hold NaN"):
        images.to_pictures(batch)


@pytest.mark.parametrize("shape", [(3, 4, 4), (1, 4, 4, 4), (2, 1, 4, 4)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="RGB"):
        images.to_pictures(torch.zeros(shape))


def test_grid_places_every_image() -> None:
    pictures = np.stack([np.full((4, 6, 3), i * 40, np.uint8) for i in range(5)])
    sheet = images.grid(pictures, columns=2, gap=1)
    assert sheet.shape == (3 * 5 + 1, 2 * 7 + 1, 3)
    for i in range(5):
        top, left = 1 + i // 2 * 5, 1 + i % 2 * 7
        assert (sheet[top : top + 4, left : left + 6] == i * 40).all()


def test_captions_leave_the_images_alone_and_must_match() -> None:
    pictures = np.zeros((2, 32, 32, 3), np.uint8)
    sheet = images.grid(pictures, columns=2, gap=2, captions=["herringbone", "cat"])
    assert (sheet[2:34, 2:34] == 0).all()
    assert (sheet[34:, :] < 200).any(), "captions are drawn"
    with pytest.raises(ValueError, match="2 images"):
        images.grid(pictures, captions=["one"])


@pytest.mark.parametrize(
    ("count", "group"), [(4, 1), (16, 1), (24, 2), (24, 1), (12, 1), (1, 1), (7, 1), (39, 3)]
)
def test_columns_are_tidy(count: int, group: int) -> None:
    columns = images.columns_for(count, group=group)
    rows = -(-count // columns)
    assert 1 <= columns <= count and rows * columns - count < columns
    if count in (4, 16, 24):
        assert rows * columns == count and columns % group == 0


def test_film_strip_has_a_row_an_image_and_a_column_a_step() -> None:
    trajectory = torch.linspace(-1, 1, 6).reshape(3, 2, 1, 1, 1).expand(3, 2, 3, 4, 4)
    strip = images.film_strip(trajectory, gap=2, captions=["a", "b", "c"])
    assert strip.shape == (2 * 6 + 2 + images.caption_height(4), 3 * 6 + 2, 3)
    expected = images.to_pictures(trajectory.flatten(0, 1))[:, 0, 0, 0].reshape(3, 2)
    for step in range(3):
        for image in range(2):
            assert strip[2 + 6 * image, 2 + 6 * step, 0] == expected[step, image]


def test_recipe_survives_and_the_pixels_too(tmp_path: Path) -> None:
    recipe = {"label": "brick", "seed": 3, "sigmas": [1.5, 0.1], "note": "größe"}
    images.write_png(tmp_path / "a.png", noise_image(), recipe=recipe)
    assert images.read_recipe(tmp_path / "a.png") == recipe
    assert torch.equal(images.read_image(tmp_path / "a.png"), images.to_tensor(noise_image()))


@pytest.mark.parametrize("text", [None, "{", "[1]", "[" * 100_000])
def test_bad_recipes_are_one_clear_error(tmp_path: Path, text: str | None) -> None:
    info = images.PngImagePlugin.PngInfo()
    if text is not None:
        info.add_text(images.RECIPE_KEY, text)
    Image.fromarray(noise_image()).save(tmp_path / "a.png", pnginfo=info)
    with pytest.raises(ValueError, match="recipe"):
        images.read_recipe(tmp_path / "a.png")


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1", "RGB"])
def test_png_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    grey = np.repeat(np.linspace(0, 255, 48).astype(np.uint8).reshape(6, 8, 1), 3, axis=2)
    path = save(tmp_path / "a.png", grey, mode)
    expected = images.to_tensor(np.asarray(Image.open(path).convert("RGB")))
    assert torch.equal(images.read_image(path), expected)


def test_alpha_is_laid_over_the_background(tmp_path: Path) -> None:
    clear = np.zeros((4, 4, 4), np.uint8)
    path = save(tmp_path / "a.png", clear)
    assert (images.read_image(path) == 1).all()
    assert (images.read_image(path, background=(0, 0, 0)) == -1).all()


def test_sixteen_bit_grey_keeps_its_precision(tmp_path: Path) -> None:
    ramp = np.arange(0, 65536, 1024, dtype=np.uint16).reshape(8, 8)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    got = images.read_image(tmp_path / "a.png")
    assert torch.allclose(got[0], torch.from_numpy(ramp / 65535 * 2 - 1).float(), atol=1e-6)
    assert len(got[0].unique()) == 64


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = np.zeros((16, 32, 3), np.uint8)
    picture[:8, :8] = 255
    path = save(tmp_path / "a.jpg", picture, exif=exif, quality=100)
    got = images.read_image(path)
    assert got.shape == ((3, 16, 32) if orientation < 5 else (3, 32, 16))
    corner = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0), 5: (0, 0), 6: (0, -1), 7: (-1, -1), 8: (-1, 0)}[
        orientation
    ]
    assert got[0][corner] > 0.9


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp"])
def test_allowed_formats(tmp_path: Path, suffix: str) -> None:
    assert images.read_image(save(tmp_path / f"a.{suffix}", noise_image())).shape == (3, 6, 8)


@pytest.mark.parametrize("suffix", ["tiff", "gif", "ppm", "ico"])
def test_other_formats_are_refused_whatever_their_name(tmp_path: Path, suffix: str) -> None:
    path = save(tmp_path / f"a.{suffix}", noise_image())
    path.rename(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"not a readable PNG, JPEG, WEBP, BMP image"):
        images.read_image(tmp_path / "a.png")


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [6_000, 20_000, 60_000])
def test_huge_images_are_refused_before_decoding(tmp_path: Path, side: int) -> None:
    (tmp_path / "bomb.png").write_bytes(png_header(side, side))
    with pytest.raises(ValueError, match="pixels"):
        images.read_image(tmp_path / "bomb.png")


def test_truncated_and_damaged_files_are_one_line_errors(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(noise_image(64, 64)).save(buffer, format="PNG")
    whole = buffer.getvalue()
    rng = np.random.default_rng(0)
    for length in [0, 1, 8, 20, 40, 60, len(whole) // 2, len(whole) - 200]:
        (tmp_path / "a.png").write_bytes(whole[:length])
        with pytest.raises(ValueError) as caught:
            images.read_image(tmp_path / "a.png")
        assert "\n" not in str(caught.value)
    for _ in range(100):
        damaged = bytearray(whole)
        damaged[rng.integers(8, len(whole))] ^= int(rng.integers(1, 256))
        (tmp_path / "a.png").write_bytes(bytes(damaged))
        try:
            assert images.read_image(tmp_path / "a.png").ndim == 3
        except ValueError as error:
            assert "\n" not in str(error)


def test_missing_file_and_folder_are_os_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        images.read_image(tmp_path / "none.png")
    with pytest.raises(OSError):
        images.read_image(tmp_path)


def test_an_existing_file_is_kept_unless_asked(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"mine")
    with pytest.raises(FileExistsError, match="--overwrite"):
        images.write_png(path, noise_image())
    assert path.read_bytes() == b"mine"
    images.write_png(path, noise_image(), overwrite=True)
    assert images.read_image(path).shape == (3, 6, 8)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    "failure", [OSError(28, "No space left on device"), KeyboardInterrupt(), ValueError("x")]
)
def test_a_failed_write_leaves_nothing(tmp_path: Path, failure: BaseException, overwrite: bool) -> None:
    path = tmp_path / "a.bin"
    if overwrite:
        path.write_bytes(b"before")

    def write(file: io.BufferedIOBase) -> None:
        file.write(b"half")
        raise failure

    with pytest.raises(type(failure)) as caught:
        files.write_atomic(path, write, overwrite=overwrite)
    if isinstance(failure, OSError):
        assert "disk is full" in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == (["a.bin"] if overwrite else [])
    assert not overwrite or path.read_bytes() == b"before"


def test_a_name_taken_meanwhile_is_not_lost(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    with pytest.raises(FileExistsError, match="appeared"):
        files.write_atomic(path, lambda file: path.write_bytes(b"theirs"))
    assert path.read_bytes() == b"theirs"
    assert len(list(tmp_path.iterdir())) == 1


def test_files_get_the_users_usual_permissions(tmp_path: Path) -> None:
    images.write_png(tmp_path / "a.png", noise_image())
    (tmp_path / "plain").write_bytes(b"")
    assert (tmp_path / "a.png").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_unwritable_places_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match="is a file, not a folder"):
        files.check_writable(tmp_path / "file" / "a.png")
    with pytest.raises(IsADirectoryError, match="is a folder"):
        files.check_writable(tmp_path)
    with pytest.raises(OSError, match="device or pipe"):
        files.check_writable("/dev/null", overwrite=True)
    files.check_writable(tmp_path / "new" / "deep" / "a.png")
    assert not (tmp_path / "new").exists(), "a check changes nothing"
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(PermissionError, match="not writable"):
        files.check_writable(tmp_path / "a.png")
