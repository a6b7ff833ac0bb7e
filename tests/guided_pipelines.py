"""What the tests of guidance in pipelines share: small latents noted down too, and a pipeline to call."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("diffusers")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))


from fastdiff import lazy_guidance
from fastdiff.diffusers import guided
from fastdiff.lazy_guidance import expect
from tiny_parts import embeds, scheduler, seeded
from tiny_pipelines import stable_diffusion

STEPS = 4


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Small latents are noted down too; small models run fastest on one thread, and machines agree."""
    monkeypatch.setattr(lazy_guidance, "LEAST", {"cpu": 1})
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    expect(False)


@pytest.fixture(name="steps")
def watched_steps(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each step that was given something noted down: whether it combined two branches."""
    seen: list[bool] = []

    def watched(noted: Tensor) -> Any:
        read = lazy_guidance.parts(noted)
        seen.append(read.weights is not None)
        return read

    monkeypatch.setattr(guided, "parts", watched)
    return seen


def call(pipe: Any, **options: Any) -> Tensor:
    given = {"num_inference_steps": STEPS, "generator": seeded(), "output_type": "latent", **embeds()}
    made: Tensor = pipe(**given | options).images
    return made


def euler(**parts: Any) -> Any:
    return stable_diffusion(scheduler=scheduler("EulerDiscreteScheduler"), **parts)
