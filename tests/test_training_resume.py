"""Resuming: bit for bit as if the run had not stopped, whatever stopped it; anything else is one clear error."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

import training_killed
from fastdiff import models
from fastdiff.training import Progress, Trainer, train
from training_cases import TINY, change, paint_classes, same, weights

STATE = "state.safetensors"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return paint_classes(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def killed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs that were killed with SIGKILL at several moments."""
    out = tmp_path_factory.mktemp("killed")
    command = [sys.executable, training_killed.__file__, str(data), str(out)]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300)
    return out


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    return train(training_killed.CONFIG, data, tmp_path_factory.mktemp("whole") / "run")


@pytest.mark.parametrize("case", ["outside", "writing", "between"])
def test_resume_is_exact_after_a_kill(killed: Path, whole: Trainer, data: Path, case: str) -> None:
    run = killed / case
    with safe_open(run / STATE, "pt") as file:  # never half written
        assert file.keys()
    halves = list(run.glob(".*.tmp"))
    assert len(halves) == (case == "writing") or case == "outside"
    resumed = train(training_killed.CONFIG, data, run, resume=True)
    assert same(weights(whole), weights(resumed)) and resumed.step == 12
    assert not list(run.glob(".*.tmp"))
    log = [line.split(",")[0] for line in (run / "log.csv").read_text().splitlines()]
    assert log == ["step", *map(str, range(1, 13))]
    kept = models.load(run / "model.safetensors").state_dict()
    assert all(torch.equal(kept[k], v.half().float()) for k, v in whole.average.values.items())


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


def test_resume_wants_the_same_run(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(FileNotFoundError, match="nothing to resume"):
        train(TINY, data, run, resume=True)
    train(change(steps=2), data, run)
    with pytest.raises(FileExistsError, match="--resume"):
        train(TINY, data, run)
    with pytest.raises(ValueError, match="another batch, seed"):
        train(change(batch=4, seed=3), data, run, resume=True)
    lists = TINY.model["channels"], TINY.model["blocks"]
    tuples = {**TINY.model, "channels": tuple(lists[0]), "blocks": tuple(lists[1])}
    assert train(change(steps=3, model=tuples), data, run, resume=True).step == 3
    (tmp_path / "other" / "green").mkdir(parents=True)
    Image.new("RGB", (12, 12)).save(tmp_path / "other" / "green" / "0.png")
    with pytest.raises(ValueError, match="trained on classes blue, red"):
        train(TINY, tmp_path / "other", run, resume=True)
    state = run / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-10])
    with pytest.raises(ValueError, match="no training state"):
        train(TINY, data, run, resume=True)


def test_a_model_without_its_state_is_not_overwritten(data: Path, tmp_path: Path) -> None:
    train(change(steps=1), data, tmp_path)
    (tmp_path / STATE).unlink()
    before = (tmp_path / "model.safetensors").read_bytes()
    with pytest.raises(FileExistsError, match=r"model\.safetensors exists"):
        train(change(steps=1, seed=1), data, tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_a_request_to_end_saves(data: Path, tmp_path: Path) -> None:
    """SIGTERM, which schedulers of clusters send, is an interrupt."""

    def ask(p: Progress) -> None:
        if p.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        train(TINY, data, tmp_path / "cut", on_step=ask)
    assert signal.getsignal(signal.SIGTERM) is handler
    resumed = train(TINY, data, tmp_path / "cut", resume=True)
    assert same(weights(train(TINY, data, tmp_path / "whole")), weights(resumed))


def test_a_finished_run_resumes_to_itself(data: Path, tmp_path: Path) -> None:
    first = train(change(steps=2), data, tmp_path / "run")
    again = train(change(steps=2), data, tmp_path / "run", resume=True)
    assert same(weights(first), weights(again)) and again.step == 2


def rewrite(path: Path, name: str | None, value: float, about: str | None = None) -> None:
    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    if name is not None:
        tensors[name].view(-1)[0] = value
    save_file(tensors, path, metadata if about is None else {"fastdiff.training": about})


@pytest.mark.parametrize("keep", [0, 7, 300, -100])
def test_a_truncated_state_is_refused(data: Path, tmp_path: Path, keep: int) -> None:
    train(change(steps=1), data, tmp_path / "run")
    path = tmp_path / "run" / STATE
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"no training state .* delete it to start over") as error:
        train(change(steps=1), data, tmp_path / "run", resume=True)
    assert "\n" not in str(error.value)


def test_a_damaged_state_changes_nothing(data: Path, tmp_path: Path) -> None:
    train(change(steps=2), data, tmp_path / "run")
    path = tmp_path / "run" / STATE
    trainer = Trainer(change(steps=2), data)
    before = weights(trainer)
    rewrite(path, "exp_avg.head.bias", float("nan"))
    with pytest.raises(ValueError, match=r"NaN or infinity in exp_avg.head.bias"):
        trainer.restore(tmp_path / "run")
    rewrite(path, None, 0.0, about='{"step": "many"}')
    with pytest.raises(ValueError, match="no training state"):
        trainer.restore(tmp_path / "run")
    assert same(before, weights(trainer)) and trainer.step == 0


def test_a_state_of_an_older_version_goes_on(data: Path, tmp_path: Path) -> None:
    """One without the settings and the loss scale that came later."""
    config = change(cooldown=0)
    whole = train(config, data, tmp_path / "whole")
    train(change(cooldown=0, steps=3), data, tmp_path / "run")
    path = tmp_path / "run" / STATE
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["fastdiff.training"])
    for name in ("scale", "pictures"):
        del about[name]
    for name in ("accumulate", "corruption", "noise", "times", "weighting"):
        del about["config"][name]
    rewrite(path, None, 0.0, about=json.dumps(about))
    assert same(weights(whole), weights(train(config, data, tmp_path / "run", resume=True)))


def test_how_a_step_is_split_may_change(data: Path, tmp_path: Path) -> None:
    whole = train(change(cooldown=0), data, tmp_path / "whole")
    train(change(steps=3, cooldown=0), data, tmp_path / "run")
    config = change(cooldown=0, batch=4, accumulate=2, micro=2)
    split = train(config, data, tmp_path / "run", resume=True)
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(split)[name], value, rtol=1e-2, atol=2e-3)
