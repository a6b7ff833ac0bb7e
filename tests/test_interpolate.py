"""Interpolation: the ends are the pictures themselves, the way between is even, and recipes say what was done."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fastdiff.apps import interpolate
from fastdiff.apps.generate import generate
from fastdiff.apps.source import Native
from tiny_model import tiny_model

NET = tiny_model()
quick: dict[str, Any] = {"model": NET, "steps": 3}


def test_the_ends_are_the_pictures_themselves() -> None:
    made = interpolate.prepare(["brick", "cat"], seeds=[4, 9], frames=5, **quick).run()
    first, last = generate("brick", seed=4, **quick).images, generate("cat", seed=9, **quick).images
    assert torch.allclose(made.images[:1], first, atol=1e-4)
    assert torch.allclose(made.images[-1:], last, atol=1e-4)
    assert made.prompts[0] == "brick" and made.prompts[-1] == "cat"


def test_a_model_of_uniform_noise_begins_with_it() -> None:
    net = Native(tiny_model())
    net.noise = "uniform"
    made = interpolate.prepare("cat", seeds=[4, 9], frames=2, model=net, steps=3).run()
    last = generate("cat", seed=9, model=net, steps=3).images
    assert torch.allclose(made.images[-1:], last, atol=1e-4)


def test_stations_are_passed_through() -> None:
    made = interpolate.prepare("cat", seeds=[1, 2, 3], frames=5, **quick).run()
    for frame, seed in ((0, 1), (2, 2), (4, 3)):
        assert torch.allclose(
            made.images[frame : frame + 1], generate("cat", seed=seed, **quick).images, atol=1e-4
        )


def test_labels_alone_keep_the_noise() -> None:
    made = interpolate.prepare(["brick", "cat"], seeds=[4], frames=9, **quick).run()
    steps = (made.images[1:] - made.images[:-1]).flatten(1).norm(dim=1)
    whole = (made.images[-1] - made.images[0]).norm()
    assert 0 < steps.max() < whole


def test_noise_between_seeds_keeps_its_norm() -> None:
    a, b = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)).unbind()
    middle = interpolate.between(torch.stack([a, b]), 0.5)
    assert abs(middle.std() - 1) < 0.02
    assert torch.equal(interpolate.between(torch.stack([a, a]), 0.3), a)


def test_micro_batches_and_repeats_change_nothing() -> None:
    one, two = (
        interpolate.prepare(
            ["brick", "cat"], seeds=[0, 1], frames=5, batch=batch, sampler="ddpm", **quick
        ).run()
        for batch in (5, 2)
    )
    assert torch.allclose(one.images, two.images, atol=1e-4)


def test_the_recipe_makes_the_same_frames() -> None:
    made = interpolate.prepare(["brick", "cat"], seeds=[0, 1], frames=3, **quick).run()
    arguments = made.recipe["arguments"]
    again = interpolate.prepare(**arguments, model=NET).run()
    assert torch.equal(made.images, again.images) and made.recipe == again.recipe
    assert made.recipe["command"] == "interpolate" and made.recipe_of(2)["frame"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": "cat", "seeds": [1]}, "two or more of one"),
        ({"prompts": ["cat", "brick"], "seeds": [1, 2, 3]}, "as many of both"),
        ({"prompts": "cat", "seeds": []}, "two or more"),
        ({"prompts": "cat", "seeds": [1, -2]}, "seed must be"),
        ({"prompts": "dog", "seeds": [1, 2]}, "unknown label"),
        ({"prompts": "cat", "seeds": [1, 2], "frames": 1}, "frames must be"),
    ],
)
def test_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        interpolate.prepare(**arguments, **quick)
