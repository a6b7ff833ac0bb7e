"""A diffusers scheduler's configuration as a schedule: the levels it would visit, asked of the scheduler itself.

So spacing, offsets, Karras and other sigmas, zero terminal SNR and the shift of flow models are as the pipeline has
them, whatever they are; only how to step from level to level is fastdiff's.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fastdiff.levels import DiscreteTime, Level, LinearPath, Process, check_falling, clean
from fastdiff.schedules import Schedule

PREDICTIONS = {
    "epsilon": "epsilon",
    "sample": "sample",
    "v_prediction": "v",
    "flow_prediction": "flow",
}
BY_TIMESTEP = ("DDIM", "DDPM", "LCM", "TCD")
"""Schedulers that visit training indices."""
BY_SIGMA = (
    "EulerDiscrete",
    "EulerAncestral",
    "DPMSolverMultistep",
    "DEIS",
    "UniPC",
    "SASolver",
    "FlowMatchEuler",
)
"""Schedulers with one sigma for each timestep, and a last one."""


def prediction_of(scheduler: Any) -> str:
    """What the denoiser under this scheduler predicts, as `fastdiff.sample` names it. ValueError if it is no such."""
    asked = scheduler.config.get("prediction_type", "flow_prediction" if is_flow(scheduler) else "epsilon")
    if asked not in PREDICTIONS:
        raise ValueError(
            f"prediction type {asked!r} of the pipeline's scheduler is none of: {', '.join(PREDICTIONS)}"
        )
    return PREDICTIONS[asked]


def is_flow(scheduler: Any) -> bool:
    """Whether its levels lie on the linear path."""
    return _name(scheduler).startswith("FlowMatch") or bool(scheduler.config.get("use_flow_sigmas"))


def schedule_of(scheduler: Any, *, tokens: int, from_one: bool = False) -> Schedule:
    """The schedule of a diffusers scheduler.

    tokens: how many patches the transformer sees, for a shift that depends on the size. from_one: give a flow scheduler
    the sigmas 1 .. 1/steps, as Flux's pipeline does. Raises ValueError for a scheduler of another kind.
    """
    fresh = _stand_in(scheduler)
    process: Process
    if is_flow(fresh):
        process = LinearPath(float(fresh.config.num_train_timesteps))
    else:
        process = DiscreteTime(fresh.alphas_cumprod.double().numpy())
    options = {"mu": _mu(fresh.config, tokens)} if fresh.config.get("use_dynamic_shifting") else {}

    def visited(steps: int) -> Iterator[Level]:
        made = type(fresh).from_config(fresh.config)
        given: dict[str, Any] = dict(options)
        if from_one and "sigmas" in inspect.signature(made.set_timesteps).parameters:
            given["sigmas"] = np.linspace(1.0, 1.0 / steps, steps)
        made.set_timesteps(steps, **given)
        return _by_timestep(made, process) if _is(made, BY_TIMESTEP) else _by_sigma(made, process)

    return Visited(process, _unused, visited=visited)


@dataclass(frozen=True, eq=False)
class Visited(Schedule):
    """A schedule whose levels, the final one included, are those that a scheduler visits."""

    visited: Callable[[int], Iterator[Level]] = lambda steps: iter(())

    def levels(self, steps: int) -> tuple[Level, ...]:
        """The steps + 1 levels from the noisiest to the final one. ValueError for steps that cannot be."""
        if isinstance(steps, bool) or not isinstance(steps, (int, np.integer)) or steps < 1:
            raise ValueError(f"steps must be an integer of at least 1, got {steps!r}")
        most = len(self.process) if isinstance(self.process, DiscreteTime) else None
        if most and steps > most:
            raise ValueError(f"steps must be at most {most}, the training steps of this model, got {steps}")
        levels = tuple(self.visited(int(steps)))
        check_falling(levels)
        return levels


def _unused(process: Process, steps: int) -> list[Level]:
    return []


def _by_timestep(scheduler: Any, process: Process) -> Iterator[Level]:
    last = -1.0
    for t in scheduler.timesteps.tolist():
        last = float(t)
        yield process.level(last)
    # Stable Diffusion ends at the first training level, not at clean data, where a step is left to get there.
    ends_early = not scheduler.config.get("set_alpha_to_one", True) and last > 0
    yield process.level(0.0) if ends_early else clean(process)


def _by_sigma(scheduler: Any, process: Process) -> Iterator[Level]:
    sigmas = scheduler.sigmas.double().tolist()
    for t, sigma in zip(scheduler.timesteps.tolist(), sigmas):
        yield replace(_level(process, sigma), t=float(t))
    yield _level(process, sigmas[-1]) if sigmas[-1] else clean(process)


def _level(process: Process, sigma: float) -> Level:
    if isinstance(process, LinearPath):
        return process.level(sigma * process.T)
    return process.at(sigma)


def _stand_in(scheduler: Any) -> Any:
    """A scheduler with this configuration whose levels can be read; those of two-stage ones are DDIM's and Euler's."""
    import diffusers

    config = scheduler.config
    if is_flow(scheduler) and not _is(scheduler, BY_SIGMA):
        return diffusers.FlowMatchEulerDiscreteScheduler.from_config(config)
    if _is(scheduler, (*BY_TIMESTEP, *BY_SIGMA)) and "Wuerstchen" not in _name(scheduler):
        return scheduler
    if getattr(scheduler, "alphas_cumprod", None) is None:
        raise ValueError(
            f"the levels of {_name(scheduler)} are not known here: give the pipeline another scheduler, "
            "such as DDIMScheduler.from_config(pipe.scheduler.config)"
        )
    kind = (
        diffusers.DDIMScheduler if _name(scheduler).startswith("PNDM") else diffusers.EulerDiscreteScheduler
    )
    return kind.from_config(config)


def _mu(config: Any, tokens: int) -> float:
    """The logarithm of the shift of a flow model for so many patches (FLUX; Esser et al., arXiv:2403.03206, 5.3.2)."""
    low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    base, top = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    return float(base + (top - base) * (tokens - low) / (high - low))


def _name(scheduler: Any) -> str:
    return type(scheduler).__name__


def _is(scheduler: Any, kinds: tuple[str, ...]) -> bool:
    name = _name(scheduler)
    return name.startswith(kinds) and not name.endswith(("InverseScheduler", "ParallelScheduler"))
