"""Several processes on gloo: the losses of one process with the whole batch, one writer, exact resume, clean ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("accelerate")
import training_together
from fastdiff.cli import main
from fastdiff.training import Trainer, processes, train
from fastdiff.training.processes import Processes
from training_cases import change, paint_classes, same, weights

CONFIG = training_together.CONFIG
DOUBLED = change(steps=10, batch=8, cooldown=0)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return paint_classes(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run of two processes, and one that was interrupted and resumed."""
    out = tmp_path_factory.mktemp("together")
    line = [sys.executable, training_together.__file__, str(data), str(out)]
    subprocess.run(line, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300)
    return out


def losses(out: Path) -> list[list[float]]:
    rows = (out / "log.csv").read_text().splitlines()[1:]
    return [[float(value) for value in row.split(",")[:5]] for row in rows]


def restored(data: Path, run: Path) -> dict[str, torch.Tensor]:
    """What a run has learned, read by a single process, which could go on with it."""
    trainer = Trainer(DOUBLED, data)
    trainer.restore(run)
    return weights(trainer)


def test_two_processes_are_one_with_the_doubled_batch(runs: Path, data: Path, tmp_path: Path) -> None:
    one = train(DOUBLED, data, tmp_path / "one")
    assert len(losses(runs / "whole")) == CONFIG.steps
    torch.testing.assert_close(
        torch.tensor(losses(runs / "whole")), torch.tensor(losses(tmp_path / "one")), rtol=2e-3, atol=1e-5
    )
    two = restored(data, runs / "whole")
    for name, value in weights(one).items():
        torch.testing.assert_close(two[name], value, rtol=1e-2, atol=2e-3)


def test_resume_in_two_processes_is_exact(runs: Path, data: Path) -> None:
    """After an interrupt that only the second process was told of: both stopped, the first had saved."""
    assert len((runs / "log-half.csv").read_text().splitlines()) == 1 + 5
    assert same(restored(data, runs / "cut"), restored(data, runs / "whole"))
    assert losses(runs / "cut") == losses(runs / "whole")


def test_the_command_starts_them(data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config, out = tmp_path / "config.json", tmp_path / "run"
    config.write_text(json.dumps(change(steps=2, batch=4).as_dict()))
    line = ["train", "--config", str(config), "--data", str(data), "--out", str(out), "--processes", "2"]
    assert main([*line, "--quiet"]) == 0
    assert capfd.readouterr().out.splitlines() == [f"2 steps, 16 pictures seen: {out / 'model.safetensors'}"]


def test_a_process_that_fails_ends_the_others() -> None:
    began = time.monotonic()
    lines = ("import time; time.sleep(60)", "raise SystemExit(3)")
    assert processes._wait([subprocess.Popen([sys.executable, "-c", line]) for line in lines]) == 3
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("count", ["0", "-2", "5000"])
def test_bad_counts_are_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], count: str
) -> None:
    line = ["train", "--data", str(data), "--out", str(tmp_path / "run"), "--processes", count]
    assert main(line) == 1 and "--processes must be" in capsys.readouterr().err


def test_parts_are_the_whole(data: Path) -> None:
    """What the processes draw, joined, is what one draws."""
    cpu = torch.device("cpu")
    one = Trainer(change(batch=8), data)
    two = [Trainer(change(batch=4), data, processes=Processes(cpu, rank, 2)) for rank in range(2)]
    whole, parts = one._draw(), [trainer._draw() for trainer in two]
    for i in range(3):
        assert torch.equal(whole[i], torch.cat([part[i] for part in parts]))
    assert torch.equal(whole[3]["label"], torch.cat([part[3]["label"] for part in parts]))


def test_without_accelerate_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'fastdiff\[train\]'"):
        processes.join("cpu")
