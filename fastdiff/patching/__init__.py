"""accelerate(pipe) and restore(pipe): a diffusers pipeline as it stands, sooner."""

from __future__ import annotations

try:
    import diffusers as _diffusers  # noqa: F401
except ImportError as error:
    raise ImportError("accelerate works on diffusers' pipelines: pip install fastdiff[diffusers]") from error

from fastdiff.patching.pipelines import accelerate, restore
from fastdiff.patching.report import Report

__all__ = ["Report", "accelerate", "restore"]
