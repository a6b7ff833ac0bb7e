"""accelerate and restore on whole pipelines: the same pictures, everything in its place, and all of it back."""

from __future__ import annotations

import copy
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("diffusers")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import diffusers

import tiny_parts
from accelerated import difference, small_ones_too  # noqa: F401 - a fixture
from fastdiff.patching import accelerate, fusing, restore
from tiny_pipelines import families, img2img, stable_diffusion

FAMILIES = families()


@pytest.fixture(scope="module")
def plain() -> tuple[Any, Tensor]:
    """Stable Diffusion, not accelerated, and its image."""
    pipe = stable_diffusion()
    return pipe, FAMILIES["SD 1.5"].call(pipe, 4)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_same_result_and_all_of_it_back(name: str) -> None:
    family = FAMILIES[name]
    pipe = family.build()
    steps = 3 if name == "Stable Video Diffusion" else 6
    before, keys = family.call(pipe, steps), state_keys(pipe)
    names = {key: type(value) for key, value in vars(pipe).items()}
    assert accelerate(pipe) is pipe
    assert difference(family.call(pipe, steps), before) <= 1e-5
    assert state_keys(pipe) == keys
    for scheduler in pipe.report.schedulers:
        assert scheduler.fallback is None, scheduler
    restore(pipe)
    assert torch.equal(family.call(pipe, steps), before)
    assert {key: type(value) for key, value in vars(pipe).items()} == names


def state_keys(pipe: Any) -> dict[str, list[str]]:
    """The names of parameters and modules of each model."""
    models = {name: part for name, part in vars(pipe).items() if isinstance(part, torch.nn.Module)}
    return {k: [*model.state_dict(), *(n for n, _ in model.named_modules())] for k, model in models.items()}


def test_the_report_says_what_was_done(plain: tuple[Any, Tensor]) -> None:
    pipe = copy.deepcopy(plain[0])
    lines = str(accelerate(pipe).report).splitlines()
    assert lines[0].split() == ["scheduler", "PNDMScheduler", "fused", "step"]
    unet = next(model for model in pipe.report.models if model.name == "unet")
    assert unet.fused == {"residual blocks": 8, "norm and activation": 1, "norms alone": 4}
    assert unet.left == {}


def test_a_second_call_changes_nothing(plain: tuple[Any, Tensor]) -> None:
    pipe = accelerate(copy.deepcopy(plain[0]))
    scheduler, text = pipe.scheduler, str(pipe.report)
    accelerate(pipe)
    assert pipe.scheduler is scheduler
    assert str(pipe.report) == text


def test_parts_can_be_left_out(plain: tuple[Any, Tensor]) -> None:
    pipe = accelerate(copy.deepcopy(plain[0]), schedulers=False, norms=False)
    assert type(pipe.scheduler) is diffusers.PNDMScheduler
    assert not fusing.fused(pipe.unet)
    assert pipe.report.schedulers[0].fallback is not None


def test_the_scheduler_keeps_its_settings(plain: tuple[Any, Tensor]) -> None:
    pipe = copy.deepcopy(plain[0])
    pipe.scheduler.set_timesteps(7)
    config, timesteps = dict(pipe.scheduler.config), pipe.scheduler.timesteps
    accelerate(pipe)
    assert isinstance(pipe.scheduler, diffusers.PNDMScheduler)
    assert dict(pipe.scheduler.config) == config
    restore(pipe)
    assert type(pipe.scheduler) is diffusers.PNDMScheduler
    assert dict(pipe.scheduler.config) == config
    assert torch.equal(pipe.scheduler.timesteps, timesteps)


def test_a_model_alone() -> None:
    model = tiny_parts.unet().eval()
    x, words = tiny_parts.text(2, 4, 16, 16), tiny_parts.text(2, 7, tiny_parts.TEXT)
    with torch.no_grad():
        before = model(x, 3, words).sample
        accelerate(model)
        assert model.report.models[0].fused["residual blocks"] == 8
        assert difference(model(x, 3, words).sample, before) <= 2e-6
        restore(model)
        assert torch.equal(model(x, 3, words).sample, before)


def test_pipelines_within_share_what_they_shared() -> None:
    outer = stable_diffusion()
    inner = diffusers.StableDiffusionImg2ImgPipeline(**outer.components, requires_safety_checker=False)
    outer.prior_pipe = inner
    accelerate(outer)
    assert inner.scheduler is outer.scheduler
    assert type(outer.scheduler) is not diffusers.PNDMScheduler
    restore(outer)
    assert type(inner.scheduler) is diffusers.PNDMScheduler
    assert inner.scheduler is outer.scheduler


def test_pipelines_within_may_have_models_of_the_same_name() -> None:
    outer, middle, inner = stable_diffusion(), stable_diffusion(), stable_diffusion()
    outer.refiner, middle.last = middle, inner
    accelerate(outer, graph=True)
    assert [model.name for model in outer.report.models] == [
        "vae", "unet", "refiner.vae", "refiner.unet", "refiner.last.vae", "refiner.last.unet",
    ]  # fmt: skip
    assert [scheduler.name for scheduler in outer.report.schedulers][1:] == [
        "refiner.scheduler", "refiner.last.scheduler",
    ]  # fmt: skip
    for pipe in (outer, middle, inner):
        assert fusing.fused(pipe.unet) and fusing.fused(pipe.vae)
        assert "forward" in vars(pipe.unet) and "forward" not in vars(pipe.vae)
    restore(outer)
    for pipe in (outer, middle, inner):
        assert not fusing.fused(pipe.unet) and not fusing.fused(pipe.vae)
        assert "forward" not in vars(pipe.unet)


def test_a_scheduler_that_only_its_pipeline_can_prepare(monkeypatch: pytest.MonkeyPatch) -> None:
    def needs_more(self: Any, steps: int, *args: Any, **options: Any) -> None:
        raise KeyError(None)

    pipe = stable_diffusion(scheduler=diffusers.HeunDiscreteScheduler())
    monkeypatch.setattr(diffusers.HeunDiscreteScheduler, "set_timesteps", needs_more)
    assert "before set_timesteps" in accelerate(pipe).report.schedulers[0].fallback
    if hasattr(diffusers, "HeliosScheduler"):
        pipe.scheduler = diffusers.HeliosScheduler()
        assert accelerate(pipe).report.schedulers[0].kind == "HeliosScheduler"


def test_what_is_no_pipeline_is_refused() -> None:
    with pytest.raises(TypeError, match=r"fastdiff\.diffusers\.convert"):
        accelerate(diffusers.DDIMScheduler())
    with pytest.raises(TypeError, match="pass a diffusers pipeline or a model"):
        accelerate("stable-diffusion")
    with pytest.raises(ValueError, match="memory_format"):
        accelerate(stable_diffusion(), memory_format="channel_last")


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pipe: pickle.loads(pickle.dumps(pipe))])
def test_copies_are_accelerated_and_can_be_restored(plain: tuple[Any, Tensor], copied: Any) -> None:
    pipe = copied(accelerate(copy.deepcopy(plain[0]), memory_format="channels_last"))
    assert fusing.fused(pipe.unet)
    assert difference(FAMILIES["SD 1.5"].call(pipe, 4), plain[1]) <= 1e-5
    restore(pipe)
    assert torch.equal(FAMILIES["SD 1.5"].call(pipe, 4), plain[1])


def test_channels_last_goes_there_and_back_again(plain: tuple[Any, Tensor]) -> None:
    pipe = copy.deepcopy(plain[0])
    strides = [weight.stride() for weight in (*pipe.unet.parameters(), *pipe.vae.parameters())]
    accelerate(pipe, memory_format="channels_last")
    assert pipe.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    assert [model.memory_format for model in pipe.report.models] == ["channels_last"] * 2
    assert difference(FAMILIES["SD 1.5"].call(pipe, 4), plain[1]) <= 1e-5
    restore(pipe)
    assert [w.stride() for w in (*pipe.unet.parameters(), *pipe.vae.parameters())] == strides
    assert torch.equal(FAMILIES["SD 1.5"].call(pipe, 4), plain[1])


def test_a_layout_of_the_users_own_stays() -> None:
    pipe = stable_diffusion()
    pipe.unet.to(memory_format=torch.channels_last)
    accelerate(pipe, memory_format="channels_last")
    restore(pipe)
    assert pipe.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)


def test_threads_share_an_accelerated_model(plain: tuple[Any, Tensor]) -> None:
    model = accelerate(copy.deepcopy(plain[0])).unet
    x, words = tiny_parts.text(2, 4, 16, 16), tiny_parts.text(2, 7, tiny_parts.TEXT)

    def run(_: int) -> Tensor:
        with torch.inference_mode():
            return model(x, 3, words).sample

    with ThreadPoolExecutor(4) as pool:
        first, *rest = pool.map(run, range(12))
    assert all(torch.equal(first, each) for each in rest)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_no_further_from_the_truth(dtype: torch.dtype) -> None:
    model = tiny_parts.unet().eval()
    x, words = tiny_parts.text(2, 4, 16, 16), tiny_parts.text(2, 7, tiny_parts.TEXT)
    with torch.no_grad():
        exact = copy.deepcopy(model).double()(x.double(), 3, words.double()).sample
        model.to(dtype)
        theirs = difference(model(x.to(dtype), 3, words.to(dtype)).sample.double(), exact)
        accelerate(model)
        ours = difference(model(x.to(dtype), 3, words.to(dtype)).sample.double(), exact)
    assert ours <= 1.1 * theirs


def test_image_to_image_starts_in_the_middle() -> None:
    pipe, call = img2img(), FAMILIES["img2img"].call
    before = call(pipe, 5)
    accelerate(pipe)
    assert difference(call(pipe, 5), before) <= 1e-5
