"""Pictures from labels or prompts: any size, seamless tiles, one seed an image, bounded memory.

made = generate("brick", size=128, count=4, steps=20, seed=0)
made.images     # float32 [4, 3, 128, 128] in [-1, 1]
made.recipe     # what makes them again, with the same model: generate(**made.recipe["arguments"])
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from fastdiff.apps.canvas import Windowed
from fastdiff.apps.settings import MAX_COUNT, Settings, check_integer, check_number, size_of
from fastdiff.apps.source import ALL, Source, prompts_of, source_of
from fastdiff.apps.work import Cancel, Job, Made, Preview, Progress, Work
from fastdiff.events import Cancelled

OWN = frozenset(("prompts", "size", "count", "tile", "window", "overlap"))
ARGUMENTS = OWN | {field.name for field in fields(Settings)}
"""The arguments of `prepare` that a recipe holds; with the checkpoint, they decide the pictures."""


def generate(
    prompts: str | Sequence[str | None] = ALL,
    *,
    progress: Progress | None = None,
    cancel: Cancel | None = None,
    preview: Preview | None = None,
    trajectory: bool = False,
    **arguments: Any,
) -> Made:
    """Make pictures; the arguments are those of `prepare`, which checks them before any work is done.

    progress, cancel, preview, trajectory: as for `fastdiff.apps.work.Job.run`.
    """
    job = prepare(prompts, **arguments)
    return job.run(progress=progress, cancel=cancel, preview=preview, trajectory=trajectory)


def prepare(
    prompts: str | Sequence[str | None] = ALL,
    *,
    size: int | Sequence[int] | None = None,
    count: int = 1,
    tile: bool = False,
    window: int | None = None,
    overlap: float = 0.5,
    model: object = None,
    device: str | None = None,
    **settings: Any,
) -> Job:
    """A checked piece of work, ready to run.

    prompts: one or several labels of the model, or "all"; texts, where the model takes text.
    size: pixels, N or (width, height), or as trained. count: images of each prompt.
    tile: pictures that repeat seamlessly.
    window: side in pixels of the windows that the model sees of a large picture; their outputs are blended in each step
        (fastdiff/apps/canvas.py). overlap: of neighbouring windows, a share of their side.
    model: a checkpoint, a loaded model, a Source, or None for the bundled one.
    device: "cpu" or "cuda", where a checkpoint is loaded; cuda where there is one if None.
    settings: those of `fastdiff.apps.settings.Settings`, by name.

    Raises ValueError, TypeError or OSError in one line for anything that could not work.
    """
    started = time.perf_counter()
    source = source_of(model, device=device)
    width_height = size_of(size, source)
    names = prompts_of(prompts, source)
    check_integer("count", count, 1, MAX_COUNT // len(names))
    how = Settings(**settings)
    everything = tuple(name for name in names for _ in range(count))
    work = Work(
        source=source.tiled() if tile and window is None else source,
        plan=how.plan(source, width_height),
        prompts=everything,
        seeds=how.seeds(len(everything)),
        size=width_height,
        scale=how.scale(source),
        batch=how.batch_of(source, width_height),
        negative=how.negative,
        model=None if window is None else _windowed(source, window, overlap, wrap=tile),
    )
    arguments = {
        "prompts": list(names), "size": list(width_height), "count": count, "tile": tile,
        "window": window, "overlap": overlap, **how.as_dict(source, width_height),
    }  # fmt: skip
    return Job(work, "generate", arguments, loading=time.perf_counter() - started)


def _windowed(source: Source, window: int, overlap: float, *, wrap: bool) -> Windowed:
    """The source as a model of large pictures. Raises ValueError for windows it cannot see."""
    check_number("overlap", overlap, 0.0, 0.9)
    side = size_of(window, source)[0]
    height, width = source.shape(1, side, side)[-2:]
    at_once = max(1, source.batch_pixels // (side * side))
    return Windowed(source, (height, width), round(overlap * width), wrap=wrap, at_once=at_once)


__all__ = ["Cancelled", "Job", "generate", "prepare"]
