"""What must hold of every sampler on every schedule: rows that keep data and noise power, and fit their ring."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
import torch

from fastdiff import reference, schedules
from fastdiff.levels import Level
from fastdiff.plan import Plan
from fastdiff.samplers import SAMPLERS
from oracles import RandomDenoiser, execute, relative_error

BETAS = {
    "linear": schedules.linear_betas,
    "scaled_linear": schedules.scaled_linear_betas,
    "cosine": schedules.cosine_betas,
    "sigmoid": schedules.sigmoid_betas,
}
SPACINGS = ("trailing", "leading", "linspace", "karras", "exponential", "polyexponential", "beta")
SCHEDULES = {
    **{
        f"{name}-{spacing}{'-zero_snr' * zero_snr}": make(spacing=spacing, zero_snr=zero_snr)
        for name, make in BETAS.items()
        for spacing in SPACINGS
        for zero_snr in (False, True)
    },
    "karras": schedules.karras(),
    "exponential": schedules.exponential(0.01, 20.0),
    "polyexponential": schedules.polyexponential(rho=1.5),
    "beta": schedules.beta(),
    "vp": schedules.vp(),
    "edm": schedules.edm(),
    "flow": schedules.flow(),
    "flow-shifted": schedules.flow(shift=3.0, T=1000.0),
    "flow-unshifted": schedules.flow(shift=0.3),
}
# Options under which a row's noise is independent and of the nominal power.
OPTIONS = {"edm": {"s_noise": 1.0, "s_min": 0.0, "s_max": math.inf}, "restart": {"repeats": 2}}


@cache
def levels(name: str, steps: int) -> tuple[Level, ...]:
    return SCHEDULES[name].levels(steps)


def build(sampler: str, on: tuple[Level, ...], prediction: str = "v") -> Plan:
    return Plan.build(SAMPLERS[sampler], on, prediction=prediction, options=OPTIONS.get(sampler))


def drawn(sampler: str) -> list[tuple[str, int]]:
    """Each number of steps from 1 to 50 on a random schedule, each schedule once, and one of 1000 steps."""
    rng, names = np.random.default_rng(len(sampler)), list(SCHEDULES)
    pairs = [(str(name), steps) for steps in range(1, 51) for name in rng.choice(names, 1)]
    pairs += [(name, int(steps)) for name in names for steps in rng.integers(1, 12, 1)]
    return [*pairs, (str(rng.choice(["scaled_linear-trailing-zero_snr", "karras", "flow"])), 1000)]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_data_and_noise_power_are_kept(sampler: str) -> None:
    # A perfect model: denoised is x0. Then each x is alpha x0 plus independent noises of total power sigma^2.
    for name, steps in drawn(sampler):
        plan = build(sampler, levels(name, steps))
        assert np.isfinite(np.delete(plan.table, [2, 3], axis=1)).all(), (name, steps)
        noisy = [i for i, row in enumerate(plan.rows) if row.noise]
        unit = np.eye(2 + len(noisy))  # x0, the noise x starts with, and each fresh noise
        start = plan.rows[0].level
        near = 1e-8
        if sampler in ("plms", "pndm"):
            # Their first steps go by the slope where they arrive, which multiplies rounding.
            near += 1e-15 * start.s**2 / min(level.s or 1.0 for level in levels(name, steps)[1:5])
        x = anchor = start.alpha * unit[0] + start.sigma * unit[1]
        history: list[np.ndarray] = []
        fresh = iter(unit[2:])
        for i, row in enumerate(plan.rows):
            history = history[row.forget :]
            if row.call:
                history = [row.value[0] * x + row.value[1] * unit[0], *history]
            values = history if row.call else [0.0 * x, *history]
            x = row.x * x + row.anchor * anchor + sum(c * value for c, value in zip(row.history, values))
            x = x + row.noise * next(fresh) if row.noise else x
            anchor = x if row.accept else anchor
            assert x[0] == pytest.approx(row.to.alpha, abs=near), (name, steps, i)
            assert np.linalg.norm(x[1:]) == pytest.approx(row.to.sigma, rel=1e-7, abs=near), (name, steps, i)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_table_and_its_ring_say_what_the_rows_say(sampler: str) -> None:
    # The in-place reference on a ring of plan.slots, poisoned with NaN, against the rows read one by one.
    for name, steps in (("karras", 9), ("flow", 6), ("cosine-trailing-zero_snr", 7), ("linear-leading", 3)):
        rng = np.random.default_rng(steps)
        plan, model = build(sampler, levels(name, steps)), RandomDenoiser(rng, 4)
        x = torch.from_numpy(rng.normal(size=(2, 4)))
        noise = torch.from_numpy(rng.normal(size=(len(plan.rows), 2, 4)))
        expected = execute(plan, model, x, lambda i, row, noise=noise: noise[i])
        assert relative_error(walked(plan, model, x, noise, plan.slots), expected) < 1e-12, name
        if plan.slots > 1:
            with_less = walked(plan, model, x, noise, plan.slots - 1)
            assert not relative_error(with_less, expected) < 1e-12, "a smaller ring would do"


def walked(
    plan: Plan, model: RandomDenoiser, x: torch.Tensor, noise: torch.Tensor, slots: int
) -> torch.Tensor:
    state, table = x.clone(), torch.tensor(plan.table)
    anchor = x.clone() if plan.needs_anchor else None
    ring = torch.full((slots, *x.shape), math.nan, dtype=x.dtype) if slots else None
    seen = torch.empty_like(x).copy_(plan.input_scale * x)
    for i, row in enumerate(plan.rows):
        output = model(seen, row.level) if row.call else None
        reference.solver_step_(
            state, output, table, torch.tensor(i), anchor=anchor, history=ring, noise=noise[i], input=seen
        )
    return state


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_start_at_plans_the_tail(sampler: str) -> None:
    for name, steps in (
        ("scaled_linear-trailing", 10),
        ("karras", 7),
        ("flow", 4),
        ("linear-trailing-zero_snr", 5),
    ):
        full = levels(name, steps)
        plan = build(sampler, full)
        for strength in (0.0, 0.05, 0.3, 0.5, 0.75, 0.999, 1.0):
            part, kept = plan.start_at(strength), int(steps * strength + 1e-9)
            assert part.levels == full[steps - kept :]
            if kept:
                np.testing.assert_array_equal(part.table, build(sampler, full[steps - kept :]).table)
            else:
                assert part.rows == () and part.calls == 0 and part.table.shape == (0, len(reference.COLUMNS))
        np.testing.assert_array_equal(plan.start_at(1.0).table, plan.table)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_single_step_to_clean_data_is_the_denoised_image(sampler: str) -> None:
    rng = np.random.default_rng(1)
    model, x = RandomDenoiser(rng, 4), 80.0 * torch.from_numpy(rng.normal(size=(2, 4)))
    for name in ("karras", "flow", "scaled_linear-trailing"):
        plan = build(sampler, levels(name, 1))
        noise = {i: torch.from_numpy(rng.normal(size=(2, 4))) for i in range(len(plan.rows))}
        seen: list[torch.Tensor] = []

        def denoise(x_in: torch.Tensor, level: Level, seen: list[torch.Tensor] = seen) -> torch.Tensor:
            seen.append(model(x_in, level))
            return seen[-1]

        plan = Plan.build(SAMPLERS[sampler], plan.levels, prediction="sample", options=OPTIONS.get(sampler))
        end = execute(plan, denoise, x, lambda i, row, noise=noise: noise[i])
        assert len(seen) == 1
        assert relative_error(end, seen[0]) < 1e-12, name


def test_calls_per_step() -> None:
    steps, on = 12, levels("karras", 12)
    twice = {"heun", "edm", "dpm_2", "dpm_2_ancestral", "dpmpp_2s_ancestral", "dpmpp_sde"}
    for sampler in SAMPLERS:
        expected = {"plms": steps + 1, "pndm": steps + 9}.get(
            sampler, 2 * steps - 1 if sampler in twice else steps
        )
        if sampler != "restart":
            assert build(sampler, on).calls == expected, sampler
    assert build("restart", on).calls > 2 * steps - 1


def test_deterministic_samplers_add_no_noise() -> None:
    on = levels("scaled_linear-trailing", 9)
    noisy = {name for name in SAMPLERS if Plan.build(SAMPLERS[name], on).stochastic}
    assert noisy == {
        "ddpm", "euler_ancestral", "dpm_2_ancestral", "dpmpp_2s_ancestral", "dpmpp_2m_sde", "dpmpp_3m_sde", "dpmpp_sde",
        "sa_solver", "edm", "restart", "lcm", "tcd",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("noisy", "options", "plain"),
    [
        ("euler_ancestral", {"eta": 0.0}, "euler"),
        ("ddim", {"eta": 1.0}, "ddpm"),
        ("dpmpp_2m_sde", {"eta": 0.0}, "dpmpp_2m"),
        ("edm", {"churn": 0.0}, "heun"),
        ("tcd", {"eta": 0.0}, "ddim"),
        ("tcd", {"eta": 1.0}, "lcm"),
        ("lms", {"order": 1}, "euler"),
        ("deis", {"order": 1}, "ddim"),
        ("unipc", {"order": 1, "corrector": False}, "ddim"),
        ("dpmpp_singlestep", {"order": 1}, "ddim"),
        ("sa_solver", {"tau": 0.0, "predictor_order": 1, "corrector_order": 0}, "ddim"),
    ],
)
@pytest.mark.parametrize("name", ["scaled_linear-trailing", "karras", "flow-shifted"])
def test_samplers_that_coincide(noisy: str, options: dict[str, float], plain: str, name: str) -> None:
    rng, on = np.random.default_rng(0), levels(name, 8)
    one = Plan.build(SAMPLERS[noisy], on, prediction="v", options=options)
    other = Plan.build(SAMPLERS[plain], on, prediction="v")
    model, x = RandomDenoiser(rng, 4), torch.from_numpy(rng.normal(size=(2, 4)))
    noise = torch.from_numpy(rng.normal(size=(8, 2, 4)))
    ends = [execute(plan, model, x, lambda i, row: noise[i]) for plan in (one, other)]
    # tcd at eta = 1 re-noises from training index 0, lcm from clean data.
    near = 5e-2 if noisy == "tcd" and plain == "lcm" and on[0].process is not None else 1e-9
    assert relative_error(*ends) < near
