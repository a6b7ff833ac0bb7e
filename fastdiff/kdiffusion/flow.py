"""The samplers that add noise, on the path of flow models: x = (1 - sigma) x0 + sigma noise.

The others are the same on both paths, since dx/dsigma = (x - denoised) / sigma on this one too. The formulas, and which
sigmas a model is told, are those of ComfyUI's samplers for models of type CONST: an ancestral step goes down to
sigma_to (1 + (sigma_to / sigma_from - 1) eta), then up again. sigma: at most 1, below 1 for the dpmpp samplers but 2s.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from fastdiff.kdiffusion.schemes import Grid, Options, RowsOf, Scheme, Span, falling, midpoint, planned
from fastdiff.levels import Level
from fastdiff.plan import Row
from fastdiff.samplers._moves import first_order, gains
from fastdiff.samplers.runge_kutta import midpoint_move

Move = Callable[[Level, Level], Iterable[Row]]
ALMOST_NOISE = 0.9999  # where the first stage from pure noise ends, log(alpha / sigma) being infinite there


def _down_to(b: Tensor | float, a: Tensor | float, eta: float) -> Tensor | float:
    return b * (1 + (b / a - 1) * eta)


def _ancestral(move: Move) -> RowsOf:
    """The move to a lower sigma, then fresh noise."""

    def rows(levels: Sequence[Level], dtype: torch.dtype, options: Options) -> Iterator[Row]:
        for a, b in pairwise(levels):
            if not b.sigma:
                yield first_order(a, b)
                continue
            assert b.process is not None
            down = b.process.level(float(_down_to(b.sigma, a.sigma, options["eta"])))
            *stages, last = move(a, down)
            keep = b.alpha / down.alpha
            fresh = math.sqrt(max(0.0, b.sigma**2 - (keep * down.sigma) ** 2))
            yield from stages
            yield replace(
                last, to=b, x=keep * last.x, anchor=keep * last.anchor, history=tuple(keep * c for c in last.history),
                noise=options["s_noise"] * fresh,
            )  # fmt: skip

    return rows


def _single_step(a: Level, b: Level) -> Iterator[Row]:
    """DPM-Solver++(2S): the second stage in the middle of log(alpha / sigma)."""
    assert a.process is not None
    m = a.at(math.sqrt(a.ratio * b.ratio)) if a.alpha else a.process.level(ALMOST_NOISE)
    r, gain = gains(a, m)
    yield Row(a, m, x=r, history=(gain,), accept=False)
    r, gain = gains(a, b)
    yield Row(m, b, anchor=r, history=(gain,))


def _lam(sigma: Tensor) -> Tensor:
    return sigma.logit().neg()


def _partway(a: Tensor, b: Tensor, r: float) -> Tensor:
    low, high = _lam(a), _lam(b)
    return (low + r * (high - low)).neg().sigmoid()


def _single_step_calls(grid: Grid, options: Options) -> Sequence[Tensor]:
    down = torch.as_tensor(_down_to(grid.b, grid.a, options["eta"]))
    low, high = ((1 - sigma).div(sigma).log() for sigma in (grid.a, down))
    middle = (low + 0.5 * (high - low)).exp().add(1).reciprocal()
    return grid.a, torch.where(grid.a < 1, middle, ALMOST_NOISE)


def _midpoint_calls(grid: Grid, options: Options) -> Sequence[Tensor]:
    return grid.a, midpoint(grid.a, torch.as_tensor(_down_to(grid.b, grid.a, options["eta"])))


def _sde_spans(grid: Grid, options: Options) -> Sequence[Span]:
    return (grid.a, _partway(grid.a, grid.b, options["r"])), (grid.a, grid.b)


def _below_one(levels: Sequence[Level], options: Options) -> None:
    falling(levels, options)
    if levels[0].sigma >= 1:
        raise ValueError("this sampler starts below pure noise: lower the first sigma a little, as to 0.9999")


def _fresh(b: float, options: Options) -> bool:
    return bool(b and options["eta"] and options["s_noise"])


MULTISTEP = partial(Scheme, draws=lambda b, calls, o: (0,) if _fresh(b, o) else (), check=_below_one)
ANCESTRAL = partial(Scheme, draws=lambda b, calls, o: (calls - 1,) if b and o["eta"] else (), check=falling)

FLOW: dict[str, Scheme] = {
    "euler_ancestral": ANCESTRAL(_ancestral(lambda a, b: (first_order(a, b),))),
    "dpm_2_ancestral": ANCESTRAL(
        _ancestral(midpoint_move),
        _midpoint_calls,
        draws=lambda b, calls, o: (1,) if calls == 2 else (),
    ),
    "dpmpp_2s_ancestral": ANCESTRAL(_ancestral(_single_step), _single_step_calls),
    "dpmpp_sde": Scheme(
        planned("dpmpp_sde"),
        lambda grid, o: (grid.a, _partway(grid.a, grid.b, o["r"])),
        draws=lambda b, calls, o: (0, 1) if calls == 2 and _fresh(b, o) else (),
        spans=_sde_spans,
        check=_below_one,
    ),
    "dpmpp_2m_sde": MULTISTEP(planned("dpmpp_2m_sde")),
    "dpmpp_3m_sde": MULTISTEP(planned("dpmpp_3m_sde")),
}
"""By the part of the name after sample_."""
