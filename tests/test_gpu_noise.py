"""What only a GPU can show of noise drawn in a kernel: torch.randn's bits and offsets, and graphs that draw anew."""

from __future__ import annotations

import pytest
import torch

from conftest import HALF_AND_SINGLE
from fastdiff import counter, ops
from fastdiff.ops import _drawing
from gpu_only import GPU_ONLY, each_backend

pytestmark = GPU_ONLY
gpu_backend = each_backend("randn_like")


def twins() -> tuple[torch.Generator, torch.Generator]:
    return tuple(torch.Generator("cuda").manual_seed(2**40 + 3) for _ in range(2))  # type: ignore[return-value]


@pytest.mark.parametrize("dtype", HALF_AND_SINGLE, ids=str)
def test_draws_as_torch_randn_does(dtype: torch.dtype, gpu_backend: str) -> None:
    """Else the door would quietly draw by torch.randn, and nothing be gained."""
    assert _drawing.distrust(gpu_backend, torch.device("cuda"), dtype) is None


@pytest.mark.parametrize("dtype", HALF_AND_SINGLE, ids=str)
def test_bits_and_offsets_of_torch_randn(dtype: torch.dtype) -> None:
    """Of many sizes, one after the other, with torch's own draws between."""
    ours, theirs = twins()
    for count in (1, 3, 255, 257, 4096, 65_536, 270_335, 270_337, 1_081_345, 5_000_001):
        noise = ops.randn((count,), generator=ours, dtype=dtype, device="cuda")
        assert torch.equal(noise, torch.randn(count, generator=theirs, dtype=dtype, device="cuda")), count
        assert torch.equal(ours.get_state(), theirs.get_state())
        between = [torch.rand(7, generator=generator, device="cuda") for generator in (ours, theirs)]
        assert torch.equal(*between)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randn", None)  # the kernels drew: torch.randn is not asked
        ops.randn((5, 7), generator=ours, dtype=dtype, device="cuda")


@pytest.mark.parametrize("dtype", HALF_AND_SINGLE, ids=str)
@pytest.mark.parametrize("shape", [(2, 4, 64, 64), (3, 5, 7), (2, 4099)], ids=str)
def test_q_sample(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x0 = torch.randn(shape, device="cuda").to(dtype)
    alpha, sigma = torch.rand(2, shape[0], device="cuda")
    ours, theirs = twins()
    made = ops.q_sample(x0, alpha, sigma, generator=ours, velocity=True)
    noise = torch.randn(shape, generator=theirs, dtype=dtype, device="cuda")
    assert torch.equal(made.noise, noise) and torch.equal(ours.get_state(), theirs.get_state())
    assert torch.equal(made.x, ops.add_noise(x0, noise, alpha, sigma))
    assert torch.equal(made.velocity, ops.add_noise(noise, x0, alpha, -sigma))
    torch.manual_seed(11)
    globally = ops.q_sample(x0, 0.8, 0.6)
    torch.manual_seed(11)
    assert torch.equal(globally.noise, torch.randn(shape, dtype=dtype, device="cuda"))


@pytest.mark.parametrize("dtype", HALF_AND_SINGLE, ids=str)
def test_counter_noise_has_the_specified_bits(dtype: torch.dtype) -> None:
    keys = [5, 2**62 + 11, 0]
    for shape in ((3, 4, 64, 64), (3, 5, 7)):
        noise = ops.randn(shape, seeds=keys, stream=9, dtype=dtype, device="cuda").cpu().flatten(1)
        assert torch.equal(noise, counter.normal(torch.tensor(keys), noise.shape[1], 9).to(dtype))


def test_under_capture_each_replay_draws_anew() -> None:
    x0 = torch.zeros(2, 4, 32, 32, device="cuda")
    ops.q_sample(x0, 0.8, 0.6)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made = ops.q_sample(x0, 0.8, 0.6)
    graph.replay()
    first = made.noise.clone()
    graph.replay()
    assert not torch.equal(made.noise, first) and torch.equal(made.x, ops.add_noise(x0, made.noise, 0.8, 0.6))


def test_counter_noise_in_a_graph() -> None:
    """The seeds are read at each replay."""
    keys, x0 = torch.arange(2, device="cuda"), torch.zeros(2, 4, 32, 32, device="cuda")
    ops.q_sample(x0, 0.8, 0.6, seeds=keys)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made = ops.q_sample(x0, 0.8, 0.6, seeds=keys)
    keys += 100
    graph.replay()
    assert torch.equal(made.noise, ops.randn(x0.shape, seeds=keys, device="cuda"))


def test_weights_as_numbers(gpu_backend: str) -> None:
    """A number on the CPU is read at the call: no launch fills a tensor with it."""
    x0, noise = torch.randn(2, 3, 4099, device="cuda").unbind()
    op = _overload("add_noise", gpu_backend)
    found = op(x0, noise, torch.tensor([0.8]), torch.tensor([0.6]))
    assert torch.equal(found, op(x0, noise, *(torch.tensor([v], device="cuda") for v in (0.8, 0.6))))


def _overload(name: str, chosen: str) -> torch._ops.OpOverload:
    packet = getattr(torch.ops.fastdiff, name)
    return packet.triton if chosen == "triton" else packet.default


@pytest.mark.parametrize(
    ("count", "dtype"), [(2**29 + 5, torch.float32), (2**31 + 9, torch.bfloat16)], ids=str
)
def test_torch_randn_beyond_32_bits(count: int, dtype: torch.dtype) -> None:
    """torch halves what it cannot address with 32 bits, and its offsets show it."""
    free, _ = torch.cuda.mem_get_info()
    needed = 3 * count * dtype.itemsize
    if free < needed:
        pytest.skip(f"needs {needed / 2**30:.0f} GiB of free GPU memory, {free / 2**30:.0f} are")
    ours, theirs = twins()
    noise = ops.randn((count,), generator=ours, dtype=dtype, device="cuda")
    expected = torch.randn(count, generator=theirs, dtype=dtype, device="cuda")
    assert torch.equal(ours.get_state(), theirs.get_state())
    assert all(torch.equal(a, b) for a, b in zip(noise.split(2**28), expected.split(2**28), strict=True))


def test_callers_stream() -> None:
    """The kernel waits for what its stream was given before it."""
    x0 = torch.randn(2, 4, 64, 64, device="cuda")
    late = torch.full_like(x0, torch.nan)
    keys = torch.arange(2, device="cuda")
    expected = ops.q_sample(x0, 0.8, 0.6, seeds=keys).x
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        late.copy_(x0)
        found = ops.q_sample(late, 0.8, 0.6, seeds=keys).x
    stream.synchronize()
    assert torch.equal(found, expected)
