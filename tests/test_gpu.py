"""What only a GPU can show: streams, graph capture, devices, sizes beyond 32 bits, and the CUDA library itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from add_noise_cases import (
    CASES,
    DTYPES,
    Case,
    assert_close,
    check_repeatable,
    check_specials,
    check_values,
    make,
)
from fastdiff import backend, ops
from gpu_only import BACKENDS, GPU_ONLY, each_backend

pytestmark = GPU_ONLY
gpu_backend = each_backend("add_noise")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_values(name: str, dtype: torch.dtype, poisoned: None) -> None:
    check_values(ops.add_noise, CASES[name], dtype, "cuda")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_specials_and_repeats(dtype: torch.dtype, poisoned: None) -> None:
    check_specials(ops.add_noise, dtype, "cuda")
    check_repeatable(ops.add_noise, dtype, "cuda")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("offset", [1, 3, 8])
def test_odd_offsets(dtype: torch.dtype, offset: int, poisoned: None) -> None:
    """Images that start off a 16-byte boundary, alone and together."""
    x0, noise, alpha, sigma = make(Case((2, 3, 31, 37), "each"), dtype, "cuda")
    moved = [
        torch.empty(t.numel() + offset, dtype=dtype, device="cuda")[offset:].view_as(t) for t in (x0, noise)
    ]
    for view, t in zip(moved, (x0, noise), strict=True):
        view.copy_(t)
    for pair in (moved, (moved[0], noise), (x0, moved[1])):
        assert_close(ops.add_noise(*pair, alpha, sigma), x0, noise, alpha, sigma)


def test_both_backends_agree() -> None:
    """The same fused multiply-add in both, so the same bits."""
    inputs = make(CASES["rows_off_the_vectors"], torch.float32, "cuda")
    results = []
    for name in BACKENDS:
        with backend.use(name):
            results.append(ops.add_noise(*inputs))
    assert torch.equal(*results)


def test_callers_stream() -> None:
    """The kernel waits for what its stream was given before it, and for nothing else."""
    x0, noise, alpha, sigma = make(CASES["latents"], torch.float32, "cuda")
    expected = ops.add_noise(x0, noise, alpha, sigma)
    late = torch.full_like(x0, float("nan"))
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # some 30 ms: a kernel on another stream would read NaN
        late.copy_(x0)
        out = ops.add_noise(late, noise, alpha, sigma)
    stream.synchronize()
    assert torch.equal(out, expected)


def test_graph_capture() -> None:
    """A captured call reads its inputs, weights included, anew at each replay."""
    inputs = make(CASES["latents"], torch.bfloat16, "cuda")
    ops.add_noise(*inputs)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = ops.add_noise(*inputs)
    fresh = [torch.rand_like(t) for t in inputs]
    for t, values in zip(inputs, fresh, strict=True):
        t.copy_(values)
    graph.replay()
    assert torch.equal(out, ops.add_noise(*fresh))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_device_guard() -> None:
    """Tensors of another GPU than the current one, which stays current."""
    inputs = [t.to("cuda:1") for t in make(CASES["latents"], torch.float32, "cpu")]
    out = ops.add_noise(*inputs)
    assert out.device == torch.device("cuda:1") and torch.cuda.current_device() == 0
    assert_close(out, *inputs)


def test_beyond_32_bits() -> None:
    """More than 2^31 elements: the last ones are right, with a weight a sample and with one for all."""
    free, _ = torch.cuda.mem_get_info()
    count = 2**31 + 4096
    if free < 8 * count:
        pytest.skip(f"needs {8 * count / 2**30:.0f} GiB of free GPU memory, {free / 2**30:.0f} are")
    x0, noise = (torch.ones(2, count // 2, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    x0[-1, -5:] = 3
    for alpha, sigma in (([2.0, 4.0], [0.0, 1.0]), ([4.0], [1.0])):
        out = ops.add_noise(x0, noise, *(torch.tensor(w, device="cuda") for w in (alpha, sigma)))
        assert out[0, :5].tolist() == [alpha[0] + sigma[0]] * 5
        assert out[-1, -6:].tolist() == [5.0] + [13.0] * 5
        del out


def test_gradients() -> None:
    """Against autograd of the plain composition."""
    inputs = [t.requires_grad_() for t in make(CASES["latents"], torch.float32, "cuda")]
    twins = [t.detach().double().requires_grad_() for t in inputs]
    weights = torch.randn_like(inputs[0])
    (ops.add_noise(*inputs) * weights).sum().backward()
    alpha, sigma = (t.reshape(-1, 1, 1, 1) for t in twins[2:])
    ((alpha * twins[0] + sigma * twins[1]) * weights).sum().backward()
    for ours, truth in zip(inputs, twins, strict=True):
        torch.testing.assert_close(ours.grad.double(), truth.grad, rtol=1e-4, atol=1e-4)


def test_opcheck(gpu_backend: str) -> None:
    packet = torch.ops.fastdiff.add_noise
    overload = packet.triton if gpu_backend == "triton" else packet.default
    inputs: list[Tensor] = [t.requires_grad_() for t in make(CASES["channels_last"], torch.float32, "cuda")]
    torch.library.opcheck(overload, tuple(inputs))


def test_float64_runs_on_the_reference() -> None:
    inputs = [t.double() for t in make(CASES["latents"], torch.float32, "cuda")]
    assert ops.add_noise(*inputs).dtype == torch.float64
