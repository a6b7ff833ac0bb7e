"""A step on what guidance was noted down as: the two branches are combined where the step reads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fastdiff.diffusers import calls, short
from fastdiff.lazy_guidance import Guided, parts


def step(scheduler: Any, noted: Guided, timestep: Any, sample: Tensor, arguments: Mapping[str, Any]) -> Any:
    """step()'s result for a model output that is not computed yet."""
    output, uncond, weights = parts(noted)
    if weights is None:
        return type(scheduler).step(scheduler, output, timestep, sample, **arguments)
    whole = uncond is None and output.dtype == noted.dtype
    made = None
    if whole:
        made = short.follow(scheduler, output, timestep, sample, arguments, noted, weights)
    if made is None:
        call = calls.Call(noted, timestep, sample, arguments)
        made = calls.take(scheduler, call, output if whole else None, weights)
    return made
