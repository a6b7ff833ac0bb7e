"""Guidance in accelerated pipelines: combined in the step's kernel, and the same pictures whatever users do with it."""

from __future__ import annotations

import copy
import inspect
import pickle
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("diffusers")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import diffusers

from fastdiff import lazy_guidance
from fastdiff.diffusers import CLASSES, convert, guided
from fastdiff.lazy_guidance import Guided, expect, handed
from fastdiff.patching import accelerate, restore
from fastdiff.patching.guidance import is_arranged
from tiny_parts import embeds, scheduler, seeded, text
from tiny_pipelines import families, stable_diffusion

FAMILIES = families()
STEPS = 4
COMBINED = ["SD 1.5", "SDXL", "img2img", "ControlNet", "SD 3", "PixArt", "Wan", "CogVideoX", "Stable Audio"]
"""Families whose every step combines the branches."""


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Small latents are noted down too; small models run fastest on one thread, and machines agree."""
    monkeypatch.setattr(lazy_guidance, "LEAST", {"cpu": 1})
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    expect(False)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each step that was given something noted down: whether it combined two branches."""
    seen: list[bool] = []

    def watched(noted: Tensor) -> Any:
        read = lazy_guidance.parts(noted)
        seen.append(read.weights is not None)
        return read

    monkeypatch.setattr(guided, "parts", watched)
    return seen


def difference(actual: Tensor, expected: Tensor) -> float:
    """The largest, relative to the largest value."""
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def call(pipe: Any, **options: Any) -> Tensor:
    given = {"num_inference_steps": STEPS, "generator": seeded(), "output_type": "latent", **embeds()}
    made: Tensor = pipe(**given | options).images
    return made


def euler(**parts: Any) -> Any:
    return stable_diffusion(scheduler=scheduler("EulerDiscreteScheduler"), **parts)


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


def read(pipe: Any, index: int, time: Any, given: dict[str, Any]) -> dict[str, Any]:
    pipe.seen.append(given["noise_pred"].clone())
    return {}


def keep(pipe: Any, index: int, time: Any, given: dict[str, Any]) -> dict[str, Any]:
    pipe.seen.append(given["noise_pred"])
    return {}


def write(pipe: Any, index: int, time: Any, given: dict[str, Any]) -> dict[str, Any]:
    given["noise_pred"].zero_()
    return {"latents": given["latents"] + 0.1}


def write_latents(pipe: Any, index: int, time: Any, given: dict[str, Any]) -> dict[str, Any]:
    given["latents"].mul_(0.9)
    return {}


def end_guidance(pipe: Any, index: int, time: Any, given: dict[str, Any]) -> dict[str, Any]:
    if index == 1:
        pipe._guidance_scale = 0.0
        return {"prompt_embeds": given["prompt_embeds"].chunk(2)[1]}
    return {}


def interrupt(pipe: Any, index: int, time: Any, given: dict[str, Any]) -> dict[str, Any]:
    pipe._interrupt = index == 1
    return {}


def rescale(pipe: Any, index: int, time: Any, given: dict[str, Any]) -> dict[str, Any]:
    pipe._guidance_scale = 7.5 - index
    return {}


@pytest.mark.parametrize("callback", [read, keep, write, write_latents, end_guidance, interrupt, rescale])
def test_callbacks(callback: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = euler()
    names = ["latents", "noise_pred", "prompt_embeds"]
    monkeypatch.setattr(type(pipe), "_callback_tensor_inputs", names)
    options = {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": names}
    pipe.seen = theirs = []
    before = call(pipe, **options)
    accelerate(pipe, norms=False)
    pipe.seen = ours = []
    assert difference(call(pipe, **options), before) <= 1e-5
    assert all(difference(a, b) <= 1e-5 for a, b in zip(ours, theirs, strict=True))


def test_users_see_plain_samples(steps: list[bool]) -> None:
    pipe, kinds = accelerate(euler(), norms=False), []

    def look(pipe: Any, index: int, time: Any, given: dict[str, Any]) -> dict[str, Any]:
        kinds.append(type(given["latents"]))
        return {}

    made = call(pipe, callback_on_step_end=look)
    assert {*kinds, type(made)} == {Tensor}
    assert all(steps)


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


def test_restore_leaves_no_trace() -> None:
    pipe = euler()
    before = {
        name: dict(vars(part)) for name, part in vars(pipe).items() if isinstance(part, torch.nn.Module)
    }
    hooks = list(pipe.unet._forward_hooks)
    accelerate(pipe)
    assert is_arranged(pipe.unet) and not is_arranged(pipe.vae)
    accelerate(pipe)
    assert len(pipe.unet._forward_hooks) == 1
    restore(pipe)
    assert list(pipe.unet._forward_hooks) == hooks
    assert {name: vars(getattr(pipe, name)) for name in before} == before


def test_it_can_be_left_out(steps: list[bool]) -> None:
    pipe = accelerate(euler(), guidance=False)
    assert not is_arranged(pipe.unet) and "guidance" not in str(pipe.report)
    assert not is_arranged(accelerate(euler(), schedulers=False).unet)
    call(pipe)
    assert not steps
    assert "guidance" in str(accelerate(pipe).report)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pipe: pickle.loads(pickle.dumps(pipe))])
def test_copies(copied: Any, steps: list[bool]) -> None:
    pipe = euler()
    before = call(pipe)
    twin = copied(accelerate(pipe, norms=False))
    assert difference(call(twin), before) <= 1e-5 and steps == [True] * STEPS
    restore(twin)
    assert not is_arranged(twin.unet) and is_arranged(pipe.unet)
    assert torch.equal(call(twin), before)


def test_saved_models_are_diffusers_own(tmp_path: Path) -> None:
    pipe = euler()
    pipe.unet.save_pretrained(tmp_path / "plain")
    accelerate(pipe)
    pipe.unet.save_pretrained(tmp_path / "ours")
    for file in (tmp_path / "plain").iterdir():
        assert (tmp_path / "ours" / file.name).read_bytes() == file.read_bytes()
    loaded = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "ours")
    assert not loaded._forward_hooks


def test_threads_with_pipelines_of_one_model() -> None:
    pipe = euler()
    before = call(pipe)
    accelerate(pipe, norms=False)
    twins = [type(pipe)(**pipe.components, requires_safety_checker=False) for _ in range(4)]
    for twin in twins:
        twin.set_progress_bar_config(disable=True)
        twin.scheduler = copy.deepcopy(pipe.scheduler)
    with ThreadPoolExecutor(4) as pool:
        for made in pool.map(call, twins * 2):
            assert difference(made, before) <= 1e-5


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_compiled_unet(when: str, steps: list[bool]) -> None:
    pipe = euler()
    before = call(pipe)
    if when == "after":
        accelerate(pipe, norms=False)
    pipe.unet = torch.compile(pipe.unet, backend="eager", fullgraph=True)
    if when == "before":
        accelerate(pipe, norms=False)
    assert difference(call(pipe), before) <= 1e-5
    assert steps == ([True] * STEPS if when == "before" else [])
    restore(pipe)
    assert difference(call(pipe), before) <= 1e-6 and not is_arranged(pipe.unet)


@pytest.mark.usefixtures("stand_in")
def test_replayed_denoisers(steps: list[bool]) -> None:
    pipe = euler()
    before = call(pipe)
    accelerate(pipe, norms=False, graph=True)
    for _ in range(2):
        assert difference(call(pipe), before) <= 1e-5
    assert pipe.unet.forward.report.captured == 1
    assert steps == [True] * STEPS * 2


def test_a_compiled_step(steps: list[bool]) -> None:
    pipe = euler()
    before = call(pipe)
    accelerate(pipe, norms=False)
    pipe.scheduler.step = torch.compile(pipe.scheduler.step, backend="eager", fullgraph=True)
    for _ in range(2):
        assert difference(call(pipe, generator=None, latents=LATENTS()), call_plain()) <= 1e-5
    assert before is not None and not steps


def LATENTS() -> Tensor:
    return text(1, 4, 16, 16, seed=9)


def call_plain() -> Tensor:
    return call(euler(), generator=None, latents=LATENTS())


def test_schedulers_exchanged_afterwards(steps: list[bool]) -> None:
    pipe = accelerate(euler(), norms=False)
    call(pipe)
    steps.clear()
    plain = stable_diffusion(scheduler=scheduler("DDIMScheduler"))
    pipe.scheduler = plain.scheduler
    assert torch.equal(call(pipe), call(plain))
    assert not steps


def test_gradients_through_the_denoiser() -> None:
    pipe = accelerate(euler(), norms=False)
    pipe.scheduler.set_timesteps(STEPS)
    x = text(2, 4, 16, 16).requires_grad_()
    out = pipe.unet(x, 3, text(2, 7, 32)).sample
    assert type(out) is Tensor and out.requires_grad
    out.sum().backward()
    assert x.grad is not None


def test_outputs_with_names(steps: list[bool]) -> None:
    pipe = accelerate(euler(), norms=False)
    pipe.scheduler.set_timesteps(STEPS)
    with torch.no_grad():
        out = pipe.unet(text(2, 4, 16, 16), 3, text(2, 7, 32))
    assert type(out.sample) is Guided and out["sample"] is out.sample and out[0] is out.sample


def test_a_scheduler_that_cannot_combine_runs_on_what_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    made = convert(scheduler("EulerDiscreteScheduler"))
    plain = scheduler("EulerDiscreteScheduler")
    results = []
    for each in (made, plain):
        each.set_timesteps(STEPS)
        x, kept = text(1, 4, 16, 16), []
        with torch.no_grad():
            for index, time in enumerate(each.timesteps):
                each.scale_model_input(x, time)
                expect(True)
                u, c = handed(text(2, 4, 16, 16, seed=index)).chunk(2)
                noise = u + 5.0 * (c - u)
                if index == 2 and each is made:
                    monkeypatch.setattr(type(made), "_fused", lambda self, *args: None)
                done = each.step(noise, time, x, return_dict=True)
                x = done.prev_sample
                kept.append(done.pred_original_sample)
        results.append((x, *kept))
    for ours, theirs in zip(*results):
        assert difference(ours, theirs) <= 1e-5
