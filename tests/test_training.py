"""Training: what a run computes and writes, and one clear error for settings that are wrong."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from PIL import Image

from conftest import threads
from fastdiff import models
from fastdiff.training import Diverged, TrainConfig, Trainer, read_config, train
from fastdiff.training.config import from_dict
from fastdiff.training.state import Average, trained
from fastdiff.training.trainer import learning_rate
from training_cases import TINY, change, paint_classes, same, weights

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of flat colour, of several sizes and formats."""
    return paint_classes(tmp_path_factory.mktemp("data"))


def test_the_gradient_does_not_depend_on_threads(data: Path) -> None:
    runs = []
    for count in (1, 2):
        with threads(count):
            trainer = Trainer(TINY, data)
            for _ in range(3):
                trainer.advance()
            assert torch.get_num_threads() == count
            runs.append(weights(trainer))
    assert same(*runs)


def test_micro_batches_do_not_change_the_gradient(data: Path) -> None:
    whole, parts = Trainer(change(micro=8), data), Trainer(change(micro=3), data)
    assert whole.advance().loss == pytest.approx(parts.advance().loss, rel=1e-5)
    assert whole.advance().grad_norm == pytest.approx(parts.advance().grad_norm, rel=1e-3)


def test_runs_repeat_and_seeds_differ(data: Path, tmp_path: Path) -> None:
    a, b = train(TINY, data, tmp_path / "a"), train(TINY, data, tmp_path / "b")
    other = train(change(seed=1), data, tmp_path / "c")
    assert same(weights(a), weights(b)) and not same(weights(a), weights(other))
    assert (tmp_path / "a" / "state.safetensors").exists()


def test_random_state_of_the_caller_is_left_alone(data: Path, tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(change(steps=1, cooldown=0), data, tmp_path / "run")
    assert torch.equal(torch.rand(3), expected)


def test_training_works_outside_the_main_thread(data: Path, tmp_path: Path) -> None:
    thread = threading.Thread(target=train, args=(change(steps=2), data, tmp_path / "run"))
    thread.start()
    thread.join()
    assert (tmp_path / "run" / "model.safetensors").exists()


def test_outputs(data: Path, tmp_path: Path) -> None:
    trainer = train(change(sheet_every=6, steps=6), data, tmp_path / "run")
    model = models.load(tmp_path / "run" / "model.safetensors")
    assert model.labels == ("blue", "red") and model.prediction == "v" and model.config.image_size == 8
    assert model.training_note["images"] == 48 and model.training_note["config"]["seed"] == 0
    for name, value in trainer.average.values.items():
        assert torch.equal(model.state_dict()[name], value.half().float())
    with Image.open(tmp_path / "run" / "samples_000006.png") as sheet:
        assert sheet.size == (4 * 12 + 4, 12 + 4)
    assert not list((tmp_path / "run").glob("*.tmp"))


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_state(data: Path, tmp_path: Path) -> None:
    train(change(steps=2), data, tmp_path / "run")
    before = (tmp_path / "run" / "state.safetensors").read_bytes()
    trainer = Trainer(change(steps=4), data)
    trainer.restore(tmp_path / "run")
    with torch.no_grad():
        trainer.model.head.bias[0] = float("nan")
    with pytest.raises(Diverged, match="lower lr"):
        trainer.advance()
    assert trainer.step == 2 and (tmp_path / "run" / "state.safetensors").read_bytes() == before


def test_average_warms_up() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    average = Average(trained(model), 0.99)
    torch.nn.init.ones_(model.weight)
    average.update(trained(model), 0)
    assert average.values["weight"].item() == pytest.approx(0.9)
    average.update(trained(model), 10**6)
    assert average.values["weight"].item() == pytest.approx(0.901)


def test_learning_rate_rises_stays_and_falls() -> None:
    config = TrainConfig(steps=100, warmup=10, cooldown=20, lr=1.0)
    rates = [learning_rate(config, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9:81] == [1.0] * 72
    assert rates[80:] == sorted(rates[80:], reverse=True) and 0 < rates[-1] < 0.01


@pytest.mark.parametrize(
    "text, said",
    [
        ("[]", "JSON object"),
        ("{", "not JSON"),
        ('{"stepz": 3}', "unknown config keys 'stepz'"),
        ('{"steps": 0}', "steps must be an integer"),
        ('{"steps": 1' + 400 * "0" + "}", "steps must be an integer"),
        ('{"steps": 2.5}', "steps must be an integer"),
        ('{"steps": true}', "steps must be an integer"),
        ('{"lr": NaN}', "lr must be a number"),
        ('{"lr": 1e999}', "lr must be a number"),
        ('{"lr": "fast"}', "lr must be a number"),
        ('{"prediction": "noise"}', "prediction must be one of"),
        ('{"precision": "int4"}', "precision must be one of"),
        ('{"class_weights": {"a": 0}}', "class_weights of a must be an integer from 1"),
        ('{"flip": 1}', "flip must be true or false"),
        ('{"model": []}', "model must be an object"),
    ],
)
def test_bad_settings_are_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(ValueError, match=said) as error:
        read_config(tmp_path / "c.json")
    assert str(tmp_path / "c.json") in str(error.value) and "\n" not in str(error.value)


def test_bad_models_and_schedules_are_refused(data: Path) -> None:
    with pytest.raises(ValueError, match="unknown fields depth"):
        Trainer(change(model={"depth": 3}), data)
    with pytest.raises(ValueError, match="schedule name must be one of"):
        Trainer(change(schedule={"name": "vp"}), data)
    with pytest.raises(ValueError, match="only by prediction 'edm'"):
        Trainer(change(schedule={"name": "karras"}), data)
    with pytest.raises(ValueError, match="multiple of 4"):
        Trainer(change(image_size=10), data)
    with pytest.raises(ValueError, match="at pure noise"):
        Trainer(change(prediction="epsilon", schedule={"name": "cosine_betas", "zero_snr": True}), data)


def test_the_committed_config_is_the_bundled_models() -> None:
    config = read_config(ROOT / "configs" / "bundled.json")
    # settings that came later have their defaults in older checkpoints
    assert from_dict(models.load().training_note["config"]) == config
