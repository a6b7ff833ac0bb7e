"""The committed example configurations of pictures: each reads, trains a step and samples."""

from __future__ import annotations

import argparse
import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastdiff.cli import train as cli_train
from fastdiff.training import TrainConfig, Trainer, read_config
from fastdiff.training.sheet import sample_labels

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "configs" / "examples").glob("*.json"))
PICTURES = [file for file in FILES if read_config(file).model.get("dims", 2) == 2]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("examples")
    (root / "grey").mkdir()
    for i in range(2):
        Image.new("RGB", (40, 40), (90 + 60 * i,) * 3).save(root / "grey" / f"{i}.png")
    np.save(root / "embeddings.npy", np.eye(2, 384, dtype=np.float32))
    return root


@pytest.mark.parametrize("file", PICTURES, ids=lambda file: file.stem)
def test_it_trains_and_samples(data: Path, file: Path) -> None:
    config = dataclasses.replace(read_config(file), batch=2, micro=2, accumulate=1)
    trainer = Trainer(config, data)
    assert trainer.advance().step == 1
    width = config.model.get("context_dim", 0)
    context = torch.zeros(1, width) if width else None
    made = sample_labels(trainer.averaged(), torch.tensor([0]), seed=0, steps=2, context=context)
    assert made.shape == (1, 3, 32, 32) and made.isfinite().all()


def test_the_page_names_every_example_and_every_setting() -> None:
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    for file in FILES:
        assert file.name in page, file.name
    table = page.split("## Every setting")[1].split("### Targets")[0]
    named = {
        name
        for row in re.findall(r"^\| ([a-z_, ]+) \|", table, flags=re.MULTILINE)
        for name in row.split(", ")
    }
    assert named - {"setting"} == {field.name for field in dataclasses.fields(TrainConfig)}
    subparsers = argparse.ArgumentParser().add_subparsers()
    cli_train.add_parser(subparsers)
    known = {option for action in subparsers.choices["train"]._actions for option in action.option_strings}
    command = page.split("## The command")[1].split("## The data")[0]
    documented = set(re.findall(r"--[a-z][a-z-]*", command))
    assert documented <= known and {"--resume", "--init", "--processes", "--tensorboard"} <= documented
