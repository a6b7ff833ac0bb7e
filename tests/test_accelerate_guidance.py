"""Guidance in accelerated pipelines: combined in the step's kernel, to the same pictures."""

from __future__ import annotations

import copy
import inspect
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("diffusers")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import diffusers

from accelerated import difference
from fastdiff.diffusers import CLASSES, convert
from fastdiff.lazy_guidance import Guided, handed
from fastdiff.patching import accelerate, restore
from guided_pipelines import STEPS, call, euler, small, watched_steps  # noqa: F401 - fixtures
from tiny_parts import scheduler, seeded, text
from tiny_pipelines import families, stable_diffusion

FAMILIES = families()
COMBINED = ["SD 1.5", "SDXL", "img2img", "ControlNet", "SD 3", "PixArt", "Wan", "CogVideoX", "Stable Audio"]
"""Families whose every step combines the branches."""


@pytest.mark.parametrize("name", COMBINED)
def test_families_combine_in_the_step(name: str, steps: list[bool]) -> None:
    pipe, run = FAMILIES[name].build(), FAMILIES[name].call
    before = run(pipe, STEPS)
    accelerate(pipe, norms=False)
    assert difference(run(pipe, STEPS), before) <= 1e-5
    assert steps and all(steps)
    restore(pipe)
    assert torch.equal(run(pipe, STEPS), before)


@pytest.mark.parametrize("name", ["Kandinsky 2.2", "DiT", "Flux", "SD 2 v-prediction"])
def test_families_of_other_ways_give_the_same(name: str, steps: list[bool]) -> None:
    pipe, run = FAMILIES[name].build(), FAMILIES[name].call
    before = run(pipe, STEPS)
    accelerate(pipe, norms=False)
    assert difference(run(pipe, STEPS), before) <= 1e-5
    assert not any(steps)


@pytest.mark.parametrize(
    "kind",
    [
        "DDIMScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "HeunDiscreteScheduler",
        "EulerAncestralDiscreteScheduler", "DDPMScheduler", "LMSDiscreteScheduler", "TCDScheduler",
    ],
)  # fmt: skip
def test_schedulers(kind: str, steps: list[bool]) -> None:
    pipe = stable_diffusion(scheduler=scheduler(kind))
    before = call(pipe, guidance_scale=5.0)
    accelerate(pipe, norms=False)
    assert difference(call(pipe, guidance_scale=5.0), before) <= 1e-5
    assert all(steps) and len(steps) >= STEPS


OF_THEIR_OWN = ("CogVideoXDPMScheduler", "DDPMWuerstchenScheduler", "RePaintScheduler", "SCMScheduler")
"""Whose steps or timesteps are called in another way."""


@pytest.mark.parametrize("kind", [kind for kind in CLASSES if kind not in OF_THEIR_OWN])
def test_every_scheduler_combines(kind: str) -> None:
    def run(made: Any) -> tuple[Tensor, list[bool]]:
        made.set_timesteps(STEPS)
        x, noted = text(2, 4, 8, 8), []
        takes = {"generator": seeded()} if "generator" in inspect.signature(made.step).parameters else {}
        for index, time in enumerate(made.timesteps):
            if hasattr(made, "scale_model_input"):
                made.scale_model_input(x, time)
            u, c = handed(text(4, 4, 8, 8, seed=index)).chunk(2)
            guided = u + 7.5 * (c - u)
            x = made.step(guided, time, x, return_dict=False, **takes)[0]
            noted.append(type(guided) is Guided and guided._made is None)
        return x, noted

    with torch.no_grad():
        torch.manual_seed(0)
        expected, plain = run(getattr(diffusers, kind)())
        torch.manual_seed(0)
        made, noted = run(CLASSES[kind]())
    assert not any(plain) and all(noted)
    assert difference(made, expected) <= 1e-5


def test_the_denoised_image_handed_back(steps: list[bool]) -> None:
    pipe, run = FAMILIES["CogVideoX"].build(), FAMILIES["CogVideoX"].call
    pipe.scheduler = diffusers.CogVideoXDPMScheduler.from_config(pipe.scheduler.config)
    before = run(pipe, STEPS)
    accelerate(pipe, norms=False)
    assert difference(run(pipe, STEPS), before) <= 1e-5


def test_dynamic_thresholding_bounds_the_combination(steps: list[bool]) -> None:
    made = scheduler("DDPMScheduler", thresholding=True, sample_max_value=2.0)
    pipe = stable_diffusion(scheduler=made)
    before = call(pipe)
    accelerate(pipe, norms=False)
    assert difference(call(pipe), before) <= 1e-5
    assert steps == [True] * STEPS


@pytest.mark.parametrize(
    "options",
    [
        {"guidance_scale": 1.0},
        {"guidance_scale": 0.0},
        {"guidance_rescale": 0.7},
        {"num_images_per_prompt": 2},
        {"generator": None},
        {"return_dict": True, "eta": 0.5},
    ],
    ids=str,
)
def test_options_of_a_call(options: dict[str, Any]) -> None:
    pipe = stable_diffusion(scheduler=scheduler("DDIMScheduler"))
    latents = text(options.get("num_images_per_prompt", 1), 4, 16, 16, seed=8)
    torch.manual_seed(3)
    before = call(pipe, latents=latents, **options)
    accelerate(pipe, norms=False)
    torch.manual_seed(3)
    assert difference(call(pipe, latents=latents, **options), before) <= 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_no_further_from_the_truth(dtype: torch.dtype) -> None:
    def run(kind: Any, wide: torch.dtype) -> Tensor:
        x = text(2, 4, 16, 16).to(dtype).to(wide)
        kind.set_timesteps(8)
        for index, time in enumerate(kind.timesteps):
            out = handed(text(4, 4, 16, 16, seed=index).to(dtype).to(wide) * 0.3)
            u, c = out.chunk(2)
            x = kind.step(
                u + 5.0 * (c - u), time, kind.scale_model_input(x, time) * 0 + x, return_dict=False
            )[0]
        return x.double()

    made = scheduler("DDIMScheduler", clip_sample=False)
    exact = run(copy.deepcopy(made), torch.float64)
    assert difference(run(convert(made), dtype), exact) <= difference(run(copy.deepcopy(made), dtype), exact)


class Kernels(TorchDispatchMode):
    """Counts what is run on images."""

    def __init__(self, numel: int) -> None:
        super().__init__()
        self.numel, self.names = numel, []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        views = any(each.alias_info and not each.alias_info.is_write for each in func._schema.returns)
        allocation = "empty" in func._schema.name
        if isinstance(made, Tensor) and made.numel() >= self.numel and not views and not allocation:
            self.names.append(func._schema.name)
        if made is None:
            self.names.append(func._schema.name)
        return made


@pytest.mark.parametrize("kind", ["EulerDiscreteScheduler", "DDIMScheduler", "DPMSolverMultistepScheduler"])
def test_from_the_output_to_the_next_sample_is_one_kernel(kind: str) -> None:
    made = convert(scheduler(kind))
    made.set_timesteps(STEPS)
    x = text(1, 4, 16, 16)
    with torch.no_grad():
        for index, time in enumerate(made.timesteps):
            made.scale_model_input(x, time)
            out = text(2, 4, 16, 16, seed=index)
            with Kernels(x.numel()) as count:
                u, c = handed(out).chunk(2)
                x = made.step(u + 5.0 * (c - u), time, x, return_dict=False)[0]
            assert count.names == ["fastdiff::solver_step_"]
