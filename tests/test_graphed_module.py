"""graphed and its module: no change goes unseen, what cannot be captured runs as before, copies and lifetime."""

from __future__ import annotations

import copy
import gc
import inspect
import io
import pickle
import weakref

import pytest
import torch
from torch import nn

from fastdiff.graphs import Graphed, graphed
from fastdiff.graphs.cache import PATIENCE
from graphed_cases import Net, check, given, made

CHANGES = {
    "attribute": lambda m: setattr(m, "scale", 3.0),
    "replaced weight": lambda m: setattr(m.conv, "weight", nn.Parameter(torch.ones(3, 3, 3, 3))),
    "moved weight": lambda m: setattr(m.conv.weight, "data", m.conv.weight.data + 1),
    "in place": lambda m: m.conv.weight.data.mul_(2),
    "module": lambda m: setattr(m, "conv", nn.Conv2d(3, 3, 1)),
}


@torch.no_grad()
@pytest.mark.parametrize("name", CHANGES)
def test_never_stale(stand_in, name):
    net = made()
    for _ in range(3):
        check(net, *given())
    CHANGES[name](net)
    gc.collect()
    for seed in range(3):
        check(net, *given(seed=seed))
    assert net.forward.report.captured == (1 if name == "in place" else 2)


@torch.no_grad()
def test_steps_aside_and_says_why(stand_in):
    net = made()
    report, (x, t) = net.forward.report, given()
    with torch.enable_grad():
        for _ in range(3):
            net(x, t).sample.sum().backward()
    assert "gradients" in report.reason and net.conv.weight.grad is not None
    for _ in range(3):
        net(x, t, extra=(iter([]),) and range(0))
    assert "range" in report.reason
    handle = net.conv.register_forward_hook(lambda module, args, out: out + 1)
    for _ in range(3):
        check(net, x, t)
    assert "hooks" in report.reason
    handle.remove()
    check(net, x, t), check(net, x, t)
    assert report.reason is None and report.captured == 1
    net.conv.forward = lambda x: x
    check(net, x, t)
    assert "forward replaced" in report.reason
    del net.conv.forward
    own = net.conv.forward

    def doubled(x):
        return own(x) * 2

    doubled.graph_safe = True
    net.conv.forward = doubled
    for _ in range(3):
        check(net, x, t)
    assert report.reason is None


class Reads(Net):
    def forward(self, sample, timestep):
        return super().forward(sample, timestep) if timestep.max().item() > 2 else (sample,)


class Counts(Net):
    def forward(self, sample, timestep):
        self.calls.append(1)
        return super().forward(sample, timestep)


class Makes(Net):
    def forward(self, sample, timestep):
        return super().forward(sample * torch.tensor([1.0, 2.0]).view(2, 1, 1, 1), timestep)


class Fails(Net):
    def forward(self, sample, timestep):
        raise ValueError("no such channel")


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "words"), [(Reads, "on the host"), (Makes, "Python's data"), (Counts, "own attributes")]
)
def test_modules_that_cannot_be_captured_run_as_before(stand_in, kind, words, caplog):
    net = made(kind)
    for seed in range(3):
        check(net, *given(seed=seed))
    assert words in net.forward.report.reason and net.forward.report.captured == 0
    assert len(caplog.records) == (kind is not Counts)
    for _ in range(PATIENCE):
        net(*given())
    if kind is Counts:
        assert "too often" in net.forward.report.reason
        assert stand_in[0].records <= PATIENCE


@torch.no_grad()
def test_the_modules_own_errors(stand_in):
    net = made(Fails)
    for _ in range(3):
        with pytest.raises(ValueError, match="no such channel"):
            net(*given())


def test_signature_copies_and_pickles(stand_in):
    net = made()
    assert inspect.signature(net.forward) == inspect.signature(Net().forward)
    assert isinstance(net.forward, Graphed) and inspect.unwrap(net.forward).__func__ is Net.forward
    with torch.no_grad():
        check(net, *given()), check(net, *given())
        buffer = io.BytesIO()
        torch.save(net, buffer)
        buffer.seek(0)
        for other in (
            copy.deepcopy(net),
            pickle.loads(pickle.dumps(net)),
            torch.load(buffer, weights_only=False),
        ):
            assert other.forward.module is other and other.forward.report.replayed == 0
            other.scale = 4.0
            for _ in range(3):
                check(other, *given())
            assert other.forward.report.captured == 1
            assert not torch.equal(other(*given()).sample, net(*given()).sample)
    del net.forward
    assert inspect.ismethod(net.forward)
    assert set(net.state_dict()) == set(Net().state_dict())


@torch.no_grad()
def test_asked_for_again_it_takes_the_place_of_the_first(stand_in):
    net = made()
    net.forward = graphed(net)
    for _ in range(4):
        check(net, *given())
    assert net.forward.report.replayed == 3 and len(stand_in) == 1
    assert inspect.unwrap(net.forward).__func__ is Net.forward


def test_errors_and_lifetime(stand_in):
    with pytest.raises(TypeError, match=r"pass a torch\.nn\.Module"):
        graphed(lambda x: x)
    with pytest.raises(ValueError, match="at least 1"):
        graphed(Net(), most=0)
    net = made()
    with torch.no_grad():
        check(net, *given()), check(net, *given())
    known = weakref.ref(net)
    del net
    gc.collect()
    assert known() is None
