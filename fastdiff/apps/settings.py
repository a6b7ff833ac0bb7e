"""How to sample: the arguments that every application takes, checked before any work."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastdiff import schedules, watermark
from fastdiff.adaptive import AdaptivePlan
from fastdiff.apps.source import Source
from fastdiff.levels import DiscreteTime
from fastdiff.noise import MAX_SEED
from fastdiff.plan import Plan
from fastdiff.sampling import planned

MAX_COUNT = 4096
MAX_SIDE = 4096


@dataclass(frozen=True)
class Settings:
    """How an application samples.

    sampler, options, steps: as for `fastdiff.sample`. spacing: how the steps lie on the model's schedule.
    guidance: scale of classifier-free guidance, 1 for none; None: the model's usual one. negative: the prompt of the
    unconditional branch, where the model takes text. seed: image i of a job is made from seed + i alone.
    batch: images made at once, which bounds memory; None: chosen by size. watermark: files hold an invisible mark too.
    """

    steps: int = 20
    sampler: str = "dpmpp_2m"
    options: Mapping[str, Any] = field(default_factory=dict)
    spacing: str | None = None
    guidance: float | None = None
    negative: str | None = None
    seed: int = 0
    batch: int | None = None
    watermark: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.sampler, str):
            raise TypeError(f"sampler must be a name, got {self.sampler!r}")
        if self.guidance is not None and not math.isfinite(self.guidance):
            raise ValueError(f"guidance must be a finite number, got {self.guidance}")
        if self.batch is not None:
            check_integer("batch", self.batch, 1, MAX_COUNT)
        object.__setattr__(self, "options", dict(self.options or {}))

    def plan(self, source: Source, size: tuple[int, int] | None = None) -> Plan | AdaptivePlan:
        """The plan of these settings on a source's schedule, for pictures of `size` (as trained if None).

        Raises ValueError for what does not fit.
        """
        source.check([self.negative])
        schedule = source.schedule if size is None else source.schedule_at(*size)
        return planned(
            self.sampler, _spaced(schedule, self.spacing), steps=self.steps, prediction=source.prediction,
            clip=source.clip, options=self.options,
        )  # fmt: skip

    def scale(self, source: Source) -> float:
        """The scale of guidance."""
        if self.guidance not in (None, 1.0) and not (source.labels or source.takes_text):
            raise ValueError("this model takes no prompt, so nothing guides it: leave guidance out")
        return source.guidance if self.guidance is None else self.guidance

    def seeds(self, count: int) -> tuple[int, ...]:
        """The seed of each of `count` images."""
        check_integer("seed", self.seed, 0, MAX_SEED - count)
        return tuple(self.seed + i for i in range(count))

    def batch_of(self, source: Source, size: tuple[int, int]) -> int:
        """Images made at once."""
        return self.batch or max(1, source.batch_pixels // (size[0] * size[1]))

    def as_dict(
        self, source: Source, size: tuple[int, int], *, written: tuple[int, int] | None = None
    ) -> dict[str, Any]:
        """JSON data of a recipe: every setting, what was left open filled in; negative and watermark only if given.

        size: at which the model works. written: (width, height) of the pictures written, if they are cut from it.
        Raises ValueError for a size too small for a watermark.
        """
        own = {
            "steps": self.steps, "sampler": self.sampler, "options": dict(self.options), "spacing": self.spacing,
            "seed": self.seed, "guidance": self.scale(source), "batch": self.batch_of(source, size),
        }  # fmt: skip
        if self.negative is not None:
            own["negative"] = self.negative
        if self.watermark:
            watermark.check_size(*(written or size))
            own["watermark"] = True
        return own


def size_of(size: int | Sequence[int] | None, source: Source) -> tuple[int, int]:
    """(width, height) from one number, a pair, or None for the size as trained. ValueError for one that cannot be."""
    if size is None:
        return source.size
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) != 2:
        raise ValueError(f"size must be one number or (width, height), got {size!r}")
    multiple = source.multiple
    for side in sides:
        check_integer("size", side, multiple, MAX_SIDE)
        if side % multiple:
            down = max(multiple, side // multiple * multiple)
            raise ValueError(
                f"size must be a multiple of {multiple}, got {side}: use {down} or {down + multiple}"
            )
    return sides


def check_integer(name: str, value: object, low: int, high: int) -> None:
    """ValueError unless value is an integer from low to high."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{name} must be an integer from {low} to {high}, got {value!r}")


def check_number(name: str, value: object, low: float, high: float) -> None:
    """ValueError unless value is a finite number from low to high."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not low <= value <= high:  # type: ignore[arg-type, operator]
        raise ValueError(f"{name} must be a number from {low:g} to {high:g}, got {value!r}")


def _spaced(schedule: schedules.Schedule, spacing: str | None) -> schedules.Schedule:
    if spacing is None:
        return schedule
    if not isinstance(schedule.process, DiscreteTime):
        raise ValueError("this model's schedule has no other spacing: leave it out")
    return schedules.from_alphas_cumprod(schedule.process.alphas_cumprod, spacing=spacing)
