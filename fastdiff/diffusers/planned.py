"""Planned: what a fused scheduler knows of itself, a loop at a time, and where in which loop a timestep stands."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from fastdiff.diffusers.memory import Memory
from fastdiff.diffusers.per_thread import PerThread, in_loop, join_loop, loops_of, without_threads
from fastdiff.diffusers.plans import Found, TracedPlan, Unfused, find
from fastdiff.diffusers.positions import first_index, place_of, value_of
from fastdiff.diffusers.runs import Run

TRANSIENT = {
    "_step_index",
    "_begin_index",
    "_run",
    "_fresh",
    "_plain",
    "_memo",
    "_known",
    "_of_thread",
    "_loops",
    "_graph",
    "counter",
    "is_scale_input_called",
}
"""Attributes that say where a loop stands, not what its steps do."""
HELD = {"_run", "_fresh", "_plain", "_memo", "_known", "_of_thread", "_loops", "_graph", "_constructing"}
"""Attributes of ours that diffusers' own schedulers lack."""
KEPT = 4
"""States that a scheduler is known in, the newest first."""


class Planned:
    """The part of Fused that finds plans for the scheduler's state, and the run and row that a timestep means."""

    base: ClassVar[Any]
    parameters: ClassVar[Mapping[str, inspect.Parameter]]
    """Those of diffusers' step."""
    annotation: ClassVar[str]
    """Of its result."""
    refuses_integers: ClassVar[bool] = False
    """Whether diffusers' step takes an integer for an index that somebody took for a timestep."""
    _counts: ClassVar[str | None] = None
    """The attribute that counts diffusers' steps; None where each step finds its place by its timestep."""
    images: ClassVar[tuple[str, ...]] = ("variance_noise", "pred_original_sample")
    """Arguments of step() that hold an image."""
    usual: ClassVar[Mapping[str, Any]] = {}
    """Arguments without which step() cannot be called."""

    timesteps = PerThread()
    sigmas = PerThread()
    num_inference_steps = PerThread()
    _step_index = PerThread()
    _begin_index = PerThread()
    _run = PerThread(None)
    _fresh = PerThread(None)
    _memo = PerThread(None)
    _plain = PerThread(None)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name in HELD:
            return
        if name not in TRANSIENT and vars(self).get("_memo") is not None:
            self._memo = None  # what steps do may depend on it
        if self._plain is not None:
            setattr(self._plain.scheduler, name, value)

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: this thread's view, the loop it is in with it."""
        state = without_threads(vars(self))
        for name in ("_memo", "_known", "_fresh", "_graph", "_constructing"):
            state.pop(name, None)
        return state

    def _entered(self, timestep: Any, options: Mapping[str, Any]) -> Run | None:
        """The run, standing at the step that `timestep` means; None if diffusers' own step must take it."""
        place = self._place(timestep)
        run = self._run
        # Outdated too where it is of other timesteps, set without set_timesteps.
        other = place is not None and self._memo is not None and place >= len(self._memo.times)
        if self._memo is not None and (other or self._memo.outdated()):
            self._memo = None
        if run is not None and place is not None and place == run.place and run.memory is self._memo:
            counted = self._counts != "_step_index" or self._step_index == run.next
            if counted and run.options == options and run.row < len(run.plan.lines):
                return run  # the next step of the same loop
        run = (self._by_time if self._counts is None else self._by_count)(run, timestep, place, options)
        if run is None or run.row >= len(run.plan.lines):
            return None
        run.place, run.options, run.memory = place, dict(options), self._memo
        return run

    def _place(self, timestep: Any) -> int | None:
        """The index of `timestep` in the timesteps; the thread joins the loop that these belong to."""
        place = place_of(timestep, self.timesteps)
        if isinstance(timestep, Tensor) and (place is None or not in_loop(self)):
            for loop in loops_of(self):
                here = place_of(timestep, loop["timesteps"]) if loop.get("timesteps") is not None else None
                if here is not None:
                    join_loop(self, loop)
                    return here
        return place

    def _by_count(
        self, run: Run | None, timestep: Any, place: int | None, options: Mapping[str, Any]
    ) -> Run | None:
        """The run of a scheduler that counts its steps."""
        begin = self._begin(run, timestep, place)
        at, goes_on = begin or 0, run is not None and begin is None
        if run is not None and goes_on:
            found = self._plan(run.plan.begin, options, run.plan.first)
        else:
            found = self._plan(at, options, self._first(at, timestep, place))
        if isinstance(found, Unfused):
            return None
        if run is None or not goes_on:
            run = self._run = self._started(found, at)
        if run.plan is not found:  # for other options
            run.plan, run.way = found, None
        return run

    def _started(self, plan: TracedPlan, at: int) -> Run:
        """A run from step `at`: the one that set_timesteps made, if that fits."""
        fresh: Run | None = self._fresh if at == 0 else None
        return fresh if fresh is not None and fresh.fresh and fresh.plan is plan else Run(plan, at)

    def _begin(self, run: Run | None, timestep: Any, place: int | None) -> int | None:
        """Where a new loop begins, or None if `timestep` carries on with the old one."""
        times = self._times()
        index = getattr(self, self._counts or "", None)
        if run is not None and run.plan.first + run.row < len(times):
            counted = self._counts != "_step_index" or index == run.next
            along = place is None or run.place is None or place == run.place
            if counted and along:
                return None
            if along and index is not None:
                return int(index)  # moved by hand
        if self._counts != "_step_index":
            value = value_of(timestep, place, times)
            return place if place is not None else times.index(value) if value in times else 0
        if run is None and index is not None:
            return int(index)
        self._step_index = None
        begin = first_index(self, timestep, place, times)
        if run is not None and place is None and value_of(timestep, place, times) != times[begin]:
            raise ValueError(
                f"all {len(times)} steps are done and timestep {timestep} begins no new loop: call set_timesteps"
            )
        return begin

    def _first(self, begin: int, timestep: Any, place: int | None) -> int:
        """The place in the timesteps of a loop's first step, `begin`."""
        if place is not None or self._counts != "_step_index":
            return begin if place is None else place
        times = self._times()
        if begin < len(times) and value_of(timestep, place, times) == times[begin]:
            return begin
        value = value_of(timestep, place, times)
        return times.index(value) if value in times else begin

    def _by_time(
        self, run: Run | None, timestep: Any, place: int | None, options: Mapping[str, Any]
    ) -> Run | None:
        """The run of a scheduler whose steps stand alone: any timestep, in any order."""
        row, value = place, None
        if row is None:
            if isinstance(timestep, Tensor) and timestep.numel() != 1:
                return None
            value = value_of(timestep, place, [])
            times = self._times()
            row = times.index(value) if value in times else None
        if (
            row is not None and "prev_timestep" in options
        ):  # UnCLIP's, another at each step: no plan of a loop
            timestep, row = (value if place is None else self._times()[place]), None
            value = timestep
        found = self._plan(0, options) if row is not None else self._plan_of(timestep, value, options)
        if isinstance(found, Unfused) or not found.memoryless:
            return None
        if run is None or run.plan is not found:
            run = self._run = Run(found, 0)
        run.next = row or 0
        return run

    def _times(self) -> list[float]:
        return self._memory().times

    def _memory(self) -> Memory:
        """What is found once for the state of this scheduler, as this thread sees it."""
        if self._memo is None:
            self._memo = self._snapshot()
        memory: Memory = self._memo
        return memory

    def _snapshot(self) -> Memory:
        state, known = self.__getstate__(), vars(self).get("_known", ())
        for each in known:
            again = each.again(state)
            if again is not None:
                return again
        made = Memory.of(state, self.base)
        vars(self)["_known"] = (made, *known[: KEPT - 1])
        return made

    def _plan(self, begin: int, options: Mapping[str, Any], first: int | None = None) -> Found:
        """The plan from step `begin`, whose timestep stands at place `first`, or there too."""
        memory = self._memory()
        first = begin if first is None else first
        key = (begin, first, *options.items())
        if key not in memory.plans:
            whole = memory.plans.get((0, 0, *options.items()))
            if isinstance(whole, TracedPlan) and whole.memoryless and first == begin:
                return whole
            times = self._arguments(memory.plain.timesteps)[first:]
            memory.plans[key] = find(memory, times, begin, first, options, alone=self._counts is None)
        return memory.plans[key]

    def _arguments(self, times: Tensor) -> list[Any]:
        """What step() gets as `timestep` in a loop over the timesteps."""
        return list(times)

    def _plan_of(self, timestep: Any, value: float | None, options: Mapping[str, Any]) -> Found:
        """The plan of a single step."""
        memory = self._memory()
        key = ("alone", value, *options.items())
        if key not in memory.plans:
            time = timestep.cpu() if isinstance(timestep, Tensor) else timestep
            memory.plans[key] = find(memory, [time], 0, 0, options, alone=True)
        return memory.plans[key]
