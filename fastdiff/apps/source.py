"""Models that make pictures, seen alike: the bundled UNet, a checkpoint of one's own, a diffusers pipeline."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdiff import models
from fastdiff.apps import pipelines
from fastdiff.choices import unknown
from fastdiff.models.checkpoint import fingerprint
from fastdiff.schedules import Schedule

ALL = "all"


class Source(Protocol):
    """A model and what belongs to it. Pictures are float32 [B, 3, H, W] in [-1, 1]; x is what the model denoises.

    prediction, schedule: as for `fastdiff.sample`. labels: the class names it knows, if it knows any. takes_text:
    whether prompts are any text.
    size: (width, height) as trained. multiple: sides of pictures are multiples of it. guidance: the usual scale.
    exact: whether x is the picture itself, so that known pixels can be held exactly. batch_pixels: pixels of a batch
    beyond which a larger one is no faster. clip: bound of the denoised x, if the model wants one.
    """

    schedule: Schedule
    prediction: str
    labels: tuple[str, ...]
    takes_text: bool
    size: tuple[int, int]
    multiple: int
    guidance: float
    exact: bool
    batch_pixels: int
    clip: float | None

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        ...

    def __call__(self, x: Tensor, t: Tensor, **conditioning: Any) -> Tensor:
        """The model, as `fastdiff.sample` calls it."""
        ...

    def schedule_at(self, width: int, height: int) -> Schedule:
        """The schedule for pictures of that size."""
        ...

    def shape(self, count: int, width: int, height: int) -> tuple[int, ...]:
        """The shape of x for `count` pictures of that size."""
        ...

    def check(self, prompts: Sequence[str | None]) -> None:
        """Raise ValueError for a label it does not know."""
        ...

    def conditioning(self, prompts: Sequence[str | None]) -> dict[str, Any]:
        """What the model is called with for these prompts (labels, or texts), one an image; None: nothing asked for."""
        ...

    def mixed(
        self, first: Sequence[str | None], second: Sequence[str | None], weights: Sequence[float]
    ) -> dict[str, Any]:
        """Conditioning on the way from the first prompts (weight 0) to the second ones (1), one weight an image."""
        ...

    def encode(self, pictures: Tensor) -> Tensor:
        """Pictures -> clean x, deterministically."""
        ...

    def decode(self, x: Tensor) -> Tensor:
        """Clean x -> pictures, on the CPU."""
        ...

    def glimpse(self, x: Tensor) -> Tensor:
        """x -> pictures, roughly and cheaply, of any size and beyond [-1, 1] where x is: for previews and films."""
        ...

    def tiled(self) -> Source:
        """The same model, for pictures that wrap around at their edges. ValueError if it cannot."""
        ...

    def identity(self) -> dict[str, Any]:
        """JSON data for a recipe: {"checkpoint": fingerprint of the weights, ...}."""
        ...


class Native:
    """A `TrainedUNet` as a source: prompts are its labels, x is the picture."""

    exact = True
    guidance = 2.0
    batch_pixels = 16 * 64 * 64
    takes_text = False
    clip: float | None = None

    def __init__(self, net: models.TrainedUNet, *, call: models.UNet | None = None) -> None:
        if net.config.dims != 2:
            raise ValueError(
                f"this model makes {'sounds' if net.config.dims == 1 else 'clips'}, not pictures: "
                "`fastdiff generate` (fastdiff.apps.timed) is what works with it"
            )
        self.net = net
        self.call = call or net
        self.schedule, self.prediction, self.labels = net.schedule, net.prediction, net.labels
        self.noise = net.noise
        self.size = (net.config.image_size, net.config.image_size)
        self.multiple = net.config.multiple

    @property
    def device(self) -> torch.device:
        return self.net.label.weight.device

    def __call__(self, x: Tensor, t: Tensor, **conditioning: Any) -> Tensor:
        return self.call(x, t, **conditioning)

    def schedule_at(self, width: int, height: int) -> Schedule:
        return self.schedule

    def shape(self, count: int, width: int, height: int) -> tuple[int, ...]:
        return (count, self.net.config.image_channels, height, width)

    def check(self, prompts: Sequence[str | None]) -> None:
        for name in prompts:
            if name is not None and name not in self.labels:
                raise unknown("label", name, self.labels)

    def conditioning(self, prompts: Sequence[str | None]) -> dict[str, Any]:
        null = self.net.config.num_classes
        indices = [null if name is None else self.labels.index(name) for name in prompts]
        return {"label": torch.tensor(indices, device=self.device)}

    def mixed(
        self, first: Sequence[str | None], second: Sequence[str | None], weights: Sequence[float]
    ) -> dict[str, Any]:
        a, b = (
            F.one_hot(self.conditioning(names)["label"], self.net.config.num_classes + 1).float()
            for names in (first, second)
        )
        return {"label": torch.lerp(a, b, torch.tensor(weights, device=a.device)[:, None])}

    def encode(self, pictures: Tensor) -> Tensor:
        return pictures.to(self.device, torch.float32)

    def decode(self, x: Tensor) -> Tensor:
        return x.to("cpu", torch.float32).clamp(-1, 1)

    def glimpse(self, x: Tensor) -> Tensor:
        return x.to("cpu", torch.float32)

    def tiled(self) -> Source:
        return Native(self.net, call=self.net.tiled())

    def identity(self) -> dict[str, Any]:
        return {"checkpoint": fingerprint(self.net.state_dict())}


def source_of(model: object = None, *, device: str | None = None) -> Source:
    """A source from what users have: None (the bundled model), a checkpoint's path, a TrainedUNet, a diffusers pipeline
    or the folder where one was saved, a Source.

    device: "cpu" or "cuda", where a file is loaded; cuda where there is one if None.
    Raises ValueError, TypeError or OSError in one line for anything else.
    """
    if model is None or isinstance(model, (str, os.PathLike)):
        return _loaded(model, pick_device(device))
    source: Source
    if isinstance(model, models.TrainedUNet):
        source = Native(model)
    elif pipelines.is_pipeline(model):
        source = pipelines.PipelineSource(model)
    elif hasattr(model, "conditioning") and hasattr(model, "decode"):
        source = model  # type: ignore[assignment]
    else:
        raise TypeError(
            f"model is {type(model).__name__}: pass a checkpoint's path, a TrainedUNet, a pipeline or a Source"
        )
    if device is not None and torch.device(device).type != source.device.type:
        raise ValueError(
            f"the model is on {source.device}, not on {device}: move it first, or leave the device out"
        )
    return source


def _loaded(path: str | os.PathLike[str] | None, device: str) -> Source:
    if path is not None and pipelines.is_folder(path):
        return pipelines.PipelineSource(pipelines.load_pipeline(path, device=device))
    if path is not None and os.path.isdir(path):
        raise ValueError(
            f"{os.fspath(path)} is a folder without {pipelines.INDEX}: name a checkpoint in it, or a pipeline's folder"
        )
    return Native(models.load(path, device=device))


def prompts_of(asked: str | Sequence[str | None], source: Source) -> tuple[str | None, ...]:
    """The prompts asked for; "all" is every label, and None for a model that takes no prompt.

    Raises ValueError for none and for unknown labels.
    """
    names = (asked,) if isinstance(asked, str) else tuple(asked)
    if names == (ALL,) and source.labels:
        return source.labels
    if names == (ALL,) and not source.takes_text:
        return (None,)
    if not names or names == (ALL,):
        choice = (
            f"use {ALL!r} or some of: {', '.join(source.labels)}" if source.labels else "say what to show"
        )
        raise ValueError(f"no {'label' if source.labels else 'prompt'} given: {choice}")
    source.check(names)
    return names


def pick_device(device: str | None = None) -> str:
    """The device asked for, or cuda where there is one, else cpu. Raises ValueError for one that is not there."""
    if device not in (None, "cpu", "cuda"):
        raise ValueError(f"device must be cpu or cuda, got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda: torch sees no CUDA device here; leave it out, or use cpu")
    return device or ("cuda" if torch.cuda.is_available() else "cpu")
