"""fastdiff makes diffusion sampling fast without changing the pictures.

import fastdiff
from fastdiff import schedules

x = fastdiff.sample(model, (4, 3, 64, 64), schedule=schedules.karras(0.03, 14.6), prediction="sample", seed=0)
"""

from fastdiff import backend, nn, ops, plan, samplers, schedules
from fastdiff.events import Cancelled, Event
from fastdiff.guidance import Guidance
from fastdiff.noise import BrownianNoise
from fastdiff.sampling import sample
from fastdiff.thresholding import DynamicThreshold

__version__ = "0.1.0"

__all__ = [
    "BrownianNoise",
    "Cancelled",
    "DynamicThreshold",
    "Event",
    "Guidance",
    "__version__",
    "backend",
    "nn",
    "ops",
    "plan",
    "sample",
    "samplers",
    "schedules",
]
