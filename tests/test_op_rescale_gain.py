"""rescale_gain on every backend: the ratio of two deviations of each sample."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import HALF_AND_SINGLE, assert_accurate, instruction_sets, threads
from fastdiff import backend, native, ops, reference
from solver_step_cases import INDEX, make_table

GUIDED = {"g": 7.5, "g_uncond": -6.5}


def outputs(shape, generator, dtype=torch.float32, mean=0.0):
    return [(torch.randn(shape, generator=generator) + mean).to(dtype) for _ in range(2)]


def check(output, uncond, table, rescale=0.7):
    found = ops.rescale_gain(output, uncond, table, INDEX, rescale=rescale)
    exact = reference.rescale_gain(output.double(), uncond.double(), table, INDEX, rescale)
    assert found.dtype == torch.float32
    assert_accurate(found, exact, reference.rescale_gain(output, uncond, table, INDEX, rescale))
    return found


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("shape", [(2, 4, 9, 7), (3, 5), (2, 2), (2, 3, 70, 61), (1, 100_001)], ids=str)
@pytest.mark.parametrize("dtype", HALF_AND_SINGLE, ids=str)
def test_it_is_the_ratio_of_deviations(everywhere, shape, dtype, generator):
    output, uncond = outputs(shape, generator, dtype)
    for rescale in (0.0, 0.7, 1.0):
        found = check(output, uncond, make_table(**GUIDED), rescale)
        both = ops.rescale_gain(
            torch.cat([output, uncond]), None, make_table(**GUIDED), INDEX, rescale=rescale
        )
        assert torch.equal(found, both)
    assert torch.equal(
        ops.rescale_gain(output, uncond, make_table(), INDEX, rescale=1.0), torch.ones(shape[0])
    )


def test_a_large_mean_costs_no_digits(everywhere, generator):
    check(*outputs((2, 60_000), generator, mean=1000.0), make_table(**GUIDED))


def test_constant_samples_single_values_and_nan(everywhere, generator):
    output, uncond = outputs((4, 500), generator)
    plain = ops.rescale_gain(output, uncond, make_table(**GUIDED), INDEX, rescale=1.0)
    output[1], uncond[1] = 2.0, 1.0
    output[2, 7] = torch.nan
    found = ops.rescale_gain(output, uncond, make_table(**GUIDED), INDEX, rescale=1.0)
    assert found[1] == 1.0 and found[2] == 1.0 and torch.equal(found[[0, 3]], plain[[0, 3]])
    numbers = torch.tensor([1.0, 2.0])
    assert torch.equal(
        ops.rescale_gain(numbers, numbers, make_table(**GUIDED), INDEX, rescale=0.5), torch.ones(2)
    )
    nan = torch.full((4, 500), torch.nan)
    halves = ops.rescale_gain(output[:1], nan[:1], make_table(g=0.5), INDEX, rescale=1.0)
    torch.testing.assert_close(halves, torch.full((1,), 2.0))  # what has no weight is not read


def test_empty_batches_layouts_and_threads(everywhere, generator):
    table = make_table(**GUIDED)
    assert ops.rescale_gain(torch.zeros(0, 3), None, table, INDEX, rescale=1.0).shape == (0,)
    assert torch.equal(ops.rescale_gain(torch.zeros(4, 0), None, table, INDEX, rescale=1.0), torch.ones(2))
    output, uncond = outputs((2, 4, 90, 70), generator)
    expected = ops.rescale_gain(output, uncond, table, INDEX, rescale=0.7)
    turned = output.to(memory_format=torch.channels_last)
    torch.testing.assert_close(ops.rescale_gain(turned, uncond, table, INDEX, rescale=0.7), expected)
    for count in (1, 2, 3):
        with threads(count):
            assert torch.equal(ops.rescale_gain(output, uncond, table, INDEX, rescale=0.7), expected)


def test_gradients(generator):
    pair = [t.double().requires_grad_() for t in outputs((2, 6), generator)]
    table = make_table(**GUIDED)
    torch.autograd.gradcheck(lambda o, u: ops.rescale_gain(o, u, table, INDEX, rescale=0.7), pair)
    torch.autograd.gradcheck(lambda o: ops.rescale_gain(o, None, table, INDEX, rescale=0.7), pair[:1])


@pytest.mark.parametrize("overload", ["default", "triton"])
def test_opcheck_and_compile(overload, generator):
    output, uncond = outputs((2, 3, 5), generator)
    op, table = getattr(torch.ops.fastdiff.rescale_gain, overload), make_table(**GUIDED)
    torch.library.opcheck(op, (output, uncond, table, INDEX, 0.7))
    torch.library.opcheck(op, (output, None, table, INDEX, 0.7))

    def gain(output, uncond):
        return ops.rescale_gain(output, uncond, table, INDEX, rescale=0.7)

    compiled = torch.compile(gain, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(output, uncond), gain(output, uncond))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"rescale": 1.5}, ValueError, "rescale must lie between 0 and 1"),
        ({"uncond": torch.zeros(2, 4)}, ValueError, r"uncond has shape \(2, 4\)"),
        ({"uncond": torch.zeros(2, 3).half()}, TypeError, "uncond is float16"),
        ({"output": torch.zeros(3, 3), "uncond": None}, ValueError, r"\[2B, ...\]"),
        ({"output": torch.zeros(2, 3).int()}, TypeError, "output is int32"),
        ({"index": torch.tensor(3)}, (ValueError, IndexError), "row|index"),
    ],
)
@pytest.mark.parametrize("name", ["reference", "auto"])
def test_errors(name, change, error, words):
    zeros = torch.zeros(2, 3)
    arguments = {
        "output": zeros,
        "uncond": zeros,
        "table": make_table(**GUIDED),
        "index": INDEX,
        "rescale": 0.5,
    }
    with backend.use(name), pytest.raises(error, match=words):
        ops.rescale_gain(**arguments | change)


@pytest.mark.parametrize("isa", instruction_sets())
def test_any_values(isa):
    @settings(max_examples=350, deadline=None, derandomize=True)
    @given(
        shape=st.tuples(st.integers(1, 4), st.one_of(st.integers(8, 70), st.integers(2040, 5000))),
        dtype=st.sampled_from(HALF_AND_SINGLE),
        seed=st.integers(0, 2**31),
        weights=st.sampled_from([(1.0, 0.0), (7.5, -6.5), (0.0, 1.0), (-1.0, 2.0), (2.0, -1.0)]),
        rescale=st.floats(0, 1),
        mean=st.sampled_from([0.0, 3.0, 100.0]),
    )
    def holds(shape, dtype, seed, weights, rescale, mean):
        output, uncond = outputs(shape, torch.Generator().manual_seed(seed), dtype, mean)
        check(output, uncond, make_table(g=weights[0], g_uncond=weights[1]), rescale)

    native.set_isa(isa)
    try:
        holds()
    finally:
        native.set_isa("")
