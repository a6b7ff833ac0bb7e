"""The state of a run in one safetensors file, so that it can go on exactly where it stopped.

Random numbers are no part of it: each step draws its own from (seed, step).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from fastdiff.files import write_atomic
from fastdiff.training.config import TrainConfig, from_dict

# These may change on resume: they decide where a run ends and what it writes, not the steps already taken.
FREE = frozenset({"steps", "cooldown", "save_every", "sheet_every", "lr", "class_weights"})


class Average:
    """An exponential moving average of a model's parameters; its decay warms up as (1 + n) / (10 + n)."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.values = {name: p.detach().clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move towards the model after its optimizer step number `step` (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        values = list(self.values.values())
        torch._foreach_lerp_(values, [p.detach() for p in model.parameters()], 1 - decay)


def _tensors(model: nn.Module, average: Average, optimizer: torch.optim.AdamW) -> dict[str, Tensor]:
    out = {f"ema.{name}": value for name, value in average.values.items()}
    for name, p in model.named_parameters():
        out[f"model.{name}"] = p.detach()
        state = optimizer.state.get(p)
        if state:
            out[f"exp_avg.{name}"], out[f"exp_avg_sq.{name}"] = state["exp_avg"], state["exp_avg_sq"]
    return {name: value.contiguous() for name, value in out.items()}


def save_state(
    path: Path,
    *,
    model: nn.Module,
    average: Average,
    optimizer: torch.optim.AdamW,
    step: int,
    config: TrainConfig,
    labels: tuple[str, ...],
    seconds: float,
) -> None:
    """Write everything a resumed run needs, atomically. step: optimizer steps taken; seconds: spent so far."""
    about = {"step": step, "config": config.as_dict(), "labels": list(labels), "seconds": seconds}
    data = save(_tensors(model, average, optimizer), {"fastdiff.training": json.dumps(about)})
    write_atomic(path, lambda file: file.write(data), overwrite=True)


def load_state(
    path: Path,
    *,
    model: nn.Module,
    average: Average,
    optimizer: torch.optim.AdamW,
    config: TrainConfig,
    labels: tuple[str, ...],
) -> tuple[int, float]:
    """Restore a run in place; return (steps taken, seconds spent). ValueError if the file does not fit."""
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})["fastdiff.training"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        saved, step, seconds = from_dict(about["config"]), int(about["step"]), float(about["seconds"])
    except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is no training state ({error}): delete it to start over") from None
    _check_same(path, saved, config, tuple(about["labels"]), labels)
    wanted = {f"{kind}.{n}": p.shape for n, p in model.named_parameters() for kind in _kinds(step)}
    if wanted != {name: value.shape for name, value in tensors.items()}:
        raise ValueError(
            f"{path} holds other tensors than this model: resume with the configuration it began with"
        )
    for name, p in model.named_parameters():
        p.data.copy_(tensors[f"model.{name}"])
        average.values[name].copy_(tensors[f"ema.{name}"])
        if step:
            optimizer.state[p] = {
                "step": torch.tensor(float(step)),
                "exp_avg": torch.empty_like(p).copy_(tensors[f"exp_avg.{name}"]),
                "exp_avg_sq": torch.empty_like(p).copy_(tensors[f"exp_avg_sq.{name}"]),
            }
    return step, seconds


def _kinds(step: int) -> tuple[str, ...]:
    return ("model", "ema", "exp_avg", "exp_avg_sq") if step else ("model", "ema")


def _check_same(
    path: Path,
    saved: TrainConfig,
    config: TrainConfig,
    saved_labels: tuple[str, ...],
    labels: tuple[str, ...],
) -> None:
    before: Mapping[str, object] = saved.as_dict()
    changed = sorted(k for k, v in config.as_dict().items() if k not in FREE and v != before[k])
    if changed:
        raise ValueError(f"{path} had another {', '.join(changed)}: resume with the same settings")
    if saved_labels != labels:
        raise ValueError(
            f"{path} was trained on classes {', '.join(saved_labels)}: resume with the same data folder"
        )
