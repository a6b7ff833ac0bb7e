"""What the tests of accelerate share."""

from __future__ import annotations

import pytest
from torch import Tensor

from fastdiff.patching import norms


@pytest.fixture(autouse=True)
def small_ones_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our kernels for small tensors too, which PyTorch would be left: the tests' models are small."""
    monkeypatch.setattr(norms, "FEW", 0)


def difference(actual: Tensor, expected: Tensor) -> float:
    """The largest, relative to the largest value."""
    return ((actual - expected).abs().max() / expected.abs().max()).item()
