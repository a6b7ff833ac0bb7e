"""solver_step and solver_step_ on every backend: the whole row, guidance, bounds, the ring, and gradients."""

from __future__ import annotations

import itertools

import pytest
import torch

from conftest import HALF_AND_SINGLE, threads
from fastdiff import backend, ops
from solver_step_cases import FULL, INDEX, Case, arguments, every_option, make_table, seeds
from solver_step_cases import check as check_case


def draw(shape, generator, count):
    return [torch.randn(shape, generator=generator) for _ in range(count)]


def check(table, positional, keywords, **options):
    return check_case(Case(*positional, table, keywords | options))


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(
    "shape", [(2, 4, 9, 7), (3, 5), (1, 1), (2, 4, 16, 16), (2, 3, 3, 5, 7), (4,), (0, 3)], ids=str
)
@pytest.mark.parametrize(
    ("model", "doubled"), [*zip(HALF_AND_SINGLE, (True, False, True), strict=True)], ids=str
)
def test_the_whole_row(everywhere, shape, model, doubled, generator):
    for case in every_option(shape, generator, model):
        case.keywords |= {"input_dtype": model, "doubled": doubled}
        check_case(case)


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


def test_both_branches_in_one_output(everywhere, generator):
    (x, output), k = arguments((2, 4, 6, 5), generator, torch.bfloat16)
    table = make_table(**FULL)
    expected = ops.solver_step(x, output, table, INDEX, **k)
    both, rest = torch.cat([output, k.pop("uncond")]), k
    for given in (both, both.to(memory_format=torch.channels_last), both.expand(4, 4, 6, 5)):
        step = ops.solver_step(x, given, table, INDEX, **rest)
        assert all(torch.equal(a, e) for a, e in zip(step, expected, strict=True))
    one = ops.solver_step(x[:1], both[[0, 2]], table, INDEX, **{n: _first(t) for n, t in rest.items()})
    assert torch.equal(one.x, expected.x[:1])
    single = make_table(q=0.5, w=1.0, c0=1.0)  # without guidance the first half alone is read
    nan = torch.cat([output, output * torch.nan])
    assert torch.equal(ops.solver_step(x, nan, single, INDEX).x, ops.solver_step(x, output, single, INDEX).x)


def _first(value):
    return [t[:1] for t in value] if isinstance(value, list) else value[:1]


def test_what_kernels_do_not_take_is_converted(everywhere, generator):
    (x, output), k = arguments((2, 3, 5), generator)
    table = make_table(**FULL)
    expected = ops.solver_step(x, output, table, INDEX, **k)
    wide = ops.solver_step(x, output.double(), table, INDEX, **k)
    assert torch.equal(wide.x, expected.x)
    mixed = ops.solver_step(x, output, table, INDEX, **k | {"uncond": k["uncond"].bfloat16().double()})
    half = ops.solver_step(x, output, table, INDEX, **k | {"uncond": k["uncond"].bfloat16()})
    assert torch.equal(mixed.x, half.x)
    buffer, state = torch.zeros(2, 3, 5, dtype=torch.float64), x.clone()
    ops.solver_step_(state, output.double(), make_table(k=0.5), INDEX, input=buffer)
    assert torch.equal(buffer, x.double() * 0.5)
    vector = torch.full((2,), 0.5).double()
    clamped = ops.solver_step(x, output, table, INDEX, **k, bound=vector, gain=vector)
    assert torch.equal(
        clamped.x, ops.solver_step(x, output, table, INDEX, **k, bound=vector.float(), gain=vector.float()).x
    )


def test_inference_mode_and_threads(generator):
    positional, keywords = arguments((2, 4, 200, 200), generator)
    table = make_table(**FULL)
    expected = ops.solver_step(*positional, table, INDEX, **keywords).x
    for count in (1, 2, 3):
        with threads(count), torch.inference_mode():
            assert torch.equal(ops.solver_step(*positional, table, INDEX, **keywords).x, expected)
            x = positional[0].clone()
            ops.solver_step_(x, positional[1], make_table(), INDEX)
            assert torch.equal(x, positional[0])


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
        ({"table": make_table(f=1.0), "output": None}, ValueError, "pass output"),
        ({"table": make_table(f=1.0, g_uncond=1.0)}, ValueError, "pass uncond|not given"),
        ({"noise": X.int()}, TypeError, "noise is int32"),
        ({"noise": torch.zeros(2, 4).half()}, ValueError, r"noise has shape \(2, 4\)"),
        ({"seeds": torch.zeros(2)}, ValueError, r"seeds is float32 \[2\]: it must be int64 \[2\]"),
        ({"seeds": seeds(3)}, ValueError, r"it must be int64 \[2\]"),
        ({"seeds": seeds(2), "noise": X}, ValueError, "not both"),
        ({"known": X}, ValueError, "pass mask"),
        (
            {"mask": torch.ones(3)[:2]},
            ValueError,
            r"mask has shape \(2,\): it must broadcast to x's, \(2, 3\)",
        ),
        ({"mask": X, "table": make_table(alpha=1.0)}, ValueError, "pass known|not given"),
        ({"mask": X, "known": X, "table": make_table(sigma=1.0)}, ValueError, "pass known_noise|not given"),
        ({"output": torch.zeros(2, 3, device="meta")}, ValueError, "output is on meta"),
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
    with pytest.raises(ValueError, match=r"source has shape \(2, 4\)"):
        ops.solver_step_(X.clone(), X, T, INDEX, source=torch.zeros(2, 4))
    with pytest.raises(TypeError, match="source is float16"):
        ops.solver_step_(X.clone(), X, T, INDEX, source=X.half())
    memory = torch.zeros(3, 3)
    with backend.use("auto"), pytest.raises(ValueError, match="source: it must not overlap x"):
        ops.solver_step_(memory[:2], X, T, INDEX, source=memory[1:])
    with pytest.raises(ValueError, match="at most 3"):
        ops.solver_step(X, X, T, INDEX, history=[X] * 4)
    with pytest.raises(ValueError, match="requires grad"):
        ops.solver_step_(X.clone(), X.clone().requires_grad_(), T, INDEX)
