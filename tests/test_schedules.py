"""Schedules and levels: values of the formulas, ends, ranges, and the one-line errors."""

from __future__ import annotations

import dataclasses
import math
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fastdiff import schedules, spacings
from fastdiff.levels import DiscreteTime, Level, LinearPath, VarianceExploding, clean
from fastdiff.schedules import Schedule
from oracles import processes

BETAS = ("linear_betas", "scaled_linear_betas", "cosine_betas", "sigmoid_betas")
SIGMAS = ("karras", "exponential", "polyexponential", "beta", "vp", "edm")
SPACINGS = (*spacings.TIMESTEPS, *spacings.RATIOS)


@cache
def every_schedule() -> dict[str, Schedule]:
    made = {f"{b}-{s}": getattr(schedules, b)(spacing=s) for b in BETAS for s in SPACINGS}
    made |= {f"{b}-zero_snr": getattr(schedules, b)(zero_snr=True) for b in BETAS}
    return made | {s: getattr(schedules, s)() for s in SIGMAS} | {"flow": schedules.flow(shift=2.0)}


@pytest.mark.parametrize("name", every_schedule())
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 50, 999, 1000])
def test_levels_fall_to_clean_data(name: str, steps: int) -> None:
    levels = every_schedule()[name].levels(steps)
    assert len(levels) == steps + 1 and isinstance(levels, tuple)
    assert (levels[-1].alpha, levels[-1].sigma, levels[-1].lam) == (1.0, 0.0, math.inf)
    assert all(a.ratio > b.ratio and a.t >= b.t for a, b in pairwise(levels))
    assert all(math.isfinite(x) for level in levels for x in (level.t, level.alpha, level.sigma, level.scale))
    for level in levels:
        if "betas" in name:
            assert math.hypot(level.alpha, level.sigma) == pytest.approx(1.0, abs=1e-12)
        elif name == "flow":
            assert level.alpha + level.sigma == pytest.approx(1.0, abs=1e-15)
        else:
            assert level.alpha == 1.0


def test_betas_are_the_formulas() -> None:
    for schedule, betas in (
        (schedules.linear_betas(), np.linspace(1e-4, 0.02, 1000)),
        (schedules.scaled_linear_betas(), np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2),
        (schedules.sigmoid_betas(), 1e-4 + (0.02 - 1e-4) / (1 + np.exp(-np.linspace(-6, 6, 1000)))),
    ):
        np.testing.assert_allclose(schedule.process.alphas**2, np.cumprod(1 - betas), rtol=1e-12)
    cosine = schedules.cosine_betas().process.alphas ** 2
    t = np.arange(1, 1001) / 1000
    bar = np.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    np.testing.assert_allclose(cosine[:-1], bar[:-1], rtol=1e-9)  # the last beta is capped at 0.999
    assert cosine[-1] == pytest.approx(1e-3 * cosine[-2])


@pytest.mark.parametrize("name", BETAS)
def test_zero_terminal_snr(name: str) -> None:
    plain, zero = (getattr(schedules, name)(zero_snr=z).process for z in (False, True))
    assert zero.alphas[-1] == 0.0 and zero.sigmas[-1] == 1.0
    assert zero.alphas[0] == pytest.approx(plain.alphas[0], rel=1e-12)
    first = getattr(schedules, name)(zero_snr=True).levels(7)[0]
    assert (first.alpha, first.sigma, first.ratio, first.lam, first.t) == (
        0.0,
        1.0,
        math.inf,
        -math.inf,
        999.0,
    )


def test_timesteps() -> None:
    def times(spacing: str, steps: int, **options: Any) -> list[float]:
        return [level.t for level in schedules.linear_betas(spacing=spacing, **options).levels(steps)[:-1]]

    assert times("leading", 4) == [750, 500, 250, 0]
    assert times("leading", 4, offset=1) == [751, 501, 251, 1]
    assert times("trailing", 4) == [999, 749, 499, 249]
    assert times("linspace", 4) == [999, 666, 333, 0]
    assert times("linspace", 1) == times("trailing", 1) == [999]
    assert times("leading", 7)[0] == 6 * (1000 // 7)
    assert times("leading", 1000, T=1000) == times("trailing", 1000) == times("linspace", 1000)
    assert times("trailing", 3, T=10) == [9, 6, 2]  # 10, 6.67, 3.33 rounded, less 1


@given(a=st.floats(0.2, 5.0), b=st.floats(0.2, 5.0))
@settings(deadline=None, max_examples=15)
def test_beta_quantiles_are_scipys(a: float, b: float) -> None:
    p = np.linspace(0.0, 1.0, 101)
    np.testing.assert_allclose(
        spacings.beta_quantiles(p, a, b), stats.beta.ppf(p, a, b), rtol=1e-8, atol=1e-10
    )


@given(
    steps=st.integers(1, 60), low=st.floats(1e-3, 0.9), high=st.floats(1.0, 500.0), rho=st.floats(0.5, 12.0)
)
@settings(deadline=None, max_examples=100)
def test_sigma_grids_reach_both_ends(steps: int, low: float, high: float, rho: float) -> None:
    for schedule in (schedules.karras(low, high, rho=rho), schedules.exponential(low, high)):
        sigmas = [level.sigma for level in schedule.levels(steps)]
        assert sigmas[0] == pytest.approx(high, rel=1e-12) and sigmas[-1] == 0.0
        assert steps == 1 or sigmas[-2] == pytest.approx(low, rel=1e-9)
        assert [level.t for level in schedule.levels(steps)] == sigmas


def test_flow_and_its_shift() -> None:
    assert [level.sigma for level in schedules.flow().levels(4)] == [1.0, 0.75, 0.5, 0.25, 0.0]
    plain, shifted = schedules.flow().levels(8), schedules.flow(shift=3.0, T=1000.0).levels(8)
    for a, b in zip(plain[1:-1], shifted[1:-1]):
        assert b.ratio == pytest.approx(3.0 * a.ratio) and b.t == pytest.approx(1000.0 * b.sigma)
    assert schedules.resolution_shift(256) == pytest.approx(math.exp(0.5))
    assert schedules.resolution_shift(4096) == pytest.approx(math.exp(1.15))


@pytest.mark.parametrize("name", processes())
@given(log_ratio=st.floats(-3.0, 2.0))
@settings(deadline=None, max_examples=50)
def test_a_process_finds_its_levels_again(name: str, log_ratio: float) -> None:
    process, ratio = processes()[name], math.exp(log_ratio)
    level = process.at(ratio)
    assert level.ratio == pytest.approx(ratio, rel=1e-12)
    assert level.lam == pytest.approx(-log_ratio, abs=1e-12)
    assert level.at_s(0.6 * level.s).s == pytest.approx(0.6 * level.s, rel=1e-12)
    again = process.level(level.t)
    assert again.ratio == pytest.approx(ratio, rel=1e-9)


def test_training_indices_are_met_exactly() -> None:
    process = schedules.scaled_linear_betas().process
    for t in (0, 1, 500, 998, 999):
        level = process.level(t)
        assert (level.alpha, level.sigma) == (process.alphas[t], process.sigmas[t])
        assert process.at(level.ratio).t == pytest.approx(t, abs=1e-7)
    between = process.level(500.5)
    assert math.log(between.ratio) == pytest.approx(
        (math.log(process.level(500).ratio) + math.log(process.level(501).ratio)) / 2
    )
    for outside in (-1, 999.5, 1000):
        with pytest.raises(ValueError, match=r"outside the training indices 0 \.\. 999"):
            process.level(outside)


def test_given_levels() -> None:
    levels = schedules.karras().levels(5)
    assert schedules.from_levels(levels).levels(5) == levels
    assert schedules.from_levels(levels[2:]).levels(3)[-1] == levels[-1]
    repeated = [levels[0], levels[0], levels[-1]]
    with pytest.raises(ValueError, match="fall at every step"):
        schedules.from_levels(repeated).levels(2)
    with pytest.raises(ValueError, match="at least two levels"):
        schedules.from_levels(levels[:1])


def test_levels_are_frozen_and_know_their_process() -> None:
    level = schedules.karras().levels(3)[1]
    with pytest.raises(dataclasses.FrozenInstanceError):
        level.sigma = 1.0  # type: ignore[misc]
    assert level.at(2.0).sigma == 2.0
    with pytest.raises(ValueError, match="knows no process"):
        Level(t=1.0, alpha=0.5, sigma=0.5).at(1.0)
    assert clean(VarianceExploding()).sigma == clean(LinearPath()).sigma == 0.0
    process = schedules.linear_betas().process
    with pytest.raises(ValueError, match="read-only"):
        process.alphas[0] = 2.0


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        ("linear_betas", {"spacing": "trialing"}, "unknown spacing 'trialing'"),
        ("linear_betas", {"T": 1}, "T, the number of training steps"),
        ("linear_betas", {"T": True}, "T, the number of training steps"),
        ("linear_betas", {"T": 10.5}, "T, the number of training steps"),
        ("linear_betas", {"start": -0.1}, "betas must lie strictly between"),
        ("linear_betas", {"end": 1.5}, "betas must lie strictly between"),
        ("linear_betas", {"end": math.nan}, "betas must lie strictly between"),
        ("karras", {"sigma_min": 0.0}, "0 < sigma_min < sigma_max"),
        ("karras", {"sigma_min": 3.0, "sigma_max": 2.0}, "0 < sigma_min < sigma_max"),
        ("karras", {"sigma_max": math.inf}, "0 < sigma_min < sigma_max"),
        ("exponential", {"sigma_min": math.nan}, "0 < sigma_min < sigma_max"),
        ("karras", {"rho": 0.0}, "rho must be"),
        ("polyexponential", {"rho": -1.0}, "rho must be"),
        ("beta", {"a": 0.0}, "a and b must be"),
        ("flow", {"shift": 0.0}, "shift must be"),
        ("flow", {"shift": math.nan}, "shift must be"),
        ("flow", {"T": 0.0}, "T must be"),
        ("vp", {"eps": 2.0}, "0 < eps < 1"),
        ("vp", {"eps": -1.0}, "0 < eps < 1"),
        ("vp", {"beta_d": -1.0}, "beta_d >= 0"),
        ("linear_betas", {"offset": -5, "spacing": "leading"}, "offset must be"),
    ],
)
def test_what_cannot_be_is_refused(make: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        getattr(schedules, make)(**options).levels(5)
    assert "\n" not in str(caught.value)


def test_more_steps_than_training_steps() -> None:
    for spacing in spacings.TIMESTEPS:
        schedule = schedules.linear_betas(T=100, spacing=spacing)
        assert len(schedule.levels(100)) == 101
        with pytest.raises(ValueError, match="at most 100, the training steps"):
            schedule.levels(101)
    assert len(schedules.linear_betas(T=100, spacing="karras").levels(150)) == 151


@pytest.mark.parametrize(
    "table",
    [[0.5], [0.5, 0.6], [0.5, 0.5], [1.1, 0.5], [0.5, -0.1], [0.5, math.nan], [[0.5, 0.4]], [0.0, 0.0]],
)
def test_tables_that_are_no_process(table: list[Any]) -> None:
    with pytest.raises(ValueError, match="alphas_cumprod"):
        DiscreteTime(np.array(table))


def test_a_table_that_starts_clean() -> None:
    # alpha_bar = 1 at the first index, as some released tables have it: no noise, and still levels that fall.
    schedule = schedules.from_alphas_cumprod(np.linspace(1.0, 0.01, 50), spacing="trailing")
    assert len(schedule.levels(10)) == 11
