"""Tracing: diffusers' own scheduler, run once on symbols from a given step to the last."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from fastdiff.diffusers.learned import WIDE
from fastdiff.diffusers.symbols import (
    KINDS,
    NotLinear,
    Recording,
    Step,
    Symbol,
    Vector,
    coefficients,
    drawing_symbols,
    recording,
)


@dataclass(frozen=True)
class Trace:
    """A run on symbols. steps: what each did; kept: what the scheduler remembers of each step's own output, as a
    direction over that step's symbols, None where it remembers nothing; scales: of the model's input."""

    steps: tuple[Step, ...]
    kept: tuple[Vector | None, ...]
    scales: tuple[float, ...]


IMAGE = object()
"""Stands for an image among step()'s arguments."""


def trace(plain: Any, times: Sequence[Any], options: Mapping[str, Any]) -> Trace:
    """Run a plain diffusers scheduler, which is used up, through step() at each of `times`.

    options: step()'s other arguments, IMAGE where one is an image. A scheduler that fails part-way has the steps until
    then. Raises NotLinear where a step is more than weights, and what the scheduler raises at its first step.
    """
    with recording(len(times)) as symbols:
        _divert(plain, symbols)
        taken = _taken(enumerate(times), plain, symbols, options)
    return _joined(taken)


def trace_each(plain: Any, times: Sequence[Any], options: Mapping[str, Any]) -> list[Trace]:
    """The same for steps that know nothing of each other: a trace of each."""
    with recording(1) as symbols:
        _divert(plain, symbols)
        taken = _taken(((0, time) for time in times), plain, symbols, options)
    return [_joined([one]) for one in taken]


def _joined(taken: Sequence[tuple[Step, Vector | None, float]]) -> Trace:
    return Trace(tuple(t[0] for t in taken), tuple(t[1] for t in taken), tuple(t[2] for t in taken))


def _taken(
    times: Iterable[tuple[int, Any]], plain: Any, symbols: Recording, options: Mapping[str, Any]
) -> list[tuple[Step, Vector | None, float]]:
    """The steps at numbered times, with what is kept of each and the scale of its input."""
    taken: list[tuple[Step, Vector | None, float]] = []
    for symbols.number, time in times:
        symbols.step = Step()
        try:
            scale = _scale(plain, symbols, time)
            outputs = _step(plain, symbols, time, options)
        except (IndexError, ValueError):
            if not taken:
                raise
            break
        symbols.step.outputs = tuple(_vector(output, symbols) for output in outputs)
        taken.append((symbols.step, _remembered(plain, symbols), scale))
    return taken


def _step(plain: Any, symbols: Recording, time: Any, options: Mapping[str, Any]) -> Sequence[Any]:
    output = symbols.wide() if options.get("model_output") == WIDE else symbols.symbol("output")
    given = {k: symbols.symbol("given") if v is IMAGE else v for k, v in options.items()}
    images = {"model_output": output, "sample": symbols.symbol("x")}
    outputs = plain.step(timestep=time, **(given | images), return_dict=False)
    return outputs if isinstance(outputs, tuple) else (outputs,)


def _vector(output: Any, symbols: Recording) -> Vector:
    if output is None:
        return np.zeros(0)
    if not isinstance(output, Symbol) or output.numel() != symbols.size:
        raise NotLinear("a result that is no image")
    return coefficients(output)


def _scale(plain: Any, symbols: Recording, time: Any) -> float:
    """What scale_model_input multiplies the sample by."""
    if not hasattr(plain, "scale_model_input"):
        return 1.0
    base: Any = type(plain)
    x = symbols.symbol("x")
    scaled = plain.scale_model_input(x, time) if _scales_by_time(base) else plain.scale_model_input(x)
    return float(coefficients(scaled)[symbols.place("x")])


@functools.cache
def _scales_by_time(base: Any) -> bool:
    return len(inspect.signature(base.scale_model_input).parameters) > 2


def _divert(plain: Any, symbols: Recording) -> None:
    """What a scheduler draws, and does through methods or samplers of its own, as symbols."""
    base: Any = type(plain)
    plain.__class__ = drawing_symbols(base)
    if hasattr(plain, "_threshold_sample"):
        plain._threshold_sample = lambda sample: symbols.clamped(sample, -1.0, 1.0, dynamic=True)
    if hasattr(plain, "noise_sampler"):

        def sampler(sigma: Any, sigma_next: Any) -> Symbol:
            symbols.step.spans.append((float(sigma), float(sigma_next)))
            return symbols.drawn(None)

        plain.noise_sampler = sampler


def _remembered(plain: Any, symbols: Recording) -> Vector | None:
    """The part of what the scheduler stores that stems from this step's output: over the step's own symbols."""
    start = symbols.number * len(KINDS)
    own = slice(start, start + len(KINDS))
    lists = [image for values in vars(plain).values() if isinstance(values, list) for image in values[::-1]]
    listed = [coefficients(image, own) for image in lists if isinstance(image, Symbol)]
    single = [coefficients(image, own) for image in vars(plain).values() if isinstance(image, Symbol)]
    # Lists come first: a corrected sample, kept too, mixes in earlier ones.
    made = [c for c in (*listed, *single) if c[KINDS.index("output")] or c[KINDS.index("denoised")]]
    return made[0] if made else next((c for c in listed if c.any()), None)


def plain_copy(state: Mapping[str, Any], base: type) -> Any:
    """A scheduler of class `base` in that state, its tensors on the CPU."""
    plain: Any = object.__new__(base)
    for name, value in state.items():
        # `scheduler.step = torch.compile(scheduler.step)` puts a method among the attributes: it is not diffusers'
        if name not in ("_run", "_plain") and not inspect.isfunction(getattr(base, name, None)):
            vars(plain)[name] = _on_cpu(value)
    return plain


def _on_cpu(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, list):
        return copy.copy(value)
    return value
