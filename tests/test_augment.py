"""Augmentation: as a transform, as a Dataset with workers, and of folders: resumed, repeated, refused."""

from __future__ import annotations

import csv
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from fastdiff import models
from fastdiff.apps.augment import Augmentation, Augmented
from fastdiff.apps.augment_folder import MANIFEST, TABLE, prepare
from fastdiff.apps.source import Native
from fastdiff.cli import main
from fastdiff.cli.augment import parse_range
from fastdiff.events import Cancelled
from fastdiff.images import read_image, read_recipe, to_pictures, write_png
from tiny_model import tiny_model

QUICK: dict[str, Any] = {"steps": 4, "strength": (0.3, 1.0)}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    models.save(path, tiny_model())
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two of cat, of two sizes, and one of dog, which the model does not know."""
    generator = torch.Generator().manual_seed(0)
    for name, side in (("cat/a", 16), ("cat/b", 18), ("dog/c", 16)):
        picture = torch.rand(1, 3, side, 16, generator=generator) * 2 - 1
        write_png(tmp_path / "in" / f"{name}.png", to_pictures(picture)[0])
    return tmp_path / "in"


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below the folder, but the recipes' circumstances are the same in one process."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def test_a_transform_makes_another_picture_and_repeats_it_by_its_seed() -> None:
    augmentation = Augmentation(model=tiny_model(), **QUICK)
    picture = torch.rand(3, 18, 16) * 2 - 1
    a, again, b = (augmentation(picture, "cat", seed=seed) for seed in (1, 1, 2))
    assert a.shape == picture.shape and float(a.abs().max()) <= 1
    assert torch.equal(a, again) and not torch.equal(a, b) and not torch.equal(a, picture)
    torch.manual_seed(0)
    first = augmentation(picture)
    assert not torch.equal(first, augmentation(picture))
    torch.manual_seed(0)
    assert torch.equal(first, augmentation(picture))


def test_strengths_fill_their_range() -> None:
    augmentation = Augmentation(model=tiny_model(), strength=(0.2, 0.6), steps=10)
    taken = [augmentation.steps_of(seed) for seed in range(200)]
    assert set(taken) == {2, 3, 4, 5, 6}
    assert Augmentation(model=tiny_model(), strength=0.0).steps_of(5) == 0
    assert Augmentation(model=tiny_model(), strength=0.001).steps_of(5) == 1


def test_strength_0_gives_the_picture_back() -> None:
    picture = torch.rand(3, 16, 16) * 2 - 1
    assert torch.equal(Augmentation(model=tiny_model(), strength=0)(picture, "cat", seed=1), picture)


def test_towards_what() -> None:
    own = Augmentation(model=tiny_model())
    assert [own.prompt_of(label) for label in ("cat", "dog", None)] == ["cat", None, None]
    assert Augmentation(model=tiny_model(), towards="nothing").prompt_of("cat") is None


def test_a_dataset_is_the_same_in_every_worker(checkpoint: Path) -> None:
    pictures, kinds = torch.rand(3, 3, 16, 16) * 2 - 1, torch.tensor([1, 0, 1])
    augmentation = Augmentation(model=checkpoint, device="cpu", **QUICK)
    data = Augmented(TensorDataset(pictures, kinds), augmentation, copies=2, labels=["brick", "cat"], seed=5)
    assert len(data) == 9 and torch.equal(data[1][0], pictures[1])
    alone = [data[i] for i in range(9)]
    assert not torch.equal(alone[3][0], alone[6][0]) and [int(kind) for _, kind in alone] == [1, 0, 1] * 3
    loader = DataLoader(data, batch_size=3, num_workers=2, multiprocessing_context="fork")
    loaded = torch.cat([batch for batch, _ in loader])
    torch.testing.assert_close(loaded, torch.stack([picture for picture, _ in alone]), rtol=0, atol=1e-4)
    with pytest.raises(IndexError):
        data[9]
    fresh = Augmented(TensorDataset(pictures, kinds), augmentation, fresh=True, originals=False)
    assert len(fresh) == 3 and not torch.equal(fresh[0][0], fresh[0][0])


def test_a_pickled_augmentation_carries_no_loaded_model(checkpoint: Path) -> None:
    augmentation = Augmentation(model=checkpoint, device="cpu", **QUICK)
    picture = torch.rand(3, 16, 16)
    made = augmentation(picture, seed=1)
    data = pickle.dumps(augmentation)
    assert len(data) < 2000
    assert torch.equal(pickle.loads(data)(picture, seed=1), made)


def test_a_folder_keeps_labels_and_says_how_each_picture_was_made(
    folder: Path, tmp_path: Path, checkpoint: Path
) -> None:
    out = tmp_path / "out"
    job = prepare(folder, out, count=2, originals=True, model=checkpoint, **QUICK)
    done: list[int] = []
    files = job.run(progress=done.append)
    assert sum(done) == job.total_calls == len(files) == 9
    assert sorted(p.relative_to(out).as_posix() for p in (out / "cat").iterdir()) == [
        "cat/a-aug1.png", "cat/a-aug2.png", "cat/a.png", "cat/b-aug1.png", "cat/b-aug2.png", "cat/b.png",
    ]  # fmt: skip
    assert torch.equal(read_image(out / "dog" / "c.png"), read_image(folder / "dog" / "c.png"))
    assert read_image(out / "cat" / "b-aug1.png").shape == (3, 18, 16)
    manifest = json.loads((out / MANIFEST).read_text())
    lines = {line["file"]: line for line in manifest["pictures"]}
    assert manifest["complete"] and lines["cat/a-aug1.png"]["prompt"] == "cat"
    assert lines["dog/c-aug1.png"]["prompt"] is None and lines["dog/c-aug1.png"]["label"] == "dog"
    assert 0.3 <= lines["cat/a-aug1.png"]["strength"] <= 1.0
    assert len({line["seed"] for line in lines.values()}) == 9
    with (out / TABLE).open(newline="") as file:
        assert [row["file"] for row in csv.DictReader(file)] == list(lines)
    recipe = read_recipe(out / "cat" / "a-aug2.png")
    assert recipe["arguments"]["source"] == "cat/a.png" and recipe["inputs"]["picture"]


def test_the_same_seed_gives_the_same_folder_also_after_a_stop(
    folder: Path, tmp_path: Path, checkpoint: Path
) -> None:
    def job(name: str, **more: Any) -> Any:
        return prepare(folder, tmp_path / name, count=3, model=checkpoint, batch=2, **QUICK, **more)

    job("whole").run()
    calls: list[int] = []
    with pytest.raises(Cancelled):
        job("stopped").run(cancel=lambda: len(calls) >= 5 or bool(calls.append(1)))
    begun = contents(tmp_path / "stopped")
    assert 1 < len(begun) < 9 and not json.loads(begun[MANIFEST])["complete"]
    job("stopped").run()
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")
    again = job("whole")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "whole").rglob("*.png")}
    again.run()
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "whole").rglob("*.png")}
    job("other", seed=1).run()
    assert contents(tmp_path / "other")["cat/a-aug1.png"] != contents(tmp_path / "whole")["cat/a-aug1.png"]


def test_bad_folders_are_refused_before_any_work(folder: Path, tmp_path: Path, checkpoint: Path) -> None:
    def refused(kind: type[Exception], says: str, where: Path = folder, **more: Any) -> None:
        with pytest.raises(kind, match=says):
            prepare(where, more.pop("out", tmp_path / "new"), **{"model": checkpoint, **QUICK, **more})

    refused(NotADirectoryError, "not a folder", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    refused(ValueError, "no class folders", tmp_path / "empty")
    refused(ValueError, "beside it", out=folder / "cat")
    refused(FileExistsError, "other files", out=tmp_path)
    refused(ValueError, "count", count=0)
    refused(ValueError, "strength", strength=(0.6, 0.2))
    refused(ValueError, "towards", towards="them")
    refused(ValueError, "as it goes", sampler="dpm_adaptive")
    prepare(folder, tmp_path / "done", model=checkpoint, **QUICK).run()
    refused(ValueError, "another seed", out=tmp_path / "done", seed=3)
    (folder / "cat" / "a.jpg").write_bytes((folder / "cat" / "a.png").read_bytes())
    refused(ValueError, "both become")
    assert not (tmp_path / "new").exists()


def test_the_command(folder: Path, tmp_path: Path, checkpoint: Path, capsys: Any) -> None:
    asked = ["augment", str(folder), "--out", str(tmp_path / "out"), "--count", "1", "--steps", "3"]
    asked += ["--strength", "0.3..0.9", "--model", str(checkpoint)]
    assert main(asked) == 0 and "3 pictures of 2 classes" in capsys.readouterr().out
    assert main([*asked, "--seed", "4"]) == 1 and "another seed" in capsys.readouterr().err
    assert main([*asked, "--strength", "much"]) == 1 and "0.2..0.6" in capsys.readouterr().err
    assert parse_range("0.5") == (0.5, 0.5)


def test_a_model_of_uniform_noise_gets_it() -> None:
    source, picture = Native(tiny_model()), torch.zeros(3, 16, 16)
    gaussian = Augmentation(model=source, **QUICK)(picture, "cat", seed=3)
    source.noise = "uniform"
    augmentation = Augmentation(model=source, **QUICK)
    uniform = augmentation(picture, "cat", seed=3)
    assert not torch.equal(uniform, gaussian) and torch.equal(uniform, augmentation(picture, "cat", seed=3))
