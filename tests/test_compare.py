"""Comparisons: every picture is that of its sampler and steps alone, from the same noise."""

from __future__ import annotations

import pytest
import torch

from fastdiff.apps import compare
from fastdiff.apps.generate import generate
from fastdiff.apps.remake import remake
from tiny_model import tiny_model

NET = tiny_model()


def test_each_picture_is_the_one_its_sampler_makes() -> None:
    counts: list[int] = []
    comparison = compare.prepare("cat", samplers=["ddim", "heun"], steps=[2, 4], model=NET, seed=7)
    made = comparison.run(progress=counts.append)
    calls = [job.work.plan.calls for job in comparison.jobs]
    assert sum(counts) == comparison.total_calls == sum(calls) and calls[:2] == [2, 4] and calls[3] > 4
    for i, (sampler, steps) in enumerate([("ddim", 2), ("ddim", 4), ("heun", 2), ("heun", 4)]):
        alone = generate("cat", sampler=sampler, steps=steps, model=NET, seed=7)
        assert torch.equal(made.images[i], alone.images[0])
        recipe = made.recipe_of(i)
        assert recipe == alone.recipe
        assert torch.equal(generate(**recipe["arguments"], model=NET).images[0], made.images[i])
    assert comparison.captions[:2] == ("ddim 2", "ddim 4")
    assert comparison.captions[3] == f"heun 4 ({calls[3]} calls)"
    assert made.recipe["command"] == "compare" and made.recipe["arguments"]["samplers"] == ["ddim", "heun"]


def test_several_labels_stand_side_by_side() -> None:
    comparison = compare.prepare(["cat", "brick"], samplers=["ddim"], steps=[1, 2], model=NET)
    made = comparison.run()
    assert made.prompts == ("cat", "brick") * 2 and len(comparison.captions) == 4


def test_the_recipe_of_a_sheet_keeps_the_samplers_options() -> None:
    comparison = compare.prepare("cat", samplers=["ddim"], steps=[3], options={"eta": 1.0}, model=NET)
    made = comparison.run()
    again = remake(made.recipe | {"sheet": {}}, model=NET)
    assert torch.equal(again.job.run().images, made.images)


@pytest.mark.parametrize(
    ("samplers", "steps", "message"),
    [
        ([], [4], "at least one"),
        (["ddim"], [], "at least one"),
        (["dimm"], [4], "did you mean"),
        (["ddim"], [0], "steps"),
        (["ddim", "heun", "ddim"], [4], "different samplers"),
        (["ddim"], [4, 4], "different steps"),
    ],
)
def test_refused_before_any_work(samplers: list[str], steps: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compare.prepare("cat", samplers=samplers, steps=steps, model=NET)
