"""Nothing in the loop waits for the device or makes an image-sized tensor: counted by operation."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import fastdiff
from fastdiff import BrownianNoise, CounterNoise, DynamicThreshold, Guidance, Inpaint, backend, schedules
from fastdiff.graphs import run as graph_run
from fastdiff.ops import _remembered
from fastdiff.sampling import planned
from standing_in import NoReading, allocates, check_synchronises

pytestmark = [
    pytest.mark.skipif(bool(backend.unavailable("cpp")), reason="the reference is no fused step"),
]
KARRAS = schedules.karras(0.1, 10.0)
SHAPE = (2, 3, 8, 8)
SLICE = torch.ops.aten.slice.Tensor
FIRST = 2
"""The call of the model at which counting begins."""
STEP = torch.ops.fastdiff.solver_step_.default


class Counted(TorchDispatchMode):
    """Counts the operations outside the model, and those of them that make tensors of at least an image's size."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: Counter[object] = Counter()
        self.made: Counter[object] = Counter()
        self.model = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if not self.model:
            self.ops[func] += 1
            if any(t.numel() >= 3 * 8 * 8 for t in allocates(func, args, kwargs, out)):
                self.made[func] += 1
        return out


class Steps:
    """A model with its outputs at hand, during whose calls nothing is counted; the steps after its first call are."""

    def __init__(self, shape, dtype=torch.float32, mode=None) -> None:
        self.output = (
            torch.linspace(-1, 1, 2 * torch.Size(shape).numel()).reshape(2 * shape[0], *shape[1:]).to(dtype)
        )
        self.mode = mode
        self.at: list[tuple[Counter[object], Counter[object]]] = []

    def __call__(self, x: Tensor, t: Tensor, **conditioning: object) -> Tensor:
        self.at.append((self.mode.ops.copy(), self.mode.made.copy()))
        self.mode.model = True
        try:
            # the two branches apart, where they are called one after the other
            return self.output[: len(x)] if len(self.at) % 2 or len(x) == 4 else self.output[-len(x) :]
        finally:
            self.mode.model = False


def counts(monkeypatch, x=None, dtype=torch.float32, **options):
    """Operations, and those that allocate, between an early call of the model, when all buffers are there, and the
    last."""
    # Modes make what is remembered afresh at each call, which would be counted; it is remembered in ordinary runs.
    monkeypatch.setattr(_remembered, "ordinary", lambda: True)
    options = {"schedule": KARRAS, "steps": 7, "prediction": "sample", "dtype": dtype} | options
    x = torch.randn(SHAPE) if x is None else x
    model = Steps(SHAPE, dtype, Counted())
    run = lambda: fastdiff.sample(model, x, **options)  # noqa: E731
    with model.mode:
        run()
        model.at.clear()
        with NoReading():
            run()
    (before, made_before), (after, made_after) = model.at[FIRST], model.at[-1]
    for func in after - before:
        check_synchronises(func)
    return after - before, made_after - made_before


def rows_between(sampler, steps=7, options=None):
    """How many rows lie between those calls."""
    calls = [
        i for i, row in enumerate(planned(sampler, KARRAS, steps=steps, options=options).rows) if row.call
    ]
    return calls[-1] - calls[FIRST]


SAMPLERS = [
    "euler",
    "heun",
    "dpmpp_2m",
    "unipc",
    "lms",
    "dpmpp_2s_ancestral",
    "dpmpp_3m_sde",
    "sa_solver",
    "restart",
]
UNCOND = {"shift": torch.zeros(2)}
GUIDED = {
    "unguided": {},
    "doubled": {"guidance": Guidance(3.0, UNCOND), "conditioning": {"shift": torch.ones(2)}},
    "in half precision": {"dtype": torch.bfloat16},
    "inpainting": {"inpaint": Inpaint(torch.ones(SHAPE), torch.ones(SHAPE), torch.ones(SHAPE)), "seed": 1},
}


@pytest.mark.parametrize("guided", GUIDED)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_one_step_a_row_and_nothing_else(monkeypatch, sampler, guided):
    options = {"noise": CounterNoise([1, 2])} | GUIDED[guided]
    options.pop("noise" if "seed" in options and sampler in ("euler", "heun") else "seed", None)
    counted, made = counts(monkeypatch, sampler=sampler, **options)
    assert counted.pop(STEP) == rows_between(sampler)
    assert set(counted) <= ({torch.ops.aten.expand.default} if guided == "inpainting" else set())  # views
    assert not made


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "euler_ancestral"])
def test_guidance_by_two_calls_and_in_an_interval(monkeypatch, sampler):
    conditioning = {"shift": torch.ones(2)}
    twice, interval = Guidance(3.0, UNCOND, doubled=False), Guidance(3.0, UNCOND, interval=(0.5, 4.0))
    for guidance, rows in ((twice, 5), (interval, 4)):
        counted, made = counts(
            monkeypatch,
            sampler=sampler,
            noise=CounterNoise([1, 2]),
            guidance=guidance,
            conditioning=conditioning,
        )
        assert counted.pop(STEP) == rows
        assert set(counted) <= {SLICE} and not made  # views, where one branch is called


SOURCES = {
    "a seed each": {"seed": [1, 2]},
    "a generator": {"generator": torch.Generator()},
    "a path": {"noise": BrownianNoise([1, 2])},
}


@pytest.mark.parametrize("name", SOURCES)
def test_noise_is_all_that_is_made(monkeypatch, name):
    """A source that draws makes what it draws, and the step takes it as it is."""
    counted, made = counts(monkeypatch, sampler="euler_ancestral", **SOURCES[name])
    assert counted[STEP] == rows_between("euler_ancestral")
    drawn = {func for func in counted if func is not STEP}
    assert (
        not {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default, torch.ops.aten.clone.default}
        & drawn
    )
    assert made[STEP] == 0


def test_thresholding_and_rescale_are_one_operation_each(monkeypatch):
    guidance = Guidance(3.0, UNCOND, rescale=0.7)
    counted, made = counts(
        monkeypatch, sampler="dpmpp_2m", guidance=guidance, conditioning={"shift": torch.ones(2)},
        threshold=DynamicThreshold(0.9),
    )  # fmt: skip
    rows = rows_between("dpmpp_2m")
    del counted[SLICE]  # views
    assert counted == {
        STEP: rows,
        torch.ops.fastdiff.rescale_gain.default: rows,
        torch.ops.fastdiff.dynamic_bound.default: rows,
    }
    assert not made


def test_beyond_its_graphs_a_captured_loop_only_draws(stand_in, monkeypatch):
    monkeypatch.setattr(graph_run, "aside", lambda: None)  # being counted is not being traced
    net = torch.nn.Conv2d(3, 3, 1).eval()
    net.forward = halved
    x, mode = torch.randn(SHAPE), Counted()
    for noise in (CounterNoise([1, 2]), None):

        def run(noise=noise):
            options = {"sampler": "euler_ancestral", "schedule": KARRAS, "steps": 9, "prediction": "sample"}
            return fastdiff.sample(net, x, noise=noise, graph=True, **options)

        run()
        (graph,), at = stand_in[0].pool, list[Counter[object]]()

        def counted(whole=graph.replay, at=at):
            at.append(mode.ops.copy())
            mode.model = True
            whole()
            mode.model = False

        monkeypatch.setattr(graph, "replay", counted)
        with mode:
            run()
        between = at[-1] - at[0]
        assert len(at) == 9
        if noise is None:
            drawn = {torch.ops.aten.empty.memory_format, torch.ops.aten.randn.generator}
            assert between.pop(torch.ops.aten.copy_.default) == 7 and set(between) <= drawn
        else:
            assert not between
        fastdiff.graphs.clear()
        stand_in.clear()


def halved(x, t):
    return x * 0.5


halved.graph_safe = True
