"""Pipelines of many families, small and with random weights: what the table is made of and what the tests run.

    families()[name].build() -> a pipeline;   families()[name].call(pipe, steps) -> its result as a tensor

Text reaches them as embeddings, so that no text encoder or tokenizer is needed. The same seed makes the same pipeline.
"""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from tiny_parts import TEXT, Family, embeds, image, picture, pooled, quiet, scheduler, seeded, text, unet, vae
from tiny_transformers import TRANSFORMERS


def stable_diffusion(kind: str = "StableDiffusionPipeline", **parts: Any) -> Any:
    """A Stable Diffusion pipeline of this class; parts replace or add components."""
    given = {
        "unet": unet(),
        "vae": vae(),
        "scheduler": scheduler("PNDMScheduler", skip_prk_steps=True, steps_offset=1),
        "text_encoder": None,
        "tokenizer": None,
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }
    return quiet(getattr(diffusers, kind)(**given | parts))


def v_prediction() -> Any:
    """Stable Diffusion 2: v-prediction, zero terminal SNR and DDIM."""
    made = scheduler(
        "DDIMScheduler",
        prediction_type="v_prediction",
        clip_sample=False,
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )
    return stable_diffusion(scheduler=made, unet=unet(use_linear_projection=True))


def sdxl() -> Any:
    """SDXL with Euler."""
    added = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + TEXT,
        "transformer_layers_per_block": (1, 2),
        "use_linear_projection": True,
    }
    pipe = diffusers.StableDiffusionXLPipeline(
        unet=unet(**added),
        vae=vae(),
        scheduler=scheduler("EulerDiscreteScheduler", steps_offset=1, timestep_spacing="leading"),
        text_encoder=None,
        text_encoder_2=None,
        tokenizer=None,
        tokenizer_2=None,
        add_watermarker=False,
    )
    return quiet(pipe)


def img2img() -> Any:
    """Image to image with DPM++ 2M Karras."""
    made = scheduler("DPMSolverMultistepScheduler", use_karras_sigmas=True)
    return stable_diffusion("StableDiffusionImg2ImgPipeline", scheduler=made)


def inpaint() -> Any:
    """An inpainting UNet (mask and masked image beside the latents) with UniPC."""
    return stable_diffusion(
        "StableDiffusionInpaintPipeline",
        unet=unet(in_channels=9),
        scheduler=scheduler("UniPCMultistepScheduler"),
    )


def controlnet() -> Any:
    """A ControlNet whose last layers are not the zeros they begin as, and Euler-ancestral."""
    model = diffusers.ControlNetModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        cross_attention_dim=TEXT,
        attention_head_dim=8,
        norm_num_groups=8,
        conditioning_embedding_out_channels=(8, 16),
    )
    for block in (*model.controlnet_down_blocks, model.controlnet_mid_block):
        nn.init.normal_(block.weight, std=0.05)
    return stable_diffusion(
        "StableDiffusionControlNetPipeline",
        controlnet=model,
        scheduler=scheduler("EulerAncestralDiscreteScheduler"),
    )


def ip_adapter() -> Any:
    """An IP-Adapter on the UNet's cross-attention, and LCM."""
    pipe = stable_diffusion(scheduler=scheduler("LCMScheduler"))
    torch.manual_seed(2)
    width, model = TEXT, pipe.unet
    adapter: dict[str, Tensor] = {}
    for index, name in enumerate(name for name in model.attn_processors if name.endswith("attn2.processor")):
        size = model.get_submodule(name.removesuffix(".processor")).to_k.out_features
        for part in ("to_k_ip", "to_v_ip"):
            adapter[f"{2 * index + 1}.{part}.weight"] = torch.randn(size, width) * 0.2
    projection = {
        "proj.weight": torch.randn(4 * width, 16),
        "proj.bias": torch.zeros(4 * width),
        "norm.weight": torch.ones(width),
        "norm.bias": torch.zeros(width),
    }
    model._load_ip_adapter_weights([{"image_proj": projection, "ip_adapter": adapter}])
    return pipe


def half_mask(side: int = 32) -> Tensor:
    """A mask that leaves half of the image."""
    mask = torch.zeros(1, 1, side, side)
    mask[..., side // 2 :] = 1
    return mask


def kandinsky() -> Any:
    """Kandinsky 2.2's decoder: scale-shift blocks, learned variance in the output, a MoVQ decoder."""
    added = {
        "out_channels": 8,
        "addition_embed_type": "image",
        "encoder_hid_dim": TEXT,
        "encoder_hid_dim_type": "image_proj",
        "resnet_time_scale_shift": "scale_shift",
        "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    }
    torch.manual_seed(1)
    movq = diffusers.VQModel(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=8,
        norm_type="spatial",
        num_vq_embeddings=12,
        vq_embed_dim=4,
    )
    for module in movq.modules():
        if hasattr(
            module, "conv_y"
        ):  # a gain near 1, as after training; near 0 each norm would amplify rounding
            nn.init.ones_(module.conv_y.bias)
    made = diffusers.DDIMScheduler(
        beta_schedule="linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=False,
    )
    return quiet(diffusers.KandinskyV22Pipeline(unet=unet(**added), scheduler=made, movq=movq))


def pixel_unet(**options: Any) -> diffusers.UNet2DModel:
    """A two-level unconditional UNet2DModel."""
    torch.manual_seed(0)
    given = {
        "sample_size": 16,
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": 8,
        "norm_num_groups": 8,
    }
    return diffusers.UNet2DModel(**given | options)


def ddpm() -> Any:
    """DDPM on pixels."""
    return quiet(diffusers.DDPMPipeline(unet=pixel_unet(), scheduler=diffusers.DDPMScheduler()))


def latent_diffusion() -> Any:
    """Latent diffusion for super-resolution, with a VQ model."""
    torch.manual_seed(1)
    model = diffusers.VQModel(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=3,
        norm_num_groups=8,
    )
    made = diffusers.LDMSuperResolutionPipeline(
        vqvae=model, unet=pixel_unet(in_channels=6, out_channels=3), scheduler=diffusers.DDIMScheduler()
    )
    return quiet(made)


SDXL_CALL = {
    "prompt_embeds": lambda: text(1, 7, TEXT),
    "negative_prompt_embeds": lambda: text(1, 7, TEXT, seed=2),
}


def families() -> dict[str, Family]:
    """name -> family: those with convolutional UNets, then the transformers, video and sound."""
    convolutional = {
        "SD 1.5": Family(stable_diffusion, image(**embeds())),
        "SD 2 v-prediction": Family(v_prediction, image(**embeds(), guidance_rescale=0.7)),
        "SDXL": Family(sdxl, image(**embeds(), **pooled())),
        "img2img": Family(img2img, image(**embeds(), image=picture, strength=0.75)),
        "inpaint": Family(
            inpaint, image(**embeds(), image=picture, mask_image=half_mask, height=32, width=32)
        ),
        "ControlNet": Family(controlnet, image(**embeds(), image=picture)),
        "IP-Adapter": Family(
            ip_adapter, image(**embeds(), ip_adapter_image_embeds=lambda: [text(2, 1, 16, seed=6)])
        ),
        "Kandinsky 2.2": Family(
            kandinsky, image(**_image_embeds(), height=32, width=32, output_type="latent")
        ),
        "DDPM": Family(ddpm, _numbers),
        "LDM super-resolution": Family(latent_diffusion, _upscaled),
    }
    return convolutional | TRANSFORMERS


def _image_embeds() -> dict[str, Tensor]:
    """Kandinsky's prompt. Its result are latents: a MoVQ with random weights amplifies rounding thirtyfold."""
    return {"image_embeds": text(1, TEXT), "negative_image_embeds": text(1, TEXT, seed=2)}


def _numbers(pipe: Any, steps: int) -> Tensor:
    """Pipelines that know no tensors as output."""
    return torch.from_numpy(pipe(num_inference_steps=steps, generator=seeded(), output_type="np").images)


def _upscaled(pipe: Any, steps: int) -> Tensor:
    made = pipe(image=picture(16), num_inference_steps=steps, generator=seeded(), output_type="np")
    return torch.from_numpy(made.images)
