"""Guidance combined in the step's kernel: the same pictures whatever users do with their pipelines."""

from __future__ import annotations

import copy
import pickle
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("diffusers")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import diffusers

from accelerated import difference
from fastdiff.diffusers import convert
from fastdiff.lazy_guidance import Guided, expect, handed
from fastdiff.patching import accelerate, restore
from fastdiff.patching.guidance import is_arranged
from guided_pipelines import STEPS, call, euler, small, watched_steps  # noqa: F401 - fixtures
from tiny_parts import scheduler, text
from tiny_pipelines import stable_diffusion


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
