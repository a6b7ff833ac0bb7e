"""Checkpoints: what goes in comes out; everything else is one clear error."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from fastdiff import models
from fastdiff.models import CheckpointError, TrainedUNet, UNetConfig

CONFIG = UNetConfig(
    num_classes=2, channels=(8, 16), blocks=(1, 1), embed_dim=8, time_dim=8, groups=4, image_size=16
)


def make_model() -> TrainedUNet:
    torch.manual_seed(0)
    model = TrainedUNet(
        CONFIG, labels=("moss", "stone"), prediction="v", schedule_options={"name": "cosine_betas", "T": 1000}
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


@pytest.fixture
def path(tmp_path: Path) -> Path:
    models.save(tmp_path / "model.safetensors", make_model())
    return tmp_path / "model.safetensors"


def rewrite(path: Path, change: Callable[[dict, dict], object]) -> None:
    """Change a checkpoint's tensors and description in place."""
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        about = json.loads(file.metadata()["fastdiff"])
    change(tensors, about)
    save_file(tensors, path, {"fastdiff": json.dumps(about)})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_round_trip(tmp_path: Path, dtype: torch.dtype) -> None:
    model = make_model()
    models.save(tmp_path / "m.safetensors", model, dtype=dtype)
    loaded = models.load(tmp_path / "m.safetensors")
    assert loaded.config == CONFIG and loaded.labels == ("moss", "stone") and loaded.prediction == "v"
    assert loaded.schedule.levels(10) == model.schedule.levels(10)
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value.to(dtype).float()), name
    x, t = torch.randn(1, 3, 16, 16), torch.tensor([500.0])
    assert loaded(x, t, label=torch.tensor([1])).isfinite().all()


def test_an_existing_file_is_kept(path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(FileExistsError):
        models.save(path, make_model())
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


def test_weights_that_overflow_the_file_are_refused(tmp_path: Path) -> None:
    model = make_model()
    with torch.no_grad():
        model.head.weight[0, 0, 0, 0] = 1e6
    with pytest.raises(ValueError, match=r"head\.weight does not fit"):
        models.save(tmp_path / "m.safetensors", model, dtype=torch.float16)
    assert not list(tmp_path.iterdir())


def _drop(tensors: dict, about: dict) -> None:
    del tensors["head.bias"]


def _add(tensors: dict, about: dict) -> None:
    tensors["head.more"] = torch.zeros(1)


def _reshape(tensors: dict, about: dict) -> None:
    tensors["head.bias"] = torch.zeros(5)


def _nan(tensors: dict, about: dict) -> None:
    tensors["head.bias"][0] = float("nan")


def _inf(tensors: dict, about: dict) -> None:
    tensors["stem.weight"][0] = float("inf")


def _integers(tensors: dict, about: dict) -> None:
    tensors["head.bias"] = torch.zeros(12, dtype=torch.int64)


def _set(*keys: str, to: object) -> Callable[[dict, dict], None]:
    def change(tensors: dict, about: dict) -> None:
        place = about
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = to

    return change


@pytest.mark.parametrize(
    "change, said",
    [
        (_drop, "missing: head.bias"),
        (_add, "not expected: head.more"),
        (_reshape, "head.bias has shape"),
        (_nan, "head.bias holds NaN"),
        (_inf, "stem.weight holds NaN or infinite"),
        (_integers, "head.bias is torch.int64"),
        (_set("format", to=99), "format is 99"),
        (_set("extra", to=1), "exactly"),
        (_set("labels", to=["one"]), "labels must be 2 different names"),
        (_set("labels", to=["same", "same"]), "labels must be 2 different names"),
        (_set("labels", to="ab"), "labels must be a list"),
        (_set("prediction", to="noise"), "prediction must be one of"),
        (_set("schedule", to={"name": "exec"}), "schedule name must be one of"),
        (_set("schedule", to={"name": "cosine_betas", "T": 10**12}), "T must be"),
        (_set("schedule", to={"name": "cosine_betas", "x": 1}), "does not take"),
        (_set("config", "channels", to=[4096] * 8), "blocks"),
        (_set("config", "channels", to=[4096, 4096]), "has shape"),
        (_set("config", "embed_dim", to=10**15), "embed_dim"),
        (_set("config", "depth", to=1), "unknown fields depth"),
        (_set("config", to=[1]), "config must be an object"),
    ],
)
def test_inconsistent_files_are_refused(path: Path, change: Callable[[dict, dict], None], said: str) -> None:
    rewrite(path, change)
    with pytest.raises(CheckpointError, match=said) as error:
        models.load(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


@pytest.mark.parametrize("keep", [0, 5, 200, -1])
def test_truncated_files_are_refused(path: Path, keep: int) -> None:
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="truncated or no safetensors"):
        models.load(path)


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.safetensors").write_text("hello there, I am no checkpoint")
    torch.save({"a": torch.zeros(1)}, tmp_path / "pickle.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    for file in tmp_path.iterdir():
        with pytest.raises(CheckpointError):
            models.load(file)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        models.load(tmp_path / "none.safetensors")


def test_the_bundled_model() -> None:
    model = models.load()
    assert len(model.labels) == model.config.num_classes >= 12 and "brick" in model.labels
    assert models.checkpoint.BUNDLED.stat().st_size <= 10e6
    x, t = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)), torch.tensor([999.0])
    v = model(x, t, label=torch.tensor([0]))
    # at t = 999 the image is almost pure noise, so v is close to minus an image: within the picture range, and smooth
    assert v.isfinite().all() and v.abs().max() < 3
