"""Watch: what a captured graph would not see of a change is noticed; what it sees, or does not matter, is not."""

from __future__ import annotations

import functools
import gc
import weakref

import pytest
import torch
from torch import nn

from fastdiff.graphs.watch import Watch

CPU = torch.device("cpu")


class Processor:
    def __init__(self) -> None:
        self.scale = 1.0


class Other(Processor):
    pass


class Part(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("table", torch.ones(3))
        self.scaling = {"default": 1.0}
        self.active = ["default"]
        self.names = {"a"}
        self.processor = Processor()
        self.scale = 0.5
        self.shift = 0.0
        self.loose = torch.ones(2)
        self.drop = nn.Dropout(0.1)

    def forward(self, x):
        return self.linear(x) * self.scale


def model():
    return nn.Sequential(Part(), Part()).eval()


def replace_data(m):
    m[0].linear.weight.data = m[0].linear.weight.data.clone()


def same_memory(m, change):
    weight = m[0].linear.weight
    weight.data = change(weight.data)


class Model(nn.Sequential):
    """Its class is one that tests may change."""

    factor = 2.0

    def forward(self, x):
        return super().forward(x) * self.factor


CHANGES = {
    "an attribute": lambda m: setattr(m[1], "scale", 0.25),
    "the sign of a zero": lambda m: setattr(m[1], "shift", -0.0),
    "a dict's value": lambda m: m[0].scaling.update(default=2.0),
    "a dict's key": lambda m: m[0].scaling.update(more=m[0].scaling.pop("default")),
    "a list": lambda m: m[0].active.append("other"),
    "a set": lambda m: m[0].names.add("b"),
    "an object's attribute": lambda m: setattr(m[1].processor, "scale", 2.0),
    "an object of another class": lambda m: setattr(m[1], "processor", Other()),
    "a parameter": lambda m: setattr(m[0].linear, "weight", nn.Parameter(torch.zeros(4, 4))),
    "a parameter's memory": replace_data,
    "the same memory transposed": lambda m: same_memory(m, torch.t),
    "the same memory, less of it": lambda m: same_memory(m, lambda data: data[:2]),
    "the same memory as another dtype": lambda m: same_memory(m, lambda data: data.view(torch.bfloat16)),
    "a buffer": lambda m: setattr(m[0], "table", torch.zeros(3)),
    "a plain tensor": lambda m: setattr(m[0], "loose", torch.zeros(2)),
    "a module": lambda m: setattr(m[0], "linear", nn.Linear(4, 4)),
    "one more module": lambda m: m[0].add_module("adapter", nn.Linear(4, 4)),
    "a class": lambda m: setattr(m[0].linear, "__class__", type("Other", (nn.Linear,), {})),
    "training mode": lambda m: m.train(),
    "a dtype": lambda m: m.half(),
    "a new attribute": lambda m: setattr(m[0], "freeu", (1.1, 1.2)),
    "one attribute less": lambda m: delattr(m[0], "scale"),
    "a hook": lambda m: m[0].register_forward_hook(lambda *_: None),
}


@pytest.mark.parametrize("name", CHANGES)
def test_noticed_once(name):
    m = model()
    watch = Watch(m)
    assert not watch.changed() and watch.refusal(CPU) is None
    CHANGES[name](m)
    assert watch.changed()
    assert not watch.changed()


def in_place(m):
    with torch.no_grad():
        m[0].linear.weight.add_(1)


@pytest.mark.parametrize(
    "name", ["a method", "a class's value", "a processor's method", "a base's method", "a new one"]
)
def test_changes_of_classes_are_noticed(name, monkeypatch):
    m = Model(Part(), Part()).eval()
    watch = Watch(m)
    assert not watch.changed()
    if name == "a method":
        monkeypatch.setattr(Part, "forward", lambda self, x: x)
    elif name == "a class's value":
        monkeypatch.setattr(Model, "factor", 3.0)
    elif name == "a processor's method":
        monkeypatch.setattr(Processor, "__call__", lambda self: 1, raising=False)
    elif name == "a base's method":
        monkeypatch.setattr(nn.Linear, "forward", lambda self, x: x)
    else:
        monkeypatch.setattr(Model, "__call__", lambda self, x: x, raising=False)
    assert watch.changed()
    assert not watch.changed()
    monkeypatch.undo()
    assert watch.changed()


SAME = {
    "new values in place": in_place,
    "an equal attribute": lambda m: setattr(m[0], "scale", float("0.5")),
    "an equal dict": lambda m: setattr(m[0], "scaling", {"default": float("1")}),
    "state loaded": lambda m: m.load_state_dict(m.state_dict()),
    "there and back": lambda m: (setattr(m[0], "scale", 7.0), setattr(m[0], "scale", 0.5)),
    "eval again": lambda m: m.eval(),
    "gradients": lambda m: m.requires_grad_(False),
    "a call": lambda m: m(torch.ones(1, 4)),
}


@pytest.mark.parametrize("name", SAME)
def test_not_noticed(name):
    m = model()
    watch = Watch(m)
    SAME[name](m)
    assert not watch.changed()


def test_an_equal_object_put_in_place_is_watched_too():
    m = model()
    watch = Watch(m)
    m[0].scaling = {"default": 1.0}
    assert not watch.changed()
    m[0].scaling["default"] = 3.0
    assert watch.changed()


SCALE = 2.0
OUTER = nn.Linear(4, 4).eval()


def helper(x):
    return x * SCALE


def reads_globals(x, t):
    return helper(OUTER(x))


def test_functions_and_what_they_read(monkeypatch):
    inner, factor = model(), 2.0

    def closure(x, t):
        return inner(x) * factor

    partial = functools.partial(reads_globals, t=inner)
    watches = [Watch(closure), Watch(reads_globals), Watch(partial)]
    assert not any(watch.changed() for watch in watches)
    monkeypatch.setattr(inner[0], "scale", 9.0)
    assert [watch.changed() for watch in watches] == [True, False, True]
    factor = 3.0
    assert [watch.changed() for watch in watches] == [True, False, False]
    monkeypatch.setitem(globals(), "SCALE", 5.0)  # which a function that a function calls reads
    assert watches[1].changed()
    OUTER.extra = 1
    assert watches[1].changed()
    del OUTER.extra


def hooked():
    m = model()
    m[1].linear.register_forward_pre_hook(lambda *_: None)
    return m


def patched():
    m = model()
    m[0].forward = lambda x: x
    return m


def training():
    return nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1)).train()


def compiled():
    m = model()
    m[0].compile(backend="eager")
    return m


def subclassed():
    m = model()
    m[0].loose = torch.ones(2).as_subclass(type("Quantised", (torch.Tensor,), {}))
    return m


REFUSED = {
    "hooks": (hooked, "hooks"),
    "another forward": (patched, "forward replaced"),
    "dropout": (training, "training mode"),
    "compiled": (compiled, "compiled"),
    "torch.compile": (lambda: torch.compile(model(), backend="eager"), "compiled"),
    "a subclass": (subclassed, "Quantised"),
    "scripted": (lambda: torch.jit.script(nn.Linear(2, 2)), "scripted"),
    "on another device": (lambda: model().to("meta"), "meta"),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    make, words = REFUSED[name]
    m = make()  # which the watch does not hold
    assert words in Watch(m).refusal(CPU)


def test_refused_as_long_as_it_lasts():
    m = model()
    watch = Watch(m)
    handle = m[0].register_forward_hook(lambda *_: None)
    assert watch.changed() and "hooks" in watch.refusal(CPU)
    handle.remove()
    assert watch.changed() and watch.refusal(CPU) is None
    with_global = nn.modules.module.register_module_forward_hook(lambda *_: None)
    assert "every module" in watch.refusal(CPU)
    with_global.remove()
    assert watch.refusal(CPU) is None


def test_training_without_dropout_is_no_matter():
    m = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.0)).train()
    assert Watch(m).refusal(CPU) is None


def test_does_not_keep_the_model():
    m = model()
    watch, known = Watch(m), weakref.ref(m)
    del m
    gc.collect()
    assert known() is None and watch.model() is None


def test_what_refers_back_to_the_model_is_followed_once():
    m = model()
    m[0].owner = [m]
    watch = Watch(m)
    assert not watch.changed()
    m[0].owner.append(1)
    assert watch.changed()


def test_adapters_of_peft():
    peft = pytest.importorskip("peft")
    m = model()
    watch = Watch(m)
    config = peft.LoraConfig(r=2, target_modules=["linear"], init_lora_weights=False)
    peft.inject_adapter_in_model(config, m, "one")
    m.eval()
    assert watch.changed() and watch.refusal(CPU) is None
    layer = m[0].linear
    layer.set_scale("one", 0.3)
    assert watch.changed()
    layer.scale_layer(2.0)
    assert watch.changed()
    peft.inject_adapter_in_model(config, m, "two")
    m.eval()
    assert watch.changed()
    layer.set_adapter(["two"])
    assert watch.changed()
    layer.merge()
    assert watch.changed()
    layer.enable_adapters(False)
    assert watch.changed()
    assert not watch.changed()
