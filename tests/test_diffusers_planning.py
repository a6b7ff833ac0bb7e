"""Planning: diffusers' own steps run once each on symbols, with nothing drawn; and what it costs."""

from __future__ import annotations

import sys
from typing import Any
from unittest.mock import patch

import pytest

pytest.importorskip("diffusers", reason="diffusers is not installed")

import torch

from diffusers_cases import NAMES, default, draw, ours, theirs
from diffusers_loops import build
from fastdiff.diffusers import plans

pytestmark = pytest.mark.filterwarnings("ignore")

COSTLY = ("UniPCMultistepScheduler", "SASolverScheduler", "DPMSolverMultistepScheduler", "DDIMScheduler")


@pytest.fixture(autouse=True)
def nothing_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "_plans", type(plans._plans)())


def test_nothing_is_drawn() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    for name in NAMES:
        if name in vars(sys.modules["fastdiff.diffusers"])["CLASSES"]:
            build(ours(name), default(name, 2 if name == "SCMScheduler" else 6))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", ["UniPCMultistepScheduler", "DPMSolverMultistepScheduler", "DDIMScheduler"])
def test_each_step_is_taken_once(name: str) -> None:
    taken: list[Any] = []
    step = theirs(name).step
    traced = patch.object(theirs(name), "step", lambda *args, **more: taken.append(1) or step(*args, **more))
    with traced:
        ours(name)().set_timesteps(30)
        ours(name)().set_timesteps(30)  # planned already
    assert len(taken) == 30


@pytest.mark.parametrize("name", COSTLY)
def test_cost_grows_no_faster_than_the_schedule(name: str) -> None:
    def calls(steps: int) -> int:
        count = 0

        def counted(frame: Any, event: str, argument: Any) -> None:
            nonlocal count
            count += event in ("call", "c_call")

        scheduler = ours(name)()
        sys.setprofile(counted)
        try:
            scheduler.set_timesteps(steps)
        finally:
            sys.setprofile(None)
        return count

    calls(10)
    assert calls(120) <= 2.2 * calls(60)


@pytest.mark.parametrize("name", ["UniPCMultistepScheduler", "DPMSolverMultistepScheduler", "DDPMScheduler"])
def test_long_schedules(name: str) -> None:
    mine, other = ours(name)(), theirs(name)()
    x = y = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    results = []
    for scheduler, image in ((mine, x), (other, y)):
        scheduler.set_timesteps(400)
        torch.manual_seed(1)
        for t in scheduler.timesteps:
            image = scheduler.step(0.3 * image + 0.1 * image.sin(), t, image, return_dict=False)[0]
        results.append(image)
    assert mine.fallback is None
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


def test_reasons_name_what_is_in_the_way() -> None:
    case = draw("DDIMInverseScheduler", 7)  # from pure noise, which has no noise prediction
    scheduler = build(ours(case.scheduler), case)
    assert scheduler.fallback == "weights that are not finite"
    sas = ours("SASolverScheduler")(predictor_order=4, corrector_order=4)
    sas.set_timesteps(10)
    assert sas.fallback == "a memory of more than 3 values"
