"""Data: folders of pictures, the batches drawn from them, and the bundled model's data set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastdiff.training.data import Batches, load_folder, read_square
from fastdiff.training.patterns import PATTERNS


def paint(
    path: Path, size: tuple[int, int] = (12, 12), color: object = (10, 200, 30), mode: str = "RGB"
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(path)


def test_a_folder_is_read(tmp_path: Path) -> None:
    paint(tmp_path / "b" / "1.png", (30, 20), (200, 0, 0))
    paint(tmp_path / "a" / "2.png", (9, 40), (0, 0, 200))
    paint(tmp_path / "a" / "1.bmp", (16, 16), 90, "L")
    (tmp_path / "a" / "notes.txt").write_text("not a picture")
    paint(tmp_path / ".hidden" / "1.png")
    folder = load_folder(tmp_path, size=16)
    assert folder.labels == ("a", "b") and folder.classes.tolist() == [0, 0, 1] and len(folder) == 3
    assert folder.pictures.dtype == torch.uint8 and folder.pictures.shape == (3, 3, 16, 16)
    assert folder.pictures[:, :, 8, 8].tolist() == [[90, 90, 90], [0, 0, 200], [200, 0, 0]]


def test_the_centre_is_kept_and_pixels_survive(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (16, 24, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "p.png")
    assert np.array_equal(read_square(tmp_path / "p.png", 16).permute(1, 2, 0).numpy(), picture[:, 4:20])


@pytest.mark.parametrize("case", ["missing", "file", "empty", "no pictures", "splits", "broken", "foreign"])
def test_bad_folders_are_named(tmp_path: Path, case: str) -> None:
    root = tmp_path / "data"
    if case == "file":
        root.write_text("x")
    elif case != "missing":
        root.mkdir()
    if case == "no pictures":
        (root / "moss").mkdir()
    elif case == "splits":
        paint(root / "train" / "a" / "1.png")
        paint(root / "test" / "a" / "1.png")
    elif case == "broken":
        paint(root / "moss" / "1.png", (64, 64))
        (root / "moss" / "1.png").write_bytes((root / "moss" / "1.png").read_bytes()[:60])
    elif case == "foreign":
        (root / "moss").mkdir(parents=True)
        (root / "moss" / "1.png").write_text("GIF89a or so it says")
    with pytest.raises((ValueError, OSError), match=r"data") as error:
        load_folder(root, size=16)
    assert "\n" not in str(error.value)


def test_batches_are_a_function_of_the_step(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for i in range(10):
        path = tmp_path / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)).save(path)
    folder = load_folder(tmp_path, size=12)
    make = lambda seed: Batches(folder, batch=4, crop=8, flip=True, seed=seed)  # noqa: E731
    x, label = make(0)(7)
    again, _ = make(0)(7)
    assert x.shape == (4, 3, 8, 8) and x.dtype == torch.float32 and x.abs().max() <= 1 and label.shape == (4,)
    assert torch.equal(x, again) and not torch.equal(x, make(0)(8)[0]) and not torch.equal(x, make(1)(7)[0])
    # five batches of four are two whole epochs of ten: every picture twice
    batches = make(0)
    assert sum(batches(step)[1].sum().item() for step in range(5)) == 10


def test_weighted_classes_are_shown_more_often(tmp_path: Path) -> None:
    for label in "ab":
        for i in range(4):
            paint(tmp_path / label / f"{i}.png")
    folder = load_folder(tmp_path, size=12)
    batches = Batches(folder, batch=4, crop=12, flip=False, seed=0, weights={"b": 3})
    assert torch.cat([batches(step)[1] for step in range(4)]).bincount().tolist() == [4, 12]
    with pytest.raises(ValueError, match="no class of the data: c"):
        Batches(folder, batch=4, crop=12, flip=False, seed=0, weights={"c": 3})


def test_crops_are_windows_of_the_pictures(tmp_path: Path) -> None:
    ramp = np.zeros((12, 12, 3), dtype=np.uint8)
    ramp[..., 0], ramp[..., 1] = np.arange(12)[:, None], np.arange(12)
    (tmp_path / "a").mkdir()
    Image.fromarray(ramp).save(tmp_path / "a" / "0.png")
    batches = Batches(load_folder(tmp_path, size=12), batch=64, crop=8, flip=False, seed=0)
    pixels = ((batches(0)[0] + 1) * 127.5).round().int()
    corners = {(int(p[0, 0, 0]), int(p[1, 0, 0])) for p in pixels}
    assert (pixels[:, 1, 0].diff(dim=1) == 1).all() and len(corners) > 15
    assert max(map(max, corners)) == 4 and min(map(min, corners)) == 0


@pytest.mark.parametrize("name", sorted(PATTERNS))
def test_patterns_are_functions_of_their_seed(name: str) -> None:
    first, again, other = (PATTERNS[name](48, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first.shape == (48, 48, 3) and first.dtype == np.uint8
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert first.std() > 10
    # antialiased: edges have tones between the flat colours
    assert len(np.unique(first.reshape(-1, 3), axis=0)) >= 10


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("skimage")
    pytest.importorskip("sklearn")
    from fastdiff.training.make_dataset import make_dataset

    out = tmp_path_factory.mktemp("made") / "data"
    make_dataset(out, train=3, test=2, size=36, seed=1)
    return out


def test_the_data_set(dataset: Path) -> None:
    from fastdiff.training.make_dataset import CLASSES, make_dataset

    train, test = load_folder(dataset / "train", size=36), load_folder(dataset / "test", size=36)
    assert train.labels == test.labels == CLASSES and len(CLASSES) == 16
    # twice as many pictures without a class, which have the index of the null class
    assert train.classes.bincount().tolist() == [3] * 16 + [6]
    assert test.classes.bincount().tolist() == [2] * 16 + [4]
    assert test.labelled().classes.bincount().tolist() == [2] * 16 and len(test.labelled()) == 32
    with pytest.raises(FileExistsError, match="choose a new folder"):
        make_dataset(dataset)


def test_the_data_set_repeats(dataset: Path, tmp_path: Path) -> None:
    from fastdiff.training.make_dataset import make_class

    for name in ("brick", "truchet"):
        make_class(tmp_path / name, name, split="test", count=2, size=36, seed=1)
        for file in (tmp_path / name).iterdir():
            assert file.read_bytes() == (dataset / "test" / name / file.name).read_bytes()


def test_no_photograph_shows_a_held_out_pixel_in_training() -> None:
    from fastdiff.training.photos import PHOTOS

    for name, photo in PHOTOS.items():
        a, b = photo.train, photo.test
        apart = a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
        assert apart, f"{name}: training box {a} and held-out box {b} overlap"


def test_crops_stay_in_their_box() -> None:
    from fastdiff.training.photos import PHOTOS, crop

    photo = PHOTOS["flower"]
    whole = Image.new("RGB", (640, 427), (255, 0, 0))
    whole.paste((0, 255, 0), photo.train)
    whole.paste((0, 0, 255), photo.test)
    for seed in range(20):
        for split, channel in (("train", 1), ("test", 2)):
            pixels = np.asarray(crop(whole, photo, split=split, size=24, rng=np.random.default_rng(seed)))
            assert pixels[..., channel].min() > 250, (split, seed)
