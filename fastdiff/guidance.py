"""Guidance: how the outputs of a model with and without its condition make one. Weights on the branches, as columns."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastdiff.plan import COLUMN, Plan


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance: uncond + scale * (cond - uncond) (arXiv:2207.12598).

    scale: 1 is no guidance and calls only the conditional branch.
    unconditional: what replaces the model's conditioning in the unconditional branch, name -> value; a tensor has the
        batch's length.
    interval: the noise levels sigma / alpha at which guidance acts, (low, high); outside, the model runs unguided, once
        (arXiv:2404.07724).
    rescale: how far the guided output's deviation is brought back to the conditional one's, 0 to 1 (arXiv:2305.08891,
        equations 15 and 16).
    doubled: call the model once with both branches in a batch twice as long, rather than twice; where it is called
        twice, its second output must not overwrite the first (as one in a buffer that it keeps, or a replayed graph's).
    """

    scale: float
    unconditional: Mapping[str, Any] = field(default_factory=dict)
    interval: tuple[float, float] = (0.0, math.inf)
    rescale: float = 0.0
    doubled: bool = True

    def __post_init__(self) -> None:
        if not math.isfinite(self.scale):
            raise ValueError(f"guidance scale must be a finite number, got {self.scale}")
        if not 0.0 <= self.rescale <= 1.0:
            raise ValueError(f"guidance rescale must lie between 0 and 1, got {self.rescale}")
        if not 0.0 <= self.interval[0] < self.interval[1]:
            raise ValueError(
                f"guidance interval must be (low, high) with 0 <= low < high, got {self.interval}"
            )

    def weights(self, plan: Plan) -> NDArray[np.float64]:
        """(weight of the conditional output, weight of the unconditional one) for each row: float64 [rows, 2]."""
        low, high = self.interval
        guided = [low <= row.level.ratio <= high and self.scale != 1.0 for row in plan.rows]
        return np.array([(self.scale, 1.0 - self.scale) if on else (1.0, 0.0) for on in guided]).reshape(
            -1, 2
        )

    def table(self, plan: Plan) -> NDArray[np.float64]:
        """The plan's table with the branches weighted."""
        table = plan.table.copy()
        table[:, [COLUMN["g"], COLUMN["g_uncond"]]] = self.weights(plan)
        return table
