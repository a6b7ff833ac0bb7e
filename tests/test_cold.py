"""Cold diffusion: the corruptions, algorithm 2, training to restore, new pictures, and one clear error elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from fastdiff import cold, models
from fastdiff.corruptions import Corruption
from fastdiff.guidance import Guidance
from fastdiff.models import CheckpointError, TrainedUNet
from fastdiff.training import TrainConfig, Trainer, train
from tiny_model import tiny_model
from training_cases import change, paint_classes

NAMES = ("blur", "pixelate")


def colds(name: str = "blur", **options: object) -> TrainedUNet:
    tiny = tiny_model()
    return TrainedUNet(
        tiny.config,
        labels=tiny.labels,
        prediction="sample",
        schedule_options={"name": name, "T": 8, **options},
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(12, 20), (8, 8), (9,), (4, 6, 10)])
def test_a_corruption_begins_with_the_picture_and_ends_with_its_mean(
    name: str, shape: tuple[int, ...]
) -> None:
    corruption = Corruption(name, T=10)
    x = torch.randn(11, 2, *shape, generator=torch.Generator().manual_seed(0))
    y = corruption(x, torch.arange(11.0))
    axes = tuple(range(1, x.ndim - 1))
    torch.testing.assert_close(y[0], x[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(y[10], x[10].mean(axes, keepdim=True).expand_as(y[10]), atol=1e-5, rtol=0)
    # linear, and brightness stays
    torch.testing.assert_close(corruption(2 * x + 1, torch.arange(11.0)), 2 * y + 1, atol=1e-4, rtol=1e-4)
    if name == "blur":
        torch.testing.assert_close(y.flatten(2).mean(2), x.flatten(2).mean(2), atol=1e-5, rtol=1e-5)
    same = x[:1].expand(11, *x.shape[1:])
    spread = corruption(same, torch.arange(11.0)).flatten(1).var(1)
    assert (spread.diff() < 1e-6).all()  # never more detail


def test_blur_is_a_gaussian_filter_with_mirrored_edges() -> None:
    x = torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    sigma = 0.5 * 64.0 ** (3 / 7)  # t = 4 of T = 8, from 0.5 pixels to 32
    want = ndimage.gaussian_filter(x[0, 0].double().numpy(), sigma, mode="reflect", truncate=8)
    got = Corruption("blur", T=8)(x, torch.tensor([4.0]))[0, 0]
    assert np.abs(got.numpy() - want).max() < 5e-3 * np.abs(want).max()


def test_pixelation_is_a_mean_over_blocks() -> None:
    x = torch.randn(1, 3, 16, 16)
    got = Corruption("pixelate", T=8)(x, torch.tensor([4.0]))  # half-way of 4 halvings: blocks of 4
    want = torch.nn.functional.avg_pool2d(x, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize(
    "options, said",
    [
        ({"name": "smear"}, "unknown corruption 'smear'"),
        ({"name": "blur", "T": 1}, "T must be an integer from 2"),
        ({"name": "blur", "T": 2.5}, "T must be an integer"),
        ({"name": "blur", "jitter": -1}, "jitter must be a number"),
        ({"name": "blur", "jitter": float("nan")}, "jitter must be a number"),
        ({"name": "blur", "sigma": 3}, "does not take these options"),
    ],
)
def test_bad_corruptions_are_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Corruption.of(options)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("steps", [None, 1, 3])
def test_an_exact_model_restores_exactly(name: str, steps: int | None) -> None:
    corruption = Corruption(name, T=10)
    x0 = torch.randn(2, 3, 16, 16)
    seen: list[float] = []

    def exact(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen.append(t[0].item())
        torch.testing.assert_close(x, corruption(x0, t), atol=1e-4, rtol=1e-4)
        return x0

    start = corruption(x0, torch.tensor([10.0, 10.0]))
    made = cold.restore(exact, start, corruption=corruption, steps=steps)
    torch.testing.assert_close(made, x0, atol=1e-4, rtol=1e-4)
    assert len(seen) == (steps or 10) and seen[0] == 10 and seen == sorted(seen, reverse=True)


def test_algorithm_2_forgives_what_the_corruption_hides() -> None:
    """A model that is wrong by a fine checkerboard, which the blur hides: the errors of the steps do not add up."""
    corruption = Corruption("blur", T=10)
    x0 = torch.randn(1, 1, 16, 16)
    wrong = 0.1 * (torch.arange(16)[:, None] + torch.arange(16)).remainder(2).mul(2).sub(1).float()
    start = corruption(x0, torch.tensor([10.0]))
    made = cold.restore(lambda x, t: x0 + wrong, start, corruption=corruption)
    assert (made - x0 - wrong).abs().max() < 1e-4  # D(wrong, t) vanishes for t >= 1: only D(wrong, 0) is left
    middle = cold.restore(
        lambda x, t: x0, corruption(x0, torch.tensor([4.0])), corruption=corruption, start=4
    )
    torch.testing.assert_close(middle, x0, atol=1e-4, rtol=1e-4)


def test_jitter_is_taken_off() -> None:
    corruption = Corruption("blur", T=6, jitter=0.2)
    x0, eps = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8)
    start = corruption(x0, torch.full((2,), 6.0)) + 0.2 * eps
    made = cold.restore(lambda x, t: x0, start, corruption=corruption, jitter=eps)
    torch.testing.assert_close(made, x0, atol=1e-4, rtol=1e-4)


def test_guidance_and_steps_are_seen() -> None:
    corruption = Corruption("pixelate", T=4)
    done: list[tuple[int, float]] = []

    def model(x: torch.Tensor, t: torch.Tensor, *, label: torch.Tensor) -> torch.Tensor:
        return label.view(-1, 1, 1, 1).float().expand_as(x)

    made = cold.restore(
        model, torch.zeros(1, 1, 4, 4), corruption=corruption, conditioning={"label": torch.tensor([2])},
        guidance=Guidance(3.0, {"label": torch.tensor([1])}),
        on_step=lambda i, clean: done.append((i, clean.mean().item())),
    )  # fmt: skip
    assert done == [(i, 4.0) for i in range(1, 5)] and made.shape == (1, 1, 4, 4)


@pytest.mark.parametrize(
    "given", [{"steps": 0}, {"steps": 11}, {"start": 0}, {"start": 11}, {"start": 3, "steps": 4}]
)
def test_bad_steps_are_refused(given: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be an integer from 1 to"):
        cold.restore(lambda x, t: x, torch.zeros(1, 1, 4, 4), corruption=Corruption("blur", T=10), **given)


def test_colours_are_those_of_the_classes() -> None:
    generator = torch.Generator().manual_seed(0)
    means = torch.cat([torch.randn(500, 3, generator=generator) * 0.1 + shift for shift in (-1.0, 1.0)])
    table = cold.fit_colours(means, torch.arange(2).repeat_interleave(500), 2)
    assert table.shape == (3, 4, 3)
    torch.testing.assert_close(table[:2, 0], torch.tensor([[-1.0] * 3, [1.0] * 3]), atol=0.02, rtol=0)
    factor = table[0, 1:]
    torch.testing.assert_close(factor @ factor.T, 0.01 * torch.eye(3), atol=2e-3, rtol=0)
    assert (table[2, 1:] @ table[2, 1:].T)[0, 1] > 0.9  # all pictures: bright in every channel, or dark
    net = colds(jitter=0.1)
    net.colours[:] = torch.cat([table, table[:1]])
    x, eps = cold.starting_point(net, torch.tensor([0, 1] * 50), range(100))
    assert x[0::2].mean().item() == pytest.approx(-1, abs=0.05) and x[1::2].mean().item() == pytest.approx(
        1, abs=0.05
    )
    flat = x - 0.1 * eps
    assert flat.flatten(2).std(2).max() < 1e-5


def test_pictures_depend_on_their_own_seed() -> None:
    net = colds(jitter=0.1)
    torch.nn.init.normal_(net.head.weight, std=0.1)
    both = cold.generate(net, ["cat", None], seed=5)
    torch.testing.assert_close(both[1:], cold.generate(net, [None], seed=6), atol=1e-5, rtol=1e-5)
    assert both.shape == (2, 3, 16, 16) and cold.generate(net, ["cat"], steps=2, scale=2.0).isfinite().all()
    with pytest.raises(ValueError, match="unknown label 'cta'"):
        cold.generate(net, ["cta"])
    with pytest.raises(ValueError, match="undoes noise"):
        cold.generate(tiny_model(), ["cat"])


@pytest.mark.parametrize("name", NAMES)
def test_it_is_trained_and_saved(tmp_path: Path, name: str) -> None:
    data = paint_classes(tmp_path / "data")
    config = change(corruption=name, schedule={"T": 6, "jitter": 0.05}, steps=30, lr=2e-2, cooldown=0)
    losses: list[float] = []
    train(config, data, tmp_path / "run", on_step=lambda p: losses.append(p.loss))
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])
    net = models.load(tmp_path / "run" / "model.safetensors")
    assert net.corruption == Corruption(name, T=6, jitter=0.05) and net.prediction == "sample"
    blue, red = cold.generate(net, ["blue", "red"], seed=0)
    assert blue[2].mean() > blue[0].mean() + 0.3 and red[0].mean() > red[2].mean() + 0.3
    again = train(config, data, tmp_path / "again")
    assert torch.equal(again.model.colours, train(config, data, tmp_path / "run", resume=True).model.colours)


def test_elsewhere_it_is_refused_in_one_line(
    tmp_path: Path, fastdiff: Callable[..., tuple[int, str, str]]
) -> None:
    models.save(tmp_path / "cold.safetensors", colds())
    code, _, said = fastdiff("generate --model cold.safetensors --label cat --out x.png")
    assert (
        code == 1
        and "cold-diffusion model (blur)" in said
        and "fastdiff.cold" in said
        and said.count("\n") == 1
    )


def test_bad_cold_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="leave out prediction and noise"):
        change(corruption="blur", prediction="flow")
    with pytest.raises(ValueError, match="is none of corruption 'blur'"):
        change(corruption="blur", schedule={"name": "flow"})
    with pytest.raises(ValueError, match="T must be an integer"):
        Trainer(change(corruption="blur", schedule={"T": 1}), paint_classes(tmp_path / "data"))
    assert TrainConfig(**change(corruption="blur").as_dict()).schedule == {"name": "blur"}


def test_a_damaged_description_is_refused(tmp_path: Path) -> None:
    models.save(tmp_path / "m.safetensors", colds())
    data = (tmp_path / "m.safetensors").read_bytes().replace(rb"\"T\": 8", rb"\"T\": 0")
    (tmp_path / "m.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match="T must be an integer"):
        models.load(tmp_path / "m.safetensors")
