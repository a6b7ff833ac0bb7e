"""Normal noise alone: what q_sample mixes in, from the same kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdiff.kernels.q_sample import Images, fill


def launch(x: Tensor, state: Tensor | None, seeds: Tensor | None, stream: int) -> tuple[Tensor, Tensor]:
    """x: [B, ...] float32, float16 or bfloat16, contiguous, its values unread; state: of a generator, uint8 on the CPU;
    or seeds: [B] int64. Returns noise like x and the state after, empty [0] with seeds; on the caller's stream."""
    noise = torch.empty_like(x)
    return noise, fill(noise, Images(), state, seeds, stream)
