"""sample(graph=True): the same bits as the eager loop, on the CPU with a stand-in for CUDA graphs."""

from __future__ import annotations

import copy
import functools
import gc
import pickle
import threading
import weakref

import pytest
import torch
from torch import nn

import fastdiff
from fastdiff import (
    BrownianNoise,
    Cancelled,
    CounterNoise,
    DynamicThreshold,
    Guidance,
    Inpaint,
    backend,
    graphs,
    samplers,
    schedules,
)
from fastdiff.graphs import CannotCapture
from fastdiff.graphs import run as graph_run

pytestmark = [
    pytest.mark.usefixtures("single_thread"),
    pytest.mark.skipif(
        bool(backend.unavailable("cpp")), reason="the reference reads its weights on the host"
    ),
]
KARRAS = schedules.karras(0.1, 10.0)
SHAPE = (2, 3, 8, 8)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.strength = 0.3

    def forward(self, x, t, shift=None, extra=None):
        h = self.conv(x) * (self.strength * torch.sin(t)).to(x.dtype).reshape(-1, 1, 1, 1) + 0.5 * x
        if shift is not None:
            h = h + shift.to(x.dtype).reshape(-1, 1, 1, 1)
        return h if extra is None else h * extra["by"] + extra["plus"][0]


@pytest.fixture
def net():
    return Net().eval()


@pytest.fixture
def x():
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(5))


def run(net, x, **options):
    options = {"schedule": KARRAS, "steps": 5, "prediction": "sample"} | options
    return fastdiff.sample(net, x, **options)


def check(net, x, **options):
    """The run by graphs has the bits of the eager one. Options may be functions that make them afresh."""
    results = []
    for graph in (False, True):
        made = {k: v() if isinstance(v, functools.partial) else v for k, v in options.items()}
        results.append(run(net, x, graph=graph, **made))
    assert torch.equal(*results), (results[0] - results[1]).abs().max()
    assert results[0].stride() == results[1].stride() and torch.isfinite(results[1]).all()
    return results[1]


@pytest.mark.parametrize("sampler", sorted(samplers.SAMPLERS))
def test_every_sampler(net, x, stand_in, sampler):
    for steps in (4, 9, 30):
        check(net, x, sampler=sampler, steps=steps, seed=[1, 2])
        check(net, x, sampler=sampler, steps=steps, noise=partial_counter())
    # noise given, noise drawn in the step; each once more where few steps add none, or many rows need a longer table
    assert stand_in[0].records <= (4 if sampler in ("edm", "restart") else 2)
    check(net, x, sampler=sampler, steps=1, seed=[1, 2])


def partial_counter():
    return functools.partial(CounterNoise, [7, 8])


def test_twenty_schedules_through_one_capture(net, x, stand_in):
    for i in range(20):
        schedule = schedules.karras(0.02 + 0.01 * i, 5.0 + i) if i % 2 else schedules.scaled_linear_betas()
        check(
            net,
            x,
            schedule=schedule,
            steps=3 + i,
            sampler="euler",
            clip=3.0 - 0.1 * i,
        )
    assert stand_in[0].records <= 2  # with and without a scaled input
    check(net, x, steps=70, sampler="euler")
    assert stand_in[0].records <= 3  # a longer table


SOURCES = {
    "one seed": {"seed": 3},
    "a seed each": {"seed": [3, 4]},
    "a generator": {"generator": functools.partial(torch.Generator().manual_seed, 9)},
    "counters": {"noise": partial_counter()},
    "a path": {"noise": functools.partial(BrownianNoise, [3, 4])},
}


@pytest.mark.parametrize("name", SOURCES)
def test_noise_goes_on_from_row_to_row_and_run_to_run(net, x, stand_in, name):
    first = check(net, x, sampler="euler_ancestral", **SOURCES[name])
    assert torch.equal(first, check(net, x, sampler="euler_ancestral", **SOURCES[name]))
    check(net, SHAPE, sampler="dpmpp_sde", **SOURCES[name])
    assert stand_in[0].records <= 2


def test_a_generator_is_left_as_after_an_eager_run(net, x, stand_in):
    states = []
    for graph in (False, True, True):
        generator = torch.Generator().manual_seed(4)
        made = [run(net, x, sampler="euler_ancestral", generator=generator, graph=graph) for _ in range(2)]
        states.append((generator.get_state(), *made))
        assert not torch.equal(*made)
    for state in states[1:]:
        assert all(torch.equal(a, b) for a, b in zip(states[0], state))
    torch.manual_seed(1)
    expected = run(net, x, sampler="euler_ancestral"), torch.randn(3)
    other = Net().eval()
    torch.manual_seed(1)
    ours = run(other, x, sampler="euler_ancestral", graph=True), torch.randn(3)
    assert all(torch.equal(a, b) for a, b in zip(ours, expected))


def uncond(scale, **options):
    return Guidance(scale, {"shift": torch.tensor([0.5, -0.5])}, **options)


GUIDED = {
    "doubled": uncond(3.0),
    "two calls": uncond(3.0, doubled=False),
    "interval": uncond(3.0, interval=(0.5, 4.0)),
    "interval, two calls": uncond(3.0, interval=(0.5, 4.0), doubled=False),
    "rescale": uncond(3.0, rescale=0.7),
    "off": uncond(1.0),
}


@pytest.mark.parametrize("name", GUIDED)
@pytest.mark.parametrize("sampler", ["dpmpp_2m", "heun"])
def test_guidance(net, x, stand_in, name, sampler):
    for shift in (torch.ones(2), torch.zeros(2)):
        for threshold in (None, DynamicThreshold(0.9)):
            check(
                net, x, sampler=sampler, guidance=GUIDED[name], conditioning={"shift": shift},
                threshold=threshold, steps=7,
            )  # fmt: skip
    assert stand_in[0].records <= 4


def test_one_capture_for_every_scale(net, x, stand_in):
    for scale in (1.5, 2.0, 7.5):
        check(net, x, guidance=uncond(scale), conditioning={"shift": torch.ones(2)})
    assert stand_in[0].records == 1


def test_inpainting(net, x, stand_in):
    for seed in range(2):
        image = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
        mask = (image[:, :1] > 0).float()
        check(net, x, inpaint=Inpaint(image, mask), seed=seed)
        check(net, image.expand(SHAPE), inpaint=Inpaint(image, mask), seed=seed, strength=0.5)
    assert stand_in[0].records <= 2


def test_dtypes_layouts_and_shapes(x, stand_in):
    net = Net().eval().to(memory_format=torch.channels_last)
    for _ in range(2):
        check(net, x, sampler="euler_ancestral", seed=1)
        check(net, x.to(memory_format=torch.channels_last), noise=partial_counter(), sampler="dpmpp_2m_sde")
        check(net, x[:1], sampler="dpmpp_3m_sde", seed=[1])
    half = Net().eval().bfloat16()
    check(half, x, dtype=torch.bfloat16)
    check(half, x.bfloat16())
    assert check(half, (2, 3, 4, 4), dtype=torch.bfloat16, seed=2).dtype == torch.bfloat16


def test_conditioning_of_every_form(net, x, stand_in):
    for i in range(3):
        extra = {"by": 2, "plus": [torch.full((1,), float(i))]}
        check(net, x, conditioning={"shift": torch.full((2,), float(i)), "extra": extra})
    assert stand_in[0].records == 1
    check(net, x, conditioning={"extra": {"by": 3, "plus": (torch.ones(1),)}})
    assert stand_in[0].records == 2


CHANGES = {
    "attribute": lambda m: setattr(m, "strength", 0.9),
    "weight replaced": lambda m: setattr(m.conv, "weight", nn.Parameter(m.conv.weight + 1)),
    "weight moved": lambda m: setattr(m.conv.weight, "data", m.conv.weight.data * 2),
    "weight in place": lambda m: m.conv.weight.data.mul_(2),
    "module replaced": lambda m: setattr(m, "conv", nn.Conv2d(3, 3, 1)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_model_is_not_stale(net, x, stand_in, name):
    before = check(net, x)
    CHANGES[name](net)
    gc.collect()
    assert not torch.equal(check(net, x), before)
    assert stand_in[0].records == (1 if name == "weight in place" else 2)


def test_callbacks_see_what_they_see_eagerly(net, x, stand_in):
    seen = {}
    for graph in (False, True, True):
        events = seen.setdefault(graph, [])
        events.clear()
        result = run(
            net, x, sampler="dpmpp_2m_sde", seed=1, graph=graph, guidance=uncond(2.0),
            conditioning={"shift": torch.ones(2)},
            callback=lambda e, events=events: events.append((e.call, e.level, e.x, e.denoised)),
        )  # fmt: skip
        events.append(result)
    for eager, ours in zip(seen[False][:-1], seen[True][:-1], strict=True):
        assert eager[:2] == ours[:2]
        assert torch.equal(eager[2], ours[2]) and torch.equal(eager[3], ours[3])
    assert torch.equal(seen[False][-1], seen[True][-1])
    assert stand_in[0].records == 1


def test_a_callback_may_cancel_or_fail_and_the_next_run_is_right(net, x, stand_in):
    def cancel(event):
        if event.call == 2:
            event.cancel()

    stopped = []
    for graph in (False, True):
        with pytest.raises(Cancelled) as info:
            run(net, x, callback=cancel, graph=graph)
        stopped.append(info.value.denoised)
    assert torch.equal(*stopped)
    with pytest.raises(KeyboardInterrupt):
        run(net, x, callback=lambda e: (_ for _ in ()).throw(KeyboardInterrupt), graph=True)
    check(net, x)
    check(net, x, callback=lambda e: None)


@pytest.mark.parametrize("name", CHANGES)
def test_a_callback_may_change_the_model(x, stand_in, name):
    def change(event, net):
        if event.call == 2:
            torch.manual_seed(1)
            CHANGES[name](net)

    results = []
    for graph in (False, True):
        net = Net().eval()
        results.append([run(net, x, callback=functools.partial(change, net=net), graph=graph)])
        results[-1].append(run(net, x, graph=graph))
    assert all(torch.equal(a, b) for a, b in zip(*results))


def test_functions_as_models(net, x, stand_in):
    def wrapped(x, t, **more):
        return net(x, t, **more) * 1.0

    check(wrapped, x)
    net.strength = 0.9
    check(wrapped, x)
    check(net.forward, x)
    check(net.forward, x)
    check(functools.partial(net, shift=torch.ones(2)), x)
    assert sum(s.records for s in stand_in) == 4


def test_a_number_of_loops_is_kept_and_none_outlives_its_model(x, stand_in):
    net = Net().eval()
    for size in range(4, 12):
        check(net, torch.randn(1, 3, size, size))
    loops = next(iter(graph_run._kept_by(net).loops.values()))
    assert len(loops.cache.entries) == graph_run.MOST and stand_in[0].settled == 8 - graph_run.MOST
    graphs.clear(net)
    assert graph_run._kept_by(net) is None and not loops.cache.entries
    check(net, x)
    graphs.clear()
    check(net, x)
    known, input = weakref.ref(net), weakref.ref(loops)
    stand_in.clear()
    del net, loops
    gc.collect()
    assert known() is None and input() is None


@pytest.mark.parametrize("way", ["a method", "a part that refers back", "a list"])
def test_a_model_that_refers_to_itself_is_freed(x, stand_in, way):
    net = Net().eval()
    if way == "a method":
        net.again = net.forward
    elif way == "a list":
        net.all = [net]
    else:
        net.conv.owner = (net,)
    check(net, x)
    known = weakref.ref(net)
    stand_in.clear()
    del net
    gc.collect()
    assert known() is None


def test_copies_and_pickles_have_no_graphs(net, x, stand_in):
    check(net, x)
    keys = set(net.state_dict())
    for other in (copy.copy(net), copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert graph_run._kept_by(other) is None and set(other.state_dict()) == keys
        other.strength = 0.7
        check(other, x)
    check(net, x)
    assert [s.records for s in stand_in] == [1, 1, 1, 1]


def test_a_function_that_wraps_another_has_graphs_of_its_own(net, x, stand_in):
    def inner(x, t):
        return net(x, t)

    check(inner, x)

    @functools.wraps(inner)
    def outer(x, t):
        return inner(x, t) * 2

    check(outer, x)
    check(inner, x)
    assert [s.records for s in stand_in] == [1, 1]


def test_inference_mode(net, x, stand_in):
    expected = run(net, x)
    for inference in (True, False, True):
        with torch.inference_mode(inference):
            for options in ({}, {"callback": lambda e: e.denoised}):
                assert torch.equal(run(net, x, graph=True, **options), expected)
    with torch.no_grad():
        assert torch.equal(run(net, x, graph=True), expected)


def test_eight_threads_share_a_model(net, x, stand_in):
    expected = [run(net, x + i, sampler="euler_ancestral", seed=i) for i in range(8)]
    wrong = []

    def work(i):
        for _ in range(4):
            try:
                if not torch.equal(
                    run(net, x + i, sampler="euler_ancestral", seed=i, graph=True), expected[i]
                ):
                    wrong.append(i)
            except Exception as error:
                wrong.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and stand_in[0].records == 1


class Reads(Net):
    def forward(self, x, t, **more):
        return super().forward(x, t, **more) if t.max() > 0 else x


class Counts(Net):
    calls = 0

    def forward(self, x, t, **more):
        self.calls += 1
        return super().forward(x, t, **more)


class Slotted:
    """It has no place for anything."""

    __slots__ = ("__weakref__",)

    def eval(self):
        return self

    def __call__(self, x, t):
        return x * 0.5


def hooked():
    net = Net().eval()
    net.conv.register_forward_hook(lambda *_: None)
    return net


REFUSED = {
    "reads on the host": (Reads, {}, "cannot be captured"),
    "changes itself": (Counts, {}, "own attributes"),
    "hooks": (hooked, {}, "hooks"),
    "without attributes": (Slotted, {}, "kept with their model"),
    "unknown conditioning": (Net, {"conditioning": {"extra": iter([])}}, "conditioning"),
    "gradients": (Net, {"differentiable": True}, "gradients"),
    "adaptive": (Net, {"sampler": "dpm_adaptive"}, "chooses? its steps"),
    "float64": (Net, {"x": torch.randn(SHAPE).double()}, "reference"),
    "nothing to do": (Net, {"x": torch.randn(0, 3, 8, 8)}, "nothing to call"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_captured_says_so_or_runs_eagerly(x, stand_in, name):
    make, options, words = REFUSED[name]
    options = {"x": x} | options
    net = make().eval()
    if name == "float64":
        net.double()
    if name == "unknown conditioning":
        with pytest.raises(CannotCapture, match=words):
            run(net, **options, graph=True)
        return
    expected = run(net, **options)
    for _ in range(2):
        with pytest.raises(CannotCapture, match=words):
            run(net, **options, graph=True)
        assert torch.equal(run(net, **options, graph="auto"), expected)


def test_without_a_gpu(net, x):
    with pytest.raises(CannotCapture, match="CUDA device"):
        run(net, x, graph=True)
    assert torch.equal(run(net, x, graph="auto"), run(net, x))
    with pytest.raises(ValueError, match="True, False or 'auto'"):
        run(net, x, graph="yes")


def test_the_models_own_errors(net, x, stand_in):
    with pytest.raises(RuntimeError, match="expected input"):
        run(net, torch.randn(2, 5, 8, 8), graph=True)
    with pytest.raises(TypeError, match="returned tuple"):
        run(lambda x, t: (x,), x, graph=True)
