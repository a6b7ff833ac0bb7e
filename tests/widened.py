"""diffusers in float64: its modules see a torch and a numpy whose float32 is float64, so rounding hides nothing."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

BETAS = (
    {"beta_schedule": "linear"},
    {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    {"beta_schedule": "squaredcos_cap_v2"},
)


class Widened:
    """torch or numpy as a scheduler's module sees it: what it asks for in float32 it gets in float64."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, "float64" if name == "float32" else name)


@contextmanager
def in_float64(cls: type) -> Iterator[None]:
    """The module of a scheduler class computes in float64."""
    module = importlib.import_module(cls.__module__)
    with patch.object(module, "torch", Widened(torch)), patch.object(module, "np", Widened(np), create=True):
        yield
