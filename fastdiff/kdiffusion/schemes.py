"""k-diffusion's samplers as rows: fastdiff's planners, and beside each what k-diffusion tells the model and the noise.

The weights are float64 from the planners. The sigmas that a model, a noise sampler or a callback sees are computed in
the dtype of the sigmas given and by k-diffusion's own formulas, so that they have its bits: a Brownian tree asked at a
sigma that is off by one rounding gives other noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, TypeAlias

import torch
from torch import Tensor

from fastdiff.kdiffusion.sigmas import get_ancestral_step
from fastdiff.levels import Level
from fastdiff.plan import Row
from fastdiff.samplers import SAMPLERS

Options: TypeAlias = Mapping[str, Any]
Span: TypeAlias = tuple[Tensor, Tensor]
RowsOf: TypeAlias = Callable[[Sequence[Level], torch.dtype, Options], Iterable[Row]]


@dataclass(frozen=True)
class Grid:
    """The sigmas of a run. a, b: [N], where each step starts and ends, in the sigmas' dtype; raised: [N] bool, whether
    noise is put back before it."""

    a: Tensor
    b: Tensor
    raised: Tensor


@dataclass(frozen=True)
class Scheme:
    """One sampler.

    rows: the rows of levels, from the dtype of the sigmas and the options; may raise ZeroDivisionError for equal
    sigmas. calls: the sigmas of a step's model calls, for all steps at once. draws: after which of a step's calls
    noise is drawn, from the sigma it ends at, its number of calls, and the options. spans: the sigmas the noise
    sampler is asked for at each call, if not the step's own. churns: noise is drawn before each step instead, whether
    or not it is used. slopes: the numbers of calls with which a step goes along k-diffusion's to_d, whose result has
    the dtype of the sigmas if that is the higher. check: raises ValueError (ZeroDivisionError) for what it cannot do.
    """

    rows: RowsOf
    calls: Callable[[Grid, Options], Sequence[Tensor]] = lambda grid, options: (grid.a,)
    draws: Callable[[float, int, Options], Sequence[int]] = lambda b, calls, options: ()
    spans: Callable[[Grid, Options], Sequence[Span]] | None = None
    churns: bool = False
    slopes: tuple[int, ...] = ()
    check: Callable[[Sequence[Level], Options], None] = lambda levels, options: None


def _hat(grid: Grid, options: Options) -> Tensor:
    gamma = min(options["churn"] / len(grid.a), 2**0.5 - 1)
    return torch.where(grid.raised, grid.a * (gamma + 1), grid.a)


def midpoint(a: Tensor, b: Tensor) -> Tensor:
    return a.log().lerp(b.log(), 0.5).exp()


def _partway(a: Tensor, b: Tensor, r: float) -> Tensor:
    t, t_next = a.log().neg(), b.log().neg()
    return (t + (t_next - t) * r).neg().exp()


def _sde_spans(grid: Grid, options: Options) -> Sequence[Span]:
    a, b = (sigma.log().neg().neg().exp() for sigma in (grid.a, grid.b))
    return (a, _partway(grid.a, grid.b, options["r"])), (a, b)


def _down(grid: Grid, options: Options) -> Tensor:
    down: Tensor = get_ancestral_step(grid.a, grid.b, options["eta"])[0]
    return down


def planned(name: str) -> RowsOf:
    return lambda levels, dtype, options: SAMPLERS[name](levels, **options)


def _ancestral(name: str, *, keeps_noise: bool = True) -> RowsOf:
    """The planner step by step; where nothing is carried over, as told in the sigmas' own dtype, k-diffusion goes to
    the denoised image. keeps_noise: and from there up to sigma_to, which its dpm_2_ancestral leaves out."""

    def rows(levels: Sequence[Level], dtype: torch.dtype, options: Options) -> Iterable[Row]:
        sigmas = torch.tensor([level.sigma for level in levels], dtype=dtype)
        downs = get_ancestral_step(sigmas[:-1], sigmas[1:], options["eta"])[0].tolist()
        for (a, b), down in zip(pairwise(levels), downs):
            if down:
                yield from SAMPLERS[name]((a, b), **{**options, "eta": _eta(a, b, down, options["eta"])})
            else:
                yield Row(a, b, history=(1.0,), noise=options["s_noise"] * b.sigma if keeps_noise else 0.0)

    return rows


def _eta(a: Level, b: Level, down: float, eta: float) -> float:
    """The eta with which a step from a to b lands at `down`, where that, the root of a difference, is imprecise: the
    model is told a sigma made of it, and x must lie there."""
    if down > b.sigma / 2:
        return eta
    return math.sqrt((1 - (down / b.sigma) ** 2) / (1 - (b.sigma / a.sigma) ** 2))


def falling(levels: Sequence[Level], options: Options) -> None:
    """The noise of these samplers is a function of a falling step."""
    if options["eta"] and any(b.sigma > a.sigma for a, b in pairwise(levels)):
        raise ValueError("sigmas rise, where this sampler has no noise to add: pass eta=0, or falling sigmas")


def _distinct(levels: Sequence[Level], options: Options) -> None:
    """Lagrange polynomials need nodes apart from each other."""
    for i in range(len(levels) - 1):
        nodes = [level.sigma for level in levels[max(0, i + 1 - options["order"]) : i + 1]]
        if len(set(nodes)) < len(nodes):
            raise ZeroDivisionError


ANY = (1, 2)
CHURNED = partial(Scheme, churns=True, slopes=ANY)
ANCESTRAL = partial(Scheme, draws=lambda b, calls, o: (calls - 1,) if b else ())
MULTISTEP = partial(Scheme, draws=lambda b, calls, o: (0,) if b and o["eta"] else (), check=falling)

SCHEMES: dict[str, Scheme] = {
    "euler": CHURNED(planned("euler"), lambda grid, o: (_hat(grid, o),)),
    "heun": CHURNED(planned("heun"), lambda grid, o: (_hat(grid, o), grid.b)),
    "dpm_2": CHURNED(planned("dpm_2"), lambda grid, o: (_hat(grid, o), midpoint(_hat(grid, o), grid.b))),
    "lms": Scheme(planned("lms"), slopes=ANY, check=_distinct),
    "euler_ancestral": ANCESTRAL(_ancestral("euler_ancestral"), slopes=ANY),
    "dpm_2_ancestral": Scheme(
        _ancestral("dpm_2_ancestral", keeps_noise=False),
        lambda grid, o: (grid.a, midpoint(grid.a, _down(grid, o))),
        draws=lambda b, calls, o: (1,) if calls == 2 else (),
        slopes=ANY,
    ),
    "dpmpp_2s_ancestral": ANCESTRAL(
        _ancestral("dpmpp_2s_ancestral"),
        lambda grid, o: (grid.a, _partway(grid.a, _down(grid, o), 0.5)),
        slopes=(1,),
    ),
    "dpmpp_sde": Scheme(
        planned("dpmpp_sde"),
        lambda grid, o: (grid.a, _partway(grid.a, grid.b, o["r"])),
        draws=lambda b, calls, o: (0, 1) if calls == 2 else (),
        spans=_sde_spans,
        slopes=(1,),
        check=falling,
    ),
    "dpmpp_2m": Scheme(planned("dpmpp_2m")),
    "dpmpp_2m_sde": MULTISTEP(planned("dpmpp_2m_sde")),
    "dpmpp_3m_sde": MULTISTEP(planned("dpmpp_3m_sde")),
}
"""By the part of the name after sample_."""
