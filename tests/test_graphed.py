"""graphed: a module's forward replayed, call for call the plain one's bits, with a stand-in for CUDA graphs."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from fastdiff.graphs import graphed
from fastdiff.graphs.cache import PATIENCE
from graphed_cases import Net, check, given, made, plain

Pair = namedtuple("Pair", "first second")


@torch.no_grad()
def test_replays_from_the_second_call_of_a_shape(stand_in):
    net = made()
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
def test_results_are_the_callers_own(stand_in):
    net = made()
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
def test_arguments_and_results_of_every_form(stand_in, more):
    net = made()
    for seed in range(4):
        scaled = {k: v * (seed + 1) if isinstance(v, Tensor) else v for k, v in more.items()}
        check(net, *given(seed=seed), **scaled)
    assert net.forward.report.captured == 1


@torch.no_grad()
def test_layouts(stand_in):
    net = made()
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
def test_numbers_are_part_of_the_key(stand_in):
    net = made()
    x, t = given()
    for factor in (1, 2, True, 1.0, 1):
        for _ in range(2):
            check(net, x, t, added={"shift": torch.ones(1), "factor": factor})
    assert net.forward.report.captured == 4


@torch.no_grad()
def test_zeros_of_both_signs_and_nan_are_told_apart(stand_in):
    net, (x, t) = made(), given()
    for factor in (0.0, -0.0, "nan", 0.0):
        for _ in range(2):
            inverse = net(x * 0, t * 0, added={"shift": torch.ones(1), "factor": float(factor)}).sample
            expected = plain(
                net, x * 0, t * 0, added={"shift": torch.ones(1), "factor": float(factor)}
            ).sample
            assert torch.equal(inverse.signbit(), expected.signbit())
    assert net.forward.report.captured == 3


@torch.no_grad()
def test_times_that_are_numbers_do_not_fill_the_cache(stand_in):
    net = made()
    for _ in range(3):
        for time in torch.linspace(0.1, 1, 20).tolist():
            check(net, *given(), added={"shift": torch.ones(1), "factor": time})
    assert net.forward.report.captured <= PATIENCE + 4
    assert "too often" in net.forward.report.reason


@torch.no_grad()
def test_the_number_of_graphs_is_bounded(stand_in):
    net = made(most=2)
    for size in (4, 5, 6, 7, 5, 4):
        for _ in range(3):
            check(net, *given(size))
    assert len(net.forward._cache.entries) == 2
    assert stand_in[0].settled >= 4
    net.forward.clear()
    assert net.forward._cache is None
    check(net, *given(4))
    assert net.forward.report.eager == 5


@torch.no_grad()
def test_what_else_the_result_depends_on(stand_in):
    current = ["a"]
    net = made(also=lambda: current[0])
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
def test_without_graphs_nothing_changes():
    net = made()
    for seed in range(3):
        check(net, *given(seed=seed))
    assert net.forward.report.reason == "there are no graphs on the cpu"


@torch.no_grad()
def test_threads(stand_in):
    net = made()

    @torch.no_grad()
    def work(index):
        for i in range(20):
            check(net, *given(4 + index % 2, seed=100 * index + i))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert net.forward.report.captured == 2


@torch.no_grad()
def test_random_numbers_go_on(stand_in):
    """A forward that draws from torch's generator draws anew at each call, and a capture does not use numbers up."""

    class Draws(Net):
        def forward(self, sample, timestep):
            return super().forward(sample + torch.randn_like(sample), timestep)

    net = made(Draws)
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
