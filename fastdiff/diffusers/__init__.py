"""Drop-in schedulers: `from fastdiff.diffusers import DDIMScheduler` in place of diffusers'. Nothing else changes."""

from __future__ import annotations

from typing import Any

try:
    import diffusers as _diffusers  # noqa: F401
except ImportError as error:
    raise ImportError("fastdiff.diffusers needs diffusers: pip install fastdiff[diffusers]") from error

from fastdiff.diffusers.classes import convert, revert
from fastdiff.diffusers.coverage import Coverage, coverage
from fastdiff.diffusers.fused import CLASSES

__all__ = ["CLASSES", "Coverage", "convert", "coverage", "revert"]


def __getattr__(name: str) -> Any:
    if name in CLASSES:
        return CLASSES[name]
    raise AttributeError(f"module 'fastdiff.diffusers' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *CLASSES])
