"""The short way through a loop: where a step follows the one before, with the bits of the long way, and only there."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import pickle
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")

import fastdiff.diffusers  # noqa: E402
from fastdiff import backend, native  # noqa: E402
from fastdiff.diffusers import short  # noqa: E402
from fastdiff.diffusers.runs import Run  # noqa: E402
from fastdiff.ops import _drawing  # noqa: E402

pytestmark = pytest.mark.skipif(
    bool(native.problem("cpu")) or importlib.util.find_spec("fastdiff._host") is None,
    reason="the native code is not built",
)
NAMES = (
    "DDIMScheduler",
    "DDPMScheduler",
    "DPMSolverMultistepScheduler",
    "EulerDiscreteScheduler",
    "LCMScheduler",
)
NAMES += (
    "PNDMScheduler",
    "UniPCMultistepScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
)
SHAPE = (2, 4, 48, 48)


@pytest.fixture
def taken(monkeypatch):
    """How many steps went the short way."""
    follow, counts = short.follow, []

    def counted(*arguments):
        made = follow(*arguments)
        counts.append(made is not None)
        return made

    monkeypatch.setattr(short, "follow", counted)
    return counts


def loop(scheduler, dtype=torch.float32, change=None):
    generator = torch.Generator().manual_seed(0)
    outputs = [torch.randn(SHAPE, generator=generator).to(dtype) for _ in range(3)]
    scheduler.set_timesteps(6)
    x = (torch.randn(SHAPE, generator=generator) * float(scheduler.init_noise_sigma)).to(dtype)
    given = {"generator": generator} if "generator" in scheduler.parameters else {}
    for i, t in enumerate(scheduler.timesteps):
        x = scheduler.step(outputs[i % 3], t, x, **given, return_dict=False)[0]
        if change:
            x = change(i, x)
    return x


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_the_short_way_has_the_bits_of_the_long_one(name, dtype, taken, monkeypatch):
    scheduler = fastdiff.diffusers.CLASSES[name]()
    made = loop(scheduler, dtype)
    assert sum(taken) >= len(taken) - 1
    monkeypatch.setattr(short, "follow", lambda *_: None)
    assert torch.equal(made, loop(fastdiff.diffusers.CLASSES[name](), dtype))


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_that_was_changed_is_taken_as_it_is(name, taken, monkeypatch):
    def write(i, x):
        return x.mul_(0.5) if i == 2 else x * 0.9 if i == 3 else x

    made = loop(fastdiff.diffusers.CLASSES[name](), change=write)
    assert not all(taken[3:5])
    monkeypatch.setattr(short, "follow", lambda *_: None)
    assert torch.equal(made, loop(fastdiff.diffusers.CLASSES[name](), change=write))


def test_options_of_step_hold_after_scale_model_input(taken):
    """The scaling of the model's input knows nothing of step()'s options: TCD draws noise unless eta is 0."""
    ends, states = [], []
    for module in (fastdiff.diffusers, diffusers):
        scheduler, generator = module.TCDScheduler(), torch.Generator().manual_seed(0)
        scheduler.set_timesteps(8)
        x = torch.linspace(-1, 1, 4 * 48 * 48).reshape(1, 4, 48, 48)
        for t in scheduler.timesteps:
            output = (scheduler.scale_model_input(x, t) * 0.9).sin()
            x = scheduler.step(output, t, x, eta=0.0, generator=generator, return_dict=False)[0]
        ends.append(x)
        states.append(generator.get_state())
    assert sum(taken) >= 6
    assert (ends[0] - ends[1]).abs().max() <= 1e-5 * ends[1].abs().max()
    assert torch.equal(*states)


def test_a_loop_on_another_backend_leaves_the_short_way_to_the_next(taken):
    scheduler = fastdiff.diffusers.DDIMScheduler(beta_end=0.0123)  # a plan of its own
    with backend.use("reference"):
        loop(scheduler)
    assert not any(taken)
    loop(scheduler)
    assert sum(taken) >= 5


def test_outputs_of_another_kind_go_the_long_way(taken):
    scheduler = fastdiff.diffusers.CLASSES["EulerDiscreteScheduler"]()
    scheduler.set_timesteps(4)
    x, times = torch.randn(SHAPE), scheduler.timesteps
    for t in times[:2]:
        x = scheduler.step(torch.ones(SHAPE), t, x, return_dict=False)[0]
    sloping = torch.ones(SHAPE, requires_grad=True)
    following = scheduler.step(sloping, times[2], x, return_dict=False)[0]
    assert taken[1:] == [True, False] and following.requires_grad


@pytest.mark.parametrize("name", NAMES)
def test_the_next_loop_begins_the_short_way(name, taken, monkeypatch):
    scheduler = fastdiff.diffusers.CLASSES[name]()
    loop(scheduler)
    del taken[:]
    again = loop(scheduler)
    assert all(taken) == (name != "PNDMScheduler")  # whose counter starts where set_timesteps left it
    monkeypatch.setattr(short, "follow", lambda *_: None)
    assert torch.equal(again, loop(fastdiff.diffusers.CLASSES[name]()))


@pytest.mark.parametrize("change", ["begin", "dtype", "shape", "place", "layout", "options"])
@pytest.mark.parametrize(
    "name", ["DDPMScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler"]
)
def test_a_loop_that_begins_otherwise_is_taken_as_it_is(name, change, taken, monkeypatch):
    """After a loop of the usual kind, one from half-way, of another dtype, shape or layout, draws what it should."""

    def other():
        scheduler, generator = fastdiff.diffusers.CLASSES[name](), torch.Generator().manual_seed(1)
        loop(scheduler)
        scheduler.set_timesteps(6)
        begin = 2 if change in ("begin", "place") else 0
        if change == "begin":
            scheduler.set_begin_index(begin) if hasattr(scheduler, "set_begin_index") else None
        x = torch.linspace(-3, 3, 2 * 4 * 48 * 48).reshape(SHAPE)
        x = {"dtype": x.half(), "shape": x[:1], "layout": x.to(memory_format=torch.channels_last)}.get(
            change, x
        )
        given = {"generator": generator} if "generator" in scheduler.parameters else {}
        if change == "options" and "s_noise" in scheduler.parameters:
            given["s_noise"] = 0.5
        for t in scheduler.timesteps[begin:]:
            x = scheduler.step(x.sin(), t, x, **given, return_dict=False)[0]
        return x, generator.get_state()

    made = other()
    monkeypatch.setattr(short, "follow", lambda *_: None)
    for mine, long in zip(made, other(), strict=True):
        assert mine.dtype == long.dtype and torch.equal(mine, long)


def test_copies_find_their_own_way():
    scheduler = fastdiff.diffusers.CLASSES["EulerDiscreteScheduler"]()
    scheduler.set_timesteps(4)
    x, times = torch.randn(SHAPE), scheduler.timesteps
    for t in times[:2]:
        x = scheduler.step(torch.ones(SHAPE), t, x, return_dict=False)[0]
    copies = (copy.deepcopy(scheduler), pickle.loads(pickle.dumps(scheduler)))
    expected = scheduler.step(torch.ones(SHAPE), times[2], x, return_dict=False)[0]
    for other in copies:
        made = other.step(torch.ones(SHAPE), other.timesteps[2], x.clone(), return_dict=False)[0]
        assert torch.equal(made, expected)


def test_an_interrupt_in_the_middle_of_a_step_reaches_the_caller(monkeypatch):
    scheduler = fastdiff.diffusers.CLASSES["EulerDiscreteScheduler"]()
    loop(scheduler)

    def interrupted(*_):
        raise KeyboardInterrupt

    scheduler.set_timesteps(6)
    x, last = torch.ones(SHAPE), scheduler.timesteps[-1]
    for t in scheduler.timesteps[:-1]:
        x = scheduler.step(x, t, x, return_dict=False)[0]
    with monkeypatch.context() as patched:
        patched.setattr(Run, "moved", interrupted)
        with pytest.raises(KeyboardInterrupt):
            scheduler.step(x, last, x, return_dict=False)
    assert scheduler.step(x, last, x, return_dict=False)[0].isfinite().all()


@pytest.fixture
def anew():
    """No way is known before the test, and none of those found in it after."""
    for known in (short._ways, short._latest):
        known.clear()
    yield
    for known in (short._ways, short._latest):
        known.clear()


def drawn_loop(seed):
    """A loop that draws, and what its generator gives next."""
    own = torch.Generator().manual_seed(seed)
    scheduler = fastdiff.diffusers.CLASSES["DDPMScheduler"]()
    scheduler.set_timesteps(8)
    x = torch.linspace(-1, 1, 2 * 4 * 48 * 48).reshape(SHAPE)
    for t in scheduler.timesteps:
        x = scheduler.step(x.cos(), t, x, generator=own, return_dict=False)[0]
    return x, torch.randn(5, generator=own)


def test_noise_drawn_for_the_step_alone_is_that_of_torch(monkeypatch, taken, anew):
    into, counts = _drawing.into, []
    monkeypatch.setattr(_drawing, "into", lambda *given: counts.append(into(*given)) or counts[-1])
    made = drawn_loop(3)
    assert any(counts) and sum(taken) >= 7
    monkeypatch.setattr(short, "follow", lambda *_: None)
    for mine, long in zip(made, drawn_loop(3), strict=True):
        assert torch.equal(mine, long)


def test_a_step_within_the_drawing_of_another_has_noise_of_its_own(monkeypatch, anew):
    """As a signal's handler may take one."""
    into, within = _drawing.into, []

    def nested(*given):
        made = into(*given)
        if within == [0]:
            within.append(1)
            drawn_loop(6)
        return made

    monkeypatch.setattr(_drawing, "into", nested)
    expected = drawn_loop(5)[0]
    within.append(0)
    assert torch.equal(drawn_loop(5)[0], expected)
    assert within == [0, 1]


def test_threads_draw_apart():
    expected = [drawn_loop(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            for made, right in zip(pool.map(drawn_loop, range(4)), expected, strict=True):
                assert torch.equal(made[0], right[0]) and torch.equal(made[1], right[1])


def test_a_build_without_the_short_way_is_passed_over(monkeypatch, anew):
    stepper = importlib.import_module("fastdiff.ops.stepper")
    host = stepper._host
    monkeypatch.setattr(stepper, "_host", SimpleNamespace(stepper=host.stepper, STEP=host.STEP))
    made = drawn_loop(1)
    monkeypatch.setattr(short, "follow", lambda *_: None)
    for mine, long in zip(made, drawn_loop(1), strict=True):
        assert torch.equal(mine, long)
