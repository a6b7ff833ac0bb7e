"""What a network learns from: pictures in class folders, held in memory as one uint8 array; or any other `Examples`.

Every random choice is a function of (seed, step), so that a resumed run sees exactly what an uninterrupted one would.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fastdiff.images import read_image
from fastdiff.training.vectors import Encoder, read_vectors

UNLABELLED_FOLDER = "_unlabelled"
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})


class Examples(Protocol):
    """Where a Trainer takes its examples from: pictures, sounds, clips. Anything of this shape can stand for a folder.

    labels: names of classes 0, 1, ...; len(): how many examples there are.
    """

    @property
    def labels(self) -> tuple[str, ...]: ...

    def __len__(self) -> int: ...

    def draw(self, step: int, count: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The examples of a step: (x0 float32 [count, C, ...] in about -1..1, what the network is called with).

        The same whenever it is asked for. "label": int64 [count], len(labels) for none; more by the names of the
        network's arguments, [count, ...], zeros meaning nothing said.
        """
        ...


@dataclass(frozen=True, eq=False)
class ImageFolder:
    """pictures: uint8 [N, 3, S, S]; classes: int64 [N], an index into `labels` (sorted folder names), or len(labels),
    the null class, for pictures of the folder _unlabelled. context: float32 [N, D], a vector for each, or None."""

    pictures: Tensor
    classes: Tensor
    labels: tuple[str, ...]
    context: Tensor | None = None

    def __len__(self) -> int:
        return self.pictures.shape[0]

    def labelled(self) -> ImageFolder:
        """Without the pictures of no class."""
        known = self.classes < len(self.labels)
        context = None if self.context is None else self.context[known]
        return ImageFolder(self.pictures[known], self.classes[known], self.labels, context)


def load_folder(
    root: Path, *, size: int, context_dim: int = 0, encoder: Encoder | None = None
) -> ImageFolder:
    """Read ROOT/CLASS/*.png (jpg, webp, bmp), shorter side scaled to `size`, centre square kept. A folder named
    _unlabelled holds pictures that belong to no class.

    context_dim: above 0, a vector of that length is read for each picture, or made of its caption by `encoder`; see
    fastdiff.training.vectors.

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
    labels = tuple(folder.name for folder in folders if folder.name != UNLABELLED_FOLDER)
    if not labels:
        raise ValueError(f"{root} holds only {UNLABELLED_FOLDER}: name at least one folder after a class")
    context = None
    if context_dim:
        names = [file.relative_to(root).as_posix() for file, _ in files]
        context = read_vectors(root, names, context_dim, encoder)
    pictures = torch.empty((len(files), 3, size, size), dtype=torch.uint8)
    for row, (file, _) in enumerate(files):
        pictures[row] = read_square(file, size)
    return ImageFolder(pictures, torch.tensor([i for _, i in files]), labels, context)


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
    """The `Examples` of a folder. Step -> (pictures float32 [B, 3, crop, crop] in -1..1, classes int64 [B]), random
    crops and mirrors.

    Each epoch is a fresh permutation; a batch may straddle two. batch: what a plain call draws.
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
        x, given = self.draw(step, self.batch)
        return x, given["label"]

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.folder.labels

    def __len__(self) -> int:
        return len(self.folder)

    def draw(self, step: int, count: int) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Examples`; "context" is among the conditioning where the folder has vectors."""
        rows = [self._row(step * count + i) for i in range(count)]
        rng = np.random.default_rng([self.seed, step, 1])
        slack = self.folder.pictures.shape[-1] - self.crop
        pictures = []
        for row, (top, left) in zip(rows, rng.integers(0, slack + 1, (len(rows), 2))):
            picture = self.folder.pictures[row, :, top : top + self.crop, left : left + self.crop]
            pictures.append(picture.flip(-1) if self.flip and rng.random() < 0.5 else picture)
        x = torch.stack(pictures).float().div_(127.5).sub_(1.0)
        given = {"label": self.folder.classes[rows]}
        if self.folder.context is not None:
            given["context"] = self.folder.context[rows]
        return x, given

    def _row(self, draw: int) -> int:
        """The picture shown as number `draw` since the run began."""
        epoch, place = divmod(draw, len(self._shown))
        if epoch != self._epoch:
            self._order = np.random.default_rng([self.seed, epoch]).permutation(self._shown)
            self._epoch = epoch
        return int(self._order[place])
