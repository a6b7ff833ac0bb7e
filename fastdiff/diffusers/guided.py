"""A step on what guidance was noted down as: the two branches are combined where the step reads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fastdiff.diffusers import handover, short
from fastdiff.lazy_guidance import Guided, parts


def step(scheduler: Any, noted: Guided, timestep: Any, sample: Tensor, arguments: Mapping[str, Any]) -> Any:
    """step()'s result for a model output that is not computed yet."""
    output, uncond, weights = parts(noted)
    if weights is None:
        return type(scheduler).step(scheduler, output, timestep, sample, **arguments)
    whole = uncond is None and output.dtype == noted.dtype
    if whole:
        made = short.follow(scheduler, output, timestep, sample, arguments, noted, weights)
        if made is not None:
            return made
    made = scheduler._fused(noted, timestep, sample, arguments)
    if made is None:
        return handover.call(scheduler, "step", timestep, noted, timestep, sample, **arguments)
    run = scheduler._run
    if whole and run is not None and weights not in run.ways:
        run.ways[weights] = short.find(scheduler, run, output, arguments, weights)
    return made
