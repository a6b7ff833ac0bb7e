"""dynamic_bound on every backend: the quantile of each sample's magnitudes, exact, whatever the values are."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import HALF_AND_SINGLE, assert_accurate, instruction_sets, threads
from fastdiff import backend, native, ops, reference
from solver_step_cases import INDEX, arguments, make_table

GUIDED = {"p": 1.3, "q": -0.7, "g": 3.5, "g_uncond": -2.5, "w": 1.0}
ITSELF = {"p": 1.0}  # the bound of x itself
QUANTILES = [0.0, 0.3, 0.5, 0.995, 1.0]


def of(values, quantile, most=torch.inf):
    x = values if values.dim() > 1 else values[None]
    return ops.dynamic_bound(x, x, make_table(**ITSELF), INDEX, quantile=quantile, most=most)


def ranked(values, quantile):
    """The quantile by sorting, in float64."""
    ordered = values.double().abs().reshape(len(values), -1).sort(dim=1).values
    place = quantile * (ordered.shape[1] - 1)
    low, high = ordered[:, int(place)], ordered[:, min(int(place) + 1, ordered.shape[1] - 1)]
    return (low + (place - int(place)) * (high - low)).clamp(min=1.0)


@pytest.mark.parametrize(
    "shape", [(2, 4, 9, 7), (3, 5), (2, 1), (5,), (2, 3, 40, 40), (1, 70_001), (3, 20_000)], ids=str
)
@pytest.mark.parametrize("model", HALF_AND_SINGLE, ids=str)
def test_it_is_the_quantile(everywhere, shape, model, generator):
    (x, output), k = arguments(shape, generator, model)
    gain = torch.rand(shape[0], generator=generator) + 1.0
    table, uncond = make_table(**GUIDED), k["uncond"]
    for vector in (None, gain):
        scale = 1.0 if vector is None else reference.per_sample(vector.double(), x)
        data = 1.3 * x.double() - 0.7 * scale * (3.5 * output.double() - 2.5 * uncond.double())
        for quantile in QUANTILES:
            found = ops.dynamic_bound(x, output, table, INDEX, uncond=uncond, gain=vector, quantile=quantile)
            torch.testing.assert_close(found.double(), ranked(data, quantile), rtol=2e-6, atol=0)
            doubled = torch.cat([output, uncond])
            assert torch.equal(
                found, ops.dynamic_bound(x, doubled, table, INDEX, gain=vector, quantile=quantile)
            )
    assert found.dtype == torch.float32 and found.shape == shape[:1]


def test_branches_that_cancel_keep_the_accuracy_of_their_sum(everywhere):
    """As in solver_step: what half precision holds of guidance is not rounded before it is summed."""
    for seed in range(60):
        (x, output), _ = arguments((2, 3000), torch.Generator().manual_seed(seed), torch.bfloat16)
        uncond, gain = (output.float() + 0.05 * x.flip(1)).bfloat16(), torch.tensor([0.7, 1.3])
        table, rest = make_table(p=0.3, q=-1.3, g=7.5, g_uncond=-7.5), (0.995, torch.inf)
        found = ops.dynamic_bound(x, output, table, INDEX, uncond=uncond, gain=gain, quantile=rest[0])
        wide = (t.double() for t in (x, output, table))
        exact = reference.dynamic_bound(*wide, INDEX, uncond.double(), gain.double(), *rest)
        assert_accurate(found, exact, reference.dynamic_bound(x, output, table, INDEX, uncond, gain, *rest))


@pytest.mark.parametrize("size", [1, 2, 17, 4096, 4097, 50_000])
def test_ties_constants_and_ramps(everywhere, size):
    steps = torch.arange(size, dtype=torch.float32)
    for values in (
        torch.full((size,), 3.0),
        torch.zeros(size),
        steps,
        -steps.flip(0),
        steps % 7,
        (steps > size // 2) * 9.0,
    ):
        for quantile in QUANTILES:
            found = of(values, quantile).double()
            torch.testing.assert_close(found, ranked(values[None], quantile), rtol=1e-6, atol=0)


@pytest.mark.parametrize("size", [9, 30_000])
def test_nan_stays_in_its_sample_and_infinity_is_a_value(everywhere, size, generator):
    x = torch.randn(3, size, generator=generator) * 3
    plain = of(x, 0.5)
    x[1, size // 3], x[2, 5] = torch.nan, -torch.inf
    found = of(x, 0.5)
    assert found[1].isnan() and found[0] == plain[0] and found[2].isfinite()
    top = of(x, 1.0, most=50.0)
    assert top[2] == 50.0 and top[1].isnan() and top[0] == x[0].abs().max()
    assert of(torch.full((size,), torch.inf), 0.5).item() == torch.inf
    assert of(x[:1], 1.0, most=1.0).item() == 1.0


def test_far_outliers_and_a_sample_that_is_nearly_constant(everywhere):
    """Where a draw of the values says little of the rest."""
    values = torch.full((40_000,), 1.5)
    values[7], values[11] = 1e30, 2.0
    for quantile in (0.5, 0.99996, 0.99999, 1.0):
        torch.testing.assert_close(
            of(values, quantile).double(), ranked(values[None], quantile), rtol=1e-5, atol=0
        )


def test_empty_batches_layouts_and_threads(everywhere, generator):
    assert of(torch.zeros(0, 3), 0.5).shape == (0,)
    assert torch.equal(of(torch.zeros(2, 0), 0.5), torch.ones(2))
    (x, output), k = arguments((2, 4, 60, 50), generator)
    table = make_table(**GUIDED)
    expected = ops.dynamic_bound(x, output, table, INDEX, uncond=k["uncond"])
    turned = x.to(memory_format=torch.channels_last)
    assert torch.equal(ops.dynamic_bound(turned, output, table, INDEX, uncond=k["uncond"]), expected)
    for count in (1, 2, 3):
        with threads(count):
            assert torch.equal(ops.dynamic_bound(x, output, table, INDEX, uncond=k["uncond"]), expected)
            assert of(x[:1].reshape(1, -1), 0.9) == of(x, 0.9)[0]


def test_what_has_no_weight_is_not_read(everywhere):
    x, nan = torch.full((2, 9), 4.0), torch.full((2, 9), torch.nan)
    assert torch.equal(of(x, 0.5), torch.full((2,), 4.0))
    assert torch.equal(ops.dynamic_bound(x, nan, make_table(p=1.0), INDEX), torch.full((2,), 4.0))
    assert torch.equal(ops.dynamic_bound(nan, x, make_table(q=0.5), INDEX, uncond=nan), torch.full((2,), 2.0))
    gain = torch.tensor([torch.nan, torch.inf])  # of a branch that has no weight, or of none
    assert torch.equal(ops.dynamic_bound(x, nan, make_table(p=1.0), INDEX, gain=gain), torch.full((2,), 4.0))
    one = ops.dynamic_bound(nan, nan, make_table(q=0.5, g=0.0, g_uncond=1.0), INDEX, uncond=x, gain=gain)
    assert one[0].isnan() and one[1] == torch.inf


def test_gradients_in_every_precision(generator):
    x = torch.linspace(-3, 2.6, 12, dtype=torch.float64).reshape(2, 6).requires_grad_()
    table = make_table(p=1.0, q=0.5)
    output = torch.randn(2, 6, generator=generator).double().requires_grad_()
    torch.autograd.gradcheck(lambda x, o: ops.dynamic_bound(x, o, table, INDEX, quantile=0.7), (x, output))
    single = x.detach().float().requires_grad_()
    ops.dynamic_bound(single, output.detach().float(), table, INDEX, quantile=0.7).sum().backward()
    assert single.grad.abs().sum() > 0


@pytest.mark.parametrize("overload", ["default", "triton"])
def test_opcheck_and_compile(overload, generator):
    (x, output), k = arguments((2, 3, 5), generator)
    op, table = getattr(torch.ops.fastdiff.dynamic_bound, overload), make_table(**GUIDED)
    torch.library.opcheck(op, (x, output, table, INDEX, k["uncond"], torch.ones(2), 0.9, 5.0))

    def bound(x, output):
        return ops.dynamic_bound(x, output, table, INDEX, uncond=k["uncond"])

    compiled = torch.compile(bound, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, output), bound(x, output))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"quantile": 1.5}, "quantile must lie between 0 and 1"),
        ({"quantile": float("nan")}, "quantile must lie"),
        ({"most": 0.5}, "most be at least 1"),
        ({"output": torch.zeros(2, 4)}, r"output has shape \(2, 4\)"),
        ({"gain": torch.ones(3)}, r"gain has shape \(3,\)"),
        ({"table": make_table(q=1.0, g_uncond=1.0)}, "pass uncond|not given"),
        ({"index": torch.tensor([1])}, "index is int64"),
    ],
)
@pytest.mark.parametrize("name", ["reference", "auto"])
def test_errors(name, change, words):
    x = torch.zeros(2, 3)
    arguments = {"x": x, "output": x, "table": make_table(p=1.0), "index": INDEX} | change
    with backend.use(name), pytest.raises(ValueError, match=words):
        ops.dynamic_bound(**arguments)


@pytest.mark.parametrize("isa", instruction_sets())
def test_any_values(isa):
    @settings(max_examples=350, deadline=None, derandomize=True)
    @given(
        shape=st.tuples(st.integers(1, 4), st.one_of(st.integers(1, 70), st.integers(4090, 9000))),
        model=st.sampled_from(HALF_AND_SINGLE),
        seed=st.integers(0, 2**31),
        weights=st.fixed_dictionaries({n: st.sampled_from([0.0, 1.0, -0.75, 2.5]) for n in GUIDED}),
        quantile=st.one_of(st.sampled_from(QUANTILES), st.floats(0, 1)),
        levels=st.sampled_from([0, 1, 3]),
    )
    def holds(shape, model, seed, weights, quantile, levels):
        generator = torch.Generator().manual_seed(seed)
        (x, output), k = arguments(shape, generator, model)
        if levels:  # few different values: ties
            x, output = (x * levels).round(), (output * levels).round()
        table = make_table(**weights)
        given_ones = (x, output, table, INDEX, k["uncond"], None, quantile, torch.inf)
        found = ops.dynamic_bound(*given_ones[:4], uncond=k["uncond"], quantile=quantile)
        exact = reference.dynamic_bound(*(t.double() if t is x else t for t in given_ones))
        error = (found - exact).abs().max()
        allowed = 2 * (reference.dynamic_bound(*given_ones) - exact).abs().max() + 1e-6 * exact.max()
        assert error <= allowed

    native.set_isa(isa)
    try:
        holds()
    finally:
        native.set_isa("")
