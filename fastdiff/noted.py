"""What guidance is noted down with: where it comes from, what it is like, and how it is computed after all."""

from __future__ import annotations

import functools
import weakref
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastdiff.ops import is_dense

Weights = tuple[float, float] | None
"""Of a model's two branches."""


class Source:
    """One output of a model. version: of its memory, when it was made; exposed: somebody else holds a view of it;
    waiting: what is noted down and reads it; halves: along the batch, once somebody asked for them."""

    __slots__ = ("exposed", "halves", "image", "version", "waiting")

    def __init__(self, image: Tensor) -> None:
        self.image, self.version, self.exposed = image, image._version, False
        self.halves: tuple[Tensor, ...] = ()
        self.waiting: list[weakref.ref[Any]] = []

    def expose(self) -> None:
        """Somebody may write to it from here on: what waits is computed now, and nothing more is noted down."""
        self.exposed = True
        waiting, self.waiting = self.waiting, []
        for reference in waiting:
            guided = reference()
            if guided is not None:
                guided.made  # noqa: B018


class Kind(NamedTuple):
    """What a tensor is like; dense: without gaps, so that what is computed of it is laid out alike."""

    size: torch.Size
    strides: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    dense: bool


class Parts(NamedTuple):
    """What a step reads: output and uncond, or the halves of output, summed by their weights; output itself where
    weights are None."""

    output: Tensor
    uncond: Tensor | None
    weights: Weights


def kind_of(image: Tensor, dtype: torch.dtype) -> Kind:
    """What an image is like, in this dtype."""
    return Kind(image.shape, image.stride(), dtype, image.device, is_dense(image))


def half(whole: Tensor, dim: int, place: int) -> Tensor:
    """The first half along `dim`, or the second: `place` 0 or 1."""
    return whole.chunk(2, dim)[place]


def value_of(how: Any) -> Any:
    """What was noted down, computed as PyTorch would have."""
    if type(how) is not tuple:
        return how
    function, *operands = how
    return function(*map(value_of, operands))


@functools.cache
def exposes(func: Any) -> bool:
    """Whether an op writes to its arguments, or gives a view of them to somebody."""
    schema = getattr(func, "_schema", None)
    return schema is None or schema.is_mutable or any(each.alias_info for each in schema.returns)
