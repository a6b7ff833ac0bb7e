"""fastdiff makes diffusion sampling fast without changing the pictures.

import fastdiff
from fastdiff import schedules

x = fastdiff.sample(model, (4, 3, 64, 64), schedule=schedules.karras(0.03, 14.6), prediction="sample", seed=0)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

__all__ = [
    "BrownianNoise",
    "Cancelled",
    "CounterNoise",
    "DynamicThreshold",
    "Event",
    "Guidance",
    "Inpaint",
    "__version__",
    "accelerate",
    "backend",
    "diffusers",
    "graphs",
    "kdiffusion",
    "nn",
    "ops",
    "plan",
    "restore",
    "sample",
    "samplers",
    "schedules",
]

if TYPE_CHECKING:
    from fastdiff import backend, diffusers, graphs, kdiffusion, nn, ops, plan, samplers, schedules
    from fastdiff.events import Cancelled, Event
    from fastdiff.guidance import Guidance
    from fastdiff.inpainting import Inpaint
    from fastdiff.noise import BrownianNoise, CounterNoise
    from fastdiff.patching import accelerate, restore
    from fastdiff.sampling import sample
    from fastdiff.thresholding import DynamicThreshold

_HOMES = {
    "BrownianNoise": "noise",
    "Cancelled": "events",
    "CounterNoise": "noise",
    "DynamicThreshold": "thresholding",
    "Event": "events",
    "Guidance": "guidance",
    "Inpaint": "inpainting",
    "accelerate": "patching",
    "restore": "patching",
    "sample": "sampling",
}
_MODULES = ("backend", "diffusers", "graphs", "kdiffusion", "nn", "ops", "plan", "samplers", "schedules")


def __getattr__(name: str) -> object:
    # Loaded when first asked for: torch takes seconds, and `fastdiff env` must answer even where torch is broken.
    if name in _MODULES:
        return import_module(f"fastdiff.{name}")
    if name in _HOMES:
        value = getattr(import_module(f"fastdiff.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'fastdiff' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
