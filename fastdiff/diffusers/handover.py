"""Handing over: a loop that ran fused goes on in diffusers' own step, with the history that diffusers would have.

diffusers' step runs on a plain scheduler, one for each thread, so that threads do not mix what it remembers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fastdiff.diffusers.history import remember
from fastdiff.diffusers.plans import TracedPlan
from fastdiff.diffusers.positions import place_of
from fastdiff.lazy_guidance import expect, made_of

STANDING = ("_step_index", "_begin_index", "counter", "is_scale_input_called")


@dataclass(eq=False)
class Own:
    """diffusers' own scheduler, on which the unfused steps of a thread run. remembers: later steps read what it holds;
    place: where in scheduler.timesteps its next step is expected, of a loop that began fused."""

    scheduler: Any
    remembers: bool
    place: int | None


def own(scheduler: Any) -> Own:
    """This thread's plain scheduler; made where the loop stands, its run then handed over."""
    if scheduler._plain is None:
        found, run = scheduler._plan(0, scheduler.usual), scheduler._run
        remembers = not (isinstance(found, TracedPlan) and found.memoryless)
        made = Own(plain(scheduler), remembers, run.place if under_way(run) else None)
        scheduler._run, scheduler._plain = None, made
    held: Own = scheduler._plain
    return held


def under_way(run: Any) -> bool:
    """Whether a fused loop stands between its first step and its last."""
    return run is not None and run.memory is not None and 0 < run.row < len(run.plan.lines)


def goes_on(scheduler: Any, timestep: Any) -> bool:
    """Whether the loop was handed over and this step is its next."""
    held = scheduler._plain
    if held is None or not held.remembers:
        return False
    place = place_of(timestep, scheduler.timesteps)
    if held.place is None or place is None or place == held.place:
        return True
    scheduler._plain = None  # a new loop
    if scheduler._counts == "_step_index":
        scheduler._step_index = None
    return False


def call(scheduler: Any, method: str, timestep: Any, *args: Any, **kwargs: Any) -> Any:
    """diffusers' own step or scale_model_input."""
    function = getattr(scheduler.base, method)
    if method == "step":
        expect(False)  # it computes with images, not with what is noted down of them
        args, kwargs = tuple(map(made_of, args)), {name: made_of(value) for name, value in kwargs.items()}
    if scheduler._counts is None:  # its steps know nothing of each other
        return function(scheduler, *args, **kwargs)
    if timestep is None and not under_way(scheduler._run) and scheduler._plain is None:
        return function(scheduler, *args, **kwargs)
    run, place = scheduler._run, place_of(timestep, scheduler.timesteps)
    if under_way(run) and None not in (place, run.place) and place != run.place:
        scheduler._run = None  # of an earlier loop
        if scheduler._counts == "_step_index":
            scheduler._step_index = None
    held = own(scheduler)
    result = function(held.scheduler, *args, **kwargs)
    if method == "step" and held.place is not None:
        held.place += 1
    for name in STANDING:
        if name in vars(held.scheduler):
            setattr(scheduler, name, vars(held.scheduler)[name])
    return result


def plain(scheduler: Any) -> Any:
    """diffusers' own scheduler in the state of ours, what it remembers of a loop under way included."""
    if scheduler._plain is not None:
        return scheduler._plain.scheduler
    made, run = scheduler._memory().copy(0), scheduler._run
    for name, value in scheduler.__getstate__().items():
        if name in vars(made) and (isinstance(value, Tensor) or name in STANDING):
            vars(made)[name] = value
    if under_way(run):
        remember(made, scheduler, run)
    return made


class Remembered:
    """An attribute in which diffusers' step keeps images: whoever reads or sets it in a fused loop under way gets the
    real thing, and the loop goes on in diffusers' own step."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def _holder(self, scheduler: Any) -> dict[str, Any]:
        stepped = scheduler._plain is not None or under_way(scheduler._run)
        holder: dict[str, Any] = vars(own(scheduler).scheduler if stepped else scheduler)
        return holder

    def __get__(self, scheduler: Any, owner: type | None = None) -> Any:
        if scheduler is None:
            return self
        holder = self._holder(scheduler)
        if self.name not in holder:
            raise AttributeError(f"{type(scheduler).__name__!r} object has no attribute {self.name!r}")
        return holder[self.name]

    def __set__(self, scheduler: Any, value: Any) -> None:
        self._holder(scheduler)[self.name] = value


REMEMBERED = (
    "model_outputs", "ets", "derivatives", "last_sample", "last_noise", "sample", "prev_derivative", "dt", "cur_sample",
    "cur_model_output", "timestep_list", "lower_order_nums", "this_order",
)  # fmt: skip
