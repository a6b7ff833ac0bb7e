"""Plans: what a planner must deliver, what a plan promises, and the one-line errors for what does not fit."""

from __future__ import annotations

import dataclasses
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from fastdiff import reference, sample, samplers, schedules
from fastdiff.levels import Level
from fastdiff.plan import Plan, Row
from fastdiff.predictions import Prediction
from fastdiff.samplers import SAMPLERS
from oracles import RandomDenoiser, execute

LEVELS = schedules.karras(0.1, 10.0).levels(4)
Change = Callable[[list[Row]], Sequence[Row]]


def rows_of(name: str = "dpmpp_2m", **options: Any) -> list[Row]:
    return list(SAMPLERS[name](LEVELS, **options))


def edited(i: int, **changes: Any) -> Change:
    return lambda rows: [*rows[:i], dataclasses.replace(rows[i], **changes), *rows[i + 1 :]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[1:], "first row does not start at the first level"),
        (lambda rows: rows[:-1], "last row does not end at the last level"),
        (lambda rows: [], "no rows"),
        (lambda rows: [rows[0], rows[2], rows[3]], r"row 1 starts at sigma .* but x lies at"),
        (edited(1, x=0.9), r"row 1 maps constant data 1 to .* not to 1"),
        (edited(0, history=(0.5,)), r"row 0 maps constant data 1 to"),
        (edited(0, history=(0.5, 0.5)), "row 0 reads more stored values than there are"),
        (edited(2, history=(0.2,) * 5), "row 2 has 5 history weights, at most 4"),
        (edited(1, forget=2), "forgets more values than are stored"),
        (edited(0, output=0.5, call=False, history=()), "row 0 weighs a model output, but has none"),
        (edited(1, call=False), "row 1 reads more stored values than there are"),
        (edited(1, noise=math.nan), "no finite weights"),
        (edited(1, x=math.inf), "no finite weights"),
    ],
)
def test_rows_that_do_not_fit_are_refused(change: Change, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        Plan.build(lambda levels: change(rows_of()), LEVELS)
    assert "\n" not in str(caught.value)


def test_a_custom_planner_is_used_as_given() -> None:
    def halfway(levels: Sequence[Level], *, part: float = 0.5) -> Iterator[Row]:
        """Denoise, go part of the way, draw the rest afresh: two rows a step, the first without a model call."""
        for a, b in pairwise(levels):
            r = part * b.sigma / a.sigma
            fresh = math.sqrt(b.sigma**2 - (r * a.sigma) ** 2)
            yield Row(a, b, x=r, history=(1.0 - r,), noise=fresh)

    plan = Plan.build(halfway, LEVELS, options={"part": 0.25})
    assert plan.name == "halfway" and plan.calls == 4 and plan.stochastic and not plan.needs_anchor
    assert plan.rows[0].x == pytest.approx(0.25 * LEVELS[1].sigma / LEVELS[0].sigma)


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        (LEVELS[::-1], "fall"),
        ((LEVELS[0], LEVELS[0], LEVELS[-1]), "fall"),
        ((LEVELS[1], LEVELS[0], LEVELS[-1]), "fall"),
        ((), "level"),
    ],
)
@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "lms", "unipc", "sa_solver", "ddim"])
def test_levels_that_do_not_fall_are_refused(levels: tuple[Level, ...], message: str, sampler: str) -> None:
    with pytest.raises(ValueError, match=message):
        Plan.build(SAMPLERS[sampler], levels)


def test_options_are_taken_when_the_plan_is_built() -> None:
    options = {"eta": 1.0}
    plan = Plan.build(SAMPLERS["ddim"], LEVELS, options=options)
    options["eta"] = 0.0
    assert plan.stochastic
    assert plan.start_at(0.5).stochastic


def test_nothing_in_a_plan_can_be_changed() -> None:
    levels = list(LEVELS)
    plan = Plan.build(SAMPLERS["heun"], levels)
    levels.clear()
    assert plan.levels == LEVELS
    for thing, name in (
        (plan, "clip"),
        (plan.rows[0], "x"),
        (plan.levels[0], "sigma"),
        (plan.prediction, "name"),
    ):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(thing, name, 0.0)
    with pytest.raises(ValueError, match="read-only"):
        plan.table[0, 0] = 1.0
    assert isinstance(plan.rows, tuple) and isinstance(plan.times, tuple)


@pytest.mark.parametrize("strength", [-0.1, 1.1, math.nan, math.inf])
def test_strength_out_of_range(strength: float) -> None:
    with pytest.raises(ValueError, match="strength must lie between 0 and 1"):
        Plan.build(SAMPLERS["euler"], LEVELS).start_at(strength)


@pytest.mark.parametrize("steps", [0, -1, True, 2.0, 2.5, "3", None, 100_001, math.nan])
@pytest.mark.parametrize("name", ["karras", "flow", "linear_betas"])
def test_steps_that_cannot_be(steps: Any, name: str) -> None:
    with pytest.raises(ValueError, match="steps must be") as caught:
        getattr(schedules, name)().levels(steps)
    assert repr(steps) in str(caught.value)


@pytest.mark.parametrize("clip", [0.0, -1.0, (1.0, -1.0), (0.5, 0.5), math.nan])
def test_clip_that_cannot_be(clip: Any) -> None:
    with pytest.raises(ValueError, match="clip must be"):
        Plan.build(SAMPLERS["euler"], LEVELS, clip=clip)


def test_clip_bounds_the_denoised_image() -> None:
    plan = Plan.build(SAMPLERS["euler"], LEVELS, prediction="sample", clip=0.25)
    x = torch.full((2, 3), 7.0, dtype=torch.float64)
    assert execute(plan, lambda x, level: 3.0 + 0.0 * x, x).unique().tolist() == [0.25]
    assert set(plan.table[:, 2]) == {-0.25} and set(plan.table[:, 3]) == {0.25}


def test_the_columns_of_the_table() -> None:
    plan = Plan.build(SAMPLERS["dpm_2_ancestral"], LEVELS, prediction="edm")
    for i, (row, line) in enumerate(zip(plan.rows, plan.table, strict=True)):
        w = dict(zip(reference.COLUMNS, line, strict=True))
        p, q = plan.prediction.weights(row.level)
        assert (w["p"], w["q"], w["a"], w["b"], w["n"]) == (p, q, row.x, row.anchor, row.noise)
        assert (w["lo"], w["hi"], w["g"], w["g_uncond"]) == (-math.inf, math.inf, 1.0, 0.0)
        assert w["call"] == row.call and w["accept"] == row.accept
        assert [w["c0"], w["c1"], w["c2"], w["c3"]][: len(row.history)] == list(row.history)
        following = plan.rows[i + 1].level if i + 1 < len(plan.rows) else None
        assert w["k"] == (plan.prediction.scale(following) if following else 1.0)
        assert plan.times[i] == plan.prediction.time(row.level)


def test_ring_sizes() -> None:
    def slots(name: str, **options: Any) -> int:
        return Plan.build(SAMPLERS[name], schedules.karras().levels(12), options=options).slots

    assert [slots(name) for name in ("euler", "ddim", "dpm_2", "dpmpp_2s_ancestral", "lcm")] == [0] * 5
    assert [slots(name) for name in ("heun", "dpmpp_2m", "dpmpp_3m_sde")] == [1, 1, 2]
    assert [slots("lms", order=k) for k in (1, 2, 3, 4)] == [0, 1, 2, 3]
    assert [slots("deis", order=k) for k in (1, 2, 3)] == [0, 1, 2]


def test_threads_may_share_a_plan() -> None:
    plan = Plan.build(SAMPLERS["unipc"], schedules.flow().levels(20), prediction="v", options={"order": 3})
    rng = np.random.default_rng(0)
    model, x = RandomDenoiser(rng, 4), torch.from_numpy(rng.normal(size=(2, 4)))
    ends: list[torch.Tensor] = []
    threads = [threading.Thread(target=lambda: ends.append(execute(plan, model, x))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ends) == 4 and all(torch.equal(end, ends[0]) for end in ends)


def test_unknown_names_say_what_there_is() -> None:
    with pytest.raises(ValueError, match="dpmpp_2m") as caught:
        samplers.resolve("dpmpp_2n")
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="eta"):
        samplers.resolve("ddim", {"etaa": 1.0})
    with pytest.raises(ValueError, match="epsilon"):
        Plan.build(SAMPLERS["ddim"], LEVELS, prediction="epsilonn")
    assert samplers.resolve("ddim", {"eta": 0.5}).__name__ == "ddim"


@pytest.mark.parametrize(
    ("sampler", "options", "message"),
    [
        ("lms", {"order": 5}, "order must be"),
        ("lms", {"order": 0}, "order must be"),
        ("deis", {"order": 4}, "order must be"),
        ("unipc", {"order": 4}, "order must be"),
        ("unipc", {"solver_type": "bh3"}, "solver_type must be"),
        ("dpmpp_2m_sde", {"solver_type": "euler"}, "solver_type must be"),
        ("dpmpp_singlestep", {"order": 4}, "order must be"),
        ("dpmpp_sde", {"r": 0.0}, "r, where"),
        ("ddpm", {"variance": "medium"}, "variance must be"),
        ("tcd", {"eta": 1.5}, "eta must lie"),
        ("restart", {"low": 2.0, "high": 1.0}, "low < high"),
        ("sa_solver", {"predictor_order": 7}, "order must be"),
        ("ddim", {"eta": -0.5}, "eta"),
        ("ddim", {"eta": math.nan}, "eta"),
        ("dpmpp_2m_sde", {"eta": -1.0}, "eta"),
        ("dpmpp_3m_sde", {"eta": -1.0}, "eta"),
        ("dpmpp_sde", {"eta": -1.0}, "eta"),
        ("edm", {"churn": -1.0}, "churn"),
        ("lms", {"order": 2.5}, "order must be"),
        ("lms", {"order": True}, "order must be"),
    ],
)
def test_options_out_of_range(sampler: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Plan.build(SAMPLERS[sampler], LEVELS, options=options)


def test_pure_noise_needs_a_prediction_that_means_something_there() -> None:
    levels = schedules.flow().levels(4)
    for sampler in SAMPLERS:
        for prediction in ("v", "flow", "sample"):
            Plan.build(SAMPLERS[sampler], levels, prediction=prediction)
    with pytest.raises(ValueError, match="pure noise"):
        Plan.build(SAMPLERS["ddim"], levels, prediction="epsilon")


def clipped_ddim(levels: Sequence[Level], scale: float = 1.0) -> Iterator[Row]:
    """DDIM for an epsilon prediction: its noise is the output's own, whatever the clamp does to the image."""
    for a, b in pairwise(levels):
        yield Row(a, b, history=(b.alpha,), output=scale * b.sigma)


def test_a_row_weighs_the_output_itself() -> None:
    levels = schedules.linear_betas().levels(4)
    plan = Plan.build(clipped_ddim, levels, clip=0.5)
    x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    result = sample(lambda x, t: torch.tanh(2 * x), x, sampler=plan)
    for a, b in pairwise(levels):
        eps = torch.tanh(2 * x)
        x = b.alpha * ((x - a.sigma * eps) / a.alpha).clamp(-0.5, 0.5) + b.sigma * eps
    torch.testing.assert_close(result, x)
    assert str(plan).splitlines()[1].split()[-1] == "output"
    assert "output" not in str(Plan.build(SAMPLERS["ddim"], levels)).splitlines()[1]


def test_the_output_of_constant_data_is_known_where_it_says_something() -> None:
    """F = (1 - p*alpha)/q: 0 for epsilon, -sigma for v; any where q is 0."""
    levels = schedules.linear_betas().levels(4)
    Plan.build(
        clipped_ddim, levels, prediction="epsilon", options={"scale": 3.0}
    )  # no noise in constant data
    with pytest.raises(ValueError, match=r"row 0 maps constant data 1 to"):
        Plan.build(clipped_ddim, levels, prediction="v")

    def rotate(levels: Sequence[Level]) -> Iterator[Row]:
        for a, b in pairwise(levels):  # x_next = alpha_b*x0 + sigma_b*eps, with eps = sigma_a*x + alpha_a*v
            yield Row(a, b, x=b.sigma * a.sigma, history=(b.alpha,), output=b.sigma * a.alpha)

    Plan.build(rotate, levels, prediction="v")
    blind = Prediction("blind", lambda level: (1.0 / level.alpha, 0.0))
    Plan.build(clipped_ddim, levels, prediction=blind)


def test_printing_a_plan() -> None:
    text = str(Plan.build(SAMPLERS["pndm"], LEVELS))
    assert text.splitlines()[0] == "pndm: 4 steps, 13 model calls, prediction epsilon"
    assert len(text.splitlines()) == 2 + 13
    assert "nan" in str(Plan.build(SAMPLERS["edm"], LEVELS)) or "." in text
