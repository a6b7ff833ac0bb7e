"""solver_step and solver_step_ on every backend: the whole row, guidance, bounds, the ring, and gradients."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import HALF_AND_SINGLE, assert_accurate
from fastdiff import backend, ops, reference
from fastdiff.reference import COLUMNS

INDEX = torch.tensor(1)


def make_table(**weights):
    """Three rows of the same weights: identity on x, no clamp, one call, unless said otherwise."""
    row = dict.fromkeys(COLUMNS, 0.0) | {
        "lo": -torch.inf,
        "hi": torch.inf,
        "a": 1.0,
        "k": 1.0,
        "g": 1.0,
        "call": 1.0,
    }
    row |= weights
    return torch.tensor([list(row.values())] * 3, dtype=torch.float64)


FULL = {
    "p": 1.3, "q": -0.7, "lo": -1.1, "hi": 1.2, "u": 0.2, "w": 0.9, "a": 0.5, "b": 0.3, "c0": 0.6, "c1": -0.4,
    "c2": 0.25, "c3": -0.1, "n": 0.35, "k": 0.8, "g": 3.5, "g_uncond": -2.5, "slot": 3.0, "accept": 1.0, "alpha": 0.85, "sigma": 0.4,
}  # fmt: skip


def draw(shape, generator, count=7):
    return [torch.randn(shape, generator=generator) for _ in range(count)]


def arguments(shape, generator, dtype=torch.float32):
    """Every tensor a row can read, in float32 (the model's in dtype)."""
    x, output, uncond, anchor, *history = draw(shape, generator, 7)
    noise = torch.randn(shape, generator=generator)
    return (x, output.to(dtype)), {
        "uncond": uncond.to(dtype),
        "anchor": anchor,
        "history": history,
        "noise": noise,
    }


def widened(value):
    if isinstance(value, torch.Tensor):
        return value.double() if value.is_floating_point() else value
    return [widened(v) for v in value] if isinstance(value, list) else value


def check(table, positional, keywords, **options):
    """Compares one step with float64 and with the same formula in float32."""
    step = ops.solver_step(*positional, table, INDEX, **keywords, **options)
    dtype = options.get("input_dtype") or torch.float32
    wide = {name: widened(value) for name, value in keywords.items()}
    exact = reference.solver_step(
        *map(widened, positional), table, INDEX, **wide, **options | {"input_dtype": torch.float64}
    )
    composed = reference.solver_step(*positional, table, INDEX, **keywords, **options)
    for actual, *others in zip(step, exact, composed, strict=True):
        assert_accurate(actual, *others)
    assert step.input.dtype == dtype
    return step


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(
    "shape", [(2, 4, 9, 7), (3, 5), (1, 1), (2, 4, 16, 16), (2, 3, 3, 5, 7), (4,), (0, 3)], ids=str
)
@pytest.mark.parametrize(
    ("model", "doubled"), [*zip(HALF_AND_SINGLE, (True, False, True), strict=True)], ids=str
)
def test_the_whole_row(everywhere, shape, model, doubled, generator):
    positional, keywords = arguments(shape, generator, model)
    per_sample = {name: torch.rand(shape[0], generator=generator) + 0.5 for name in ("bound", "gain")}
    for given_names in ((), ("bound",), ("gain",), ("bound", "gain")):
        more = {name: per_sample[name] for name in given_names}
        check(make_table(**FULL), positional, keywords | more, input_dtype=model, doubled=doubled)


@pytest.mark.parametrize("dtypes", [*itertools.product(HALF_AND_SINGLE, repeat=2)], ids=str)
def test_every_pair_of_model_dtypes(everywhere, dtypes, generator):
    positional, keywords = arguments((2, 3, 11), generator, dtypes[0])
    check(make_table(**FULL), positional, keywords, input_dtype=dtypes[1])


@pytest.mark.parametrize("name", [n for n in FULL if n not in ("lo", "hi", "slot", "accept", "k", "g", "w")])
def test_one_weight_alone(everywhere, name, generator):
    positional, keywords = arguments((2, 70), generator)
    needed = {"p": {"w": 1.0, "c0": 1.0}, "q": {"w": 1.0, "c0": 1.0}, "u": {"c0": 1.0}}
    needed["g_uncond"] = {"q": 0.5, "w": 1.0, "c0": 1.0, "g": 0.0}
    check(make_table(**needed.get(name, {}) | {"a": 0.0, name: 0.7}), positional, keywords)


def test_what_has_no_weight_is_not_read(everywhere, generator):
    x, output = draw((2, 33), generator, 2)
    nan = torch.full_like(x, torch.nan)
    table = make_table(q=0.5, w=1.0, c0=0.5)
    expected = ops.solver_step(x, output, table, INDEX)
    everything = {"uncond": nan, "anchor": nan, "history": [nan] * 3, "noise": nan}
    for step in (ops.solver_step(x, output, table, INDEX, **everything),):
        assert all(torch.equal(a, e) for a, e in zip(step, expected, strict=True))
    blind = make_table(p=0.5, w=1.0, c0=0.5, a=0.25)
    assert ops.solver_step(x, nan, blind, INDEX).x.isfinite().all()
    restart = make_table(a=0.0, b=1.0, call=0.0)
    assert torch.equal(ops.solver_step(nan, None, restart, INDEX, anchor=x).x, x)


def test_nan_and_infinity_stay_in_their_element(everywhere, generator):
    positional, keywords = arguments((2, 100), generator)
    positional[1][1, 7], positional[0][0, 99] = torch.nan, torch.inf
    step = ops.solver_step(*positional, make_table(**FULL), INDEX, **keywords)
    assert (~step.x.isfinite()).nonzero().tolist() == [[0, 99], [1, 7]]
    assert step.value[1, 7].isnan()


def test_a_row_without_a_model_output(everywhere, generator):
    (x, _), keywords = arguments((2, 3, 5), generator)
    table = make_table(**FULL | {"call": 0.0})
    step = ops.solver_step(x, None, table, INDEX, **keywords)
    h = keywords["history"]
    expected = (
        0.5 * x + 0.3 * keywords["anchor"] - 0.4 * h[0] + 0.25 * h[1] - 0.1 * h[2] + 0.35 * keywords["noise"]
    )
    torch.testing.assert_close(step.x, expected)
    assert step.value.numel() == 0
    ring = torch.zeros(2, *x.shape)
    ops.solver_step_(x.clone(), None, make_table(call=0.0, slot=1.0), INDEX, history=ring)
    assert torch.equal(ring, torch.zeros_like(ring))  # nothing is stored


@pytest.mark.parametrize("slots", [1, 2, 3, 4])
@pytest.mark.parametrize("model", HALF_AND_SINGLE)
def test_in_place_is_the_functional_step(everywhere, slots, model, generator):
    shape = (3, 4, 5, 6)
    positional, keywords = arguments(shape, generator, model)
    bound, gain = torch.rand(2, 3, generator=generator) + 0.5
    ring = torch.randn(slots, *shape, generator=generator)
    for doubled, accept in itertools.product((False, True), repeat=2):
        table = make_table(**FULL | {"accept": float(accept), "slot": 7.0})
        past = [ring[(7 - j) % slots].clone() for j in (1, 2, 3)]
        options = keywords | {"history": past, "bound": bound, "gain": gain}
        expected = ops.solver_step(*positional, table, INDEX, **options, input_dtype=model, doubled=doubled)
        x, anchor, history = positional[0].clone(), keywords["anchor"].clone(), ring.clone()
        buffer = torch.empty((3 * (1 + doubled), *shape[1:]), dtype=model)
        more = {"uncond": keywords["uncond"], "noise": keywords["noise"], "bound": bound, "gain": gain}
        version = x._version
        ops.solver_step_(x, positional[1], table, INDEX, anchor=anchor, history=history, input=buffer, **more)
        assert torch.equal(x, expected.x) and x._version > version
        assert torch.equal(history[7 % slots], expected.value)
        assert torch.equal(buffer, expected.input)
        assert torch.equal(anchor, expected.x if accept else keywords["anchor"])
        kept = [s for s in range(slots) if s != 7 % slots]
        assert torch.equal(history[kept], ring[kept])


def test_layouts(everywhere, generator):
    shape = (2, 4, 6, 5)
    positional, keywords = arguments(shape, generator)
    table = make_table(**FULL)
    expected = ops.solver_step(*positional, table, INDEX, **keywords, doubled=True)
    last = {"memory_format": torch.channels_last}
    step = ops.solver_step(positional[0].to(**last), positional[1], table, INDEX, **keywords, doubled=True)
    assert step.x.is_contiguous(**last) and step.input.is_contiguous(**last)
    for actual, wanted in zip(step, expected, strict=True):
        assert torch.equal(actual, wanted)
    sliced = torch.cat([positional[0]] * 2, dim=3)[..., :5]
    step = ops.solver_step(sliced, positional[1].expand(2, -1, -1, -1), table, INDEX, **keywords)
    assert torch.equal(step.x, expected.x)
    x = positional[0].to(**last)
    simple = make_table(p=1.0, q=-0.5, w=1.0, c0=0.5, n=0.3)
    wanted = ops.solver_step(*positional, simple, INDEX, noise=keywords["noise"])
    buffer = torch.empty(4, 4, 6, 5).to(**last)
    ops.solver_step_(x, positional[1], simple, INDEX, noise=keywords["noise"], input=buffer)
    assert torch.equal(x, wanted.x) and torch.equal(buffer, torch.cat([wanted.input] * 2))


def test_inference_mode_and_threads(generator):
    positional, keywords = arguments((2, 4, 200, 200), generator)
    table = make_table(**FULL)
    expected = ops.solver_step(*positional, table, INDEX, **keywords).x
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        with torch.inference_mode():
            assert torch.equal(ops.solver_step(*positional, table, INDEX, **keywords).x, expected)
            x = positional[0].clone()
            ops.solver_step_(x, positional[1], make_table(), INDEX)
            assert torch.equal(x, positional[0])
    finally:
        torch.set_num_threads(threads)


def leaves(positional, keywords, dtype):
    tensors = [*positional, keywords["uncond"], keywords["anchor"], *keywords["history"], keywords["noise"]]
    return [t.to(dtype).detach().requires_grad_() for t in tensors]


def as_function(table, **options):
    def step(x, output, uncond, anchor, h1, h2, h3, noise, bound=None, gain=None):
        more = {
            "uncond": uncond,
            "anchor": anchor,
            "history": (h1, h2, h3),
            "noise": noise,
            "bound": bound,
            "gain": gain,
        }
        return tuple(ops.solver_step(x, output, table, INDEX, **more, **options))

    return step


@pytest.mark.parametrize("bounded", [False, True])
def test_gradients(bounded, generator):
    table = make_table(**FULL)
    inputs = leaves(*arguments((2, 3, 4), generator), torch.float64)
    if bounded:
        inputs += [(torch.rand(2, generator=generator).double() + 0.5).requires_grad_() for _ in "bg"]
    function = as_function(table, doubled=True)
    with backend.use("reference"):
        torch.autograd.gradcheck(function, inputs)
        cotangents = [torch.randn(t.shape, dtype=t.dtype, generator=generator) for t in function(*inputs)]
        expected = torch.autograd.grad(function(*inputs), inputs, cotangents)
    singles = [t.detach().float().requires_grad_() for t in inputs]
    actual = torch.autograd.grad(function(*singles), singles, [c.float() for c in cotangents])
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("overload", ["default", "triton"])
def test_opcheck(overload, generator):
    (x, output), k = arguments((2, 3, 5), generator)
    op = getattr(torch.ops.fastdiff.solver_step, overload)
    vectors = [torch.rand(2, generator=generator) + 0.5 for _ in "bg"]
    tensors = (k["uncond"], k["anchor"], *k["history"], k["noise"], *vectors)
    table = make_table(**FULL)
    torch.library.opcheck(
        op,
        (
            x.requires_grad_(),
            output.requires_grad_(),
            table,
            INDEX,
            *tensors,
            *[None] * 4,
            torch.float32,
            True,
        ),
    )
    torch.library.opcheck(
        op, (x.detach(), None, make_table(call=0.0), INDEX, *[None] * 12, torch.bfloat16, False)
    )
    inplace = getattr(torch.ops.fastdiff.solver_step_, overload)
    ring, buffer = torch.zeros(2, 2, 3, 5), torch.zeros(4, 3, 5)
    more = (k["uncond"], k["anchor"], ring, k["noise"], *vectors, *[None] * 4, buffer)
    torch.library.opcheck(inplace, (x.detach().clone(), output.detach(), table, INDEX, *more))


def test_compile_export_and_vmap(generator):
    positional, keywords = arguments((2, 3, 5), generator)
    table = make_table(**FULL)
    function = as_function(table)
    inputs = leaves(positional, keywords, torch.float32)
    expected = function(*inputs)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")(*inputs)
    assert torch.equal(compiled[0], expected[0])
    assert torch.autograd.grad(compiled[0].sum(), inputs[0])[0].isfinite().all()

    class Step(torch.nn.Module):
        def forward(self, x, output, table, index):
            return tuple(ops.solver_step(x, output, table, index, doubled=True))

    simple = make_table(p=1.0, q=-0.5, w=1.0, c0=0.5)
    exported = torch.export.export(Step(), (*positional, simple, INDEX)).module()
    wanted = Step()(*positional, simple, INDEX)
    assert all(torch.equal(a, w) for a, w in zip(exported(*positional, simple, INDEX), wanted, strict=True))
    stacked = [torch.stack([t, t.flip(0)]) for t in positional]
    batched = torch.vmap(lambda x, o: ops.solver_step(x, o, simple, INDEX).x)(*stacked)
    torch.testing.assert_close(batched[0], wanted[0])


X, T = torch.zeros(2, 3), make_table()


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"x": X.half()}, TypeError, "x is float16: the state stays float32"),
        ({"output": torch.zeros(2, 4)}, ValueError, r"output has shape \(2, 4\)"),
        ({"output": None}, ValueError, "pass output"),
        ({"table": T.float()}, ValueError, "table is float32"),
        ({"table": T[:, :21]}, ValueError, r"must be float64 \[N, 22\]"),
        ({"index": torch.tensor([1])}, ValueError, "index is int64"),
        ({"index": torch.tensor(3)}, (ValueError, IndexError), "index|row"),
        ({"noise": X.double()}, TypeError, "noise is float64"),
        ({"bound": torch.ones(3)}, ValueError, r"bound has shape \(3,\)"),
        ({"gain": torch.ones(2, device="meta")}, ValueError, "gain is on meta"),
        ({"table": make_table(n=1.0)}, ValueError, "pass noise|not given"),
        ({"table": make_table(b=1.0)}, ValueError, "pass anchor|not given"),
        ({"table": make_table(c2=1.0)}, ValueError, "history"),
        ({"table": make_table(q=1.0, w=1.0, g_uncond=1.0)}, ValueError, "pass uncond|not given"),
    ],
)
@pytest.mark.parametrize("name", ["reference", "auto"])
def test_errors(name, change, error, words):
    given_arguments = {"x": X.clone(), "output": X, "table": T, "index": INDEX} | change
    with backend.use(name):
        with pytest.raises(error, match=words):
            ops.solver_step(**given_arguments)
        with pytest.raises(error, match=words):
            ops.solver_step_(**given_arguments)


def test_errors_of_the_buffers():
    with pytest.raises(ValueError, match=r"history has shape \[2, 3\]: it must be \[S, 2, 3\]"):
        ops.solver_step_(X.clone(), X, T, INDEX, history=X)
    with pytest.raises(ValueError, match="input holds 3 samples"):
        ops.solver_step_(X.clone(), X, T, INDEX, input=torch.zeros(3, 3))
    with pytest.raises(ValueError, match="dense"):
        ops.solver_step_(torch.zeros(2, 6)[:, ::2], X, T, INDEX)
    with pytest.raises(ValueError, match="at most 3"):
        ops.solver_step(X, X, T, INDEX, history=[X] * 4)
    with pytest.raises(ValueError, match="requires grad"):
        ops.solver_step_(X.clone(), X.clone().requires_grad_(), T, INDEX)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    weights=st.fixed_dictionaries(
        {n: st.sampled_from([0.0, 1.0, -0.75, 2.5]) for n in FULL if n not in ("lo", "hi")}
    ),
    bounds=st.sampled_from([(-torch.inf, torch.inf), (-1.0, 1.0), (0.0, torch.inf)]),
    model=st.sampled_from(HALF_AND_SINGLE),
)
def test_any_row(shape, weights, bounds, model):
    generator = torch.Generator().manual_seed(sum(shape))
    positional, keywords = arguments(tuple(shape), generator, model)
    table = make_table(**weights | {"lo": bounds[0], "hi": bounds[1]})
    check(table, positional, keywords)
