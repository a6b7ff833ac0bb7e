"""Adapters: a small file that teaches a checkpoint one more label, and leaves the checkpoint alone.

adapter = load_adapter("my.safetensors")
model = adapted(models.load(), adapter)         # knows adapter.label; samples at the speed of the model itself

Each weight W: [out, ...] of a convolution or linear layer becomes W + scale * B A, A: [rank, in], B: [out, rank],
where `in` counts everything but the first axis (Hu et al. 2021, arXiv:2106.09685). The sum is formed once, in float64,
so sampling costs nothing extra; the model it was formed from keeps its own weights, so there is nothing to undo.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor, nn

from fastdiff.files import write_atomic
from fastdiff.models.checkpoint import CheckpointError, TrainedUNet, fingerprint, finite
from fastdiff.models.layers import layout

KEY, FORMAT = "fastdiff.lora", 1
FIELDS = frozenset({"format", "base", "label", "scale", "training"})
EMBEDDING, DOWN, UP = "label", ".A", ".B"
MAX_BYTES, MAX_LABEL = 1 << 28, 100
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class AdapterError(CheckpointError):
    """A file is no adapter, a damaged one, or one for another model."""


@dataclass(frozen=True, eq=False)
class Adapter:
    """What one more label asks of a model.

    base: `fingerprint` of the weights it belongs to. label: the name it adds. embedding: float32 [embed_dim], of that
    label. factors: name of a weight -> (A: [rank, in], B: [out, rank]), float32. training: a note, free of form.
    """

    base: str
    label: str
    embedding: Tensor
    factors: Mapping[str, tuple[Tensor, Tensor]]
    scale: float
    training: Mapping[str, Any]


def adaptable(model: nn.Module) -> dict[str, Tensor]:
    """Name -> weight of every layer that an adapter may change."""
    return {
        f"{name}.weight": module.weight
        for name, module in model.named_modules()
        if isinstance(module, LAYERS)
    }


def product(factors: tuple[Tensor, Tensor], shape: torch.Size) -> Tensor:
    """B A in a weight's shape, float64."""
    down, up = factors
    return (up.double() @ down.double()).view(shape)


@torch.no_grad()
def adapted(base: TrainedUNet, adapter: Adapter, *, strength: float = 1.0) -> TrainedUNet:
    """A model with the adapter's label behind the base's own. It shares what it does not change; base stays as it is.

    strength: how far to go, 0 being the base with a label that means its null class.
    Raises AdapterError if the adapter belongs to another model, ValueError for a label the base has already.
    """
    check_fits(base, adapter)
    if not math.isfinite(strength):
        raise ValueError(f"the strength of an adapter must be a finite number, got {strength}")
    state = dict(base.state_dict())
    for name, factors in adapter.factors.items():
        weight = state[name]
        change = product(factors, weight.shape).to(weight.device)
        state[name] = (weight.double() + strength * adapter.scale * change).to(weight.dtype)
    table, row = state["label.weight"], adapter.embedding.to(base.label.weight.device)
    row = table[-1] + strength * (row - table[-1])
    state["label.weight"] = torch.cat([table[:-1], row[None], table[-1:]])
    if "colours" in state:  # those of the null class, too
        state["colours"] = torch.cat([state["colours"], state["colours"][-1:]])
    with torch.device("meta"):
        model = TrainedUNet(
            replace(base.config, num_classes=base.config.num_classes + 1),
            labels=(*base.labels, adapter.label),
            prediction=base.prediction,
            schedule_options=base.schedule_options,
            training=base.training_note,
            noise=base.noise,
        )
    model.load_state_dict(state, assign=True)
    model.to(**layout(model.config.dims))
    return model.eval().requires_grad_(False)


def check_fits(base: TrainedUNet, adapter: Adapter) -> None:
    """Raise AdapterError or ValueError, in one line, for an adapter that cannot be joined to this model."""
    known = fingerprint(base.state_dict())
    if adapter.base != known:
        raise AdapterError(
            f"the adapter {adapter.label!r} was trained on the model {adapter.base}, this one is {known}: "
            "name the checkpoint it was trained on with --model, or train it again"
        )
    if adapter.label in base.labels:
        raise ValueError(
            f"the model has a label {adapter.label!r} already: train the adapter under another name"
        )
    weights = adaptable(base)
    for name, (down, up) in adapter.factors.items():
        if name not in weights:
            raise AdapterError(
                f"the adapter changes {name}, which the model does not have: the file is damaged"
            )
        out, rest = weights[name].shape[0], weights[name][0].numel()
        if (
            down.ndim != 2
            or up.ndim != 2
            or tuple(down.shape) != (up.shape[-1], rest)
            or tuple(up.shape) != (out, down.shape[0])
        ):
            raise AdapterError(
                f"{name} has factors {tuple(down.shape)} and {tuple(up.shape)}, the model's weight is {out} x {rest}"
            )
    wanted = tuple(base.label.weight.shape[1:])
    if tuple(adapter.embedding.shape) != wanted:
        raise AdapterError(
            f"the adapter's label has shape {tuple(adapter.embedding.shape)}, the model's {wanted}"
        )


def check_label(name: object) -> str:
    """The name of a label. ValueError for one that cannot be used."""
    if not isinstance(name, str) or not name.strip() or name != name.strip() or len(name) > MAX_LABEL:
        raise ValueError(f"a label is a name of 1 to {MAX_LABEL} characters, got {name!r}")
    if "," in name or name == "all" or not name.isprintable():
        raise ValueError(f"{name!r} cannot be a label: commas separate labels, and 'all' means every one")
    return name


def save_adapter(path: str | os.PathLike[str], adapter: Adapter, *, overwrite: bool = False) -> None:
    """Write an adapter, atomically, in float16. FileExistsError unless `overwrite`."""
    about = {
        "format": FORMAT, "base": adapter.base, "label": adapter.label, "scale": adapter.scale,
        "training": dict(adapter.training),
    }  # fmt: skip
    tensors = {EMBEDDING: adapter.embedding}
    for name, (down, up) in adapter.factors.items():
        tensors[name + DOWN], tensors[name + UP] = down, up
    tensors = {name: value.detach().to("cpu", torch.float16).contiguous() for name, value in tensors.items()}
    for name, value in tensors.items():
        if not value.isfinite().all():
            raise ValueError(f"{name} of the adapter does not fit float16: train with a lower lr")
    data = serialize(tensors, {KEY: json.dumps(about, sort_keys=True)})
    write_atomic(path, lambda file: file.write(data), overwrite=overwrite)


def load_adapter(path: str | os.PathLike[str]) -> Adapter:
    """The adapter of a file. Raises FileNotFoundError, or AdapterError in one line for a damaged or foreign file."""
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(
            f"{file} does not exist: give a .safetensors file that `fastdiff train --lora` wrote"
        )
    if file.stat().st_size > MAX_BYTES:
        raise AdapterError(f"{file} is larger than {MAX_BYTES} bytes: no adapter is")
    try:
        with safe_open(file, "pt") as opened:
            about = _about(opened.metadata() or {})
            tensors = {name: finite(name, opened.get_tensor(name)) for name in opened.keys()}  # noqa: SIM118
        return Adapter(
            base=about["base"],
            label=check_label(about["label"]),
            embedding=tensors.pop(EMBEDDING),
            factors=_pairs(tensors),
            scale=float(about["scale"]),
            training=about["training"],
        )
    except SafetensorError as error:
        raise AdapterError(f"{file} is truncated or no safetensors file ({error}): get it again") from None
    except (ValueError, TypeError, KeyError, ArithmeticError, RecursionError) as error:
        raise AdapterError(f"{file} is no usable adapter: {error}") from None


def _about(metadata: Mapping[str, str]) -> dict[str, Any]:
    if KEY not in metadata:
        raise ValueError(
            f"its header has no {KEY!r} entry: only files of `fastdiff train --lora` can be loaded"
        )
    about = json.loads(metadata[KEY])
    if not isinstance(about, dict) or set(about) != FIELDS:
        raise ValueError(f"its description must be an object with exactly {', '.join(sorted(FIELDS))}")
    if about["format"] != FORMAT:
        raise ValueError(f"its format is {about['format']!r}, this version reads {FORMAT}: update fastdiff")
    for name, kind in (("base", str), ("scale", (int, float)), ("training", dict)):
        if not isinstance(about[name], kind):
            raise ValueError(f"{name} is {about[name]!r}")
    if not -math.inf < about["scale"] < math.inf:
        raise ValueError(f"scale is {about['scale']}")
    return about


def _pairs(tensors: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    names = sorted({name[: -len(DOWN)] for name in tensors if name.endswith((DOWN, UP))})
    if sorted(tensors) != sorted(name + end for name in names for end in (DOWN, UP)):
        raise ValueError("its tensors are not pairs NAME.A, NAME.B and one label")
    return {name: (tensors[name + DOWN], tensors[name + UP]) for name in names}
