"""Pictures from labels: any size, seamless tiles, one seed an image, bounded memory.

result = generate("brick", size=128, count=4, steps=20, seed=0)
result.images     # float32 [4, 3, 128, 128] in [-1, 1]
result.recipe     # what makes them again, with the same model: generate(**result.recipe["arguments"])
"""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastdiff import __version__, backend, models, schedules
from fastdiff.adaptive import AdaptivePlan
from fastdiff.choices import unknown
from fastdiff.events import Cancelled, Event
from fastdiff.guidance import Guidance
from fastdiff.levels import DiscreteTime
from fastdiff.noise import MAX_SEED
from fastdiff.plan import Plan
from fastdiff.sampling import planned, sample

MAX_COUNT = 4096
MAX_SIDE = 4096
BATCH_PIXELS = 16 * 64 * 64  # of one micro-batch: a larger one is no faster on a CPU
ALL = "all"
ARGUMENTS = frozenset(
    ("labels", "size", "count", "steps", "sampler", "options", "spacing", "seed", "guidance", "tile", "batch")
)
"""The arguments of `prepare` that a recipe holds; with the checkpoint, they decide the pictures."""

Progress = Callable[[int], object]


@dataclass(frozen=True)
class Generated:
    """Images and what made them.

    images: float32 [N, 3, H, W] in [-1, 1] on the CPU, `count` of each label in turn.
    labels, seeds: of each image. seconds: wall time by part. model_calls: for each image (the most of any micro-batch).
    recipe: JSON data, everything needed to make the same images again; `recipe_of` is that of a single one.
    trajectory: float32 [calls + 1, N, 3, H, W], the noisy image at each model call and the result, if it was asked for.
    """

    images: Tensor
    labels: tuple[str, ...]
    seeds: tuple[int, ...]
    recipe: dict[str, Any]
    seconds: Mapping[str, float]
    model_calls: int
    trajectory: Tensor | None = None

    def recipe_of(self, index: int) -> dict[str, Any]:
        """The recipe that makes image `index` alone."""
        alone = {"labels": [self.labels[index]], "count": 1, "seed": self.seeds[index]}
        return self.recipe | {"arguments": self.recipe["arguments"] | alone}


def generate(
    labels: str | Sequence[str] = ALL,
    *,
    progress: Progress | None = None,
    cancel: Callable[[], bool] | None = None,
    trajectory: bool = False,
    **arguments: Any,
) -> Generated:
    """Make pictures; the arguments are those of `prepare`, which checks them before any work is done.

    progress: called with the number of model calls done since the last time. cancel: asked at each model call; when it
    says True, `Cancelled` is raised. trajectory: keep the noisy images of every step.
    """
    return prepare(labels, **arguments).run(progress=progress, cancel=cancel, trajectory=trajectory)


def prepare(
    labels: str | Sequence[str] = ALL,
    *,
    size: int | Sequence[int] | None = None,
    count: int = 1,
    steps: int = 20,
    sampler: str = "dpmpp_2m",
    options: Mapping[str, Any] | None = None,
    spacing: str | None = None,
    seed: int = 0,
    guidance: float = 2.0,
    tile: bool = False,
    batch: int | None = None,
    model: str | os.PathLike[str] | models.TrainedUNet | None = None,
    device: str | None = None,
) -> Job:
    """A checked piece of work, ready to run.

    labels: one or several names of classes of the model, or "all". size: pixels, N or (width, height),
        or as trained.
    count: images of each label. seed: image i of the job is made from seed + i alone.
    sampler, options, steps: as for `fastdiff.sample`. spacing: how the steps lie on the model's schedule.
    guidance: scale of classifier-free guidance, 1 for none. tile: pictures that repeat seamlessly.
    batch: images made at once, which bounds memory; chosen by size if None.
    model: a checkpoint, a loaded model, or None for the bundled one.
    device: "cpu" or "cuda", where a checkpoint is loaded; cuda where there is one if None.

    Raises ValueError, TypeError or OSError in one line for anything that could not work.
    """
    started = time.perf_counter()
    net = model if isinstance(model, models.TrainedUNet) else models.load(model, device=pick_device(device))
    where = net.label.weight.device
    if device is not None and torch.device(device).type != where.type:
        raise ValueError(
            f"the model is on {where}, not on {device}: load it there, models.load(path, device={device!r})"
        )
    width, height = _size(size, net)
    names = _labels(labels, net.labels)
    _check_integer("count", count, 1, MAX_COUNT // len(names))
    _check_integer("seed", seed, 0, MAX_SEED - count * len(names))
    if not isinstance(sampler, str):
        raise TypeError(f"sampler must be a name, got {sampler!r}")
    if not math.isfinite(guidance):
        raise ValueError(f"guidance must be a finite number, got {guidance}")
    if batch is not None:
        _check_integer("batch", batch, 1, MAX_COUNT)
    plan = planned(sampler, _schedule(net, spacing), steps=steps, prediction=net.prediction, options=options)
    arguments = {
        "labels": list(names), "size": [width, height], "count": count, "steps": steps, "sampler": sampler,
        "options": dict(options or {}), "spacing": spacing, "seed": seed, "guidance": guidance, "tile": tile,
        "batch": batch or max(1, BATCH_PIXELS // (width * height)),
    }  # fmt: skip
    return Job(net, plan, arguments, str(where), loading=time.perf_counter() - started)


@dataclass(frozen=True)
class Job:
    """What `prepare` checked: a model, a plan, and the arguments that are left."""

    net: models.TrainedUNet
    plan: Plan | AdaptivePlan
    arguments: dict[str, Any]
    device: str
    loading: float

    @property
    def labels(self) -> tuple[str, ...]:
        """The label of each image."""
        return tuple(name for name in self.arguments["labels"] for _ in range(self.arguments["count"]))

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seed of each image."""
        return tuple(self.arguments["seed"] + i for i in range(len(self.labels)))

    @property
    def total_calls(self) -> int | None:
        """How often `progress` will count: model calls of all micro-batches; None if that shows only as it runs."""
        batches = -(-len(self.labels) // self.arguments["batch"])
        return None if self.plan.calls is None else self.plan.calls * batches

    def run(
        self,
        *,
        progress: Progress | None = None,
        cancel: Callable[[], bool] | None = None,
        trajectory: bool = False,
    ) -> Generated:
        """Sample, a micro-batch at a time. See `generate`."""
        started = time.perf_counter()
        batch = self.arguments["batch"]
        done: list[Tensor] = []
        films: list[Tensor] = []
        most_calls = 0
        net = self.net.tiled() if self.arguments["tile"] else self.net
        for first in range(0, len(self.labels), batch):
            watch = Watch(progress, cancel, trajectory)
            done.append(self._sample(net, slice(first, first + batch), watch))
            most_calls = max(most_calls, watch.calls)
            films += [torch.stack([*watch.frames, done[-1]])] if trajectory else []
        return Generated(
            images=torch.cat(done),
            labels=self.labels,
            seeds=self.seeds,
            recipe=self.recipe(),
            seconds={"loading": self.loading, "sampling": time.perf_counter() - started},
            model_calls=most_calls,
            trajectory=torch.cat(films, dim=1) if trajectory else None,
        )

    def _sample(self, net: models.UNet, images: slice, watch: Watch) -> Tensor:
        indices = torch.tensor(
            [self.net.labels.index(name) for name in self.labels[images]], device=self.device
        )
        scale = self.arguments["guidance"]
        null = torch.full_like(indices, self.net.config.num_classes)
        width, height = self.arguments["size"]
        x = sample(
            net,
            (len(indices), self.net.config.image_channels, height, width),
            sampler=self.plan,
            conditioning={"label": indices},
            guidance=None if scale == 1.0 else Guidance(scale, {"label": null}),
            seed=self.seeds[images],
            device=self.device,
            callback=watch,
        )
        return x.to("cpu", torch.float32).clamp_(-1, 1)

    def recipe(self) -> dict[str, Any]:
        """JSON data: the arguments, and the circumstances on which the last bits depend."""
        return {
            "fastdiff": __version__,
            "arguments": dict(self.arguments),
            "checkpoint": fingerprint(self.net),
            "torch": torch.__version__,
            "device": self.device,
            "threads": torch.get_num_threads(),
            "backend": backend.select("solver_step", torch.device(self.device).type, torch.float32),
        }


class Watch:
    """The callback of one micro-batch: counts, asks whether to stop, keeps frames."""

    def __init__(self, progress: Progress | None, cancel: Callable[[], bool] | None, keep: bool) -> None:
        self.progress, self.cancel, self.keep = progress, cancel, keep
        self.frames: list[Tensor] = []
        self.calls = 0

    def __call__(self, event: Event) -> None:
        self.calls += 1
        if self.cancel is not None and self.cancel():
            event.cancel()
        if self.keep:
            spread = max(1.0, math.hypot(event.level.alpha, event.level.sigma))
            self.frames.append(event.x.to("cpu", torch.float32) / spread)
        if self.progress is not None:
            self.progress(1)


def pick_device(device: str | None = None) -> str:
    """The device asked for, or cuda where there is one, else cpu. Raises ValueError for one that is not there."""
    if device not in (None, "cpu", "cuda"):
        raise ValueError(f"device must be cpu or cuda, got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda: torch sees no CUDA device here; leave it out, or use cpu")
    return device or ("cuda" if torch.cuda.is_available() else "cpu")


def fingerprint(net: torch.nn.Module) -> str:
    """The first 16 hexadecimal digits of SHA-256 over a model's weights, names included."""
    digest = hashlib.sha256()
    for name, value in sorted(net.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _labels(asked: str | Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    names = (asked,) if isinstance(asked, str) else tuple(asked)
    if names == (ALL,):
        return tuple(known)
    if not names:
        raise ValueError(f"no label given; use {ALL!r} or some of: {', '.join(known)}")
    for name in names:
        if name not in known:
            raise unknown("label", name, known)
    return names


def _size(size: int | Sequence[int] | None, net: models.TrainedUNet) -> tuple[int, int]:
    if size is None:
        return net.config.image_size, net.config.image_size
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) != 2:
        raise ValueError(f"size must be one number or (width, height), got {size!r}")
    multiple = net.config.multiple
    for side in sides:
        _check_integer("size", side, multiple, MAX_SIDE)
        if side % multiple:
            down = max(multiple, side // multiple * multiple)
            raise ValueError(
                f"size must be a multiple of {multiple}, got {side}: use {down} or {down + multiple}"
            )
    return sides


def _schedule(net: models.TrainedUNet, spacing: str | None) -> schedules.Schedule:
    if spacing is None:
        return net.schedule
    process = net.schedule.process
    if not isinstance(process, DiscreteTime):
        raise ValueError("this model's schedule has no other spacing: leave it out")
    return schedules.from_alphas_cumprod(process.alphas_cumprod, spacing=spacing)


def _check_integer(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{name} must be an integer from {low} to {high}, got {value!r}")


__all__ = ["Cancelled", "Generated", "Job", "generate", "prepare"]
