"""Denoising a photograph: it is taken for the noisy image of the model's level that has as much noise.

made = denoise(read_image("noisy.png"))                # the noise estimated
made = denoise(picture, noise=25, average=4)           # deviation 25 of 255; four looks averaged

At that level x = alpha * clean + sigma * eps is alpha times the photograph, with nothing added. One model call gives
the mean of all clean pictures that could be behind it, the least squared error a model can reach; several steps go on
to a single one of them, sharper and further from the truth (arXiv:2101.09552; arXiv:1711.06077 on why not both).
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fastdiff.apps.looks import Averaged, Looks
from fastdiff.apps.noise_level import noise_level
from fastdiff.apps.picture import checked
from fastdiff.apps.settings import Settings, check_integer, check_number
from fastdiff.apps.source import Source, source_of
from fastdiff.apps.work import Cancel, Job, Made, Preview, Progress, Work, digest
from fastdiff.levels import Level, clean
from fastdiff.plan import Plan
from fastdiff.sampling import planned
from fastdiff.schedules import from_levels
from fastdiff.spacings import karras

MAX_NOISE = 255.0
LEAST = 2e-3  # sigma / alpha below which a model sees no noise: a quarter of a grey value


def denoise(
    picture: Tensor,
    *,
    progress: Progress | None = None,
    cancel: Cancel | None = None,
    preview: Preview | None = None,
    trajectory: bool = False,
    **arguments: Any,
) -> Made:
    """Denoise a picture; the arguments are those of `prepare`, which checks them before any work is done.

    progress, cancel, preview, trajectory: as for `fastdiff.apps.work.Job.run`.
    """
    job = prepare(picture, **arguments)
    return job.run(progress=progress, cancel=cancel, preview=preview, trajectory=trajectory)


def prepare(
    picture: Tensor,
    *,
    noise: float | None = None,
    steps: int = 1,
    average: int = 1,
    model: object = None,
    device: str | None = None,
    **settings: Any,
) -> Job:
    """A checked piece of work, ready to run.

    picture: float [3, H, W] in [-1, 1], any size; of a grey one (three equal channels) the result is grey.
    noise: its standard deviation on the scale 0..255; estimated if None (`fastdiff.apps.noise_level`). The recipe holds
    the value used. steps: 1 for the mean, more for a sharper picture. average: looks at the picture, turned over and
    shifted, whose results are averaged, 1 to 16; each costs as much as the first.
    model, device, settings: as for `fastdiff.apps.generate.prepare`; spacing does not apply.

    Raises ValueError, TypeError or OSError in one line for anything that could not work, such as a model of latents.
    """
    started = time.perf_counter()
    given = checked(picture)
    if noise is not None:
        check_number("noise", noise, 0, MAX_NOISE)
    source = source_of(model, device=device)
    if not source.exact:
        raise ValueError(
            "this model works on latents, whose noise is not the picture's: denoise with one that works on pixels, "
            "such as the bundled one"
        )
    how = Settings(steps=steps, **settings)
    check_integer("average", average, 1, Looks.MOST)
    if how.spacing is not None:
        raise ValueError(
            "denoising spaces its steps itself, from the picture's noise down: leave spacing out"
        )
    # rounded as the recipe holds it, so that the recipe makes the same picture
    level = round(noise_level(given) if noise is None else float(noise), 3)
    grey = bool((given == given[:1]).all())
    plan = descent(source, how, level * (math.sqrt(3) if grey else 1.0))
    looks = Looks.of(given, source, average)
    first = plan.levels[0]

    def extra(images: slice) -> Mapping[str, Any]:
        seen = looks.seen(images)
        if grey:
            seen = seen + colour_noise(seen, how.seeds(average)[images], first.ratio)
        return {"x": first.alpha * source.encode(seen)}

    work = Work(
        source=source,
        plan=plan,
        prompts=(None,) * average,
        seeds=how.seeds(average),
        size=looks.size,
        scale=1.0,
        batch=how.batch_of(source, looks.size),
        extra=extra,
    )
    arguments = {
        "noise": level,
        "average": average,
        **how.as_dict(source, looks.size, written=(given.shape[2], given.shape[1])),
    }
    return Averaged(
        work, "denoise", {name: value for name, value in arguments.items() if name != "spacing"},
        inputs={"picture": digest(given)},
        finish=lambda images: _grey(looks.merged(images)) if grey else looks.merged(images),
        loading=time.perf_counter() - started,
    )  # fmt: skip


def descent(source: Source, how: Settings, noise: float) -> Plan:
    """The plan from a picture with noise of that deviation (of 0..255) down to none.

    Its steps lie on a Karras grid (arXiv:2206.00364, equation 5) between that level and the least a model sees.
    """
    process = source.schedule.process
    least = max(
        LEAST, process.level(0.0).ratio
    )  # models trained at discrete times know none below their first
    top = max(noise / 127.5, least)
    ratios = karras(how.steps, least, top) if how.steps > 1 and top > least else [top]
    levels: list[Level] = [*(process.at(float(ratio)) for ratio in ratios), clean(process)]
    plan = planned(
        how.sampler, from_levels(levels), steps=how.steps, prediction=source.prediction, clip=source.clip,
        options=how.options,
    )  # fmt: skip
    if not isinstance(plan, Plan):
        raise ValueError(f"{how.sampler} chooses its steps as it goes: take another sampler for denoising")
    return plan


def colour_noise(pictures: Tensor, seeds: tuple[int, ...], sigma: float) -> Tensor:
    """What makes grey noise white noise of deviation sigma in all three channels: noise without a grey part.

    The model knows noise that is independent in the channels. White noise of deviation sigma has a mean over the
    channels of deviation sigma / sqrt(3): so grey noise counts sqrt(3) times, and its colours are drawn here.
    """
    drawn = [torch.randn(pictures.shape[1:], generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    colours = torch.stack(drawn)
    return sigma * (colours - colours.mean(dim=1, keepdim=True))


def _grey(images: Tensor) -> Tensor:
    return images.mean(dim=1, keepdim=True).expand_as(images).contiguous()


__all__ = ["denoise", "prepare"]
