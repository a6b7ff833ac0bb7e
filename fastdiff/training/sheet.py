"""Samples of every class, to look at while a model trains and to judge it by afterwards."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from fastdiff.guidance import Guidance
from fastdiff.images import grid, to_pictures, write_png
from fastdiff.models.checkpoint import TrainedUNet
from fastdiff.sampling import sample


def sample_labels(
    model: TrainedUNet,
    label: Tensor,
    *,
    seed: int,
    steps: int = 20,
    scale: float = 2.0,
    sampler: str = "dpmpp_2m",
) -> Tensor:
    """One image at the trained size for each entry of label: int64 [B] -> float32 [B, C, size, size] in -1..1."""
    config = model.config

    def denoise(x: Tensor, t: Tensor, *, label: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            output: Tensor = model(x.contiguous(memory_format=torch.channels_last), t, label=label)
        return output.float()

    return sample(
        denoise,
        (len(label), config.image_channels, config.image_size, config.image_size),
        schedule=model.schedule,
        sampler=sampler,
        steps=steps,
        prediction=model.prediction,
        conditioning={"label": label},
        guidance=Guidance(scale, {"label": torch.full_like(label, config.num_classes)}),
        clip=1.0,
        seed=seed,
        device=label.device,
    ).clamp(-1, 1)


def write_sheet(path: str | os.PathLike[str], model: TrainedUNet, *, each: int = 2, steps: int = 16) -> None:
    """A PNG with `each` samples of every class; overwrites."""
    label = torch.arange(model.config.num_classes, device=model.label.weight.device).repeat_interleave(each)
    pictures = to_pictures(sample_labels(model, label, seed=1, steps=steps))
    write_png(path, grid(pictures, columns=2 * each), overwrite=True)
