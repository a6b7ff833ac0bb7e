"""The watermark: read back, unseen, found in copies and crops, and not where there is none."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastdiff import watermark
from fastdiff.watermark import Picture, detect, embed

PAYLOAD = 0x0123456789


def scene(side: int, seed: int = 0) -> Picture:
    """A soft landscape with edges and grain."""
    random = np.random.default_rng(seed)
    soft = Image.fromarray(random.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    picture = np.asarray(soft.resize((side, side), Image.Resampling.BICUBIC)).astype(float)
    picture[side // 3 :, side // 2 :] *= 0.6
    return (picture + random.normal(0, 4, picture.shape)).clip(0, 255).astype(np.uint8)


def jpeg(picture: Picture, quality: int) -> Picture:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file).convert("RGB"))


def read(picture: Picture, **options: Any) -> int | None:
    found = detect(picture, **options)
    return None if found is None else found.payload


def psnr(a: Picture, b: Picture) -> float:
    return float(10 * np.log10(255**2 / ((a.astype(float) - b) ** 2).mean()))


@pytest.mark.parametrize("side", [64, 200, 512])
@pytest.mark.parametrize("payload", [0, PAYLOAD, 2**40 - 1])
def test_it_is_read_back_and_hardly_changes_the_picture(side: int, payload: int) -> None:
    picture = scene(side)
    before = picture.copy()
    marked = embed(picture, payload)
    assert np.array_equal(picture, before) and marked.dtype == np.uint8 and marked.shape == picture.shape
    assert psnr(picture, marked) > 40
    found = detect(marked)
    assert (
        found is not None and found.payload == payload and found.offset == (0, 0) and found.agreement > 0.85
    )
    assert np.array_equal(embed(picture, payload), marked)


@pytest.mark.parametrize("side", [64, 130, 512])
def test_it_outlives_jpeg(side: int) -> None:
    for seed in range(3):
        marked = embed(scene(side, seed), PAYLOAD)
        assert [read(jpeg(marked, quality)) for quality in (95, 90, 80, 75)] == [PAYLOAD] * 4


@pytest.mark.parametrize("colour", [(255, 255, 255), (0, 0, 0), (255, 0, 0), (128, 128, 128)])
def test_flat_pictures_without_room_at_the_ends(colour: tuple[int, int, int]) -> None:
    picture = np.zeros((96, 64, 3), dtype=np.uint8) + np.array(colour, dtype=np.uint8)
    marked = embed(picture, PAYLOAD)
    assert read(marked) == PAYLOAD and read(jpeg(marked, 80)) == PAYLOAD and psnr(picture, marked) > 38


def test_it_is_found_in_a_crop() -> None:
    marked = embed(scene(200), PAYLOAD)
    for x, y in ((1, 0), (7, 13), (64, 33)):
        found = detect(jpeg(marked[y : y + 90, x : x + 100], 80))
        assert found is not None and found.payload == PAYLOAD
        assert found.offset == (-x % 64, -y % 64)
    assert read(marked[13:, 7:], search=False) is None


def test_no_mark_no_report() -> None:
    for seed in range(4):
        picture = scene(64 + 24 * seed, seed)
        assert detect(picture) is None and detect(jpeg(picture, 75)) is None
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    assert detect(noise) is None and detect(np.zeros((128, 128, 3), dtype=np.uint8)) is None
    assert detect(scene(64)[:63]) is None


def test_a_damaged_mark_is_seen_but_never_misread() -> None:
    marked = embed(scene(160), PAYLOAD)
    seen = [read(jpeg(marked, quality)) for quality in (60, 40, 20)]
    assert set(seen) <= {PAYLOAD, None}
    noise = np.random.default_rng(1).normal(0, 14, marked.shape)
    found = detect((marked + noise).clip(0, 255).astype(np.uint8))
    assert found is None or found.payload in (PAYLOAD, None)


def test_what_cannot_carry_one_is_refused() -> None:
    with pytest.raises(ValueError, match="63x80 is too small for a watermark: 64x64 is the least"):
        embed(scene(80)[:, :63], PAYLOAD)
    with pytest.raises(ValueError, match="payload"):
        embed(scene(64), 2**40)
    with pytest.raises(ValueError, match="uint8"):
        embed(scene(64).astype(np.float32), PAYLOAD)


def test_the_payload_is_the_recipes() -> None:
    recipe = {"command": "generate", "arguments": {"watermark": True, "seed": 1}}
    payload = watermark.payload_of(recipe)
    assert 0 <= payload < 2**40 and payload == watermark.payload_of(dict(reversed(list(recipe.items()))))
    assert payload != watermark.payload_of(recipe | {"arguments": {"watermark": True, "seed": 2}})
    assert watermark.wanted(recipe) and not watermark.wanted({"arguments": {"seed": 1}})
    assert not watermark.wanted({"arguments": None}) and not watermark.wanted({})
