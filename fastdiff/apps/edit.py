"""Image to image: a picture is noised part of the way and made anew from there (SDEdit, arXiv:2108.01073).

made = edit(read_image("photo.png"), "brick", strength=0.6, count=4, seed=0)
made.images     # float32 [4, 3, H, W] in [-1, 1], of the photograph's size
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fastdiff.apps.picture import Frame, checked, many, scale_for
from fastdiff.apps.settings import MAX_COUNT, Settings, check_integer, check_number
from fastdiff.apps.source import source_of
from fastdiff.apps.work import Cancel, Job, Made, Preview, Progress, Work, digest


def edit(
    picture: Tensor,
    prompt: str | None = None,
    *,
    progress: Progress | None = None,
    cancel: Cancel | None = None,
    preview: Preview | None = None,
    trajectory: bool = False,
    **arguments: Any,
) -> Made:
    """Change a picture; the arguments are those of `prepare`, which checks them before any work is done.

    progress, cancel, preview, trajectory: as for `fastdiff.apps.work.Job.run`.
    """
    job = prepare(picture, prompt, **arguments)
    return job.run(progress=progress, cancel=cancel, preview=preview, trajectory=trajectory)


def prepare(
    picture: Tensor,
    prompt: str | None = None,
    *,
    strength: float = 0.5,
    count: int = 1,
    model: object = None,
    device: str | None = None,
    **settings: Any,
) -> Job:
    """A checked piece of work, ready to run.

    picture: float [3, H, W] in [-1, 1], any size. prompt: a label or text to go towards, or None.
    strength: the share of the steps that is taken, rounded down, from 0, which gives the picture back (as the model's
    autoencoder sees it, where it has one), to 1, a new picture. count: pictures made. model, device, settings: as for
    `fastdiff.apps.generate.prepare`.

    Raises ValueError, TypeError or OSError in one line for anything that could not work.
    """
    started = time.perf_counter()
    given = checked(picture)
    check_number("strength", strength, 0, 1)
    check_integer("count", count, 1, MAX_COUNT)
    source = source_of(model, device=device)
    source.check([prompt])
    how, frame, prompts = Settings(**settings), Frame.of(given, source), (prompt,) * count
    padded = frame.pad(given)[None]

    def extra(images: slice) -> Mapping[str, Any]:
        clean = source.encode(padded)
        # the plan starts part-way as it is: its whole is what is left to do
        return {"x": clean.expand(many(images, count), *clean.shape[1:]), "strength": 1.0}

    work = Work(
        source=source,
        plan=how.plan(source, frame.size).start_at(strength),
        prompts=prompts,
        seeds=how.seeds(count),
        size=frame.size,
        scale=scale_for(how, source, prompts),
        batch=how.batch_of(source, frame.size),
        negative=how.negative,
        extra=extra,
    )
    arguments = {
        "prompt": prompt,
        "strength": strength,
        "count": count,
        **how.as_dict(source, frame.size, written=(frame.width, frame.height)),
    }
    return Job(
        work, "edit", arguments, inputs={"picture": digest(given)}, finish=frame.crop,
        loading=time.perf_counter() - started,
    )  # fmt: skip


__all__ = ["edit", "prepare"]
