"""Schedulers whose step() takes more than an output, a timestep and a sample."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from fastdiff.diffusers import compiled, handover
from fastdiff.diffusers.calls import Call
from fastdiff.diffusers.fused import Fused
from fastdiff.diffusers.learned import WIDE
from fastdiff.diffusers.plans import Found, Unfused
from fastdiff.diffusers.positions import value_of
from fastdiff.diffusers.runs import Run
from fastdiff.diffusers.tokens import PerToken
from fastdiff.diffusers.tracing import IMAGE
from fastdiff.plan import COLUMN


class PerImageTimes(Fused):
    """DDPMWuerstchen: step() gets a timestep for each image, the same one for all in a loop."""

    def _arguments(self, times: Tensor) -> list[Any]:
        return [time.reshape(1) for time in times]


class TwoStepMemory(Fused):
    """CogVideoXDPM: the caller hands back the denoised image of the step before, and its timestep."""

    images = ("old_pred_original_sample", "variance_noise")
    usual: ClassVar = {"old_pred_original_sample": None, "timestep_back": None}

    def step(  # type: ignore[override]
        self, model_output: Tensor, old_pred_original_sample: Tensor | None, timestep: Any, timestep_back: Any,
        sample: Tensor, *args: Any, **kwargs: Any,
    ) -> Any:  # fmt: skip
        """diffusers' step, fused."""
        kwargs = dict(zip(list(self.parameters)[6:], args)) | kwargs
        memory = {"old_pred_original_sample": old_pred_original_sample, "timestep_back": timestep_back}
        if old_pred_original_sample is None:
            kwargs["return_dict"] = False  # as diffusers' first step does, whatever it is asked
        if torch.compiler.is_compiling():
            return compiled.step(self, model_output, timestep, sample, memory | kwargs)
        made = self._fused(Call(model_output, timestep, sample, memory | kwargs))
        if made is None:
            images = {"model_output": model_output, "timestep": timestep, "sample": sample}
            return handover.call(self, "step", timestep, **images, **memory, **kwargs)
        return made

    def _by_time(
        self, run: Run | None, timestep: Any, place: int | None, options: Mapping[str, Any]
    ) -> Run | None:
        # Planned step by step: each has the timestep before it among its options.
        value = value_of(timestep, place, self._times())
        found = self._plan_of(value, value, options)
        if isinstance(found, Unfused):
            return None
        self._run = Run(found, 0)
        return self._run


class Repainted(Fused):
    """RePaint (arXiv:2201.09865): each step puts the known part of the image, noised, where the mask is 1."""

    images = ("original_image",)
    usual: ClassVar = {"original_image": IMAGE, "mask": 0.0}

    def step(
        self, model_output: Tensor, timestep: Any, sample: Tensor, original_image: Tensor, mask: Tensor,
        generator: Any = None, return_dict: bool = True,
    ) -> Any:  # fmt: skip
        """diffusers' step, fused."""
        further = {"generator": generator, "return_dict": return_dict}
        if torch.compiler.is_compiling():
            images = {"original_image": original_image, "mask": mask}
            return compiled.step(self, model_output, timestep, sample, images | further)
        wide = torch.float64 if sample.dtype == torch.float64 else torch.float32

        def blend(noise: Tensor | None) -> dict[str, Tensor | None]:
            known_noise = None if noise is None else noise.to(wide)
            return {
                "mask": 1.0 - mask.to(wide),
                "known": original_image.to(wide),
                "known_noise": known_noise,
            }

        arguments = {"original_image": original_image, "mask": 0.0} | further
        wider = mask.dtype == torch.float64 != wide  # it sets the result's dtype
        made = None if wider else self._fused(Call(model_output, timestep, sample, arguments, blend))
        if made is None:
            tensors = (model_output, timestep, sample, original_image, mask)
            return handover.call(self, "step", timestep, *tensors, **further)
        return made

    def _plan(self, begin: int, options: Mapping[str, Any], first: int | None = None) -> Found:
        plans = self._memory().plans
        if "blended" not in plans:
            unknown = super()._plan(begin, self.usual)
            known = super()._plan(begin, self.usual | {"mask": 1.0})
            plans["blended"] = _blended(unknown, known)
        return plans["blended"]


def _blended(unknown: Found, known: Found) -> Found:
    """The rows of the unknown part, and beside them the level that the known part is noised to."""
    if isinstance(unknown, Unfused) or isinstance(known, Unfused):
        return unknown if isinstance(unknown, Unfused) else known
    table = unknown.table.copy()
    table[:, COLUMN["alpha"]] = [line.weight for line in known.lines]
    table[:, COLUMN["sigma"]] = [line.noise for line in known.lines]
    # The known part is noised with the step's own draw, whether the unknown part uses it or not.
    lines = tuple(dataclasses.replace(a, drawn=b.drawn) for a, b in zip(unknown.lines, known.lines))
    return dataclasses.replace(unknown, lines=lines, table=table, folded=table)


class LearnedVariance(Fused):
    """DDPM and its kin: the model may predict the variance of each pixel's noise, in as many channels again."""

    @property
    def usual(self) -> Mapping[str, Any]:  # type: ignore[override]
        return {"model_output": WIDE} if _learned(self) else {}

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        """diffusers' step, fused."""
        wide = sample.dim() > 1 and model_output.shape[1] == 2 * sample.shape[1]
        if not wide or torch.compiler.is_compiling() or not _learned(self):
            return super().step(model_output, timestep, sample, *args, **kwargs)
        if args:
            kwargs = dict(zip(list(self.parameters)[4:], args)) | kwargs
        output, predicted = model_output.split(sample.shape[1], dim=1)
        if output.stride() != sample.stride():  # once, not for each kernel that reads it
            output = torch.empty_like(sample, dtype=output.dtype).copy_(output)
        arguments = kwargs | {"model_output": WIDE}
        made = self._fused(Call(output, timestep, sample, arguments, predicted=predicted))
        if made is None:
            return handover.call(self, "step", timestep, model_output, timestep, sample, **kwargs)
        return made


def _learned(scheduler: Any) -> bool:
    return str(getattr(scheduler, "variance_type", None)).startswith("learned")


class WithoutVariance(Fused):
    """Solvers that leave out the variance of a model that predicts one: they take the first channels of its output."""

    def _part(self, model_output: Tensor, sample: Tensor) -> Tensor:
        if model_output.shape == sample.shape or sample.dim() < 2:
            return model_output
        found = self._plan(0, self.usual)
        channels = None if isinstance(found, Unfused) else found.lines[0].channels
        return model_output[:, :channels] if channels == sample.shape[1] else model_output


SPECIAL: dict[str, type[Fused]] = {
    "CogVideoXDPMScheduler": TwoStepMemory,
    **dict.fromkeys(["DDPMParallelScheduler", "DDPMScheduler", "UnCLIPScheduler"], LearnedVariance),
    "DDPMWuerstchenScheduler": PerImageTimes,
    "DPMSolverMultistepInverseScheduler": WithoutVariance,
    "DPMSolverMultistepScheduler": WithoutVariance,
    "DPMSolverSinglestepScheduler": WithoutVariance,
    "FlowMatchEulerDiscreteScheduler": PerToken,
    "RePaintScheduler": Repainted,
}
