"""What a step of training tells, and how it fails."""

from __future__ import annotations

from dataclasses import dataclass

from fastdiff.errors import FastdiffError


class Diverged(FastdiffError):
    """The loss or its gradient is no longer finite."""


@dataclass(frozen=True)
class Progress:
    """What the last step did: `step` of `steps` taken, pictures seen so far, loss, gradient norm, learning rate,
    seconds so far. A step of float16 whose gradient overflowed, and which was therefore skipped, has a norm that is not
    finite."""

    step: int
    steps: int
    images: int
    loss: float
    grad_norm: float
    lr: float
    seconds: float
