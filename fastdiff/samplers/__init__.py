"""The samplers, by name. Each is a planner: levels in, noisiest first, rows out. To add one, write it, name it here."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import partial
from typing import Any

from fastdiff.choices import unknown
from fastdiff.plan import Planner
from fastdiff.samplers.dpmpp import (
    dpmpp_2m,
    dpmpp_2m_sde,
    dpmpp_2s_ancestral,
    dpmpp_3m_sde,
    dpmpp_sde,
    dpmpp_singlestep,
)
from fastdiff.samplers.first_order import ddim, ddpm, euler_ancestral, lcm, tcd
from fastdiff.samplers.linear_multistep import deis, ipndm, lms, plms, pndm
from fastdiff.samplers.predictor_corrector import sa_solver, unipc
from fastdiff.samplers.runge_kutta import dpm_2, dpm_2_ancestral, edm, euler, heun, restart

SAMPLERS: dict[str, Planner] = {
    planner.__name__: planner
    for planner in (
        ddpm,
        ddim,
        euler,
        euler_ancestral,
        heun,
        dpm_2,
        dpm_2_ancestral,
        lms,
        plms,
        pndm,
        ipndm,
        deis,
        dpmpp_2s_ancestral,
        dpmpp_2m,
        dpmpp_2m_sde,
        dpmpp_3m_sde,
        dpmpp_sde,
        dpmpp_singlestep,
        unipc,
        sa_solver,
        edm,
        restart,
        lcm,
        tcd,
    )
}


def resolve(sampler: str | Planner, options: Mapping[str, Any] | None = None) -> Planner:
    """The planner of that name, or the given one, with its options bound.

    Raises ValueError for a name or an option that does not exist.
    """
    if isinstance(sampler, str):
        if sampler not in SAMPLERS:
            raise unknown("sampler", sampler, SAMPLERS)
        sampler = SAMPLERS[sampler]
    if not options:
        return sampler
    name = getattr(sampler, "__name__", "this sampler")
    known = [p.name for p in inspect.signature(sampler).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for option in options:
        if option not in known:
            raise ValueError(
                f"{name} has no option {option!r}; its options are: {', '.join(known) or 'none'}"
            )
    bound = partial(sampler, **options)
    bound.__name__ = name  # type: ignore[attr-defined]
    return bound
