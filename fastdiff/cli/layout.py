"""How the pictures of a job lie on a sheet, and what their files are called."""

from __future__ import annotations

import re
from dataclasses import dataclass

from fastdiff.apps.compare import Comparison
from fastdiff.apps.work import Job
from fastdiff.images import columns_for


@dataclass(frozen=True)
class Layout:
    """names: of single files, without suffix, one a picture. captions: for a sheet, or None. columns: of the sheet.

    size: (width, height) of a picture.
    """

    names: tuple[str, ...]
    captions: tuple[str, ...] | None
    columns: int
    size: tuple[int, int]


def layout_of(job: Job | Comparison) -> Layout:
    """The layout that suits a job: samplers by steps, frames in order, or classes together."""
    if isinstance(job, Comparison):
        return _comparison(job)
    work = job.work
    count, (width, height) = len(work.prompts), work.size
    aspect = width / height
    if job.command == "interpolate":
        names = tuple(f"frame-{i:04d}" for i in range(count))
        return Layout(names, None, columns_for(count, aspect=aspect), work.size)
    names = tuple(f"{plain(prompt)}-seed{seed}" for prompt, seed in zip(work.prompts, work.seeds))
    kinds = len(set(work.prompts))
    captions = tuple((prompt or "").replace("_", " ") for prompt in work.prompts) if kinds > 1 else None
    columns = columns_for(count, group=count // kinds if kinds > 1 else 1, aspect=aspect)
    return Layout(names, captions, columns, work.size)


def _comparison(job: Comparison) -> Layout:
    first = job.jobs[0].work
    names = tuple(
        f"{one.arguments['sampler']}-{one.arguments['steps']}-{plain(prompt)}-seed{seed}"
        for one in job.jobs
        for prompt, seed in zip(one.work.prompts, one.work.seeds)
    )
    return Layout(names, job.captions, len(job.steps) * len(first.prompts), first.size)


def plain(prompt: str | None) -> str:
    """A prompt as part of a file name."""
    return re.sub(r"[^\w-]+", "_", prompt or "any")[:60]
