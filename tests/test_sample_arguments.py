"""What fastdiff.sample refuses: one line each, with the remedy."""

from __future__ import annotations

import pytest
import torch

import fastdiff
from fastdiff import schedules
from fastdiff.plan import Plan
from fastdiff.samplers import SAMPLERS

KARRAS = schedules.karras(0.03, 14.6)
BETAS = schedules.scaled_linear_betas()
FLOW = schedules.flow(shift=3.0)
PLAN = Plan.build(SAMPLERS["euler"], KARRAS.levels(3), prediction="sample")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampler": "dpmpp2m"}, "did you mean dpmpp_2m"),
        ({"steps": 0}, "steps must be"),
        ({"steps": -1}, "steps must be"),
        ({"steps": 2.5}, "steps must be"),
        ({"steps": True}, "steps must be"),
        ({"schedule": BETAS, "steps": 1001}, "at most 1000"),
        ({"schedule": None}, "needs a schedule"),
        ({"prediction": "eps"}, "unknown prediction"),
        ({"options": {"eta": 0.5}}, "no option 'eta'"),
        ({"strength": 1.5}, "strength must lie"),
        ({"x": torch.ones(2, 2, dtype=torch.int64)}, "float tensor"),
        ({"x": (2, 2), "strength": 0.5}, "clean image"),
        ({"x": ()}, "at least the batch"),
        ({"clip": 1.0, "threshold": fastdiff.DynamicThreshold()}, "not both"),
        ({"seed": 1, "generator": torch.Generator()}, "one of seed"),
        ({"seed": [1, 2, 3], "x": (2, 2)}, "3 seeds for 2 images"),
        ({"seed": -1}, "a seed must be"),
        ({"model": lambda x, t: (x,)}, "returned tuple"),
        ({"model": lambda x, t: x[:1]}, "returned shape"),
        ({"schedule": FLOW, "prediction": "epsilon"}, "epsilon prediction says nothing"),
        ({"guidance": fastdiff.Guidance(2.0)}, "unconditional"),
        ({"schedule": "karras"}, "schedule is str: pass one made by"),
        ({"schedule": KARRAS.levels(4)}, "from_levels"),
        ({"guidance": 2.0}, "guidance is float: pass"),
        ({"threshold": 0.99}, "threshold is float: pass"),
        ({"noise": 3}, "noise is int: pass"),
        ({"options": ["eta"]}, "options is list: pass"),
        ({"conditioning": [1]}, "conditioning is list: pass"),
        ({"dtype": "float16"}, "dtype is str: pass"),
        ({"generator": 3}, "generator is int: pass"),
        ({"sampler": None}, "sampler is NoneType: pass"),
        ({"x": 4}, "x must be a float tensor"),
        ({"x": (-1, 3)}, "x must be a float tensor"),
        ({"x": [0.5, 1.0]}, "x must be a float tensor"),
        ({"seed": 1.5}, "a seed must be"),
        ({"schedule": FLOW, "prediction": "edm"}, "no time at pure noise"),
        ({"sampler": PLAN, "clip": 0.5}, "leave them out"),
        ({"sampler": PLAN, "prediction": "v"}, "leave them out"),
        ({"sampler": lambda levels: None}, "yield Row"),
    ],
)
def test_bad_arguments_are_refused_with_the_remedy(changes, message):
    arguments = {
        "model": lambda x, t: x / 2,
        "x": torch.ones(2, 2),
        "schedule": KARRAS,
        "prediction": "sample",
    } | changes
    model, x = arguments.pop("model"), arguments.pop("x")
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        fastdiff.sample(model, x, **arguments)
    assert "\n" not in str(caught.value)
