"""randn: standard normal noise, with torch.randn's bits from a generator, or counter-based from one seed an image."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastdiff import backend, reference
from fastdiff.ops import _checks, _drawing

Seeds = Sequence[int] | Tensor


def randn(
    shape: Sequence[int],
    *,
    generator: torch.Generator | None = None,
    seeds: Seeds | None = None,
    stream: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """Contiguous N(0, 1) noise of this shape.

    generator: the result has the bits of torch.randn(shape, generator=generator, dtype=dtype), and so does whatever is
    drawn next; torch's global generator of the device if neither it nor seeds is given. While it draws here, no other
    thread may draw from a generator of yours by torch's own functions; torch's global one is safe from that.
    seeds: one for each of shape[0] images, integers from 0 to 2^63 - 1 or an int64 tensor; image i is then a function
    of (seeds[i], stream) alone (fastdiff/counter.py), whatever the batch, the dtype but for its rounding, the device.
    device: the generator's or the seeds' own by default, else torch's. Raises ValueError or TypeError.
    """
    if dtype not in _checks.FLOATS:
        raise TypeError(f"dtype is {dtype}: pass float32, float16, bfloat16 or float64")
    if seeds is not None:
        if generator is not None:
            raise ValueError("give generator or seeds, not both")
        like = torch.empty(tuple(shape), dtype=dtype, device=device or getattr(seeds, "device", None))
        return counted(like, seeds, stream)
    place = device or getattr(generator, "device", None)
    return drawn(torch.empty(tuple(shape), dtype=dtype, device=place), generator, fresh=True)


def drawn(like: Tensor, generator: torch.Generator | None, *, fresh: bool = False) -> Tensor:
    """torch.randn's bits in like's shape, dtype and device; a generator elsewhere (a CPU one for a GPU) draws there.

    fresh: like was made for this, and may be what is returned."""

    def call(name: str, state: Tensor) -> tuple[Tensor, ...]:
        made: tuple[Tensor, ...] = _drawing.OVERLOADS[name](like, state, None, 0)
        return made

    made = _drawing.draw("randn_like", like, generator, call, like if fresh else None)
    if made is not None:
        return made[0]
    device = like.device if generator is None else generator.device
    noise = torch.randn(like.shape, generator=generator, dtype=like.dtype, device=device)
    return noise.to(like.device)


def counted(like: Tensor, seeds: Seeds, stream: int) -> Tensor:
    """Counter-based noise in like's shape, dtype and device."""
    values = checked_seeds(seeds, like)
    name = backend.select("randn_like", like.device.type, like.dtype)
    if name == "reference":
        return reference.randn_like(like, None, values, checked_stream(stream))[0]
    noise: Tensor = _drawing.OVERLOADS[name](like, None, values, checked_stream(stream))[0]
    return noise


def checked_seeds(seeds: Seeds, like: Tensor) -> Tensor:
    """seeds as int64 [B] on like's device. Raises ValueError or TypeError."""
    if like.dim() < 1:
        raise ValueError("seeds need a batch: the shape must be [B, ...]")
    if not isinstance(seeds, Tensor):
        seeds = torch.tensor([_seed(seed) for seed in _listed(seeds)], dtype=torch.int64, device=like.device)
    if seeds.dtype != torch.int64:
        raise TypeError(f"seeds is {_checks.short(seeds.dtype)}: pass int64")
    if tuple(seeds.shape) != (like.shape[0],):
        raise ValueError(f"seeds has shape {tuple(seeds.shape)}: it must be ({like.shape[0]},), one an image")
    _checks.same_device("seeds", seeds, like)
    return seeds.contiguous()


def _listed(seeds: Any) -> Sequence[Any]:
    try:
        return list(seeds)
    except TypeError:
        raise TypeError(f"seeds is {seeds!r}: pass one integer for each image") from None


def _seed(seed: Any) -> int:
    try:
        number = -1 if isinstance(seed, bool) else operator.index(seed)
    except TypeError:
        number = -1
    if not 0 <= number < 2**63:
        raise ValueError(f"a seed must be an integer from 0 to 2^63 - 1, got {seed!r}")
    return number


def checked_stream(stream: int) -> int:
    """stream, if it is an integer from 0 to 2^63 - 1. Raises ValueError."""
    if isinstance(stream, bool) or not isinstance(stream, int) or not 0 <= stream < 2**63:
        raise ValueError(f"stream must be an integer from 0 to 2^63 - 1, got {stream!r}")
    return stream
