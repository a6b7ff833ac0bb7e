"""generate: pictures from labels; seeds, micro-batches, tiles, trajectories, cancellation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fastdiff.apps.generate import Cancelled, generate, prepare
from fastdiff.samplers import SAMPLERS
from tiny_model import tiny_model

NET = tiny_model()
quick: dict[str, Any] = {"model": NET, "steps": 3}


def test_order_labels_and_seeds() -> None:
    result = generate(["cat", "brick"], count=2, seed=5, size=(24, 16), **quick)
    assert result.prompts == ("cat", "cat", "brick", "brick") and result.seeds == (5, 6, 7, 8)
    assert result.images.shape == (4, 3, 16, 24) and result.images.dtype == torch.float32
    assert result.images.abs().max() <= 1 and result.images.isfinite().all()


def test_size_and_labels_default_to_the_models_own() -> None:
    result = generate(**quick)
    assert result.prompts == NET.labels and result.images.shape[-2:] == (16, 16)


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "ddpm", "dpmpp_sde", "restart"])
def test_an_image_depends_on_its_own_seed_only(sampler: str) -> None:
    four = generate("cat", count=4, seed=10, sampler=sampler, batch=2, **quick)
    shifted = generate("cat", count=4, seed=12, sampler=sampler, batch=2, **quick)
    assert torch.equal(four.images[2:], shifted.images[:2])
    alone = generate("cat", count=1, seed=13, sampler=sampler, **quick)
    assert torch.allclose(alone.images[0], four.images[3], atol=1e-4)
    assert not torch.allclose(four.images[0], four.images[1], atol=0.1)


def test_micro_batches_change_rounding_only() -> None:
    whole, parts = (generate("all", count=3, batch=batch, **quick).images for batch in (9, 2))
    assert torch.allclose(whole, parts, atol=1e-4)


def test_the_recipe_makes_the_same_images() -> None:
    first = generate(
        ["cat", "cat"],
        count=2,
        seed=3,
        guidance=1.0,
        sampler="ddim",
        options={"eta": 1.0},
        tile=True,
        **quick,
    )
    again = generate(**first.recipe["arguments"], model=NET)
    assert torch.equal(first.images, again.images) and first.recipe == again.recipe
    one = generate(**first.recipe_of(2)["arguments"], model=NET)
    assert torch.allclose(one.images[0], first.images[2], atol=1e-4)


def test_the_callers_random_state_and_grad_mode_stay() -> None:
    before = torch.get_rng_state()
    result = generate("cat", sampler="ddpm", **quick)
    assert torch.equal(before, torch.get_rng_state()) and torch.is_grad_enabled()
    assert not result.images.requires_grad


def test_trajectory_runs_from_noise_to_the_images() -> None:
    result = generate("cat", count=3, batch=2, trajectory=True, sampler="heun", **quick)
    assert result.trajectory is not None and result.trajectory.shape == (result.model_calls + 1, 3, 3, 16, 16)
    assert torch.equal(result.trajectory[-1], result.images)
    noise = torch.stack(
        [torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    )
    assert torch.allclose(result.trajectory[0], noise, atol=1e-3)


def test_progress_counts_what_was_promised() -> None:
    counts: list[int] = []
    job = prepare("all", count=2, batch=4, model=NET, steps=3)
    job.run(progress=counts.append)
    assert sum(counts) == job.total_calls == 6


def test_cancelling_stops_within_a_call() -> None:
    calls: list[int] = []

    class Counting(type(NET)):  # type: ignore[misc]
        def forward(self, x: Tensor, t: Tensor, **options: Any) -> Tensor:
            calls.append(len(x))
            return super().forward(x, t, **options)

    net = tiny_model()
    net.__class__ = Counting
    with pytest.raises(Cancelled):
        generate("cat", model=net, steps=50, cancel=lambda: len(calls) >= 4)
    assert len(calls) == 4


def test_guidance_of_one_calls_one_branch() -> None:
    sizes: list[int] = []
    net = tiny_model()
    net.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    generate("cat", count=2, guidance=1.0, model=net, steps=1)
    generate("cat", count=2, guidance=3.0, model=net, steps=1)
    assert sizes == [2, 4]


@pytest.mark.parametrize("sampler", [*SAMPLERS, "dpm_adaptive"])
def test_every_sampler_draws(sampler: str) -> None:
    result = generate("cat", sampler=sampler, model=NET, steps=6)
    assert result.images.isfinite().all() and result.model_calls >= 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": "dog"}, "unknown label 'dog'"),
        ({"prompts": []}, "no label"),
        ({"prompts": [1]}, "unknown label 1"),
        ({"size": 30}, "use 28 or 32"),
        ({"size": (16, 16, 16)}, "width, height"),
        ({"size": "16"}, "size"),
        ({"count": 0}, "count must be"),
        ({"count": True}, "count must be"),
        ({"steps": 0}, "steps must be"),
        ({"steps": 2000}, "at most 1000"),
        ({"sampler": "eular"}, "did you mean"),
        ({"sampler": None}, "sampler"),
        ({"options": {"etta": 1}}, "etta"),
        ({"spacing": "karas"}, "karras"),
        ({"seed": -1}, "seed must be"),
        ({"seed": 2**63 - 1, "count": 2}, "seed must be"),
        ({"guidance": float("inf")}, "guidance must be"),
        ({"guidance": "2"}, ""),
        ({"batch": 0}, "batch must be"),
        ({"model": "none.safetensors"}, "none.safetensors"),
    ],
)
def test_what_cannot_work_is_refused_before_any_work(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError, OSError)) as caught:
        prepare(**{"model": NET, **arguments})
    assert message in str(caught.value) and "\n" not in str(caught.value)
