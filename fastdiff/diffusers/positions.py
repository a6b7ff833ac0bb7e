"""Where in its schedule a scheduler stands, found without reading a timestep back from its device.

A pipeline passes step() the elements of scheduler.timesteps: their address tells their place. So a new loop, an
interrupted one and steps out of order are told apart, which a counter alone does not do.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor


def place_of(timestep: Any, timesteps: Tensor) -> int | None:
    """The index of `timestep` in `timesteps` if it is an element of that very tensor."""
    if not isinstance(timestep, Tensor) or timestep.dtype != timesteps.dtype:
        return None
    if timestep.device != timesteps.device or timestep.is_meta:
        return None
    size = timesteps.element_size() * (timesteps.stride(0) if timesteps.dim() else 1)
    offset = timestep.data_ptr() - timesteps.data_ptr()
    if not size or offset % size or not 0 <= offset // size < timesteps.numel():
        return None
    alone = timestep.dim() == 0 or not any(timestep.stride()) or timestep.numel() == 1
    return offset // size if alone else None


def value_of(timestep: Any, place: int | None, times: list[float]) -> float | None:
    """The timestep as a number; a device tensor that is no element of the timesteps must be read back."""
    if place is not None:
        return times[place]
    if isinstance(timestep, Tensor):
        return timestep.item() if timestep.numel() == 1 else None
    return float(timestep)


def first_index(scheduler: Any, timestep: Any, place: int | None, times: list[float]) -> int:
    """The step at which a loop begins that begins with `timestep`, as diffusers finds it."""
    begin = getattr(scheduler, "begin_index", None)
    if begin is not None:
        return int(begin)
    value = value_of(timestep, place, times)
    found = [i for i, time in enumerate(times) if time == value]
    if found:
        # The second of equal ones, as diffusers does: no level is skipped where a loop starts part-way.
        return found[min(1, len(found) - 1)]
    scheduler._init_step_index(timestep)
    return int(scheduler._step_index)


@functools.cache
def _names(method: Any) -> tuple[str, ...]:
    """Of a method's parameters but self."""
    return tuple(inspect.signature(method).parameters)[1:]


def check_steps(base: Any, config: Mapping[str, Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """ValueError for a number of steps that diffusers takes without a word, and for which there is no schedule."""
    steps = kwargs.get("num_inference_steps")
    if args and steps is None:
        steps = dict(zip(_names(base.set_timesteps), args)).get("num_inference_steps")
    if isinstance(steps, bool) or not isinstance(steps, int):
        return  # custom timesteps, or for diffusers to refuse
    if steps < 1:
        raise ValueError(f"num_inference_steps must be at least 1, got {steps}")
    most: Any = config.get("num_train_timesteps")
    discrete = "beta_schedule" in config and isinstance(most, int)
    if discrete and steps > most:
        raise ValueError(
            f"num_inference_steps is {steps}, but the model was trained with {most}: ask for at most {most} steps"
        )
