"""The short way through a loop: a step that follows the one before, as nearly all do, in a few microseconds.

After a loop's first step the next one is known: the row, the timestep's address, the sample, which is the one that was
returned. Where all that is so (fastdiff._host looks: csrc/host/follow.h), the kernel is called past PyTorch's
dispatcher; else `follow` takes nothing, and Fused's own way does what is right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from fastdiff.diffusers import draws
from fastdiff.diffusers.plans import TracedPlan
from fastdiff.diffusers.results import Given, LazyTuple, result
from fastdiff.diffusers.runs import KEPT, Images, Run, usual
from fastdiff.diffusers.solving import Line
from fastdiff.lazy_guidance import Guided, Weights
from fastdiff.ops import _drawing
from fastdiff.ops.stepper import follower

SIMPLE = (bool, int, float, str, type(None))
PLAIN, DRAWS, LONG, ASKS = b"\0", b"\1", b"\2", b"\3"
"""What fastdiff._host knows of a row: it draws nothing; it draws noise, of which only the step has need; it is not for
the short way; it asks `draws` for its noise."""


@dataclass(frozen=True, eq=False, slots=True)
class Way:
    """What stays the same over runs of a plan on tensors of one kind.

    follow: fastdiff._host's; kind: dtypes of results and draws; counted: whether _step_index is to be set;
    options: what runs note of step()'s arguments.
    """

    follow: Callable[..., Any]
    kind: draws.Dtypes
    counted: bool
    options: dict[str, Any]

    def __reduce__(self) -> Any:
        return _found_anew, ()


def _found_anew() -> None:
    """A copied or pickled run finds its way again."""


_ways: WeakKeyDictionary[TracedPlan, dict[Any, Way | None]] = WeakKeyDictionary()
_latest: WeakKeyDictionary[TracedPlan, Way] = WeakKeyDictionary()


def prepare(scheduler: Any, run: Run, output: Tensor, arguments: Mapping[str, Any]) -> None:
    """Finds the way for the steps that follow one that was taken."""
    run.way = find(scheduler, run, output, arguments) or False
    if run.way:
        _latest[run.plan] = run.way


def find(
    scheduler: Any, run: Run, output: Tensor, arguments: Mapping[str, Any], weights: Weights = None
) -> Way | None:
    """The way from where a run stands, on outputs like this one. weights: of the two branches in it."""
    x, returned = run.returned if run.state is None else run.state, run.returned
    if x is None or returned is None or run.place is None or run.values:
        return None
    if not usual():  # on another backend, say, which is not to be remembered of the plan
        return None
    if not x.is_cpu or x.requires_grad or returned.is_inference() or type(output) is not Tensor:
        return None
    options = tuple(item for item in arguments.items() if item[0] not in ("generator", "return_dict"))
    if not all(type(value) in SIMPLE for _, value in options):
        return None
    known = _ways.setdefault(run.plan, {})
    key = (type(scheduler), options, x.shape, x.stride(), x.dtype, returned.dtype, output.dtype, weights)
    if key not in known:
        if len(known) >= KEPT:
            known.clear()
        known[key] = _way(scheduler, run, x, returned.dtype, output.dtype, dict(options), weights)
    return known[key] if _stand(run, scheduler.timesteps) else None


def _stand(run: Run, times: Tensor) -> bool:
    """Notes where the timesteps lie; False for what is no plain list of them."""
    if type(times) is not Tensor or times.dim() != 1:
        return False
    run.first, run.stride = times.data_ptr(), times.stride(0) * times.element_size()
    return True


def _way(
    scheduler: Any, run: Run, x: Tensor, result: torch.dtype, output: torch.dtype, options: dict[str, Any],
    weights: Weights,
) -> Way | None:  # fmt: skip
    plan = run.plan
    take, kind = run.direct(x, result, weights), draws.dtypes(scheduler, plan, result, output)
    if take is None or kind.result != result:
        return None
    counted = scheduler._counts == "_step_index"
    dense = x.is_contiguous() and x.numel() >= _drawing.FEWEST  # noise is drawn in the order of pixels
    into = kind.draw if dense and "noise_sampler" not in vars(scheduler) else None
    follow = follower(
        {
            "take": take,
            "output_dtype": output,
            "result_dtype": result if plan.linked or result != x.dtype else None,
            "options": options,
            "return_dict": scheduler.parameters["return_dict"].default,
            "usual": usual,
            "empty_like": torch.empty_like,
            "into": _drawing.into,
            "lazy": LazyTuple,
            "lines": plan.lines,
            "rows": b"".join(_row(line, plan, into) for line in plan.lines),
            "seen": bytes(plan.seen),
            "backs": bytes(0 if line.linked else max(line.anchor, 0) for line in plan.lines),
            "begin": plan.begin,
            "draw_dtype": kind.draw,
            "draw_type": _drawing.TYPES.get(kind.draw, -1),
            "extra_dtype": kind.extra,
            "reach": plan.reach,
            "counts": scheduler._counts,
            "counted": counted,
            "generator": "generator" in scheduler.parameters,
            "ring": plan.ring > 0,
            "wide": result != x.dtype,
            "reuses": not (plan.reach or plan.linked),
        }
        | _of_kind(kind)
    )
    return None if follow is None else Way(follow, kind, counted, dict(run.options or {}))


def _of_kind(kind: draws.Dtypes) -> dict[str, Callable[..., Any]]:
    """What fastdiff._host calls at steps that are not of the simplest."""

    def noise(scheduler: Any, line: Line, sample: Tensor, generator: Any) -> Tensor | None:
        return draws.noise(scheduler, line, sample, generator, kind.draw)

    def rest(run: Run, given: Any, sample: Tensor, noise: Tensor | None) -> Tensor:
        return run.take(Images(given, sample, noise, None), None, kind.result)[0]

    def finish(scheduler: Any, line: Line, returned: Tensor, images: Given, return_dict: bool) -> Any:
        return result(scheduler, line, returned, images, None, kind.extra, return_dict)

    return {"noise": noise, "rest": rest, "finish": finish}


def _row(line: Line, plan: TracedPlan, into: torch.dtype | None) -> bytes:
    """into: of noise that may be drawn for the step alone."""
    apart = line.dynamic or line.anchor < 0 or line.deviation is not None
    if apart or (line.draws and plan.linked):
        return LONG
    if not line.draws:
        return PLAIN
    shown = any(extra is not None and extra.noise for extra in line.extras)
    single = line.draws in ((None,), (into,)) and line.drawn == 0 and line.span is None
    return DRAWS if single and into in _drawing.TYPES and not shown else ASKS


def begin(scheduler: Any, plan: TracedPlan) -> Run | None:
    """A run whose first step may go the short way too, where another run of the plan has found it."""
    way, memory = _latest.get(plan), scheduler._memo
    if way is None or way.kind.result != torch.float32 or scheduler._counts == "counter":
        return None
    if memory.times[:1] == memory.times[1:2]:
        return None  # of two equal timesteps, a loop may begin with either
    run = Run(plan, 0, place=0, options=dict(way.options), memory=memory, way=way, fresh=True)
    return run if _stand(run, scheduler.timesteps) else None


def follow(
    scheduler: Any,
    output: Tensor,
    timestep: Any,
    sample: Tensor,
    arguments: Mapping[str, Any],
    noted: Guided | None = None,
    weights: Weights = None,
) -> Any:
    """step()'s result, or None where the short way does not lead: then nothing was done.

    noted: what step() was given, where output holds both branches of guidance; weights: theirs."""
    own = scheduler.__dict__.get("_of_thread")
    seen = {} if own is None else own.__dict__.get("loop", {})
    run: Any = seen.get("_run") or seen.get("_fresh")
    way = None if run is None else run.way if noted is None else run.ways.get(weights)
    if not way:
        return None
    given = output if noted is None else noted
    return way.follow(scheduler, seen, run, output, timestep, sample, arguments, given)


def scaled(scheduler: Any, sample: Tensor, timestep: Any) -> Tensor | None:
    """The model's input at the step expected, or None where the long way must find it: then nothing was done."""
    own = scheduler.__dict__.get("_of_thread")
    seen = {} if own is None else own.__dict__.get("loop", {})
    run: Any = seen.get("_run")
    if run is None or not run.way or seen.get("_plain") is not None or type(timestep) is not Tensor:
        return None
    if run.place is None or timestep.data_ptr() != run.first + run.place * run.stride:
        return None
    if seen.get("_memo") is not run.memory or run.memory is None or run.memory.outdated():
        return None
    if run.row >= len(run.plan.lines) or (run.way.counted and seen.get("_step_index") != run.next):
        return None
    if "is_scale_input_called" in scheduler.__dict__:
        scheduler.__dict__["is_scale_input_called"] = True
    scale = run.plan.scales[run.row]
    return sample if scale == 1.0 else sample * scale
