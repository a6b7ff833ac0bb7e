"""fastdiff edit and fastdiff inpaint: what they make and say, and that bad input is one line with nothing written."""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from fastdiff.images import read_image, read_recipe
from pictures import smooth

Command = Callable[..., tuple[int, str, str]]


def save(name: str, height: int = 14, width: int = 19, **how: object) -> np.ndarray:
    values = ((smooth(height, width).permute(1, 2, 0).numpy() + 1) * 127.5).round().astype(np.uint8)
    Image.fromarray(values).save(name, **how)
    return values


def save_mask(name: str = "mask.png", height: int = 14, width: int = 19) -> np.ndarray:
    mask = np.zeros((height, width), np.uint8)
    mask[3:5, 4:9] = 255
    Image.fromarray(mask).save(name)
    return mask


def pixels(path: str) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_a_picture_changes_by_strength(fastdiff: Command) -> None:
    given = save("in.png")
    assert fastdiff("edit in.png --strength 0 --out same.png")[0] == 0
    assert np.array_equal(pixels("same.png"), given)
    code, out, err = fastdiff("edit in.png --label cat --strength 1 --steps 2 --seed 3 --out new.png")
    assert (code, err) == (0, "") and "in.png changed, 19x14: 2 model calls" in out and "wrote new.png" in out
    assert pixels("new.png").shape == given.shape and not np.array_equal(pixels("new.png"), given)
    recipe = read_recipe("new.png")
    assert recipe["command"] == "edit" and recipe["arguments"]["prompt"] == "cat" and recipe["inputs"]


def test_several_pictures_are_files_or_a_sheet(fastdiff: Command) -> None:
    save("in.png")
    assert fastdiff("edit in.png --prompt cat --count 2 --steps 2 --out several")[0] == 0
    assert sorted(os.listdir("several")) == ["cat-seed0.png", "cat-seed1.png"]
    assert fastdiff("edit in.png --prompt cat --count 2 --steps 2 --out sheet.png")[0] == 0
    assert pixels("sheet.png").shape[1] > 2 * 19


def test_noise_is_given_or_estimated(fastdiff: Command) -> None:
    save("in.jpg", 40, 40, quality=60)
    code, out, _ = fastdiff("edit in.jpg --denoise 12 --average 3 --out a.png")
    assert code == 0 and "denoised (noise 12), 40x40: 1 model call," in out
    code, out, _ = fastdiff("edit in.jpg --denoise --out folder --json")
    data = json.loads(out)
    assert code == 0 and data["files"] == ["folder/in.png"] and data["recipe"]["arguments"]["noise"] < 10


def test_pictures_are_made_larger(fastdiff: Command) -> None:
    save("in.png")
    assert fastdiff("edit in.png --upscale 3 --steps 1 --out large.png --quiet") == (0, "", "")
    assert pixels("large.png").shape == (42, 57, 3)


def test_what_a_mask_keeps_is_kept(fastdiff: Command) -> None:
    given, mask = save("in.png"), save_mask()
    for options in ("", "--label cat --steps 2 --resample 2 --jump 1 --method sample"):
        code, out, err = fastdiff(f"inpaint in.png --mask mask.png --overwrite --out made.png {options}")
        assert (code, err) == (0, "") and "inpainted (" in out
        made = pixels("made.png")
        assert np.array_equal(made[mask == 0], given[mask == 0])
        assert not np.array_equal(made[mask > 0], given[mask > 0])
    assert set(read_recipe("made.png")["inputs"]) == {"picture", "mask"}


def test_a_transparent_mask_keeps_where_nothing_is_drawn(fastdiff: Command) -> None:
    given, mask = save("in.png"), save_mask()
    drawn = np.zeros((14, 19, 4), np.uint8)
    drawn[mask > 0] = 255
    Image.fromarray(drawn).save("drawn.png")
    assert fastdiff("inpaint in.png --mask drawn.png --out a.png")[0] == 0
    assert np.array_equal(pixels("a.png")[mask == 0], given[mask == 0])


def test_more_around_a_picture(fastdiff: Command) -> None:
    given = save("in.png")
    assert fastdiff("inpaint in.png --extend 2,0,5,1 --label cat --steps 1 --out wide.png")[0] == 0
    made = pixels("wide.png")
    assert made.shape == (15, 26, 3) and np.array_equal(made[:14, 2:21], given)


@pytest.mark.parametrize("mode", ["P", "L", "LA", "RGBA", "1", "I;16"])
def test_pictures_of_every_mode(fastdiff: Command, mode: str) -> None:
    save("rgb.png")
    picture = Image.open("rgb.png")
    if mode == "I;16":
        picture = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)
    else:
        picture = picture.convert(mode)
    picture.save("in.png")
    assert fastdiff("edit in.png --strength 0 --out out.png")[0] == 0
    expected = ((read_image("in.png") + 1) * 127.5).round().permute(1, 2, 0).numpy()
    assert np.array_equal(pixels("out.png"), expected)


def huge(path: str) -> None:
    """A PNG whose header promises 60000x60000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    with open(path, "wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))


def bad_pictures() -> None:
    save("whole.png")
    save("good.png")
    save_mask()
    with open("whole.png", "rb") as file:
        content = file.read()
    with open("cut.png", "wb") as file:
        file.write(content[: len(content) // 2])
    with open("text.png", "w") as file:
        file.write("this is no picture")
    open("empty.png", "wb").close()
    Image.open("whole.png").save("picture.gif")
    huge("huge.png")
    save_mask("other.png", 8, 8)
    Image.new("L", (19, 14)).save("black.png")


@pytest.mark.parametrize(
    "line, message",
    [
        ("edit cut.png", "cut.png: damaged or incomplete image"),
        ("edit text.png", "text.png: not a readable"),
        ("edit empty.png", "empty.png: not a readable"),
        ("edit picture.gif", "picture.gif: not a readable"),
        ("edit huge.png", "too many pixels"),
        ("edit nowhere.png", "nowhere.png: No such file"),
        ("edit good.png --strength 2", "strength must be a number from 0 to 1"),
        ("edit good.png --label dog", "dog"),
        ("edit good.png --label cat --prompt cat", "not both"),
        ("edit good.png --denoise much", "standard deviation"),
        ("edit good.png --denoise -3", "noise must be"),
        ("edit good.png --denoise 5 --upscale 2", "not both"),
        ("edit good.png --denoise 5 --strength 0.3", "--strength does not go with --denoise"),
        ("edit good.png --average 3", "--average belongs with --denoise"),
        ("edit good.png --denoise 5 --label cat", "takes no label"),
        ("edit good.png --denoise 5 --negative cat", "leave --guidance and --negative out"),
        ("edit good.png --upscale 1", "factor must be"),
        ("edit good.png --out whole.png", "whole.png exists"),
        ("edit good.png --out made.jpg", "written as PNG"),
        ("inpaint good.png", "say what to paint"),
        ("inpaint good.png --mask mask.png --extend 1,1,1,1", "say what to paint"),
        ("inpaint good.png --mask other.png", "the mask is 8x8 and the picture 19x14"),
        ("inpaint good.png --mask black.png", "the mask is empty"),
        ("inpaint good.png --mask text.png", "text.png: not a readable"),
        ("inpaint good.png --extend 1,2", "four numbers"),
        ("inpaint good.png --extend 0,0,0,0", "nothing to add"),
        ("inpaint good.png --extend 0,0,4090,0", "at most 4096"),
        ("inpaint good.png --mask mask.png --method magic", "magic"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(fastdiff: Command, line: str, message: str) -> None:
    bad_pictures()
    before = sorted(os.listdir())
    code, out, err = fastdiff(line)
    assert code in (1, 2) and out == "" and message in err
    assert len(err.strip().splitlines()) == 1 and err.startswith("fastdiff")
    assert sorted(os.listdir()) == before
