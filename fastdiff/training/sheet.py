"""Samples of every class, to look at while a model trains and to judge it by afterwards."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fastdiff import cold
from fastdiff.clips import strip
from fastdiff.guidance import Guidance
from fastdiff.images import grid, to_pictures, write_png
from fastdiff.models.checkpoint import TrainedUNet
from fastdiff.noise import GeneratorNoise, NoiseSource, generator_of
from fastdiff.sampling import sample
from fastdiff.sounds import spectrograms
from fastdiff.uniform_noise import UniformNoise


def sample_labels(
    model: TrainedUNet,
    label: Tensor,
    *,
    seed: int,
    steps: int = 20,
    scale: float = 2.0,
    sampler: str = "dpmpp_2m",
    context: Tensor | None = None,
) -> Tensor:
    """One image at the trained size for each entry of label: int64 [B] -> float32 [B, C, ...] in -1..1.

    context: float [B, context_dim], for a network that takes one. sampler is for noise; cold diffusion has its own.
    """
    config = model.config
    if model.corruption is not None:
        names = [None if i == config.num_classes else model.labels[i] for i in label.tolist()]
        return cold.generate(model, names, seed=seed, steps=min(steps, model.corruption.T)).clamp(-1, 1)
    conditioning = {"label": label} if context is None else {"label": label, "context": context}
    nothing = {"label": torch.full_like(label, config.num_classes)}
    if context is not None:
        nothing["context"] = torch.zeros_like(context)
    seeds = [seed + i for i in range(len(label))]
    even = model.noise == "uniform"
    source: NoiseSource = UniformNoise(seeds) if even else GeneratorNoise(generator_of(seed))
    return sample(
        _in_bfloat16(model),
        (len(label), config.image_channels, *config.sides),
        schedule=model.schedule,
        sampler=sampler,
        steps=steps,
        prediction=model.prediction,
        conditioning=conditioning,
        guidance=Guidance(scale, nothing),
        clip=1.0,
        noise=source,
        device=label.device,
    ).clamp(-1, 1)


def _in_bfloat16(model: TrainedUNet) -> Any:
    picture = model.config.dims == 2

    def denoise(x: Tensor, t: Tensor, **conditioning: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            x = x.contiguous(memory_format=torch.channels_last) if picture else x
            output: Tensor = model(x, t, **conditioning)
        return output.float()

    return denoise


def write_sheet(
    path: str | os.PathLike[str],
    model: TrainedUNet,
    *,
    each: int = 2,
    steps: int = 16,
    conditioning: Mapping[str, Tensor] | None = None,
) -> None:
    """A PNG with `each` samples of every class, or one for each row of `conditioning`; overwrites.

    Sounds are shown as spectrograms, clips as rows of frames.
    """
    device = model.label.weight.device
    if conditioning is None:
        conditioning = {"label": torch.arange(model.config.num_classes).repeat_interleave(each)}
    given = {name: value.to(device) for name, value in conditioning.items()}
    samples = sample_labels(model, given["label"], seed=1, steps=steps, context=given.get("context"))
    columns = 2 * each
    if model.config.dims == 1:
        samples = spectrograms(samples)
    elif model.config.dims == 3:  # a row a clip
        samples, columns = strip(samples), samples.shape[2]
    elif samples.shape[1] == 1:
        samples = samples.expand(-1, 3, -1, -1)
    write_png(path, grid(to_pictures(samples), columns=columns), overwrite=True)
