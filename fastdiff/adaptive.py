"""dpm_adaptive: DPM-Solver-12 and -23 with a step size chosen by the error (arXiv:2206.00927, appendix C; k-diffusion).

Not a plan, since its rows depend on the images; but each attempted step is one: stages, then a row without a model call
that gives the lower-order result to compare with.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from fastdiff.choices import unknown
from fastdiff.executor import Run, Setting
from fastdiff.levels import Level
from fastdiff.plan import Plan, Row, tail
from fastdiff.predictions import Prediction
from fastdiff.samplers._moves import ancestral_split, first_order

NAME = "dpm_adaptive"
MAX_ATTEMPTS = 10_000


@dataclass
class StepSize:
    """A PID controller of the step h in lam, as in k-diffusion."""

    h: float
    order: float
    pcoeff: float
    icoeff: float
    dcoeff: float
    safety: float
    errors: tuple[float, float, float] | None = None

    def accepts(self, error: float) -> bool:
        """Whether a step with this error, 1 being just tolerable, stands; h becomes the next step to try."""
        inverse = 1.0 / (error + 1e-8)
        e0, e1, e2 = (inverse, *self.errors[1:]) if self.errors else (inverse,) * 3
        p, i, d = self.pcoeff / self.order, self.icoeff / self.order, self.dcoeff / self.order
        factor = 1.0 + math.atan(e0 ** (p + i + d) * e1 ** -(p + 2 * d) * e2**d - 1.0)
        accepted = factor >= self.safety
        self.errors = (e0, e0, e1) if accepted else (e0, e1, e2)
        self.h *= factor
        return accepted


@dataclass(frozen=True, kw_only=True)
class Options:
    """order: 2 (DPM-Solver-12) or 3 (-23). rtol, atol: tolerance of a step, relative and absolute. h_init: the first
    step in lam. pcoeff, icoeff, dcoeff, accept_safety: the controller. eta, s_noise: fresh noise, as in ancestral
    samplers. Defaults are k-diffusion's.
    """

    order: int = 3
    rtol: float = 0.05
    atol: float = 0.0078
    h_init: float = 0.05
    pcoeff: float = 0.0
    icoeff: float = 1.0
    dcoeff: float = 0.0
    accept_safety: float = 0.81
    eta: float = 0.0
    s_noise: float = 1.0

    def __post_init__(self) -> None:
        if self.order not in (2, 3):
            raise ValueError(f"order of {NAME} must be 2 or 3, got {self.order!r}")
        if not (self.rtol > 0 and self.atol >= 0 and self.h_init > 0):
            raise ValueError(
                f"{NAME} needs rtol > 0, atol >= 0 and h_init > 0, got {self.rtol}, {self.atol} and {self.h_init}"
            )

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Options:
        """From names and values; ValueError for a name that does not exist."""
        for name in given:
            if name not in cls.__dataclass_fields__:
                raise unknown(f"option of {NAME}", name, cls.__dataclass_fields__)
        return cls(**given)

    def step_size(self) -> StepSize:
        order = 1.5 if self.eta else self.order
        return StepSize(self.h_init, order, self.pcoeff, self.icoeff, self.dcoeff, self.accept_safety)


@dataclass(frozen=True)
class AdaptivePlan:
    """What `dpm_adaptive` makes of a schedule: only the ends are known. From the first level to the last but one by
    error-controlled steps, then to the last by a plain one. One step size serves the whole batch: here an image does
    depend on its neighbours.
    """

    levels: tuple[Level, ...]
    prediction: Prediction
    clip: tuple[float, float] | None = None
    options: Options = field(default_factory=Options)
    name: str = NAME
    calls: None = None
    needs_path: bool = False

    def start_at(self, strength: float) -> AdaptivePlan:
        """From the level at which the last `strength` of the schedule's steps begin."""
        return replace(self, levels=tail(self.levels, strength))

    def walk(self, x: Tensor, setting: Setting) -> Tensor:
        """From x at the first level to the last. ValueError if the model's output is not finite."""
        if len(self.levels) < 2:
            return x
        level, *inner, last = self.levels
        if not level.alpha and inner:  # pure noise: one plain step to where lam is finite
            x = self._run([first_order(level, inner[0])], x, setting)[-1]
            level = inner[0]
        end = inner[-1] if inner else level
        x = self._controlled(level, end, x, setting)
        return self._run([first_order(end, last)], x, setting)[-1]

    def _controlled(self, level: Level, end: Level, x: Tensor, setting: Setting) -> Tensor:
        options, size, before = self.options, self.options.step_size(), x
        for _ in range(MAX_ATTEMPTS):
            if level.lam >= end.lam - 1e-5:
                return x
            to = end if level.lam + size.h >= end.lam else level.at(math.exp(-level.lam - size.h))
            carried, fresh = ancestral_split(level, to, options.eta)
            down = to if not fresh else to.at(max(carried / to.alpha, end.ratio))
            states = self._run(list(attempt(level, down, options.order)), x, setting)
            low, high = states[-1], states[-2]
            if size.accepts(error_of(low, high, before, options.rtol, options.atol)):
                span, before, x, level = (level, to), low, high, to
                if down.ratio < to.ratio:
                    x = self._run([_renoise(down, to, options.s_noise, span)], x, setting)[-1]
        raise ValueError(f"{NAME} made no headway in {MAX_ATTEMPTS} steps: raise rtol or atol")

    def _run(self, rows: list[Row], x: Tensor, setting: Setting) -> list[Tensor]:
        ends = (rows[0].level, rows[-1].to)
        return Run(Plan(tuple(rows), ends, self.prediction, self.clip, name=NAME), x, setting).recorded()


def attempt(a: Level, b: Level, order: int) -> Iterator[Row]:
    """The stages from a to b, then the row of the result one order lower, both from noise predictions."""

    def predicted(level: Level) -> tuple[float, float]:
        return 1.0 / level.sigma, -level.alpha / level.sigma

    h = b.lam - a.lam
    keep, gain = b.alpha / a.alpha, -b.sigma * math.expm1(h)
    stages = [a.at(math.exp(-a.lam - part * h)) for part in ((0.5,) if order == 2 else (1 / 3, 2 / 3))]
    m = stages[0]
    near = -m.sigma * math.expm1(m.lam - a.lam)
    yield Row(a, m, x=m.alpha / a.alpha, history=(near,), value=predicted(a), accept=False)
    if order == 2:
        yield Row(m, b, anchor=keep, history=(gain,), value=predicted(m), accept=False)
        yield Row(b, b, anchor=keep, history=(0.0, 0.0, gain), call=False)
        return
    n = stages[1]
    far, reach = -n.sigma * math.expm1(n.lam - a.lam), n.lam - a.lam
    tilt = -n.sigma * 2.0 * (math.expm1(reach) / reach - 1.0)
    yield Row(m, n, anchor=n.alpha / a.alpha, history=(tilt, far - tilt), value=predicted(m), accept=False)
    tilt = -b.sigma * 1.5 * (math.expm1(h) / h - 1.0)
    yield Row(n, b, anchor=keep, history=(tilt, 0.0, gain - tilt), value=predicted(n), accept=False)
    yield Row(b, b, anchor=keep, history=(0.0, 0.0, 1.5 * gain, -0.5 * gain), call=False)


def _renoise(down: Level, to: Level, s_noise: float, span: tuple[Level, Level]) -> Row:
    keep = to.alpha / down.alpha
    noise = math.sqrt(max(0.0, to.sigma**2 - (keep * down.sigma) ** 2))
    return Row(down, to, x=keep, noise=s_noise * noise, span=span, call=False)


def error_of(low: Tensor, high: Tensor, before: Tensor, rtol: float, atol: float) -> float:
    """Root mean square of the difference over the tolerance: a host number, since it decides."""
    tolerance = torch.clamp(rtol * torch.maximum(low.abs(), before.abs()), min=atol)
    error = float(((low - high) / tolerance).square().mean().sqrt())
    if not math.isfinite(error):
        raise ValueError(
            f"{NAME} met NaN or infinite values: check the model's output and its prediction type"
        )
    return error
