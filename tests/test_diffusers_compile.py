"""torch.compile(fullgraph=True) over every scheduler's step: one graph for all steps, the results of eager."""

from __future__ import annotations

from typing import Any

import pytest

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")

import torch  # noqa: E402

from diffusers_cases import NAMES, default, ours  # noqa: E402
from diffusers_loops import build, generators, loop  # noqa: E402
from test_diffusers_state import assert_near  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")

WITH_INDUCTOR = ("DPMSolverMultistepScheduler", "EulerDiscreteScheduler")
OF_TWO_KINDS = ("CogVideoXDPMScheduler", "UnCLIPScheduler")
"""Called with None in place of an argument in the first or the last step."""
BACKENDS = [*((name, "eager") for name in NAMES), *((name, "inductor") for name in WITH_INDUCTOR)]


@pytest.mark.parametrize("name, backend", BACKENDS)
def test_step_compiles_once(name: str, backend: str) -> None:
    case = default(name, 50 if name not in ("CMStochasticIterativeScheduler",) else 40, generators="global")
    scheduler: Any = build(ours(name), case)
    if scheduler.fallback is not None or not hasattr(scheduler, "step"):
        pytest.skip(str(scheduler.fallback))
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    eager = loop(build(ours(name), case), case, generator=generators(case))
    scheduler.step = torch.compile(scheduler.step, fullgraph=True, backend=backend)
    graphs = 2 if name in OF_TWO_KINDS else 1
    with torch._dynamo.config.patch(error_on_recompile=graphs == 1):
        got = loop(scheduler, case, generator=generators(case))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs
    assert_near(got, eager)
