"""Precision and accumulation: float16 with its loss scale, and steps that are worked off in pieces."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fastdiff.training import Diverged, Trainer, train
from fastdiff.training.precision import GROWTH, LossScale
from training_cases import change, paint_classes, same, weights


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return paint_classes(tmp_path_factory.mktemp("data"))


def test_accumulated_batches_are_one_batch(data: Path) -> None:
    whole, pieces = Trainer(change(batch=12), data), Trainer(change(batch=4, accumulate=3, micro=3), data)
    assert whole.pictures == pieces.pictures == 12
    for _ in range(3):
        a, b = whole.advance(), pieces.advance()
        assert a.loss == pytest.approx(b.loss, rel=1e-4) and a.images == b.images
        assert a.grad_norm == pytest.approx(b.grad_norm, rel=2e-3)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_low_precision_follows_single(data: Path, precision: str) -> None:
    single, low = Trainer(change(), data), Trainer(change(precision=precision), data)
    for _ in range(4):
        a, b = single.advance(), low.advance()
        assert a.loss == pytest.approx(b.loss, rel=0.02) and a.grad_norm != b.grad_norm
    assert all(p.dtype == torch.float32 for p in low.parameters.values())


def test_the_scale_halves_and_doubles() -> None:
    scale = LossScale.of("float16")
    scale.update(False)
    assert (scale.scale, scale.skipped, scale.good) == (2.0**15, 1, 0)
    for _ in range(GROWTH):
        scale.update(True)
    assert scale.scale == 2.0**16 and scale.good == 0
    fixed = LossScale.of("float32")
    fixed.update(False)
    assert fixed.scale == 1 and fixed.skipped == 0 and fixed.exhausted


def test_an_overflow_is_skipped_and_resumed_exactly(data: Path, tmp_path: Path) -> None:
    """A scale so large that the first steps overflow: they change nothing, and a resumed run knows of them."""
    config = change(precision="float16", steps=8, save_every=3)

    def run(out: Path, until: int) -> Trainer:
        trainer = Trainer(config, data)
        if (out / "state.safetensors").exists():
            trainer.restore(out)
        else:
            trainer.scale.scale = 2.0**40
        out.mkdir(exist_ok=True)
        while trainer.step < until:
            before = weights(trainer)
            progress = trainer.advance()
            finite = progress.grad_norm < float("inf")
            assert same(before, weights(trainer)) != finite
        trainer.save(out)
        return trainer

    whole = run(tmp_path / "whole", 30)
    run(tmp_path / "cut", 12)
    resumed = run(tmp_path / "cut", 30)
    assert 0 < whole.scale.skipped < 25 and resumed.scale == whole.scale
    assert same(weights(whole), weights(resumed))


def test_float16_gives_up_when_no_scale_helps(data: Path) -> None:
    trainer = Trainer(change(precision="float16"), data)
    with torch.no_grad():
        trainer.model.head.bias[0] = float("nan")
    with pytest.raises(Diverged, match="lower lr"):
        for _ in range(40):
            trainer.advance()
    assert trainer.scale.scale == 1.0


def test_the_state_keeps_the_scale(data: Path, tmp_path: Path) -> None:
    train(change(precision="float16", steps=2), data, tmp_path / "run")
    trainer = Trainer(change(precision="float16", steps=2), data)
    trainer.restore(tmp_path / "run")
    assert trainer.scale == LossScale(good=2)
