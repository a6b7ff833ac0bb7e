"""Image to image: size, strength, seeds, recipes, and what is refused before any work."""

from __future__ import annotations

import json

import pytest
import torch

from fastdiff.apps.edit import edit, prepare
from fastdiff.events import Cancelled
from pictures import latent, smooth, source

PICTURE = smooth()


@pytest.mark.parametrize("height, width", [(1, 1), (5, 3), (16, 16), (17, 33)])
def test_any_size_comes_back_at_its_own(height, width):
    made = edit(smooth(height, width), "cat", steps=2, strength=1.0, model=source())
    assert made.images.shape == (1, 3, height, width) and made.images.abs().max() <= 1


def test_strength_zero_is_the_picture_and_one_is_all_of_the_steps():
    nothing = edit(PICTURE, "cat", strength=0, steps=6, count=2, model=source())
    assert torch.equal(nothing.images, PICTURE.expand(2, -1, -1, -1)) and nothing.model_calls == 0
    assert [prepare(PICTURE, strength=s, steps=6, model=source()).total_calls for s in (0.5, 1)] == [3, 6]


def test_more_strength_moves_further():
    made = [edit(PICTURE, "cat", strength=s, steps=10, model=source()).images[0] for s in (0.1, 0.4, 0.9)]
    away = [float((one - PICTURE).abs().mean()) for one in made]
    assert away[0] < away[1] < away[2]


def test_pictures_depend_on_their_seeds_alone():
    both = edit(PICTURE, "cat", count=2, seed=4, steps=4, batch=2, model=source())
    alone = edit(PICTURE, "cat", count=1, seed=5, steps=4, model=source())
    assert torch.allclose(both.images[1], alone.images[0], atol=1e-4)
    assert not torch.allclose(both.images[0], both.images[1], atol=1e-2)


def test_a_recipe_makes_it_again_and_names_its_input():
    made = edit(PICTURE, "brick", count=2, seed=3, steps=4, sampler="heun", model=source())
    recipe = json.loads(json.dumps(made.recipe))
    assert recipe["command"] == "edit" and set(recipe["inputs"]) == {"picture"}
    again = edit(PICTURE, model=source(), **recipe["arguments"])
    assert torch.equal(again.images, made.images) and again.recipe == made.recipe
    one = made.recipe_of(1)["arguments"]
    assert (one["count"], one["seed"], "prompts" in one) == (1, 4, False)


def test_without_a_prompt_nothing_is_guided_to():
    assert prepare(PICTURE, model=source()).work.scale == 1.0
    assert prepare(PICTURE, "cat", model=source()).work.scale == 2.0


def test_it_can_be_watched_and_cancelled():
    seen, counted = [], []
    edit(PICTURE, steps=4, model=source(), preview=seen.append, progress=counted.append)
    assert sum(counted) == len(seen) == 2 and seen[0].shape[0] == 1
    with pytest.raises(Cancelled):
        edit(PICTURE, steps=4, model=source(), cancel=lambda: True)


def test_latents_are_edited_too():
    made = edit(PICTURE, "cat", count=2, steps=4, model=latent())
    assert made.images.shape == (2, *PICTURE.shape)


@pytest.mark.parametrize(
    "picture, changes, message",
    [
        (PICTURE, {"strength": 1.5}, "strength must be a number from 0 to 1"),
        (PICTURE, {"strength": float("nan")}, "strength"),
        (PICTURE, {"count": 0}, "count"),
        (PICTURE, {"prompt": "dog"}, "dog"),
        (PICTURE, {"sampler": "nonesuch"}, "nonesuch"),
        (PICTURE[None], {}, r"shape \[1, 3, 30, 22\]"),
        (torch.zeros(4, 8, 8), {}, "shape"),
        (torch.zeros(3, 0, 8), {}, "shape"),
        (torch.full((3, 8, 8), torch.nan), {}, "NaN"),
        (torch.full((3, 8, 8), 200.0), {}, r"scale them to lie in \[-1, 1\]"),
        (torch.zeros(3, 2, 5000), {}, "at most 4096"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(picture, changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        prepare(picture, model=source(), **changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("picture", [torch.zeros(3, 8, 8, dtype=torch.uint8), [[0.0]], None])
def test_other_kinds_of_pictures_are_refused(picture):
    with pytest.raises(TypeError, match="float tensor"):
        prepare(picture, model=source())


def test_grey_pictures_are_taken():
    assert edit(PICTURE[:1], strength=0, model=source()).images.shape == (1, *PICTURE.shape)
