"""Resuming: bit for bit as if the run had not stopped, whatever stopped it; anything else is one clear error."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from fastdiff.training import Progress, train
from training_cases import TINY, change, paint_classes, same, weights


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return paint_classes(tmp_path_factory.mktemp("data"))


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
    (tmp_path / "other" / "green").mkdir(parents=True)
    Image.new("RGB", (12, 12)).save(tmp_path / "other" / "green" / "0.png")
    with pytest.raises(ValueError, match="trained on classes blue, red"):
        train(TINY, tmp_path / "other", run, resume=True)
    state = run / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-10])
    with pytest.raises(ValueError, match="no training state"):
        train(TINY, data, run, resume=True)
