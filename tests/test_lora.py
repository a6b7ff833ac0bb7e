"""Adapters: joined as the formula says, the base untouched, trained and resumed exactly, damaged files refused."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch
from PIL import Image

from fastdiff import models
from fastdiff.cli import main
from fastdiff.models.checkpoint import fingerprint
from fastdiff.models.lora import (
    Adapter,
    AdapterError,
    adaptable,
    adapted,
    check_label,
    load_adapter,
    product,
    save_adapter,
)
from fastdiff.training import Progress
from fastdiff.training.lora import OwnPictures, joined, personalise
from tiny_model import tiny_model


def some_adapter(net: models.TrainedUNet, rank: int = 2) -> Adapter:
    """Random factors for every layer, representable in float16."""
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> torch.Tensor:
        return (0.3 * torch.randn(shape, generator=generator)).half().float()

    factors = {
        name: (draw(rank, weight[0].numel()), draw(weight.shape[0], rank))
        for name, weight in adaptable(net).items()
    }
    known = fingerprint(net.state_dict())
    return Adapter(known, "mine", draw(net.config.embed_dim), factors, 0.5, {"steps": 3})


def call(net: models.TrainedUNet, label: int) -> torch.Tensor:
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return net(x, torch.tensor([30.0, 800.0]), label=torch.tensor([label, label]))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "own"
    folder.mkdir()
    for i in range(5):
        Image.new("RGB", (30 + i, 24), (220, 40 * i, 30)).save(folder / f"{i}.png")
    return folder


def test_joining_is_the_formula_and_leaves_the_base_alone() -> None:
    base = tiny_model()
    before = {name: value.clone() for name, value in base.state_dict().items()}
    adapter = some_adapter(base)
    net = adapted(base, adapter)
    assert net.labels == ("brick", "cat", "truchet", "mine") and not net.training
    for name, (down, up) in adapter.factors.items():
        wanted = before[name] + 0.5 * (up @ down).view(before[name].shape)
        torch.testing.assert_close(net.state_dict()[name], wanted)
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())
    assert torch.equal(net.norm.weight, base.norm.weight)


def test_strength_zero_is_the_base_whose_new_label_is_its_null_class() -> None:
    base = tiny_model().to(memory_format=torch.channels_last)  # as checkpoints are loaded
    net = adapted(base, some_adapter(base), strength=0.0)
    assert torch.equal(call(net, 1), call(base, 1)) and torch.equal(call(net, 3), call(base, 3))
    assert torch.equal(call(net, 4), call(base, 3))  # the null class, now number 4


def test_joined_and_adapted_answer_alike() -> None:
    base = tiny_model().to(memory_format=torch.channels_last)
    net = joined(base, "mine", rank=3)
    trained = {name for name, p in net.named_parameters() if p.requires_grad}
    assert all(name.endswith((".down", ".up", ".row")) for name in trained) and len(trained) > 10
    assert torch.equal(call(net, 1), call(base, 1)), "an adapter begins without effect"
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    values = dict(net.named_parameters())
    factors = {
        f"{name[: -len('.parametrizations.weight.0.down')]}.weight": (p, values[name[:-4] + "up"])
        for name, p in values.items()
        if name.endswith(".down")
    }
    row = values["label.parametrizations.weight.0.row"]
    adapter = Adapter(fingerprint(base.state_dict()), "mine", row.detach(), factors, 1.0, {})
    torch.testing.assert_close(call(adapted(base, adapter), 3), call(net, 3), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_peft_answers_alike(kind: str) -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    layer = torch.nn.Linear(5, 6) if kind == "linear" else torch.nn.Conv2d(5, 6, 3, stride=2, padding=1)
    x = torch.randn(2, 5) if kind == "linear" else torch.randn(2, 5, 8, 8)
    down, up = torch.randn(2, layer.weight[0].numel()), torch.randn(6, 2)
    weight = (layer.weight.double() + 0.5 * product((down, up), layer.weight.shape)).float()
    ours = torch.func.functional_call(layer, {"weight": weight, "bias": layer.bias}, x)
    config = peft.LoraConfig(r=2, lora_alpha=1, target_modules=["0"])
    theirs = peft.inject_adapter_in_model(config, torch.nn.Sequential(layer))
    for part, value in ((theirs[0].lora_A, down), (theirs[0].lora_B, up)):
        part["default"].weight.data = value.view(part["default"].weight.shape)
    torch.testing.assert_close(ours, theirs(x), atol=1e-5, rtol=1e-5)


def test_a_file_comes_back(tmp_path: Path) -> None:
    base = tiny_model()
    adapter = some_adapter(base)
    save_adapter(tmp_path / "a.safetensors", adapter)
    found = load_adapter(tmp_path / "a.safetensors")
    assert (found.base, found.label, found.scale, found.training) == (adapter.base, "mine", 0.5, {"steps": 3})
    assert torch.equal(call(adapted(base, found), 3), call(adapted(base, adapter), 3))
    with pytest.raises(FileExistsError):
        save_adapter(tmp_path / "a.safetensors", adapter)


def test_an_adapter_fits_its_own_base_only() -> None:
    base, other = tiny_model(), tiny_model()
    adapter = some_adapter(base)
    other.head.bias.data.add_(1.0)
    with pytest.raises(AdapterError, match="was trained on the model"):
        adapted(other, adapter)
    with pytest.raises(ValueError, match="has a label 'cat' already"):
        adapted(base, Adapter(adapter.base, "cat", adapter.embedding, {}, 1.0, {}))
    down, up = adapter.factors["stem.weight"]
    bad = ((down[:, :-1], up), (down, torch.tensor(1.0)), (torch.tensor(1.0), up))
    for factors in (*({"stem.weight": pair} for pair in bad), {"nowhere.weight": (down, up)}):
        with pytest.raises(AdapterError, match=r"factors|does not have"):
            adapted(base, Adapter(adapter.base, "mine", adapter.embedding, factors, 1.0, {}))


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    base = tiny_model()
    save_adapter(tmp_path / "a.safetensors", some_adapter(base))
    models.save(tmp_path / "model.safetensors", base)
    data = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "short.safetensors").write_bytes(data[: len(data) // 2])
    (tmp_path / "text.safetensors").write_text("hello")
    for name in ("short", "text", "model"):
        with pytest.raises(AdapterError) as error:
            load_adapter(tmp_path / f"{name}.safetensors")
        assert "\n" not in str(error.value) and name in str(error.value)
    with pytest.raises(FileNotFoundError, match="train --lora"):
        load_adapter(tmp_path / "nothing.safetensors")
    with pytest.raises(models.CheckpointError):
        models.load(tmp_path / "a.safetensors")


@pytest.mark.parametrize("name", ["", " a", "a,b", "all", "x" * 101, "a\nb", None])
def test_names_that_cannot_be_labels(name: object) -> None:
    with pytest.raises(ValueError, match="label"):
        check_label(name)


def test_batches_hold_own_pictures_and_rehearse_others() -> None:
    examples = OwnPictures(
        torch.randint(0, 256, (5, 3, 20, 20), dtype=torch.uint8), torch.zeros(4, 3, 16, 16), torch.arange(4) % 3,
        ("a", "b", "c", "mine"), 16, True, 0,
    )  # fmt: skip
    x, given = examples.draw(3, 8)
    assert x.shape == (8, 3, 16, 16) and given["label"][:6].tolist() == [3] * 6
    assert not x[6:].any() and max(given["label"][6:]) < 3
    again, _ = examples.draw(3, 8)
    assert torch.equal(x, again) and not torch.equal(x, examples.draw(4, 8)[0])


def test_training_learns_the_pictures_and_resumes_exactly(pictures: Path, tmp_path: Path) -> None:
    base = tiny_model()
    plain = {"base": base, "batch": 4, "rank": 2, "prior": 2, "precision": "float32", "seed": 3}
    straight = personalise(pictures, "mine", tmp_path / "a.safetensors", steps=8, **plain)
    assert straight.training["pictures"] == 5 and (tmp_path / "a" / "log.csv").exists()

    def stop(progress: Progress) -> None:
        if progress.step == 4:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        personalise(pictures, "mine", tmp_path / "b.safetensors", steps=8, on_step=stop, **plain)
    resumed = personalise(pictures, "mine", tmp_path / "b.safetensors", steps=8, resume=True, **plain)
    assert torch.equal(straight.embedding, resumed.embedding)
    for name, (down, up) in straight.factors.items():
        assert torch.equal(down, resumed.factors[name][0]) and torch.equal(up, resumed.factors[name][1])
    assert up.any()
    with pytest.raises(FileExistsError, match="--resume"):
        personalise(pictures, "mine", tmp_path / "a.safetensors", steps=8, **plain)
    with pytest.raises(ValueError, match="another model"):
        personalise(
            pictures, "mine", tmp_path / "a.safetensors", steps=8, resume=True, **{**plain, "rank": 3}
        )


def test_the_command_line_trains_and_uses_an_adapter(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, file, out = tmp_path / "base.safetensors", tmp_path / "my.safetensors", tmp_path / "my.png"
    models.save(base, tiny_model())
    train = f"train --lora {pictures} --label mine --init {base} --out {file} --steps 2 --batch 2 --prior 0 --quiet"
    assert main(train.split()) == 0 and file.stat().st_size < base.stat().st_size
    generate = f"generate --model {base} --lora {file} --steps 2 --quiet --out {out}"
    assert main([*generate.split(), "--label", "mine", "--count", "1"]) == 0 and out.exists()
    capsys.readouterr()
    for line, wrong in (
        (f"train --lora {pictures} --label mine --out x.png --init {base}", ".safetensors file"),
        (f"train --lora {pictures} --out x.safetensors", "needs --label"),
        (f"train --lora {tmp_path / 'nothing'} --label m --init {base} --out x.safetensors", "not a folder"),
        (f"train --lora {pictures} --label cat --init {base} --out x.safetensors", "already"),
        (f"generate --lora {file} --label mine --out y.png", "was trained on the model"),
        (f"generate --model {base} --lora-strength 2 --label cat --out y.png", "belongs with --lora"),
        (f"generate --model {base} --lora {base} --label cat --out y.png", "no usable adapter"),
    ):
        assert main(line.split()) == 1
        assert wrong in capsys.readouterr().err
