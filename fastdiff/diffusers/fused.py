"""Fused: a diffusers scheduler whose step() is one kernel, driven by the plan that its own step() gave on symbols."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.compiler import assume_constant_result

from fastdiff import ops
from fastdiff.diffusers import compiled, draws, guided, handover, short
from fastdiff.diffusers.per_thread import PerThread, begin_loop, in_loop, join_loop, loops_of, without_threads
from fastdiff.diffusers.plans import Found, Memory, TracedPlan, Unfused, find
from fastdiff.diffusers.positions import check_steps, first_index, place_of, value_of
from fastdiff.diffusers.results import result
from fastdiff.diffusers.runs import Images, Run
from fastdiff.diffusers.tracing import IMAGE, plain_copy
from fastdiff.lazy_guidance import Guided, expect

Blend = Callable[[Tensor | None], dict[str, Tensor | None]]

TRANSIENT = {
    "_step_index",
    "_begin_index",
    "_run",
    "_fresh",
    "_plain",
    "_memo",
    "_of_thread",
    "_loops",
    "_graph",
    "counter",
    "is_scale_input_called",
}
"""Attributes that say where a loop stands, not what its steps do."""
HELD = {"_run", "_fresh", "_plain", "_memo", "_of_thread", "_loops", "_graph", "_constructing"}
"""Attributes of ours that diffusers' own schedulers lack."""
_setting = threading.RLock()


class Fused:
    """Mixed in before a diffusers scheduler: the same class to its users, the same results, one kernel a step.

    What a thread sets, it alone sees: threads may share a scheduler. Where a configuration's step is more than weights
    (`fallback` says what), diffusers' own step runs.
    """

    base: ClassVar[Any]
    parameters: ClassVar[Mapping[str, inspect.Parameter]]
    """Those of diffusers' step."""
    annotation: ClassVar[str]
    """Of its result."""
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

    @property
    def fallback(self) -> str | None:
        """None, or why this configuration runs diffusers' own step."""
        if getattr(self, "timesteps", None) is None or getattr(self, "num_inference_steps", 0) is None:
            return None  # not known before set_timesteps
        found = self._plan(0, self.usual)
        return found.reason if isinstance(found, Unfused) else None

    def _constructed(self, *args: Any, **kwargs: Any) -> None:
        """diffusers' __init__. Several set all training steps there, which no loop will use: they are not planned."""
        vars(self)["_constructing"] = True
        try:
            self.base.__init__(self, *args, **kwargs)
        finally:
            del vars(self)["_constructing"]

    def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
        """diffusers' set_timesteps, and the plan of the loop that follows.

        Raises ValueError for no steps, and for more than a discrete schedule has times.
        """
        check_steps(self.base, self.config, args, kwargs)  # type: ignore[attr-defined]
        with _setting:  # what threads that share a scheduler do not each own stays together
            begin_loop(self)
            self._run = self._fresh = self._plain = None
            super().set_timesteps(*args, **kwargs)  # type: ignore[misc]
            self._memo = self._snapshot()
        if "_constructing" in vars(self):
            return
        found = self._plan(0, self.usual)
        self._fresh = None if isinstance(found, Unfused) else short.begin(self, found)
        # A compiled step would be compiled anew for what is noted down.
        expect(not (isinstance(found, Unfused) or "step" in vars(self) or "_graph" in vars(self)))

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
        state.pop("_memo", None)
        state.pop("_fresh", None)
        state.pop("_graph", None)
        state.pop("_constructing", None)
        return state

    def __reduce__(self) -> Any:
        # By name: pickle would look for the class in diffusers' module, where diffusers' own stands.
        return _restored, (self.base.__name__, self.__getstate__())

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        """diffusers' step, fused."""
        if args:
            kwargs = dict(zip(list(self.parameters)[4:], args)) | kwargs
        if torch.compiler.is_compiling():
            return compiled.step(self, model_output, timestep, sample, kwargs)
        if type(model_output) is Guided:
            return guided.step(self, model_output, timestep, sample, kwargs)
        made = short.follow(self, model_output, timestep, sample, kwargs)
        if made is not None:
            return made
        made = self._fused(model_output, timestep, sample, kwargs)
        if made is None:
            return handover.call(self, "step", timestep, model_output, timestep, sample, **kwargs)
        run = self._run
        if run is not None and run.way is None:
            short.prepare(self, run, model_output, kwargs)
        return made

    def _fused(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        arguments: Mapping[str, Any],
        blend: Blend | None = None,
        predicted: Tensor | None = None,
    ) -> Any:
        """step()'s result, or None if diffusers' own step must take it.

        blend: the noise of the step -> what its kernel blends in, solver_step_'s mask, known and known_noise.
        predicted: what the model predicted of each pixel's variance.
        """
        self._place(timestep)
        read = None if handover.goes_on(self, timestep) else self._options(arguments)
        if read is None:
            return None
        options, given, generator, return_dict = read
        model_output = self._part(model_output, sample)
        alike = model_output.shape == sample.shape
        output = _expanded(model_output, sample)
        if output is None:
            return None
        if generator is not None and "variance_noise" in options:
            return None
        run = self._entered(timestep, options)
        if run is None:
            return None
        line = run.plan.lines[run.row]
        if line.draws and not alike:
            return None  # the shape of its noise is diffusers' to choose
        kind = draws.dtypes(self, run.plan, sample.dtype, model_output.dtype)
        if given is not None:
            # Of more precision, it would set the result's dtype.
            fits = torch.promote_types(given.dtype, kind.result) == kind.result
            given = _expanded(given, sample) if fits else None
            if given is None:
                return None
        self._plain = None
        drawn = bool(line.draws) or "noise_sampler" in vars(self)
        noise = draws.noise(self, line, sample, generator, kind.draw) if drawn else None
        if noise is not None and predicted is not None and line.deviation is not None:
            noise = line.deviation.times(noise, predicted)
        images = Images(output, sample, noise, given)
        prev_sample, bound = run.take(
            images, self._bound, kind.result, **({} if blend is None else blend(noise))
        )
        if self._counts:
            setattr(
                self, self._counts, run.next if self._counts == "_step_index" else run.next - run.plan.begin
            )
        return result(self, line, prev_sample, images, bound, kind.extra, return_dict)

    def _part(self, model_output: Tensor, sample: Tensor) -> Tensor:
        """The part of the model's output that the step takes."""
        return model_output

    def _scaled_input(self, sample: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """diffusers' scale_model_input, without reading the timestep back from its device."""
        timestep = args[0] if args else kwargs.get("timestep")
        if torch.compiler.is_compiling():
            return sample if timestep is None else compiled.scale_model_input(self, sample, timestep)
        if self.timesteps is None:  # nothing is set yet
            return self.base.scale_model_input(self, sample, *args, **kwargs)
        try:
            handed = timestep is None or handover.goes_on(self, timestep)
            options = None if self._run is None else self._run.options
            run = None if handed else self._entered(timestep, options or {})
        except (IndexError, TypeError, ValueError):
            run = None  # no timestep of this schedule: diffusers' own says so where it minds
        if run is None:
            scaled: Tensor = handover.call(self, "scale_model_input", timestep, sample, *args, **kwargs)
            return scaled
        if self._counts == "_step_index":
            self._step_index = run.next
        if "is_scale_input_called" in vars(self):
            self.is_scale_input_called = True
        scale = run.plan.scales[run.row]
        return sample if scale == 1.0 else sample * scale

    def _options(
        self, arguments: Mapping[str, Any]
    ) -> tuple[dict[str, Any], Tensor | None, Any, bool] | None:
        """step()'s further arguments: those that differ from their defaults, an image, the generator, return_dict.

        None where one is a tensor of which nothing is known, such as a timestep for each token."""
        given, generator, return_dict = None, None, self.parameters["return_dict"].default
        options = {}
        for name, value in arguments.items():
            if name == "generator":
                generator = value
            elif name == "return_dict":
                return_dict = value
            elif name not in self.parameters:
                raise TypeError(f"{type(self).__name__}.step() got an unexpected keyword argument {name!r}")
            elif isinstance(value, Tensor):
                image = name in self.images
                if not image and value.numel() != 1:
                    return None
                given = value if image else given
                options[name] = (
                    IMAGE if image else value_of(value, place_of(value, self.timesteps), self._times())
                )
            elif value != self.parameters[name].default:
                options[name] = value
        return options, given, generator, return_dict

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
            run = self._run = Run(found, at)
        if run.plan is not found:  # for other options
            run.plan, run.way = found, None
        return run

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
        state = self.__getstate__()
        return Memory.of(plain_copy(state, self.base), state.values())

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

    @assume_constant_result
    def _placed(self) -> bool:
        """Give the scheduler its place in graphs, if it has none: while torch.compile traces, called as it is."""
        if "_graph" not in vars(self):
            self._graph = compiled.place(self)
        return True

    def _bound(
        self, x: Tensor, output: Tensor, table: Tensor, row: Tensor, uncond: Tensor | None = None
    ) -> Tensor:
        """The bounds of dynamic thresholding (arXiv:2205.11487): float32 [B]."""
        config = self.config  # type: ignore[attr-defined]
        if config.sample_max_value < 1:  # as torch.clamp(min=1, max=...) has it: the most wins
            return x.new_full((len(x),), config.sample_max_value, dtype=torch.float32)
        quantile, most = config.dynamic_thresholding_ratio, config.sample_max_value
        return ops.dynamic_bound(x, output, table, row, uncond=uncond, quantile=quantile, most=most)


def _expanded(image: Tensor, sample: Tensor) -> Tensor | None:
    """An image that broadcasts to the sample's shape, such as one model output for a batch."""
    if image.shape == sample.shape:
        return image
    try:
        return image.expand(sample.shape).contiguous()
    except RuntimeError:
        return None


def _restored(name: str, state: Mapping[str, Any]) -> Any:
    from fastdiff.diffusers.classes import CLASSES

    scheduler = object.__new__(CLASSES[name])
    vars(scheduler).update(state)
    return scheduler
