"""Calls: what step() was given, and how it is taken where the short way does not lead straight on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastdiff.diffusers import handover, short
from fastdiff.lazy_guidance import Guided
from fastdiff.noted import Weights

Blend = Callable[[Tensor | None], dict[str, Tensor | None]]


class Call(NamedTuple):
    """What a step is taken on. arguments: step()'s further ones.

    blend: the noise of the step -> what its kernel blends in, solver_step_'s mask, known and known_noise.
    predicted: what the model predicted of each pixel's variance.
    """

    output: Tensor
    timestep: Any
    sample: Tensor
    arguments: Mapping[str, Any]
    blend: Blend | None = None
    predicted: Tensor | None = None


def take(scheduler: Any, call: Call, image: Tensor | None, weights: Weights = None) -> Any:
    """step()'s result. image: the output as the short way reads it, None for one it cannot; weights: of the branches of
    guidance in it."""
    made = None if image is None else _rejoined(scheduler, call, image, weights)
    if made is not None:
        return made
    made = scheduler._fused(call)
    if made is None:
        tensors = (call.output, call.timestep, call.sample)
        return handover.call(scheduler, "step", call.timestep, *tensors, **call.arguments)
    run = scheduler._run
    if run is None or image is None:
        return made
    if weights is not None and weights not in run.ways:
        run.ways[weights] = short.find(scheduler, run, image, call.arguments, weights)
    elif weights is None and run.way is None:
        short.prepare(scheduler, run, image, call.arguments)
    return made


def _rejoined(scheduler: Any, call: Call, image: Tensor, weights: Weights) -> Any:
    """The short way's result for an output that lies otherwise in memory, such as some channels of one, and for another
    sample than the step before returned, where nothing of that is read; None where it does not lead there either."""
    run, sample = scheduler._run or scheduler._fresh, call.sample
    if run is None or not run.way or type(sample) is not Tensor or sample.is_inference():
        return None
    alike = _like(image, sample) if weights is None else image
    before = run.returned, run.version
    other = before[0] is not sample or before[1] != sample._version
    free = run.plan.memoryless and run.state is None and sample.dtype == torch.float32
    if (other and not run.fresh and not free) or (alike is image and (run.fresh or not other)):
        return None
    if not run.fresh:
        run.returned, run.version = sample, sample._version
    noted = call.output if type(call.output) is Guided else None
    made = short.follow(scheduler, alike, call.timestep, sample, call.arguments, noted, weights)
    if made is None and not run.fresh:
        run.returned, run.version = before
    return made


def _like(image: Tensor, sample: Tensor) -> Tensor:
    """An image laid out as the sample is: itself, a view or a copy."""
    if type(image) is not Tensor or image.requires_grad or image.shape != sample.shape:
        return image
    if image.stride() == sample.stride():
        return image
    if sample.is_contiguous():
        return image.reshape(-1).view(image.shape)  # of one image's first channels: a view
    return torch.empty_like(sample, dtype=image.dtype).copy_(image)
