"""Guidance as pipelines write it, noted down: what the test_lazy_guidance files share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from fastdiff import lazy_guidance
from fastdiff.lazy_guidance import expect, handed

SCALE = 7.5


def guided(u: Tensor, c: Tensor, scale: float = SCALE) -> Tensor:
    """As diffusers' pipelines have it."""
    return u + scale * (c - u)


@pytest.fixture(autouse=True)
def noting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Small tensors are noted down too, and no gradients recorded, as in a pipeline."""
    monkeypatch.setattr(lazy_guidance, "LEAST", {"cpu": 1})
    expect(True)
    with torch.no_grad():
        yield
    expect(False)


def image(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape or (4, 4, 6, 5), generator=generator).to(dtype)


def both() -> tuple[Tensor, Tensor]:
    """(noted down, computed)"""
    out = image()
    return guided(*handed(out).chunk(2)), guided(*out.chunk(2))
