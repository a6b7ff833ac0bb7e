"""Fused: a diffusers scheduler whose step() is one kernel, driven by the plan that its own step() gave on symbols."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.compiler import assume_constant_result

from fastdiff import ops
from fastdiff.diffusers import calls, compiled, draws, guided, handover, short
from fastdiff.diffusers.calls import Call
from fastdiff.diffusers.per_thread import begin_loop
from fastdiff.diffusers.planned import Planned
from fastdiff.diffusers.plans import Unfused
from fastdiff.diffusers.positions import check_steps, place_of, value_of
from fastdiff.diffusers.results import result
from fastdiff.diffusers.runs import Images
from fastdiff.diffusers.tracing import IMAGE
from fastdiff.lazy_guidance import Guided, expect

CLASSES: dict[str, Any] = {}
"""Every class of ours by its name: classes.py makes them."""
_setting = threading.RLock()


class Fused(Planned):
    """Mixed in before a diffusers scheduler: the same class to its users, the same results, one kernel a step.

    What a thread sets, it alone sees: threads may share a scheduler. Where a configuration's step is more than weights
    (`fallback` says what), diffusers' own step runs.
    """

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
        return calls.take(self, Call(model_output, timestep, sample, kwargs), model_output)

    def _fused(self, call: Call) -> Any:
        """step()'s result, or None if diffusers' own step must take it."""
        model_output, timestep, sample, arguments, blend, predicted = call
        if self.refuses_integers and isinstance(timestep, int | torch.IntTensor | torch.LongTensor):
            raise ValueError(
                f"timestep is the integer {timestep}: pass one of scheduler.timesteps, not its index in them"
            )
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
        scaled: Tensor | None = None if timestep is None else short.scaled(self, sample, timestep)
        if scaled is not None:
            return scaled
        if self.timesteps is None:  # nothing is set yet
            return self.base.scale_model_input(self, sample, *args, **kwargs)
        try:
            handed = timestep is None or handover.goes_on(self, timestep)
            options = None if self._run is None else self._run.options
            run = None if handed else self._entered(timestep, options or {})
        except (IndexError, TypeError, ValueError):
            run = None  # no timestep of this schedule: diffusers' own says so where it minds
        if run is None:
            scaled = handover.call(self, "scale_model_input", timestep, sample, *args, **kwargs)
            assert scaled is not None
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
    scheduler = object.__new__(CLASSES[name])
    vars(scheduler).update(state)
    return scheduler
