"""randn draws the bits of torch.randn from a generator, whoever else draws, and leaves it as torch.randn does."""

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

from conftest import HALF_AND_SINGLE, threads
from fastdiff import backend, native, ops
from fastdiff.ops import _drawing
from q_sample_cases import needs_cpp, twins


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
@pytest.mark.parametrize("size", [1, 15, 16, 17, 640, 5003, 32_768, 70_001])
def test_what_is_filled_past_the_dispatcher_has_the_same_bits(size, dtype):
    ours, theirs = twins(3)
    for _ in range(2):
        filled = torch.empty(size, dtype=dtype)
        assert _drawing.fill(filled, ours)
        assert torch.equal(filled, torch.randn(size, generator=theirs, dtype=dtype))
        assert torch.equal(ours.get_state()[:5044], theirs.get_state()[:5044])
    with torch._subclasses.FakeTensorMode():
        assert _drawing.fill(filled, ours) is None
    assert torch.equal(ours.get_state()[:5044], theirs.get_state()[:5044])


class Reading:
    """A generator whose states are these in turn."""

    def __init__(self, *states):
        self.states = list(states)

    def get_state(self):
        return self.states.pop(0)

    def set_state(self, state):
        raise AssertionError("nothing was to be written back")


@needs_cpp
def test_a_draw_past_the_dispatcher_writes_nothing_back_unless_it_fits():
    fresh, known = torch.empty(16), torch.Generator().manual_seed(1).get_state()
    assert _drawing.fill(fresh, Reading(torch.zeros(16, dtype=torch.uint8))) is None
    assert _drawing.fill(fresh, Reading(torch.zeros(5056, dtype=torch.uint8))) is None
    elsewhere = torch.Generator().manual_seed(2).get_state()
    assert _drawing.fill(fresh, Reading(known, elsewhere)) is False  # somebody drew meanwhile
    with pytest.raises(AssertionError, match="written back"):
        _drawing.fill(fresh, Reading(known, known.clone()))


@needs_cpp
@pytest.mark.parametrize("dtype", HALF_AND_SINGLE)
@pytest.mark.parametrize("size", [65_536, 65_537, 100_003, 300_000])
def test_the_number_of_threads_does_not_matter(size, dtype):
    for count in (1, 2, 3, 7):
        ours, theirs = twins(1)
        torch.randn(5, generator=ours), torch.randn(5, generator=theirs)
        with threads(count):
            found = ops.randn((size,), generator=ours, dtype=dtype)
            assert torch.equal(found, torch.randn(size, generator=theirs, dtype=dtype))
        assert torch.equal(ours.get_state()[:5044], theirs.get_state()[:5044])


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
    monkeypatch.setattr(_drawing, "fill", lambda *_: None)
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


@needs_cpp
@pytest.mark.parametrize("state", [torch.zeros(5056, dtype=torch.uint8), torch.zeros(16, dtype=torch.uint8)])
def test_a_state_of_no_generator_is_refused(state):
    with pytest.raises(RuntimeError, match="fastdiff: state"):
        torch.ops.fastdiff.randn_like(torch.empty(100), state, None, 0)
