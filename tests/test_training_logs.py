"""Logs: the CSV file, TensorBoard where it is installed, sample sheets, and what a killed run leaves in them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from PIL import Image

from fastdiff.training import train
from training_cases import TINY, change, paint_classes

FIELDS = "step,images,loss,grad_norm,lr,seconds"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return paint_classes(tmp_path_factory.mktemp("data"))


def test_the_csv_file(data: Path, tmp_path: Path) -> None:
    train(change(accumulate=2), data, tmp_path / "run")
    header, *rows = (tmp_path / "run" / "log.csv").read_text().splitlines()
    assert header == FIELDS and len(rows) == 6
    assert [row.split(",")[:2] for row in rows] == [[str(i), str(16 * i)] for i in range(1, 7)]
    assert all(float(value) >= 0 for row in rows for value in row.split(","))


def test_sheets_on_the_way(data: Path, tmp_path: Path) -> None:
    train(change(sheet_every=4), data, tmp_path / "run")
    sheets = sorted((tmp_path / "run").glob("samples_*.png"))
    assert [sheet.name for sheet in sheets] == ["samples_000004.png", "samples_000006.png"]
    with Image.open(sheets[0]) as sheet:
        assert sheet.size == (4 * 12 + 4, 12 + 4)


def test_tensorboard(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tmp_path / "run"

    def crash(p: object) -> None:
        if p.step == 5:  # type: ignore[attr-defined]
            raise MemoryError

    with pytest.raises(MemoryError):
        train(change(save_every=3, sheet_every=3), data, run, tensorboard=True, on_step=crash)
    train(change(save_every=3, sheet_every=3), data, run, resume=True, tensorboard=True)
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    loss = events.Scalars("loss")
    assert [event.step for event in loss] == list(range(1, 7))  # steps 4 and 5, taken twice, are there once
    rows = (run / "log.csv").read_text().splitlines()[1:]
    assert [event.value for event in loss] == pytest.approx(
        [float(row.split(",")[2]) for row in rows], abs=1e-5
    )
    assert [event.step for event in events.Images("samples")] == [3, 6]
    assert set(events.Tags()["scalars"]) == {"loss", "grad_norm", "lr"}


def test_without_tensorboard_the_remedy_is_named(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'fastdiff\[train\]'"):
        train(TINY, data, tmp_path / "run", tensorboard=True)
    assert not (tmp_path / "run" / "state.safetensors").exists()
