"""The classes: one of ours for each continuous scheduler of the installed diffusers, made of its own."""

from __future__ import annotations

import copy
import functools
import inspect
import types
from typing import Any

import diffusers
from diffusers.schedulers import SchedulerMixin

from fastdiff.diffusers import handover
from fastdiff.diffusers.fused import CLASSES, Fused
from fastdiff.diffusers.special import SPECIAL

NAMES = (
    "CMStochasticIterativeScheduler", "CogVideoXDDIMScheduler", "CogVideoXDPMScheduler",
    "CosineDPMSolverMultistepScheduler", "DDIMInverseScheduler", "DDIMParallelScheduler", "DDIMScheduler",
    "DDPMParallelScheduler", "DDPMScheduler", "DDPMWuerstchenScheduler", "DEISMultistepScheduler",
    "DPMSolverMultistepInverseScheduler", "DPMSolverMultistepScheduler", "DPMSolverSDEScheduler",
    "DPMSolverSinglestepScheduler", "EDMDPMSolverMultistepScheduler", "EDMEulerScheduler",
    "EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler", "FlowMapEulerDiscreteScheduler",
    "FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "FlowMatchLCMScheduler",
    "HeunDiscreteScheduler", "IPNDMScheduler",
    "KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler", "LCMScheduler", "LMSDiscreteScheduler",
    "LTXEulerAncestralRFScheduler", "MiniMaxH3Scheduler", "PNDMScheduler", "RePaintScheduler",
    "SASolverScheduler", "SCMScheduler", "TCDScheduler", "UnCLIPScheduler",
    "UniPCMultistepScheduler",
)  # fmt: skip


def _made(base: Any) -> Any:
    """Our subclass of a diffusers scheduler, with the same signatures."""
    body: dict[str, Any] = {
        "base": base,
        "parameters": inspect.signature(base.step).parameters,
        "annotation": str(inspect.signature(base.step).return_annotation),
        "refuses_integers": "torch.LongTensor" in inspect.getsource(base.step),
        "_counts": _counter(base),
        "__doc__": f"{base.__name__} of diffusers with a fused step.",
        "__module__": base.__module__,  # what diffusers writes into model_index.json: it loads without fastdiff
    }
    fused = SPECIAL.get(base.__name__, Fused)
    methods: dict[str, Any] = {
        "__init__": fused._constructed,
        "step": fused.step,
        "set_timesteps": fused.set_timesteps,
    }
    if hasattr(base, "scale_model_input") and base.scale_model_input.__code__.co_names:
        methods["scale_model_input"] = fused._scaled_input  # else it gives the sample back
    for name, method in methods.items():
        if hasattr(base, name):
            body[name] = functools.wraps(getattr(base, name))(_copied(method))
    source = inspect.getsource(base)
    body |= {name: handover.Remembered() for name in handover.REMEMBERED if f"self.{name}" in source}
    return type(base.__name__, (fused, base), body)


def _copied(method: Any) -> Any:
    """A function of its own for each class, to carry that class's signature."""
    return types.FunctionType(
        method.__code__, method.__globals__, method.__name__, method.__defaults__, method.__closure__
    )


def _counter(base: type) -> str | None:
    source = inspect.getsource(base)
    return "_step_index" if "self._step_index" in source else "counter" if "self.counter" in source else None


for _name in NAMES:
    _base = getattr(diffusers, _name, None)
    if isinstance(_base, type) and issubclass(_base, SchedulerMixin):
        CLASSES[_name] = _made(_base)


def convert(scheduler: Any) -> Any:
    """Our scheduler in place of diffusers', in the same state; one without a counterpart comes back unchanged."""
    ours = CLASSES.get(type(scheduler).__name__)
    return scheduler if ours is None or ours.base is not type(scheduler) else _as(scheduler, ours)


def revert(scheduler: Any) -> Any:
    """The plain diffusers scheduler again, in the same state; in the middle of a loop it remembers the steps so far."""
    if not isinstance(scheduler, Fused):
        return scheduler
    made = _as(scheduler, scheduler.base)
    if getattr(scheduler, "timesteps", None) is not None:
        vars(made).update(vars(copy.copy(handover.plain(scheduler))))
    return made


def _as(scheduler: Any, kind: type) -> Any:
    made: Any = object.__new__(kind)
    state = scheduler.__getstate__() if isinstance(scheduler, Fused) else vars(scheduler)
    vars(made).update({name: value for name, value in state.items() if name not in ("_run", "_plain")})
    return made
