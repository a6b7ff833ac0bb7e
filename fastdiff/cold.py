"""Cold diffusion: sampling models that undo a blur or a pixelation instead of noise (Bansal et al. 2022,
arXiv:2208.09392).

The model is asked for the clean picture; each step takes off its corruption at the present severity and puts on the
one of the next: x_s = x_t - D(x0, t) + D(x0, s) (algorithm 2), which forgives errors of the model that D hides.

net = fastdiff.models.load("run/model.safetensors")
pictures = cold.generate(net, ["brick", "brick"], seed=0)
sharper = cold.restore(net, net.corruption(picture, torch.tensor([20.0])), corruption=net.corruption, start=20)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from fastdiff.choices import unknown
from fastdiff.corruptions import Corruption
from fastdiff.guidance import Guidance
from fastdiff.models.checkpoint import TrainedUNet
from fastdiff.noise import SeededNoise

Model = Callable[..., Tensor]
OnStep = Callable[[int, Tensor], object]


@torch.no_grad()
def restore(
    model: Model,
    x: Tensor,
    *,
    corruption: Corruption,
    start: int | None = None,
    steps: int | None = None,
    jitter: Tensor | None = None,
    conditioning: Mapping[str, Any] | None = None,
    guidance: Guidance | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """The clean picture of a corrupted one, by algorithm 2: float [B, C, ...] -> the same.

    model: called as model(x, t, **conditioning) with t float32 [B], the severity; returns the clean picture.
    start: the severity of x, the corruption's T if None. steps: how many, at most `start`; None: one a severity.
    jitter: standard normal [B, C, ...], the noise that x was made with where the corruption has some; it is taken off
    step by step. guidance: its scale and unconditional branch are used. on_step: called with the number of steps done
    and the model's clean picture.
    """
    severity = corruption.T if start is None else start
    if isinstance(severity, bool) or not isinstance(severity, int) or not 1 <= severity <= corruption.T:
        raise ValueError(f"start must be an integer from 1 to {corruption.T}, got {start!r}")
    count = severity if steps is None else steps
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= severity:
        raise ValueError(
            f"steps must be an integer from 1 to {severity}, the severity it begins at, got {steps!r}"
        )
    times = torch.linspace(severity, 0, count + 1, dtype=torch.float64).round().tolist()
    cond = dict(conditioning or {})
    for i, (t, s) in enumerate(pairwise(times)):
        now, after = (x.new_full((len(x),), value, dtype=torch.float32) for value in (t, s))
        clean = _guided(model, x, now, cond, guidance)
        x = x - corruption(clean, now) + corruption(clean, after)
        if jitter is not None:
            x = x - corruption.jitter * (t - s) / corruption.T * jitter
        if on_step is not None:
            on_step(i + 1, clean)
    return x


def generate(
    net: TrainedUNet,
    labels: Sequence[str | None],
    *,
    seed: int = 0,
    steps: int | None = None,
    scale: float = 1.0,
    on_step: OnStep | None = None,
) -> Tensor:
    """New pictures of a cold-diffusion model at its trained size: float32 [len(labels), C, ...], about -1..1.

    labels: names of classes, None for any. Each picture begins as one colour, drawn from a normal distribution fitted
    to the mean colours of its class, plus the corruption's jitter; picture i depends on seed + i alone.
    Raises ValueError for a model that undoes noise, and for unknown labels.
    """
    if net.corruption is None:
        raise ValueError("this model undoes noise, not a corruption: sample it with fastdiff.sample")
    for name in labels:
        if name is not None and name not in net.labels:
            raise unknown("label", name, net.labels)
    device, null = net.label.weight.device, net.config.num_classes
    label = torch.tensor([null if n is None else net.labels.index(n) for n in labels], device=device)
    seeds = [seed + i for i in range(len(labels))]
    x, jitter = starting_point(net, label, seeds)
    guidance = None if scale == 1.0 else Guidance(scale, {"label": torch.full_like(label, null)})
    return restore(
        net, x, corruption=net.corruption, steps=steps, jitter=jitter,
        conditioning={"label": label}, guidance=guidance, on_step=on_step,
    )  # fmt: skip


def starting_point(net: TrainedUNet, label: Tensor, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
    """(pictures of one colour with jitter, that jitter before scaling): float32 [B, C, ...] each."""
    assert net.corruption is not None
    channels, sides = net.config.image_channels, net.config.sides
    like = torch.empty((len(label), channels, *sides), device=label.device)
    source = SeededNoise(seeds)
    drawn = source.start(torch.empty((len(label), channels), device=label.device))
    mean, factor = net.colours[label].float().split([1, channels], dim=1)
    colour = mean[:, 0] + (factor @ drawn[:, :, None])[:, :, 0]
    eps = source.start(like)
    return colour.reshape(*colour.shape, *[1] * len(sides)) + net.corruption.jitter * eps, eps


def fit_colours(means: Tensor, classes: Tensor, num_classes: int) -> Tensor:
    """The normal distribution of mean colours, for each class and (the last) for all pictures.

    means: float [N, C]; classes: int64 [N] -> float32 [num_classes + 1, C + 1, C]: the mean above a factor of the
    covariance, cov = factor @ factor.T.
    """
    rows = []
    for index in range(num_classes + 1):
        chosen = means if index == num_classes else means[classes == index]
        chosen = (chosen if len(chosen) else means).double()
        centred = chosen - chosen.mean(0)
        values, vectors = torch.linalg.eigh(centred.T @ centred / len(chosen))
        rows.append(torch.cat([chosen.mean(0)[None], vectors * values.clamp(min=0).sqrt()]))
    return torch.stack(rows).float()


def _guided(model: Model, x: Tensor, t: Tensor, cond: Mapping[str, Any], guidance: Guidance | None) -> Tensor:
    clean = model(x, t, **cond)
    if guidance is None or guidance.scale == 1.0:
        return clean
    plain = model(x, t, **{**cond, **guidance.unconditional})
    return plain + guidance.scale * (clean - plain)
