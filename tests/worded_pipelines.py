"""Tiny pipelines with random weights that read text: those of benchmarks/tiny_pipelines.py with text encoders."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

import tiny_pipelines
import tiny_transformers
from tiny_parts import TEXT, quiet, scheduler, unet, vae

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def clip_tokenizer() -> CLIPTokenizer:
    """Letters as tokens."""
    names = ["<|startoftext|>", "<|endoftext|>", *(f"{letter}</w>" for letter in LETTERS), *LETTERS]
    return CLIPTokenizer(
        vocab={name: i for i, name in enumerate(names)},
        merges=[],
        model_max_length=12,
        pad_token="<|endoftext|>",
    )


def clip(*, projection: bool = False, seed: int = 7) -> Any:
    """A CLIP text encoder of width TEXT."""
    torch.manual_seed(seed)
    config = CLIPTextConfig(
        vocab_size=54, hidden_size=TEXT, intermediate_size=37, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=12, projection_dim=TEXT, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config).eval()


def t5_tokenizer() -> T5Tokenizer:
    """Letters as tokens."""
    pieces = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        ("▁", -1.0),
        *((letter, -2.0) for letter in LETTERS),
    ]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=12)


def t5(seed: int = 8) -> T5EncoderModel:
    """A T5 encoder of width TEXT."""
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=64,
        d_model=TEXT,
        d_kv=8,
        d_ff=37,
        num_layers=1,
        num_heads=4,
        pad_token_id=0,
        eos_token_id=1,
    )
    return T5EncoderModel(config).eval()


def stable_diffusion(kind: str = "DDIMScheduler", **options: Any) -> Any:
    """Stable Diffusion 1 with this scheduler, spaced as it is published."""
    given = {"clip_sample": False, "set_alpha_to_one": False} if kind == "DDIMScheduler" else {}
    made = scheduler(kind, steps_offset=1, timestep_spacing="leading", **given | options)
    return tiny_pipelines.stable_diffusion(scheduler=made, text_encoder=clip(), tokenizer=clip_tokenizer())


def stable_diffusion_2() -> Any:
    """v-prediction, zero terminal SNR."""
    made = scheduler(
        "DDIMScheduler", prediction_type="v_prediction", clip_sample=False, rescale_betas_zero_snr=True,
        timestep_spacing="trailing", set_alpha_to_one=False,
    )  # fmt: skip
    return tiny_pipelines.stable_diffusion(scheduler=made, text_encoder=clip(), tokenizer=clip_tokenizer())


def sdxl() -> Any:
    """SDXL with Euler."""
    added = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + TEXT,
        "use_linear_projection": True,
        "cross_attention_dim": 2 * TEXT,
    }
    pipe = diffusers.StableDiffusionXLPipeline(
        unet=unet(**added),
        vae=vae(),
        scheduler=scheduler("EulerDiscreteScheduler", steps_offset=1, timestep_spacing="leading"),
        text_encoder=clip(),
        text_encoder_2=clip(projection=True, seed=9),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        add_watermarker=False,
    )
    return quiet(pipe)


def sd3() -> Any:
    """SD3 with all three text encoders."""
    pipe = tiny_transformers.sd3()
    return quiet(
        diffusers.StableDiffusion3Pipeline(
            transformer=_of_width(
                pipe.transformer, joint_attention_dim=2 * TEXT, pooled_projection_dim=2 * TEXT
            ),
            vae=pipe.vae,
            scheduler=pipe.scheduler,
            text_encoder=clip(projection=True),
            text_encoder_2=clip(projection=True, seed=9),
            text_encoder_3=_wide_t5(),
            tokenizer=clip_tokenizer(),
            tokenizer_2=clip_tokenizer(),
            tokenizer_3=t5_tokenizer(),
        )
    )


def flux() -> Any:
    """Flux with dynamic shifting."""
    pipe = tiny_transformers.flux()
    return quiet(
        diffusers.FluxPipeline(
            transformer=pipe.transformer,
            vae=pipe.vae,
            scheduler=pipe.scheduler,
            text_encoder=clip(),
            text_encoder_2=t5(),
            tokenizer=clip_tokenizer(),
            tokenizer_2=t5_tokenizer(),
        )
    )


def pixart() -> Any:
    """PixArt-alpha with DPM++ 2M."""
    pipe = tiny_transformers.pixart()
    pipe.register_modules(text_encoder=t5(), tokenizer=t5_tokenizer())
    return pipe


def dit(kind: str = "DDIMScheduler") -> Any:
    """DiT with three named classes."""
    pipe = tiny_transformers.dit()
    made = getattr(diffusers, kind).from_config(pipe.scheduler.config, clip_sample=False)
    names = {0: "tench, Tinca tinca", 1: "goldfish", 2: "hen"}
    return quiet(
        diffusers.DiTPipeline(transformer=pipe.transformer, vae=pipe.vae, scheduler=made, id2label=names)
    )


def latent_diffusion() -> Any:
    """Unconditional latent diffusion."""
    model = tiny_pipelines.latent_diffusion().vqvae
    made = diffusers.DDIMScheduler(clip_sample=False)
    unet = tiny_pipelines.pixel_unet(in_channels=3, out_channels=3)
    return quiet(diffusers.LDMPipeline(vqvae=model, unet=unet, scheduler=made))


def _of_width(model: Any, **options: Any) -> Any:
    torch.manual_seed(0)
    return type(model).from_config({**model.config, **options})


def _wide_t5() -> T5EncoderModel:
    """T5's width is that of both CLIP encoders together."""
    torch.manual_seed(8)
    config = T5Config(vocab_size=64, d_model=2 * TEXT, d_kv=8, d_ff=37, num_layers=1, num_heads=4)
    return T5EncoderModel(config).eval()
