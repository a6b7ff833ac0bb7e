"""What a scheduler knows again: a state of before, an output that lies otherwise in memory, a sample not its own."""

from __future__ import annotations

from typing import Any

import pytest

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

import fastdiff.diffusers as ours  # noqa: E402
from fastdiff.diffusers import memory, short  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")

NAMES = (
    "DDIMScheduler", "DDPMScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler",
    "FlowMatchEulerDiscreteScheduler", "HeunDiscreteScheduler", "PNDMScheduler", "UniPCMultistepScheduler",
)  # fmt: skip


def run(scheduler: Any, steps: int, **options: Any) -> Tensor:
    """A loop from a fixed start."""
    scheduler.set_timesteps(steps, **options)
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    drawn = {"generator": generator} if "DDPM" in type(scheduler).__name__ else {}
    for t in scheduler.timesteps:
        x = scheduler.step((0.7 * x).sin(), t, x, **drawn, return_dict=False)[0]
    return x


@pytest.mark.parametrize("name", NAMES)
def test_a_state_is_hashed_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = getattr(ours, name)()
    expected = [run(scheduler, steps) for steps in (5, 7)]
    monkeypatch.setattr(memory, "state_key", lambda plain: pytest.fail("hashed anew"))
    for steps, before in zip((5, 7, 5), (*expected, expected[0])):
        assert torch.equal(run(scheduler, steps), before)


def test_what_was_changed_since_is_seen() -> None:
    def changed(scheduler: Any, how: int) -> Tensor:
        run(scheduler, 5)
        if how == 0:
            scheduler.alphas_cumprod *= 0.99
        elif how == 1:
            scheduler.alphas_cumprod = scheduler.alphas_cumprod * 0.99
        elif how == 2:
            scheduler.register_to_config(prediction_type="sample")
        else:
            scheduler.timesteps += 1
        return run(scheduler, 5)

    for how in range(4):
        expected, got = (
            changed(kind.DDIMScheduler(clip_sample=False, timestep_spacing="leading"), how)
            for kind in (diffusers, ours)
        )
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def loop(scheduler: Any, apart: bool) -> list[Tensor]:
    """A loop as DiT's pipeline has it: some channels of the output; of the sample, what is made of it."""
    scheduler.set_timesteps(6)
    x, found = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), []
    for t in scheduler.timesteps:
        x = torch.cat([x[:1], x[:1]]) if apart else x
        output = torch.cat([(0.3 * x).tanh(), x], 1)[:, :4]
        made = scheduler.step(output, t, x)
        x, _ = made.prev_sample, found.append(made.prev_sample)
        found.append(getattr(made, "pred_original_sample", x))
    return found


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler", "UniPCMultistepScheduler"])
def test_channels_of_an_output_and_a_sample_made_anew(name: str, apart: bool) -> None:
    expected, got = (loop(getattr(kind, name)(), apart) for kind in (diffusers, ours))
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5 * float(other.abs().max()))


def test_they_go_the_short_way(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fastdiff._host", reason="built without pybind11")
    taken: list[bool] = []
    follow = short.follow

    def counted(*args: Any) -> Any:
        made = follow(*args)
        taken.append(made is not None)
        return made

    monkeypatch.setattr(short, "follow", counted)
    loop(ours.DDIMScheduler(), True)
    assert sum(taken) >= 5, "one step of six may find the way"


@pytest.mark.parametrize("mask", [torch.float32, torch.float64], ids=str)
def test_a_mask_of_more_precision_sets_the_dtype(mask: torch.dtype) -> None:
    def step(scheduler: Any) -> Tensor:
        scheduler.set_timesteps(10, 2, 2)
        x, known = torch.linspace(-1, 1, 48).reshape(1, 3, 4, 4), torch.ones(1, 1, 4, 4, dtype=mask) / 3
        generator = torch.Generator().manual_seed(0)
        made: Tensor = scheduler.step(x, scheduler.timesteps[0], x, x, known, generator=generator).prev_sample
        return made

    torch.testing.assert_close(step(ours.RePaintScheduler()), step(diffusers.RePaintScheduler()))
