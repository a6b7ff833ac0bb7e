"""The state of a run in one safetensors file, so that it can go on exactly where it stopped.

Random numbers are no part of it: each step draws its own from (seed, step).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from fastdiff.files import write_atomic
from fastdiff.training.config import TrainConfig, from_dict
from fastdiff.training.precision import LossScale

KEY = "fastdiff.training"

# These may change on resume: they decide where a run ends and what it writes, not the steps already taken; how a step's
# pictures are split changes no more than rounding.
FREE = frozenset(
    ("steps", "cooldown", "save_every", "sheet_every", "lr", "class_weights", "batch", "micro", "accumulate")
)

Parameters = Mapping[str, nn.Parameter]


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that training changes, by name: those that require a gradient."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


class Average:
    """An exponential moving average of parameters; its decay warms up as (1 + n) / (10 + n)."""

    def __init__(self, parameters: Parameters, decay: float) -> None:
        self.decay = decay
        self.values = {name: p.detach().clone() for name, p in parameters.items()}

    @torch.no_grad()
    def update(self, parameters: Parameters, step: int) -> None:
        """Move towards the parameters after optimizer step number `step` (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        values = list(self.values.values())
        torch._foreach_lerp_(values, [p.detach() for p in parameters.values()], 1 - decay)


@dataclass(frozen=True)
class About:
    """What a state holds beside tensors. step: steps taken; pictures: seen in each; seconds: spent so far."""

    step: int
    pictures: int
    seconds: float
    config: TrainConfig
    labels: tuple[str, ...]
    scale: LossScale

    def as_json(self) -> str:
        """One JSON object."""
        return json.dumps({**dataclasses.asdict(self), "config": self.config.as_dict()})

    @staticmethod
    def from_json(text: str) -> About:
        """The inverse of as_json. Raises ValueError, KeyError or TypeError."""
        data = json.loads(text)
        config = from_dict(data["config"])
        scale = LossScale(**data["scale"]) if "scale" in data else LossScale.of(config.precision)
        pictures = int(data.get("pictures", config.batch))
        labels = tuple(data["labels"])
        return About(int(data["step"]), pictures, float(data["seconds"]), config, labels, scale)

    def check(self, path: Path, now: About) -> None:
        """ValueError unless this, read from `path`, is a run that goes on with `now`."""
        before = self.config.as_dict()
        wanted = json.loads(json.dumps(now.config.as_dict()))  # tuples are lists there
        changed = [k for k, v in wanted.items() if k not in FREE and v != before[k]]
        changed += ["batch"] if self.pictures != now.pictures else []
        if changed:
            raise ValueError(
                f"{path} had another {', '.join(sorted(changed))}: resume with the same settings"
            )
        if self.labels != now.labels:
            raise ValueError(
                f"{path} was trained on classes {', '.join(self.labels)}: resume with the same data folder"
            )


def save_state(
    path: Path, about: About, *, parameters: Parameters, average: Average, optimizer: torch.optim.AdamW
) -> None:
    """Write everything a resumed run needs, atomically."""
    out = {f"ema.{name}": value for name, value in average.values.items()}
    for name, p in parameters.items():
        out[f"model.{name}"] = p.detach()
        state = optimizer.state.get(p)
        if state:
            out[f"exp_avg.{name}"], out[f"exp_avg_sq.{name}"] = state["exp_avg"], state["exp_avg_sq"]
    data = save({name: value.contiguous() for name, value in out.items()}, {KEY: about.as_json()})
    write_atomic(path, lambda file: file.write(data), overwrite=True)


def load_state(
    path: Path, now: About, *, parameters: Parameters, average: Average, optimizer: torch.optim.AdamW
) -> About:
    """Restore a run in place. now: what it is to be. ValueError, with nothing changed, if the file does not fit."""
    try:
        with safe_open(path, "pt") as file:
            about = About.from_json((file.metadata() or {})[KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no training state ({error}): delete it to start over") from None
    about.check(path, now)
    taken = about.step - about.scale.skipped
    kinds = ("model", "ema", "exp_avg", "exp_avg_sq") if taken else ("model", "ema")
    wanted = {f"{kind}.{name}": p.shape for name, p in parameters.items() for kind in kinds}
    if wanted != {name: value.shape for name, value in tensors.items()}:
        raise ValueError(
            f"{path} holds other tensors than this model: resume with the configuration it began with"
        )
    bad = sorted(name for name, value in tensors.items() if not value.isfinite().all())
    if bad:
        raise ValueError(f"{path} holds NaN or infinity in {bad[0]}: it is damaged, start over")
    for name, p in parameters.items():
        p.data.copy_(tensors[f"model.{name}"])
        average.values[name].copy_(tensors[f"ema.{name}"])
        if taken:
            optimizer.state[p] = {
                # a fused AdamW keeps its step beside the parameter
                "step": torch.tensor(float(taken), device=p.device),
                "exp_avg": torch.empty_like(p).copy_(tensors[f"exp_avg.{name}"]),
                "exp_avg_sq": torch.empty_like(p).copy_(tensors[f"exp_avg_sq.{name}"]),
            }
    return about
