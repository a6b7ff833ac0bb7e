"""Pictures in class folders, held in memory as one uint8 array.

Every random choice is a function of (seed, step), so that a resumed run sees exactly what an uninterrupted one would.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fastdiff.images import read_image

UNLABELLED_FOLDER = "_unlabelled"
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})


@dataclass(frozen=True, eq=False)
class ImageFolder:
    """pictures: uint8 [N, 3, S, S]; classes: int64 [N], an index into `labels` (sorted folder names), or len(labels),
    the null class, for pictures of the folder _unlabelled."""

    pictures: Tensor
    classes: Tensor
    labels: tuple[str, ...]

    def __len__(self) -> int:
        return self.pictures.shape[0]


def load_folder(root: Path, *, size: int) -> ImageFolder:
    """Read ROOT/CLASS/*.png (jpg, webp, bmp), shorter side scaled to `size`, centre square kept. A folder named
    _unlabelled holds pictures that belong to no class.

    Raises ValueError or OSError naming the folder or file that is wrong and what is expected there.
    """
    if not root.is_dir():
        raise NotADirectoryError(
            f"{root} is not a folder: give one that holds a folder of pictures for each class"
        )
    folders = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not folders:
        raise ValueError(f"{root} holds no class folders: put the pictures of each class into {root}/CLASS/")
    if {"train", "test"} <= {folder.name for folder in folders}:
        raise ValueError(f"{root} holds splits, not classes: train on {root / 'train'}")
    folders.sort(key=lambda folder: folder.name == UNLABELLED_FOLDER)  # last: the index of the null class
    files = [(file, i) for i, folder in enumerate(folders) for file in _pictures_in(folder)]
    pictures = torch.empty((len(files), 3, size, size), dtype=torch.uint8)
    for row, (file, _) in enumerate(files):
        pictures[row] = read_square(file, size)
    labels = tuple(folder.name for folder in folders if folder.name != UNLABELLED_FOLDER)
    if not labels:
        raise ValueError(f"{root} holds only {UNLABELLED_FOLDER}: name at least one folder after a class")
    return ImageFolder(pictures, torch.tensor([i for _, i in files]), labels)


def _pictures_in(folder: Path) -> list[Path]:
    files = sorted(f for f in folder.iterdir() if f.suffix.lower() in SUFFIXES and not f.name.startswith("."))
    if not files:
        raise ValueError(
            f"class folder {folder} holds no pictures: accepted are {', '.join(sorted(SUFFIXES))}"
        )
    return files


def read_square(file: Path, size: int) -> Tensor:
    """uint8 [3, size, size]: the centre square of a picture. ValueError or OSError if it cannot be read."""
    picture = read_image(file)
    side = min(picture.shape[1:])
    top, left = (picture.shape[1] - side) // 2, (picture.shape[2] - side) // 2
    picture = picture[:, top : top + side, left : left + side]
    if side != size:
        picture = F.interpolate(picture[None], (size, size), mode="bicubic", antialias=True)[0]
    return ((picture.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


class Batches:
    """Step -> (pictures float32 [B, 3, crop, crop] in -1..1, classes int64 [B]), random crops and mirrors.

    Each epoch is a fresh permutation; a batch may straddle two.
    weights: label -> how often an epoch shows each picture of that class.
    """

    def __init__(
        self,
        folder: ImageFolder,
        *,
        batch: int,
        crop: int,
        flip: bool,
        seed: int,
        weights: Mapping[str, int] | None = None,
    ) -> None:
        unknown_labels = sorted(set(weights or {}) - set(folder.labels))
        if unknown_labels:
            raise ValueError(f"class_weights name no class of the data: {', '.join(unknown_labels)}")
        self.folder, self.batch, self.crop, self.flip, self.seed = folder, batch, crop, flip, seed
        repeats = torch.tensor(
            [(weights or {}).get(label, 1) for label in (*folder.labels, UNLABELLED_FOLDER)]
        )
        self._shown = torch.arange(len(folder)).repeat_interleave(repeats[folder.classes]).numpy()
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        """The batch of one step, the same whenever it is asked for."""
        rows = [self._row(step * self.batch + i) for i in range(self.batch)]
        rng = np.random.default_rng([self.seed, step, 1])
        slack = self.folder.pictures.shape[-1] - self.crop
        pictures = []
        for row, (top, left) in zip(rows, rng.integers(0, slack + 1, (len(rows), 2))):
            picture = self.folder.pictures[row, :, top : top + self.crop, left : left + self.crop]
            pictures.append(picture.flip(-1) if self.flip and rng.random() < 0.5 else picture)
        x = torch.stack(pictures).float().div_(127.5).sub_(1.0)
        return x, self.folder.classes[rows]

    def _row(self, draw: int) -> int:
        """The picture shown as number `draw` since the run began."""
        epoch, place = divmod(draw, len(self._shown))
        if epoch != self._epoch:
            self._order = np.random.default_rng([self.seed, epoch]).permutation(self._shown)
            self._epoch = epoch
        return int(self._order[place])
