"""RePaint's resampling as rows of a plan: stretches are walked down, noised up again, and walked down once more.

Between two walks the whole picture is noised, what is kept and what is repainted alike, so that on the next way down
the model brings them into harmony (arXiv:2201.09865, section 4.2).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from fastdiff.adaptive import AdaptivePlan
from fastdiff.levels import Level
from fastdiff.plan import Plan, Row


def resampled(plan: Plan | AdaptivePlan, *, rounds: int, jump: int) -> Plan:
    """The plan that walks every stretch of `jump` steps `rounds` times, with the sampler of the given one.

    rounds: 1 for the plan as it is (the paper's r). jump: the paper's j; the last stretch may be shorter.
    Raises ValueError for a plan whose sampler cannot begin anew in the middle.
    """
    if isinstance(plan, AdaptivePlan):
        raise ValueError(f"{plan.name} chooses its steps as it goes: take another sampler for inpainting")
    if rounds == 1:
        return plan
    planner = plan.planner
    if planner is None:
        raise ValueError("this plan was not built by a planner, so it cannot be resampled: use Plan.build")
    if plan.needs_path:
        raise ValueError(
            f"{plan.name} draws its noise from one path, which cannot be walked twice: take another sampler with "
            "resampling, such as ddim:eta=1"
        )

    def rows(levels: Sequence[Level]) -> Iterator[Row]:
        for first in range(0, len(levels) - 1, jump):
            stretch = levels[first : first + jump + 1]
            for walk in range(rounds):
                yield from planner(stretch)
                if walk + 1 < rounds:
                    yield raised(stretch[-1], stretch[0])

    return Plan.build(
        rows, plan.levels, prediction=plan.prediction, clip=plan.clip, name=f"{plan.name}, {rounds} rounds"
    )


def raised(low: Level, high: Level) -> Row:
    """A row without a model call: fresh noise takes x from one level up to a noisier one of the same process."""
    keep = high.alpha / low.alpha
    return Row(
        low, high, x=keep, noise=math.sqrt(max(0.0, high.sigma**2 - (keep * low.sigma) ** 2)), call=False
    )
