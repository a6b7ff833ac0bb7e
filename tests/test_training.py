"""Training: the objective against its formulas, learning, exact resume, and one clear error for what is wrong."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import threads
from fastdiff import models
from fastdiff.models.checkpoint import make_schedule
from fastdiff.training import Progress, TrainConfig, Trainer, read_config, train
from fastdiff.training.objective import Objective, training_levels
from fastdiff.training.state import Average
from fastdiff.training.trainer import Diverged, learning_rate

ROOT = Path(__file__).resolve().parents[1]
TINY = TrainConfig(
    steps=6,
    batch=8,
    micro=4,
    image_size=8,
    margin=1.5,
    lr=5e-3,
    warmup=2,
    cooldown=2,
    ema=0.9,
    precision="float32",
    save_every=100,
    sheet_every=1000,
    model={"channels": [8, 16], "blocks": [1, 1], "embed_dim": 16, "time_dim": 8, "groups": 4},
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of flat colour, of several sizes and formats."""
    root = tmp_path_factory.mktemp("data")
    for name, color in (("blue", (20, 40, 200)), ("red", (200, 30, 30))):
        (root / name).mkdir()
        for i, (size, suffix) in enumerate([((12, 12), "png"), ((20, 16), "jpg"), ((12, 30), "webp")]):
            Image.new("RGB", size, color).save(root / name / f"{i}.{suffix}")
    return root


def change(**fields: object) -> TrainConfig:
    return dataclasses.replace(TINY, **fields)


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Everything that a run has learned."""
    out = {f"model.{k}": v.clone() for k, v in trainer.model.state_dict().items()}
    return out | {f"ema.{k}": v.clone() for k, v in trainer.average.values.items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v", "flow"])
def test_it_learns(data: Path, prediction: str) -> None:
    name = "flow" if prediction == "flow" else "cosine_betas"
    trainer = Trainer(
        change(prediction=prediction, schedule={"name": name}, steps=40, lr=1e-2, cooldown=0), data
    )
    losses = [trainer.advance().loss for _ in range(40)]
    assert np.mean(losses[-10:]) < 0.85 * np.mean(losses[:5])


def test_targets_and_weights_are_the_papers() -> None:
    schedule = make_schedule({"name": "cosine_betas"})
    process = schedule.process
    alpha, sigma = torch.tensor(process.alphas), torch.tensor(process.sigmas)
    snr = (alpha / sigma) ** 2
    expected = {
        "epsilon": (0 * alpha, 0 * alpha + 1, snr.clamp(max=5) / snr),
        "sample": (0 * alpha + 1, 0 * alpha, snr.clamp(max=5)),
        "v": (-sigma, alpha, snr.clamp(max=5) / (snr + 1)),
    }
    for prediction, columns in expected.items():
        made = Objective.make(schedule, prediction=prediction, gamma=5.0)
        for got, want in zip((made.on_x0, made.on_eps, made.weight), columns):
            torch.testing.assert_close(got.double(), want, rtol=1e-6, atol=1e-7)
        assert torch.equal(made.time, torch.arange(1000.0))
    even = Objective.make(schedule, prediction="v", gamma=5.0, offset=1.0).weight
    assert (even[snr < 5] - 1).abs().max() < 1e-6 and even[0] < 1e-2
    flow = Objective.make(make_schedule({"name": "flow", "T": 1000}), prediction="flow", gamma=5.0)
    assert flow.on_x0.eq(-1).all() and flow.on_eps.sub(1).abs().max() < 1e-6
    assert flow.time[-1] == 1000 and flow.alpha[-1] == 0 and flow.weight[-1] == 0


def test_noised_is_the_forward_process() -> None:
    objective = Objective.make(make_schedule({"name": "cosine_betas"}), prediction="v", gamma=5.0)
    x0, eps, rows = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4), torch.tensor([0, 500, 999])
    x, v = objective.noised(x0, eps, rows)
    a, s = (value[rows].view(-1, 1, 1, 1) for value in (objective.alpha, objective.sigma))
    torch.testing.assert_close(x, a * x0 + s * eps)
    torch.testing.assert_close(a * x - s * v, x0, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(s * x + a * v, eps, atol=1e-5, rtol=1e-5)


def test_levels_are_drawn_evenly() -> None:
    objective = Objective.make(make_schedule({"name": "cosine_betas"}), prediction="v", gamma=5.0)
    rows = objective.draw(50, torch.Generator().manual_seed(3))
    assert sorted((rows // 20).tolist()) == list(range(50)) and rows.tolist() != sorted(rows.tolist())


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


def test_resume_is_exact_after_an_interrupt(data: Path, tmp_path: Path) -> None:
    whole = train(TINY, data, tmp_path / "whole")

    def interrupt(p: Progress) -> None:
        if p.step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(TINY, data, tmp_path / "cut", on_step=interrupt)
    assert signal.getsignal(signal.SIGINT) is handler
    resumed = train(TINY, data, tmp_path / "cut", resume=True)
    assert same(weights(whole), weights(resumed))
    log = [line.split(",")[:5] for line in (tmp_path / "cut" / "log.csv").read_text().splitlines()]
    assert log == [line.split(",")[:5] for line in (tmp_path / "whole" / "log.csv").read_text().splitlines()]


def test_resume_is_exact_after_a_crash_between_saves(data: Path, tmp_path: Path) -> None:
    config = change(save_every=2)
    whole = train(config, data, tmp_path / "whole")

    def crash(p: Progress) -> None:
        if p.step == 5:
            raise MemoryError

    with pytest.raises(MemoryError):
        train(config, data, tmp_path / "cut", on_step=crash)
    assert same(weights(whole), weights(train(config, data, tmp_path / "cut", resume=True)))


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
    average = Average(model, 0.99)
    torch.nn.init.ones_(model.weight)
    average.update(model, 0)
    assert average.values["weight"].item() == pytest.approx(0.9)
    average.update(model, 10**6)
    assert average.values["weight"].item() == pytest.approx(0.901)


def test_learning_rate_rises_stays_and_falls() -> None:
    config = TrainConfig(steps=100, warmup=10, cooldown=20, lr=1.0)
    rates = [learning_rate(config, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9:81] == [1.0] * 72
    assert rates[80:] == sorted(rates[80:], reverse=True) and 0 < rates[-1] < 0.01


def test_resume_wants_the_same_run(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(FileNotFoundError, match="nothing to resume"):
        train(TINY, data, run, resume=True)
    train(change(steps=2), data, run)
    with pytest.raises(FileExistsError, match="--resume"):
        train(TINY, data, run)
    with pytest.raises(ValueError, match="another batch, seed"):
        train(change(batch=4, seed=3), data, run, resume=True)
    (tmp_path / "other" / "green").mkdir(parents=True)
    Image.new("RGB", (12, 12)).save(tmp_path / "other" / "green" / "0.png")
    with pytest.raises(ValueError, match="trained on classes blue, red"):
        train(TINY, tmp_path / "other", run, resume=True)
    state = run / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-10])
    with pytest.raises(ValueError, match="no training state"):
        train(TINY, data, run, resume=True)


@pytest.mark.parametrize(
    "text, said",
    [
        ("[]", "JSON object"),
        ("{", "not JSON"),
        ('{"stepz": 3}', "unknown config keys 'stepz'"),
        ('{"steps": 0}', "steps must be an integer"),
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
        Trainer(change(schedule={"name": "karras"}), data)
    with pytest.raises(ValueError, match="multiple of 4"):
        Trainer(change(image_size=10), data)
    with pytest.raises(ValueError, match="at pure noise"):
        Trainer(change(prediction="epsilon", schedule={"name": "cosine_betas", "zero_snr": True}), data)


def test_the_committed_config_is_the_bundled_models() -> None:
    config = read_config(ROOT / "configs" / "bundled.json")
    assert models.load().training_note["config"] == json.loads(json.dumps(config.as_dict()))


def test_levels_of_a_schedule() -> None:
    assert [level.t for level in training_levels(make_schedule({"name": "linear_betas", "T": 10}))] == list(
        range(10)
    )
    with pytest.raises(ValueError, match="T must be"):
        make_schedule({"name": "linear_betas", "T": float("inf")})
