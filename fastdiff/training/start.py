"""Beginning with a trained network: its weights, and the settings it needs."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from fastdiff.models.checkpoint import TrainedUNet
from fastdiff.training.config import TrainConfig

OWN = frozenset({"num_classes", "image_size", "rate"})
"""Fields of UNetConfig that may differ between a checkpoint and the network that begins with it."""


@torch.no_grad()
def transfer(source: TrainedUNet, target: TrainedUNet) -> None:
    """Copy the weights of `source` into `target`; classes are matched by name, new ones get the null class's embedding.

    Raises ValueError if the networks, or what they predict, differ.
    """
    pairs: list[tuple[str, object, object]] = [
        (f"model {field.name}", getattr(source.config, field.name), getattr(target.config, field.name))
        for field in dataclasses.fields(source.config)
        if field.name not in OWN
    ]
    pairs += [
        (name, getattr(source, name), getattr(target, name))
        for name in ("prediction", "schedule_options", "noise")
    ]
    wrong = [f"{name} {there!r} where the run has {here!r}" for name, there, here in pairs if there != here]
    if wrong:
        raise ValueError(
            f"the checkpoint has {'; '.join(wrong)}: train with its settings, "
            "fastdiff.training.settings_of(checkpoint), or from scratch"
        )
    weights = dict(source.named_parameters())
    for name, parameter in target.named_parameters():
        parameter.copy_(_rows(source, target) if name == "label.weight" else weights[name])


def settings_of(net: TrainedUNet, **changes: object) -> TrainConfig:
    """A configuration that goes on with a network: its shape, prediction, schedule and size; `changes` on top.

    Raises ValueError for changes that no configuration has, or of a bad value.
    """
    shape = {key: value for key, value in dataclasses.asdict(net.config).items() if key not in OWN}
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in shape.items()}
    return dataclasses.replace(
        TrainConfig(
            image_size=net.config.image_size,
            corruption="noise" if net.corruption is None else net.corruption.name,
            noise=net.noise,
            prediction=net.prediction,
            schedule=net.schedule_options,
            model=plain,
        ),
        **changes,  # type: ignore[arg-type]
    )


def _rows(source: TrainedUNet, target: TrainedUNet) -> Tensor:
    table, null = source.label.weight, source.config.num_classes
    places = [source.labels.index(name) if name in source.labels else null for name in target.labels]
    return table[[*places, null]]
