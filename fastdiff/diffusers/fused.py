"""Fused: a diffusers scheduler whose step() is one kernel, driven by the plan that its own step() gave on symbols."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from fastdiff import ops
from fastdiff.diffusers import draws, plans
from fastdiff.diffusers.per_thread import PerThread
from fastdiff.diffusers.plans import Found, TracedPlan, Unfused
from fastdiff.diffusers.positions import first_index, place_of, value_of
from fastdiff.diffusers.results import result
from fastdiff.diffusers.runs import Run


class Fused:
    """Mixed in before a diffusers scheduler: the same class to its users, the same results, one kernel a step.

    What a thread sets, it alone sees: threads may share a scheduler. Where a configuration's step is more than weights
    (`fallback` says what), diffusers' own step runs.
    """

    base: ClassVar[type]
    parameters: ClassVar[Mapping[str, inspect.Parameter]]
    counter: ClassVar[str | None] = None
    """The attribute that counts diffusers' steps; None where each step finds its place by its timestep."""
    images: ClassVar[tuple[str, ...]] = ("variance_noise",)
    """Arguments of step() that hold an image."""

    timesteps = PerThread()
    sigmas = PerThread()
    num_inference_steps = PerThread()
    _step_index = PerThread()
    _begin_index = PerThread()
    _run = PerThread()
    _memo = PerThread()

    @property
    def fallback(self) -> str | None:
        """None, or why this configuration runs diffusers' own step."""
        found = self._plan(0, {}, ())
        return found.reason if isinstance(found, Unfused) else None

    def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
        """diffusers' set_timesteps, and the plan of the loop that follows."""
        super().set_timesteps(*args, **kwargs)  # type: ignore[misc]
        self._run, self._memo = None, {}
        self._plan(0, {}, ())

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        """diffusers' step, fused."""
        options, generator, return_dict = self._options(args, kwargs)
        given = {name: options.pop(name) for name in self.images if name in options}
        run = None
        if model_output.shape == sample.shape and not (given and generator is not None):
            run = self._entered(timestep, options, tuple(given))
        if run is None:
            return self.base.step(self, model_output, timestep, sample, *args, **kwargs)  # type: ignore[attr-defined]
        line = run.plan.lines[run.next - run.plan.begin]
        kind = draws.dtypes(self, run.plan, sample.dtype, model_output.dtype)
        noise = next(iter(given.values()), None)
        if line.draws:
            noise = draws.noise(self, line, sample, generator, kind.draw)
        prev_sample, bound = run.take(model_output, sample, noise, self._bound, kind.result)
        if self.counter:
            setattr(self, self.counter, run.next if self.counter == "_step_index" else run.next - run.plan.begin)
        return result(self, line, prev_sample, (sample, model_output, noise), bound, return_dict)

    def scale_model_input(self, sample: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """diffusers' scale_model_input, without reading the timestep back from its device."""
        timestep = args[0] if args else kwargs.get("timestep")
        run = None if timestep is None else self._entered(timestep, {}, ())
        if run is None:
            return super().scale_model_input(sample, *args, **kwargs)  # type: ignore[misc, no-any-return]
        if self.counter == "_step_index":
            self._step_index = run.next
        if "is_scale_input_called" in vars(self):
            self.is_scale_input_called = True
        scale = run.plan.scales[run.next - run.plan.begin]
        return sample if scale == 1.0 else sample * scale

    def _options(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[dict[str, Any], Any, bool]:
        """step()'s further arguments: those that differ from their defaults, the generator, return_dict."""
        if args:
            kwargs = dict(zip(list(self.parameters)[4:], args)) | kwargs
        generator, return_dict = None, self.parameters["return_dict"].default
        options = {}
        for name, value in kwargs.items():
            if name == "generator":
                generator = value
            elif name == "return_dict":
                return_dict = value
            elif name not in self.parameters:
                raise TypeError(f"{type(self).__name__}.step() has no argument {name!r}")
            elif isinstance(value, Tensor) or value != self.parameters[name].default:
                options[name] = value
        return options, generator, return_dict

    def _entered(self, timestep: Any, options: Mapping[str, Any], images: tuple[str, ...]) -> Run | None:
        """The run, standing at the step that `timestep` means; None if diffusers' own step must take it."""
        if any(isinstance(value, Tensor) for value in options.values()):
            return None
        place = place_of(timestep, self.timesteps)
        run = self._run
        if self.counter is None:
            return self._by_time(run, timestep, place, options, images)
        begin = self._begin(run, timestep, place)
        found = self._plan(run.plan.begin if begin is None else begin, options, images)
        if isinstance(found, Unfused):
            return None
        if run is None or begin is not None:
            run = Run(found, found.begin if begin is None else begin)
            self._run = run
        elif found is not run.plan:
            run.plan = found
        run.place = place
        return run

    def _begin(self, run: Run | None, timestep: Any, place: int | None) -> int | None:
        """Where a new loop begins, or None if `timestep` carries on with the old one."""
        times = self._times()
        index = getattr(self, self.counter or "")
        if run is not None and run.next < len(times):
            counted = self.counter != "_step_index" or index == run.next
            along = place is None or run.place is None or place in (run.place, run.place + 1)
            if counted and along:
                return None
            if along and index is not None:
                return int(index)  # moved by hand
        if self.counter != "_step_index":
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

    def _by_time(
        self, run: Run | None, timestep: Any, place: int | None, options: Mapping[str, Any], images: tuple[str, ...]
    ) -> Run | None:
        """The run of a scheduler whose steps stand alone: any timestep, in any order."""
        row = place
        if row is None:
            value = value_of(timestep, place, [])
            times = self._times()
            row = times.index(value) if value in times else None
        found = self._plan(0, options, images) if row is not None else self._plan_of(timestep, options, images)
        if isinstance(found, Unfused) or not found.memoryless:
            return None
        if run is None or run.plan is not found:
            run = self._run = Run(found, 0)
        run.next = row or 0
        return run

    def _times(self) -> list[float]:
        memo = self._memory()
        if "times" not in memo:
            memo["times"] = self.timesteps.tolist()
        times: list[float] = memo["times"]
        return times

    def _memory(self) -> dict[Any, Any]:
        """What is found once for the timesteps of this thread."""
        if getattr(self, "_memo", None) is None:
            self._memo = {}
        memo: dict[Any, Any] = self._memo
        return memo

    def _plan(self, begin: int, options: Mapping[str, Any], images: tuple[str, ...]) -> Found:
        memo = self._memory()
        key = (begin, images, tuple(options.items()))
        if key not in memo:
            whole = memo.get((0, images, tuple(options.items())))
            if isinstance(whole, TracedPlan) and whole.memoryless:
                return whole
            times = list(self.timesteps.cpu())
            memo[key] = plans.find(self, self.base, times, begin, options=options, images=images)
        found: Found = memo[key]
        return found

    def _plan_of(self, timestep: Any, options: Mapping[str, Any], images: tuple[str, ...]) -> Found:
        """The plan of a single step at a timestep that is none of the loop's."""
        memo = self._memory()
        key = (float(timestep), images, tuple(options.items()), "alone")
        if key not in memo:
            memo[key] = plans.find(self, self.base, [timestep], 0, options=options, images=images)
        found: Found = memo[key]
        return found

    def _bound(self, x: Tensor, output: Tensor, table: Tensor, row: Tensor) -> Tensor:
        """The bounds of dynamic thresholding (arXiv:2205.11487): float32 [B]."""
        config = self.config  # type: ignore[attr-defined]
        return ops.dynamic_bound(
            x, output, table, row, quantile=config.dynamic_thresholding_ratio, most=config.sample_max_value
        )
