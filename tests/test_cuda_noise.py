"""The CUDA kernels that draw noise, on the CPU: torch.randn's mapping of a GPU's threads to elements, the counter-based
bits, and what is made of them. The host's sine and logarithm stand in for a GPU's, so the last bits of torch.randn's
values are for test_gpu_noise.py."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest
import torch
from torch import Tensor

import emulated
import emulated_run
from conftest import HALF_AND_SINGLE
from cuda_randn import pieces, torch_randn
from fastdiff import counter

pytestmark = pytest.mark.usefixtures("poisoned")


@emulated_run.is_the_run
def test_emulated() -> None:
    assert emulated_run.outcomes(__file__).keys() == {"passed"}


@pytest.fixture(scope="module")
def native() -> ctypes.CDLL:
    return ctypes.CDLL(str(emulated.kernels()))


TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def draw(
    native: ctypes.CDLL,
    count: int,
    dtype: torch.dtype,
    offset: int,
    device: tuple[int, int],
    most: int,
    start: int,
) -> tuple[Tensor, int]:
    memory = torch.full((count + 64,), torch.nan, dtype=dtype)
    noise, after = memory[start : start + count], ctypes.c_int64(offset)
    element = HALF_AND_SINGLE.index(dtype)
    error = native.emulated_drawn(
        ctypes.c_void_p(noise.data_ptr()), ctypes.c_int64(count), element, ctypes.c_uint64(SEED),
        ctypes.byref(after), *device, ctypes.c_int64(most),
    )  # fmt: skip
    assert error == 0
    assert memory[:start].isnan().all() and memory[start + count :].isnan().all()
    return noise, after.value


SEED = 0x9876_5432_1012_3456


@emulated_run.is_the_run
@pytest.mark.parametrize("dtype", HALF_AND_SINGLE, ids=str)
@pytest.mark.parametrize("count", [1, 5, 255, 256, 257, 1000, 1024, 4096, 4100, 9_999, 20_480, 40_003])
def test_torch_randns_elements(count: int, dtype: torch.dtype, native: ctypes.CDLL) -> None:
    """On small GPUs, so that turns are many; at offsets that carry into the counter's upper half; unaligned."""
    for device, offset, start in (((1, 1024), 0, 0), ((3, 2048), 12, 1), ((2, 1536), 2**34 - 4, 8)):
        expected, advanced = torch_randn(count, SEED, offset, device, dtype.itemsize)
        noise, after = draw(native, count, dtype, offset, device, 2**31 - 1, start)
        assert after == advanced
        torch.testing.assert_close(noise.double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] / 4)


@emulated_run.is_the_run
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_torch_randns_elements_of_what_it_halves(dtype: torch.dtype, native: ctypes.CDLL) -> None:
    for count in (1001, 5000, 10_006):
        expected, advanced = torch_randn(count, SEED, 40, (2, 1024), dtype.itemsize, most=4096)
        noise, after = draw(native, count, dtype, 40, (2, 1024), 4096, 0)
        assert after == advanced
        torch.testing.assert_close(noise.double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] / 4)


@emulated_run.is_the_run
@pytest.mark.parametrize("bytes_each", [2, 4])
@pytest.mark.parametrize("count", [2**29, 2**29 + 1, 2**30, 2**30 + 1, 2**31 + 5, 3 * 2**30 + 7])
def test_torch_randn_beyond_32_bits(count: int, bytes_each: int, native: ctypes.CDLL) -> None:
    """Which pieces a large tensor is drawn in, and from which offsets: an H100's 132 multiprocessors."""
    device, offset = (132, 2048), ctypes.c_int64(8)
    expected = list(pieces(count, 8, device, bytes_each, 2**31 - 1))
    found = (ctypes.c_int64 * 400)()
    number = native.emulated_drawn_pieces(
        ctypes.c_int64(count), bytes_each, *device, ctypes.byref(offset), found
    )
    drawn = [(first, size, 270_336, before) for first, size, before, _ in expected if size]
    assert [tuple(found[4 * i : 4 * i + 4]) for i in range(number)] == drawn
    assert offset.value == expected[-1][3]


@pytest.fixture(scope="module")
def library() -> Any:
    emulated_run.load()
    return torch.ops.fastdiff


def state(seed: int, offset: int) -> Tensor:
    """What get_state() of a CUDA generator gives."""
    return torch.tensor([seed, offset], dtype=torch.int64).view(torch.uint8)


@emulated_run.needs_the_run
@pytest.mark.parametrize("dtype", HALF_AND_SINGLE, ids=str)
@pytest.mark.parametrize("shape", [(2, 4, 16, 18), (3, 5, 7), (1, 1), (2, 4099), (0, 4), (3, 0)], ids=str)
@pytest.mark.parametrize("velocity", [False, True])
def test_device_q_sample(shape: tuple[int, ...], dtype: torch.dtype, velocity: bool, library: Any) -> None:
    """The same noise as randn_like, the bits of add_noise, and the offset of one torch.randn."""
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randn(shape, generator=generator).to(dtype)
    before = state(12345, 16)
    keys = torch.arange(shape[0]) * 2**40 + 5
    for count in (1, shape[0]):
        if count == 0:
            continue
        alpha, sigma = torch.rand(2, count, generator=generator) + 0.1
        for options in ((before, None, 0), (None, keys, 7)):
            x, noise, target, after = library.q_sample.default(x0, None, alpha, sigma, *options, velocity)
            alone, advanced = library.randn_like.default(x0, *options)
            assert torch.equal(noise, alone) and torch.equal(after, advanced)
            assert torch.equal(x, library.add_noise.default(x0, noise, alpha, sigma))
            if velocity:
                assert torch.equal(target, library.add_noise.default(noise, x0, alpha, -sigma))
            given = library.q_sample.default(x0, noise, alpha, sigma, None, None, 0, velocity)
            assert torch.equal(given[0], x) and given[1].numel() == given[3].numel() == 0
            assert torch.equal(given[2], target) and target.numel() == x0.numel() * velocity
            if options[0] is not None:
                expected, offset = torch_randn(x0.numel(), 12345, 16, (4, 2048), dtype.itemsize) if x0.numel() else (
                    torch.empty(0), 16
                )  # fmt: skip
                assert after.view(torch.int64).tolist() == [12345, offset]
                torch.testing.assert_close(
                    noise.flatten().double(), expected.double(), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] / 4
                )  # fmt: skip
            else:
                assert after.dtype == torch.uint8 and after.numel() == 0
    assert torch.equal(before, state(12345, 16))


@emulated_run.needs_the_run
@pytest.mark.parametrize("dtype", HALF_AND_SINGLE, ids=str)
def test_device_counter_bits(dtype: torch.dtype, library: Any) -> None:
    """Bit for bit those of fastdiff/counter.py, whatever the sizes, with a stream and seeds of 63 bits."""
    for shape in ((3, 4, 8, 8), (2, 3, 5, 7), (5, 1), (2, 4100)):
        keys, which = torch.arange(shape[0]) * (2**61 + 12345) + 3, 2**40 + 9
        noise, _ = library.randn_like.default(torch.empty(shape, dtype=dtype), None, keys, which)
        expected = counter.normal(keys, noise[0].numel(), which).to(dtype)
        assert torch.equal(noise.flatten(1), expected)


@emulated_run.needs_the_run
def test_device_weights_known_at_the_call(library: Any) -> None:
    """One number for all may lie on the CPU: here all does, so float64 and float32 are told apart by their values."""
    x0, noise = torch.randn(2, 3, 100)
    expected = torch.addcmul(0.6 * noise, x0, torch.tensor(0.8))
    for dtype in (torch.float32, torch.float64):
        weights = [torch.tensor([value], dtype=dtype) for value in (0.8, 0.6)]
        torch.testing.assert_close(library.add_noise.default(x0, noise, *weights), expected)
        torch.testing.assert_close(
            library.q_sample.default(x0, noise, *weights, None, None, 0, True)[0], expected
        )


@emulated_run.needs_the_run
def test_device_layouts(library: Any) -> None:
    """Given noise, any dense layout; drawn, only the contiguous one, whose order torch.randn's is."""
    x0, noise = (torch.randn(2, 3, 8, 6).to(memory_format=torch.channels_last) for _ in range(2))
    weights = torch.rand(2, 2)
    x, _, target, _ = library.q_sample.default(x0, noise, *weights, None, None, 0, True)
    assert x.is_contiguous(memory_format=torch.channels_last) and target.stride() == x0.stride()
    plain = library.q_sample.default(x0.contiguous(), noise.contiguous(), *weights, None, None, 0, True)
    assert torch.equal(x, plain[0]) and torch.equal(target, plain[2])
    alone, _ = library.randn_like.default(x0, state(3, 0), None, 0)
    assert alone.is_contiguous()
    with pytest.raises(RuntimeError, match="fastdiff: x0 must be contiguous"):
        library.q_sample.default(x0, None, *weights, state(3, 0), None, 0, False)


@emulated_run.needs_the_run
def test_device_refusals(library: Any) -> None:
    x0, weights = torch.ones(2, 3), torch.rand(2, 2)
    wrong = {
        "one of noise, state and seeds": (None, None),
        "16 bytes": (torch.zeros(5056, dtype=torch.uint8), None),
        "seeds must be": (None, torch.zeros(3, dtype=torch.int64)),
    }
    for words, (generator, keys) in wrong.items():
        with pytest.raises(RuntimeError, match=f"fastdiff: .*{words}"):
            library.q_sample.default(x0, None, *weights, generator, keys, 0, False)
        with pytest.raises(RuntimeError, match=f"fastdiff: .*{words}"):
            library.randn_like.default(x0, generator, keys, 0)
    with pytest.raises(RuntimeError, match="fastdiff: noise must have"):
        library.q_sample.default(x0, torch.ones(3, 2), *weights, None, None, 0, False)
    with pytest.raises(RuntimeError, match="float32, float16 and bfloat16"):
        library.randn_like.default(x0.double(), state(1, 0), None, 0)


@emulated_run.needs_the_run
@pytest.mark.parametrize("op", ["q_sample", "randn_like"])
def test_device_schemas(op: str, library: Any) -> None:
    """The results have the shapes, dtypes and devices that the fakes promise."""
    x0 = torch.randn(2, 3, 5)
    for generator, keys in ((state(3, 8), None), (None, torch.arange(2))):
        arguments = (x0, generator, keys, 1)
        if op == "q_sample":
            arguments = (x0, None, torch.rand(2), torch.rand(2), generator, keys, 1, True)
        torch.library.opcheck(
            getattr(library, op).default, arguments, test_utils=("test_schema", "test_faketensor")
        )
