"""A script: a plan, and for each of its rows when the model is called, at which sigma, and when noise is drawn.

Made once for a sampler, its sigmas and its options, and remembered; nothing in it changes afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastdiff.kdiffusion.flow import FLOW
from fastdiff.kdiffusion.schemes import SCHEMES, Grid, Options, Scheme
from fastdiff.levels import Level, LinearPath, VarianceExploding
from fastdiff.ops._remembered import remembered
from fastdiff.plan import Plan, Row
from fastdiff.predictions import resolve


class Move(NamedTuple):
    """One row of a step. row: its number; call: which of the script's model calls it makes, None for none; draw: which
    of its spans it asks the noise sampler for, None for none; slope: whether the result takes the sigmas' dtype."""

    row: int
    call: int | None
    draw: int | None = None
    slope: bool = False


@dataclass(frozen=True, eq=False)
class Script:
    """steps: the moves of each step. called: [calls], the model's sigmas; spans: [draws, 2], what the noise sampler is
    asked for; both as k-diffusion computes them. churns: noise is drawn before each step, from torch itself."""

    plan: Plan
    steps: tuple[tuple[Move, ...], ...]
    called: Tensor
    spans: Tensor
    churns: bool = False


def script_of(name: str, sigmas: Tensor, options: Options, *, flow: bool = False) -> Script:
    """The script of a sampler along sigmas: [N + 1]. Reads the sigmas to the host, the run's only synchronisation.

    flow: x = (1 - sigma) x0 + sigma noise instead of x0 + sigma noise. Raises TypeError or ValueError for sigmas or
    options that cannot be.
    """
    values = checked(sigmas)
    dtype = sigmas.dtype if sigmas.is_floating_point() else torch.get_default_dtype()
    return _script(name, tuple(values), dtype, sigmas.device, tuple(options.items()), flow and name in FLOW)


def checked(sigmas: Tensor) -> list[float]:
    """The sigmas as floats: finite, not negative, zero only at the end."""
    if not isinstance(sigmas, Tensor):
        raise TypeError(f"sigmas is a {type(sigmas).__name__}: pass a tensor, as of get_sigmas_karras")
    if sigmas.ndim != 1 or sigmas.is_complex():
        raise ValueError(f"sigmas has shape {list(sigmas.shape)}: it must be one-dimensional and real")
    if sigmas.requires_grad and torch.is_grad_enabled():
        raise ValueError("sigmas requires grad, but has no gradient: pass sigmas.detach()")
    values: list[float] = [float(value) for value in sigmas.tolist()]
    for i, value in enumerate(values):
        if not 0 <= value < math.inf or (not value and i < len(values) - 1):
            raise ValueError(f"sigma {i} is {value}: sigmas are finite and above 0, but for a 0 at the end")
    return values


@remembered(64)
def _script(
    name: str,
    values: tuple[float, ...],
    dtype: torch.dtype,
    device: torch.device,
    given: tuple[tuple[str, Any], ...],
    flow: bool,
) -> Script:
    scheme, options = (FLOW if flow else SCHEMES)[name], dict(given)
    process = LinearPath() if flow else VarianceExploding()
    levels = [process.level(value) for value in values]
    try:
        scheme.check(levels, options)
        rows = tuple(scheme.rows(levels, dtype, options))
    except ZeroDivisionError:
        raise ValueError(
            f"sample_{name} divides by the distance of neighbouring sigmas, and two are equal: leave one out"
        ) from None
    plan = Plan(rows=rows, levels=tuple(levels), prediction=resolve("sample"), name=name)
    steps = _by_step(rows, levels)
    with torch.inference_mode(False):
        sigmas = torch.tensor(values, dtype=dtype, device=device)
        raised = torch.tensor([not step[0][1].call for step in steps], device=device)
        grid = Grid(sigmas[:-1], sigmas[1:], raised)
        return _written(scheme, options, plan, steps, grid)


def _by_step(rows: Sequence[Row], levels: Sequence[Level]) -> list[list[tuple[int, Row]]]:
    """Rows with their numbers, in the steps between levels."""
    steps: list[list[tuple[int, Row]]] = [[] for _ in levels[1:]]
    here = 0
    for i, row in enumerate(rows):
        steps[here].append((i, row))
        here += row.call and row.accept and row.to is levels[here + 1]
    return steps


def _written(
    scheme: Scheme, options: Options, plan: Plan, steps: Sequence[Sequence[tuple[int, Row]]], grid: Grid
) -> Script:
    calls, spans = scheme.calls(grid, options), scheme.spans(grid, options) if scheme.spans else None
    moves: list[tuple[Move, ...]] = []
    called: list[Tensor] = []
    asked: list[tuple[Tensor, Tensor]] = []
    for i, step in enumerate(steps):
        count = sum(row.call for _, row in step)
        drawn = scheme.draws(plan.levels[i + 1].sigma, count, options)
        written, call = [], 0
        for number, row in step:
            if not row.call:
                written.append(Move(number, None))
                continue
            draw = None
            if call in drawn:
                draw = len(asked)
                low, high = spans[call] if spans else (grid.a, grid.b)
                asked.append((low[i], high[i]))
            written.append(Move(number, len(called), draw, count in scheme.slopes))
            called.append(calls[call][i])
            call += 1
        moves.append(tuple(written))
    empty = grid.a.new_empty((0, 2))
    pairs = torch.stack([torch.stack(pair) for pair in asked]) if asked else empty
    return Script(plan, tuple(moves), torch.stack(called), pairs, scheme.churns)
