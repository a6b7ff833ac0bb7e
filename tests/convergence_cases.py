"""Each deterministic sampler with a grid on which theory gives it a definite order, and how the order is measured.

docs/samplers.md explains the choice of grids. Shared by the convergence test and the convergence benchmark.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from fastdiff.levels import Level, LinearPath, Process
from fastdiff.plan import Plan
from fastdiff.samplers import SAMPLERS
from oracles import Mixture, execute, levels_at, mixture_2d, solve_ode

Grid = Callable[[Process, int], list[Level]]


def gentle(high: float, low: float) -> Grid:
    """log(sigma / alpha) falls as 3u^2 - 2u^3: the first and last steps are O(h^2), so a lower-order step there costs
    a multistep method nothing."""

    def grid(process: Process, steps: int) -> list[Level]:
        smooth = [u * u * (3 - 2 * u) for u in (i / steps for i in range(steps + 1))]
        return levels_at(process, [high * (low / high) ** v for v in smooth])

    return grid


def even_s(high: float, low: float) -> Grid:
    """Even in s = sigma / scale, the grid pndm, plms and ipndm are made for. high, low: sigma / alpha."""

    def grid(process: Process, steps: int) -> list[Level]:
        start, end = process.at(high), process.at(low)
        inner = [start.at_s(start.s + (end.s - start.s) * i / steps) for i in range(1, steps)]
        return [start, *inner, end]

    return grid


GENTLE, EVEN = gentle(20.0, 0.05), even_s(20.0, 1.0)


@dataclass(frozen=True)
class Case:
    """A sampler, its options, the order theory predicts on `grid`, and the numbers of steps it is measured between."""

    sampler: str
    order: int
    options: Mapping[str, Any] = field(default_factory=dict)
    grid: Grid = GENTLE
    steps: tuple[int, ...] = (80, 160)
    flow_order: int | None = None  # the order on the linear path, where it differs

    def order_on(self, process: Process) -> int:
        """The order theory predicts on a process."""
        return self.flow_order if self.flow_order and isinstance(process, LinearPath) else self.order

    @property
    def name(self) -> str:
        shown = ", ".join(f"{k}={v}" for k, v in self.options.items())
        return f"{self.sampler}({shown})" if shown else self.sampler


@dataclass(frozen=True)
class Measured:
    """Model calls and errors, one for each number of steps."""

    calls: tuple[int, ...]
    errors: tuple[float, ...]

    @property
    def order(self) -> float:
        """The slope between the last two: log(error ratio) / log(step ratio)."""
        return math.log(self.errors[-2] / self.errors[-1]) / math.log(self.calls[-1] / self.calls[-2])


def starts(start: Level, count: int = 16) -> torch.Tensor:
    """Points [count, 2] of the mixture's marginal at a level."""
    generator = torch.Generator().manual_seed(0)
    data = mixture_2d().draw(count, generator)
    return start.alpha * data + start.sigma * torch.randn(count, 2, dtype=torch.float64, generator=generator)


_solutions: dict[tuple[float, ...], torch.Tensor] = {}


def exact(mixture: Mixture, x: torch.Tensor, start: Level, end: Level) -> torch.Tensor:
    """`solve_ode`, remembered: most cases share their ends."""
    key = (start.alpha, start.sigma, end.alpha, end.sigma)
    if key not in _solutions:
        _solutions[key] = solve_ode(mixture, x, start, end)
    return _solutions[key]


def measure(case: Case, process: Process, steps: Sequence[int] = ()) -> Measured:
    """Errors of the sampler against the exact solution of the probability-flow ODE (root mean square, relative), at
    case.steps if no steps are given."""
    mixture, calls, errors = mixture_2d(), [], []
    for count in steps or case.steps:
        levels = case.grid(process, count)
        plan = Plan.build(SAMPLERS[case.sampler], levels, prediction="sample", options=case.options)
        x = starts(levels[0])
        found, truth = execute(plan, mixture.denoise, x), exact(mixture, x, levels[0], levels[-1])
        errors.append(float((found - truth).norm() / truth.norm()))
        calls.append(plan.calls)
    return Measured(tuple(calls), tuple(errors))


FINE = (160, 320)
FINER = (640, 960)

CASES = (
    Case("ddim", 1),
    Case("euler", 1),
    Case("heun", 2),
    Case("edm", 2, {"churn": 0.0}),
    Case("dpm_2", 2),
    Case("dpm_2_ancestral", 2, {"eta": 0.0}),
    Case("dpmpp_2m", 2),
    Case("dpmpp_2m_sde", 2, {"eta": 0.0}),
    Case("dpmpp_2m_sde", 2, {"eta": 0.0, "solver_type": "heun"}),
    Case("dpmpp_3m_sde", 2, {"eta": 0.0}),
    Case("dpmpp_2s_ancestral", 2, {"eta": 0.0}),
    Case("dpmpp_sde", 2, {"eta": 0.0}),
    *(Case("dpmpp_singlestep", k, {"order": k}, steps=FINE) for k in (1, 2, 3)),
    *(Case("deis", k, {"order": k}, steps=FINE) for k in (1, 2, 3)),
    *(Case("lms", k, {"order": k}, steps=FINE) for k in (1, 2, 3, 4)),
    *(Case("unipc", k, {"order": k, "corrector": False}) for k in (1, 2, 3)),
    *(
        Case("unipc", k + 1, {"order": k, "solver_type": b}, steps=FINE)
        for b in ("bh1", "bh2") for k in (1, 2, 3)
    ),
    *(
        Case("sa_solver", order, {"tau": 0.0, "predictor_order": p, "corrector_order": c}, steps=FINE)
        for p, c, order in ((1, 0, 1), (2, 0, 2), (3, 0, 3), (1, 1, 1), (2, 2, 2), (2, 3, 3), (3, 4, 4))
    ),
    # Made for an even grid: there, the order is that of the start, or of the method where the start costs nothing.
    Case("pndm", 4, grid=EVEN, steps=FINER),
    Case("plms", 4, grid=EVEN, steps=FINER, flow_order=3),
    Case("ipndm", 3, {"order": 3}, EVEN, FINER, flow_order=2),
    Case("ipndm", 4, grid=EVEN, steps=FINER, flow_order=2),
    # ... and on an uneven one 2.
    Case("pndm", 2, steps=FINE),
    Case("plms", 2, steps=FINE),
    Case("ipndm", 2, steps=FINE),
)  # fmt: skip
