"""Steering a model: its estimate of the clean image is corrected inside each call, before the sampler sees it.

    steered = Steered(source, plan, correct)
    Work(source=source, plan=plan, model=steered, ...)      # or fastdiff.sample(steered, ..., sampler=plan)

Whatever is known of the result, such as its low frequencies or the picture it shrinks to, becomes a function
correct(denoised, x, level) -> denoised. Any sampler then works as it is, also one of several calls a step or with a
history, since it meets only a model whose estimates obey what is known (DDNM, arXiv:2212.00490; ILVR,
arXiv:2108.02938).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from fastdiff.adaptive import AdaptivePlan
from fastdiff.calling import Model
from fastdiff.levels import Level
from fastdiff.plan import Plan

Correct = Callable[[Tensor, Tensor, Level], Tensor]


class Steered:
    """A model called as the given one is, whose outputs mean corrected denoised images.

    model: a Source, or any model that `fastdiff.sample` takes. plan: the one that will be walked; a run that starts
    part-way needs the shortened one, plan.start_at(strength), with strength=1.0 in `sample`.
    correct: (denoised, x, level) -> denoised, called at every model call. denoised: [B, ...] float32; x: the noisy
    image, in the sampler's coordinates (alpha * clean + sigma * noise); level: its noise level. It must not write to
    either. Under guidance B counts both branches, so tensors of its own should broadcast over the batch ([1, ...]); a
    correction that is affine in denoised corrects the guided estimate exactly, as guidance's weights have the sum 1.
    latents: say that correct works on latents; otherwise a model whose x is not the picture itself is refused.

    Reads the time of each call from its tensor, which on a GPU waits for the device. Raises ValueError for a plan
    without rows, for a model of latents unless `latents`, and, when called, for a time that is none of the plan's.
    """

    def __init__(
        self, model: Model, plan: Plan | AdaptivePlan, correct: Correct, *, latents: bool = False
    ) -> None:
        if isinstance(plan, AdaptivePlan):
            raise ValueError(
                f"{plan.name} chooses its steps as it goes, so it cannot be steered: use another sampler"
            )
        if not (latents or getattr(model, "exact", True)):
            raise ValueError(
                "this model works on latents, where pictures cannot be corrected: use one that works on pixels, "
                "such as the bundled one"
            )
        self.model, self.plan, self.correct = model, plan, correct
        self.levels = {_key(time): row.level for row, time in zip(plan.rows, plan.times) if row.call}

    def __call__(self, x_in: Tensor, t: Tensor, **conditioning: Any) -> Tensor:
        """The output with which the plan's prediction reads the corrected image: [B, ...], in the model's dtype."""
        output = self.model(x_in, t, **conditioning)
        level = self.level(t)
        p, q = self.plan.prediction.weights(level)
        if not q:
            return output  # it says nothing of the image: a plan has no such calls but at clean data
        x = x_in.float() / self.plan.prediction.scale(level)
        corrected = self.correct(p * x + q * output.float(), x, level)
        return ((corrected - p * x) / q).to(output.dtype)

    def level(self, t: Tensor) -> Level:
        """The level of the rows called at time t: [B], all alike."""
        time = _key(float(t[0]))
        if time not in self.levels:
            raise ValueError(
                f"the model was called at time {time:g}, which is none of the plan's: steer the plan that is walked, "
                "plan.start_at(strength) for a run that starts part-way"
            )
        return self.levels[time]


def _key(time: float) -> float:
    """A time as the model receives it: the executor's are float32."""
    return float(np.float32(time))
