"""Diffusers pipelines as sources: the pipeline's own pictures, and every application on them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import tiny_pipelines  # noqa: E402
import worded_pipelines as worded  # noqa: E402
from fastdiff import schedules  # noqa: E402
from fastdiff.apps.generate import generate, prepare  # noqa: E402
from fastdiff.apps.latents import Autoencoder  # noqa: E402
from fastdiff.apps.pipelines import PipelineSource, fingerprint, without_bars  # noqa: E402
from fastdiff.apps.settings import Settings  # noqa: E402
from fastdiff.apps.source import source_of  # noqa: E402
from fastdiff.guidance import Guidance  # noqa: E402
from fastdiff.sampling import sample  # noqa: E402

PROMPT, STEPS = (
    "a red fox",
    8,
)  # a divisor of 1000: with others, DDIM in diffusers steps past its own timesteps
LATENTS = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3))


@cache
def built(name: str) -> Any:
    return {
        "sd": worded.stable_diffusion,
        "sdxl": worded.sdxl,
        "sd3": worded.sd3,
        "flux": worded.flux,
        "dit": worded.dit,
        "ddpm": tiny_pipelines.ddpm,
    }[name]()


def ours(pipe: Any, prompt: str | None, sampler: str, x: Tensor, **settings: Any) -> Tensor:
    """The picture that fastdiff samples from these latents, [1, 3, H, W] in [0, 1]."""
    source, how = PipelineSource(pipe), Settings(steps=STEPS, sampler=sampler, **settings)
    scale = how.scale(source)
    size = (x.shape[-1] * source.codec.factor, x.shape[-2] * source.codec.factor)
    guidance = None if scale == 1 else Guidance(scale, source.conditioning([how.negative]))
    made = sample(
        source, x, sampler=how.plan(source, size), conditioning=source.conditioning([prompt]), guidance=guidance,
        seed=[0],
    )  # fmt: skip
    return source.decode(made) / 2 + 0.5


def theirs(pipe: Any, **options: Any) -> Tensor:
    given = {"latents": LATENTS.clone(), "height": 32, "width": 32, **options}
    made: Tensor = pipe(PROMPT, num_inference_steps=STEPS, output_type="pt", **given).images
    return made


@pytest.mark.parametrize(
    ("build", "sampler"),
    [
        pytest.param(worded.stable_diffusion, "ddim", id="SD-DDIM"),
        pytest.param(lambda: worded.stable_diffusion("EulerDiscreteScheduler"), "euler", id="SD-Euler"),
        pytest.param(lambda: worded.stable_diffusion("HeunDiscreteScheduler"), "heun", id="SD-Heun"),
        pytest.param(
            lambda: worded.stable_diffusion("DPMSolverMultistepScheduler", use_karras_sigmas=True),
            "dpmpp_2m",
            id="SD-DPM++-Karras",
        ),
        pytest.param(worded.stable_diffusion_2, "ddim", id="SD2-v-zero-SNR"),
        pytest.param(worded.sdxl, "euler", id="SDXL-Euler"),
        pytest.param(worded.sd3, "euler", id="SD3"),
        pytest.param(worded.pixart, "dpmpp_2m", id="PixArt-DPM++"),
    ],
)
def test_the_pipelines_own_picture(build: Callable[[], Any], sampler: str) -> None:
    pipe = build()
    options = (
        {"use_resolution_binning": False, "clean_caption": False} if "PixArt" in type(pipe).__name__ else {}
    )
    expected = theirs(pipe, **options)
    assert torch.allclose(ours(pipe, PROMPT, sampler, LATENTS), expected, atol=2e-5)
    assert expected.std() > 0.1


def test_a_negative_prompt() -> None:
    pipe = worded.stable_diffusion()
    expected = theirs(pipe, negative_prompt="blue dog")
    assert torch.allclose(ours(pipe, PROMPT, "ddim", LATENTS, negative="blue dog"), expected, atol=2e-5)
    assert not torch.allclose(expected, theirs(pipe), atol=1e-3)


def test_flux_with_its_shift_for_the_size_and_true_guidance() -> None:
    pipe = built("flux")
    for scale, options in ((1.0, {}), (3.0, {"negative_prompt": "", "true_cfg_scale": 3.0})):
        packed = pipe._pack_latents(LATENTS, 1, 4, 16, 16)
        expected = theirs(pipe, latents=packed, **options)
        assert torch.allclose(ours(pipe, PROMPT, "euler", LATENTS, guidance=scale), expected, atol=2e-5)
    source = PipelineSource(pipe)
    small, large = (source.schedule_at(side, side).levels(4)[1].sigma for side in (32, 512))
    assert large > small


def test_dit_by_the_name_of_a_class() -> None:
    pipe = built("dit")
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(5))
    made = pipe([1], num_inference_steps=STEPS, generator=generator, output_type="np").images
    expected = torch.from_numpy(made).permute(0, 3, 1, 2)
    assert torch.allclose(ours(pipe, "goldfish", "ddim", x), expected, atol=2e-5)
    source = PipelineSource(pipe)
    assert source.labels == ("Tinca tinca", "goldfish", "hen") and not source.takes_text
    source.check(["tench", None])
    with pytest.raises(ValueError, match="unknown label 'fox'"):
        source.check(["fox"])


@pytest.mark.parametrize("family", ["ddpm", "ldm"])
def test_unconditional_pipelines(family: str) -> None:
    pipe, sampler = (built("ddpm"), "ddpm") if family == "ddpm" else (worded.latent_diffusion(), "ddim")
    made = pipe(
        num_inference_steps=STEPS, generator=torch.Generator().manual_seed(0), output_type="np"
    ).images
    again = generate(model=pipe, steps=STEPS, sampler=sampler, seed=0).images / 2 + 0.5
    # diffusers keeps DDPM's schedule in float32
    assert torch.allclose(again, torch.from_numpy(made).permute(0, 3, 1, 2), atol=5e-3)
    with pytest.raises(ValueError, match="takes no prompt"):
        prepare("a fox", model=pipe)
    with pytest.raises(ValueError, match="leave guidance out"):
        prepare(model=pipe, guidance=2.0)


def test_a_seed_gives_the_latents_that_a_generator_gives() -> None:
    pipe = built("sd")
    made = pipe(
        PROMPT, num_inference_steps=STEPS, generator=torch.Generator().manual_seed(4), output_type="pt"
    ).images
    source = PipelineSource(pipe)
    again = generate(PROMPT, model=source, steps=STEPS, sampler="ddim", seed=4).images / 2 + 0.5
    assert again.shape == made.shape
    # a pipeline begins with noise of deviation 1, the schedule's first level with a little less
    assert (again - made).abs().mean() < 0.02


def test_images_do_not_depend_on_their_neighbours() -> None:
    four = generate([PROMPT, "a dog"], count=2, model=built("sd"), steps=3, size=32, batch=3).images
    alone = generate("a dog", model=built("sd"), steps=3, size=32, seed=3).images
    assert torch.allclose(four[3], alone[0], atol=1e-4)


def test_encode_and_decode_are_the_autoencoders() -> None:
    pipe, picture = built("sd3"), torch.rand(2, 3, 32, 48) * 2 - 1
    source = PipelineSource(pipe)
    latents = source.encode(picture)
    assert latents.shape == source.shape(2, 48, 32)
    config = pipe.vae.config
    with torch.no_grad():
        mean = pipe.vae.encode(picture).latent_dist.mean
        assert torch.allclose(latents, (mean - config.shift_factor) * config.scaling_factor, atol=1e-6)
        decoded = pipe.vae.decode(latents / config.scaling_factor + config.shift_factor).sample
    assert torch.allclose(source.decode(latents), decoded.clamp(-1, 1), atol=1e-6)
    assert torch.equal(source.encode(picture), latents)


def test_a_glimpse_has_the_colours_of_the_picture() -> None:
    source = PipelineSource(built("sd"))
    picture = torch.rand(1, 3, 32, 32) * 4 - 2
    seen = source.glimpse(source.encode(picture))
    assert seen.shape == (1, 3, 16, 16) and seen.isfinite().all()

    class Mixing:
        """Latents that are mixtures of the colours of 2x2 pixels."""

        config = diffusers.configuration_utils.FrozenDict(latent_channels=4, block_out_channels=(1, 1))
        dtype = torch.float32

        def encode(self, pictures: Tensor) -> Any:
            mixture = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
            latents = torch.einsum("bchw,dc->bdhw", F.avg_pool2d(pictures, 2), mixture) + 0.3
            return SimpleNamespace(latents=latents)

    codec = Autoencoder(Mixing())
    assert torch.allclose(codec.glimpse(codec.encode(picture)), F.avg_pool2d(picture, 2), atol=1e-4)
    pixels, flat = PipelineSource(built("ddpm")), torch.rand(1, 3, 8, 8) * 3
    assert torch.equal(pixels.glimpse(flat), flat) and pixels.exact and not source.exact


@pytest.mark.parametrize("family", ["sd", "ddpm"])
def test_tiles_wrap_around_and_the_pipeline_stays(family: str) -> None:
    pipe = built(family)
    source, shift = PipelineSource(pipe), 4
    tiled = source.tiled()
    x = torch.randn(source.shape(1, *source.size))
    prompts = source.conditioning([PROMPT if family == "sd" else None])
    t = torch.tensor([500.0])
    with torch.no_grad():
        rolled = tiled(x.roll(shift, -1), t, **prompts)
        assert torch.allclose(rolled, tiled(x, t, **prompts).roll(shift, -1), atol=1e-4)
        assert not torch.allclose(tiled(x, t, **prompts), source(x, t, **prompts), atol=1e-3)
    pixels = shift * source.codec.factor
    assert torch.allclose(tiled.decode(x.roll(shift, -1)), tiled.decode(x).roll(pixels, -1), atol=1e-4)
    assert {m.padding_mode for m in pipe.unet.modules() if isinstance(m, torch.nn.Conv2d)} == {"zeros"}
    assert next(tiled.net.parameters()) is next(pipe.unet.parameters())


def test_transformers_do_not_tile() -> None:
    with pytest.raises(ValueError, match="leave tile out"):
        prepare(PROMPT, model=built("sd3"), tile=True, size=32)


def test_the_recipe_names_weights_and_scheduler() -> None:
    pipe = worded.stable_diffusion()
    first = PipelineSource(pipe).identity()
    assert first["pipeline"] == "StableDiffusionPipeline" and first["scheduler"].startswith("DDIMScheduler ")
    with torch.no_grad():
        next(pipe.unet.parameters()).add_(1e-3)
    assert (
        PipelineSource(pipe).identity()["checkpoint"] != first["checkpoint"] == fingerprint(built("sd").unet)
    )
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config, steps_offset=0)
    assert PipelineSource(pipe).identity()["scheduler"] != first["scheduler"]


def test_other_spacings_lie_on_the_pipelines_betas() -> None:
    source = PipelineSource(built("sd"))
    plan = Settings(steps=5, spacing="karras").plan(source)
    table = source.schedule.process.alphas_cumprod  # type: ignore[attr-defined]
    expected = schedules.from_alphas_cumprod(table, spacing="karras").levels(5)
    assert [level.ratio for level in plan.levels] == [level.ratio for level in expected]
    with pytest.raises(ValueError, match="no other spacing"):
        Settings(spacing="karras").plan(PipelineSource(built("sd3")))


def test_edit_and_restyle_work_on_latents() -> None:
    from fastdiff.apps import edit, restyle

    picture = torch.rand(3, 30, 34) * 2 - 1
    made = edit.prepare(picture, PROMPT, model=built("sd"), steps=4, strength=0.5).run()
    assert made.images.shape == (1, 3, 30, 34) and made.recipe["inputs"]
    styled = restyle.prepare(picture, PROMPT, model=built("sd"), steps=4, method="sdedit").run()
    assert styled.images.isfinite().all()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (tiny_pipelines.inpaint, "no tokenizer and no text_encoder"),
        (tiny_pipelines.controlnet, "ControlNet"),
        (tiny_pipelines.kandinsky, "not served"),
        (tiny_pipelines.families()["Wan"].build, "none of: UNet2DModel"),
        (tiny_pipelines.latent_diffusion, "takes 6 channels where pictures make 3"),
        (tiny_pipelines.stable_diffusion, "load the whole pipeline"),
    ],
)
def test_what_cannot_be_served_is_refused_in_one_line(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        source_of(build())
    assert "\n" not in str(caught.value)


def test_a_scheduler_that_is_not_known_is_refused() -> None:
    pipe = tiny_pipelines.ddpm()
    pipe.scheduler = diffusers.EDMEulerScheduler()
    with pytest.raises(ValueError, match="give the pipeline another scheduler"):
        PipelineSource(pipe)


def test_prompts_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="no prompt given: say what to show"):
        prepare(model=built("sd"))
    with pytest.raises(ValueError, match="size must be a multiple of 2, got 31"):
        prepare(PROMPT, model=built("sd"), size=31)


def test_a_folder_from_the_command_line(
    tmp_path: Path, fastdiff: Callable[..., tuple[int, str, str]]
) -> None:
    with without_bars():
        worded.stable_diffusion().save_pretrained(tmp_path / "pipe")
    how = ("--model", str(tmp_path / "pipe"), "--steps", "3", "--size", "64", "--negative", "dog", "--out")
    code, out, err = fastdiff("generate", "--prompt", PROMPT, "--prompt", "a hen", *how, "pictures")
    assert (code, err) == (0, "") and "2 pictures" in out
    made = sorted(Path("pictures").iterdir())
    assert len(made) == 2
    code, out, err = fastdiff("generate", "--like", str(made[0]), *how[:2], "--out", "again.png")
    assert (code, err) == (0, "") and "bit for bit the same" in out
    code, out, err = fastdiff("generate", "--label", "x", "--prompt", "y", *how, "z")
    assert code == 1 and "not both" in err
    (tmp_path / "empty").mkdir()
    code, out, err = fastdiff("generate", "--prompt", "y", "--model", str(tmp_path / "empty"))
    assert code == 1 and "without model_index.json" in err
    (tmp_path / "pipe" / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    code, out, err = fastdiff("generate", "--prompt", "y", *how, "z")
    assert code == 1 and "no pipeline that can be loaded" in err and err.count("\n") == 1
