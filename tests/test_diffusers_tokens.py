"""FlowMatchEuler with a timestep for each token."""

from __future__ import annotations

import dataclasses
from typing import Any
from unittest.mock import patch

import pytest

pytest.importorskip("diffusers", reason="diffusers is not installed")

import torch
from torch import Tensor

from diffusers_cases import ours, theirs

NAME = "FlowMatchEulerDiscreteScheduler"
SHAPE = (2, 24, 6)

if "per_token_timesteps" not in theirs(NAME).step.__code__.co_varnames:
    pytest.skip("this diffusers has no timesteps of tokens", allow_module_level=True)


def tokens(t: Tensor, held: int = 3) -> Tensor:
    """Every third token at time 0, one between two levels, the others at t."""
    times = torch.where(torch.arange(SHAPE[1]) % held == 0, 0.0, float(t)).expand(SHAPE[:2]).clone()
    times[1, 1] = 0.77 * t
    return times


def loop(cls: type, config: dict[str, Any], dtype: torch.dtype, **more: Any) -> tuple[Tensor, Any]:
    """A closed loop: the last sample and the scheduler."""
    scheduler = cls(**config)
    scheduler.set_timesteps(7, **({"mu": 0.8} if config.get("use_dynamic_shifting") else {}))
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    for t in scheduler.timesteps:
        output = torch.sin(2 * x).to(dtype)
        x = scheduler.step(output, t, x, per_token_timesteps=tokens(t), **more)[0]
    return x, scheduler


@pytest.mark.parametrize(
    "config", [{}, {"shift": 3.0}, {"use_dynamic_shifting": True}, {"invert_sigmas": True}], ids=str
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_loops_agree(config: dict[str, Any], dtype: torch.dtype) -> None:
    got, mine = loop(ours(NAME), config, dtype, return_dict=False)
    want, other = loop(theirs(NAME), config, dtype, return_dict=False)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    assert mine.step_index == other.step_index == 7


def test_every_token_is_stepped_once_and_not_by_diffusers() -> None:
    seen = []
    step = theirs(NAME).step

    def watched(self: Any, model_output: Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append(model_output.numel())
        return step(self, model_output, *args, **kwargs)

    with patch.object(theirs(NAME), "step", watched):
        loop(ours(NAME), {}, torch.float32)
    assert (
        max(seen[1:]) == 1
    )  # the first held the lookup of levels to diffusers'; one number counts each step


def test_results_are_of_diffusers_class() -> None:
    results = []
    for cls in (ours(NAME), theirs(NAME)):
        scheduler = cls()
        scheduler.set_timesteps(4)
        x = torch.ones(SHAPE)
        results.append(
            scheduler.step(x, scheduler.timesteps[0], x, per_token_timesteps=tokens(torch.tensor(9.0)))
        )
    assert type(results[0]) is type(results[1])
    assert dataclasses.asdict(results[0]).keys() == dataclasses.asdict(results[1]).keys()
    torch.testing.assert_close(results[0].prev_sample, results[1].prev_sample)


def test_stochastic_steps_are_diffusers_own() -> None:
    results = []
    for cls in (ours(NAME), theirs(NAME)):
        torch.manual_seed(3)
        results.append(loop(cls, {"stochastic_sampling": True}, torch.float32)[0])
    assert torch.equal(*results)


def test_gradients_are_diffusers() -> None:
    grads = []
    for cls in (ours(NAME), theirs(NAME)):
        scheduler = cls()
        scheduler.set_timesteps(4)
        x = torch.ones(SHAPE, requires_grad=True)
        t = scheduler.timesteps[1]
        scheduler.step(x.sin(), t, x, per_token_timesteps=tokens(t), return_dict=False)[
            0
        ].square().sum().backward()
        grads.append(x.grad)
    torch.testing.assert_close(*grads)
