"""Inpainting: what a mask marks is made anew, the rest stays as it is, to the last bit.

made = inpaint(picture, mask)                                       # scratches, specks, missing pixels
made = inpaint(picture, mask, "flower", count=4, resample=3)        # something new in a hole
made = inpaint(*extended(picture, right=64), "grass")               # more around it

Two ways, chosen by what is asked for:

- "sample" draws something new: sampling from noise, in which what is known takes its place again after every step at
  that step's noise (fastdiff.Inpaint), with RePaint's resampling if asked for (fastdiff.apps.resampling);
- "restore" mends: a smooth filling of the hole (fastdiff.apps.filling) is taken for a slightly noisy picture and
  denoised in a few deterministic steps, each of which puts back what is known, as in plug-and-play restoration
  (arXiv:1704.03264, arXiv:2305.08995). There is one result, near the mean of what could have been there.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastdiff.apps.denoise import MAX_NOISE, descent
from fastdiff.apps.filling import depth, filled
from fastdiff.apps.looks import Averaged, Looks
from fastdiff.apps.masks import MAX_FEATHER, checked_mask, feathered, shrunk
from fastdiff.apps.picture import Frame, check_sides, checked, scale_for
from fastdiff.apps.resampling import resampled
from fastdiff.apps.settings import MAX_COUNT, Settings, check_integer, check_number
from fastdiff.apps.source import Source, source_of
from fastdiff.apps.work import Cancel, Job, Made, Preview, Progress, Work, digest
from fastdiff.choices import unknown
from fastdiff.inpainting import Inpaint
from fastdiff.plan import Plan

METHODS = ("sample", "restore")
MENDED = 12  # pixels from the rim of a hole to its middle, up to which surroundings tell what was there
STEPS = {"sample": 20, "restore": 4}
# Fresh noise in each step lets the two parts find together; without, holes keep what they began with.
USUAL: dict[str, dict[str, Any]] = {"sample": {"sampler": "ddim", "options": {"eta": 1.0}}, "restore": {}}
MAX_ROUNDS = 50


def inpaint(
    picture: Tensor,
    mask: Tensor,
    prompt: str | None = None,
    *,
    progress: Progress | None = None,
    cancel: Cancel | None = None,
    preview: Preview | None = None,
    trajectory: bool = False,
    **arguments: Any,
) -> Made:
    """Repaint a part; the arguments are those of `prepare`, which checks them before any work is done.

    progress, cancel, preview, trajectory: as for `fastdiff.apps.work.Job.run`.
    """
    job = prepare(picture, mask, prompt, **arguments)
    return job.run(progress=progress, cancel=cancel, preview=preview, trajectory=trajectory)


def prepare(
    picture: Tensor,
    mask: Tensor,
    prompt: str | None = None,
    *,
    method: str | None = None,
    feather: int = 0,
    resample: int = 1,
    jump: int = 5,
    doubt: float = 20.0,
    average: int = 1,
    count: int = 1,
    steps: int | None = None,
    model: object = None,
    device: str | None = None,
    **settings: Any,
) -> Job:
    """A checked piece of work, ready to run.

    picture: float [3, H, W] in [-1, 1], any size; what it holds under the mask does not matter. mask: [H, W] or
    [1, H, W], 1 where to repaint, 0 to keep; between, the result is a weighted mean. prompt: a label or text, or None.
    method: "sample" or "restore"; None: "restore" for one picture without prompt or resampling where no hole is deeper
    than 12 pixels from its rim, else "sample". feather: pixels around the mask over which old and new are blended; with
    0, all that is kept is kept exactly.
    count: pictures made. resample, jump: how often each stretch of `jump` steps is walked. All of "sample".
    doubt: by how much the filling may be off, a standard deviation of 0..255. average: looks at the picture, turned
    over and shifted, whose results are averaged, 1 to 16. Both of "restore".
    steps: None for 20, or 4 of "restore". sampler: ddim with eta 1 for "sample", if none is given.
    model, device, settings: as for `fastdiff.apps.generate.prepare`.

    Raises ValueError, TypeError or OSError in one line for anything that could not work.
    """
    started = time.perf_counter()
    given = checked(picture)
    marked = checked_mask(mask, given)
    check_integer("count", count, 1, MAX_COUNT)
    check_integer("feather", feather, 0, MAX_FEATHER)
    check_integer("resample", resample, 1, MAX_ROUNDS)
    check_integer("jump", jump, 1, 1000)
    check_integer("average", average, 1, Looks.MOST)
    check_number("doubt", doubt, 0, MAX_NOISE)
    source = source_of(model, device=device)
    source.check([prompt])
    weight = feathered(marked, feather)
    if method is None:
        mends = prompt is None and count == resample == 1 and depth(weight, most=MENDED + 1) <= MENDED
        method = "restore" if mends else "sample"
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    usual = USUAL[method] if "sampler" not in settings else {}
    how = Settings(steps=STEPS[method] if steps is None else steps, **{**usual, **settings})
    task = Task(given, weight, prompt, source, how)
    if method == "sample":
        if average != 1:
            raise ValueError("average belongs to method 'restore': ask for count pictures instead")
        work, back, own = task.sampling(count=count, resample=resample, jump=jump)
    else:
        if count != 1 or resample != 1 or how.spacing is not None:
            raise ValueError("method 'restore' takes neither count, resample nor spacing: use 'sample'")
        work, back, own = task.restoring(average=average, doubt=doubt)
    kind = Job if method == "sample" else Averaged
    return kind(
        work,
        "inpaint",
        {"prompt": prompt, "method": method, "feather": feather, **own},
        inputs={"picture": digest(given), "mask": digest(marked)},
        finish=lambda images: composed(back(images), given, weight),
        loading=time.perf_counter() - started,
    )


def extended(
    picture: Tensor, left: int = 0, top: int = 0, right: int = 0, bottom: int = 0
) -> tuple[Tensor, Tensor]:
    """A larger canvas around a picture, and the mask of what is new on it: for outpainting.

    picture: float [3, H, W]. Returns float32 [3, H', W'] and [1, H', W']. Raises ValueError or TypeError as `prepare`.
    """
    given = checked(picture)
    for name, pixels in {"left": left, "top": top, "right": right, "bottom": bottom}.items():
        check_integer(name, pixels, 0, 4096)
    if not (left or top or right or bottom):
        raise ValueError("nothing to add: say by how many pixels to extend the picture, and where")
    height, width = given.shape[-2:]
    check_sides(left + width + right, top + height + bottom)
    canvas = torch.zeros(3, top + height + bottom, left + width + right)
    mask = torch.ones(1, *canvas.shape[1:])
    inside = (slice(None), slice(top, top + height), slice(left, left + width))
    canvas[inside], mask[inside] = given, 0.0
    return canvas, mask


def composed(images: Tensor, picture: Tensor, weight: Tensor) -> Tensor:
    """New where weight is 1, the picture itself where it is 0: [N, 3, H, W]."""
    return torch.where(weight == 0, picture, weight * images + (1 - weight) * picture)


Parts = tuple[Work, Callable[[Tensor], Tensor], dict[str, Any]]
"""The work, what brings its images back to the picture's place and size, and its arguments for the recipe."""


@dataclass(frozen=True)
class Task:
    """What both methods need: the picture [3, H, W], how much of each pixel is new [1, H, W], and how to sample."""

    picture: Tensor
    weight: Tensor
    prompt: str | None
    source: Source
    how: Settings

    @property
    def written(self) -> tuple[int, int]:
        """(width, height) of what comes of it."""
        return self.picture.shape[2], self.picture.shape[1]

    def sampling(self, *, count: int, resample: int, jump: int) -> Parts:
        """Something new, by blending in each step."""
        frame = Frame.of(self.picture, self.source)
        hole = shrunk(frame.pad(self.weight), self.source.shape(1, *frame.size))
        plan = resampled(self.how.plan(self.source, frame.size), rounds=resample, jump=jump)

        @functools.cache  # when it runs, not before; then for every micro-batch
        def known() -> Tensor:
            return self.source.encode(frame.pad(filled(self.picture, self.weight))[None])

        def extra(images: slice) -> Mapping[str, Any]:
            return {"inpaint": Inpaint(known(), hole)}

        settings = self.how.as_dict(self.source, frame.size, written=self.written)
        arguments = {"resample": resample, "jump": jump, "count": count, **settings}
        return self._work(plan, count, frame.size, extra), frame.crop, arguments

    def restoring(self, *, average: int, doubt: float) -> Parts:
        """What was there, from a smooth filling."""
        if not bool((self.weight == 0).any()):
            raise ValueError(
                "nothing of the picture is kept, so nothing can be restored: use method 'sample'"
            )
        plan = descent(self.source, self.how, doubt)
        looks = Looks.of(self.picture, self.source, average)
        holes, shape = looks.on(self.weight), self.source.shape(1, *looks.size)

        @functools.cache
        def smooth() -> Looks:
            return looks.on(filled(self.picture, self.weight))

        def extra(images: slice) -> Mapping[str, Any]:
            known = self.source.encode(smooth().seen(images))
            hole = torch.stack([shrunk(mask, shape) for mask in holes.seen(images)])
            # What is known has no noise, nor has the filling: the steps take the filling's errors for noise.
            still = Inpaint(known, hole, noise=torch.zeros_like(known))
            return {"x": plan.levels[0].alpha * known, "inpaint": still}

        settings = self.how.as_dict(self.source, looks.size, written=self.written)
        del settings["spacing"]
        arguments = {"doubt": doubt, "average": average, **settings}
        return self._work(plan, average, looks.size, extra), looks.merged, arguments

    def _work(
        self, plan: Plan, images: int, size: tuple[int, int], extra: Callable[[slice], Mapping[str, Any]]
    ) -> Work:
        prompts = (self.prompt,) * images
        return Work(
            source=self.source,
            plan=plan,
            prompts=prompts,
            seeds=self.how.seeds(images),
            size=size,
            scale=scale_for(self.how, self.source, prompts),
            batch=self.how.batch_of(self.source, size),
            negative=self.how.negative,
            extra=extra,
        )


__all__ = ["composed", "extended", "inpaint", "prepare"]
