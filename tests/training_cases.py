"""What the tests of training share: a tiny configuration, flat pictures of two classes, comparison of runs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from PIL import Image

from fastdiff.training import TrainConfig, Trainer

TINY = TrainConfig(
    steps=6,
    batch=8,
    micro=4,
    image_size=8,
    margin=1.5,
    lr=5e-3,
    warmup=2,
    cooldown=2,
    ema=0.9,
    precision="float32",
    save_every=100,
    sheet_every=1000,
    model={"channels": [8, 16], "blocks": [1, 1], "embed_dim": 16, "time_dim": 8, "groups": 4},
)


def change(**fields: object) -> TrainConfig:
    return dataclasses.replace(TINY, **fields)


def with_model(*, settings: dict[str, object] | None = None, **fields: object) -> TrainConfig:
    """TINY with other fields of its network, and other settings."""
    return change(model={**TINY.model, **fields}, **(settings or {}))


def paint_classes(root: Path, labels: tuple[str, ...] = ("blue", "red")) -> Path:
    """Two classes of flat colour, of several sizes and formats."""
    for name in labels:
        color = (20, 40, 200) if name == "blue" else (200, 30, 30)
        (root / name).mkdir(parents=True)
        for i, (size, suffix) in enumerate([((12, 12), "png"), ((20, 16), "jpg"), ((12, 30), "webp")]):
            Image.new("RGB", size, color).save(root / name / f"{i}.{suffix}")
    return root


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Everything that a run has learned."""
    out = {f"model.{k}": v.clone() for k, v in trainer.model.state_dict().items()}
    return out | {f"ema.{k}": v.clone() for k, v in trainer.average.values.items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
