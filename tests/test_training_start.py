"""Beginning with a checkpoint (--init), pictures without a class, and data that cannot be trained on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from fastdiff import models
from fastdiff.training import Diverged, TrainConfig, Trainer, settings_of, train
from fastdiff.training.data import load_folder
from fastdiff.training.start import transfer
from tiny_model import tiny_model
from training_cases import TINY, change, paint_classes, with_model


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return paint_classes(tmp_path_factory.mktemp("data"))


def test_settings_are_those_of_the_network() -> None:
    net = tiny_model()
    config = settings_of(net, steps=7, lr=1e-4)
    assert (config.prediction, config.schedule, config.image_size) == ("v", {"name": "cosine_betas"}, 16)
    assert config.model["channels"] == [8, 16] and config.steps == 7 and config.lr == 1e-4
    assert "num_classes" not in config.model
    with pytest.raises(ValueError, match="steps must be an integer"):
        settings_of(net, steps=0)


def test_a_run_begins_with_the_weights(tmp_path: Path, data: Path) -> None:
    net = tiny_model()
    models.save(tmp_path / "net.safetensors", net, dtype=torch.float32)
    trainer = Trainer(settings_of(net), data)
    trainer.begin_with(tmp_path / "net.safetensors")
    for name, value in net.named_parameters():
        if name != "label.weight":
            assert torch.equal(dict(trainer.model.named_parameters())[name], value)
            assert torch.equal(trainer.average.values[name], value)
    # the classes here are others, blue and red: they begin as the null class
    assert torch.equal(trainer.model.label.weight, net.label.weight[[3, 3, 3]])
    assert trainer.step == 0 and all(p.requires_grad for p in trainer.parameters.values())


def test_classes_are_matched_by_name(tmp_path: Path) -> None:
    net = tiny_model()
    mine = Trainer(settings_of(net), paint_classes(tmp_path / "data", ("brick", "mine", "truchet"))).model
    transfer(net, mine)
    assert torch.equal(mine.label.weight, net.label.weight[[0, 3, 2, 3]])


@pytest.mark.parametrize(
    "config, said",
    [
        (TINY, "model embed_dim 8 where the run has 16"),
        (
            with_model(embed_dim=8, groups=4, settings={"prediction": "epsilon"}),
            "prediction 'v' where the run has",
        ),
        (with_model(embed_dim=8, settings={"noise": "uniform"}), "noise 'gaussian' where"),
        (with_model(embed_dim=8, settings={"schedule": {"name": "flow"}}), "schedule_options"),
        (with_model(embed_dim=8, channels=[8, 8]), r"model channels \(8, 16\)"),
    ],
)
def test_another_network_is_refused(tmp_path: Path, data: Path, config: TrainConfig, said: str) -> None:
    models.save(tmp_path / "net.safetensors", tiny_model())
    with pytest.raises(ValueError, match=said) as error:
        Trainer(config, data).begin_with(tmp_path / "net.safetensors")
    assert "\n" not in str(error.value)


def test_fine_tuning_from_the_command_line(
    data: Path, tmp_path: Path, fastdiff: Callable[..., tuple[int, str, str]]
) -> None:
    """Without --config the network's own settings serve."""
    code, said, errors = fastdiff(
        f"train --init bundled --data {data} --out mine --steps 2 --batch 4 --quiet"
    )
    assert code == 0, errors
    assert said == "2 steps, 8 pictures seen: mine/model.safetensors\n"
    made = models.load(tmp_path / "mine" / "model.safetensors")
    assert made.labels == ("blue", "red") and made.config.image_size == 16
    code, _, errors = fastdiff(f"train --init none.safetensors --data {data} --out other")
    assert code == 1 and "none.safetensors does not exist" in errors


def test_pictures_without_a_class_teach_the_null_class(tmp_path: Path) -> None:
    root = paint_classes(tmp_path / "data")
    (root / "_unlabelled").mkdir()
    for i in range(5):
        Image.new("RGB", (12, 12), (250, 250, 250)).save(root / "_unlabelled" / f"{i}.png")
    folder = load_folder(root, size=12)
    assert folder.labels == ("blue", "red") and folder.classes.tolist() == [0] * 3 + [1] * 3 + [2] * 5
    trainer = Trainer(change(label_dropout=0.0), root)
    x0, _, _, given = trainer._draw()
    white = x0.mean((1, 2, 3)) > 0.9
    assert white.any() and torch.equal(given["label"] == 2, white)
    assert trainer.averaged().labels == ("blue", "red")
    weighted = Trainer(change(class_weights={"red": 4}), root)
    assert weighted.examples.labels == ("blue", "red")


def test_only_pictures_without_a_class_are_refused(tmp_path: Path) -> None:
    (tmp_path / "_unlabelled").mkdir()
    Image.new("RGB", (12, 12)).save(tmp_path / "_unlabelled" / "0.png")
    with pytest.raises(ValueError, match="name at least one folder after a class"):
        load_folder(tmp_path, size=12)


class Torn:
    """Examples of one's own, a value of which is not finite from step 2 on."""

    labels = ("only",)

    def __len__(self) -> int:
        return 10

    def draw(self, step: int, count: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        x = torch.zeros(count, 3, 8, 8)
        x[0, 0, 0, 0] = float("nan") if step == 2 else 0.0
        return x, {"label": torch.zeros(count, dtype=torch.int64)}


def test_examples_that_are_not_finite_are_named(tmp_path: Path) -> None:
    with pytest.raises(Diverged, match="step 2: the examples hold NaN or infinity"):
        train(change(save_every=1), Torn(), tmp_path / "run")
    kept = Trainer(change(save_every=1), Torn())
    kept.restore(tmp_path / "run")
    assert kept.step == 2


def test_examples_must_be_as_many_as_asked_for() -> None:
    class Few(Torn):
        def draw(self, step: int, count: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            return super().draw(0, count - 1)

    with pytest.raises(ValueError, match="drew 7 where 8 were asked for"):
        Trainer(change(), Few()).advance()


@pytest.mark.parametrize("case", ["empty class", "text", "torn"])
def test_bad_pictures_stop_a_run_before_it_begins(
    tmp_path: Path, fastdiff: Callable[..., tuple[int, str, str]], case: str
) -> None:
    root = paint_classes(tmp_path / "data")
    if case == "empty class":
        (root / "green").mkdir()
    elif case == "text":
        (root / "red" / "9.png").write_text("no picture")
    else:
        (root / "red" / "0.png").write_bytes((root / "red" / "0.png").read_bytes()[:50])
    code, _, said = fastdiff(f"train --data {root} --out run --steps 2 --quiet")
    named = {"empty class": "class folder", "text": "9.png", "torn": "0.png"}[case]
    assert code == 1 and named in said and said.count("\n") == 1
    assert not (tmp_path / "run").exists()
