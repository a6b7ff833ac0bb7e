"""The settings of a training run: a frozen dataclass, read from JSON with known keys and finite ranges."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MAX_BYTES = 1 << 20
CHOICES: dict[str, tuple[str, ...]] = {
    "prediction": ("epsilon", "sample", "v", "flow", "edm"),
    "precision": ("float32", "bfloat16", "float16"),
    "weighting": ("min_snr", "plain"),
    "noise": ("gaussian", "uniform"),
    "corruption": ("noise", "blur", "pixelate"),
}
COSINE = {"name": "cosine_betas", "T": 1000}
RANGES: dict[str, tuple[float, float]] = {
    "steps": (1, 10**9), "batch": (1, 65536), "micro": (1, 65536), "accumulate": (1, 65536),
    "lr": (1e-9, 1.0), "warmup": (0, 10**9), "cooldown": (0, 10**9),
    "weight_decay": (0.0, 10.0), "clip": (1e-6, 1e6), "ema": (0.0, 0.999999),
    "min_snr_gamma": (1e-3, 1e6), "snr_offset": (0.0, 1e6),
    "label_dropout": (0.0, 1.0), "margin": (1.0, 4.0), "seed": (0, 2**31 - 1), "save_every": (1, 10**9),
    "sheet_every": (1, 10**9), "image_size": (1, 65536),
}  # fmt: skip


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides what a run computes.

    steps, batch, accumulate: optimizer steps; each sees batch * accumulate pictures (times the processes, if there are
        several), `batch` of them on the device at once. micro: pictures a thread works on at a time. How a step's
        pictures are split does not change its gradient beyond rounding. image_size: side of the training crops.
    margin: pictures are cached at image_size * margin, and crops are drawn from that. flip: mirror half of them.
    lr, warmup, cooldown: linear rise over `warmup` steps, constant, then a half cosine to zero over `cooldown` steps
        (cooldown = steps - warmup is the usual cosine schedule).
    weight_decay, clip: of AdamW, and the largest gradient norm. ema: decay of the averaged weights, after its warm-up.
    corruption: "noise", or a deterministic one to be undone, "blur" or "pixelate" (cold diffusion, fastdiff.cold).
    noise: "gaussian" | "uniform", of unit variance (fastdiff.uniform_noise).
    prediction: "epsilon" | "sample" | "v" | "flow" | "edm" (preconditioned, fastdiff.predictions.edm).
    schedule: name and options as fastdiff.models.checkpoint.make_schedule takes them; or, for blur and pixelate, the
        options of fastdiff.cold.Corruption.
    times: how the noise levels of a batch are drawn, fastdiff.training.times.
    weighting: "min_snr": the error of the clean image counts min(SNR, min_snr_gamma) + snr_offset (Hang et al. 2023,
        and 1 as in Salimans & Ho 2022 so that the highest noise levels count too); "plain": the network's own error.
    class_weights: how often an epoch shows each picture of a class, 1 for classes not named.
    label_dropout: share of pictures without label and context, for classifier-free guidance.
    precision: of the autocast region; float16 with loss scaling. model: fields of UNetConfig, save num_classes and
        image_size.
    """

    steps: int = 10_000
    batch: int = 32
    micro: int = 8
    accumulate: int = 1
    image_size: int = 64
    margin: float = 1.125
    flip: bool = True
    lr: float = 5e-4
    warmup: int = 200
    cooldown: int = 9_800
    weight_decay: float = 0.01
    clip: float = 1.0
    ema: float = 0.999
    corruption: str = "noise"
    noise: str = "gaussian"
    prediction: str = "v"
    schedule: Mapping[str, Any] = field(default_factory=lambda: dict(COSINE))
    times: Mapping[str, Any] = field(default_factory=lambda: {"name": "discrete"})
    weighting: str = "min_snr"
    min_snr_gamma: float = 5.0
    snr_offset: float = 0.0
    label_dropout: float = 0.1
    class_weights: Mapping[str, int] = field(default_factory=dict)
    precision: str = "bfloat16"
    seed: int = 0
    save_every: int = 500
    sheet_every: int = 500
    model: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, (low, high) in RANGES.items():
            _check_number(name, getattr(self, name), low, high, whole=_is_int_field(name))
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(
                    f"config {name} must be one of {', '.join(known)}, got {getattr(self, name)!r}"
                )
        if not isinstance(self.flip, bool):
            raise ValueError(f"config flip must be true or false, got {self.flip!r}")
        for name in ("schedule", "times", "model", "class_weights"):
            if not isinstance(getattr(self, name), Mapping):
                raise ValueError(f"config {name} must be an object, got {getattr(self, name)!r}")
        if self.corruption != "noise":
            self._check_cold()
        for label, weight in self.class_weights.items():
            _check_number(f"class_weights of {label}", weight, 1, 1000, whole=True)

    def _check_cold(self) -> None:
        """Cold diffusion predicts the clean picture and knows no noise levels; its schedule bears its name."""
        if self.prediction not in ("sample", "v") or self.noise != "gaussian":
            raise ValueError(
                f"config corruption {self.corruption!r} predicts the sample: leave out prediction and noise"
            )
        object.__setattr__(self, "prediction", "sample")
        given = {} if self.schedule == COSINE else dict(self.schedule)
        if given.get("name", self.corruption) != self.corruption:
            raise ValueError(
                f"config schedule {given['name']!r} is none of corruption {self.corruption!r}: leave it out"
            )
        object.__setattr__(self, "schedule", {"name": self.corruption, **given})

    @property
    def pictures_a_step(self) -> int:
        """What one process sees in an optimizer step."""
        return self.batch * self.accumulate

    def as_dict(self) -> dict[str, Any]:
        """Plain data, as in the JSON file."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {name: dict(value) if isinstance(value, Mapping) else value for name, value in plain.items()}


def from_dict(data: object) -> TrainConfig:
    """Settings from parsed JSON. ValueError for anything but an object of known keys."""
    if not isinstance(data, dict):
        raise ValueError(f"a training config is a JSON object, got {type(data).__name__}")
    known = {f.name for f in dataclasses.fields(TrainConfig)}
    unknown = sorted(set(data) - known)
    if unknown:
        raise ValueError(
            f"unknown config keys {', '.join(map(repr, unknown))}: use {', '.join(sorted(known))}"
        )
    return TrainConfig(**data)


def read_config(path: Path) -> TrainConfig:
    """Settings from a JSON file of at most 1 MiB. ValueError that names the file for anything malformed."""
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path} is larger than {MAX_BYTES} bytes: that is no training config")
    try:
        return from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _is_int_field(name: str) -> bool:
    return isinstance(TrainConfig.__dataclass_fields__[name].default, int)


def _check_number(name: str, value: object, low: float, high: float, *, whole: bool) -> None:
    kind = "an integer" if whole else "a number"
    number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if not number or not low <= value <= high:  # type: ignore[operator]
        raise ValueError(f"config {name} must be {kind} from {low:g} to {high:g}, got {value!r}")
