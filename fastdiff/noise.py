"""Noise sources: where the random numbers of a run come from.

A source gives standard normal noise for a starting point and for each row. `GeneratorNoise` and `SeededNoise` draw
afresh each time, with the bits of torch.randn; `CounterNoise` computes each row's noise from its number, inside the
kernel that adds it; `BrownianNoise` takes increments of one Brownian path, so that runs with different numbers of
steps, and the two stages of one step, see the same path.
"""

from __future__ import annotations

import math
import operator
import os
import threading
import weakref
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from fastdiff import ops
from fastdiff.levels import Level
from fastdiff.ops._remembered import ordinary

MAX_SEED = 2**63 - 1
RISING = 2**48  # beyond the nodes of the deepest tree


class NoiseSource(Protocol):
    """Gives float32 N(0, 1) noise shaped like x: [B, ...], on x's device."""

    def start(self, x: Tensor) -> Tensor:
        """The noise of the starting point."""
        ...

    def step(self, x: Tensor, span: tuple[Level, Level], row: int) -> Tensor:
        """The noise of row number `row` of a plan, which goes from span[0] to span[1]."""
        ...


class GeneratorNoise:
    """All images from one torch.Generator (the global one if None), in the order torch.randn would draw them."""

    def __init__(self, generator: torch.Generator | None = None) -> None:
        self.generator = generator

    def start(self, x: Tensor) -> Tensor:
        device = x.device if self.generator is None else self.generator.device
        # A CPU generator means CPU noise, the same on every device.
        return ops.randn(x.shape, generator=self.generator, device=device).to(x.device)

    def step(self, x: Tensor, span: tuple[Level, Level], row: int) -> Tensor:
        return self.start(x)

    def path(self, images: int) -> BrownianNoise:
        """A Brownian path for each image, their seeds drawn from the generator."""
        device = "cpu" if self.generator is None else self.generator.device
        return BrownianNoise(
            torch.randint(MAX_SEED, (images,), generator=self.generator, device=device).tolist()
        )


class SeededNoise:
    """One seed for each image, so that an image does not depend on its neighbours in the batch. Drawn on the CPU."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self.seeds = [checked_seed(seed) for seed in seeds]
        self.generators = [generator_of(seed) for seed in self.seeds]

    def start(self, x: Tensor) -> Tensor:
        check_count(self.seeds, x)
        images = [ops.randn(x.shape[1:], generator=generator) for generator in self.generators]
        return torch.stack(images).to(x.device) if images else torch.empty(x.shape, device=x.device)

    def step(self, x: Tensor, span: tuple[Level, Level], row: int) -> Tensor:
        return self.start(x)

    def path(self, images: int) -> BrownianNoise:
        """A Brownian path for each image."""
        return BrownianNoise(self.seeds)


class CounterNoise:
    """One seed for each image, and noise that is a function of the seed and the row's number (fastdiff/counter.py).

    So an image does not depend on its neighbours, on the device, or on what was drawn before; nothing is stored, and
    the kernel of a step computes its noise where it adds it. The starting point is stream 0, row r stream r + 1. The
    values are not SeededNoise's.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self.seeds = [checked_seed(seed) for seed in seeds]
        self._placed: dict[torch.device, Tensor] = {}

    def seeds_on(self, device: torch.device) -> Tensor:
        """The seeds as int64 [B] on a device; the same tensor each time."""
        if device in self._placed and ordinary():
            return self._placed[device]
        made = torch.tensor(self.seeds, dtype=torch.int64, device=device)
        return self._placed.setdefault(device, made) if ordinary() else made

    def start(self, x: Tensor) -> Tensor:
        return self._stream(x, 0)

    def step(self, x: Tensor, span: tuple[Level, Level], row: int) -> Tensor:
        return self._stream(x, row + 1)

    def path(self, images: int) -> BrownianNoise:
        """A Brownian path for each image."""
        return BrownianNoise(self.seeds)

    def _stream(self, x: Tensor, stream: int) -> Tensor:
        check_count(self.seeds, x)
        return ops.randn(x.shape, seeds=self.seeds_on(x.device), stream=stream)


class PathNoise:
    """Starting points from a generator or seeds, and the steps from one Brownian path for each image."""

    def __init__(self, source: GeneratorNoise | SeededNoise | CounterNoise) -> None:
        self.source = source
        self.brownian: BrownianNoise | None = None

    def start(self, x: Tensor) -> Tensor:
        return self.source.start(x)

    def step(self, x: Tensor, span: tuple[Level, Level], row: int) -> Tensor:
        self.brownian = self.brownian or self.source.path(len(x))
        return self.brownian.step(x, span, row)


class BrownianNoise:
    """Increments of one Brownian path for each image, scaled to variance 1.

    The path is a binary tree over time u = sigma / (alpha + sigma) in [0, 1]: the value at the middle of an interval is
    drawn from a seed made of the image's seed and the interval, given the values at its ends (Levy's construction). So
    the path depends on the seeds alone, not on which times were asked or in which order.

    seeds: one for each image. depth: halvings of [0, 1]; times closer than 2^-depth share a piece of path on which the
    value is linear.
    """

    def __init__(self, seeds: Sequence[int], *, depth: int = 24) -> None:
        if not 1 <= depth <= 40:
            raise ValueError(f"depth must be an integer from 1 to 40, got {depth!r}")
        self.seeds = [checked_seed(seed) for seed in seeds]
        self.depth = depth
        self._path: list[
            tuple[int, Tensor, Tensor]
        ]  # the branch last walked: (interval, left value, right value)
        self._forget()
        _paths.add(self)

    def _forget(self) -> None:
        """Back to the root. In a forked process too: a thread that held the lock is not there to let go."""
        self._lock = threading.Lock()  # of the branch, which threads sharing this source would tear apart
        self._path = []

    def start(self, x: Tensor) -> Tensor:
        return self._normal(x, 0)

    def step(self, x: Tensor, span: tuple[Level, Level], row: int) -> Tensor:
        late, early = (_time(level) for level in span)
        if (
            late < early
        ):  # noise put back (churn, restart) is none of the path's: it would come again on the way down
            return self._normal(x, RISING + row)
        width = late - early
        if width < 2.0**-self.depth:
            raise ValueError(f"a step narrower than 2^-{self.depth} needs a BrownianNoise of greater depth")
        with self._lock:
            return (self._value(x, late) - self._value(x, early)) / math.sqrt(width)

    def _value(self, x: Tensor, time: float) -> Tensor:
        """The path at `time`. Interval i of the tree at depth d is i = 2^d + k, covering [k, k + 1] / 2^d."""
        scaled = time * 2.0**self.depth
        leaf = min(int(scaled), 2**self.depth - 1)
        while self._path and (self._path[0][1].shape != x.shape or self._path[0][1].device != x.device):
            self._path.clear()  # another batch: walk its tree from the root
        while self._path and not _holds(self._path[-1][0], leaf, self.depth):
            self._path.pop()
        if not self._path:
            origin = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
            self._path.append((1, origin, self._normal(x, 1)))
        while len(self._path) <= self.depth:
            self._descend(x, leaf)
        _, left, right = self._path[-1]
        return torch.lerp(left, right, scaled - leaf)

    def _descend(self, x: Tensor, leaf: int) -> None:
        level = len(self._path) - 1
        interval, left, right = self._path[-1]
        spread = (
            math.sqrt(2.0**-level) / 2
        )  # deviation of the middle, given both ends of an interval 2^-level wide
        middle = torch.lerp(left, right, 0.5).add_(self._normal(x, 2 * interval), alpha=spread)
        goes_right = (leaf >> (self.depth - level - 1)) & 1
        self._path.append(
            (2 * interval + goes_right, middle if goes_right else left, right if goes_right else middle)
        )

    def _normal(self, x: Tensor, node: int) -> Tensor:
        check_count(self.seeds, x)
        return SeededNoise([mixed(seed, node) for seed in self.seeds]).start(x)


_paths: weakref.WeakSet[BrownianNoise] = weakref.WeakSet()


def _after_fork() -> None:
    for source in list(_paths):
        source._forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _time(level: Level) -> float:
    return level.sigma / (level.alpha + level.sigma)


def _holds(interval: int, leaf: int, depth: int) -> bool:
    return (2**depth + leaf) >> (depth + 1 - interval.bit_length()) == interval


def check_count(seeds: Sequence[int], x: Tensor) -> None:
    """ValueError unless there is one seed for each image of x."""
    if len(x) != len(seeds):
        raise ValueError(f"there are {len(seeds)} seeds for {len(x)} images: give one seed for each")


def checked_seed(seed: int) -> int:
    """seed as a Python integer, from any integer type."""
    try:
        number = -1 if isinstance(seed, bool) else operator.index(seed)
    except TypeError:
        number = -1
    if not 0 <= number <= MAX_SEED:
        raise ValueError(f"a seed must be an integer from 0 to 2^63 - 1, got {seed!r}")
    return number


def generator_of(seed: int) -> torch.Generator:
    """A CPU generator started from a checked seed."""
    return torch.Generator().manual_seed(checked_seed(seed))


def mixed(seed: int, node: int) -> int:
    """A seed for one node of one image's tree (the finaliser of splitmix64: Steele, Lea and Flood, OOPSLA 2014)."""
    z = (seed + 0x9E3779B97F4A7C15 * (node + 1)) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return (z ^ (z >> 31)) & MAX_SEED
