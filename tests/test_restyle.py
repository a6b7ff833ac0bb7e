"""Restyling: the ends of the dial, what is kept, progress and cancellation, bad input, the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdiff import models
from fastdiff.apps.restyle import METHODS, light_and_shade, prepare, restyle, scaled
from fastdiff.apps.source import Native
from fastdiff.cli import main
from fastdiff.events import Cancelled
from fastdiff.images import read_image, read_recipe, to_pictures, write_png
from tiny_model import tiny_model

QUICK: dict[str, Any] = {"steps": 4, "guidance": 1.5, "turns": 1}


@pytest.fixture(scope="module")
def net() -> models.TrainedUNet:
    return tiny_model()


@pytest.fixture(scope="module")
def picture() -> Tensor:
    """No side is a multiple of the model's."""
    return torch.rand(3, 21, 18, generator=torch.Generator().manual_seed(3)) * 2 - 1


@pytest.mark.parametrize("method", METHODS)
def test_strength_0_gives_the_photograph_back(method: str, net: models.TrainedUNet, picture: Tensor) -> None:
    job = prepare(picture, "cat", method=method, strength=0, model=net, **QUICK)
    made = job.run()
    assert job.total_calls == made.model_calls == 0
    assert torch.equal(made.images[0], picture)


@pytest.mark.parametrize("method", METHODS)
def test_progress_counts_every_call_and_a_seed_gives_the_same_picture(
    method: str, net: models.TrainedUNet, picture: Tensor
) -> None:
    job = prepare(picture, "cat", method=method, strength=0.6, count=3, batch=2, model=net, **QUICK)
    calls: list[int] = []
    previews: list[Tensor] = []
    made = job.run(progress=calls.append, preview=previews.append)
    again = job.run()
    assert sum(calls) == job.total_calls == len(previews)
    assert made.images.shape == (3, 3, 21, 18) and torch.equal(made.images, again.images)
    assert float(made.images.abs().max()) <= 1.0
    assert torch.equal(made.images[0], made.images[1]) == (method == "inversion")  # which draws no noise


def test_inversion_under_the_photographs_own_label_changes_little(net: models.TrainedUNet) -> None:
    smooth = torch.linspace(-0.5, 0.5, 16).expand(3, 16, 16)
    arguments: dict[str, Any] = {"strength": 0.4, "model": net, "guidance": 1.0, "steps": 20}
    same = restyle(smooth, "cat", method="inversion", of="cat", turns=10, **arguments).images[0]
    other = restyle(smooth, "truchet", method="inversion", of="cat", turns=10, **arguments).images[0]
    noised = restyle(smooth, "cat", method="sdedit", **arguments).images[0]
    off = [float((made - smooth).square().mean().sqrt()) for made in (same, other, noised)]
    assert off[0] < 0.01 and off[0] < 0.2 * off[1] and off[0] < 0.2 * off[2]


def test_structure_keeps_light_and_shade(net: models.TrainedUNet) -> None:
    shade = torch.linspace(-0.8, 0.8, 32).expand(3, 32, 32)
    target = light_and_shade(shade[None], 4)

    def off(method: str, strength: float) -> float:
        made = restyle(shade, "cat", method=method, strength=strength, model=net, **QUICK)
        return float((light_and_shade(made.images, 4) - target).abs().mean())

    assert off("structure", 0.5) < 0.6 * off("sdedit", 0.5)
    assert off("structure", 0.5) < off("structure", 0.95)


def test_the_photographs_colours_can_be_kept(net: models.TrainedUNet, picture: Tensor) -> None:
    grey = picture.mean(0, keepdim=True).expand(3, -1, -1)
    made = restyle(grey, "cat", colours="photo", strength=0.8, model=net, **QUICK).images[0]
    torch.testing.assert_close(made[0], made[1])
    torch.testing.assert_close(made[1], made[2])


def test_light_and_shade_is_linear_and_has_no_detail() -> None:
    a, b = torch.rand(2, 1, 3, 20, 12).unbind()
    torch.testing.assert_close(
        light_and_shade(a + 2 * b, 4), light_and_shade(a, 4) + 2 * light_and_shade(b, 4)
    )
    chequered = (torch.arange(20)[:, None] + torch.arange(12)) % 2 * 2.0 - 1
    assert float(light_and_shade(chequered.expand(1, 3, 20, 12), 4).abs().max()) < 1e-6


def test_cancelling_ends_both_halves_of_inversion(net: models.TrainedUNet, picture: Tensor) -> None:
    job = prepare(picture, "cat", method="inversion", strength=0.6, model=net, **QUICK)
    assert job.total_calls is not None
    for stop in (1, job.total_calls - 1):
        seen: list[int] = []
        with pytest.raises(Cancelled):
            job.run(progress=seen.append, cancel=lambda seen=seen, stop=stop: len(seen) >= stop)
        assert len(seen) == stop


def test_large_pictures_are_scaled_down_when_asked(net: models.TrainedUNet) -> None:
    made = restyle(torch.zeros(3, 40, 60), "cat", size=20, strength=0.3, model=net, **QUICK)
    assert made.images.shape == (1, 3, 20, 30)
    small = torch.rand(3, 8, 9)
    assert scaled(small, 20) is small


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"prompt": "dog"}, "dog"),
        ({"strength": 1.5}, "strength"),
        ({"strength": float("nan")}, "strength"),
        ({"method": "magic"}, "method"),
        ({"colours": "mine"}, "colours"),
        ({"of": "cat"}, "inversion"),
        ({"turns": -1}, "turns"),
        ({"coarse": 1}, "coarse"),
        ({"count": 0}, "count"),
        ({"size": 0}, "size"),
        ({"method": "inversion", "spacing": "karras"}, "spacing"),
        ({"sampler": "dpm_adaptive"}, "dpm_adaptive"),
        ({"picture": torch.zeros(1, 2, 3, 4)}, "shape"),
        ({"picture": torch.full((3, 8, 8), float("nan"))}, "NaN"),
    ],
)
def test_bad_input_is_one_clear_error(arguments: dict[str, Any], says: str, net: models.TrainedUNet) -> None:
    given = {"picture": torch.zeros(3, 16, 16), "prompt": "cat", "model": net, **arguments}
    with pytest.raises((ValueError, TypeError), match=says):
        prepare(given.pop("picture"), given.pop("prompt"), **given)


def test_models_on_latents_take_inversion_and_sdedit_only(net: models.TrainedUNet, picture: Tensor) -> None:
    source = Native(net)
    source.exact = False
    with pytest.raises(ValueError, match="use inversion or sdedit"):
        prepare(picture, "cat", model=source)
    prepare(picture, "cat", method="inversion", model=source)


def test_the_command_writes_a_picture_with_its_recipe(tmp_path: Path, picture: Tensor, capsys: Any) -> None:
    photo, checkpoint, out = tmp_path / "photo.png", tmp_path / "tiny.safetensors", tmp_path / "out.png"
    write_png(photo, to_pictures(picture[None])[0])
    models.save(checkpoint, tiny_model())
    asked = ["restyle", str(photo), "--to", "truchet", "--method", "inversion", "--of", "cat", "--steps", "3"]
    asked += ["--strength", "0.5", "--model", str(checkpoint), "--out", str(out)]
    assert main([*asked, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    recipe = read_recipe(out)
    assert data["files"] == [str(out)] and data["model_calls"] > 0
    assert (
        recipe["command"] == "restyle" and recipe["arguments"]["of"] == "cat" and recipe["inputs"]["picture"]
    )
    assert read_image(out).shape == picture.shape
    arguments = dict(recipe["arguments"])
    made = restyle(read_image(photo), arguments.pop("prompt"), model=checkpoint, **arguments)
    assert torch.equal(
        torch.from_numpy(to_pictures(made.images)), torch.from_numpy(to_pictures(read_image(out)[None]))
    )
    assert main(asked) == 1 and "exists" in capsys.readouterr().err
    assert main(["restyle", str(photo), "--to", "dog", "--model", str(checkpoint)]) == 1
    assert "dog" in capsys.readouterr().err
