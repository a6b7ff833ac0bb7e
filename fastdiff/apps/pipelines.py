"""A diffusers pipeline as a `Source`, so that every application works with it.

from fastdiff.apps.pipelines import PipelineSource
made = generate("a lighthouse at dusk", model=PipelineSource(pipe), steps=25, seed=3)     # or model=pipe

The pipeline's denoiser, text encoders, autoencoder and schedule are used as they are; sampling is fastdiff's. Nothing
of the pipeline is changed.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastdiff.apps.families import Conditioning, family_of
from fastdiff.apps.latents import Autoencoder, Codec, Pixels, wrapping
from fastdiff.apps.scheduled import prediction_of, schedule_of
from fastdiff.choices import unknown
from fastdiff.schedules import Schedule

INDEX = "model_index.json"
KEPT_PROMPTS = 64
SEEN = 4096
"""Numbers of each weight that a pipeline's fingerprint looks at."""


class PipelineSource:
    """A pipeline of a known family: Stable Diffusion 1 and 2, SDXL, SD3, Flux, PixArt, DiT, unconditional ones.

    Raises ValueError in one line for a pipeline that it cannot serve.
    """

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe
        net = getattr(pipe, "unet", None) or getattr(pipe, "transformer", None)
        if net is None:
            raise ValueError(
                f"{type(pipe).__name__} has neither a unet nor a transformer: it cannot be a source"
            )
        self.net: Any = getattr(net, "_orig_mod", net)  # what torch.compile wraps
        self.family = family_of(pipe, self.net)
        self.codec = self._codec()
        self._check_channels()
        self.numbers = self.family.labels()
        self.labels = first_names(self.numbers)
        self.takes_text = self.family.takes == "text"
        self.guidance = self.family.guidance
        self.exact = isinstance(self.codec, Pixels) and self.codec.channels == 3
        self.multiple = self.codec.factor * self.family.patch
        self.size = self._size()
        self.batch_pixels = max(
            self.size[0] * self.size[1] * (1 if self.device.type == "cpu" else 8), 16 * 64 * 64
        )
        self.prediction = prediction_of(pipe.scheduler)
        clips = isinstance(self.codec, Pixels) and pipe.scheduler.config.get("clip_sample", False)
        self.clip: float | None = (
            float(pipe.scheduler.config.get("clip_sample_range", 1.0)) if clips else None
        )
        self._schedules: dict[int, Schedule] = {}
        self.schedule = self.schedule_at(*self.size)
        self._embedded: OrderedDict[str | None, Conditioning] = OrderedDict()

    @property
    def device(self) -> torch.device:
        return torch.device(self.pipe._execution_device)

    def __call__(self, x: Tensor, t: Tensor, **conditioning: Any) -> Tensor:
        made = self.family.call(self.net, x.to(self.net.dtype), t, conditioning)
        return made[:, : x.shape[1]].to(x.dtype)  # a learned variance, if it comes along, is not used

    def schedule_at(self, width: int, height: int) -> Schedule:
        """The schedule for pictures of this size; flow models may shift theirs by it."""
        tokens = (width // self.multiple) * (height // self.multiple)
        if tokens not in self._schedules:
            self._schedules[tokens] = schedule_of(
                self.pipe.scheduler, tokens=tokens, from_one=self.family.from_one
            )
        return self._schedules[tokens]

    def shape(self, count: int, width: int, height: int) -> tuple[int, ...]:
        return (count, self.codec.channels, height // self.codec.factor, width // self.codec.factor)

    def check(self, prompts: Sequence[str | None]) -> None:
        for prompt in prompts:
            if prompt is None:
                continue
            if not isinstance(prompt, str):
                raise ValueError(f"a prompt must be text, got {prompt!r}")
            if self.family.takes == "nothing":
                raise ValueError(f"{type(self.pipe).__name__} takes no prompt, got {prompt!r}: leave it out")
            if self.family.takes == "labels" and prompt not in self.numbers:
                raise unknown("label", prompt, self.numbers)

    def conditioning(self, prompts: Sequence[str | None]) -> dict[str, Any]:
        each = [self._embed(prompt) for prompt in prompts]
        return {name: torch.cat([one[name] for one in each]) for name in each[0]}

    def mixed(
        self, first: Sequence[str | None], second: Sequence[str | None], weights: Sequence[float]
    ) -> dict[str, Any]:
        if list(first) == list(second):
            return self.conditioning(first)
        if not self.takes_text:
            raise ValueError(
                f"{type(self.pipe).__name__} has no prompts between two others: interpolate seeds only"
            )
        a, b = self.conditioning(first), self.conditioning(second)
        return {name: _between(a[name], b[name], weights) for name in a}

    def encode(self, pictures: Tensor) -> Tensor:
        return self.codec.encode(pictures.to(self.device, torch.float32))

    def decode(self, x: Tensor) -> Tensor:
        return self.codec.decode(x.float()).to("cpu", torch.float32).clamp(-1, 1)

    def glimpse(self, x: Tensor) -> Tensor:
        return self.codec.glimpse(x).to("cpu", torch.float32)

    def tiled(self) -> PipelineSource:
        if not self.family.seamless:
            raise ValueError(
                f"{type(self.net).__name__} knows where in a picture it is, so none of its can tile: leave tile out"
            )
        twin = copy.copy(self)
        twin.net, twin.codec = wrapping(self.net), self.codec.tiled()
        return twin

    def identity(self) -> dict[str, Any]:
        config = {name: value for name, value in dict(self.pipe.scheduler.config).items() if name[0] != "_"}
        settings = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()[:8]
        return {
            "checkpoint": fingerprint(self.net),
            "pipeline": type(self.pipe).__name__,
            "scheduler": f"{type(self.pipe.scheduler).__name__} {settings}",
        }

    def _embed(self, prompt: str | None) -> Conditioning:
        """The conditioning of one prompt, remembered: text encoders are large."""
        if prompt not in self._embedded:
            with torch.no_grad():
                self._embedded[prompt] = self.family.embed(prompt)
            while len(self._embedded) > KEPT_PROMPTS:
                self._embedded.popitem(last=False)
        return self._embedded[prompt]

    def _codec(self) -> Codec:
        vae = getattr(self.pipe, "vae", None) or getattr(self.pipe, "vqvae", None)
        if vae is None:
            return Pixels(self.net.config.in_channels)
        return Autoencoder(vae, factor=getattr(self.pipe, "vae_scale_factor", None))

    def _check_channels(self) -> None:
        packed = 4 if type(self.family).__name__ == "Flux" else 1
        taken, made = self.net.config.in_channels, self.codec.channels * packed
        if taken != made:
            raise ValueError(
                f"{type(self.pipe).__name__}: its model takes {taken} channels where pictures make {made}, as models "
                "for inpainting or upscaling do: load one that generates; fastdiff inpaints and upscales with any"
            )

    def _size(self) -> tuple[int, int]:
        sides = getattr(self.pipe, "default_sample_size", None) or self.net.config.get("sample_size") or 64
        high, wide = (sides, sides) if isinstance(sides, int) else sides
        width, height = (
            max(1, side * self.codec.factor // self.multiple) * self.multiple for side in (wide, high)
        )
        return (width, height)


def is_pipeline(model: object) -> bool:
    """Whether it is a diffusers pipeline, without importing diffusers."""
    return any(kind.__name__ == "DiffusionPipeline" for kind in type(model).__mro__)


def is_folder(path: str | os.PathLike[str]) -> bool:
    """Whether a pipeline was saved there."""
    return (Path(path) / INDEX).is_file()


def load_pipeline(path: str | os.PathLike[str], *, device: str) -> Any:
    """The pipeline saved in a folder: safetensors only, nothing from the network, no code of the folder's own.

    On a GPU in half precision: float16 for UNets, bfloat16 for transformers. Raises ValueError or OSError in one line.
    """
    try:
        from diffusers import DiffusionPipeline
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("pipelines need diffusers: pip install 'fastdiff[diffusers]'") from error
    index = json.loads((Path(path) / INDEX).read_text())
    half = torch.float16 if "unet" in index else torch.bfloat16
    try:
        with without_bars():
            pipe = DiffusionPipeline.from_pretrained(
                str(path), local_files_only=True, use_safetensors=True, trust_remote_code=False,
                torch_dtype=half if device == "cuda" else torch.float32,
            )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path} is no pipeline that can be loaded: {first}") from error
    return pipe.to(device)


@contextlib.contextmanager
def without_bars() -> Iterator[None]:
    """The loading bars of diffusers and transformers off, if they are on."""
    from diffusers.utils import logging as of_diffusers

    modules: list[Any] = [of_diffusers]
    with contextlib.suppress(ImportError):
        from transformers.utils import logging as of_transformers

        modules.append(of_transformers)
    showing = [module for module in modules if module.is_progress_bar_enabled()]
    for module in showing:
        module.disable_progress_bar()
    try:
        yield
    finally:
        for module in showing:
            module.enable_progress_bar()


def _between(a: Tensor, b: Tensor, weights: Sequence[float]) -> Tensor:
    """[B, ...]: from a to b; where they are masks, what either shows."""
    if not a.is_floating_point():
        return torch.maximum(a, b)
    return torch.lerp(
        a, b, torch.tensor(weights, dtype=a.dtype, device=a.device).reshape(-1, *[1] * (a.ndim - 1))
    )


def first_names(numbers: dict[str, int]) -> tuple[str, ...]:
    """One name a class, in the order of the classes; `numbers` may hold several for each."""
    by_class: dict[int, str] = {}
    for name, number in numbers.items():
        by_class.setdefault(number, name)
    return tuple(by_class[number] for number in sorted(by_class))


def fingerprint(net: Any) -> str:
    """16 hexadecimal digits that tell a denoiser from another: SHA-256 over each weight's name, shape and SEEN of its
    numbers, evenly spaced, since all of a large model's would take longer than a picture."""
    digest = hashlib.sha256()
    for name, value in sorted(net.state_dict().items()):
        flat = value.detach().reshape(-1)
        some = flat[:: max(1, flat.numel() // SEEN)].to("cpu", torch.float32).contiguous()
        digest.update(f"{name} {tuple(value.shape)}".encode() + some.numpy().tobytes())
    return digest.hexdigest()[:16]
