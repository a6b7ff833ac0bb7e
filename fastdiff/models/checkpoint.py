"""Checkpoints: safetensors files that carry, beside the weights, all that sampling needs to know.

The header's metadata holds one JSON object under "fastdiff": the UNet's configuration, class labels, prediction type,
schedule, a note of how it was trained, and the kind of noise where it is not Gaussian. Nothing in a file is executed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from fastdiff import continuous, corruptions, schedules
from fastdiff.corruptions import Corruption
from fastdiff.files import write_atomic
from fastdiff.models.config import UNetConfig
from fastdiff.models.layers import layout
from fastdiff.models.unet import UNet

KEY, FORMAT = "fastdiff", 1
FIELDS = frozenset({"format", "config", "labels", "prediction", "schedule", "training"})
PREDICTIONS = ("epsilon", "sample", "v", "flow", "edm")
NOISES = ("gaussian", "uniform")
SIGMAS = ("karras", "edm", "exponential")
SCHEDULES: dict[str, Callable[..., schedules.Schedule]] = {
    **continuous.SCHEDULES,
    **{
        name: schedules.SCHEDULES[name]
        for name in ("linear_betas", "scaled_linear_betas", "cosine_betas", "sigmoid_betas", "flow", *SIGMAS)
    },
}
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
MAX_BYTES, MAX_T = 1 << 31, 100_000


class CheckpointError(ValueError):
    """A file is no checkpoint of this package, or a damaged one."""


class TrainedUNet(UNet):
    """A UNet that knows what it was trained on.

    labels: names of classes 0, 1, ...; prediction: "epsilon" | "sample" | "v" | "flow" | "edm"; noise: "gaussian" |
    "uniform"; schedule: the levels it knows; schedule_options: the schedule as data; training: a note, free of form, of
    how it was trained.
    corruption: what it undoes in place of noise, or None; such a model (fastdiff.cold) has no schedule, and a buffer
    `colours` [num_classes + 1, C + 1, C], the mean colours its pictures begin with.
    """

    colours: Tensor

    def __init__(
        self,
        config: UNetConfig,
        *,
        labels: tuple[str, ...],
        prediction: str,
        schedule_options: Mapping[str, Any],
        training: Mapping[str, Any] | None = None,
        noise: str = "gaussian",
    ) -> None:
        if len(labels) != config.num_classes or len(set(labels)) != len(labels):
            raise ValueError(f"labels must be {config.num_classes} different names, got {', '.join(labels)}")
        for name, value, known in (("prediction", prediction, PREDICTIONS), ("noise", noise, NOISES)):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
        super().__init__(config)
        self.labels, self.prediction, self.noise = labels, prediction, noise
        self.schedule_options = dict(schedule_options)
        self.training_note = dict(training or {})
        self.corruption: Corruption | None = None
        self._schedule: schedules.Schedule | None = None
        if schedule_options.get("name") in corruptions.MATRICES:
            self.corruption = Corruption.of(schedule_options)
            channels = config.image_channels
            self.register_buffer("colours", torch.zeros(config.num_classes + 1, channels + 1, channels))
        else:
            self._schedule = make_schedule(schedule_options)
            check_fit(self.schedule_options, prediction)

    @property
    def schedule(self) -> schedules.Schedule:
        """The noise levels it knows. ValueError for a cold-diffusion model, which knows none."""
        if self._schedule is None:
            raise ValueError(
                f"this is a cold-diffusion model ({self.schedule_options['name']}), which undoes no noise: "
                "sample it in Python with fastdiff.cold"
            )
        return self._schedule


def make_schedule(options: Mapping[str, Any]) -> schedules.Schedule:
    """The schedule {"name": ..., option: value}, its name one of `SCHEDULES`. ValueError for anything else."""
    name = options.get("name")
    if name not in SCHEDULES:
        raise ValueError(f"schedule name must be one of {', '.join(SCHEDULES)}, got {name!r}")
    rest = {key: value for key, value in options.items() if key != "name"}
    if not isinstance(rest.get("T", 1), (int, float)) or not 0 < rest.get("T", 1) <= MAX_T:
        raise ValueError(f"schedule T must be a number up to {MAX_T}, got {rest['T']!r}")
    try:
        return SCHEDULES[name](**rest)
    except (TypeError, ArithmeticError) as error:
        raise ValueError(f"schedule {name} does not take these options: {error}") from None


def check_fit(options: Mapping[str, Any], prediction: str) -> None:
    """ValueError for a schedule of sigmas without the preconditioning that scales the network's input."""
    if options.get("name") in SIGMAS and prediction != "edm":
        raise ValueError(
            f"schedule {options['name']} has sigmas up to its largest, which a network sees scaled only by "
            f"prediction 'edm', got {prediction!r}: use that, or another schedule"
        )


def save(
    path: str | os.PathLike[str],
    model: TrainedUNet,
    *,
    dtype: torch.dtype = torch.float16,
    overwrite: bool = False,
) -> None:
    """Write `model` to `path`, atomically, its weights in `dtype`. FileExistsError unless `overwrite`."""
    about = {
        "format": FORMAT,
        "config": dataclasses.asdict(model.config),
        "labels": list(model.labels),
        "prediction": model.prediction,
        "schedule": model.schedule_options,
        "training": model.training_note,
    }
    if model.noise != "gaussian":
        about["noise"] = model.noise
    tensors = {
        name: value.detach().to("cpu", dtype).contiguous() for name, value in model.state_dict().items()
    }
    for name, value in tensors.items():
        if not value.isfinite().all():
            raise ValueError(f"{name} does not fit {dtype}: save with dtype=torch.float32")
    data = serialize(tensors, {KEY: json.dumps(about, sort_keys=True)})
    write_atomic(path, lambda file: file.write(data), overwrite=overwrite)


def load(path: str | os.PathLike[str] | None = None, *, device: str | torch.device = "cpu") -> TrainedUNet:
    """The model of a checkpoint (None: the bundled one), float32, in evaluation mode, its weights frozen.

    Raises FileNotFoundError, or CheckpointError in one line for a file that is damaged, foreign or inconsistent.
    """
    file = BUNDLED if path is None else Path(path)
    if not file.is_file():
        raise FileNotFoundError(
            f"{file} does not exist: give a .safetensors file that `fastdiff train` wrote"
        )
    if file.stat().st_size > MAX_BYTES:
        raise CheckpointError(f"{file} is larger than {MAX_BYTES} bytes: no checkpoint of this package is")
    try:
        with safe_open(file, "pt") as opened:
            model = _model_of(opened.metadata() or {})
            _check_header(model, {name: opened.get_slice(name) for name in opened.keys()})  # noqa: SIM118
            tensors = {name: finite(name, opened.get_tensor(name)) for name in opened.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(f"{file} is truncated or no safetensors file ({error}): get it again") from None
    except (ValueError, TypeError, KeyError, ArithmeticError, RecursionError) as error:
        raise CheckpointError(f"{file} is no usable checkpoint: {error}") from None
    model.load_state_dict({name: value.to(device) for name, value in tensors.items()}, assign=True)
    # Channels last: convolutions are about a tenth faster in it, and their outputs follow their weights.
    model.to(**layout(model.config.dims))
    return model.eval().requires_grad_(False)


def fingerprint(weights: Mapping[str, Tensor]) -> str:
    """The first 16 hexadecimal digits of SHA-256 over a model's weights, names included."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(value.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def config_of(path: str | os.PathLike[str]) -> UNetConfig:
    """The shape of a checkpoint's network, from its header alone. Raises as `load` does."""
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(
            f"{file} does not exist: give a .safetensors file that `fastdiff train` wrote"
        )
    try:
        with safe_open(file, "pt") as opened:
            return _model_of(opened.metadata() or {}).config
    except SafetensorError as error:
        raise CheckpointError(f"{file} is truncated or no safetensors file ({error}): get it again") from None
    except (ValueError, TypeError, KeyError, ArithmeticError, RecursionError) as error:
        raise CheckpointError(f"{file} is no usable checkpoint: {error}") from None


def _model_of(metadata: Mapping[str, str]) -> TrainedUNet:
    """The model that the metadata describes, on the meta device: no memory is spent on what may be a lie."""
    if KEY not in metadata:
        raise ValueError(
            f"its header has no {KEY!r} entry: only files that `fastdiff train` wrote can be loaded"
        )
    about = json.loads(metadata[KEY])
    if not isinstance(about, dict) or set(about) - {"noise"} != FIELDS:
        raise ValueError(f"its description must be an object with exactly {', '.join(sorted(FIELDS))}")
    if about["format"] != FORMAT:
        raise ValueError(f"its format is {about['format']!r}, this version reads {FORMAT}: update fastdiff")
    for name in ("config", "schedule", "training"):
        if not isinstance(about[name], dict):
            raise ValueError(f"{name} must be an object, got {about[name]!r}")
    labels = about["labels"]
    if not isinstance(labels, list) or not all(isinstance(item, str) and item for item in labels):
        raise ValueError("labels must be a list of names")
    with torch.device("meta"):
        return TrainedUNet(
            UNetConfig.from_dict(about["config"]),
            labels=tuple(labels),
            prediction=about["prediction"],
            schedule_options=about["schedule"],
            training=about["training"],
            noise=about.get("noise", "gaussian"),
        )


def _check_header(model: TrainedUNet, slices: Mapping[str, Any]) -> None:
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    missing, extra = sorted(set(expected) - set(slices)), sorted(set(slices) - set(expected))
    if missing or extra:
        raise ValueError(f"weights missing: {_some(missing)}; not expected: {_some(extra)}")
    for name, shape in expected.items():
        if tuple(slices[name].get_shape()) != shape:
            raise ValueError(
                f"{name} has shape {tuple(slices[name].get_shape())}, its config asks for {shape}"
            )


def _some(names: list[str]) -> str:
    return (
        ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") if names else "none"
    )


def finite(name: str, value: Tensor) -> Tensor:
    """A tensor of a file as float32. ValueError for other dtypes than floats, NaN and infinity."""
    if value.dtype not in DTYPES:
        raise ValueError(f"{name} is {value.dtype}, weights must be float16, bfloat16 or float32")
    if not value.isfinite().all():
        raise ValueError(f"{name} holds NaN or infinite values")
    return value.float()


BUNDLED = Path(__file__).resolve().parent.parent / "assets" / "bundled.safetensors"
