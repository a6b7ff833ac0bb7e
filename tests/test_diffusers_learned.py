"""Learned variance: models of twice the sample's channels, in DDPM and its kin and in solvers that leave it out."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("diffusers", reason="diffusers is not installed")

import torch
from torch import Tensor

from diffusers_cases import Case, ours, theirs
from test_diffusers_parity import compare

pytestmark = pytest.mark.filterwarnings("ignore")

RANGE: dict[str, Any] = {"variance_type": "learned_range"}
CONFIGURATIONS = [
    ("DDPMScheduler", RANGE),
    ("DDPMScheduler", RANGE | {"thresholding": True, "prediction_type": "v_prediction"}),
    ("DDPMParallelScheduler", RANGE | {"clip_sample": False}),
    ("UnCLIPScheduler", RANGE),
    ("DPMSolverMultistepScheduler", RANGE),
    ("DPMSolverMultistepScheduler", RANGE | {"algorithm_type": "sde-dpmsolver++"}),
    ("DPMSolverMultistepInverseScheduler", RANGE),
    ("DPMSolverSinglestepScheduler", RANGE),
]
LEARNED = [("DDPMScheduler", kind) for kind in ("learned", "learned_range")] + [
    ("UnCLIPScheduler", "learned_range")
]


@pytest.mark.parametrize(("name", "config"), CONFIGURATIONS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_loops_are_fused_and_agree(name: str, config: dict[str, Any], dtype: torch.dtype) -> None:
    for generators, shape in (("one", (2, 3, 6, 6)), ("list", (2, 3, 6, 6)), ("global", (1, 3, 5, 7))):
        case = Case(name, config, {"num_inference_steps": 8}, shape=shape, generators=generators, seed=1)
        assert compare(case, dtype) == ""
    scheduler = ours(name)(**config)
    scheduler.set_timesteps(8)
    assert scheduler.fallback is None


def _pair(name: str, kind: str) -> tuple[Any, Any]:
    made = [cls(variance_type=kind) for cls in (ours(name), theirs(name))]
    for scheduler in made:
        scheduler.set_timesteps(6)
    return made[0], made[1]


def _images(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """A sample, and an output whose second half is a variance between 0 and 1."""
    g = torch.Generator().manual_seed(4)
    x, output = torch.randn(shape, generator=g), torch.randn(shape, generator=g)
    return x, torch.cat([output, torch.rand(shape, generator=g)], dim=1)


@pytest.mark.parametrize(("name", "kind"), LEARNED)
def test_each_step_is_fused_and_agrees(name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mine, other = _pair(name, kind)
    x, output = _images((2, 3, 4, 4))
    expected = [other.step(output, t, x, generator=torch.Generator().manual_seed(5)) for t in other.timesteps]
    monkeypatch.delattr(theirs(name), "_get_variance")  # what diffusers' own step would call
    for t, wanted in zip(mine.timesteps, expected, strict=True):  # the last is at time 0, without noise
        got = mine.step(output, t, x, generator=torch.Generator().manual_seed(5))
        assert type(got) is type(wanted)
        torch.testing.assert_close(got.prev_sample, wanted.prev_sample, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(
            got.pred_original_sample, wanted.pred_original_sample, rtol=1e-5, atol=1e-4
        )
        pair = (
            mine.step(output, t, x, torch.Generator().manual_seed(5), return_dict=False)
            if name[0] == "D"
            else ()
        )
        assert all(map(torch.equal, pair, (got.prev_sample, got.pred_original_sample)))


def test_layouts_and_slices_do_not_matter() -> None:
    mine, _ = _pair("DDPMScheduler", "learned_range")
    x, output = _images((2, 3, 4, 4))
    t = mine.timesteps[2]
    want = mine.step(output, t, x, generator=torch.Generator().manual_seed(0)).prev_sample
    last = output.to(memory_format=torch.channels_last)
    wide = torch.cat([output, output], dim=3)[..., :4]
    for other, sample in ((last, x), (wide, x), (last, x.to(memory_format=torch.channels_last))):
        got = mine.step(other, t, sample, generator=torch.Generator().manual_seed(0)).prev_sample
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["learned", "learned_range"])
def test_gradients_reach_the_predicted_variance(kind: str) -> None:
    grads = []
    for scheduler in _pair("DDPMScheduler", kind):
        x, output = _images((1, 3, 4, 4))
        output.requires_grad_()
        step = scheduler.step(output, scheduler.timesteps[1], x, generator=torch.Generator().manual_seed(2))
        step.prev_sample.square().sum().backward()
        grads.append(output.grad)
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-5)


def test_an_output_without_variance_is_refused_as_by_diffusers() -> None:
    for scheduler in _pair("DDPMScheduler", "learned_range"):
        x, output = _images((1, 3, 4, 4))
        with pytest.raises(TypeError):
            scheduler.step(output[:, :3], scheduler.timesteps[0], x)
