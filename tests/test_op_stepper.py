"""stepper: the same bits as solver_step_, whatever a model returns, and memory that cannot be pulled from under it."""

from __future__ import annotations

import gc
import importlib

import pytest
import torch

import fastdiff
from conftest import HALF_AND_SINGLE
from fastdiff import backend, ops, schedules
from solver_step_cases import FULL, INDEX, arguments, inpainting, make_table, seeds, vectors

module = importlib.import_module("fastdiff.ops.stepper")  # whose name in ops is the function
SHAPE = (2, 3, 4, 5)
prepared = pytest.mark.skipif(module._host is None, reason="fastdiff._host is not built")


def table(**changes):
    return make_table(**FULL | {"slot": 1.0} | changes)


def buffers(generator, dtype=torch.float32, doubled=True, layout=torch.contiguous_format):
    x, anchor, *ring = (torch.randn(SHAPE, generator=generator).to(memory_format=layout) for _ in range(4))
    history = torch.stack(ring)
    if layout == torch.channels_last:
        strides = (x.numel(), *x.stride())
        history = torch.empty_strided((2, *SHAPE), strides).copy_(history)
    x_in = torch.zeros(2 * SHAPE[0] if doubled else SHAPE[0], *SHAPE[1:], dtype=dtype)
    return {"x": x, "anchor": anchor, "history": history, "input": x_in.to(memory_format=layout)}


def copies(tensors):
    return {name: t.clone(memory_format=torch.preserve_format) for name, t in tensors.items()}


def both(state, table, given, **fixed):
    """Row 1 by the op and by a stepper, on copies of the same buffers; returns those."""
    mine, theirs = copies(state), copies(state)
    x, x2 = mine.pop("x"), theirs.pop("x")
    step = ops.stepper(x, table, **mine, **fixed)
    step(1, *given)
    names = dict(zip(("uncond", "noise", "bound", "gain"), given[1:], strict=False))
    if names.get("noise") is not None:
        fixed = fixed | {"seeds": None}
    ops.solver_step_(x2, given[0] if given else None, table, INDEX, **names, **theirs, **fixed)
    for name, tensor in ({"x": x} | mine).items():
        assert torch.equal(tensor, ({"x": x2} | theirs)[name]), name
    return step, x


def is_short(step):
    return not isinstance(step, module.ByOp)


@pytest.mark.parametrize("model", HALF_AND_SINGLE)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_same_bits_as_the_op(model, layout, generator):
    (_, output), k = arguments(SHAPE, generator, model)
    more = vectors(2, generator)
    output, uncond = (t.to(memory_format=layout) for t in (output, k["uncond"]))
    blend = inpainting(SHAPE, generator)
    for doubled in (True, False):
        state = buffers(generator, model, doubled, layout)
        noise = k["noise"].to(memory_format=layout)
        both(state, table(), (output, uncond, noise, more["bound"], more["gain"]))
        both(state, table(), (torch.cat([output, uncond]), None, noise), **blend)
        both(state, table(), (output, uncond, noise.to(model)))
        both(state, table(), (output, uncond), seeds=seeds(2), **blend)
        both(state, table(call=0.0), (), seeds=seeds(2))


@prepared
def test_the_short_way_is_taken_and_repeats_on_the_same_buffers(generator):
    state = buffers(generator)
    (_, output), k = arguments(SHAPE, generator)
    step, x = both(state, table(), (output, k["uncond"], k["noise"]))
    assert is_short(step)
    before, version = x.clone(), x._version
    step(0, output, k["uncond"], k["noise"])
    assert not torch.equal(x, before) and x._version > version


STRANGE = {
    "another layout": lambda t: t.to(memory_format=torch.channels_last),
    "sliced": lambda t: torch.cat([t, t], dim=-1)[..., : t.shape[-1]],
    "expanded": lambda t: t[:1].expand(t.shape),
    "negated": lambda t: torch.complex(t, t).conj().imag,
    "float64": lambda t: t.double(),
    "a parameter": lambda t: torch.nn.Parameter(t),
    "a subclass": lambda t: t.as_subclass(type("Mine", (torch.Tensor,), {})),
    "odd offset": lambda t: torch.cat([t.flatten()[:1], t.flatten()])[1:].view(t.shape),
}


@pytest.mark.parametrize("name", STRANGE)
def test_whatever_a_model_returns_is_read_right(name, generator):
    (_, output), k = arguments(SHAPE, generator)
    state = buffers(generator)
    plain = copies(state)
    strange = STRANGE[name](output)
    ops.stepper(plain.pop("x"), table(), **plain)(
        1, strange.detach().contiguous().float(), k["uncond"], k["noise"]
    )
    with torch.no_grad():
        ops.stepper(state.pop("x"), table(), **state)(1, strange, k["uncond"].to(strange.dtype), k["noise"])
    assert torch.equal(state["input"], plain["input"])


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ((torch.zeros(2, 3, 4, 6),), ValueError, r"output has shape \(2, 3, 4, 6\)"),
        ((torch.zeros(SHAPE, dtype=torch.int64),), TypeError, "output is int64"),
        ((torch.zeros(SHAPE, device="meta"),), ValueError, "output is on meta"),
        ((torch.zeros(SHAPE).requires_grad_(),), ValueError, "output requires grad"),
        ((None,), ValueError, "pass output"),
        ((torch.zeros(SHAPE),), ValueError, "pass uncond|not given"),
        (
            (torch.zeros(SHAPE), torch.zeros(SHAPE), torch.zeros(SHAPE).double()),
            TypeError,
            "noise is float64",
        ),
        (
            (torch.zeros(SHAPE), torch.zeros(SHAPE), None, torch.ones(3)),
            ValueError,
            r"bound has shape \(3,\)",
        ),
        (("output",), (TypeError, AttributeError), "str|Tensor"),
    ],
)
@pytest.mark.parametrize("name", ["reference", "auto"])
def test_errors(name, given, error, words, generator):
    state = buffers(generator)
    before = state["x"].clone()
    rows = table(n=0.35 if len(given) == 3 else 0.0)
    with backend.use(name):
        step = ops.stepper(state["x"], rows, **{n: t for n, t in state.items() if n != "x"})
        with pytest.raises(error, match=words):
            step(1, *given)
        for row in (3, -1, 2**40):
            with pytest.raises(ValueError, match="no such row in the table"):
                step(row, torch.zeros(SHAPE), torch.zeros(SHAPE))
    assert torch.equal(state["x"], before)


@prepared
@pytest.mark.parametrize(
    "change",
    [
        lambda s: s | {"x": s["x"][:, :, :, ::2]},
        lambda s: s | {"input": s["input"].double()},
        lambda s: s | {"history": s["history"][:, :1]},
        lambda s: s | {"anchor": s["anchor"].to(memory_format=torch.channels_last)},
        lambda s: {name: t.double() for name, t in s.items()},
        lambda s: {name: t.to("meta") for name, t in s.items()},
        lambda s: s | {"x": s["x"].requires_grad_()},
    ],
)
def test_buffers_the_kernel_cannot_use_go_the_long_way(change, generator):
    state = change(buffers(generator))
    rows = table().to(state["x"].device)
    assert not is_short(ops.stepper(state.pop("x"), rows, **state))


@prepared
def test_other_backends_and_dispatch_modes_go_the_long_way(generator):
    state = buffers(generator)
    with backend.use("reference"):
        assert not is_short(ops.stepper(state["x"], table()))
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False):
        assert not is_short(ops.stepper(state["x"], table()))
    assert is_short(ops.stepper(state["x"], table()))


@prepared
def test_a_model_that_moves_the_state_is_noticed(generator):
    x = torch.randn(SHAPE, generator=generator)
    step = ops.stepper(x, make_table(a=2.0))
    x.data = x.clone()  # other memory
    expected = 2 * x
    step(0, torch.zeros(SHAPE))
    assert torch.equal(x, expected)


@prepared
def test_the_state_may_move_beside_an_input_buffer(generator):
    state = buffers(generator)
    x, rows = state.pop("x"), make_table(a=2.0)
    step, expected = ops.stepper(x, rows, **state), 2 * x
    x.data = x.data.clone()
    step(1, torch.zeros(SHAPE), torch.zeros(SHAPE))
    assert torch.equal(x, expected) and torch.equal(state["input"][:2], expected)


@prepared
def test_memory_that_a_buffer_gave_up_is_held(generator):
    x, anchor, history = torch.zeros(64, 64), torch.zeros(64, 64), torch.zeros(2, 64, 64)
    step = ops.stepper(x, make_table(a=1.0, q=1.0, w=1.0, accept=1.0), anchor=anchor, history=history)
    addresses = {t.data_ptr() for t in (x, anchor, history)}
    for tensor in (anchor, history):
        tensor.data = tensor.data.clone()
    gc.collect()
    taken = [torch.zeros(size, 64, 64) for size in (1, 2) * 10]  # would reuse the memory, were it free
    assert all(t.data_ptr() not in addresses for t in taken)
    step(0, torch.ones(64, 64))
    assert all(not t.any() for t in taken)


@prepared
def test_the_buffers_live_as_long_as_the_stepper(generator):
    output = torch.ones(64, 64)

    def make():
        x = torch.zeros(64, 64)
        return ops.stepper(x, make_table(q=1.0, w=1.0, c0=1.0)), x.data_ptr()

    step, address = make()
    gc.collect()
    taken = [torch.zeros(64, 64) for _ in range(20)]  # would reuse the memory, were it free
    assert all(t.data_ptr() != address for t in taken)
    step(0, output)
    assert all(not t.any() for t in taken)


def test_a_whole_run_either_way_gives_the_same_bits(monkeypatch):
    def model(x, t):
        return torch.tanh(x) * 0.5

    options = {"schedule": schedules.karras(0.1, 10.0), "steps": 7, "prediction": "sample", "seed": 0}
    for sampler in ("dpmpp_2m", "heun", "euler_ancestral", "unipc"):
        short = fastdiff.sample(model, (2, 4, 8, 8), sampler=sampler, **options)
        with monkeypatch.context() as patch:
            patch.setattr(module.ByOp, "short", lambda self: None)
            assert torch.equal(short, fastdiff.sample(model, (2, 4, 8, 8), sampler=sampler, **options))


def test_tensors_of_torch_func_go_the_long_way(generator):
    x = torch.randn(SHAPE, generator=generator)

    def doubled(x):
        assert not is_short(ops.stepper(x, make_table()))
        return 2 * x

    assert torch.equal(torch.vmap(doubled)(x), 2 * x)


@prepared
def test_inference_mode_and_what_autograd_saved(generator):
    x = torch.randn(SHAPE, generator=generator)
    with torch.inference_mode():
        state = x.clone()
        ops.stepper(state, make_table(a=2.0))(0, x)
        assert torch.equal(state, 2 * x)
    step, weight = ops.stepper(x, make_table(a=2.0)), torch.ones(SHAPE, requires_grad=True)
    loss = (weight * x).sum()
    step(0, torch.zeros(SHAPE))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
