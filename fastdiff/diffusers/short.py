"""The short way through a loop: a step that follows the one before, as nearly all do, in a few microseconds.

After a loop's first step the next one is known: the row, the timestep's address, the sample, which is the one that was
returned. Where all that is so, the kernel is called past PyTorch's dispatcher; else `follow` takes nothing, and
Fused's own way does what is right.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from fastdiff import backend, ops
from fastdiff.diffusers import draws
from fastdiff.diffusers.plans import TracedPlan
from fastdiff.diffusers.results import result
from fastdiff.diffusers.runs import Images, Run
from fastdiff.ops import _checks
from fastdiff.ops._remembered import ordinary
from fastdiff.ops.stepper import MovingStepper, moving_stepper

SIMPLE = (bool, int, float, str, type(None))
_steppers: WeakKeyDictionary[TracedPlan, dict[Any, MovingStepper | None]] = WeakKeyDictionary()


@dataclass(frozen=True, eq=False, slots=True)
class Way:
    """What stays the same over the steps of one run.

    options: step()'s arguments but for generator and return_dict; first, stride: addresses of the timesteps;
    output: dtype of the model's outputs; kind: of results and draws; counted: whether _step_index must fit.
    """

    take: MovingStepper
    options: Mapping[str, Any]
    return_dict: bool
    first: int
    stride: int
    output: torch.dtype
    kind: draws.Dtypes
    counted: bool

    def __reduce__(self) -> Any:
        return _found_anew, ()


def _found_anew() -> None:
    """A copied or pickled run finds its way again."""


def prepare(scheduler: Any, run: Run, output: Tensor, arguments: Mapping[str, Any]) -> None:
    """Finds the way for the steps that follow one that was taken."""
    run.way = False
    x, returned, times = run.returned if run.state is None else run.state, run.returned, scheduler.timesteps
    options = {name: value for name, value in arguments.items() if name not in ("generator", "return_dict")}
    if x is None or returned is None or run.place is None or type(times) is not Tensor or not times.dim():
        return
    if torch.is_inference_mode_enabled() or returned.is_inference():
        return
    if not all(isinstance(value, SIMPLE) for value in options.values()):
        return
    if type(output) is not Tensor or not x.is_cpu or x.requires_grad or run.values:
        return
    take = _stepper(run, x, returned)
    if take is None:
        return
    run.way = Way(
        take=take,
        options=options,
        return_dict=scheduler.parameters["return_dict"].default,
        first=times.data_ptr(),
        stride=times.stride(0) * times.element_size(),
        output=output.dtype,
        kind=draws.dtypes(scheduler, run.plan, returned.dtype, output.dtype),
        counted=scheduler._counts == "_step_index",
    )


def _stepper(run: Run, x: Tensor, returned: Tensor) -> MovingStepper | None:
    """The kernel for samples like these; found once for a plan."""
    known = _steppers.setdefault(run.plan, {})
    key = (x.shape, x.stride(), x.dtype, returned.dtype)
    if key not in known:
        table, _ = run.table(x.device, True)
        rounded = None if returned is x else returned
        known[key] = moving_stepper(x, table, history=run.ring, input=rounded)
    return known[key]


def follow(
    scheduler: Any, output: Tensor, timestep: Any, sample: Tensor, arguments: Mapping[str, Any]
) -> Any:
    """step()'s result, or None where the short way does not lead: then nothing was done."""
    own = scheduler.__dict__.get("_of_thread")
    seen = {} if own is None else own.__dict__.get("loop", {})
    run = seen.get("_run")
    if (
        run is None
        or not run.way
        or seen.get("_plain") is not None
        or not _expected(seen, run, timestep, sample)
    ):
        return None
    way, row = run.way, run.row
    generator, return_dict, others = None, way.return_dict, 0
    for name, value in arguments.items():
        if name == "return_dict":
            return_dict = value
        elif name == "generator" and name in scheduler.parameters:
            generator = value
        elif name in way.options and type(value) in SIMPLE and value == way.options[name]:
            others += 1
        else:
            return None
    if others != len(way.options) or type(output) is not Tensor or output.dtype != way.output:
        return None
    if row >= len(run.plan.lines) or not backend.is_direct("solver_step") or not _usual():
        return None
    line = run.plan.lines[row]
    if line.dynamic or (line.weight and not line.linked) or (line.draws and run.plan.linked):
        return None
    noise = None
    if line.draws:
        if output.requires_grad or output.shape != sample.shape:
            return None
        noise = draws.noise(scheduler, line, sample, generator, way.kind.draw)
    returned = _taken(run, row, output, sample, noise, way)
    if returned is None:
        return None
    if way.counted:
        seen["_step_index"] = scheduler.__dict__["_step_index"] = run.next
    elif scheduler._counts:
        setattr(scheduler, scheduler._counts, run.row)
    images = Images(output, sample, noise, None)
    return result(scheduler, line, returned, images, None, way.kind.extra, return_dict)


def _usual() -> bool:
    """Whether a tensor made now is one that is computed with at once, and whose changes are counted."""
    return ordinary() and not _checks.forwards() and not torch.is_inference_mode_enabled()


def _expected(seen: Mapping[str, Any], run: Run, timestep: Any, sample: Tensor) -> bool:
    """Whether this is the next step, from where the last one led."""
    way = run.way
    return (
        sample is run.returned
        and type(timestep) is Tensor
        and run.place is not None
        and timestep.data_ptr() == way.first + run.place * way.stride
        and seen.get("_memo") is run.memory
        and (not way.counted or seen.get("_step_index") == run.next)
        and sample._version == run.version
        and run.memory is not None
        and not run.memory.outdated()
    )


def _taken(
    run: Run, row: int, output: Tensor, sample: Tensor, noise: Tensor | None, way: Way
) -> Tensor | None:
    """The next sample; None where the kernel must be called the long way."""
    x = sample if run.state is None or sample.dtype == torch.float32 else run.state
    # nobody else has the state behind a sample of lower precision
    following = x if x is not sample and not (run.plan.reach or run.plan.linked) else torch.empty_like(x)
    rounded = None if run.state is None else torch.empty_like(x, dtype=way.kind.result)
    ring = run.ring
    if way.take(row, output, None, noise, None, None, x, following, rounded, ring) is False:
        if not run.plan.lines[row].draws:
            return None
        table, numbers = run.table(x.device, True)
        source = None if following is x else x
        ops.solver_step_(
            following, output, table, numbers[row], history=ring, noise=noise, source=source, input=rounded
        )
    return run.moved(x, following, rounded, noise)
