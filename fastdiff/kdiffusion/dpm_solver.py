"""DPM-Solver in noise predictions: in a given number of model calls, or with a step size set by the error.

Both go along t = -log sigma. Their sigmas are k-diffusion's to the bit where they are known before the run.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from fastdiff.adaptive import MAX_ATTEMPTS, Options, attempt, error_of
from fastdiff.kdiffusion.noise import NoiseSampler, default_noise_sampler
from fastdiff.kdiffusion.run import Bar, Callback, Denoiser, Extra, Run
from fastdiff.kdiffusion.script import Move, Script
from fastdiff.kdiffusion.sigmas import get_ancestral_step
from fastdiff.kdiffusion.state import Recorded, fitted
from fastdiff.levels import Level, VarianceExploding
from fastdiff.ops._remembered import remembered
from fastdiff.plan import Plan, Row
from fastdiff.predictions import resolve
from fastdiff.samplers._moves import ancestral_split, check_amount, first_order

PARTS = {1: (), 2: (1 / 2,), 3: (1 / 3, 2 / 3)}  # where the later calls of a step of each order lie


def end(sigma: float | Tensor) -> tuple[float, torch.dtype]:
    """sigma, and the dtype of the tensor that k-diffusion makes of it. ValueError unless above 0."""
    value = float(sigma)
    if not 0 < value < math.inf:
        raise ValueError(f"sigma_min and sigma_max must be above 0 and finite, got {sigma}")
    known = isinstance(sigma, Tensor) and sigma.is_floating_point()
    return value, sigma.dtype if known else torch.get_default_dtype()  # type: ignore[union-attr]


@torch.no_grad()
def sample_dpm_fast(
    model: Denoiser, x: Tensor, sigma_min: float, sigma_max: float, n: int, extra_args: Extra = None,
    callback: Callback | None = None, disable: bool | None = None, eta: float = 0.0, s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
) -> Tensor:  # fmt: skip
    """DPM-Solver-Fast: n model calls in steps of order 3, 2 and 1 (arXiv:2206.00927)."""
    (low, _), (high, dtype) = end(sigma_min), end(sigma_max)
    script, t = _fast_script(low, high, operator.index(n), float(eta), float(s_noise), dtype, x.device)
    times = t.clone().unbind(0)

    def about(i: int, sigma: Tensor) -> dict[str, Any]:
        return {"sigma": sigma, "sigma_hat": sigma, "t": times[i], "t_up": times[i]}

    source = default_noise_sampler(x) if noise_sampler is None else noise_sampler
    return Run(model, x, about, extra_args, callback, disable, source, by_call=True).along(script)


@remembered(64)
def _fast_script(
    low: float, high: float, n: int, eta: float, s_noise: float, dtype: torch.dtype, device: torch.device
) -> tuple[Script, Tensor]:
    """The script, and t: [steps], where each step starts."""
    check_amount("eta", eta)
    if n < 1:
        raise ValueError(f"n must be at least 1 model call, got {n}")
    if eta and low > high:
        raise ValueError("eta must be 0 for reverse sampling")
    count = n // 3 + 1
    orders = [3] * (count - 2) + [2, 1] if n % 3 == 0 else [3] * (count - 1) + [n % 3]
    with torch.inference_mode(False):
        first, last = torch.tensor([high, low], dtype=dtype).log().neg().tolist()
        t = torch.linspace(first, last, count + 1, dtype=dtype, device=device)
        return _fast(t, orders, eta, s_noise), t[:-1]


def _fast(t: Tensor, orders: list[int], eta: float, s_noise: float) -> Script:
    sigma = t.neg().exp()
    down = get_ancestral_step(sigma[:-1], sigma[1:], eta)[0].log().neg() if eta else t[1:]
    h = torch.minimum(t[-1], down) - t[:-1] if eta else down - t[:-1]
    later = {part: (t[:-1] + part * h).neg().exp() for parts in PARTS.values() for part in parts}
    process = VarianceExploding()
    levels = [process.level(math.exp(-value)) for value in t.tolist()]
    rows: list[Row] = []
    steps: list[tuple[Move, ...]] = []
    called: list[Tensor] = []
    for i, order in enumerate(orders):
        a, b = levels[i], levels[i + 1]
        made = list(_step(a, b, levels[-1], order, eta, s_noise))
        draws = [None] * (order - 1) + [i]
        steps.append(tuple(Move(len(rows) + j, len(called) + j, draw) for j, draw in enumerate(draws)))
        called += [sigma[i], *(later[part][i] for part in PARTS[order])]
        rows += made
    plan = Plan(rows=tuple(rows), levels=tuple(levels), prediction=resolve("sample"), name="dpm_fast")
    return Script(plan, tuple(steps), torch.stack(called), torch.stack([sigma[:-1], sigma[1:]], dim=1))


def _step(a: Level, b: Level, last: Level, order: int, eta: float, s_noise: float) -> Iterator[Row]:
    """One step to the level that ancestral sampling goes down to, not beyond the last, and fresh noise up to b."""
    down, up = _split(a, b, last, eta)
    if order == 1:
        yield replace(first_order(a, down), to=b, noise=s_noise * up)
        return
    *stages, whole = list(attempt(a, down, order))[:-1]
    yield from stages
    yield replace(whole, to=b, noise=s_noise * up, accept=True)


def _split(a: Level, b: Level, last: Level, eta: float) -> tuple[Level, float]:
    if not eta:
        return b, 0.0
    down = b.at(max(ancestral_split(a, b, eta)[0], last.sigma))
    return down, math.sqrt(max(0.0, b.sigma**2 - down.sigma**2))


@torch.no_grad()
def sample_dpm_adaptive(
    model: Denoiser, x: Tensor, sigma_min: float, sigma_max: float, extra_args: Extra = None,
    callback: Callback | None = None, disable: bool | None = None, order: int = 3, rtol: float = 0.05,
    atol: float = 0.0078, h_init: float = 0.05, pcoeff: float = 0.0, icoeff: float = 1.0, dcoeff: float = 0.0,
    accept_safety: float = 0.81, eta: float = 0.0, s_noise: float = 1.0, noise_sampler: NoiseSampler | None = None,
    return_info: bool = False,
) -> Any:  # fmt: skip
    """DPM-Solver-12 (order 2) and -23 (order 3), each step as long as the error allows (arXiv:2206.00927).

    Returns x, or (x, info) with the counts steps, nfe, n_accept and n_reject.
    """
    (low, _), (high, dtype) = end(sigma_min), end(sigma_max)
    if low > high and eta:
        raise ValueError("eta must be 0 for reverse sampling")
    options = Options(
        order=order, rtol=rtol, atol=atol, h_init=abs(h_init), pcoeff=pcoeff, icoeff=icoeff, dcoeff=dcoeff,
        accept_safety=accept_safety, eta=float(eta), s_noise=float(s_noise),
    )  # fmt: skip
    source = default_noise_sampler(x) if noise_sampler is None else noise_sampler
    run = Run(model, x, lambda i, sigma: {}, extra_args, callback, disable, source)
    walk = _Adaptive(run, options, dtype)
    with Bar(disable=disable) as bar:
        x = walk.between(high, low, bar)
    return (x, walk.info) if return_info else x


@dataclass
class _Adaptive:
    run: Run
    options: Options
    dtype: torch.dtype  # of the sigmas
    info: dict[str, int] = field(default_factory=lambda: {"steps": 0, "nfe": 0, "n_accept": 0, "n_reject": 0})

    def between(self, high: float, low: float, bar: Any) -> Tensor:
        """From sigma `high` to sigma `low`, which may be the higher one."""
        process, options, size = VarianceExploding(), self.options, self.options.step_size()
        s, last = -math.log(high), -math.log(low)
        way = 1.0 if last > s else -1.0
        x = before = self.run.x
        for _ in range(MAX_ATTEMPTS):
            if way * (last - s) <= 1e-5:
                return x
            t = s + way * size.h if way * (last - s) > size.h else last
            a, b = process.level(math.exp(-s)), process.level(math.exp(-t))
            down, up = _split(a, b, process.level(low), options.eta)
            first, lower, higher = self._attempt(list(attempt(a, down, options.order)), x, bar)
            error = error_of(lower, higher, before, options.rtol, options.atol)
            accepted = size.accepts(error)
            if accepted:
                assert self.run.noise_sampler is not None
                noise = self.run.noise_sampler(self._sigma(s), self._sigma(t))
                before, x, s = lower, higher, t
                if up:
                    x = x + up * options.s_noise * fitted(noise, x)
            self._count(accepted)
            self._tell(x, s, first, error, way * size.h)
        raise ValueError(f"sample_dpm_adaptive made no headway in {MAX_ATTEMPTS} steps: raise rtol or atol")

    def _attempt(self, rows: list[Row], x: Tensor, bar: Any) -> tuple[Tensor, Tensor, Tensor]:
        """The first denoised image, and the results of the lower and of the full order."""
        plan = Plan(tuple(rows), (rows[0].level, rows[-1].to), resolve("sample"), name="dpm_adaptive")
        state = Recorded(plan, x)
        denoised, states = [], []
        for i, row in enumerate(rows):
            output = None
            if row.call:
                sigma = self._sigma(-math.log(row.level.sigma)).to(x.device) * x.new_ones([x.shape[0]])
                output = self.run.denoised(state, sigma)
                denoised.append(output)
                state.settle(output, None)
                bar.update()
            state.take(i, output, None)
            states.append(state.input)
        return denoised[0], states[-1], states[-2]

    def _sigma(self, t: float) -> Tensor:
        return torch.tensor(t, dtype=self.dtype).neg().exp()

    def _count(self, accepted: bool) -> None:
        self.info["n_accept" if accepted else "n_reject"] += 1
        self.info["nfe"] += self.options.order
        self.info["steps"] += 1

    def _tell(self, x: Tensor, t: float, denoised: Tensor, error: float, h: float) -> None:
        if self.run.callback is None:
            return
        at = torch.tensor(t, dtype=self.dtype)
        told = {"x": x, "i": self.info["steps"] - 1, "t": at, "t_up": at, "denoised": denoised, "h": h}
        sigma = self._sigma(t)
        told |= {"sigma": sigma, "sigma_hat": sigma, "error": torch.tensor(error), **self.info}
        self.run.callback(told)
