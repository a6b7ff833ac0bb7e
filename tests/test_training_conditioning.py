"""Vectors beside labels: where they are read from, what the network makes of them, dropout, and clear errors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import fastdiff
from fastdiff import models
from fastdiff.guidance import Guidance
from fastdiff.models import UNet, UNetConfig
from fastdiff.training import Trainer, train
from fastdiff.training.data import load_folder
from fastdiff.training.vectors import read_vectors
from training_cases import TINY, with_model

NAMES = [f"flat/{i}.png" for i in range(8)]
WIDTH = 4
CONFIG = UNetConfig(
    num_classes=2,
    channels=(8, 16),
    blocks=(1, 1),
    embed_dim=8,
    time_dim=8,
    groups=4,
    image_size=16,
    context_dim=WIDTH,
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """One class of flat pictures, half of them dark and half bright, without vectors."""
    root = tmp_path / "data"
    (root / "flat").mkdir(parents=True)
    for i, name in enumerate(NAMES):
        Image.new("RGB", (12, 12), (230,) * 3 if i % 2 else (25,) * 3).save(root / name)
    return root


def vectors() -> np.ndarray:
    """What tells dark from bright."""
    return np.array([[i % 2, 1 - i % 2, 0.5, 0] for i in range(8)], dtype=np.float32)


def write(root: Path, kind: str) -> None:
    table = dict(zip(NAMES, vectors()))
    if kind == "npy":
        np.save(root / "embeddings.npy", vectors())
    elif kind == "npz":
        np.savez(root / "embeddings.npz", **table)
    elif kind == "safetensors":
        save_file({k: torch.from_numpy(v) for k, v in table.items()}, root / "embeddings.safetensors")
    else:
        texts = {name: "bright" if i % 2 else "dark" for i, name in enumerate(NAMES)}
        (root / "captions.json").write_text(json.dumps(texts))


def encoder(texts: list[str]) -> torch.Tensor:
    return torch.tensor([[t == "bright", t == "dark", 0.5, 0.0] for t in texts], dtype=torch.float64)


@pytest.mark.parametrize("kind", ["npy", "npz", "safetensors", "captions"])
def test_vectors_are_read(data: Path, kind: str) -> None:
    write(data, kind)
    folder = load_folder(data, size=12, context_dim=WIDTH, encoder=encoder)
    assert folder.context is not None and folder.context.dtype == torch.float32
    assert np.array_equal(folder.context.numpy(), vectors())


def test_rows_of_npy_are_those_of_the_sorted_paths(tmp_path: Path) -> None:
    np.save(tmp_path / "embeddings.npy", np.arange(6, dtype=np.float64).reshape(3, 2))
    made = read_vectors(tmp_path, ["b/1.png", "a/2.png", "a/10.png"], 2)
    assert made.tolist() == [[4, 5], [2, 3], [0, 1]]


def bad(root: Path, kind: str) -> None:
    name, value = root / "embeddings.npy", vectors()
    if kind == "short":
        np.save(name, value[:3])
    elif kind == "narrow":
        np.save(name, value[:, :2])
    elif kind == "nan":
        value[3, 1] = np.nan
        np.save(name, value)
    elif kind == "integers":
        np.save(name, value.astype(np.int64))
    elif kind == "pickled":
        np.save(name, np.array([{"a": 1}] * 8, dtype=object), allow_pickle=True)
    elif kind == "torn":
        np.savez(root / "embeddings.npz", **dict(zip(NAMES, value)))
        file = root / "embeddings.npz"
        file.write_bytes(file.read_bytes()[:100])
    elif kind == "incomplete":
        np.savez(root / "embeddings.npz", **dict(zip(NAMES[:5], value)))
    elif kind == "two":
        write(root, "npy")
        write(root, "npz")
    elif kind == "not json":
        (root / "captions.json").write_text("{")
    elif kind == "no texts":
        (root / "captions.json").write_text('{"flat/0.png": 3}')


@pytest.mark.parametrize(
    "kind, said",
    [
        ("none", "needs one of embeddings.npy"),
        ("two", "found embeddings.npy and embeddings.npz"),
        ("short", "3 rows for 8 pictures"),
        ("narrow", r"vectors \[8, 2\] for 8 pictures of context_dim 4"),
        ("nan", "vector of flat/3.png holds NaN"),
        ("integers", "must be float"),
        ("pickled", "embeddings.npy: .*allow_pickle"),
        ("torn", "embeddings.npz"),
        ("incomplete", r"nothing for flat/5.png \(3 pictures"),
        ("not json", "is not JSON"),
        ("no texts", "path -> text"),
    ],
)
def test_bad_vectors_are_one_clear_error(data: Path, kind: str, said: str) -> None:
    bad(data, kind)
    with pytest.raises(ValueError, match=said) as error:
        load_folder(data, size=12, context_dim=WIDTH, encoder=encoder)
    assert "\n" not in str(error.value)


def test_captions_need_an_encoder_that_fits(data: Path) -> None:
    write(data, "captions")
    with pytest.raises(ValueError, match="need an encoder"):
        load_folder(data, size=12, context_dim=WIDTH)
    with pytest.raises(ValueError, match=r"the encoder made \[2\] of 2 texts"):
        load_folder(data, size=12, context_dim=WIDTH, encoder=lambda texts: torch.zeros(len(texts)))


def test_the_network_takes_a_vector() -> None:
    net = UNet(CONFIG)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(0))
    x, t, c = torch.randn(2, 3, 16, 16), torch.tensor([10.0, 500.0]), torch.randn(2, WIDTH)
    plain, zeros = net(x, t), net(x, t, context=torch.zeros(2, WIDTH))
    assert torch.equal(plain, zeros) and not torch.allclose(plain, net(x, t, context=c))
    with pytest.raises(ValueError, match=r"context must be \[2, 4\]"):
        net(x, t, context=c[:, :2])
    without = UNet(UNetConfig.from_dict({"num_classes": 2}))
    assert not any("context" in name for name, _ in without.named_parameters())
    with pytest.raises(ValueError, match="takes no context"):
        without(torch.zeros(1, 3, 64, 64), torch.zeros(1), context=torch.zeros(1, 4))


def test_dropout_leaves_out_label_and_vector_together(data: Path) -> None:
    write(data, "npz")
    trainer = Trainer(with_model(context_dim=WIDTH), data)
    given = trainer._draw()[3]
    assert set(given) == {"label", "context"}
    dropped = Trainer(with_model(context_dim=WIDTH, settings={"label_dropout": 1.0}), data)._draw()[3]
    assert (dropped["label"] == 1).all() and (dropped["context"] == 0).all()


def test_a_trained_network_follows_its_vector(data: Path, tmp_path: Path) -> None:
    write(data, "captions")
    settings = {"steps": 120, "lr": 2e-2, "cooldown": 20, "batch": 16, "micro": 16, "snr_offset": 1.0}
    config = with_model(context_dim=WIDTH, settings=settings)
    train(config, data, tmp_path / "run", encoder=encoder)
    assert (tmp_path / "run" / "samples_000120.png").exists()
    net = models.load(tmp_path / "run" / "model.safetensors")
    assert net.config.context_dim == WIDTH
    asked = encoder(["dark", "bright"]).float()
    made = fastdiff.sample(
        net, (2, 3, 8, 8), schedule=net.schedule, steps=8, prediction=net.prediction, clip=1.0, seed=[0, 0],
        conditioning={"label": torch.tensor([0, 0]), "context": asked},
        guidance=Guidance(2.0, {"label": torch.tensor([1, 1]), "context": torch.zeros(2, WIDTH)}),
    )  # fmt: skip
    dark, bright = made.mean((1, 2, 3)).tolist()
    assert bright - dark > 0.8


def test_resume_wants_the_same_width(data: Path, tmp_path: Path) -> None:
    write(data, "npy")
    train(with_model(context_dim=WIDTH), data, tmp_path / "run")
    with pytest.raises(ValueError, match="another model"):
        train(TINY, data, tmp_path / "run", resume=True)
