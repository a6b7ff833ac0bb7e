"""The families of tiny_pipelines whose denoiser is a transformer, or that make video or sound."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import torch
from torch import Tensor

from tiny_parts import (
    TEXT,
    Family,
    embeds,
    image,
    picture,
    pooled,
    quiet,
    scheduler,
    seeded,
    text,
    unet,
    vae,
)


def seeded_model(kind: str, seed: int = 0, **options: Any) -> Any:
    """A diffusers model of this class with weights from this seed."""
    torch.manual_seed(seed)
    return getattr(diffusers, kind)(**options)


def no_text(*names: str) -> dict[str, None]:
    """The text encoders and tokenizers that a call with embeddings does without."""
    return dict.fromkeys(names)


def sd3() -> Any:
    """Stable Diffusion 3 with flow matching."""
    model = seeded_model(
        "SD3Transformer2DModel", sample_size=16, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=8,
        num_attention_heads=4, joint_attention_dim=TEXT, caption_projection_dim=32, pooled_projection_dim=TEXT,
        out_channels=4,
    )  # fmt: skip
    absent = [f"{part}{number}" for part in ("text_encoder", "tokenizer") for number in ("", "_2", "_3")]
    made = diffusers.StableDiffusion3Pipeline(
        transformer=model,
        vae=vae(shift_factor=0.06, scaling_factor=1.5),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        **no_text(*absent),
    )
    return quiet(made)


def flux() -> Any:
    """Flux with dynamic shifting."""
    model = seeded_model(
        "FluxTransformer2DModel", patch_size=1, in_channels=16, num_layers=1, num_single_layers=1,
        attention_head_dim=16, num_attention_heads=2, joint_attention_dim=TEXT, pooled_projection_dim=TEXT,
        axes_dims_rope=(4, 4, 8), guidance_embeds=True,
    )  # fmt: skip
    made = diffusers.FluxPipeline(
        transformer=model,
        vae=vae(shift_factor=0.06, scaling_factor=1.5),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0),
        **no_text("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"),
    )
    return quiet(made)


def pixart() -> Any:
    """PixArt-alpha with DPM++ 2M and a variance in the output that is dropped."""
    model = seeded_model(
        "PixArtTransformer2DModel", sample_size=16, patch_size=2, num_layers=2, attention_head_dim=8,
        num_attention_heads=4, cross_attention_dim=32, caption_channels=TEXT, in_channels=4, out_channels=8,
        use_additional_conditions=False,
    )  # fmt: skip
    made = diffusers.PixArtAlphaPipeline(
        transformer=model,
        vae=vae(),
        scheduler=diffusers.DPMSolverMultistepScheduler(
            beta_end=0.02, beta_start=0.0001, beta_schedule="linear"
        ),
        **no_text("text_encoder", "tokenizer"),
    )
    return quiet(made)


def dit() -> Any:
    """DiT on class labels with DDIM."""
    model = seeded_model(
        "DiTTransformer2DModel", sample_size=16, patch_size=2, num_layers=2, attention_head_dim=8,
        num_attention_heads=4, in_channels=4, out_channels=8, num_embeds_ada_norm=1000,
        norm_elementwise_affine=False,
    )  # fmt: skip
    return quiet(diffusers.DiTPipeline(transformer=model, vae=vae(), scheduler=diffusers.DDIMScheduler()))


def wan() -> Any:
    """Wan's text-to-video with UniPC on flow sigmas."""
    model = seeded_model(
        "WanTransformer3DModel", patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=16,
        out_channels=16, text_dim=TEXT, freq_dim=32, ffn_dim=32, num_layers=2, cross_attn_norm=True,
        qk_norm="rms_norm_across_heads", rope_max_seq_len=32,
    )  # fmt: skip
    video_vae = seeded_model(
        "AutoencoderKLWan", 1, base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1,
        temperal_downsample=[False, True, True],
    )  # fmt: skip
    made = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    pipe = diffusers.WanPipeline(
        transformer=model, vae=video_vae, scheduler=made, **no_text("text_encoder", "tokenizer")
    )
    return quiet(pipe)


def cogvideox() -> Any:
    """CogVideoX with its own DDIM."""
    model = seeded_model(
        "CogVideoXTransformer3DModel", num_attention_heads=4, attention_head_dim=8, in_channels=4, out_channels=4,
        time_embed_dim=2, text_embed_dim=TEXT, num_layers=1, sample_width=2, sample_height=2, sample_frames=9,
        patch_size=2, temporal_compression_ratio=4, max_text_seq_length=16,
    )  # fmt: skip
    video_vae = seeded_model(
        "AutoencoderKLCogVideoX", 1, in_channels=3, out_channels=3, latent_channels=4, layers_per_block=1,
        down_block_types=("CogVideoXDownBlock3D",) * 4, up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8), norm_num_groups=2, temporal_compression_ratio=4,
    )  # fmt: skip
    made = diffusers.CogVideoXDDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True)
    pipe = diffusers.CogVideoXPipeline(
        transformer=model, vae=video_vae, scheduler=made, **no_text("text_encoder", "tokenizer")
    )
    return quiet(pipe)


def animatediff() -> Any:
    """AnimateDiff: Stable Diffusion's UNet with motion modules."""
    adapter = seeded_model(
        "MotionAdapter", 2, block_out_channels=(32, 64), motion_layers_per_block=1, motion_norm_num_groups=2,
        motion_num_attention_heads=4,
    )  # fmt: skip
    made = scheduler("DDIMScheduler", clip_sample=False, beta_schedule="linear")
    pipe = diffusers.AnimateDiffPipeline(
        unet=unet(), vae=vae(), motion_adapter=adapter, scheduler=made, **no_text("text_encoder", "tokenizer")
    )
    return quiet(pipe)


def video_diffusion() -> Any:
    """Stable Video Diffusion: spatio-temporal blocks, Euler on v-prediction with continuous timesteps."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    model = seeded_model(
        "UNetSpatioTemporalConditionModel", block_out_channels=(32, 64), layers_per_block=2, sample_size=16,
        in_channels=8, out_channels=4, cross_attention_dim=TEXT, num_attention_heads=8, addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
    )  # fmt: skip
    video_vae = seeded_model(
        "AutoencoderKLTemporalDecoder", 1, block_out_channels=(32, 64), latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
    )  # fmt: skip
    torch.manual_seed(3)
    seen = CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=32, projection_dim=TEXT, num_hidden_layers=1, num_attention_heads=4, image_size=224,
            intermediate_size=37, patch_size=56,
        )
    )  # fmt: skip
    made = scheduler(
        "EulerDiscreteScheduler", prediction_type="v_prediction", timestep_type="continuous", sigma_max=700.0,
        sigma_min=0.002, use_karras_sigmas=True, timestep_spacing="leading", steps_offset=1,
    )  # fmt: skip
    pipe = diffusers.StableVideoDiffusionPipeline(
        unet=model, vae=video_vae, image_encoder=seen, scheduler=made, feature_extractor=_feature_extractor()
    )
    return quiet(pipe)


def _feature_extractor() -> Any:
    from transformers import CLIPImageProcessor

    return CLIPImageProcessor()


def stable_audio() -> Any:
    """Stable Audio Open with its SDE solver and its cosine schedule."""
    model = seeded_model(
        "StableAudioDiTModel", sample_size=4, in_channels=3, num_layers=2, attention_head_dim=4,
        num_key_value_attention_heads=2, num_attention_heads=8, out_channels=3, cross_attention_dim=TEXT,
        time_proj_dim=8, global_states_input_dim=2 * TEXT, cross_attention_input_dim=TEXT,
    )  # fmt: skip
    sound_vae = seeded_model(
        "AutoencoderOobleck", 1, encoder_hidden_size=6, downsampling_ratios=[1, 2], decoder_channels=3,
        decoder_input_channels=3, audio_channels=2, channel_multiples=[2, 4], sampling_rate=4,
    )  # fmt: skip
    torch.manual_seed(2)
    from diffusers.pipelines.stable_audio import StableAudioProjectionModel

    projection = StableAudioProjectionModel(
        text_encoder_dim=TEXT, conditioning_dim=TEXT, min_value=0, max_value=32
    )
    made = diffusers.CosineDPMSolverMultistepScheduler(
        solver_order=2, prediction_type="v_prediction", sigma_data=1.0, sigma_schedule="exponential"
    )
    pipe = diffusers.StableAudioPipeline(
        transformer=model,
        vae=sound_vae,
        projection_model=projection,
        scheduler=made,
        **no_text("text_encoder", "tokenizer"),
    )
    return quiet(pipe)


def frames(**options: Any) -> Callable[[Any, int], Tensor]:
    """A call of a pipeline that makes video."""

    def call(pipe: Any, steps: int) -> Tensor:
        given = {"num_inference_steps": steps, "generator": seeded(), "output_type": "pt"}
        made = pipe(**given | {k: v() if callable(v) else v for k, v in options.items()}).frames
        return made if isinstance(made, Tensor) else torch.stack(list(made))

    return call


def labels(pipe: Any, steps: int) -> Tensor:
    """A call of DiT."""
    made = pipe(class_labels=[3], num_inference_steps=steps, generator=seeded(), output_type="np")
    return torch.from_numpy(made.images)


def sound(pipe: Any, steps: int) -> Tensor:
    """A call of Stable Audio."""
    made = pipe(
        num_inference_steps=steps, generator=seeded(), output_type="pt", **embeds(),
        attention_mask=torch.ones(1, 7, dtype=torch.long), negative_attention_mask=torch.ones(1, 7, dtype=torch.long),
    )  # fmt: skip
    waves: Tensor = made.audios
    return waves


def _pixart_text() -> dict[str, Tensor]:
    mask = torch.ones(1, 7, dtype=torch.long)
    return embeds() | {"prompt_attention_mask": mask, "negative_prompt_attention_mask": mask}


TRANSFORMERS = {
    "SD 3": Family(sd3, image(**embeds(), **pooled(), height=32, width=32)),
    "Flux": Family(
        flux,
        image(
            prompt_embeds=lambda: text(1, 7, TEXT),
            pooled_prompt_embeds=lambda: text(1, TEXT, seed=3),
            height=32,
            width=32,
        ),
    ),
    "PixArt": Family(
        pixart,
        image(**_pixart_text(), negative_prompt=None, height=32, width=32, use_resolution_binning=False),
    ),
    "DiT": Family(dit, labels),
    "Wan": Family(wan, frames(**embeds(), height=16, width=16, num_frames=5)),
    "CogVideoX": Family(
        cogvideox,
        frames(
            prompt_embeds=lambda: text(1, 16, TEXT),
            negative_prompt_embeds=lambda: text(1, 16, TEXT, seed=2),
            height=16,
            width=16,
            num_frames=5,
        ),
    ),
    "AnimateDiff": Family(animatediff, frames(**embeds(), num_frames=2)),
    "Stable Video Diffusion": Family(
        video_diffusion,
        frames(image=lambda: _picture_file(), height=32, width=32, num_frames=2, decode_chunk_size=2),
    ),
    "Stable Audio": Family(stable_audio, sound),
}


def _picture_file() -> Any:
    """An image as the image encoder's processor takes it."""
    from diffusers.utils import pt_to_pil

    return pt_to_pil(picture() * 2 - 1)[0]
