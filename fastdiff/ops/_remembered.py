"""Tensors that are remembered from call to call, made while nothing changes what they are."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

import torch

T = TypeVar("T")


def ordinary() -> bool:
    """Whether a tensor made now is one of memory: under a dispatch mode (FakeTensorMode above all) or a transform of
    torch.func it may be a stand-in, of no use afterwards."""
    return not (torch._C._len_torch_dispatch_stack() or torch._C._are_functorch_transforms_active())


class Remembered(Generic[T]):
    """A function of hashable arguments that makes tensors: each once, of the last `most` asked for. Made afresh, and
    not remembered, where it would be a stand-in."""

    def __init__(self, make: Callable[..., T], most: int) -> None:
        self.make = make
        self.known = functools.lru_cache(maxsize=most)(make)
        self.cache_clear = self.known.cache_clear

    def __call__(self, *key: Hashable) -> T:
        return self.known(*key) if ordinary() else self.make(*key)


def remembered(most: int) -> Callable[[Callable[..., T]], Remembered[T]]:
    """Decorates such a function."""
    return functools.partial(Remembered, most=most)
