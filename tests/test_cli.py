"""The command line: what it makes, what it says, and that bad input is one line, a code, and nothing lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastdiff import images, models
from fastdiff.apps import source, work


def pixels(path: str) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_a_sheet_of_one_class(fastdiff: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = fastdiff(
        "generate --label brick --size 32 --count 16 --steps 3 --sampler dpmpp_2m --seed 0 --out grid.png"
    )
    assert (code, err) == (0, "")
    assert "16 pictures of brick, 32x32" in out and "grid.png" in out
    assert os.listdir() == ["grid.png"]
    assert len(np.unique(pixels("grid.png"))) > 20


def test_single_files_are_what_the_sheet_shows(fastdiff: Callable[..., tuple[int, str, str]]) -> None:
    common = [
        "generate",
        "--label",
        "brick,cat",
        "--count",
        "2",
        "--steps",
        "2",
        "--seed",
        "7",
        "--batch",
        "4",
    ]
    assert fastdiff(*common, "--out", "sheet.png", "--no-captions")[0] == 0
    assert fastdiff(*common, "--out", "single")[0] == 0
    names = ["brick-seed7.png", "brick-seed8.png", "cat-seed9.png", "cat-seed10.png"]
    assert sorted(os.listdir("single")) == sorted(names)
    sheet = pixels("sheet.png")
    for name in names:
        single = pixels(f"single/{name}")
        found = any(
            np.array_equal(sheet[y : y + 16, x : x + 16], single)
            for y in range(sheet.shape[0] - 15)
            for x in range(sheet.shape[1] - 15)
        )
        assert found, name


def test_all_classes_get_captions(fastdiff: Callable[..., tuple[int, str, str]]) -> None:
    assert fastdiff("generate", "--steps", "1", "--count", "2", "--out", "all.png")[0] == 0
    assert fastdiff("generate", "--steps", "1", "--count", "2", "--out", "plain.png", "--no-captions")[0] == 0
    assert pixels("all.png").shape[0] > pixels("plain.png").shape[0]


def test_a_sheet_can_be_enlarged(fastdiff: Callable[..., tuple[int, str, str]]) -> None:
    assert fastdiff("generate --label cat --count 4 --steps 1 --zoom 3 --out x.png")[0] == 0
    assert pixels("x.png").size >= 4 * 48 * 48 * 3


def test_a_recipe_makes_the_same_pixels(fastdiff: Callable[..., tuple[int, str, str]]) -> None:
    options = (
        "--label cat --count 3 --steps 3 --sampler ddim:eta=1.0 --seed 5 --size 32x16 --guidance 1.5 --tile"
    )
    assert fastdiff("generate", *options.split(), "--spacing", "karras", "--out", "a.png")[0] == 0
    assert fastdiff("generate", "--recipe", "a.png", "--out", "b.png")[0] == 0
    assert np.array_equal(pixels("a.png"), pixels("b.png"))
    assert images.read_recipe("a.png") == images.read_recipe("b.png")
    assert fastdiff("generate", "--recipe", "a.png", "--seed", "6", "--out", "c.png")[0] == 0
    assert not np.array_equal(pixels("a.png"), pixels("c.png"))


def test_the_recipe_of_a_single_file_makes_it_alone(fastdiff: Callable[..., tuple[int, str, str]]) -> None:
    assert fastdiff("generate", "--label", "all", "--count", "2", "--steps", "2", "--out", "many")[0] == 0
    assert fastdiff("generate", "--recipe", "many/cat-seed3.png", "--out", "one.png")[0] == 0
    difference = pixels("one.png").astype(int) - pixels("many/cat-seed3.png").astype(int)
    assert (
        np.abs(difference).max() <= 1
    )  # another micro-batch size: convolutions are not batch-invariant to the bit


def test_film_strip(fastdiff: Callable[..., tuple[int, str, str]]) -> None:
    command = [
        "generate",
        "--label",
        "brick",
        "--count",
        "2",
        "--steps",
        "4",
        "--show-steps",
        "--out",
        "x.png",
    ]
    assert fastdiff(*command)[0] == 0
    assert sorted(os.listdir()) == ["x-steps.png", "x.png"]
    assert pixels("x-steps.png").shape == (2 * 18 + 2 + images.caption_height(16), 5 * 18 + 2, 3)


def test_json_tells_time_and_files(fastdiff: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = fastdiff(
        "generate", "--label", "cat", "--count", "2", "--steps", "2", "--json", "--out", "c.png"
    )
    data = json.loads(out)
    assert (
        code == 0
        and data["files"] == ["c.png"]
        and data["images"] == 2
        and data["model_calls_per_image"] == 2
    )
    assert 0 < data["seconds"]["sampling"] <= data["seconds"]["total"]


def test_tiles_wrap_around(fastdiff: Callable[..., tuple[int, str, str]], tiny: Path) -> None:
    """Rolled noise gives the rolled picture: what is seamless knows no edge."""
    net = models.load(tiny).tiled()
    x, t, label = torch.randn(1, 3, 16, 24), torch.tensor([500.0]), torch.tensor([1])
    shift = (4, 8)
    assert torch.allclose(
        net(x.roll(shift, (2, 3)), t, label=label), net(x, t, label=label).roll(shift, (2, 3)), atol=1e-5
    )
    assert fastdiff("generate --label cat --count 1 --steps 2 --out plain.png")[0] == 0
    assert fastdiff("generate --label cat --count 1 --steps 2 --tile --out tile.png")[0] == 0
    assert not np.array_equal(pixels("plain.png"), pixels("tile.png"))


BAD = {
    "unknown sampler": (["generate", "--sampler", "eular"], "did you mean euler"),
    "unknown sampler option": (["generate", "--sampler", "ddim:etta=1"], "did you mean eta"),
    "sampler option no number": (["generate", "--sampler", "ddim:eta=x"], "is a number"),
    "unknown label": (["generate", "--label", "brik"], "did you mean brick"),
    "no label": (["generate", "--label", ","], "no label"),
    "steps 0": (["generate", "--steps", "0"], "steps must be an integer from 1"),
    "too many steps": (["generate", "--steps", "1001"], "at most 1000"),
    "steps no number": (["generate", "--steps", "few"], "invalid int"),
    "odd size": (["generate", "--size", "30"], "multiple of 4"),
    "huge size": (["generate", "--size", "40000"], "from 4 to 4096"),
    "size no number": (["generate", "--size", "big"], "WIDTHxHEIGHT"),
    "size 0": (["generate", "--size", "0x16"], "size must be"),
    "count 0": (["generate", "--count", "0"], "count must be"),
    "count huge": (["generate", "--count", "100000"], "count must be"),
    "seed negative": (["generate", "--seed", "-1"], "seed must be"),
    "guidance nan": (["generate", "--guidance", "nan"], "guidance must be"),
    "zoom of single files": (["generate", "--zoom", "2", "--out", "folder"], "of a sheet"),
    "zoom 0": (["generate", "--zoom", "0", "--out", "x.png"], "--zoom"),
    "batch 0": (["generate", "--batch", "0"], "batch must be"),
    "unknown spacing": (["generate", "--spacing", "karas"], "karras"),
    "missing model": (["generate", "--model", "none.safetensors"], "none.safetensors"),
    "compare and between": (["generate", "--compare", "--to-seed", "1"], "not both"),
    "compare one sampler": (["generate", "--compare", "--sampler", "ddim"], "takes the place of"),
    "frames of nothing": (["generate", "--frames", "3"], "belongs with"),
    "steps of words": (["generate", "--compare", "--compare-steps", "many"], "whole numbers"),
    "counted frames": (["generate", "--to-seed", "1", "--label", "cat", "--count", "2"], "--frames"),
    "model is a folder": (["generate", "--model", "."], "model_index.json"),
    "corrupt model": (["generate", "--model", "corrupt.safetensors"], "corrupt.safetensors"),
    "truncated model": (["generate", "--model", "truncated.safetensors"], "truncated"),
    "missing recipe": (["generate", "--recipe", "none.png"], "none.png"),
    "recipe without one": (["generate", "--recipe", "plain.png"], "no fastdiff recipe"),
    "existing output": (["generate", "--out", "plain.png"], "--overwrite"),
    "no png": (["generate", "--out", "new.jpg"], "PNG"),
    "folder under a file": (["generate", "--out", "plain.png/x.png"], "not a folder"),
    "folder under a device": (["generate", "--out", "/dev/null/x.png"], "not a folder"),
    "unknown device": (["generate", "--device", "cude"], "did you mean cuda"),
    "unknown command": (["generte"], "did you mean generate"),
    "unknown flag": (["generate", "--lable", "brick"], "--lable"),
    "plan: unknown sampler": (["plan", "--sampler", "hein"], "did you mean heun"),
    "plan: unknown schedule": (["plan", "--schedule", "carras"], "did you mean karras"),
    "plan: unknown schedule option": (["plan", "--schedule", "karras:sigma=3"], "sigma_m"),
    "plan: bad schedule value": (["plan", "--schedule", "karras:sigma_min=9,sigma_max=3"], "sigma_min"),
    "plan: no number": (["plan", "--schedule", "karras:sigma_min=low"], "is a number"),
    "plan: steps 0": (["plan", "--steps", "0"], "steps must be"),
    "plan: unknown prediction": (["plan", "--prediction", "epsilom"], "did you mean epsilon"),
    "plan: existing plot": (["plan", "--plot", "plain.png"], "--overwrite"),
    "train: nothing named": (["train"], "--data"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_nothing_lost(
    fastdiff: Callable[..., tuple[int, str, str]], case: str, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (4, 4)).save("plain.png")
    Path("corrupt.safetensors").write_bytes(b"\x00" * 1000)
    Path("truncated.safetensors").write_bytes(tiny.read_bytes()[:-100])
    before = {name: Path(name).read_bytes() for name in os.listdir()}

    def no_work(*args: object, **kwargs: object) -> None:
        raise AssertionError("the work started before the input was checked")

    monkeypatch.setattr(work, "sample", no_work)
    argv, expected = BAD[case]
    code, out, err = fastdiff(*argv)
    assert code in (1, 2) and out == ""
    assert err.count("\n") == 1 and err.startswith("fastdiff"), err
    assert expected in err
    assert {name: Path(name).read_bytes() for name in os.listdir()} == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_cuda_where_there_is_none(fastdiff: Callable[..., tuple[int, str, str]]) -> None:
    code, _, err = fastdiff("generate --device cuda --out x.png")
    assert code == 1 and err.count("\n") == 1 and "no CUDA device" in err


def test_unwritable_folder(
    fastdiff: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # as root, a folder's permissions would not hold
    code, out, err = fastdiff("generate", "--steps", "1", "--out", "x.png")
    assert (code, out) == (1, "") and "not writable" in err and err.count("\n") == 1


def test_full_disk(fastdiff: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    code, _, err = fastdiff("generate", "--steps", "1", "--out", "x.png")
    assert code == 1 and "disk is full" in err and err.count("\n") == 1
    assert os.listdir() == []


def test_a_recipe_of_another_checkpoint_asks_for_it(
    fastdiff: Callable[..., tuple[int, str, str]], tiny: Path, tmp_path: Path
) -> None:
    other = models.load(tiny)
    other.stem.bias += 1.0
    models.save(tmp_path / "other.safetensors", other)
    assert fastdiff("generate", "--model", "other.safetensors", "--steps", "1", "--out", "a.png")[0] == 0
    code, _, err = fastdiff("generate", "--recipe", "a.png", "--out", "b.png")
    assert code == 1 and "--model" in err
    assert fastdiff("generate", "--recipe", "a.png", "--model", "other.safetensors", "--out", "b.png")[0] == 0
    assert np.array_equal(pixels("a.png"), pixels("b.png"))


def test_a_contact_sheet_of_samplers(fastdiff: Callable[..., tuple[int, str, str]]) -> None:
    asked = ("generate", "--label", "cat", "--compare", "ddim,heun", "--compare-steps", "1,2,3")
    assert fastdiff(*asked, "--out", "sheet.png")[0] == 0
    recipe = images.read_recipe("sheet.png")
    assert recipe["command"] == "compare" and recipe["arguments"]["steps"] == [1, 2, 3]
    assert fastdiff(*asked, "--out", "single")[0] == 0
    assert sorted(os.listdir("single"))[0] == "ddim-1-cat-seed0.png" and len(os.listdir("single")) == 6
    assert fastdiff("generate", "--recipe", "single/heun-2-cat-seed0.png", "--out", "one.png")[0] == 0
    assert images.read_image("one.png").equal(images.read_image("single/heun-2-cat-seed0.png"))


def test_frames_between_labels_and_seeds(fastdiff: Callable[..., tuple[int, str, str]]) -> None:
    asked = ("generate", "--label", "cat", "--to-label", "brick", "--to-seed", "3", "--steps", "2")
    assert fastdiff(*asked, "--frames", "4", "--out", "frames")[0] == 0
    assert sorted(os.listdir("frames")) == [f"frame-{i:04d}.png" for i in range(4)]
    assert fastdiff(*asked, "--size", "32", "--out", "row.png")[0] == 0
    one = ("generate", "--label", "cat", "--count", "1", "--steps", "2", "--out", "one.png")
    assert fastdiff(*one)[0] == 0  # whose recipe says how windows overlap, though there are none
    more = ("generate", "--recipe", "one.png", "--to-seed", "3", "--frames", "3", "--out", "more")
    assert fastdiff(*more)[0] == 0 and len(os.listdir("more")) == 3


def test_a_large_canvas_by_windows(fastdiff: Callable[..., tuple[int, str, str]]) -> None:
    asked = (
        "generate",
        "--label",
        "cat",
        "--count",
        "1",
        "--steps",
        "2",
        "--size",
        "64x32",
        "--window",
        "16",
    )
    assert fastdiff(*asked, "--out", "large.png")[0] == 0
    assert images.read_image("large.png").shape == (3, 32, 64)
    assert fastdiff("generate", "--recipe", "large.png", "--out", "again.png")[0] == 0
    assert images.read_image("large.png").equal(images.read_image("again.png"))


@pytest.mark.parametrize(
    "arguments", [None, [], {"steps": "x"}, {"exec": 1}, {"size": [8, 8, 8]}, {"prompts": [1]}]
)
def test_forged_recipes_are_one_line(
    fastdiff: Callable[..., tuple[int, str, str]], tiny: Path, arguments: object
) -> None:
    recipe = {"checkpoint": source.fingerprint(models.load(tiny).state_dict()), "arguments": arguments}
    images.write_png("forged.png", np.zeros((4, 4, 3), np.uint8), recipe=recipe)
    code, _, err = fastdiff("generate", "--recipe", "forged.png", "--out", "b.png")
    assert code == 1 and err.count("\n") == 1 and os.listdir() == ["forged.png"]


def test_interrupt_exits_130_with_nothing_half_written(tmp_path: Path, tiny: Path) -> None:
    script = (
        "import signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background jobs ignore it
        "from fastdiff.apps import work\n"
        "from fastdiff.cli import main\n"
        "watch = work.Watch.__call__\n"
        "def told(self, event):\n"
        "    print('sampling', flush=True)\n"
        "    watch(self, event)\n"
        "work.Watch.__call__ = told\n"
        f"sys.exit(main(['generate', '--model', {str(tiny)!r}, '--size', '64', '--steps', '1000', '--out', 'x.png']))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "sampling\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err.count("\n") == 1 and "interrupted" in err
    assert list(tmp_path.iterdir()) == []


def test_help_and_version(fastdiff: Callable[..., tuple[int, str, str]]) -> None:
    assert fastdiff()[0] == 2
    for argv in (
        ["--help"],
        ["generate", "--help"],
        ["plan", "--help"],
        ["env", "--help"],
        ["train", "--help"],
        ["bench", "--help"],
    ):
        code, out, _ = fastdiff(*argv)
        assert code == 0 and "usage: fastdiff" in out
    assert fastdiff("--version")[1].startswith("fastdiff ")
