"""sample(graph=True) and the model: its changes and callbacks, who keeps its graphs and how long, threads, refusals."""

from __future__ import annotations

import copy
import functools
import gc
import pickle
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from fastdiff import Cancelled, graphs
from fastdiff.graphs import CannotCapture
from fastdiff.graphs import run as graph_run
from graph_cases import CHANGES, SHAPE, Net, Reads, check, guided, needs_weights_on_the_device, run


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_model_is_not_stale(place, name):
    net, x = place.net(), place.randn()
    before = check(net, x)
    CHANGES[name](net)
    gc.collect()
    if place.device.type == "cuda":
        torch.cuda.empty_cache()
    trash = [torch.full((64, 64), float("nan"), device=place.device) for _ in range(64)]  # where weights lay
    assert not torch.equal(check(net, x), before) and len(trash) == 64
    assert place.records == [1 if name == "weight in place" else 2]


def test_callbacks_see_what_they_see_eagerly(place):
    net, x, seen = place.net(), place.randn(), []
    for graph in (False, True, True):
        events = []
        result = run(
            net, x, sampler="dpmpp_2m_sde", seed=1, graph=graph, guidance=guided(place, 2.0),
            conditioning={"shift": place.tensor(1.0, 1.0)},
            callback=lambda e, events=events: events.append((e.call, e.level, e.x, e.denoised)),
        )  # fmt: skip
        seen.append((events, result))
    (expected, final), *others = seen
    for events, result in others:
        assert torch.equal(result, final)
        for eager, ours in zip(expected, events, strict=True):
            assert eager[:2] == ours[:2]
            assert torch.equal(eager[2], ours[2]) and torch.equal(eager[3], ours[3])
    assert place.records == [1]


def test_a_callback_may_cancel_or_fail_and_the_next_run_is_right(place):
    net, x = place.net(), place.randn()

    def cancel(event):
        if event.call == 2:
            event.cancel()

    def interrupt(event):
        raise KeyboardInterrupt

    stopped = []
    for graph in (False, True):
        with pytest.raises(Cancelled) as info:
            run(net, x, callback=cancel, graph=graph)
        stopped.append(info.value.denoised)
    assert torch.equal(*stopped)
    with pytest.raises(KeyboardInterrupt):
        run(net, x, callback=interrupt, graph=True)
    check(net, x)
    check(net, x, callback=lambda e: None)


@pytest.mark.parametrize("name", CHANGES)
def test_a_callback_may_change_the_model(place, name):
    def change(event, net):
        if event.call == 2:
            torch.manual_seed(1)
            CHANGES[name](net)

    x, results = place.randn(), []
    for graph in (False, True):
        net = place.net()
        first = run(net, x, callback=functools.partial(change, net=net), graph=graph)
        results.append((first, run(net, x, graph=graph)))
    assert all(torch.equal(a, b) for a, b in zip(*results))


def test_functions_as_models(place):
    net, x = place.net(), place.randn()

    def wrapped(x, t, **more):
        return net(x, t, **more) * 1.0

    check(wrapped, x)
    net.strength = 0.9
    check(wrapped, x)
    check(net.forward, x)
    check(net.forward, x)
    check(functools.partial(net, shift=place.tensor(1.0, 1.0)), x)
    assert sum(place.records) == 4


def test_a_function_that_wraps_another_has_graphs_of_its_own(place):
    net, x = place.net(), place.randn()

    def inner(x, t):
        return net(x, t)

    check(inner, x)

    @functools.wraps(inner)
    def outer(x, t):
        return inner(x, t) * 2

    check(outer, x)
    check(inner, x)
    assert place.records == [1, 1]


def test_a_number_of_loops_is_kept_and_none_outlives_its_model(place):
    net, x = place.net(), place.randn()
    for size in range(4, 12):
        check(net, place.randn(1, 8, size, size))
    loops = next(iter(graph_run._kept_by(net).loops.values()))
    assert len(loops.cache.entries) == graph_run.MOST
    assert place.recorders[0].settled == 8 - graph_run.MOST
    graphs.clear(net)
    assert graph_run._kept_by(net) is None and not loops.cache.entries
    check(net, x)
    graphs.clear()
    check(net, x)
    known, input = weakref.ref(net), weakref.ref(loops)
    place.recorders.clear()
    del net, loops
    gc.collect()
    assert known() is None and input() is None


@pytest.mark.parametrize("way", ["a method", "a part that refers back", "a list"])
def test_a_model_that_refers_to_itself_is_freed(place, way):
    net = place.net()
    if way == "a method":
        net.again = net.forward
    elif way == "a list":
        net.all = [net]
    else:
        net.blocks[0].owner = (net,)
    check(net, place.randn())
    known = weakref.ref(net)
    place.recorders.clear()
    del net
    gc.collect()
    assert known() is None


def test_copies_and_pickles_have_no_graphs(place):
    net, x = place.net(), place.randn()
    check(net, x)
    keys = set(net.state_dict())
    for other in (copy.copy(net), copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert graph_run._kept_by(other) is None and set(other.state_dict()) == keys
        other.strength = 0.7
        check(other, x)
    check(net, x)
    assert place.records == [1, 1, 1, 1]


def test_eight_threads_share_a_model(place):
    net, x = place.net(), place.randn()
    expected = [run(net, x + i, sampler="euler_ancestral", seed=i) for i in range(8)]

    def work(i):
        for _ in range(4):
            ours = run(net, x + i, sampler="euler_ancestral", seed=i, graph=True)
            assert torch.equal(ours, expected[i]), i

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert place.records == [1]


class CountsCalls(Net):
    calls = 0

    def forward(self, x, t, **more):
        self.calls += 1
        return super().forward(x, t, **more)


class Hooked(Net):
    def __init__(self):
        super().__init__()
        self.blocks[0].register_forward_hook(lambda *_: None)


class Slotted:
    """It has no place for anything."""

    __slots__ = ("__weakref__",)

    def to(self, device):
        return self

    def eval(self):
        return self

    def __call__(self, x, t):
        return x * 0.5


REFUSED = {
    "reads on the host": (Reads, {}, "cannot be captured"),
    "changes itself": (CountsCalls, {}, "own attributes"),
    "hooks": (Hooked, {}, "hooks"),
    "without attributes": (Slotted, {}, "kept with their model"),
    "gradients": (Net, {"differentiable": True}, "gradients"),
    "adaptive": (Net, {"sampler": "dpm_adaptive"}, "chooses? its steps"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_captured_says_so_or_runs_eagerly(place, name):
    kind, options, words = REFUSED[name]
    net, x = place.net(kind), place.randn()
    expected = run(net, x, **options)
    for _ in range(2):
        with pytest.raises(CannotCapture, match=words):
            run(net, x, **options, graph=True)
        assert torch.equal(run(net, x, **options, graph="auto"), expected)
    check(place.net(), x)  # a broken capture leaves nothing behind


def test_images_that_have_no_graphs(place):
    for net, x, words in (
        (place.net().double(), place.randn().double(), "reference"),
        (place.net(), place.randn()[:0], "nothing to call"),
    ):
        with pytest.raises(CannotCapture, match=words):
            run(net, x, graph=True)
        assert torch.equal(run(net, x, graph="auto"), run(net, x))


def test_conditioning_that_a_graph_cannot_follow(place):
    net, x = place.net(), place.randn()
    with pytest.raises(CannotCapture, match="conditioning"):
        run(net, x, conditioning={"extra": iter([])}, graph=True)


def test_the_models_own_errors(place):
    with pytest.raises(RuntimeError, match="expected input"):
        run(place.net(), place.randn(2, 5, 8, 8), graph=True)
    with pytest.raises(TypeError, match="returned tuple"):
        run(lambda x, t: (x,), place.randn(), graph=True)


@needs_weights_on_the_device
def test_without_a_gpu():
    net, x = Net().eval(), torch.randn(SHAPE)
    with pytest.raises(CannotCapture, match="CUDA device"):
        run(net, x, graph=True)
    assert torch.equal(run(net, x, graph="auto"), run(net, x))
    with pytest.raises(ValueError, match="True, False or 'auto'"):
        run(net, x, graph="yes")
