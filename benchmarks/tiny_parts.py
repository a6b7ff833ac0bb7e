"""What small pipelines with random weights are made of, and how they are called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

TEXT = 32
"""Width of the text embeddings."""


@dataclass(frozen=True)
class Family:
    """build makes a pipeline; call runs it for some steps from a fixed seed and returns what it made."""

    build: Callable[[], Any]
    call: Callable[[Any, int], Tensor]


def seeded(seed: int = 0) -> torch.Generator:
    """The generator of a call."""
    return torch.Generator().manual_seed(seed)


def text(*shape: int, seed: int = 1) -> Tensor:
    """Random embeddings."""
    return torch.randn(shape, generator=seeded(seed))


def quiet(pipe: Any) -> Any:
    """Without a progress bar, and ready to infer."""
    pipe.set_progress_bar_config(disable=True)
    for part in vars(pipe).values():
        if isinstance(part, nn.Module):
            part.eval()
    return pipe


def unet(**options: Any) -> diffusers.UNet2DConditionModel:
    """A two-level UNet2DConditionModel."""
    torch.manual_seed(0)
    given = {
        "sample_size": 16,
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": TEXT,
        "attention_head_dim": 8,
        "norm_num_groups": 8,
    }
    return diffusers.UNet2DConditionModel(**given | options)


def vae(**options: Any) -> diffusers.AutoencoderKL:
    """A two-level AutoencoderKL: images have twice the latents' sides."""
    torch.manual_seed(1)
    given = {
        "block_out_channels": (32, 64),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "latent_channels": 4,
        "norm_num_groups": 8,
    }
    return diffusers.AutoencoderKL(**given | options)


def scheduler(name: str, **options: Any) -> Any:
    """A scheduler with Stable Diffusion's settings."""
    given = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    return getattr(diffusers, name)(**given | options)


def embeds() -> dict[str, Tensor]:
    """A prompt and a negative prompt."""
    return {"prompt_embeds": text(1, 7, TEXT), "negative_prompt_embeds": text(1, 7, TEXT, seed=2)}


def image(**options: Any) -> Callable[[Any, int], Tensor]:
    """A call of a pipeline that makes images from embeddings."""

    def call(pipe: Any, steps: int) -> Tensor:
        given = {"num_inference_steps": steps, "generator": seeded(), "output_type": "pt"}
        made: Tensor = pipe(**given | {k: v() if callable(v) else v for k, v in options.items()}).images
        return made

    return call


def pooled(**names: int) -> dict[str, Callable[[], Tensor]]:
    """Pooled embeddings of this width, with and without the prompt."""
    width = names.get("width", TEXT)
    return {
        "pooled_prompt_embeds": lambda: text(1, width, seed=3),
        "negative_pooled_prompt_embeds": lambda: text(1, width, seed=4),
    }


def picture(side: int = 32) -> Tensor:
    """An image in [0, 1]."""
    return torch.rand(1, 3, side, side, generator=seeded(5))
