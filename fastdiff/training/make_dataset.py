"""Write the data set of the bundled model: `fastdiff train --make-data OUT`.

OUT/train/CLASS/*.png and OUT/test/CLASS/*.png, 72x72 pixels (the trainer takes random 64x64 crops of them), and
photographs without a class in OUT/train/_unlabelled.
Photographs are split by place, patterns by seed.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from fastdiff.training.data import UNLABELLED_FOLDER
from fastdiff.training.patterns import PATTERNS
from fastdiff.training.photos import PHOTOS, UNLABELLED, crop, open_photo

log = logging.getLogger(__name__)

CLASSES = tuple(sorted((*PHOTOS, *PATTERNS)))
SPLITS = ("train", "test")


def _rng(name: str, split: str, seed: int) -> np.random.Generator:
    return np.random.default_rng([zlib.crc32(name.encode()), SPLITS.index(split), seed])


def make_class(folder: Path, name: str, *, split: str, count: int, size: int, seed: int) -> None:
    """Write `count` pictures of one class and split into `folder`, which must be new."""
    folder.mkdir(parents=True)
    rng = _rng(name, split, seed)
    photo = PHOTOS.get(name)
    source = open_photo(photo) if photo is not None else None
    for i in range(count):
        if photo is not None and source is not None:
            picture = crop(source, photo, split=split, size=size, rng=rng)
        else:
            picture = Image.fromarray(PATTERNS[name](size, rng))
        picture.save(folder / f"{i:05d}.png", compress_level=1)


def make_unlabelled(folder: Path, *, split: str, count: int, size: int, seed: int) -> None:
    """Write `count` crops of the photographs without a class, in turn, into `folder`, which must be new."""
    folder.mkdir(parents=True)
    rng = _rng(UNLABELLED_FOLDER, split, seed)
    sources = [open_photo(photo) for photo in UNLABELLED]
    for i in range(count):
        turn = i % len(sources)
        picture = crop(sources[turn], UNLABELLED[turn], split=split, size=size, rng=rng)
        picture.save(folder / f"{i:05d}.png", compress_level=1)


def make_dataset(
    out: Path,
    *,
    train: int = 1500,
    test: int = 160,
    size: int = 72,
    seed: int = 0,
    on_class: Callable[[], object] = lambda: None,
) -> None:
    """Write the whole data set; `on_class` is called after each class. FileExistsError if `out` is there already."""
    if out.exists():
        raise FileExistsError(f"{out} exists: choose a new folder, or delete it first")
    for split, count in (("train", train), ("test", test)):
        for name in CLASSES:
            log.info("%s/%s: %d pictures", split, name, count)
            make_class(out / split / name, name, split=split, count=count, size=size, seed=seed)
            on_class()
        log.info("%s/%s: %d pictures", split, UNLABELLED_FOLDER, 2 * count)
        make_unlabelled(out / split / UNLABELLED_FOLDER, split=split, count=2 * count, size=size, seed=seed)
