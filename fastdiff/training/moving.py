"""Clips of shapes that move, which make a data set: falling, leftward, rightward, rising.

A disc, a square or a diamond in one colour crosses a ground of another; what leaves at one edge comes back at the
other.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fastdiff.clips import as_gif

Frames = npt.NDArray[Any]

MOTIONS = {"falling": (1, 0), "leftward": (0, -1), "rightward": (0, 1), "rising": (-1, 0)}
"""(down, right) of a step."""

SPEEDS = (2, 3, 4)
"""Pixels a frame, for a side of 32."""


def clip(name: str, *, frames: int, side: int, rng: np.random.Generator) -> Frames:
    """float64 [frames, side, side, 3] in [-1, 1] of one motion; edges are smoothed over a pixel."""
    velocity = np.array(MOTIONS[name]) * rng.choice(SPEEDS) * side / 32
    start, radius = rng.uniform(0, side, 2), rng.uniform(0.15, 0.24) * side
    kind = int(rng.integers(0, 3))
    ground, ink = _colours(rng)
    made = np.empty((frames, side, side, 3))
    for i in range(frames):
        cover = np.clip(0.5 - _outside(kind, start + i * velocity, radius, side), 0, 1)[..., None]
        made[i] = ground + cover * (ink - ground)
    return made


def write_clips(
    out: Path, *, count: int, frames: int = 8, side: int = 32, rate: int = 8, seed: int = 0,
    on_class: Callable[[], object] = lambda: None,
) -> None:  # fmt: skip
    """Write OUT/MOTION/*.gif, `count` clips each; on_class is called after each motion.

    FileExistsError if `out` is there already.
    """
    if out.exists():
        raise FileExistsError(f"{out} exists: choose a new folder, or delete it first")
    for index, name in enumerate(MOTIONS):
        (out / name).mkdir(parents=True)
        rng = np.random.default_rng([seed, index])
        for i in range(count):
            made = torch.from_numpy(clip(name, frames=frames, side=side, rng=rng)).float()
            (out / name / f"{i:05d}.gif").write_bytes(as_gif(made.permute(3, 0, 1, 2), rate=rate))
        on_class()


def _outside(kind: int, centre: Frames, radius: float, side: int) -> Frames:
    """Distance of each pixel to the shape, on a torus; negative inside."""
    axis = np.arange(side) + 0.5
    down, right = (np.abs((axis - c + side / 2) % side - side / 2) for c in centre)
    y, x = down[:, None], right[None, :]
    if kind == 0:
        return np.hypot(y, x) - radius
    if kind == 1:
        return np.maximum(y, x) - 0.85 * radius
    return (y + x - 1.25 * radius) / np.sqrt(2)


def _colours(rng: np.random.Generator) -> tuple[Frames, Frames]:
    """A dark ground and a bright ink, both with a hue."""
    ground = rng.uniform(-1.0, -0.4, 3)
    ink = rng.uniform(-0.2, 1.0, 3)
    ink[rng.integers(0, 3)] = 1.0
    return ground, ink
