"""fastdiff inspect, and generate --like: what a picture says of itself, and the same picture again."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from fastdiff.apps import denoise, edit, generate, inpaint, interpolate, remake, upscale
from fastdiff.images import read_image, read_recipe, to_pictures, write_png
from tiny_model import tiny_model

Command = Callable[..., tuple[int, str, str]]
QUICK = "--steps 2 --quiet"


def pixels(path: str | Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def edited(path: str, **options: Any) -> torch.Tensor:
    """A picture made by edit from a photograph, and the photograph."""
    photo = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    write_png("photo.png", to_pictures(photo[None])[0])
    photo = read_image("photo.png")
    made = edit.prepare(photo, "cat", steps=4, model=tiny_model(), **options).run()
    for i in range(len(made.images)):
        write_png(path.format(i), to_pictures(made.images)[i], recipe=made.recipe_of(i))
    return photo


def test_inspect_tells_the_recipe(fastdiff: Command) -> None:
    fastdiff(f"generate --label cat --count 1 {QUICK} --out cat.png")
    code, out, err = fastdiff("inspect cat.png")
    assert (code, err) == (0, "")
    assert "cat.png: PNG, 16x16" in out and 'prompts: ["cat"]' in out and "no watermark" in out
    assert "fastdiff generate --like cat.png" in out
    data = json.loads(fastdiff("inspect cat.png --json")[1])
    assert data["recipe"] == read_recipe("cat.png") and data["watermark"] is None


def test_the_watermark_leads_from_a_jpeg_to_the_recipe(fastdiff: Command) -> None:
    fastdiff(f"generate --label cat --count 1 --size 64 {QUICK} --watermark --out marked.png")
    fastdiff(f"generate --label cat --count 1 --size 64 {QUICK} --out plain.png")
    Image.open("marked.png").save("copy.jpg", quality=80)
    Image.open("plain.png").save("plain.jpg", quality=80)
    assert "names recipe" in (out := fastdiff("inspect copy.jpg")[1]) and "no recipe: it stays behind" in out
    data = json.loads(fastdiff("inspect copy.jpg marked.png plain.jpg --in . --json")[1])
    assert [one["recipe"] is None for one in data] == [True, False, True]
    assert data[0]["watermark"]["recipe_in"] == "marked.png" and data[1]["watermark"]["of_this_recipe"]
    assert data[2]["watermark"] is None
    assert "nothing says how it was made" in fastdiff("inspect plain.jpg")[1]
    write_png("swapped.png", pixels("marked.png"), recipe=read_recipe("plain.png"))
    assert "not this one" in fastdiff("inspect swapped.png")[1]


def test_inspect_refuses_what_it_cannot_read(fastdiff: Command) -> None:
    Path("note.png").write_text("hello")
    code, _, err = fastdiff("inspect note.png")
    assert code == 1 and "note.png" in err and err.count("\n") == 1
    assert fastdiff("inspect missing.png")[0] == 1
    Image.new("RGB", (8, 8)).save("tiny.png")
    assert "nothing says how it was made" in fastdiff("inspect tiny.png")[1]
    assert fastdiff("inspect tiny.png --in nowhere")[0] == 1


@pytest.mark.parametrize(
    "made",
    [
        "--label cat --count 1 --out one.png",
        "--label cat --count 1 --size 64 --watermark --out one.png",
        "--label cat,brick --count 2 --out one.png",
        "--label cat,brick --count 2 --zoom 2 --no-captions --out one.png",
        "--label cat --to-label brick --frames 3 --out one.png",
        "--label cat --count 1 --size 24x16 --tile --sampler ddim:eta=1 --guidance 3 --negative brick --out one.png",
    ],
)
def test_like_makes_the_same_picture(made: str, fastdiff: Command) -> None:
    assert fastdiff(f"generate {made} {QUICK}")[2] == ""
    code, out, err = fastdiff("generate --like one.png --out again.png")
    assert (code, err) == (0, "") and "bit for bit the same picture" in out
    assert np.array_equal(pixels("one.png"), pixels("again.png"))
    assert read_recipe("one.png") == read_recipe("again.png")


def test_like_makes_one_of_many_with_its_own_micro_batch(fastdiff: Command) -> None:
    fastdiff(f"generate --label cat,brick --count 3 --batch 4 {QUICK} --out many")
    names = sorted(os.listdir("many"))
    assert len(names) == 6
    for name in names:
        data = json.loads(fastdiff(f"generate --like many/{name} --out again.png --json --overwrite")[1])
        assert data["same"] and data["pixels_differing"] == 0
        assert read_recipe("again.png") == read_recipe(f"many/{name}")


def test_like_sets_the_threads_of_the_recipe_and_puts_them_back(fastdiff: Command) -> None:
    made = generate.generate("cat", model=tiny_model(), steps=2)
    write_png("one.png", to_pictures(made.images)[0], recipe=made.recipe | {"threads": 3})
    before = torch.get_num_threads()
    assert fastdiff("generate --like one.png --out again.png")[0] == 0
    assert torch.get_num_threads() == before and read_recipe("again.png")["threads"] == 3


def test_like_says_what_differs(fastdiff: Command) -> None:
    made = generate.generate("cat", model=tiny_model(), steps=2)
    write_png("old.png", to_pictures(made.images)[0], recipe=made.recipe | {"torch": "1.0"})
    code, _, err = fastdiff("generate --like old.png --out again.png")
    assert code == 0 and "the picture was made with 1.0: the last bits may differ" in err
    write_png("other.png", to_pictures(made.images)[0], recipe=made.recipe | {"checkpoint": "0" * 16})
    code, _, err = fastdiff("generate --like other.png --out other-again.png")
    assert code == 1 and "another checkpoint" in err and not os.path.exists("other-again.png")
    write_png("false.png", 255 - to_pictures(made.images)[0], recipe=made.recipe)
    assert "pixels differ" in fastdiff("generate --like false.png --out false-again.png")[1]


def test_recipes_with_labels_still_work(fastdiff: Command) -> None:
    made = generate.generate("cat", model=tiny_model(), steps=2)
    arguments = {("labels" if k == "prompts" else k): v for k, v in made.recipe["arguments"].items()}
    recipe = {k: v for k, v in made.recipe.items() if k != "command"} | {"arguments": arguments}
    write_png("old.png", to_pictures(made.images)[0], recipe=recipe)
    assert "bit for bit" in fastdiff("generate --like old.png --out again.png")[1]


def test_like_repeats_an_edit_given_its_picture(fastdiff: Command) -> None:
    edited("edited{}.png", count=2)
    code, out, err = fastdiff("generate --like edited1.png --out again.png")
    assert code == 1 and "made by fastdiff edit from other pictures: give the same picture" in err
    code, out, err = fastdiff("generate --like edited1.png --image photo.png --out again.png")
    assert (code, err) == (0, "") and "bit for bit" in out
    assert "--image PICTURE" in fastdiff("inspect edited1.png")[1]
    write_png("other.png", 255 - pixels("photo.png"))
    code, out, err = fastdiff("generate --like edited1.png --image other.png --out no.png")
    assert code == 1 and "not the picture that it was made from" in err
    fastdiff(f"generate --label cat --count 1 {QUICK} --out cat.png")
    code, out, err = fastdiff("generate --like cat.png --image other.png --out no.png")
    assert code == 1 and "was not made from a picture" in err


def test_like_compares_with_what_it_replaces(fastdiff: Command) -> None:
    made = generate.generate("cat", model=tiny_model(), steps=2)
    write_png("false.png", 255 - to_pictures(made.images)[0], recipe=made.recipe)
    assert "pixels differ" in fastdiff("generate --like false.png --out false.png --overwrite")[1]


def test_inspect_names_a_command_that_works(fastdiff: Command) -> None:
    fastdiff(f"generate --label cat --count 1 --show-steps {QUICK} --out one.png")
    assert "--recipe one-steps.png --show-steps" in fastdiff("inspect one-steps.png")[1]
    recipe = read_recipe("one.png")
    write_png("more.png", pixels("one.png"), recipe=recipe | {"command": "augment"})
    out = fastdiff("inspect more.png")[1]
    assert "made by fastdiff augment" in out and "--like" not in out
    write_png("hole.png", pixels("one.png"), recipe=recipe | {"inputs": {"picture": "0", "mask": "1"}})
    assert "--image PICTURE --mask MASK" in fastdiff("inspect hole.png")[1]


@pytest.mark.parametrize(
    ("made", "inputs"),
    [
        ("edit photo.png --label cat --count 2", "--image photo.png"),
        ("edit photo.png --denoise 20", "--image photo.png"),
        ("edit photo.png --upscale 2", "--image photo.png"),
        ("restyle photo.png --to cat", "--image photo.png"),
        ("restyle photo.png --label cat --method sdedit", "--image photo.png"),
        ("inpaint photo.png --mask mask.png --label cat", "--image photo.png --mask mask.png"),
        ("inpaint photo.png --extend 0,0,16,0 --watermark", "--image photo.png --extend 0,0,16,0"),
    ],
)
def test_like_repeats_every_command(made: str, inputs: str, fastdiff: Command) -> None:
    photo = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(photo).resize((64, 64), Image.Resampling.BICUBIC).save("photo.png")
    mask = np.zeros((64, 64), dtype=np.uint8)
    mask[20:40, 20:40] = 255
    Image.fromarray(mask).save("mask.png")
    code, _, err = fastdiff(f"{made} --steps 3 --quiet --out one.png")
    assert (code, err) == (0, "")
    code, out, err = fastdiff(f"generate --like one.png {inputs} --out again.png")
    assert (code, err) == (0, "") and "bit for bit the same picture" in out


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("generate --like one.png --seed 0", "leave out --seed, or use --recipe one.png"),
        ("generate --like one.png --seed 3", "leave out --seed, or use --recipe one.png"),
        ("generate --like one.jpg", "a JPEG carries no recipe"),
        ("generate --like plain.png", "carries no fastdiff recipe"),
        ("generate --like strange.png", "made by 'augury'"),
        ("generate --like future.png", "takes no hue"),
        ("generate --like one.png --out one.png", "exists"),
        ("generate --image one.png", "belong with --like"),
        ("generate --label cat --watermark --size 32", "too small for a watermark"),
    ],
)
def test_what_like_refuses_before_any_work(line: str, message: str, fastdiff: Command) -> None:
    fastdiff(f"generate --label cat --count 1 {QUICK} --out one.png")
    recipe = read_recipe("one.png")
    Image.open("one.png").save("one.jpg")
    Image.fromarray(pixels("one.png")).save("plain.png")
    write_png("strange.png", pixels("one.png"), recipe=recipe | {"command": "augury"})
    write_png(
        "future.png", pixels("one.png"), recipe=recipe | {"arguments": recipe["arguments"] | {"hue": 1}}
    )
    before = sorted(os.listdir())
    code, _, err = fastdiff(line)
    assert code == 1 and message in err and err.count("\n") == 1
    assert sorted(os.listdir()) == before


def test_remake_from_python() -> None:
    made = generate.generate(["cat", "brick"], model=tiny_model(), steps=2, seed=5)
    again = remake.remake(made.recipe_of(1), model=tiny_model())
    assert again.index == 1 and again.differences == ()
    assert torch.equal(again.job.run().images[again.index], made.images[1])
    for recipe in ({}, {"arguments": 3}, {"arguments": {"prompts": ["cat"]}, "together": {"index": 9}}):
        with pytest.raises(ValueError, match="recipe"):
            remake.remake(recipe, model=tiny_model())


def test_a_frame_that_is_not_there_is_refused() -> None:
    made = interpolate.prepare("cat", seeds=[1, 2], frames=3, steps=2, model=tiny_model()).run()
    for frame in (3, -1, "1"):
        with pytest.raises(ValueError, match="which of the frames"):
            remake.remake(made.recipe | {"frame": frame}, model=tiny_model())


def test_inspect_shows_any_recipe_and_steers_no_terminal(fastdiff: Command) -> None:
    blank = np.zeros((64, 64, 3), dtype=np.uint8)
    strange = {"arguments": [1], "inputs": "abc", "command": {"a": 1}, "checkpoint": "\x1b[31mred\n"}
    write_png("strange.png", blank, recipe=strange)
    code, out, err = fastdiff("inspect strange.png")
    assert (code, err) == (0, "") and "checkpoint: ?[31mred?" in out and "\x1b" not in out
    about = PngImagePlugin.PngInfo()
    about.add_text("fastdiff", '{"arguments": {"a": NaN}}')
    Image.fromarray(blank).save("nan.png", pnginfo=about)
    assert fastdiff("inspect nan.png --in .")[0] == 0


def test_remake_takes_masks_and_grey_pictures_as_the_commands_do() -> None:
    grey = torch.rand(1, 18, 13, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mask = torch.zeros(18, 13, dtype=torch.bool)
    mask[4:9, 3:7] = True
    made = inpaint.inpaint(grey, mask, "cat", model=tiny_model(), steps=2)
    again = remake.remake(made.recipe_of(0), inputs={"picture": grey, "mask": mask}, model=tiny_model())
    assert torch.equal(again.job.run().images, made.images)


@pytest.mark.parametrize("app", [edit, denoise, upscale])
def test_a_watermark_too_large_for_what_is_written_is_refused_before_any_work(app: Any) -> None:
    side = 31 if app is upscale else 62  # 64 for the model
    with pytest.raises(ValueError, match="62x62 is too small for a watermark"):
        app.prepare(torch.zeros(3, side, side), model=tiny_model(), watermark=True)
