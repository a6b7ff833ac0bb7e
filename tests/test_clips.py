"""GIF and MP4 files: round trips, bad files, no ffmpeg; moving shapes, and models of three dimensions."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastdiff import clips, models
from fastdiff.apps import timed
from fastdiff.cli import main
from fastdiff.clips import read_gif, read_recipe, write_gif, write_mp4
from fastdiff.training import Trainer, train
from fastdiff.training.moving import MOTIONS, clip, write_clips
from fastdiff.training.sequences import load_clips
from training_cases import TINY, change, same, weights

MODEL = {**TINY.model, "dims": 3, "frames": 4, "patch": 2, "rate": 10}
CONFIG = change(image_size=8, margin=1.0, model=MODEL)


def moving(frames: int = 4, side: int = 16) -> torch.Tensor:
    made = clip("rightward", frames=frames, side=side, rng=np.random.default_rng(1))
    return torch.from_numpy(made).float().permute(3, 0, 1, 2)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("clips") / "data"
    write_clips(root, count=2, frames=4, side=8)
    return root


@pytest.fixture(scope="module")
def checkpoint(data: Path) -> Path:
    out = data.parent / "run"
    train(change(image_size=8, margin=1.0, model=MODEL, steps=2), data, out)
    assert (out / "samples_000002.png").exists()
    return out / "model.safetensors"


def test_a_gif_comes_back(tmp_path: Path) -> None:
    clip = moving()
    write_gif(tmp_path / "a.gif", clip, rate=10, recipe={"seed": 3})
    found, rate = read_gif(tmp_path / "a.gif")
    assert rate == 10 and found.shape == clip.shape
    torch.testing.assert_close(found, clip, atol=0.02, rtol=0)
    assert read_recipe(tmp_path / "a.gif") == {"seed": 3}
    with Image.open(tmp_path / "a.gif") as image:
        assert image.info["loop"] == 0
    write_gif(tmp_path / "big.gif", clip, rate=10, zoom=3)
    assert read_gif(tmp_path / "big.gif")[0].shape == (3, 4, 48, 48)
    with pytest.raises(FileExistsError):
        write_gif(tmp_path / "a.gif", clip, rate=10)


def test_bad_gifs_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_gif(tmp_path / "a.gif", moving(), rate=10)
    data = (tmp_path / "a.gif").read_bytes()
    Image.new("RGB", (4, 4)).save(tmp_path / "picture.png")
    contents = (b"", b"hello", data[:8], data[: len(data) // 2], (tmp_path / "picture.png").read_bytes())
    for i, bad in enumerate(contents):
        file = tmp_path / f"bad{i}.gif"
        file.write_bytes(bad)
        with pytest.raises(ValueError, match=file.name) as error:
            read_gif(file)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="no fastdiff recipe"):
        read_recipe(tmp_path / "a.gif")
    monkeypatch.setattr(clips, "MAX_PIXELS", 1000)
    with pytest.raises(ValueError, match="too many"):
        read_gif(tmp_path / "a.gif")
    with pytest.raises(ValueError, match="frames, height, width"):
        write_gif(tmp_path / "b.gif", torch.zeros(1, 4, 8, 8), rate=8)


def test_an_mp4_is_written(tmp_path: Path) -> None:
    pytest.importorskip("imageio_ffmpeg")
    write_mp4(tmp_path / "a.mp4", moving(), rate=10, zoom=2)
    assert (tmp_path / "a.mp4").read_bytes()[4:8] == b"ftyp"
    with pytest.raises(FileExistsError):
        write_mp4(tmp_path / "a.mp4", moving(), rate=10)


def test_without_ffmpeg_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "imageio_ffmpeg", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match=r"fastdiff\[video\]"):
        write_mp4(tmp_path / "a.mp4", moving(), rate=10)


def test_shapes_move_as_their_label_says() -> None:
    for name, (down, right) in MOTIONS.items():
        made = clip(name, frames=4, side=32, rng=np.random.default_rng(2)).mean(-1)
        steps = [
            n for n in (2, 3, 4) if np.allclose(np.roll(made[0], (n * down, n * right), (0, 1)), made[1])
        ]
        assert steps, name


def test_folders_of_clips_become_runs(data: Path, tmp_path: Path) -> None:
    found = load_clips(data, frames=2, size=8)
    assert found.labels == tuple(sorted(MOTIONS)) and len(found) == 4 * 2 * 2
    x, given = found.draw(1, 5)
    assert x.shape == (5, 3, 2, 8, 8) and given["label"].shape == (5,) and torch.equal(x, found.draw(1, 5)[0])
    assert load_clips(data, frames=4, size=16, margin=1.25).values.shape == (8, 3, 4, 20, 20)
    with pytest.raises(ValueError, match="has 4 frames, 8 are needed"):
        load_clips(data, frames=8, size=8)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.gif").write_bytes(b"GIF89a")
    with pytest.raises(ValueError, match=r"x\.gif"):
        load_clips(tmp_path, frames=2, size=8)


def test_training_repeats_itself(data: Path) -> None:
    a, b = Trainer(CONFIG, data), Trainer(CONFIG, data)
    losses = [(a.advance().loss, b.advance().loss) for _ in range(2)]
    assert same(weights(a), weights(b)) and all(x == y for x, y in losses)


def test_a_configuration_that_does_not_fit_is_refused(data: Path) -> None:
    with pytest.raises(ValueError, match="frames must be a multiple"):
        Trainer(change(image_size=8, margin=1.0, model={**MODEL, "frames": 3}), data)
    with pytest.raises(ValueError, match="image_channels must be 3"):
        Trainer(change(image_size=8, margin=1.0, model={**MODEL, "image_channels": 1}), data)
    with pytest.raises(ValueError, match="class_weights"):
        Trainer(change(image_size=8, margin=1.0, model=MODEL, class_weights={"rising": 2}), data)


def test_clips_are_generated(checkpoint: Path) -> None:
    net = models.load(checkpoint)
    made = timed.generate(["rising", "falling"], model=net, steps=2, seed=1)
    assert made.images.shape == (2, 3, 4, 8, 8) and made.prompts == ("rising", "falling")
    assert timed.generate("rising", model=net, size=(12, 8, 8), steps=1).images.shape == (1, 3, 8, 8, 12)
    assert timed.generate("rising", model=net, size=12, steps=1, tile=True).images.shape == (1, 3, 4, 12, 12)
    for size in ((8, 8, 3), (7, 8), (8, 8, 4, 4)):
        with pytest.raises(ValueError, match=r"size of a clip|multiple of|integer from"):
            timed.prepare("rising", model=net, size=size)


def test_the_command_writes_gifs_and_mp4s(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = f"generate --model {checkpoint} --steps 2 --quiet --out {tmp_path}"
    assert main(f"{start}/a.gif --label rising --zoom 2 --tile".split()) == 0
    clip, rate = read_gif(tmp_path / "a.gif")
    assert clip.shape == (3, 4, 16, 16) and rate == 10
    assert read_recipe(tmp_path / "a.gif")["arguments"]["tile"] is True
    capsys.readouterr()
    for rest, wrong in (
        ("/b.wav --label rising", "written as .gif or .mp4"),
        ("/b.gif --label rising --size 8x8x8x8", "--size must be"),
        ("/b.gif --label rising --zoom 99", "--zoom"),
        ("/b.gif --label rising --lora x.safetensors", "--lora is for models of pictures"),
    ):
        assert main((start + rest).split()) == 1
        assert wrong in capsys.readouterr().err


def test_a_frame_larger_than_the_first_is_one_line(tmp_path: Path) -> None:
    """Pillow would enlarge the picture for it, past the sizes that were checked."""
    small, large = io.BytesIO(), io.BytesIO()
    two = [Image.new("P", (4, 4), shade) for shade in (0, 1)]
    two[0].save(small, format="GIF", save_all=True, append_images=two[1:], duration=100)
    Image.new("P", (300, 300), 3).save(large, format="GIF")
    frame = large.getvalue()
    (tmp_path / "g.gif").write_bytes(small.getvalue()[:-1] + frame[frame.index(b"\x2c\0\0\0\0") :])
    with pytest.raises(ValueError, match=r"g\.gif: .*larger than the first"):
        read_gif(tmp_path / "g.gif")
