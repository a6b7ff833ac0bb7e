"""group_norm_silu's CUDA kernels on a GPU: every variant at real shapes, streams, graph capture, repeats and sizes
beyond 32 bits. The values at small and odd shapes are tests/test_cuda_group_norm_silu.py's, without a GPU."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import pytest
import torch

from conftest import assert_accurate
from fastdiff import backend, native, ops
from gpu_only import GPU_ONLY
from group_norm_cases import (
    LAYOUTS,
    OPTIONS,
    SHAPES,
    composed_gradients,
    composition,
    exact,
    exact_gradients,
    inputs,
)

pytestmark = GPU_ONLY
REAL = [
    ((2, 320, 64, 64), 32),
    ((2, 640, 32, 32), 32),
    ((2, 1280, 8, 8), 32),
    ((2, 320, 128, 128), 32),
    ((1, 512, 128, 128), 32),
    ((1, 256, 512, 512), 32),
]


@pytest.fixture(autouse=True)
def on_cuda() -> Iterator[None]:
    with backend.use("cuda"):
        yield


@pytest.fixture
def force() -> Iterator[ctypes._NamedFuncPointer]:
    """Gives every call a variant, 1 to 4 for A to D."""
    assert native.problem("cuda") is None
    function = ctypes.CDLL(str(native.library("cuda"))).fastdiff_force_variant
    yield function
    function(0)


def drawn(
    shape: tuple[int, ...], groups: int, dtype: torch.dtype, options: str = "all", layout: str = "contiguous"
):
    generator = torch.Generator("cuda").manual_seed(0)
    return inputs(shape, groups, dtype, generator, options=options, layout=layout)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("variant", [0, 1, 2, 3, 4])
@pytest.mark.parametrize(("shape", "groups"), REAL)
def test_real_shapes(force, shape, groups, variant: int, layout: str, poisoned: None) -> None:
    force(variant)
    given = drawn(shape, groups, torch.bfloat16, layout=layout)
    y, summed, mean, rstd = torch.ops.fastdiff.group_norm_silu.default(*given.arguments())
    assert_accurate(y, exact(given)[1], composition(given)[1])
    assert torch.equal(summed, given.x + given.residual)
    grad = LAYOUTS[layout](torch.randn_like(given.x))
    arguments = given.backward_arguments(grad, mean, rstd)
    dx, sums = torch.ops.fastdiff.group_norm_silu_backward.default(*arguments)
    right, plain = exact_gradients(given, (None, grad)), composed_gradients(given, (None, grad))
    assert_accurate(dx, right["x"], plain["x"])
    assert (sums[0] - right["shift"]).abs().max() <= 1e-4 * right["shift"].abs().max()
    again = torch.ops.fastdiff.group_norm_silu.default(*given.arguments())
    assert all(torch.equal(a, b) for a, b in zip((y, summed, mean, rstd), again, strict=True))
    repeated = torch.ops.fastdiff.group_norm_silu_backward.default(*arguments)
    assert torch.equal(dx, repeated[0]) and torch.equal(sums, repeated[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "odd_offset"])
@pytest.mark.parametrize("options", OPTIONS)
def test_options(options: str, layout: str, dtype: torch.dtype, poisoned: None) -> None:
    for shape, groups in SHAPES:
        given = drawn(shape, groups, dtype, options, layout)
        y = torch.ops.fastdiff.group_norm_silu.default(*given.arguments())[0]
        assert_accurate(y, exact(given)[1], composition(given)[1].to(dtype))


@pytest.mark.parametrize("variant", [1, 2, 3, 4])
def test_graph_capture(force, variant: int) -> None:
    """A replay reads its inputs anew, and its barrier starts anew: the workspace holds what the last one left."""
    force(variant)
    x = torch.randn(2, 320, 64, 64, device="cuda", dtype=torch.bfloat16)
    ops.group_norm_silu(x, 32)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = ops.group_norm_silu(x, 32)
    for _ in range(3):
        x.copy_(torch.randn_like(x))
        graph.replay()
        assert torch.equal(out, ops.group_norm_silu(x, 32))


@pytest.mark.parametrize("variant", [2, 3])
def test_two_streams(force, variant: int) -> None:
    """Cooperative launches at the same time on two streams do not touch each other's barrier, nor wait for ever."""
    force(variant)
    images = [torch.randn(2, 320, 64, 64, device="cuda") for _ in range(2)]
    expected = [ops.group_norm_silu(x, 32) for x in images]
    streams = [torch.cuda.Stream() for _ in images]
    torch.cuda.synchronize()
    found: list[list[torch.Tensor]] = [[], []]
    for _ in range(20):
        for i, (stream, x) in enumerate(zip(streams, images, strict=True)):
            with torch.cuda.stream(stream):
                found[i].append(ops.group_norm_silu(x, 32))
    torch.cuda.synchronize()
    for right, outputs in zip(expected, found, strict=True):
        assert all(torch.equal(y, right) for y in outputs)


def test_every_variant_agrees(force) -> None:
    x = torch.randn(2, 320, 64, 64, device="cuda", dtype=torch.bfloat16)
    results = []
    for variant in (1, 2, 3, 4):
        force(variant)
        results.append(ops.group_norm_silu(x, 32).float())
    for other in results[1:]:
        assert (results[0] - other).abs().max() <= 2**-6  # a unit of bfloat16 at 4


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_beyond_32_bits(layout: torch.memory_format) -> None:
    """More than 2^31 elements: the last group is right."""
    shape = (3, 32, 4740, 4740)
    free, _ = torch.cuda.mem_get_info()
    if free < 3 * 2 * torch.Size(shape).numel():
        pytest.skip("needs 14 GiB of free GPU memory")
    x = torch.zeros(shape, dtype=torch.bfloat16, device="cuda").contiguous(memory_format=layout)
    x[-1, -1, ::2] = 2.0
    y = ops.group_norm_silu(x, 32, activation="none")
    assert y[-1, -1, :4, 0].tolist() == [1.0, -1.0, 1.0, -1.0]
    assert y[-1, -1, -2:, -1].tolist() == [1.0, -1.0] and not y[:-1].any()
