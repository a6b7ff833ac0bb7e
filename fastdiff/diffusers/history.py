"""History: what diffusers' own scheduler would remember of the steps that a fused loop has taken.

The steps run again on symbols, which leaves in the scheduler's attributes what each is made of; then every symbol gives
way to the image that it stands for, made of those that the fused loop holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdiff.diffusers.solving import WIDTH, Solver
from fastdiff.diffusers.symbols import KINDS, NOISES, QUERIES, Symbol, Vector, coefficients
from fastdiff.diffusers.tracing import Trace, trace
from fastdiff.plan import COLUMN

DIVERTED = ("noise_sampler", "_threshold_sample", "_internal_dict")
"""Attributes that the trace replaces."""
TOLERANCE = 1e-6
"""Of the largest weight: what diffusers' float32 arithmetic leaves of what cancels exactly."""


def remember(made: Any, scheduler: Any, run: Any) -> None:
    """Write into `made` what diffusers would remember of a run's steps."""
    again = run.memory.copy(run.plan.begin)
    if scheduler._counts == "counter":
        again.counter = 0
    times = scheduler._arguments(run.memory.plain.timesteps)[run.plan.first :][: run.row]
    images = _Images(run, trace(again, times, run.options))
    device = scheduler.timesteps.device
    for name, value in vars(again).items():
        if name in DIVERTED or (isinstance(vars(made).get(name), Tensor) and not isinstance(value, Symbol)):
            continue
        if isinstance(value, list):
            value = [images.of(item) if isinstance(item, Symbol) else item for item in value]
            value = [item.to(device) if type(item) is Tensor and not item.dim() else item for item in value]
        vars(made)[name] = images.of(value) if isinstance(value, Symbol) else value
    if run.memory.path is not None:
        made.noise_sampler = run.memory.path


class _Images:
    """The images that a run holds, each with what it is made of."""

    def __init__(self, run: Any, steps: Trace) -> None:
        self.like = run.returned
        last, values = run.row - 1, Solver(steps).values
        size = len(steps.steps) * WIDTH
        self.known: list[tuple[Vector, Tensor]] = []
        for number, image in _values(run).items():
            vector = np.zeros(size)
            vector[number * WIDTH : (number + 1) * WIDTH] = values[number]
            self.known.append((vector, image))
        single = [((last - back) * WIDTH + KINDS.index("x"), x) for back, x in enumerate(run.samples)]
        drawn = run.plan.lines[last].drawn
        if drawn < 0:  # a corrector leaves out the noise that its predictor left out
            single += [(last * WIDTH + place, torch.zeros_like(run.returned)) for place in NOISES]
        elif run.noise is not None and run.noise[0] == last:
            single.append((last * WIDTH + NOISES[drawn], run.noise[1]))
        self.known += [(np.eye(1, size, place)[0], image) for place, image in single]
        if run.state is not None or run.returned._version == run.version:
            image = run.returned if run.state is None else run.state
            self.known.append((steps.steps[last].outputs[0], image))

    def of(self, symbol: Symbol) -> Tensor:
        """The image that a symbol stands for."""
        target = coefficients(symbol)
        unit = float(np.abs(target).max()) or 1.0
        for vector, image in self.known:
            if vector.shape == target.shape and np.abs(vector - target).max() <= TOLERANCE * unit:
                return image.to(self.like.dtype)
        basis = np.array([vector for vector, _ in self.known]).reshape(len(self.known), -1)
        if not len(basis) or basis.shape[1] != len(target):
            return lost(self.like.shape, self.like.dtype, self.like.device)
        norms = np.linalg.norm(basis, axis=1, keepdims=True)
        weights = np.linalg.lstsq((basis / norms).T, target, rcond=TOLERANCE)[0] / norms[:, 0]
        if np.abs(weights @ basis - target).max() > TOLERANCE * unit:
            return lost(self.like.shape, self.like.dtype, self.like.device)
        terms = [float(w) * image.to(self.known[0][1].dtype) for w, (_, image) in zip(weights, self.known)]
        return torch.stack(terms).sum(0).to(self.like.dtype)


def _values(run: Any) -> dict[int, Tensor]:
    """The values that a run still holds, by the row that wrote them."""
    places = [int(place) for place in run.plan.table[: run.row, COLUMN["slot"]]]
    if run.ring is not None:
        return {
            number: run.ring[cell]
            for cell, number in {p % len(run.ring): i for i, p in enumerate(places)}.items()
        }
    later = enumerate(run.plan.lines[run.row :], run.row)
    read = {number - lag for number, line in later for lag in line.history if lag}
    held = {place: number for number, place in enumerate(places) if place < len(run.values)}
    return {number: run.values[place] for place, number in held.items() if number in read}


class Lost(Tensor):
    """Stands for an image that the fused loop did not keep, since none of its later steps reads it."""

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func.__name__.strip("_") in QUERIES | {"get", "getitem"}:
            return super().__torch_function__(func, types, args, kwargs or {})
        raise RuntimeError(
            "an image of an earlier step, which the fused loop did not keep, is read: call set_timesteps and begin anew"
        )

    def __deepcopy__(self, memo: Any) -> Lost:
        return self

    def __reduce_ex__(self, protocol: Any) -> Any:
        return lost, (tuple(self.shape), self.dtype, self.device)


def lost(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Lost:
    """An image that can be passed on and indexed, but not read."""
    return torch.full((), torch.nan, dtype=dtype, device=device).expand(tuple(shape)).as_subclass(Lost)
