"""The same pictures by several samplers and numbers of steps: what a contact sheet shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from fastdiff.apps import generate
from fastdiff.apps.source import source_of
from fastdiff.apps.work import Cancel, Job, Made, Preview, Progress


@dataclass(frozen=True)
class Comparison:
    """One job for each sampler and number of steps, row by row; `run` gives their pictures in that order."""

    samplers: tuple[str, ...]
    steps: tuple[int, ...]
    jobs: tuple[Job, ...]

    @property
    def captions(self) -> tuple[str, ...]:
        """For each picture: sampler, steps, and model calls where these differ."""
        return tuple(
            f"{job.arguments['sampler']} {job.arguments['steps']}"
            + (f" ({job.work.plan.calls} calls)" if job.work.plan.calls != job.arguments["steps"] else "")
            for job in self.jobs
            for _ in job.work.prompts
        )

    @property
    def total_calls(self) -> int | None:
        """Model calls of all jobs; None if that shows only as they run."""
        calls = [job.total_calls for job in self.jobs]
        return None if None in calls else sum(call for call in calls if call is not None)

    @property
    def arguments(self) -> dict[str, Any]:
        """Those of `prepare`, as JSON data."""
        own = {"samplers": list(self.samplers), "steps": list(self.steps)}
        rest = {k: v for k, v in self.jobs[0].arguments.items() if k not in ("sampler", "steps")}
        return {**own, **rest}

    def run(
        self,
        *,
        progress: Progress | None = None,
        cancel: Cancel | None = None,
        preview: Preview | None = None,
    ) -> Made:
        """All pictures; the arguments are those of `fastdiff.apps.work.Job.run`."""
        made = [job.run(progress=progress, cancel=cancel, preview=preview) for job in self.jobs]
        return replace(
            made[0],
            images=torch.cat([one.images for one in made]),
            prompts=tuple(prompt for one in made for prompt in one.prompts),
            seeds=tuple(seed for one in made for seed in one.seeds),
            recipe=made[0].recipe | {"command": "compare", "arguments": self.arguments},
            seconds={"sampling": sum(one.seconds["sampling"] for one in made)},
            alone=tuple(one.recipe_of(i) for one in made for i in range(len(one.prompts))),
            model_calls=max(one.model_calls for one in made),
        )


def prepare(
    prompts: str | Sequence[str],
    *,
    samplers: Sequence[str],
    steps: Sequence[int],
    model: object = None,
    device: str | None = None,
    **arguments: Any,
) -> Comparison:
    """A comparison, checked.

    samplers, steps: a row for each of the first, in it a picture for each of the second. The rest as for
    `fastdiff.apps.generate.prepare`; every picture begins with the same noise.
    """
    if not samplers or not steps:
        raise ValueError("a comparison needs at least one sampler and one number of steps")
    for name, values in (("samplers", samplers), ("steps", steps)):
        if len(set(values)) != len(values):
            raise ValueError(f"a comparison needs different {name}, got {', '.join(map(str, values))}")
    source = source_of(model, device=device)
    jobs = tuple(
        generate.prepare(prompts, sampler=sampler, steps=count, model=source, **arguments)
        for sampler in samplers
        for count in steps
    )
    return Comparison(tuple(samplers), tuple(steps), jobs)
