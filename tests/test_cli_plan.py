"""fastdiff plan: the rows of a sampler, as text, as data and as a drawing."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable

import pytest

from fastdiff import images
from fastdiff.ops import WIDTH


def test_plan_prints_rows_and_data(fastdiff: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = fastdiff(
        "plan", "--sampler", "heun", "--steps", "4", "--schedule", "karras:sigma_max=15"
    )
    assert (code, err) == (0, "") and len(out.splitlines()) == 2 + 7
    code, out, _ = fastdiff(
        "plan", "--sampler", "heun", "--steps", "4", "--schedule", "flow:shift=3", "--json"
    )
    data = json.loads(out)
    assert (
        code == 0 and data["model_calls"] == 7 and len(data["levels"]) == 5 and len(data["rows"][0]) == WIDTH
    )


def test_plan_draws(fastdiff: Callable[..., tuple[int, str, str]]) -> None:
    pytest.importorskip("matplotlib")
    assert fastdiff("plan", "--plot", "levels.png")[0] == 0
    assert images.read_image("levels.png").shape[0] == 3


def test_plot_without_matplotlib_says_so(
    fastdiff: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, out, err = fastdiff("plan", "--plot", "levels.png")
    assert (code, out) == (1, "") and "pip install matplotlib" in err and os.listdir() == []
