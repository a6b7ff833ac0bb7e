"""The Triton kernel of solver_step: every option against float64, the step in place, and its code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor

import sass
import solver_step_cases
from conftest import assert_accurate

pytest.importorskip("triton", reason="Triton is not installed: pip install triton")
from fastdiff import backend, ops, reference
from fastdiff.kernels import solver_step as kernel
from solver_step_cases import FULL, Case, arguments, check, every_option, make_table, seeds, vectors
from triton_code import INTERPRETED, Launch, compiled, device, launches, needs_compiler

SHAPE = (2, 5, 9, 11)  # small: the interpreter takes long for each program
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.fixture
def on_triton(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    where = device()
    monkeypatch.setattr(solver_step_cases, "INDEX", torch.tensor(1, device=where))
    with backend.use("triton"):
        yield


def moved(value: Any) -> Any:
    """value, with every tensor in it where kernels run."""
    if isinstance(value, Tensor):
        return value.to(device())
    if isinstance(value, dict):
        return {name: moved(v) for name, v in value.items()}
    if isinstance(value, Case):
        return Case(moved(value.x), moved(value.output), moved(value.table), moved(value.keywords))
    return [moved(v) for v in value] if isinstance(value, list) else value


def test_device_every_option(on_triton: None, generator: torch.Generator, poisoned: None) -> None:
    for case in every_option(SHAPE, generator):
        check(moved(case))
    case.table[:, reference.COLUMNS.index("call")] = 0.0
    check(moved(case))


@pytest.mark.parametrize("shape", [(1,), (0, 4, 8, 8), (3, 0, 2)])
def test_device_shapes(shape: tuple[int, ...], on_triton: None, generator: torch.Generator) -> None:
    for case in every_option(shape, generator):
        check(moved(case))


def test_device_several_programs_a_sample(on_triton: None, generator: torch.Generator) -> None:
    *_, case = every_option((2, 1, 33, 17), generator)
    check(moved(case))


@pytest.mark.parametrize("model", [torch.float16, torch.bfloat16], ids=str)
def test_device_half_precision(model: torch.dtype, on_triton: None, generator: torch.Generator) -> None:
    """The model's output is read, and its next input written, in its dtype."""
    (x, output), keywords = arguments(SHAPE, generator, model)
    keywords |= {"input_dtype": model, "doubled": True}
    case = moved(Case(x, output, make_table(**FULL), keywords))
    step = case()
    exact, composed = case.widened()(reference.solver_step), case(reference.solver_step)
    assert_accurate(step.x, exact.x, composed.x)
    if INTERPRETED and model == torch.bfloat16:  # which the interpreter truncates
        torch.testing.assert_close(step.input.double(), exact.input, rtol=2**-7, atol=1e-6)
    else:
        assert_accurate(step.input, exact.input, composed.input)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=solver_step_cases.cases())
def test_device_any_row(case: Case, on_triton: None) -> None:
    if INTERPRETED and torch.bfloat16 == case.keywords["input_dtype"]:
        case.keywords["input_dtype"] = torch.float32
    check(moved(case))


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=str)
def test_device_layouts(layout: torch.memory_format, on_triton: None, generator: torch.Generator) -> None:
    (x, output), keywords = arguments((2, 3, 9, 7), generator)
    x = x.contiguous(memory_format=layout)
    step = check(moved(Case(x, output, make_table(**FULL), keywords | {"doubled": True})))
    assert step.x.stride() == step.value.stride() == step.input.stride() == x.stride()


def test_device_reads_nothing_of_weight_zero(on_triton: None, generator: torch.Generator) -> None:
    """NaN in a tensor without weight, the state's included, stays out."""
    (x, output), keywords = arguments(SHAPE, generator)
    keywords |= vectors(SHAPE[0], generator) | solver_step_cases.inpainting(SHAPE, generator)
    weighs = {
        "x": ("p", "u", "a"), "output": ("g",), "uncond": ("g_uncond",), "anchor": ("b",), "h1": ("c1",), "h2": ("c2",),
        "h3": ("c3",), "noise": ("n",), "known": ("alpha",), "known_noise": ("sigma",), "bound": ("w",),
        "gain": ("q", "f"),
    }  # fmt: skip
    for name, columns in weighs.items():
        images = dict(keywords) | dict(zip(("h1", "h2", "h3"), keywords["history"], strict=True))
        images |= {"x": x, "output": output}
        images[name] = torch.full_like(images[name], torch.nan)
        history = [images.pop(h) for h in ("h1", "h2", "h3")]
        case = Case(
            images.pop("x"),
            images.pop("output"),
            make_table(**FULL | dict.fromkeys(columns, 0.0)),
            images | {"history": history},
        )
        check(moved(case))


def test_device_nan_passes_the_clamp(on_triton: None, generator: torch.Generator) -> None:
    (x, output), keywords = arguments(SHAPE, generator)
    x[1, 2, 3, 4] = torch.nan
    step = moved(Case(x, output, make_table(**FULL), keywords))()
    assert torch.equal(step.x.isnan().cpu(), x.isnan()) and torch.equal(step.value.isnan().cpu(), x.isnan())


def test_device_what_a_mask_leaves_out_need_not_be_finite(
    on_triton: None, generator: torch.Generator
) -> None:
    (x, output), _ = arguments(SHAPE, generator)
    lost = torch.full_like(x, torch.nan)
    for mask, state, known in ((torch.zeros_like(x), lost, x), (torch.ones_like(x), x, lost)):
        blend = {"mask": mask, "known": known, "known_noise": lost}
        step = moved(Case(state, output, make_table(alpha=1.0), blend))()
        assert torch.equal(step.x.cpu(), x)


def test_device_missing_tensor_is_loud(generator: torch.Generator) -> None:
    """The host cannot see the weights, so what a row lacks shows as NaN."""
    (x, output), _ = arguments(SHAPE, generator)
    tensors = [moved(t) for t in (x, output, make_table(b=1.0), torch.tensor(1))]
    x_next, value, _ = kernel.launch(*tensors, *[None] * 12, torch.float32, False)
    assert x_next.isnan().all() and value.isfinite().all()


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize(
    "slots, accept, call", [(1, 1.0, 1.0), (2, 0.0, 1.0), (3, 1.0, 1.0), (3, 1.0, 0.0), (4, 0.0, 1.0)]
)
def test_device_in_place(
    slots: int, accept: float, call: float, apart: bool, on_triton: None, generator: torch.Generator
) -> None:
    """x, the anchor, the ring and the input become what the reference makes of them, bit for bit but for rounding."""
    (x, output), keywords = arguments(SHAPE, generator)
    table = make_table(**FULL | {"accept": accept, "call": call, "slot": 5.0})
    ring = torch.randn(slots, *SHAPE, generator=generator)
    buffers = {"anchor": keywords["anchor"], "history": ring, "input": torch.zeros(4, *SHAPE[1:]).half()}
    reads = {"uncond": keywords["uncond"], **solver_step_cases.inpainting(SHAPE, generator)}
    reads["seeds"] = seeds(SHAPE[0])
    runs = [(ops.solver_step_, None), (reference.solver_step_, None), (reference.solver_step_, torch.float64)]
    results = []
    for step, dtype in runs:
        state = {name: in_dtype(moved(t.clone()), dtype) for name, t in {"x": x, **buffers}.items()}
        given = {name: in_dtype(moved(t), dtype) for name, t in reads.items()}
        fresh = torch.full_like(state["x"], torch.nan)
        if apart:
            state |= {"source": state["x"], "x": fresh}
        after = dict(state)
        step(state.pop("x"), moved(output), moved(table), moved(torch.tensor(1)), **state, **given)
        results.append(after)
    for name in ("x", *buffers):
        assert_accurate(results[0][name], results[2][name], results[1][name])


def in_dtype(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    return tensor if dtype is None or not tensor.is_floating_point() else tensor.to(dtype)


def test_device_repeatable(on_triton: None, generator: torch.Generator) -> None:
    *_, case = every_option(SHAPE, generator)
    first, second = moved(case)(), moved(case)()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def launched(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], dtype: torch.dtype, *, full: bool
) -> Launch:
    """The step in place as a loop calls it: guided, with a ring of three, and with every option if full."""
    x, table, index = torch.empty(shape), torch.empty(20, 22, dtype=torch.float64), torch.tensor(1)
    output, ring = torch.empty(shape, dtype=dtype), torch.empty(3, *shape)
    x_in, vector = torch.empty(2 * shape[0], *shape[1:], dtype=dtype), torch.empty(shape[0])
    more = [x, x, x] if full else [None] * 3
    vectors = [vector, vector] if full else [None] * 2
    drawn = seeds(shape[0]) if full else None
    anchor = x if full else None
    (launch,) = launches(
        monkeypatch, kernel.launch_, x, output, table, index, output, anchor, ring, None, *vectors, *more, drawn, None,
        x_in,
    )  # fmt: skip
    return launch


@needs_compiler
@pytest.mark.parametrize("full, registers", [(False, 64), (True, 128)])
@pytest.mark.parametrize("arch, dtype", [(80, torch.bfloat16), (90, torch.bfloat16), (90, torch.float32)])
def test_compiles_to_vector_code(
    arch: int, dtype: torch.dtype, full: bool, registers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """128 bits at a time for every image, no spills, 64-bit offsets, nothing fused but what is written so."""
    code = compiled(launched(monkeypatch, (2, 4, 128, 128), dtype, full=full), arch)
    sass.assert_no_spills(code.kernel, registers=registers)
    wide, model = kernel.BLOCK * 4 // 16 // 128, kernel.BLOCK * dtype.itemsize // 16 // 128
    reads, writes = (8, 3) if full else (4, 2)  # x, the ring's three, and anchor, mask, known, known_noise
    assert code.kernel.count("LDG.E.128") == reads * wide + 2 * model
    assert code.kernel.count("STG.E.128") == code.kernel.count("STG") == writes * wide + 2 * model


@needs_compiler
def test_compiles_for_odd_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    code = compiled(launched(monkeypatch, (3, 5, 33, 7), torch.float16, full=True), 90)
    sass.assert_no_spills(code.kernel, registers=128)
    offsets = re.findall(r"tt\.addptr %\w*table_ptr\S*, .* : !tt\.ptr<f64>, (i\d+)", code.asm["ttir"])
    assert set(offsets) == {"i64"}
