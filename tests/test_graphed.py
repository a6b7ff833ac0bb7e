"""graphed: a module's forward replayed, on the CPU with a stand-in for CUDA graphs."""

from __future__ import annotations

import copy
import gc
import inspect
import io
import pickle
import threading
import weakref
from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from fastdiff import graphs
from fastdiff.graphs import Graphed, graphed
from fastdiff.graphs.cache import PATIENCE
from standing_in import StandIn

pytestmark = pytest.mark.usefixtures("single_thread")


@dataclass
class Output(OrderedDict):
    """As diffusers' and transformers' outputs: a mapping with fields."""

    sample: Tensor

    def __post_init__(self) -> None:
        self["sample"] = self.sample


Pair = namedtuple("Pair", "first second")


class Net(nn.Module):
    """Takes what a denoiser takes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.scale = 0.5
        self.calls = [0]

    def forward(self, sample, timestep, states=None, added=None, extra=(), return_dict=True):
        """A denoiser."""
        t = torch.as_tensor(timestep, dtype=torch.float32)
        h = self.conv(sample) * self.scale * torch.sin(t).reshape(-1, 1, 1, 1)
        if states is not None:
            h = h + states.mean(1).reshape(-1, 1, 1, 1)
        if added is not None:
            h = h + added["shift"] * added["factor"]
        for more in extra:
            h = h + more
        return Output(h) if return_dict else (h,)


@pytest.fixture
def net():
    made = Net().eval()
    made.forward = graphed(made)
    return made


def plain(net, *args, **kwargs):
    return net.forward.forward(*args, **kwargs)


def given(size=4, seed=0, batch=2):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, size, size, generator=g), torch.rand(batch, generator=g)


def check(net, *args, **kwargs):
    """The call's result is the eager one, bit for bit."""
    out, expected = net(*args, **kwargs), plain(net, *args, **kwargs)
    assert type(out) is type(expected)
    assert (
        torch.equal(out[0], expected[0])
        if isinstance(out, tuple)
        else torch.equal(out.sample, expected.sample)
    )
    return out


@torch.no_grad()
def test_replays_from_the_second_call_of_a_shape(net, stand_in):
    report = net.forward.report
    for seed in range(5):
        check(net, *given(seed=seed))
    assert (report.eager, report.captured, report.replayed) == (1, 1, 4) and report.reason is None
    check(net, *given(8))
    assert report.eager == 2 and "second time" in report.reason
    assert "4 calls replayed, 2 eager, 1 captured; the last call" in str(report)
    check(net, *given(8))
    check(net, *given(4))
    assert report.captured == 2 and len(stand_in) == 1 and stand_in[0].records == 2


@torch.no_grad()
def test_results_are_the_callers_own(net, stand_in):
    kept = []
    for seed in range(4):
        kept.append((check(net, *given(seed=seed)).sample, plain(net, *given(seed=seed)).sample))
        check(net, *given(8, seed=seed))
    for ours, expected in kept:
        assert torch.equal(ours, expected)
    kept[-1][0].fill_(float("nan"))
    check(net, *given(seed=1))


@torch.no_grad()
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"return_dict": False},
        {"states": torch.randn(2, 5)},
        {
            "added": {"shift": torch.tensor(2.0), "factor": 3},
            "extra": [torch.ones(1), torch.ones(2, 3, 1, 1)],
        },
        {"added": OrderedDict(shift=torch.ones(1), factor=0.5), "extra": Pair(torch.ones(1), torch.zeros(1))},
    ],
    ids=["plain", "tuple", "states", "nested", "named"],
)
def test_arguments_and_results_of_every_form(net, stand_in, more):
    for seed in range(4):
        scaled = {k: v * (seed + 1) if isinstance(v, Tensor) else v for k, v in more.items()}
        check(net, *given(seed=seed), **scaled)
    assert net.forward.report.captured == 1


@torch.no_grad()
def test_layouts(net, stand_in):
    x, t = given()
    wide = torch.randn(2, 3, 4, 8)
    for _ in range(3):
        for sample in (x, x.to(memory_format=torch.channels_last), wide[..., ::2], x[:1].expand(2, 3, 4, 4)):
            out = check(net, sample, t).sample
            assert out.stride() == plain(net, sample, t).sample.stride()
    assert net.forward.report.captured == 4
    check(net, x, t.double()), check(net, x, t.double())
    assert net.forward.report.captured == 5


@torch.no_grad()
def test_numbers_are_part_of_the_key(net, stand_in):
    x, t = given()
    for factor in (1, 2, True, 1.0, 1):
        for _ in range(2):
            check(net, x, t, added={"shift": torch.ones(1), "factor": factor})
    assert net.forward.report.captured == 4


@torch.no_grad()
def test_times_that_are_numbers_do_not_fill_the_cache(net, stand_in):
    for _ in range(3):
        for time in torch.linspace(0.1, 1, 20).tolist():
            check(net, *given(), added={"shift": torch.ones(1), "factor": time})
    assert net.forward.report.captured <= PATIENCE + 4
    assert "too often" in net.forward.report.reason


@torch.no_grad()
def test_the_number_of_graphs_is_bounded(stand_in):
    net = Net().eval()
    net.forward = graphed(net, most=2)
    for size in (4, 5, 6, 7, 5, 4):
        for _ in range(3):
            check(net, *given(size))
    assert len(net.forward._cache.entries) == 2
    assert stand_in[0].settled >= 4
    net.forward.clear()
    assert net.forward._cache is None
    check(net, *given(4))
    assert net.forward.report.eager == 5


CHANGES = {
    "attribute": lambda m: setattr(m, "scale", 3.0),
    "replaced weight": lambda m: setattr(m.conv, "weight", nn.Parameter(torch.ones(3, 3, 3, 3))),
    "moved weight": lambda m: setattr(m.conv.weight, "data", m.conv.weight.data + 1),
    "in place": lambda m: m.conv.weight.data.mul_(2),
    "module": lambda m: setattr(m, "conv", nn.Conv2d(3, 3, 1)),
}


@torch.no_grad()
@pytest.mark.parametrize("name", CHANGES)
def test_never_stale(net, stand_in, name):
    for _ in range(3):
        check(net, *given())
    CHANGES[name](net)
    gc.collect()
    for seed in range(3):
        check(net, *given(seed=seed))
    assert net.forward.report.captured == (1 if name == "in place" else 2)


@torch.no_grad()
def test_what_else_the_result_depends_on(stand_in):
    net, current = Net().eval(), ["a"]
    net.forward = graphed(net, also=lambda: current[0])
    for name in ("a", "a", "b", "b", "a"):
        current[0] = name
        check(net, *given())
    assert net.forward.report.captured == 2
    for size in (4, 4, 4):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            check(net, *given(size))
        check(net, *given(size))
    with torch.inference_mode():
        for _ in range(3):
            out = check(net, *given()).sample
            assert out.is_inference()
    assert not check(net, *given()).sample.is_inference()


@torch.no_grad()
def test_steps_aside_and_says_why(net, stand_in):
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
    net.conv.forward.graph_safe = True
    del net.conv.forward
    wanted = net.conv.forward
    wrapped = lambda x: wanted(x) * 2  # noqa: E731
    wrapped.graph_safe = True
    net.conv.forward = wrapped
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
    net = kind().eval()
    net.forward = graphed(net)
    for seed in range(3):
        out = net(*given(seed=seed))
        expected = plain(net, *given(seed=seed))
        assert torch.equal(
            out[0] if isinstance(out, tuple) else out.sample,
            expected[0] if isinstance(expected, tuple) else expected.sample,
        )
    assert words in net.forward.report.reason and net.forward.report.captured == 0
    assert len(caplog.records) == (kind is not Counts)
    for _ in range(PATIENCE):
        net(*given())
    if kind is Counts:
        assert "too often" in net.forward.report.reason
        assert stand_in[0].records <= PATIENCE


@torch.no_grad()
def test_the_modules_own_errors(stand_in):
    net = Fails().eval()
    net.forward = graphed(net)
    for _ in range(3):
        with pytest.raises(ValueError, match="no such channel"):
            net(*given())


@torch.no_grad()
def test_without_graphs_nothing_changes(net):
    for seed in range(3):
        check(net, *given(seed=seed))
    assert net.forward.report.reason == "there are no graphs on the cpu"


def test_signature_copies_and_pickles(net, stand_in):
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


def test_errors_and_lifetime(stand_in):
    with pytest.raises(TypeError, match=r"pass a torch\.nn\.Module"):
        graphed(lambda x: x)
    with pytest.raises(ValueError, match="at least 1"):
        graphed(Net(), most=0)
    net = Net().eval()
    net.forward = graphed(net)
    with torch.no_grad():
        check(net, *given()), check(net, *given())
    known = weakref.ref(net)
    del net
    gc.collect()
    assert known() is None


@torch.no_grad()
def test_threads(net, stand_in):
    failures = []

    @torch.no_grad()
    def work(index):
        try:
            for i in range(20):
                x, t = given(4 + index % 2, seed=100 * index + i)
                ours = net(x, t).sample
                if not torch.equal(ours, plain(net, x, t).sample):
                    failures.append((index, i))
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert net.forward.report.captured == 2


@torch.no_grad()
def test_random_numbers_go_on(stand_in):
    """A forward that draws from torch's generator draws anew at each call, and a capture does not use numbers up."""

    class Draws(Net):
        def forward(self, sample, timestep):
            return super().forward(sample + torch.randn_like(sample), timestep)

    net = Draws().eval()
    net.forward = graphed(net)
    torch.manual_seed(3)
    ours = [net(*given()).sample for _ in range(4)]
    torch.manual_seed(3)
    expected = [plain(net, *given()).sample for _ in range(4)]
    for a, b in zip(ours, expected):
        assert torch.equal(a, b)


@torch.no_grad()
def test_compiled(stand_in):
    torch._dynamo.reset()
    net = nn.Sequential(nn.Linear(4, 4), nn.SiLU()).eval()
    net.forward = graphed(net)
    compiled, x = torch.compile(net, backend="eager", fullgraph=True), torch.ones(2, 4)
    assert torch.equal(compiled(x), net.forward.forward(x))
    for _ in range(3):
        net(x)
    assert net.forward.report.captured == 1
    assert torch.equal(compiled(x), net.forward.forward(x))


@torch.no_grad()
def test_a_unet_of_diffusers_in_its_pipeline(stand_in):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=8, in_channels=3, out_channels=3, layers_per_block=1, block_out_channels=(8, 8),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4, attention_head_dim=4,
    ).eval()  # fmt: skip
    scheduler = diffusers.DDIMScheduler()
    pipe = diffusers.DDIMPipeline(unet, scheduler)
    pipe.set_progress_bar_config(disable=True)

    def run(steps, batch=1):
        return pipe(
            batch_size=batch,
            num_inference_steps=steps,
            generator=torch.Generator().manual_seed(0),
            output_type="np",
        ).images

    expected = [run(3), run(5), run(3, 2)]
    unet.forward = graphed(unet)
    for _ in range(2):
        for image, (steps, batch) in zip(expected, ((3, 1), (5, 1), (3, 2))):
            assert (run(steps, batch) == image).all()
    report = unet.forward.report
    assert (report.captured, report.eager) == (2, 2), report
    assert graphs.Graphed is Graphed and isinstance(stand_in[0], StandIn)
