"""Crops of the real photographs that ship inside the scikit-image and scikit-learn wheels.

Each class is one photograph. A strip of it is held out: test crops lie wholly inside the strip, training crops wholly
outside, so no test pixel is ever trained on. Brick, grass and coins are grey in the wheel and are toned in colour.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Photo:
    """One photograph: where it lies, its training and held-out boxes (left, top, right, bottom), crop sides in pixels.

    `tones` maps dark, middle and light grey to colours. `texture` allows quarter turns; `turn` turns every crop.
    """

    package: str
    file: str
    train: Box
    test: Box
    sides: tuple[int, int]
    test_sides: tuple[int, int]
    tones: tuple[str, str, str] | None = None
    texture: bool = False
    turn: int = 0


SKIMAGE, SKLEARN = "skimage", "sklearn"
PHOTOS: dict[str, Photo] = {
    "brick": Photo(
        SKIMAGE, "data/brick.png", (0, 0, 372, 512), (372, 0, 512, 512), (96, 200), (96, 140),
        tones=("#6b2a1e", "#c0664a", "#f6e6d4"), turn=1,
    ),
    "cat": Photo(SKIMAGE, "data/chelsea.png", (95, 0, 451, 300), (0, 0, 95, 230), (240, 300), (85, 95)),
    "coffee": Photo(SKIMAGE, "data/coffee.png", (150, 0, 600, 400), (0, 0, 150, 400), (310, 400), (120, 150)),
    "coins": Photo(
        SKIMAGE, "data/coins.png", (0, 0, 384, 236), (0, 236, 384, 303), (75, 125), (58, 67),
        tones=("#1d1a1f", "#8f6a35", "#ffe9b0"),
    ),
    "flower": Photo(
        SKLEARN, "datasets/images/flower.jpg", (130, 0, 490, 296), (230, 296, 520, 427), (220, 296), (110, 131)
    ),
    "grass": Photo(
        SKIMAGE, "data/grass.png", (0, 0, 372, 512), (372, 0, 512, 512), (80, 180), (80, 140),
        tones=("#0f2412", "#4f8a35", "#dcecaa"), texture=True,
    ),
    "gravel": Photo(
        SKIMAGE, "data/gravel.png", (0, 0, 372, 512), (372, 0, 512, 512), (80, 180), (80, 140), texture=True
    ),
    "stars": Photo(
        SKIMAGE, "data/hubble_deep_field.jpg", (0, 0, 760, 872), (760, 0, 1000, 872), (100, 240), (100, 240),
        texture=True,
    ),
    "temple": Photo(
        SKLEARN, "datasets/images/china.jpg", (20, 0, 300, 427), (300, 60, 440, 380), (220, 280), (110, 140)
    ),
    "tissue": Photo(
        SKIMAGE, "data/ihc.png", (0, 0, 512, 372), (0, 372, 512, 512), (90, 220), (90, 140), texture=True
    ),
}  # fmt: skip

MOTORCYCLE = Photo(
    SKIMAGE, "data/motorcycle_left.png", (0, 0, 560, 500), (560, 0, 741, 500), (72, 240), (72, 160)
)
# Photographs at every scale, without a class: what the model knows of pictures in general, for restoring others.
# Astronaut, camera and rocket stay out of it, so that restoration can be judged on them.
UNLABELLED: tuple[Photo, ...] = (
    *(replace(PHOTOS[name], sides=(72, 220)) for name in ("cat", "coffee", "flower", "temple")), MOTORCYCLE
)  # fmt: skip


def _tone(grey: NDArray[np.uint8], tones: tuple[str, str, str]) -> NDArray[np.uint8]:
    low, high = np.percentile(grey, (1, 99))
    level = np.clip((grey - low) / (high - low), 0, 1)
    stops = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in tones], dtype=np.float64)
    channels = [np.interp(level, (0, 0.5, 1), stops[:, i]) for i in range(3)]
    return np.rint(np.stack(channels, -1)).astype(np.uint8)


def open_photo(photo: Photo) -> Image.Image:
    """The whole photograph in RGB, toned. ModuleNotFoundError names the package to install."""
    spec = importlib.util.find_spec(photo.package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            f"the photographs come from scikit-image and scikit-learn, and {photo.package} is not installed: "
            "pip install 'fastdiff[train]'"
        )
    with Image.open(Path(spec.origin).parent / photo.file) as image:
        if photo.tones is None:
            return image.convert("RGB")
        return Image.fromarray(_tone(np.asarray(image.convert("L")), photo.tones))


def crop(image: Image.Image, photo: Photo, *, split: str, size: int, rng: np.random.Generator) -> Image.Image:
    """One random crop of a split, scaled to size x size."""
    left, top, right, bottom = photo.train if split == "train" else photo.test
    low, high = photo.sides if split == "train" else photo.test_sides
    side = min(rng.uniform(low, high), right - left, bottom - top)
    x, y = rng.uniform(0, right - left - side), rng.uniform(0, bottom - top - side)
    # Cut the split's box out first: the resampling filter reaches beyond the crop, and must not see the other split.
    own = image.crop((left, top, right, bottom))
    out = own.resize((size, size), Image.Resampling.LANCZOS, box=(x, y, x + side, y + side))
    turns = int(rng.integers(4)) if photo.texture else photo.turn
    if turns:
        out = out.rotate(90 * turns)
    return out
