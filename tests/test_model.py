"""The UNet: any size, seamless tiles, the null class, and the same answer by every backend."""

from __future__ import annotations

import pytest
import torch

from fastdiff import backend
from fastdiff.models import UNet, UNetConfig
from fastdiff.models.unet import time_features

TINY = UNetConfig(
    num_classes=3, channels=(8, 16, 16), blocks=(1, 1, 1), embed_dim=16, time_dim=8, groups=4, image_size=32
)


def awake(config: UNetConfig = TINY) -> UNet:
    """A model whose zero-initialised layers have been given values, so that every path matters."""
    torch.manual_seed(0)
    model = UNet(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=1.0 / max(1, parameter[0].numel()) ** 0.5)
    return model.eval().requires_grad_(False)


def test_a_new_model_answers_zero() -> None:
    output = UNet(TINY)(torch.randn(2, 3, 32, 32), torch.tensor([0.0, 999.0]), label=torch.tensor([0, 2]))
    assert output.shape == (2, 3, 32, 32) and not output.any()


@pytest.mark.parametrize("size", [(8, 8), (64, 64), (40, 96), (8, 128)])
def test_any_multiple_is_a_size(size: tuple[int, int]) -> None:
    output = awake()(torch.randn(1, 3, *size), torch.tensor([500.0]))
    assert output.shape == (1, 3, *size) and output.isfinite().all() and output.any()


@pytest.mark.parametrize("shift", [(8, 0), (0, 16), (24, 8)])
def test_tiled_commutes_with_circular_shifts(shift: tuple[int, int]) -> None:
    model, x, t = awake(), torch.randn(2, 3, 32, 40), torch.tensor([10.0, 900.0])
    shifted = model.tiled()(x.roll(shift, (2, 3)), t)
    torch.testing.assert_close(shifted, model.tiled()(x, t).roll(shift, (2, 3)), atol=1e-5, rtol=1e-5)
    assert (model(x.roll(shift, (2, 3)), t) - model(x, t).roll(shift, (2, 3))).abs().max() > 1e-3


def test_tiled_shares_weights_and_leaves_the_model_alone() -> None:
    model, x, t = awake(), torch.randn(1, 3, 32, 32), torch.tensor([10.0])
    before, twin = model(x, t), model.tiled()
    assert all(a is b for a, b in zip(model.parameters(), twin.parameters()))
    assert not torch.equal(twin(x, t), before)
    assert torch.equal(model(x, t), before) and torch.equal(twin.tiled(False)(x, t), before)


def test_no_label_is_the_null_class() -> None:
    model, x, t = awake(), torch.randn(2, 3, 16, 16), torch.tensor([10.0, 20.0])
    assert torch.equal(model(x, t), model(x, t, label=torch.tensor([3, 3])))
    assert not torch.equal(model(x, t), model(x, t, label=torch.tensor([0, 0])))


def test_time_and_label_belong_to_their_own_sample() -> None:
    model, x = awake(), torch.randn(1, 3, 16, 16).expand(3, -1, -1, -1)
    output = model(x, torch.tensor([10.0, 10.0, 800.0]), label=torch.tensor([0, 1, 0]))
    alone = model(x[:1], torch.tensor([800.0]), label=torch.tensor([0]))
    torch.testing.assert_close(output[2:], alone, atol=1e-5, rtol=1e-4)
    assert (output[0] - output[1]).abs().max() > 1e-3 and (output[0] - output[2]).abs().max() > 1e-3


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_fused_norms_answer_as_the_formula_does(layout: torch.memory_format) -> None:
    model = awake().to(memory_format=layout)  # type: ignore[call-overload]
    x, t = torch.randn(2, 3, 32, 32).to(memory_format=layout), torch.tensor([10.0, 900.0])
    answer, gradient = {}, {}
    for name in ("auto", "reference"):
        with backend.use(name):
            leaf = x.clone().requires_grad_()
            answer[name] = model(leaf, t)
            (gradient[name],) = torch.autograd.grad(answer[name].square().sum(), leaf)
    torch.testing.assert_close(answer["auto"], answer["reference"], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(gradient["auto"], gradient["reference"], atol=1e-4, rtol=1e-3)


def test_layouts_agree() -> None:
    model, x, t = awake(), torch.randn(2, 3, 32, 32), torch.tensor([10.0, 900.0])
    expected = model(x, t)
    last = model.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last), t)
    torch.testing.assert_close(last, expected, atol=1e-5, rtol=1e-4)


def test_time_features_tell_neighbours_apart() -> None:
    features = time_features(torch.arange(1000.0), 64)
    assert features.shape == (1000, 64) and features.abs().max() <= 1
    assert (features[1:] - features[:-1]).norm(dim=1).min() > 0.1


@pytest.mark.parametrize(
    "x, t, label, said",
    [
        ((2, 3, 30, 32), (2,), None, "multiples of 8"),
        ((2, 3, 0, 32), (2,), None, "multiples of 8"),
        ((2, 1, 32, 32), (2,), None, r"\[B, 3, H, W\]"),
        ((3, 32, 32), (2,), None, r"\[B, 3, H, W\]"),
        ((2, 3, 32, 32), (), None, r"t must be \[2\]"),
        ((2, 3, 32, 32), (2,), (1,), r"label must be \[2\]"),
    ],
)
def test_wrong_shapes_are_refused(x: tuple, t: tuple, label: tuple | None, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        UNet(TINY)(torch.zeros(x), torch.zeros(t), label=None if label is None else torch.zeros(label).long())


@pytest.mark.parametrize(
    "change",
    [
        {"num_classes": 0},
        {"num_classes": 2.5},
        {"num_classes": True},
        {"channels": ()},
        {"channels": [8, 16, 16]},
        {"channels": (8, 16)},
        {"channels": (8, 16, 10**9)},
        {"blocks": (1, 1, 0)},
        {"groups": 3},
        {"time_dim": 7},
        {"image_size": 30},
        {"patch": 0},
        {"embed_dim": float("nan")},
    ],
)
def test_absurd_configurations_name_the_field(change: dict) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(change))}|blocks|groups"):
        UNetConfig(**{**TINY.__dict__, **change})
