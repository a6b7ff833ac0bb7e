"""Large canvases: windows cover the picture, blend to what they agree on, wrap around, and bound the model's input."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdiff.apps.canvas import Windowed, ramp, starts
from fastdiff.apps.generate import generate
from tiny_model import tiny_model

NET = tiny_model()


@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize(
    ("side", "window", "overlap"), [(64, 16, 8), (65, 16, 0), (17, 16, 15), (100, 7, 3), (8, 16, 4)]
)
def test_windows_cover_every_place_and_overlap(side: int, window: int, overlap: int, wrap: bool) -> None:
    places = starts(side, window, overlap, wrap=wrap)
    covered = torch.zeros(side, dtype=torch.int64)
    for place in places:
        covered[torch.arange(place, place + min(window, side)) % side] += 1
    assert covered.min() >= 1
    gaps = [b - a for a, b in itertools.pairwise(places)] + ([side - places[-1] + places[0]] if wrap else [])
    assert window >= side or all(0 < gap <= window - overlap for gap in gaps)
    assert wrap or window >= side or places[-1] + window == side


def test_the_ramp_is_symmetric_positive_and_full_in_the_middle() -> None:
    weights = ramp(16, 6)
    assert (
        weights.min() > 0
        and torch.equal(weights, weights.flip(0))
        and weights[6:10].eq(1).all()
        and ramp(16, 0).eq(1).all()
    )


@pytest.mark.parametrize("wrap", [False, True])
def test_what_windows_agree_on_stays(wrap: bool) -> None:
    pointwise = lambda x, t: torch.sin(x) * t.view(-1, 1, 1, 1)  # noqa: E731
    x, t = torch.randn(2, 3, 50, 34), torch.tensor([0.5, 2.0])
    model = Windowed(pointwise, (16, 12), 5, wrap=wrap, at_once=3)
    assert torch.allclose(model(x, t), pointwise(x, t), atol=1e-6)


def test_a_window_as_large_as_the_picture_is_the_model_itself() -> None:
    plain, windowed = (
        generate("cat", model=NET, steps=3, size=16, **way).images for way in ({}, {"window": 16})
    )
    assert torch.allclose(plain, windowed, atol=1e-5)


@pytest.mark.parametrize("size", [(32, 16), (16, 16), (8, 40)])
def test_tiles_wrap_around_where_one_window_spans_them(size: tuple[int, int]) -> None:
    windowed = generate("cat", model=NET, steps=3, size=size, tile=True, window=16).images
    alone = generate("cat", model=NET, steps=3, size=size, window=16).images
    assert not torch.allclose(windowed, alone, atol=1e-3)  # a single window would be the same in both
    places = [starts(side, 16, 8, wrap=True) for side in size]
    assert all(len(each) > 1 for each in places)


def test_conditioning_follows_its_image() -> None:
    seen: list[tuple[int, Any]] = []

    def model(x: Tensor, t: Tensor, *, label: Tensor, extra: dict[str, Any]) -> Tensor:
        seen.append((len(x), extra["scale"]))
        assert extra["text"][0].shape == (len(x), 4)
        return label.view(-1, 1, 1, 1).to(x) + 0 * x

    x = torch.zeros(2, 3, 20, 20)
    windowed = Windowed(model, (8, 8), 4, at_once=5)
    out = windowed(
        x, torch.ones(2), label=torch.tensor([3, 7]), extra={"text": [torch.ones(2, 4)], "scale": 2.0}
    )
    assert out[0].eq(3).all() and out[1].eq(7).all()
    assert max(size for size, _ in seen) == 10 and {scale for _, scale in seen} == {2.0}


def test_the_model_never_sees_more_than_its_windows() -> None:
    sizes: list[tuple[int, ...]] = []
    net = tiny_model()
    net.register_forward_pre_hook(lambda _, inputs: sizes.append(tuple(inputs[0].shape[-2:])))
    made = generate("cat", model=net, steps=2, size=(64, 40), window=16)
    assert set(sizes) == {(16, 16)} and made.images.shape[-2:] == (40, 64)
    assert made.images.isfinite().all()


def test_wrapping_windows_commute_with_shifts() -> None:
    """A picture that wraps around has no place where it begins: shifted by the windows' distance, the output shifts."""
    windowed = Windowed(lambda x, t: x.cumsum(-1).cumsum(-2), (8, 8), 4, wrap=True)
    x, t = torch.randn(1, 1, 16, 24), torch.ones(1)
    shifted = windowed(x.roll((4, 8), (-2, -1)), t)
    assert torch.allclose(shifted, windowed(x, t).roll((4, 8), (-2, -1)), atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"window": 15}, "multiple of 4"),
        ({"window": 0}, "size must be"),
        ({"window": 16, "overlap": 1.5}, "overlap"),
    ],
)
def test_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate("cat", model=NET, steps=2, size=32, **arguments)
