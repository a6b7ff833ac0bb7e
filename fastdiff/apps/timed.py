"""Sounds and clips from labels, with checkpoints of one and of three dimensions.

made = generate("bell", model="run/model.safetensors", count=4)
made.images     # float32 [4, C, L] of sounds, [4, 3, D, H, W] of clips, in [-1, 1]
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from fastdiff import models
from fastdiff.apps.settings import MAX_COUNT, MAX_SIDE, Settings, check_integer
from fastdiff.apps.source import ALL, Native, Source, pick_device, prompts_of
from fastdiff.apps.work import Cancel, Job, Made, Preview, Progress, Work

MAX_LENGTH = 1 << 24
MAX_FRAMES = 4096


class Timed(Native):
    """A `TrainedUNet` of sounds or clips as a source. x is the sound or clip; clips have `frames` frames.

    size: (samples, 1) of a sound, (width, height) of a clip.
    """

    def __init__(
        self, net: models.TrainedUNet, *, call: models.UNet | None = None, frames: int | None = None
    ) -> None:
        if net.config.dims == 2:
            raise ValueError("this model makes pictures: fastdiff.apps.generate is the place for it")
        self.net, self.call = net, call or net
        self.schedule, self.prediction, self.labels = net.schedule, net.prediction, net.labels
        self.multiple, self.rate = net.config.multiple, net.config.rate
        self.frames = frames or net.config.frames
        side = net.config.image_size
        self.size = (side, 1) if net.config.dims == 1 else (side, side)
        # What a larger batch is no faster beyond; for clips, pixels of one frame.
        self.batch_pixels = 16 * 4096 if net.config.dims == 1 else max(1, 16 * 8 * 32 * 32 // self.frames)

    def shape(self, count: int, width: int, height: int) -> tuple[int, ...]:
        sides = (width,) if self.net.config.dims == 1 else (self.frames, height, width)
        return (count, self.net.config.image_channels, *sides)

    def tiled(self) -> Source:
        """The same model, for sounds and clips whose end goes over into their beginning."""
        return Timed(self.net, call=self.net.tiled(axes=(0,)), frames=self.frames)


def generate(
    prompts: str | Sequence[str | None] = ALL,
    *,
    progress: Progress | None = None,
    cancel: Cancel | None = None,
    preview: Preview | None = None,
    **arguments: Any,
) -> Made:
    """Make sounds or clips; the arguments are those of `prepare`. progress, cancel, preview: as for `Job.run`."""
    return prepare(prompts, **arguments).run(progress=progress, cancel=cancel, preview=preview)


def prepare(
    prompts: str | Sequence[str | None] = ALL,
    *,
    model: object,
    size: int | Sequence[int] | None = None,
    count: int = 1,
    tile: bool = False,
    device: str | None = None,
    **settings: Any,
) -> Job:
    """A checked piece of work, ready to run.

    prompts: one or several labels of the model, or "all". model: a checkpoint of sounds or clips, its path or itself.
    size: as trained if None; samples of a sound, (width, height) or (width, height, frames) of a clip, or one number
    for width and height. count: of each prompt. tile: the end goes over into the beginning, so that it loops.
    settings: those of `fastdiff.apps.settings.Settings`, by name.

    Raises ValueError, TypeError or OSError in one line for anything that could not work.
    """
    started = time.perf_counter()
    source = _source(model, device, _sides(size))
    names = prompts_of(prompts, source)
    check_integer("count", count, 1, MAX_COUNT // len(names))
    how = Settings(**settings)
    everything = tuple(name for name in names for _ in range(count))
    work = Work(
        source=source.tiled() if tile else source,
        plan=how.plan(source, source.size),
        prompts=everything,
        seeds=how.seeds(len(everything)),
        size=source.size,
        scale=how.scale(source),
        batch=how.batch_of(source, source.size),
        negative=how.negative,
    )
    shown = [source.size[0]] if source.net.config.dims == 1 else [*source.size, source.frames]
    arguments = {
        "prompts": list(names), "size": shown, "count": count, "tile": tile, **how.as_dict(source, source.size),
    }  # fmt: skip
    return Job(work, "generate", arguments, loading=time.perf_counter() - started)


def _sides(size: int | Sequence[int] | None) -> tuple[int, ...]:
    return () if size is None else (size,) if isinstance(size, int) else tuple(size)


def _source(model: object, device: str | None, sides: tuple[int, ...]) -> Timed:
    """The source of a model, for that size; none of a side: as trained."""
    net = model if isinstance(model, models.TrainedUNet) else models.load(model, device=pick_device(device))  # type: ignore[arg-type]
    source = Timed(net)
    if not sides:
        return source
    if net.config.dims == 1:
        if len(sides) > 1:
            raise ValueError(
                f"the size of a sound is one number, its samples, got {'x'.join(map(str, sides))}"
            )
        source.size = (_checked("samples", sides[0], MAX_LENGTH, source.multiple), 1)
        return source
    width, height, *frames = (*sides, *sides)[:2] if len(sides) == 1 else sides
    if len(frames) > 1:
        raise ValueError(f"the size of a clip is width, height and frames, got {'x'.join(map(str, sides))}")
    source = Timed(net, frames=_checked("frames", frames[0], MAX_FRAMES, source.multiple) if frames else None)
    source.size = (
        _checked("width", width, MAX_SIDE, source.multiple), _checked("height", height, MAX_SIDE, source.multiple)
    )  # fmt: skip
    return source


def _checked(name: str, value: int, high: int, multiple: int) -> int:
    check_integer(name, value, multiple, high)
    if value % multiple:
        down = value // multiple * multiple
        raise ValueError(
            f"{name} must be a multiple of {multiple}, got {value}: use {down} or {down + multiple}"
        )
    return value
