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

from fastdiff.apps.settings import MAX_COUNT, Settings, check_integer, size_of
from fastdiff.apps.source import ALL, prompts_of, source_of
from fastdiff.apps.work import Cancel, Job, Made, Preview, Progress, Work
from fastdiff.events import Cancelled

OWN = frozenset(("prompts", "size", "count", "tile"))
ARGUMENTS = OWN | {field.name for field in fields(Settings)}
"""The arguments of `prepare` that a recipe holds; with the checkpoint, they decide the pictures."""


def generate(
    prompts: str | Sequence[str] = ALL,
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
    prompts: str | Sequence[str] = ALL,
    *,
    size: int | Sequence[int] | None = None,
    count: int = 1,
    tile: bool = False,
    model: object = None,
    device: str | None = None,
    **settings: Any,
) -> Job:
    """A checked piece of work, ready to run.

    prompts: one or several labels of the model, or "all"; texts, where the model takes text.
    size: pixels, N or (width, height), or as trained. count: images of each prompt.
    tile: pictures that repeat seamlessly. model: a checkpoint, a loaded model, a Source, or None for the bundled one.
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
        source=source.tiled() if tile else source,
        plan=how.plan(source),
        prompts=everything,
        seeds=how.seeds(len(everything)),
        size=width_height,
        scale=how.scale(source),
        batch=how.batch_of(source, width_height),
        negative=how.negative,
    )
    arguments = {
        "prompts": list(names), "size": list(width_height), "count": count, "tile": tile,
        **how.as_dict(source, width_height),
    }  # fmt: skip
    return Job(work, "generate", arguments, loading=time.perf_counter() - started)


__all__ = ["Cancelled", "Job", "generate", "prepare"]
