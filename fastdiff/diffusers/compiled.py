"""Steps inside torch.compile: one op of the graph, which takes the step that an uncompiled call would take.

The graph sees no counter and no branch on where a loop stands, so that it is compiled once for all steps. The op is
said to write to the scheduler's clock: compilers then neither drop a step nor take two of them for one.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

from fastdiff.diffusers import draws
from fastdiff.diffusers.plans import TracedPlan
from fastdiff.diffusers.results import output_class
from fastdiff.ops._register import LIBRARY

_numbers = itertools.count(1)
_schedulers: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()


class Place(NamedTuple):
    """What a graph knows of a scheduler: its number, its clock, the class of its results and their names, and how many
    of them a tuple has."""

    number: int
    clock: Tensor
    kind: type
    fields: list[str]
    results: int


def place(scheduler: Any) -> Place:
    """A scheduler's place in graphs to come."""
    number = next(_numbers)
    _schedulers[number] = scheduler
    with torch.inference_mode(False):
        clock = torch.zeros((), device="cpu")
    kind, fields = output_class(scheduler)
    plan = scheduler._plan(0, scheduler.usual)
    results = 1 + len(plan.lines[0].extras) if isinstance(plan, TracedPlan) else len(fields)
    return Place(number, clock, kind, fields, min(results, 2))


def step(
    scheduler: Any, model_output: Tensor, timestep: Any, sample: Tensor, arguments: Mapping[str, Any]
) -> Any:
    """scheduler.step(...) as an op of the graph being compiled."""
    scheduler._placed()
    here: Place = scheduler._graph
    return_dict = arguments.get("return_dict", scheduler.parameters["return_dict"].default)
    if arguments.get("generator") is not None:
        raise TypeError(
            "torch.compile takes no generator: seed the default one, or leave the step uncompiled"
        )
    images = [value for value in arguments.values() if isinstance(value, Tensor)]
    names = [name for name, value in arguments.items() if isinstance(value, Tensor)]
    settings = [
        f"{name}={value!r}"
        for name, value in arguments.items()
        if name not in names and name not in ("generator", "return_dict")
    ]
    time = timestep if isinstance(timestep, Tensor) else torch.full((), timestep)
    made = torch.ops.fastdiff.scheduler_step(
        here.clock, model_output, time, sample, images, names, settings, here.number, here.results
    )
    made = made[: here.results]
    if not return_dict:
        return made
    return here.kind(**dict(zip(here.fields, made)))


def scale_model_input(scheduler: Any, sample: Tensor, timestep: Any) -> Tensor:
    """scheduler.scale_model_input(...) as an op of the graph being compiled."""
    scheduler._placed()
    here: Place = scheduler._graph
    time = timestep if isinstance(timestep, Tensor) else torch.full((), timestep)
    scaled: Tensor = torch.ops.fastdiff.scheduler_scale(here.clock, sample, time, here.number)
    return scaled


def _step(
    clock: Tensor, output: Tensor, time: Tensor, sample: Tensor, images: Sequence[Tensor], names: Sequence[str],
    settings: Sequence[str], number: int, results: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    arguments: dict[str, Any] = dict(zip(names, images))
    arguments |= {name: _read(value) for name, value in (setting.split("=", 1) for setting in settings)}
    scheduler = _schedulers[number]
    made = type(scheduler).step(  # its class's: its own may be the compiled one that calls this
        scheduler, model_output=output, timestep=time, sample=sample, **arguments, return_dict=False
    )
    images = [image.clone() if image is sample or image is output else image for image in made[:results]]
    first, second = [*images, sample.new_empty(0)][:2]
    return first, second


def _read(value: str) -> Any:
    words: dict[str, Any] = {"None": None, "True": True, "False": False}
    if value in words:
        return words[value]
    return float(value) if any(letter in value for letter in ".einf") else int(value)


def _fake_step(
    clock: Tensor, output: Tensor, time: Tensor, sample: Tensor, images: Sequence[Tensor], names: Sequence[str],
    settings: Sequence[str], number: int, results: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    dtype = sample.dtype
    if output.dtype != dtype:
        scheduler = _schedulers[number]
        with unset_fake_temporarily():
            plan = scheduler._plan(0, scheduler.usual)
            if isinstance(plan, TracedPlan):
                dtype = draws.dtypes(scheduler, plan, sample.dtype, output.dtype).result
    first = torch.empty_like(sample, dtype=dtype)
    return first, torch.empty_like(first) if results > 1 else sample.new_empty(0)


def _scale(clock: Tensor, sample: Tensor, time: Tensor, number: int) -> Tensor:
    scheduler = _schedulers[number]
    scaled = type(scheduler).scale_model_input(scheduler, sample, time)
    return scaled.clone() if scaled is sample else scaled


def _fake_scale(clock: Tensor, sample: Tensor, time: Tensor, number: int) -> Tensor:
    return torch.empty_like(sample)


def _define(schema: str, implementation: Callable[..., Any], fake: Callable[..., Any]) -> None:
    # Draws, counters and new schedules happen on the host: a CUDA graph around the op would not replay them.
    unsafe = getattr(torch.Tag, "cudagraph_unsafe", None)
    LIBRARY.define(schema, tags=() if unsafe is None else (unsafe,))
    name = schema.split("(", 1)[0]
    LIBRARY.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fastdiff::{name}", fake, lib=LIBRARY)


_define(
    "scheduler_step(Tensor(a!) clock, Tensor output, Tensor time, Tensor sample, Tensor[] images, str[] names, "
    "str[] settings, int number, int results) -> (Tensor, Tensor)",
    _step,
    _fake_step,
)
_define(
    "scheduler_scale(Tensor(a!) clock, Tensor sample, Tensor time, int number) -> Tensor", _scale, _fake_scale
)
