"""Models that make pictures, seen alike: the bundled UNet, a checkpoint of one's own, a diffusers pipeline."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from fastdiff import models
from fastdiff.choices import unknown
from fastdiff.schedules import Schedule

ALL = "all"


class Source(Protocol):
    """A model and what belongs to it. Pictures are float32 [B, 3, H, W] in [-1, 1]; x is what the model denoises.

    prediction, schedule: as for `fastdiff.sample`. labels: the class names it knows; empty if it takes any text.
    size: (width, height) as trained. multiple: sides of pictures are multiples of it. guidance: the usual scale.
    exact: whether x is the picture itself, so that known pixels can be held exactly. batch_pixels: pixels of a batch
    beyond which a larger one is no faster.
    """

    schedule: Schedule
    prediction: str
    labels: tuple[str, ...]
    size: tuple[int, int]
    multiple: int
    guidance: float
    exact: bool
    batch_pixels: int

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        ...

    def __call__(self, x: Tensor, t: Tensor, **conditioning: Any) -> Tensor:
        """The model, as `fastdiff.sample` calls it."""
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

    def __init__(self, net: models.TrainedUNet, *, call: models.UNet | None = None) -> None:
        self.net = net
        self.call = call or net
        self.schedule, self.prediction, self.labels = net.schedule, net.prediction, net.labels
        self.size = (net.config.image_size, net.config.image_size)
        self.multiple = net.config.multiple

    @property
    def device(self) -> torch.device:
        return self.net.label.weight.device

    def __call__(self, x: Tensor, t: Tensor, **conditioning: Any) -> Tensor:
        return self.call(x, t, **conditioning)

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
    """A source from what users have: None (the bundled model), a checkpoint's path, a TrainedUNet, a Source.

    device: "cpu" or "cuda", where a checkpoint is loaded; cuda where there is one if None.
    Raises ValueError, TypeError or OSError in one line for anything else.
    """
    if model is None or isinstance(model, (str, os.PathLike)):
        return Native(models.load(model, device=pick_device(device)))
    if isinstance(model, models.TrainedUNet):
        model = Native(model)
    if not (hasattr(model, "conditioning") and hasattr(model, "decode")):
        raise TypeError(
            f"model is {type(model).__name__}: pass a checkpoint's path, a TrainedUNet or a Source"
        )
    source: Source = model  # type: ignore[assignment]
    if device is not None and torch.device(device).type != source.device.type:
        raise ValueError(
            f"the model is on {source.device}, not on {device}: load it there, models.load(path, device={device!r})"
        )
    return source


def prompts_of(asked: str | Sequence[str], source: Source) -> tuple[str, ...]:
    """The prompts asked for, "all" being every label. Raises ValueError for none and for unknown labels."""
    names = (asked,) if isinstance(asked, str) else tuple(asked)
    if names == (ALL,) and source.labels:
        return source.labels
    if not names:
        choice = (
            f"use {ALL!r} or some of: {', '.join(source.labels)}" if source.labels else "give at least one"
        )
        raise ValueError(f"no {'label' if source.labels else 'prompt'} given; {choice}")
    source.check(names)
    return names


def pick_device(device: str | None = None) -> str:
    """The device asked for, or cuda where there is one, else cpu. Raises ValueError for one that is not there."""
    if device not in (None, "cpu", "cuda"):
        raise ValueError(f"device must be cpu or cuda, got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda: torch sees no CUDA device here; leave it out, or use cpu")
    return device or ("cuda" if torch.cuda.is_available() else "cpu")


def fingerprint(weights: Mapping[str, Tensor]) -> str:
    """The first 16 hexadecimal digits of SHA-256 over a model's weights, names included."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(value.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
