"""Several looks at one picture, turned over and shifted, and their average: what a network gets wrong differs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from fastdiff.apps.picture import Frame, reflected
from fastdiff.apps.source import Source
from fastdiff.apps.work import Job, Made

FLIPS: tuple[tuple[int, ...], ...] = ((), (-1,), (-2,), (-2, -1))


@dataclass(frozen=True)
class Looks:
    """`count` looks: the picture turned over its axes in four ways, then the same again, shifted.

    picture: [C, H, W]. shifts: (down, right) of each group of four looks. frame: what the model sees.
    """

    MOST: ClassVar[int] = 16

    picture: Tensor
    count: int
    shifts: tuple[tuple[int, int], ...]
    frame: Frame

    @classmethod
    def of(cls, picture: Tensor, source: Source, count: int) -> Looks:
        """1 to 16 looks; shifts are fractions of the sides' multiple, at which a network's strides begin anew."""
        part = max(1, source.multiple // 4)
        groups = -(-count // len(FLIPS))
        shifts = ((0, 0), (2 * part, part), (part, 3 * part), (3 * part, 2 * part))[:groups]
        down, right = (max(shift[i] for shift in shifts) for i in (0, 1))
        frame = Frame(picture.shape[-1] + right, picture.shape[-2] + down, source.multiple)
        return cls(picture, count, shifts, frame)

    def on(self, picture: Tensor) -> Looks:
        """The same looks at another picture of that size, or at a mask [1, H, W]."""
        return replace(self, picture=picture)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of each look."""
        return self.frame.size

    def seen(self, images: slice) -> Tensor:
        """The looks of a slice: [b, C, height, width]."""
        return torch.stack([self._seen(i) for i in range(*images.indices(self.count))])

    def merged(self, images: Tensor) -> Tensor:
        """What became of all looks -> their average, turned and shifted back: [1, 3, H, W]."""
        return torch.stack([self._undone(i, images[i]) for i in range(self.count)]).mean(dim=0, keepdim=True)

    def _seen(self, i: int) -> Tensor:
        down, right = self.shifts[i // len(FLIPS)]
        moved = reflected(self.picture, top=down, left=right)
        width, height = self.size
        full = reflected(moved, bottom=height - moved.shape[-2], right=width - moved.shape[-1])
        return full.flip(FLIPS[i % len(FLIPS)])

    def _undone(self, i: int, image: Tensor) -> Tensor:
        down, right = self.shifts[i // len(FLIPS)]
        back = image.flip(FLIPS[i % len(FLIPS)])
        return back[:, down : down + self.picture.shape[-2], right : right + self.picture.shape[-1]]


@dataclass(frozen=True)
class Averaged(Job):
    """A job whose images are averaged into one by `finish`; a trajectory is that of the first."""

    def run(self, **watching: Any) -> Made:
        """As `Job.run`."""
        made = super().run(**watching)
        film = None if made.trajectory is None else made.trajectory[:, :1]
        return replace(made, prompts=_one(made.prompts), seeds=_one(made.seeds), trajectory=film)


def _one(each: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(each[:1])
