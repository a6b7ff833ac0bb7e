"""The CUDA kernel of solver_step on the CPU: every option against float64, the ring, the noise it draws, and what it
does where the CPU would raise. test_gpu_solver_step.py has what takes a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

import emulated_run
from conftest import HALF_AND_SINGLE, assert_accurate
from fastdiff import counter, ops, reference
from solver_step_cases import (
    FULL,
    INDEX,
    Case,
    arguments,
    cases,
    doubled_output,
    every_option,
    make_table,
    seeds,
    vectors,
)

pytestmark = pytest.mark.usefixtures("poisoned")


@emulated_run.is_the_run
def test_emulated() -> None:
    assert emulated_run.outcomes(__file__).keys() == {"passed"}


@pytest.fixture(scope="module")
def kernel() -> Any:
    """The functional step as the case calls it, straight to the emulated kernel."""
    emulated_run.load()
    return functional


def functional(x: Tensor, output: Tensor | None, table: Tensor, index: Tensor, **options: Any) -> ops.Step:
    names = ("noise", "bound", "gain", "mask", "known", "known_noise", "seeds")
    past = (*options.get("history", ()), None, None, None)[:3]
    return ops.Step(
        *torch.ops.fastdiff.solver_step.default(
            x, output, table, index, options.get("uncond"), options.get("anchor"), *past,
            *(options.get(name) for name in names), options.get("input_dtype") or torch.float32,
            options.get("doubled", False),
        )
    )  # fmt: skip


def in_place(x: Tensor, output: Tensor | None, table: Tensor, index: Tensor, **options: Any) -> None:
    names = ("uncond", "anchor", "history", "noise", "bound", "gain", "mask", "known", "known_noise", "seeds")
    torch.ops.fastdiff.solver_step_.default(
        x, output, table, index, *(options.get(name) for name in (*names, "source", "input"))
    )


def check(case: Case, kernel: Any) -> ops.Step:
    step, exact, composed = case(kernel), case.widened()(reference.solver_step), case(reference.solver_step)
    for actual, *others in zip(step, exact, composed, strict=True):
        assert_accurate(actual, *others)
    return step


@emulated_run.needs_the_run
@pytest.mark.parametrize(
    "shape", [(2, 4, 9, 7), (3, 5), (1, 1), (2, 4, 16, 18), (2, 3, 3, 5, 7), (4,), (0, 3), (3, 4, 2)], ids=str
)
def test_device_every_option(shape: tuple[int, ...], kernel: Any, generator: torch.Generator) -> None:
    """By vectors and, where the sizes do not allow them, by elements."""
    for case in every_option(shape, generator):
        for model in HALF_AND_SINGLE:
            case.output = case.output.to(model)
            if case.keywords.get("uncond") is not None:
                case.keywords["uncond"] = case.keywords["uncond"].to(model)
            case.keywords |= {"input_dtype": model, "doubled": not case.keywords.get("doubled", False)}
            check(case, kernel)


@emulated_run.needs_the_run
@settings(max_examples=400, deadline=None, derandomize=True)
@given(case=cases())
def test_device_any_row(case: Case) -> None:
    emulated_run.load()
    check(case, functional)


@emulated_run.needs_the_run
@pytest.mark.parametrize("start", [1, 2, 4, 8])
def test_device_any_alignment(start: int, kernel: Any, generator: torch.Generator) -> None:
    """Tensors that start anywhere, and nothing written beside them."""
    positional, keywords = arguments((2, 4, 6, 10), generator, torch.bfloat16)
    expected = Case(*positional, make_table(**FULL), keywords)(reference.solver_step)

    def moved(t: Tensor) -> Tensor:
        memory = torch.full((t.numel() + 64,), torch.nan, dtype=t.dtype)
        return memory[start : start + t.numel()].view_as(t).copy_(t)

    x, output, anchor = moved(positional[0]), moved(positional[1]), moved(keywords["anchor"])
    ring = moved(torch.stack([*reversed(keywords["history"]), torch.zeros_like(x)]))
    buffer = moved(torch.zeros(4, 4, 6, 10, dtype=torch.float16))
    more = {"uncond": moved(keywords["uncond"]), "noise": moved(keywords["noise"])}
    in_place(x, output, make_table(**FULL), INDEX, anchor=anchor, history=ring, input=buffer, **more)
    for actual, wanted in ((x, expected.x), (ring[3], expected.value), (anchor, expected.x)):
        torch.testing.assert_close(actual, wanted, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(buffer.float(), torch.cat([expected.input] * 2), rtol=1e-3, atol=1e-3)
    for t in (x, anchor, ring, buffer):
        memory = torch.as_strided(t, (t.numel() + 64,), (1,), 0)
        assert memory[:start].isnan().all() and memory[start + t.numel() :].isnan().all()


@emulated_run.needs_the_run
@pytest.mark.parametrize("slots", [1, 2, 3, 4])
@pytest.mark.parametrize("accept", [False, True])
def test_device_in_place_is_the_functional_step(
    slots: int, accept: bool, kernel: Any, generator: torch.Generator
) -> None:
    positional, keywords = arguments((3, 4, 5), generator)
    ring = torch.randn(slots, 3, 4, 5, generator=generator)
    table = make_table(**FULL | {"accept": float(accept), "slot": 7.0})
    options = keywords | {"history": [ring[(7 - j) % slots].clone() for j in (1, 2, 3)]}
    options |= vectors(3, generator)
    expected = kernel(*positional, table, INDEX, **options, input_dtype=torch.float16, doubled=True)
    x, anchor, history = positional[0].clone(), keywords["anchor"].clone(), ring.clone()
    buffer = torch.empty(6, 4, 5, dtype=torch.float16)
    options |= {"anchor": anchor, "history": history, "input": buffer}
    in_place(x, positional[1], table, INDEX, **options)
    assert torch.equal(x, expected.x) and torch.equal(buffer, expected.input)
    assert torch.equal(history[7 % slots], expected.value)
    assert torch.equal(anchor, expected.x if accept else keywords["anchor"])
    kept = [s for s in range(slots) if s != 7 % slots]
    assert torch.equal(history[kept], ring[kept])
    apart, options["history"] = torch.full_like(x, torch.nan), ring.clone()
    options |= {"anchor": keywords["anchor"].clone(), "source": positional[0]}
    in_place(apart, positional[1], table, INDEX, **options)
    assert torch.equal(apart, expected.x)


@emulated_run.needs_the_run
def test_device_what_has_no_weight_is_not_read(kernel: Any, generator: torch.Generator) -> None:
    (x, output), _ = arguments((2, 36), generator)
    nan = torch.full_like(x, torch.nan)
    everything = {"uncond": nan, "anchor": nan, "history": [nan] * 3, "noise": nan}
    table = make_table(q=0.5, w=1.0, c0=0.5)
    assert torch.equal(kernel(x, output, table, INDEX, **everything).x, kernel(x, output, table, INDEX).x)
    assert kernel(x, nan, make_table(p=0.5, w=1.0, c0=0.5, a=0.25), INDEX).x.isfinite().all()
    assert torch.equal(kernel(nan, None, make_table(a=0.0, b=1.0, call=0.0), INDEX, anchor=x).x, x)
    blend = {"mask": torch.zeros_like(x), "known": x, "known_noise": nan}
    assert torch.equal(kernel(x, output, make_table(alpha=1.0), INDEX, **blend).x, x)
    assert torch.equal(kernel(nan, output, make_table(alpha=1.0), INDEX, **blend).x, x)
    blend = {"mask": torch.ones_like(x), "known": nan, "known_noise": nan}
    assert torch.equal(kernel(x, output, make_table(alpha=1.0), INDEX, **blend).x, x)
    idle = kernel(x, output, make_table(call=0.0), INDEX)
    assert torch.equal(idle.value, torch.zeros_like(x)) and torch.equal(idle.x, x)


@emulated_run.needs_the_run
def test_device_nan_and_infinity_stay_in_their_element(kernel: Any, generator: torch.Generator) -> None:
    positional, keywords = arguments((2, 100), generator)
    positional[1][1, 7], positional[0][0, 99] = torch.nan, torch.inf
    step = kernel(*positional, make_table(**FULL), INDEX, **keywords)
    assert (~step.x.isfinite()).nonzero().tolist() == [[0, 99], [1, 7]]
    assert step.value[1, 7].isnan()


@emulated_run.needs_the_run
@pytest.mark.parametrize("shape", [(3, 4, 8, 8), (2, 3, 5, 7)], ids=str)
def test_device_draws_the_counter_noise(shape: tuple[int, ...], kernel: Any) -> None:
    """Bit for bit that of fastdiff/counter.py, by vectors and by elements, stream row + 1."""
    rows = make_table(a=0.0, n=1.0, call=0.0)
    for row in (0, 2):
        x, keys = torch.full(shape, torch.nan), seeds(shape[0]) - 5
        step = kernel(x, None, rows, torch.tensor(row), seeds=keys)
        assert torch.equal(step.x.flatten(1), counter.normal(keys, x[0].numel(), row + 1))


@emulated_run.needs_the_run
@pytest.mark.parametrize(
    ("weights", "row"),
    [({"n": 1.0}, 1), ({"b": 1.0}, 1), ({"c2": 1.0}, 1), ({"q": 1.0, "w": 1.0, "g_uncond": 1.0}, 1), ({}, 3), ({}, -1)],
)  # fmt: skip
def test_device_what_is_missing_shows(weights: dict[str, float], row: int, kernel: Any) -> None:
    """A GPU cannot raise: a tensor that a weight asks for, or a row that is not there, makes the step NaN."""
    x = torch.ones(2, 8)
    step = kernel(x, x, make_table(**weights), torch.tensor(row))
    assert step.x.isnan().all() and step.input.isnan().all()


@emulated_run.needs_the_run
def test_device_refuses_what_it_could_not_address(kernel: Any) -> None:
    x, table = torch.ones(2, 8), make_table()
    wrong = {
        "table": ((x, x, table.float(), INDEX), {}),
        "index": ((x, x, table, INDEX.float()), {}),
        "dense": ((torch.ones(2, 16)[:, ::2], x, table, INDEX), {}),
        "noise": ((x, x, table, INDEX), {"noise": torch.ones(2, 7)}),
        "dtype": ((x, x, table, INDEX), {"noise": x.double()}),
        "bound and gain": ((x, x, table, INDEX), {"gain": torch.ones(3)}),
        "output": ((x, torch.ones(3, 8), table, INDEX), {}),
        "one dtype": ((x, x, table, INDEX), {"uncond": x.half()}),
        "need a mask": ((x, x, table, INDEX), {"known": x}),
    }
    for words, (positional, options) in wrong.items():
        with pytest.raises(RuntimeError, match=f"fastdiff: .*{words}"):
            kernel(*positional, **options)
    with pytest.raises(RuntimeError, match="fastdiff: input"):
        in_place(x, x, table, INDEX, input=torch.ones(3, 8))
    for source in (x, torch.ones(2, 7), x.half()):
        with pytest.raises(RuntimeError, match="fastdiff: source"):
            in_place(x, x, table, INDEX, source=source)
    with pytest.raises(RuntimeError, match="fastdiff: history"):
        in_place(x, x, table, INDEX, history=x)


@emulated_run.needs_the_run
def test_device_layouts(kernel: Any, generator: torch.Generator) -> None:
    positional, keywords = arguments((2, 4, 6, 5), generator)
    case = doubled_output(Case(*positional, make_table(**FULL), keywords | {"doubled": True}))
    expected = case(kernel)

    def last(value: Any) -> Any:
        if isinstance(value, Tensor) and value.dim() == 4:
            return value.to(memory_format=torch.channels_last)
        return [last(v) for v in value] if isinstance(value, list) else value

    options = {name: last(value) for name, value in case.keywords.items()}
    step = kernel(last(case.x), last(case.output), case.table, INDEX, **options)
    assert step.x.is_contiguous(memory_format=torch.channels_last)
    assert step.input.is_contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(a, e) for a, e in zip(step, expected, strict=True))
