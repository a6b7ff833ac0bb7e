"""FlowMatchEuler with a timestep for each token: each goes from its own level to the schedule's next lower one.

A token's own step is a weight of its own, which a table of rows does not hold: so it is one addcmul, and the levels are
looked up where diffusers compares every token with every level. That lookup is held to diffusers' own step.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from fastdiff.diffusers import handover
from fastdiff.diffusers.calls import Call
from fastdiff.diffusers.fused import Fused
from fastdiff.diffusers.memory import Memory
from fastdiff.diffusers.results import output_class

MARGIN = 1e-6
"""By how much a level must lie below a token's own to be its next."""
PROBES = 101

_levels: WeakKeyDictionary[Memory, dict[torch.device, tuple[Tensor, Tensor] | None]] = WeakKeyDictionary()


class PerToken(Fused):
    """FlowMatchEuler, whose step() takes per_token_timesteps [B, N] for a sample [B, N, C]."""

    def _fused(self, call: Call) -> Any:
        model_output, timestep, sample, arguments = call[:4]
        times = arguments.get("per_token_timesteps")
        if times is None:
            return super()._fused(call)
        found = _found(self, times) if _fits(model_output, sample, times) else None
        if found is None:
            return None
        first = (model_output[:1, :1, :1], timestep, sample[:1, :1, :1])
        one = {**arguments, "per_token_timesteps": times[:1, :1]}
        handover.call(self, "step", timestep, *first, **one)  # which counts the step
        span = _span(times, self.config.num_train_timesteps, *found)  # type: ignore[attr-defined]
        made = torch.addcmul(sample.float(), span[..., None], model_output.float())
        if not arguments.get("return_dict", True):
            return (made,)
        kind, names = output_class(self)
        return kind(**{names[0]: made})


def _fits(model_output: Tensor, sample: Tensor, times: Any) -> bool:
    plain = isinstance(times, Tensor) and times.dtype == torch.float32 and times.device == sample.device
    single = sample.dtype != torch.float64 and model_output.dtype != torch.float64
    alike = model_output.shape == sample.shape and sample.dim() == 3 and sample.numel() > 0
    return plain and single and alike and times.shape == sample.shape[:2]


def _span(times: Tensor, scale: int, levels: Tensor, lower: Tensor) -> Tensor:
    """From each token's level down to the next lower one: float32 [B, N]."""
    own = times / scale
    return own - lower[torch.searchsorted(levels, own - MARGIN)]


def _found(scheduler: Any, times: Tensor) -> tuple[Tensor, Tensor] | None:
    """The rising levels, and the one below each; None where diffusers' own step does something else."""
    memory = scheduler._memory()
    known = _levels.setdefault(memory, {})
    if times.device not in known:
        known[times.device] = _checked(memory, scheduler.config.num_train_timesteps, times.device)
    return known[times.device]


def _checked(memory: Memory, scale: int, device: torch.device) -> tuple[Tensor, Tensor] | None:
    plain = memory.copy(0)
    if plain.config.stochastic_sampling:
        return None
    levels = plain.sigmas.float().sort().values
    lower = torch.cat([levels.new_zeros(1), levels])
    times = torch.cat([torch.linspace(0, scale, PROBES, device="cpu"), levels * scale])[None]
    one = torch.ones(*times.shape, 1, device="cpu")
    made = plain.step(one, plain.timesteps[0], 0 * one, per_token_timesteps=times, return_dict=False)[0]
    same = torch.equal(made[..., 0], _span(times, scale, levels, lower))
    return (levels.to(device), lower.to(device)) if same else None
