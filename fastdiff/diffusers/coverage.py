"""coverage(): which schedulers of the installed diffusers run fused, and why the others do not."""

from __future__ import annotations

from dataclasses import dataclass

import diffusers

from fastdiff.diffusers.fused import CLASSES

TOKENS = "steps over tokens, not over images"
ELSEWHERE = {
    "AmusedScheduler": TOKENS,
    "BlockRefinementScheduler": TOKENS,
    "DiscreteDDIMScheduler": TOKENS,
    "EntropyBoundScheduler": TOKENS,
    "VQDiffusionScheduler": TOKENS,
    "RFD4ProteinaScheduler": "steps over protein structures, not over images",
    "HeliosDMDScheduler": "step() is handed its levels and its noise by the pipeline, others at each call",
    "HeliosScheduler": "step() returns what its UniPC remembers, a corrected sample too, beside the next sample",
    "KarrasVeScheduler": "deprecated in diffusers; steps between two levels that the caller gives, with no timesteps",
    "PiflowScheduler": "takes many small steps along a policy that the model returns, a mixture for each pixel",
    "ScoreSdeVeScheduler": "step_pred and step_correct in place of step; the corrector divides by norms of images",
    "ScoreSdeVpScheduler": "deprecated in diffusers; step_pred in place of step",
}
PARTLY = {
    "FlowMatchEulerDiscreteScheduler": "but for stochastic sampling with a timestep for each token",
    "LMSDiscreteScheduler": "up to order 4, which is the default: beyond, a step reads more than 3 stored values",
    "SASolverScheduler": "but for orders of which a step reads more than 3 stored values",
}
ARGUMENTS: dict[str, dict[str, int]] = {"SCMScheduler": {"num_inference_steps": 2}}


@dataclass(frozen=True)
class Covered:
    """One scheduler class. fused: whether its default configuration runs fused; note: what does not, and why."""

    name: str
    fused: bool
    note: str = ""


@dataclass(frozen=True)
class Coverage:
    """All of them, by name. str() is a table."""

    schedulers: tuple[Covered, ...]

    def __str__(self) -> str:
        width = max((len(covered.name) for covered in self.schedulers), default=0)
        rows = [f"{c.name:<{width}}  {'fused' if c.fused else '-    '}  {c.note}" for c in self.schedulers]
        fused = sum(covered.fused for covered in self.schedulers)
        head = f"diffusers {diffusers.__version__}: {fused} of {len(rows)} fused, the others run diffusers' own step"
        return "\n".join([head, *(row.rstrip() for row in rows)])


def coverage() -> Coverage:
    """Which schedulers of the installed diffusers run fused in their default configuration, and why the others do not.

    For a scheduler at hand, `scheduler.fallback` says the same of its own configuration.
    """
    names = sorted(name for name in dir(diffusers) if name.endswith("Scheduler") and name[0].isupper())
    return Coverage(tuple(_covered(name) for name in names))


def _covered(name: str) -> Covered:
    if name not in CLASSES:
        return Covered(name, False, ELSEWHERE.get(name, "not known to this version of fastdiff"))
    try:
        scheduler = CLASSES[name]()
        scheduler.set_timesteps(**ARGUMENTS.get(name, {"num_inference_steps": 4}))
    except Exception as error:
        return Covered(name, False, f"its defaults do not run: {type(error).__name__}: {error}")
    reason = scheduler.fallback
    return Covered(name, reason is None, PARTLY.get(name, "") if reason is None else reason)
