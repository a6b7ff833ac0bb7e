"""The families of pipelines: what each one's denoiser is called with, beside x and t."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

Conditioning = dict[str, Tensor]


class Family:
    """A kind of denoiser. embed: the conditioning of one prompt, tensors [1, ...]; call: the denoiser's output.

    takes: "text", "labels" or "nothing". patch: sides of x are multiples of it. seamless: whether it can wrap around.
    from_one: whether its pipeline gives the scheduler the sigmas 1 .. 1/steps.
    """

    takes = "nothing"
    patch = 1
    seamless = False
    from_one = False

    def __init__(self, pipe: Any, net: Any) -> None:
        self.pipe, self.config = pipe, net.config
        self.guidance = self.usual(1.0)

    def usual(self, otherwise: float) -> float:
        """The scale of guidance that the pipeline's call takes if none is given."""
        given = inspect.signature(self.pipe.__call__).parameters.get("guidance_scale")
        return float(given.default) if given and isinstance(given.default, (int, float)) else otherwise

    def labels(self) -> dict[str, int]:
        """The classes it knows, by name."""
        return {}

    def embed(self, prompt: str | None) -> Conditioning:
        return {}

    def call(self, net: Any, x: Tensor, t: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        raise NotImplementedError

    def _need(self, *parts: str) -> None:
        missing = [part for part in parts if getattr(self.pipe, part, None) is None]
        if missing:
            raise ValueError(
                f"the pipeline has no {' and no '.join(missing)}, and prompts are read by it: load the whole pipeline"
            )


class Unconditional(Family):
    """DDPM on pixels, latent diffusion: UNet2DModel (arXiv:2006.11239, arXiv:2112.10752)."""

    seamless = True

    def __init__(self, pipe: Any, net: Any) -> None:
        super().__init__(pipe, net)
        if net.config.get("class_embed_type") or net.config.get("num_class_embeds"):
            raise ValueError(
                "its UNet2DModel takes class embeddings, to which no pipeline gives a meaning: write a Source"
            )
        self.guidance = 1.0
        self.patch = 2 ** (len(net.config.block_out_channels) - 1)

    def call(self, net: Any, x: Tensor, t: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        return net(x, t, return_dict=False)[0]


class StableDiffusion(Family):
    """Stable Diffusion 1 and 2 and what was distilled from them: one text encoder (arXiv:2112.10752)."""

    takes = "text"
    seamless = True

    def __init__(self, pipe: Any, net: Any) -> None:
        super().__init__(pipe, net)
        self._need("tokenizer", "text_encoder")
        for option in ("encoder_hid_dim_type", "class_embed_type", "num_class_embeds"):
            if net.config.get(option):
                raise ValueError(
                    f"its UNet needs more than a prompt ({option}): unload adapters, or use its own call"
                )
        self.embedded = self.usual(7.5)
        if net.config.get("time_cond_proj_dim"):  # guidance distilled into the network (arXiv:2310.04378)
            self.guidance = 1.0

    def embed(self, prompt: str | None) -> Conditioning:
        return {
            "encoder_hidden_states": self.pipe.encode_prompt(prompt or "", _device(self.pipe), 1, False)[0]
        }

    def call(self, net: Any, x: Tensor, t: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        return net(x, t, **given, **self._distilled(x), return_dict=False)[0]

    def _distilled(self, x: Tensor) -> Conditioning:
        width = self.config.get("time_cond_proj_dim")
        if not width:
            return {}
        scale = torch.full((len(x),), self.embedded - 1.0)
        return {"timestep_cond": self.pipe.get_guidance_scale_embedding(scale, embedding_dim=width).to(x)}


class StableDiffusionXL(StableDiffusion):
    """SDXL: two text encoders, a pooled embedding, and the size as numbers (arXiv:2307.01952)."""

    def __init__(self, pipe: Any, net: Any) -> None:
        super().__init__(pipe, net)
        self._need("text_encoder_2", "tokenizer_2")
        if pipe.config.get("requires_aesthetics_score"):
            raise ValueError(
                "this is SDXL's refiner, which takes an image and a score: load the base pipeline"
            )

    def embed(self, prompt: str | None) -> Conditioning:
        text, _, pooled, _ = self.pipe.encode_prompt(
            prompt or "",
            device=_device(self.pipe),
            num_images_per_prompt=1,
            do_classifier_free_guidance=False,
        )
        if prompt is None and self.pipe.config.get("force_zeros_for_empty_prompt"):
            text, pooled = torch.zeros_like(text), torch.zeros_like(pooled)
        return {"encoder_hidden_states": text, "text_embeds": pooled}

    def call(self, net: Any, x: Tensor, t: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        height, width = (side * self.pipe.vae_scale_factor for side in x.shape[-2:])
        sizes = [height, width, 0, 0, height, width]
        added = {
            "text_embeds": given["text_embeds"],
            "time_ids": torch.tensor([sizes], dtype=x.dtype, device=x.device).repeat(len(x), 1),
        }
        text = given["encoder_hidden_states"]
        return net(x, t, text, added_cond_kwargs=added, **self._distilled(x), return_dict=False)[0]


class StableDiffusion3(Family):
    """SD3: a flow transformer on up to three text encoders (arXiv:2403.03206)."""

    takes = "text"

    def __init__(self, pipe: Any, net: Any) -> None:
        super().__init__(pipe, net)
        self._need("tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2")
        self.patch = net.config.patch_size

    def embed(self, prompt: str | None) -> Conditioning:
        text = prompt or ""
        made = self.pipe.encode_prompt(
            text, text, text, device=_device(self.pipe), do_classifier_free_guidance=False
        )
        return {"encoder_hidden_states": made[0], "pooled_projections": made[2]}

    def call(self, net: Any, x: Tensor, t: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        return net(hidden_states=x, timestep=t, **given, return_dict=False)[0]


class Flux(Family):
    """FLUX: latents packed two by two into tokens; guidance is one of the transformer's inputs.

    A scale of guidance other than 1 is true guidance, with two branches (the pipeline's true_cfg_scale).
    """

    takes = "text"
    patch = 2
    from_one = True

    def __init__(self, pipe: Any, net: Any) -> None:
        super().__init__(pipe, net)
        self._need("tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2")
        self.embedded, self.guidance = self.guidance, 1.0

    def embed(self, prompt: str | None) -> Conditioning:
        text = prompt or ""
        made = self.pipe.encode_prompt(text, text, device=_device(self.pipe))
        return {"encoder_hidden_states": made[0], "pooled_projections": made[1]}

    def call(self, net: Any, x: Tensor, t: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        batch, channels, height, width = x.shape
        high, wide = height // 2, width // 2
        tokens = x.reshape(batch, channels, high, 2, wide, 2).permute(0, 2, 4, 1, 3, 5)
        places = torch.zeros(high, wide, 3, device=x.device, dtype=x.dtype)
        places[..., 1] += torch.arange(high, device=x.device)[:, None]
        places[..., 2] += torch.arange(wide, device=x.device)[None, :]
        made = net(
            hidden_states=tokens.reshape(batch, high * wide, channels * 4),
            timestep=t.to(x.dtype) / 1000,
            guidance=torch.full((batch,), self.embedded, device=x.device)
            if self.config.guidance_embeds
            else None,
            txt_ids=torch.zeros(given["encoder_hidden_states"].shape[1], 3, device=x.device, dtype=x.dtype),
            img_ids=places.reshape(-1, 3),
            **given,
            return_dict=False,
        )[0]
        return made.reshape(batch, high, wide, channels, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(x.shape)


class PixArt(Family):
    """PixArt-alpha and -sigma: T5 and cross-attention (arXiv:2310.00426)."""

    takes = "text"

    def __init__(self, pipe: Any, net: Any) -> None:
        super().__init__(pipe, net)
        self._need("tokenizer", "text_encoder")
        self.patch = net.config.patch_size

    def embed(self, prompt: str | None) -> Conditioning:
        text, mask, _, _ = self.pipe.encode_prompt(prompt or "", False, device=_device(self.pipe))
        return {"encoder_hidden_states": text, "encoder_attention_mask": mask}

    def call(self, net: Any, x: Tensor, t: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        added: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
        if self.config.sample_size == 128 and net.use_additional_conditions:
            height, width = (side * self.pipe.vae_scale_factor for side in x.shape[-2:])
            added["resolution"] = torch.tensor([[height, width]], device=x.device, dtype=x.dtype).repeat(
                len(x), 1
            )
            added["aspect_ratio"] = torch.full((len(x), 1), height / width, device=x.device, dtype=x.dtype)
        return net(x, timestep=t, **given, added_cond_kwargs=added, return_dict=False)[0]


class DiT(Family):
    """DiT: a transformer on class labels (arXiv:2212.09748). Its labels are numbers where the pipeline has no names."""

    takes = "labels"

    def __init__(self, pipe: Any, net: Any) -> None:
        super().__init__(pipe, net)
        self.patch = net.config.patch_size
        self.null: int = net.config.num_embeds_ada_norm

    def labels(self) -> dict[str, int]:
        named: dict[str, int] = dict(getattr(self.pipe, "labels", None) or {})
        return named or {str(number): number for number in range(self.null)}

    def embed(self, prompt: str | None) -> Conditioning:
        number = self.null if prompt is None else self.labels()[prompt]
        return {"class_labels": torch.tensor([number], device=_device(self.pipe))}

    def call(self, net: Any, x: Tensor, t: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        return net(x, timestep=t, **given, return_dict=False)[0]


FAMILIES: dict[str, type[Family]] = {
    "UNet2DModel": Unconditional,
    "UNet2DConditionModel": StableDiffusion,
    "SD3Transformer2DModel": StableDiffusion3,
    "FluxTransformer2DModel": Flux,
    "PixArtTransformer2DModel": PixArt,
    "DiTTransformer2DModel": DiT,
}
"""By the class of the denoiser."""


def family_of(pipe: Any, net: Any) -> Family:
    """The family of a pipeline with this denoiser. Raises ValueError for one that is not served."""
    kind = type(net).__name__
    if getattr(pipe, "controlnet", None) is not None:
        raise ValueError(f"{type(pipe).__name__} is steered by a ControlNet: load its base pipeline instead")
    if kind not in FAMILIES:
        raise ValueError(
            f"{type(pipe).__name__} denoises with {kind}, which is none of: {', '.join(FAMILIES)}; "
            "speed its own call up with fastdiff.accelerate(pipe), or write a Source for it"
        )
    if FAMILIES[kind] is not StableDiffusion:
        return FAMILIES[kind](pipe, net)
    added = net.config.get("addition_embed_type")
    if added not in (None, "text_time") or not hasattr(pipe, "encode_prompt"):
        raise ValueError(
            f"{type(pipe).__name__} conditions its UNet in a way that is not served: use its own call"
        )
    return (StableDiffusionXL if added else StableDiffusion)(pipe, net)


def _device(pipe: Any) -> torch.device:
    """Where it computes, also when its parts are offloaded."""
    place: torch.device = pipe._execution_device
    return place
