"""Sounds and clips in class folders: the `Examples` of networks of one and three dimensions.

ROOT/CLASS/*.wav become pieces of equal length, at one sampling rate; ROOT/CLASS/*.gif become runs of equally many
square frames. As with pictures, every random choice is a function of (seed, step).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fastdiff.clips import read_gif
from fastdiff.models.config import UNetConfig
from fastdiff.sounds import read_wav, resampled
from fastdiff.training.config import TrainConfig

LIMIT = 2**32
"""Bytes of examples held in memory."""


@dataclass(frozen=True, eq=False)
class Sequences:
    """Examples held in memory as integers.

    values: int16 [N, C, L] or uint8 [N, 3, D, H, W], the largest value of the type being 1; classes: int64 [N].
    crop: sides of what is drawn, at a random place. flip: turn the sign of half the sounds; mirror is no such thing for
    clips, whose motion has a direction.
    """

    values: Tensor
    classes: Tensor
    labels: tuple[str, ...]
    crop: tuple[int, ...]
    flip: bool
    seed: int

    def __len__(self) -> int:
        return len(self.values)

    def draw(self, step: int, count: int) -> tuple[Tensor, dict[str, Tensor]]:
        """See `fastdiff.training.data.Examples`; an epoch is a fresh permutation, and a batch may straddle two."""
        rng = np.random.default_rng([self.seed, step, 1])
        rows = [self._row(step * count + i) for i in range(count)]
        x = torch.stack([self._cropped(self.values[row], rng) for row in rows]).float()
        if self.values.dtype == torch.int16:
            x = x.div_(32767.0)
            if self.flip:
                x *= torch.from_numpy(rng.choice([-1.0, 1.0], (count, 1, 1))).float()
        else:
            x = x.div_(127.5).sub_(1.0)
        return x, {"label": self.classes[rows]}

    def _cropped(self, value: Tensor, rng: np.random.Generator) -> Tensor:
        for axis, side in enumerate(self.crop, start=1):
            slack = value.shape[axis] - side
            value = value.narrow(axis, int(rng.integers(0, slack + 1)), side)
        return value

    def _row(self, draw: int) -> int:
        epoch, place = divmod(draw, len(self))
        return int(np.random.default_rng([self.seed, epoch]).permutation(len(self))[place])


def sequences_of(config: TrainConfig, root: Path) -> Sequences:
    """The sounds or clips of a folder, as the configuration of a network of one or three dimensions wants them."""
    shape = UNetConfig.from_dict({**config.model, "num_classes": 1, "image_size": config.image_size})
    if config.class_weights or shape.context_dim:
        raise ValueError(
            "config class_weights and context_dim are for pictures: leave them out for sounds and clips"
        )
    if shape.dims == 1:
        return load_sounds(
            root, length=config.image_size, rate=shape.rate, channels=shape.image_channels, margin=config.margin,
            flip=config.flip, seed=config.seed,
        )  # fmt: skip
    if shape.image_channels != 3:
        raise ValueError(
            f"clips have 3 channels of colour: image_channels must be 3, got {shape.image_channels}"
        )
    return load_clips(
        root, frames=shape.frames, size=config.image_size, margin=config.margin, seed=config.seed
    )


def load_sounds(
    root: Path,
    *,
    length: int,
    rate: int,
    channels: int = 1,
    margin: float = 1.0,
    flip: bool = True,
    seed: int = 0,
) -> Sequences:
    """Read ROOT/CLASS/*.wav, resampled to `rate`; channels 1: their mean.

    Long files are cut into pieces of length * margin samples, short ones are filled up with silence. Raises ValueError
    or OSError naming the folder or file that is wrong.
    """
    stored = round(length * margin)

    def pieces(file: Path) -> Iterator[Tensor]:
        sound, found = read_wav(file)
        sound = resampled(sound, found, rate)
        if channels == 1:
            sound = sound.mean(0, keepdim=True)
        elif sound.shape[0] != channels:
            raise ValueError(f"{file}: has {sound.shape[0]} channels, the network takes {channels}")
        whole = max(1, sound.shape[1] // stored)
        sound = F.pad(sound, (0, max(0, stored - sound.shape[1])))[:, : whole * stored]
        yield from (sound.clamp(-1, 1) * 32767).round().to(torch.int16).split(stored, dim=1)

    values, classes, labels = _read(root, ".wav", pieces)
    return Sequences(values, classes, labels, (length,), flip, seed)


def load_clips(root: Path, *, frames: int, size: int, margin: float = 1.0, seed: int = 0) -> Sequences:
    """Read ROOT/CLASS/*.gif, the centre square scaled to size * margin, cut into runs of `frames` frames.

    Raises ValueError or OSError naming the folder or file that is wrong, or too short.
    """
    stored = round(size * margin)

    def runs(file: Path) -> Iterator[Tensor]:
        clip, _ = read_gif(file)
        if clip.shape[1] < frames:
            raise ValueError(f"{file}: has {clip.shape[1]} frames, {frames} are needed")
        side = min(clip.shape[2:])
        top, left = (clip.shape[2] - side) // 2, (clip.shape[3] - side) // 2
        clip = clip[:, : clip.shape[1] // frames * frames, top : top + side, left : left + side]
        if side != stored:
            clip = F.interpolate(clip.transpose(0, 1), (stored, stored), mode="bicubic", antialias=True)
            clip = clip.transpose(0, 1)
        yield from ((clip.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).split(frames, dim=1)

    values, classes, labels = _read(root, ".gif", runs)
    return Sequences(values, classes, labels, (frames, size, size), False, seed)


def _read(
    root: Path, suffix: str, pieces: Callable[[Path], Iterator[Tensor]]
) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    if not root.is_dir():
        raise NotADirectoryError(
            f"{root} is not a folder: give one that holds a folder of {suffix} files for each class"
        )
    folders = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not folders:
        raise ValueError(
            f"{root} holds no class folders: put the {suffix} files of each class into {root}/CLASS/"
        )
    values: list[Tensor] = []
    classes: list[int] = []
    held = 0
    for index, folder in enumerate(folders):
        files = sorted(
            f for f in folder.iterdir() if f.suffix.lower() == suffix and not f.name.startswith(".")
        )
        if not files:
            raise ValueError(f"class folder {folder} holds no {suffix} files")
        for file in files:
            for piece in pieces(file):
                values.append(piece)
                classes.append(index)
                held += piece.nbytes
            if held > LIMIT:
                raise ValueError(
                    f"{root} holds more than {LIMIT >> 30} GiB of examples: train on fewer of them"
                )
    return torch.stack(values), torch.tensor(classes), tuple(folder.name for folder in folders)
