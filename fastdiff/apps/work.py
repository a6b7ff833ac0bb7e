"""Making images a micro-batch at a time, watched: progress, previews, cancellation, and a recipe of what was done."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from fastdiff import __version__, backend
from fastdiff.adaptive import AdaptivePlan
from fastdiff.apps.source import Source
from fastdiff.events import Event
from fastdiff.guidance import Guidance
from fastdiff.plan import Plan
from fastdiff.sampling import sample
from fastdiff.uniform_noise import UniformNoise

Progress = Callable[[int], object]
Cancel = Callable[[], bool]
Preview = Callable[[Tensor], object]


@dataclass(frozen=True)
class Made:
    """Images and what made them.

    images: float32 [N, 3, H, W] in [-1, 1] on the CPU. prompts, seeds: of each image (a prompt may be None).
    recipe: JSON data, everything needed to make the same images again; `recipe_of` is that of a single one.
    seconds: wall time by part. model_calls: for each image (the most of any micro-batch).
    trajectory: float32 [calls + 1, N, 3, H, W], the noisy image at each model call and the result, if it was asked for.
    alone: what differs in the recipe of each image alone, where that is more than its prompt and seed.
    """

    images: Tensor
    prompts: tuple[str | None, ...]
    seeds: tuple[int, ...]
    recipe: dict[str, Any]
    seconds: Mapping[str, float]
    model_calls: int
    trajectory: Tensor | None = None
    alone: tuple[Mapping[str, Any], ...] = ()

    def recipe_of(self, index: int) -> dict[str, Any]:
        """The recipe of image `index` alone.

        Its last bits depend on how many were made at once: "together" holds what the image's micro-batch was made from
        (prompts, count, first seed) and the image's place in it.
        """
        if self.alone:
            return self.recipe | dict(self.alone[index])
        arguments = self.recipe["arguments"]
        alone = {"prompts": [self.prompts[index]], "count": 1, "seed": self.seeds[index]}
        recipe = self.recipe | {
            "arguments": arguments | {name: alone[name] for name in alone if name in arguments}
        }
        batch = arguments.get("batch", 1)
        first = index // batch * batch
        together = {"prompts": list(self.prompts[first : first + batch]), "seed": self.seeds[first]}
        if len(together["prompts"]) > 1:
            recipe["together"] = together | {"count": len(together["prompts"]), "index": index - first}
        return recipe


@dataclass(frozen=True)
class Work:
    """Images to make by walking a plan: one prompt and one seed an image, `batch` images at once.

    size: (width, height) of the pictures. scale, negative: guidance. extra: further arguments of `fastdiff.sample` for
    the images of a slice, such as x, strength, inpaint, conditioning or unconditional (that of guidance); without x,
    pictures begin as noise. model: called in place of the source, with the same conditioning.
    """

    source: Source
    plan: Plan | AdaptivePlan
    prompts: tuple[str | None, ...]
    seeds: tuple[int, ...]
    size: tuple[int, int]
    scale: float
    batch: int
    negative: str | None = None
    extra: Callable[[slice], Mapping[str, Any]] = field(default=lambda images: {})
    model: Callable[..., Tensor] | None = None

    @property
    def total_calls(self) -> int | None:
        """How often progress will count: model calls of all micro-batches; None if that shows only as it runs."""
        batches = -(-len(self.prompts) // self.batch)
        return None if self.plan.calls is None else self.plan.calls * batches

    def run(
        self,
        recipe: Mapping[str, Any],
        *,
        progress: Progress | None = None,
        cancel: Cancel | None = None,
        preview: Preview | None = None,
        trajectory: bool = False,
    ) -> Made:
        """Sample.

        recipe: {"command": ..., "arguments": ...}; the circumstances are added. progress: called with the number of
        model calls done since the last time. cancel: asked at each model call; when it says True, `Cancelled` is
        raised. preview: called at each model call with the denoised pictures of the micro-batch, [b, 3, h, w] on the
        CPU, roughly decoded where the model has latents. trajectory: keep the noisy images of every step.
        """
        started = time.perf_counter()
        done: list[Tensor] = []
        films: list[Tensor] = []
        most_calls = 0
        for first in range(0, len(self.prompts), self.batch):
            watch = Watch(self.source, progress, cancel, preview, trajectory)
            done.append(self._sampled(slice(first, first + self.batch), watch))
            most_calls = max(most_calls, watch.calls)
            films += [torch.stack([*watch.frames, done[-1]])] if trajectory else []
        return Made(
            images=torch.cat(done),
            prompts=self.prompts,
            seeds=self.seeds,
            recipe=circumstances(self.source) | dict(recipe),
            seconds={"sampling": time.perf_counter() - started},
            model_calls=most_calls,
            trajectory=torch.cat(films, dim=1) if trajectory else None,
        )

    def _sampled(self, images: slice, watch: Watch) -> Tensor:
        source, prompts = self.source, self.prompts[images]
        arguments: dict[str, Any] = {
            "x": source.shape(len(prompts), *self.size),
            "conditioning": source.conditioning(prompts),
            **self.extra(images),
        }
        unconditional = arguments.pop("unconditional", None)
        if self.scale != 1.0:
            unconditional = unconditional or source.conditioning([self.negative] * len(prompts))
            arguments["guidance"] = Guidance(self.scale, unconditional)
        seeds = self.seeds[images]
        if getattr(source, "noise", "gaussian") == "uniform":  # a model trained on it
            arguments["noise"] = UniformNoise(seeds)
        else:
            arguments["seed"] = seeds
        x = sample(
            self.model or source,
            sampler=self.plan,
            device=source.device,
            callback=watch,
            **arguments,
        )
        return source.decode(x)


@dataclass(frozen=True)
class Job:
    """A checked piece of work, ready to run.

    command, arguments: what goes into the recipe; arguments are JSON data. inputs: digests of the pictures it starts
    from. finish: what is done to the pictures made, such as cropping. loading: seconds spent before.
    """

    work: Work
    command: str
    arguments: dict[str, Any]
    inputs: Mapping[str, str] = field(default_factory=dict)
    finish: Callable[[Tensor], Tensor] = field(default=lambda images: images)
    loading: float = 0.0

    @property
    def total_calls(self) -> int | None:
        """How often progress will count, None if that shows only as it runs."""
        return self.work.total_calls

    def run(
        self,
        *,
        progress: Progress | None = None,
        cancel: Cancel | None = None,
        preview: Preview | None = None,
        trajectory: bool = False,
    ) -> Made:
        """Sample, a micro-batch at a time; the arguments are those of `Work.run`."""
        recipe: dict[str, Any] = {"command": self.command, "arguments": dict(self.arguments)}
        if self.inputs:
            recipe["inputs"] = dict(self.inputs)
        made = self.work.run(recipe, progress=progress, cancel=cancel, preview=preview, trajectory=trajectory)
        return replace(
            made, images=self.finish(made.images), seconds={"loading": self.loading, **made.seconds}
        )


class Watch:
    """The callback of one micro-batch: counts, asks whether to stop, shows and keeps pictures."""

    def __init__(
        self,
        source: Source,
        progress: Progress | None = None,
        cancel: Cancel | None = None,
        preview: Preview | None = None,
        keep: bool = False,
    ) -> None:
        self.source, self.progress, self.cancel, self.preview, self.keep = (
            source,
            progress,
            cancel,
            preview,
            keep,
        )
        self.frames: list[Tensor] = []
        self.calls = 0

    def __call__(self, event: Event) -> None:
        self.calls += 1
        if self.cancel is not None and self.cancel():
            event.cancel()
        if self.keep:
            spread = max(1.0, math.hypot(event.level.alpha, event.level.sigma))
            self.frames.append(self.source.glimpse(event.x / spread))
        if self.preview is not None:
            self.preview(self.source.glimpse(event.denoised))
        if self.progress is not None:
            self.progress(1)


def digest(picture: Tensor) -> str:
    """The first 16 hexadecimal digits of SHA-256 over a picture's values as float32 and its shape."""
    values = picture.detach().to("cpu", torch.float32).contiguous()
    return hashlib.sha256(repr(tuple(values.shape)).encode() + values.numpy().tobytes()).hexdigest()[:16]


def circumstances(source: Source) -> dict[str, Any]:
    """JSON data: what the last bits of pictures depend on beside the arguments."""
    device = source.device.type
    return {
        "fastdiff": __version__,
        **source.identity(),
        "torch": torch.__version__,
        "device": str(source.device),
        "threads": torch.get_num_threads(),
        "backend": backend.select("solver_step", device, torch.float32),
    }
