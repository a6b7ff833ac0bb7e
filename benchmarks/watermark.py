"""What the watermark costs and outlives: PSNR, JPEG, PNG, crops, resizing, and marks seen where there is none.

    python benchmarks/watermark.py [--write]

Pictures: those of scikit-image and scikit-learn, square cuts scaled to each side (flat ones too: white, black, a
gradient, drawn text), and pictures of the bundled model at 64 and 128 pixels.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from skimage import data
from sklearn.datasets import load_sample_images

from fastdiff import watermark
from fastdiff.watermark import Picture
from results import environment, write_json

RESULTS = Path(__file__).parent / "results" / "watermark.json"
SIDES = (64, 128, 256, 512, 1024)
QUALITIES = (95, 90, 85, 80, 75, 70, 65, 60)
PAYLOAD = 0x123456789A
NAMES = ("astronaut", "rocket", "chelsea", "coffee", "camera", "cat", "coins", "moon", "brick", "grass")
UNMARKED = 2000


def photographs() -> dict[str, Image.Image]:
    """Square cuts of the middle."""
    found = {name: np.asarray(getattr(data, name)()) for name in NAMES if hasattr(data, name)}
    found |= dict(zip(("china", "flower"), load_sample_images().images))
    return {name: _square(Image.fromarray(picture).convert("RGB")) for name, picture in found.items()}


def flat() -> dict[str, Image.Image]:
    """Pictures with little for a mark to hide in, or without room at black and white."""
    ramp = np.linspace(0, 255, 1024).astype(np.uint8)
    text = Image.new("RGB", (1024, 1024), (255, 255, 255))
    for line in range(25):
        ImageDraw.Draw(text).text(
            (20, 40 * line), "the quick brown fox jumps over the lazy dog " * 2, (0, 0, 0), font_size=30
        )
    return {
        "white": Image.new("RGB", (1024, 1024), (255, 255, 255)),
        "black": Image.new("RGB", (1024, 1024)),
        "red": Image.new("RGB", (1024, 1024), (255, 0, 0)),
        "gradient": Image.fromarray(np.broadcast_to(ramp[None, :, None], (1024, 1024, 3)).copy()),
        "text": text,
    }


def generated(side: int) -> list[Picture]:
    """One picture of each class of the bundled model."""
    from fastdiff.apps.generate import generate
    from fastdiff.images import to_pictures

    return list(to_pictures(generate("all", size=side, steps=12, seed=1).images))


def jpeg(picture: Picture, quality: int) -> Picture:
    """Saved and read again, colour at half resolution, as most programs do."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file).convert("RGB"))


def resized(picture: Picture, share: float) -> Picture:
    """Scaled by this share."""
    size = (round(picture.shape[1] * share), round(picture.shape[0] * share))
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))


def psnr(a: Picture, b: Picture) -> float:
    """Decibels."""
    error = ((a.astype(float) - b) ** 2).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


def survived(picture: Picture) -> bool:
    """Whether the payload can be read."""
    found = watermark.detect(picture)
    return found is not None and found.payload == PAYLOAD


def measured(pictures: list[Picture]) -> dict[str, Any]:
    """Counts of those that can be read after each treatment."""
    side = min(pictures[0].shape[:2])
    marked = [watermark.embed(picture, PAYLOAD) for picture in pictures]
    losses = [psnr(a, b) for a, b in zip(pictures, marked)]
    reads = {"png": sum(map(survived, marked))}
    reads |= {f"jpeg {q}": sum(survived(jpeg(picture, q)) for picture in marked) for q in QUALITIES}
    if side >= 128:
        reads["crop 13, 7 then jpeg 80"] = sum(survived(jpeg(picture[13:, 7:], 80)) for picture in marked)
        reads["crop to 100x90"] = sum(survived(picture[20:110, 11:111]) for picture in marked)
        reads["resize 0.9"] = sum(survived(resized(picture, 0.9)) for picture in marked)
    least, mean = round(min(losses), 1), round(float(np.mean(losses)), 1)
    return {"side": side, "pictures": len(pictures), "psnr_min": least, "psnr_mean": mean, "read": reads}


def unmarked(pictures: dict[str, Image.Image], count: int) -> Iterator[Picture]:
    """Cuts of pictures, of random place and side, some of them saved as JPEG."""
    random = np.random.default_rng(0)
    names = sorted(pictures)
    for i in range(count):
        whole = np.asarray(pictures[names[i % len(names)]])
        side = int(random.integers(64, 1 + min(320, *whole.shape[:2])))
        y, x = (int(random.integers(0, length - side + 1)) for length in whole.shape[:2])
        cut = whole[y : y + side, x : x + side]
        yield jpeg(cut, int(random.integers(60, 96))) if i % 2 else cut


def main() -> None:
    """Measure, print, and with --write keep the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    photos, plain = photographs(), flat()
    groups: dict[str, Any] = {}
    for side in SIDES:
        groups[f"photographs {side}"] = measured([_at(image, side) for image in photos.values()])
    for side in (64, 256, 1024):
        groups[f"flat {side}"] = measured([_at(image, side) for image in plain.values()])
    for side in (64, 128):
        groups[f"generated {side}"] = measured(generated(side))
    for name, result in groups.items():
        print(name, json.dumps(result), flush=True)
    seen = [watermark.detect(picture) for picture in unmarked(photos | plain, UNMARKED)]
    false = {
        "pictures": UNMARKED,
        "seen": sum(found is not None for found in seen),
        "read": sum(found is not None and found.payload is not None for found in seen),
    }
    print("unmarked", json.dumps(false))
    if args.write:
        kept = {"environment": environment(), "groups": groups, "unmarked": false}
        write_json(kept, RESULTS)


def _square(image: Image.Image) -> Image.Image:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def _at(image: Image.Image, side: int) -> Picture:
    return np.asarray(image.resize((side, side), Image.Resampling.LANCZOS))


if __name__ == "__main__":
    main()
