"""q_sample and randn on every backend: values, torch.randn's bits, gradients, and their registration in PyTorch."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import HALF_AND_SINGLE, assert_accurate
from fastdiff import backend, counter, native, ops
from fastdiff.ops import _drawing

SHAPES = [(2, 3), (3, 4, 17), (2, 4, 64, 64), (1, 3, 5, 7, 9), (0, 3, 4), (2, 0)]
needs_cpp = pytest.mark.skipif(bool(native.problem("cpu")), reason="the C++ kernels are not built")


def images(shape, dtype, generator, count=2):
    return [torch.randn(shape, generator=generator).to(dtype) for _ in range(count)]


def spread(level, x):
    return level.view(-1, *(1,) * (x.dim() - 1))


def composition(x0, noise, alpha, sigma):
    alpha, sigma = (spread(level.to(x0.dtype), x0) for level in (alpha, sigma))
    return alpha * x0 + sigma * noise, alpha * noise - sigma * x0


def twins(seed=0):
    return torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed)


# --- values ---


def check_given(shape, dtype, generator):
    x0, noise = images(shape, dtype, generator)
    alpha, sigma = torch.rand(2, shape[0], generator=generator)
    exact = composition(x0.double(), noise.double(), alpha.double(), sigma.double())
    plain = composition(x0, noise, alpha, sigma)
    made = ops.q_sample(x0, alpha, sigma, noise=noise, velocity=True)
    assert made.noise is noise
    assert torch.equal(made.x, ops.add_noise(x0, noise, alpha, sigma))
    for actual, e, p in zip((made.x, made.velocity), exact, plain, strict=True):
        assert actual.dtype == dtype
        assert_accurate(actual, e, p)
    assert ops.q_sample(x0, alpha, sigma, noise=noise).velocity is None


def check_drawn(drawing, shape, dtype, generator):
    (x0,) = images(shape, dtype, generator, 1)
    alpha, sigma = torch.rand(2, shape[0], generator=generator)
    if drawing == "generator":
        ours, theirs = twins(5)
        made = ops.q_sample(x0, alpha, sigma, generator=ours, velocity=True)
        expected = torch.randn(shape, generator=theirs, dtype=dtype)
        assert torch.equal(torch.rand(3, generator=ours), torch.rand(3, generator=theirs))
    else:
        seeds = torch.arange(shape[0]) + 9
        made = ops.q_sample(x0, alpha, sigma, seeds=seeds, stream=4, velocity=True)
        expected = counter.normal(seeds, torch.Size(shape[1:]).numel(), 4).to(dtype).view(shape)
    assert torch.equal(made.noise, expected)
    same = ops.q_sample(x0, alpha, sigma, noise=expected, velocity=True)
    assert torch.equal(made.x, same.x) and torch.equal(made.velocity, same.velocity)
    assert torch.equal(made.x, ops.add_noise(x0, expected, alpha, sigma))


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", HALF_AND_SINGLE)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_with_noise_given(everywhere, shape, dtype, generator):
    check_given(shape, dtype, generator)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", HALF_AND_SINGLE)
@pytest.mark.parametrize("shape", [*SHAPES, (3, 5, 50, 41)], ids=str)
@pytest.mark.parametrize("drawing", ["generator", "seeds"])
def test_drawn_noise_is_what_is_used(everywhere, drawing, shape, dtype, generator):
    check_drawn(drawing, shape, dtype, generator)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_float64(shape, generator):
    check_given(shape, torch.float64, generator)
    for drawing in ("generator", "seeds"):
        check_drawn(drawing, shape, torch.float64, generator)


@pytest.mark.parametrize("options", [{"seeds": [1, 2, 3, 4]}, {"generator": None}])
def test_layouts(everywhere, options, generator):
    base = torch.randn(4, 6, 39, 41, generator=generator)
    torch.manual_seed(3)
    expected = ops.q_sample(base, 0.5, 0.25, velocity=True, **options)
    padded = torch.empty(base.numel() + 1)[1:].view(base.shape).copy_(base)
    views = [
        base.contiguous(memory_format=torch.channels_last),
        padded,
        base.transpose(0, 1).clone().transpose(0, 1),
    ]
    for x0 in views:
        torch.manual_seed(3)
        made = ops.q_sample(x0, 0.5, 0.25, velocity=True, **options)
        for actual, wanted in zip(made, expected, strict=True):
            assert torch.equal(actual, wanted)
    assert made.x.shape == base.shape
    channels_last = ops.q_sample(views[0], 0.5, 0.25, velocity=True, **options)
    assert all(t.is_contiguous(memory_format=torch.channels_last) for t in channels_last)


def test_nan_stays_in_its_element(everywhere):
    x0 = torch.zeros(2, 5000)
    x0[0, 3], x0[1, 4999] = torch.nan, torch.inf
    made = ops.q_sample(x0, 0.5, 0.5, generator=torch.Generator(), velocity=True)
    for t in (made.x, made.velocity):
        assert (~torch.isfinite(t)).nonzero().tolist() == [[0, 3], [1, 4999]]
    assert made.noise.isfinite().all()


# --- the bits of torch.randn ---


@needs_cpp
@pytest.mark.parametrize("dtype", HALF_AND_SINGLE)
def test_the_kernels_are_trusted_here(dtype):
    """Else everything is right but slow: torch.randn draws. A new torch may bring new bits."""
    if native.isa() == "generic":
        pytest.skip("torch.randn is quicker than the generic kernels")
    assert _drawing.distrust("cpp", torch.device("cpu"), dtype) is None


@needs_cpp
@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**63 - 1),
    draws=st.lists(st.tuples(st.integers(0, 5000), st.sampled_from(HALF_AND_SINGLE)), min_size=1, max_size=6),
    isa=st.sampled_from(["", "avx2", "generic"]),
)
def test_interleaved_draws_have_the_bits_of_randn(seed, draws, isa):
    """The op itself, whose small sizes the door leaves to torch.randn."""
    ours, theirs = twins(seed)
    try:
        native.set_isa(isa)
    except ValueError:
        return
    try:
        for size, dtype in draws:
            drawn, state = torch.ops.fastdiff.randn_like(
                torch.empty(size, dtype=dtype), ours.get_state(), None, 0
            )
            ours.set_state(state)
            assert torch.equal(drawn, torch.randn(size, generator=theirs, dtype=dtype))
            assert torch.equal(ours.get_state()[:5044], theirs.get_state()[:5044])
            assert torch.equal(torch.rand(size % 3, generator=ours), torch.rand(size % 3, generator=theirs))
    finally:
        native.set_isa("")


@needs_cpp
@pytest.mark.parametrize("dtype", HALF_AND_SINGLE)
@pytest.mark.parametrize("size", [65_536, 65_537, 100_003, 300_000])
def test_the_number_of_threads_does_not_matter(size, dtype):
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3, 7):
            ours, theirs = twins(1)
            torch.randn(5, generator=ours), torch.randn(5, generator=theirs)
            torch.set_num_threads(count)
            assert torch.equal(
                ops.randn((size,), generator=ours, dtype=dtype),
                torch.randn(size, generator=theirs, dtype=dtype),
            )
            assert torch.equal(ours.get_state()[:5044], theirs.get_state()[:5044])
    finally:
        torch.set_num_threads(threads)


def test_the_global_generator_is_the_default():
    torch.manual_seed(11)
    noise, after = ops.randn((3, 4000)), torch.randn(4)
    torch.manual_seed(11)
    assert torch.equal(noise, torch.randn(3, 4000)) and torch.equal(after, torch.randn(4))


@needs_cpp
def test_kernels_that_draw_other_bits_are_not_used(monkeypatch):
    monkeypatch.setattr(_drawing, "distrust", lambda *_: "other bits")
    ours, theirs = twins()
    assert torch.equal(ops.randn((9000,), generator=ours), torch.randn(9000, generator=theirs))
    assert _drawing.kernel("randn_like", torch.empty(9000), ours) is None


def test_threads_that_share_a_generator_share_its_numbers_out():
    """Each draw is a whole piece of the one stream, whoever gets it, also beside threads that use torch.randn."""
    size, count = 6000, 12
    shared, alone = twins(8)
    drawn: list[torch.Tensor] = []

    def work(draw):
        for _ in range(count):
            drawn.append(draw())

    functions = [lambda: ops.randn((size,), generator=shared)] * 2
    threads = [threading.Thread(target=work, args=(f,)) for f in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = torch.stack([torch.randn(size, generator=alone) for _ in range(2 * count)])
    order = torch.stack(drawn)
    assert torch.equal(order[order[:, 0].argsort()], expected[expected[:, 0].argsort()])
    assert torch.equal(torch.randn(3, generator=shared), torch.randn(3, generator=alone))


def test_what_another_thread_drew_meanwhile_is_not_drawn_again(monkeypatch):
    ours, theirs = twins()
    call = _drawing.OVERLOADS["cpp"]

    def disturbed(*arguments):
        ours.set_state(theirs.get_state()) if not between else None
        between.append(torch.randn(16, generator=ours))
        return call(*arguments)

    between: list[torch.Tensor] = []
    monkeypatch.setattr(_drawing, "distrust", lambda *_: None)
    monkeypatch.setitem(_drawing.OVERLOADS, "cpp", disturbed)
    drawn = ops.randn((8000,), generator=ours)
    expected = torch.randn(16, generator=theirs), torch.randn(8000, generator=theirs)
    if between:  # the C++ kernels are there
        assert torch.equal(between[0], expected[0]) and torch.equal(drawn, expected[1])


def test_threads_on_the_global_generator_never_draw_the_same():
    size, count = 9000, 40
    drawn: list[torch.Tensor] = []
    barrier = threading.Barrier(2)

    def work(draw):
        barrier.wait()
        for _ in range(count):
            drawn.append(draw(size)[-8:])  # wherever the stream was taken up again, the ends show it

    torch.manual_seed(17)
    threads = [threading.Thread(target=work, args=(f,)) for f in (lambda n: ops.randn((n,)), torch.randn)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    torch.manual_seed(17)
    expected = torch.stack([torch.randn(size)[-8:] for _ in range(2 * count)])
    order = torch.stack(drawn)
    assert torch.equal(order[order[:, 0].argsort()], expected[expected[:, 0].argsort()])


@needs_cpp
def test_the_global_generator_is_drawn_from_in_kernels_by_a_single_thread_only():
    def draw():
        made.append(_drawing.draw("randn_like", torch.empty(9000), None, _inside))

    made: list[object] = []
    with backend.use("cpp"):
        done = threading.Event()
        other = threading.Thread(target=done.wait)
        alone = threading.active_count() == 1
        draw()
        other.start()
        draw()
        own = _drawing.draw("randn_like", torch.empty(9000), torch.Generator(), _inside)
        done.set()
        other.join()
    assert (made[0] is not None) == alone and made[1] is None and own is not None


def _inside(name, state):
    return _drawing.OVERLOADS[name](torch.empty(9000), state, None, 0)


FIRST_USE = """
import os, signal, torch
from fastdiff import BrownianNoise, ops, sample, schedules

torch.set_num_threads(2)
torch.ones(1_000_000).exp().sum()  # torch's threads, which a forked process does not have
path = BrownianNoise([1])
path._lock.acquire()
child = os.fork()
if child == 0:
    signal.alarm(60)
    ours, theirs = (torch.Generator().manual_seed(1) for _ in range(2))
    same = ops.randn((100_000,), generator=ours).numpy() == torch.randn(100_000, generator=theirs).numpy()
    ops.q_sample(torch.zeros(2, 9000), 0.5, 0.5, generator=ours)
    sample(lambda x, t: x, (2, 9000), schedule=schedules.karras(0.1, 10.0), steps=2, generator=ours)
    path.step(torch.zeros(1, 4), tuple(schedules.karras(0.1, 10.0).levels(2)[:2]), 0)
    os._exit(0 if same.all() else 1)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_the_first_use_may_come_after_a_fork():
    done = subprocess.run([sys.executable, "-c", FIRST_USE], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_draws_too():
    ours, theirs = twins()
    expected = torch.randn(200_000, generator=theirs)
    ops.randn((70_000,), seeds=None)  # the parent's threads have started
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # and numpy compares: torch.equal waits for threads that are not here
        try:
            os._exit(0 if (ops.randn((200_000,), generator=ours).numpy() == expected.numpy()).all() else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# --- gradients and registration ---


@pytest.mark.parametrize("options", [{}, {"velocity": True}, {"velocity": True, "seeds": [1, 2, 3]}])
@pytest.mark.parametrize("name", ["reference", "auto"])
def test_gradients(name, options, generator):
    dtype = torch.float64 if name == "reference" else torch.float32
    x0, noise = (t.requires_grad_() for t in images((3, 4, 5), dtype, generator))
    alpha, sigma = (torch.rand(3, dtype=dtype, generator=generator).requires_grad_() for _ in "ab")
    drawn = "seeds" in options
    inputs = [x0, alpha, sigma] + ([] if drawn else [noise])
    weights = images((3, 4, 5), dtype, generator)

    def total(x0, alpha, sigma, noise=None):
        made = ops.q_sample(x0, alpha, sigma, noise=noise, **options)
        assert made.noise is noise or not made.noise.requires_grad
        return sum((w * t).sum() for w, t in zip(weights, (made.x, made.velocity)) if t is not None)

    with backend.use(name):
        if dtype == torch.float64:
            torch.autograd.gradcheck(total, inputs)
            torch.autograd.gradgradcheck(total, inputs)
        actual = torch.autograd.grad(total(*inputs), inputs)
        used = ops.q_sample(x0, alpha, sigma, **options).noise.detach() if drawn else noise
    both = composition(x0, used, alpha, sigma)
    wanted = sum((w * t).sum() for w, t in zip(weights, both[: 1 + ("velocity" in options)]))
    torch.testing.assert_close(actual, torch.autograd.grad(wanted, inputs))


@pytest.mark.parametrize("dtype", HALF_AND_SINGLE)
def test_gradients_of_half_precision(dtype, generator):
    x0, noise = (t.requires_grad_() for t in images((3, 40), dtype, generator))
    level = torch.full((3,), 0.5, requires_grad=True)
    made = ops.q_sample(x0, level, 0.25, noise=noise, velocity=True)
    gx, gn, gl = torch.autograd.grad((made.x + made.velocity).float().sum(), [x0, noise, level])
    assert (gx.dtype, gn.dtype, gl.dtype) == (dtype, dtype, torch.float32)
    torch.testing.assert_close(gx.float(), torch.full((3, 40), 0.25))
    torch.testing.assert_close(gn.float(), torch.full((3, 40), 0.75))
    torch.testing.assert_close(gl, (x0.detach().float() + noise.detach().float()).sum(1))


@pytest.mark.parametrize("overload", ["default", "triton"])
def test_opcheck(overload, generator):
    x0, noise = images((2, 3, 4), torch.float32, generator)
    op = getattr(torch.ops.fastdiff.q_sample, overload)
    state, seeds = torch.Generator().get_state(), torch.tensor([1, 2])
    levels = torch.rand(2), torch.rand(1).requires_grad_()
    drawings = [(noise, None, None), (None, state, None), (None, None, seeds)]
    if overload == "triton" and "triton" in backend.KERNELS["q_sample"]:
        drawings = drawings[:1]  # its states are those of CUDA generators
    for given_noise, s, k in drawings:
        torch.library.opcheck(op, (x0.requires_grad_(), given_noise, *levels, s, k, 3, s is None))
    draw = getattr(torch.ops.fastdiff.randn_like, overload)
    for _, s, k in drawings[1:]:
        torch.library.opcheck(draw, (x0.detach(), s, k, 3))


def test_compile(generator):
    x0, noise = images((2, 3, 2000), torch.float32, generator)
    alpha, sigma = torch.rand(2, 2, generator=generator)
    for options in ({"noise": noise}, {"seeds": torch.tensor([4, 5])}, {}):
        compiled = torch.compile(ops.q_sample, fullgraph=True, backend="aot_eager")
        torch.manual_seed(4)
        expected = ops.q_sample(x0, alpha, sigma, velocity=True, **options)
        torch.manual_seed(4)
        actual = compiled(x0, alpha, sigma, velocity=True, **options)
        for a, e in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, e)


def test_vmap_and_forward_mode(generator):
    x0, noise = images((2, 3, 8), torch.float32, generator)
    alpha, sigma = torch.rand(2, 2, generator=generator)

    def target(x0, noise):
        return ops.q_sample(x0, alpha, sigma, noise=noise, velocity=True).velocity

    stack = torch.stack([x0, noise])
    batched = torch.vmap(target)(stack, stack.flip(0))
    torch.testing.assert_close(batched[0], target(x0, noise))
    _, tangent = torch.func.jvp(target, (x0, noise), (noise, x0))
    torch.testing.assert_close(tangent, target(noise, x0))
    _, tangent = torch.func.jvp(lambda x: ops.add_noise(x, noise, alpha, sigma), (x0,), (noise,))
    torch.testing.assert_close(tangent, spread(alpha, x0) * noise)


# --- arguments ---


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"noise": torch.zeros(2, 3), "seeds": [1, 2]}, ValueError, "one of noise"),
        ({"generator": torch.Generator(), "seeds": [1, 2]}, ValueError, "one of noise"),
        ({"noise": torch.zeros(2, 4), "velocity": True}, ValueError, r"noise has shape \(2, 4\)"),
        ({"noise": torch.zeros(2, 3).half(), "velocity": True}, TypeError, "noise is float16"),
        ({"seeds": [1]}, ValueError, r"seeds has shape \(1,\)"),
        ({"seeds": [1, 2], "stream": "a"}, ValueError, "stream must be"),
        ({"alpha": torch.zeros(3)}, ValueError, r"alpha has shape \(3,\)"),
        ({"x0": torch.zeros(2, 3).long()}, TypeError, "x0 is int64"),
        ({"x0": [0.0]}, TypeError, "x0 is a list"),
    ],
)
def test_errors(options, error, words):
    arguments = {"x0": torch.zeros(2, 3), "alpha": 0.5, "sigma": 0.5} | options
    with pytest.raises(error, match=words):
        ops.q_sample(**arguments)


@needs_cpp
@pytest.mark.parametrize("state", [torch.zeros(5056, dtype=torch.uint8), torch.zeros(16, dtype=torch.uint8)])
def test_a_state_of_no_generator_is_refused(state):
    with pytest.raises(RuntimeError, match="fastdiff: state"):
        torch.ops.fastdiff.randn_like(torch.empty(100), state, None, 0)


# --- any shape ---


@settings(max_examples=2000, deadline=None, derandomize=True)
@given(
    shape=st.lists(st.integers(1, 7), min_size=1, max_size=5),
    dtype=st.sampled_from(HALF_AND_SINGLE),
    offset=st.integers(0, 3),
    alpha_shared=st.booleans(),
    sigma_shared=st.booleans(),
    exponent=st.integers(-8, 8),
)
def test_any_shape_offset_and_scale(shape, dtype, offset, alpha_shared, sigma_shared, exponent):
    generator = torch.Generator().manual_seed(sum(shape) + exponent)
    numel = torch.Size(shape).numel()
    flat = torch.randn(2, numel + offset, generator=generator)
    x0, noise = (
        (t * 2.0**e).to(dtype)[offset:].view(shape) for t, e in zip(flat, (exponent, 0), strict=True)
    )
    alpha, sigma = (
        torch.rand(1 if s else shape[0], generator=generator) for s in (alpha_shared, sigma_shared)
    )
    made = ops.q_sample(x0, alpha, sigma, noise=noise, velocity=True)
    assert torch.equal(ops.add_noise(x0, noise, alpha, sigma), made.x)
    exact = composition(x0.double(), noise.double(), alpha.double(), sigma.double())
    plain = composition(x0, noise, alpha, sigma)
    for actual, e, p in zip((made.x, made.velocity), exact, plain, strict=True):
        assert_accurate(actual, e, p)
