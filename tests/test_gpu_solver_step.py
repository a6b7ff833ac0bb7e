"""What only a GPU can show of solver_step and the reductions before it: values on the card, streams, graphs that read
the row anew, no wait for the GPU, sizes beyond 32 bits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import HALF_AND_SINGLE, assert_accurate
from fastdiff import CounterNoise, counter, ops, reference, sample, schedules
from gpu_only import GPU_ONLY, each_backend
from solver_step_cases import FULL, Case, arguments, every_option, make_table, seeds, vectors

pytestmark = GPU_ONLY
gpu_backend = each_backend("solver_step", "dynamic_bound", "rescale_gain")


@pytest.fixture
def index() -> Tensor:
    return torch.tensor(1, device="cuda")


def on_gpu(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.cuda()
    return [on_gpu(v) for v in value] if isinstance(value, list) else value


def step_of(case: Case, index: Tensor) -> ops.Step:
    keywords = {name: on_gpu(value) for name, value in case.keywords.items()}
    return ops.solver_step(case.x.cuda(), on_gpu(case.output), case.table.cuda(), index, **keywords)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("model", HALF_AND_SINGLE, ids=str)
@pytest.mark.parametrize("shape", [(2, 4, 64, 64), (2, 4, 9, 7), (3, 5), (1, 1), (0, 3)], ids=str)
def test_values(
    shape: tuple[int, ...], model: torch.dtype, index: Tensor, generator: torch.Generator
) -> None:
    for case in every_option(shape, generator):
        case.output = case.output.to(model)
        if case.keywords.get("uncond") is not None:
            case.keywords["uncond"] = case.keywords["uncond"].to(model)
        if case.keywords.get("noise") is not None:
            case.keywords["noise"] = case.keywords["noise"].to(model)
        case.keywords |= {"input_dtype": model, "doubled": True}
        exact, composed = case.widened()(reference.solver_step), case(reference.solver_step)
        for actual, *others in zip(step_of(case, index), exact, composed, strict=True):
            assert_accurate(actual.cpu(), *others)


def test_noise_drawn_in_the_step_has_the_counters_bits(index: Tensor) -> None:
    table = make_table(a=0.0, n=1.0, call=0.0).cuda()
    for shape in ((3, 4, 64, 64), (2, 3, 5, 7)):
        keys = seeds(shape[0])
        step = ops.solver_step(torch.zeros(shape, device="cuda"), None, table, index, seeds=keys.cuda())
        assert torch.equal(step.x.cpu().flatten(1), counter.normal(keys, step.x[0].numel(), 2))


def test_from_a_source_into_a_new_state(index: Tensor, generator: torch.Generator) -> None:
    positional, keywords = arguments((2, 4, 64, 64), generator, torch.float16)
    source, output = (t.cuda() for t in positional)
    given = {name: on_gpu(keywords[name]) for name in ("uncond", "anchor")}
    given["noise"], table = keywords["noise"].half().cuda(), make_table(**FULL).cuda()
    expected = ops.solver_step(source, output, table, index, history=on_gpu(keywords["history"]), **given)
    ring, x = torch.stack(on_gpu(keywords["history"])[::-1]), torch.full_like(source, torch.nan)
    kept = source.clone()
    ops.solver_step_(x, output, table, index, history=ring, source=source, **given)
    assert torch.equal(x, expected.x) and torch.equal(source, kept)
    with pytest.raises(ValueError, match="overlap"):
        ops.solver_step_(x, output, make_table().cuda(), index, source=x)


def loop_state(generator: torch.Generator) -> dict[str, Any]:
    (x, output), keywords = arguments((2, 4, 64, 64), generator, torch.float16)
    state = {"x": x, "output": output, "uncond": keywords["uncond"], "anchor": keywords["anchor"]}
    state |= {"history": torch.stack(keywords["history"]), "seeds": seeds(2)}
    state |= {"input": torch.zeros(4, 4, 64, 64, dtype=torch.float16)}
    return {name: value.cuda() for name, value in state.items()}


def test_one_graph_serves_every_row(generator: torch.Generator) -> None:
    """The row and its weights are read at each replay: the same bits as a loop without a graph."""
    rows = [FULL | {"a": 0.1 * i, "n": 0.2 * i, "slot": float(i), "accept": float(i % 2)} for i in range(4)]
    table = torch.cat([make_table(**row)[:1] for row in rows]).cuda()
    eager = loop_state(generator.manual_seed(1))
    for i in range(4):
        ops.solver_step_(table=table, index=torch.tensor(i, device="cuda"), **eager)
    captured, index = loop_state(generator.manual_seed(1)), torch.tensor(0, device="cuda")
    warm = loop_state(generator.manual_seed(2))
    ops.solver_step_(table=table, index=index, **warm)  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ops.solver_step_(table=table, index=index, **captured)
        index += 1
    for _ in range(4):
        graph.replay()
    for name in ("x", "anchor", "history", "input"):
        assert torch.equal(captured[name], eager[name]), name


@contextmanager
def no_waiting() -> Iterator[None]:
    """The test fails if what is done in here waits for the GPU; where PyTorch would not notice, it fails too."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.raises(RuntimeError, match="synchroniz"):
            torch.ones((), device="cuda").item()
        yield
    except RuntimeError as error:
        pytest.fail(f"it waits for the GPU: {error}")
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_nothing_waits_for_the_gpu(index: Tensor, generator: torch.Generator) -> None:
    state, table = loop_state(generator), make_table(**FULL).cuda()

    def once() -> None:
        gain = ops.rescale_gain(state["output"], state["uncond"], table, index, rescale=0.7)
        bound = ops.dynamic_bound(
            state["x"], state["output"], table, index, uncond=state["uncond"], gain=gain
        )
        ops.solver_step_(table=table, index=index, bound=bound, gain=gain, **state)

    once()
    with no_waiting():
        once()


def test_a_channels_last_loop_does_not_wait_either() -> None:
    """There the counter's noise is drawn before the step, not in it."""

    def model(x: Tensor, t: Tensor) -> Tensor:
        return (0.1 * x).to(memory_format=torch.channels_last)

    noise, schedule = CounterNoise([5, 7]), schedules.karras(0.03, 14.6)

    def once() -> Tensor:
        return sample(
            model, (2, 4, 16, 16), schedule=schedule, sampler="euler_ancestral", steps=4, noise=noise,
            device="cuda", dtype=torch.float16,
        )  # fmt: skip

    expected = once()  # compiles, and puts the plan on the GPU
    with no_waiting():
        found = once()
    assert torch.equal(found, expected)


def test_callers_stream(index: Tensor, generator: torch.Generator) -> None:
    """The kernel waits for what its stream was given before it."""
    positional, _ = arguments((2, 4, 64, 64), generator)
    x, output = (t.cuda() for t in positional)
    table = make_table(p=1.0, q=-0.5, w=1.0, c0=0.5).cuda()
    expected = ops.solver_step(x, output, table, index).x
    late = torch.full_like(x, torch.nan)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        late.copy_(x)
        found = ops.solver_step(late, output, table, index).x
    stream.synchronize()
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    "shape", [(2, 3, 64, 64), (2, 3, 256, 256), (1, 3, 1024, 1024), (200, 17_001)], ids=str
)
def test_reductions(shape: tuple[int, ...], index: Tensor, generator: torch.Generator) -> None:
    """One block a sample, several that wait for each other, and samples beyond the registers: right, and repeatable."""
    x, output, uncond = (torch.randn(shape, generator=generator) for _ in range(3))
    gain, table = vectors(shape[0], generator)["gain"], make_table(p=1.7, q=-0.8, g=3.5, g_uncond=-2.5)
    row = torch.tensor(1)
    arguments = (table, row, uncond, gain, 0.995, torch.inf)
    exact = reference.dynamic_bound(
        x.double(), output.double(), table, row, uncond.double(), gain.double(), 0.995, torch.inf
    )
    composed = reference.dynamic_bound(x, output, *arguments)
    there = [t.cuda() for t in (x, output, table)]
    more = {"uncond": uncond.cuda(), "gain": gain.cuda(), "quantile": 0.995}
    bounds = [ops.dynamic_bound(*there, index, **more) for _ in range(2)]
    assert_accurate(bounds[0].cpu(), exact, composed)
    gains = [ops.rescale_gain(there[1], more["uncond"], there[2], index, rescale=0.7) for _ in range(2)]
    wide = reference.rescale_gain(output.double(), uncond.double(), table, row, 0.7)
    assert_accurate(gains[0].cpu(), wide, reference.rescale_gain(output, uncond, table, row, 0.7))
    assert torch.equal(*bounds) and torch.equal(*gains)
    x[0].flatten()[5] = torch.nan
    found = ops.dynamic_bound(x.cuda(), there[1], there[2], index, **more)
    assert found[0].isnan() and torch.equal(found[1:], bounds[0][1:])


def test_reductions_in_a_graph(index: Tensor, generator: torch.Generator) -> None:
    x, output = (torch.randn(2, 3, 256, 256, generator=generator).cuda() for _ in range(2))
    table = make_table(p=1.0, q=0.5).cuda()
    ops.dynamic_bound(x, output, table, index)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        bound = ops.dynamic_bound(x, output, table, index)
    for factor in (2.0, 3.0):
        x *= factor
        graph.replay()
        assert torch.equal(bound, ops.dynamic_bound(x, output, table, index))


def test_what_is_missing_shows(gpu_backend: str, index: Tensor) -> None:
    """A GPU cannot raise: the CUDA kernel makes the step NaN."""
    if gpu_backend != "cuda":
        pytest.skip("csrc/cuda/solver_step.h promises it")
    x = torch.ones(2, 8, device="cuda")
    assert ops.solver_step(x, x, make_table(n=1.0).cuda(), index).x.isnan().all()
    assert ops.solver_step(x, x, make_table().cuda(), index + 7).x.isnan().all()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_device_guard(generator: torch.Generator) -> None:
    positional, _ = arguments((2, 4, 8, 8), generator)
    x, output = (t.to("cuda:1") for t in positional)
    table, index = make_table(q=1.0, w=1.0, c0=0.5).to("cuda:1"), torch.tensor(1, device="cuda:1")
    step = ops.solver_step(x, output, table, index)
    assert step.x.device == torch.device("cuda:1") and torch.cuda.current_device() == 0
    torch.testing.assert_close(step.x, x + 0.5 * output)


def test_beyond_32_bits(index: Tensor) -> None:
    """More than 2^31 elements: the last ones are right."""
    count = 2**31 + 4096
    free, _ = torch.cuda.mem_get_info()
    if free < 10 * count:
        pytest.skip(f"needs {10 * count / 2**30:.0f} GiB of free GPU memory, {free / 2**30:.0f} are")
    x = torch.ones(1, count, device="cuda")
    output, buffer = (torch.ones(1, count, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    x[0, -3:] = 3.0
    ops.solver_step_(x, output, make_table(q=2.0, w=1.0, c0=1.0, k=0.5).cuda(), index, input=buffer)
    assert x[0, :4].tolist() == [3.0] * 4 and x[0, -4:].tolist() == [3.0, 5.0, 5.0, 5.0]
    assert buffer[0, -4:].tolist() == [1.5, 2.5, 2.5, 2.5]
