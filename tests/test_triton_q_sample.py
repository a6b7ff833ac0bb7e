"""The Triton kernels of q_sample and randn_like: values, bits of the noise, and code."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

import sass
from add_noise_cases import CASES, Case, assert_close, make

pytest.importorskip("triton", reason="Triton is not installed: pip install triton")
from fastdiff import counter
from fastdiff.kernels import q_sample, randn_like
from triton_code import INTERPRETED, Launch, compiled, device, launches, needs_compiler, rounding

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SOURCES = ("given", "seeds", "cuda state", "cpu state")
DRAWN = (
    Case((2, 3, 19, 21), "each"),
    Case((3, 2, 5, 7), "mixed", weight_dtype=torch.float64),
    Case((1,), "one"),
    Case((0, 4, 8, 8), "each"),
)
"""Contiguous and small: the interpreter takes long for each program that draws."""


def source(name: str, noise: Tensor) -> dict[str, Any]:
    """One of noise, state and seeds."""
    found: dict[str, Any] = {"noise": None, "state": None, "seeds": None}
    if name == "given":
        found["noise"] = noise
    elif name == "seeds":
        found["seeds"] = seeds(len(noise)).to(noise.device)
    elif name == "cuda state":
        found["state"] = torch.tensor([2**40 + 3, 8]).view(torch.uint8)
    else:
        found["state"] = torch.Generator().manual_seed(5).get_state()
    return found


def seeds(count: int) -> Tensor:
    return torch.arange(count) * 0x3_1234_5678_9ABC - 9


def run(name: str, x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, ...]:
    """x, the noise used, velocity and the state after."""
    given = source(name, noise)
    x, drawn, velocity, state = q_sample.launch(
        x0, given["noise"], alpha, sigma, given["state"], given["seeds"], 3, True
    )
    return x, noise if name == "given" else drawn, velocity, state


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", SOURCES)
def test_device_values(name: str, dtype: torch.dtype) -> None:
    """x and velocity are what their formulas make of the noise returned."""
    for case in CASES.values() if name == "given" and dtype == torch.float16 else DRAWN:
        x0, noise, alpha, sigma = make(case, dtype, device())
        x, noise, velocity, _ = run(name, x0, noise, alpha, sigma)
        assert (x.dtype, x.stride(), velocity.stride()) == (dtype, x0.stride(), x0.stride())
        assert_close(x, x0, noise, alpha, sigma, rounding=rounding(dtype))
        assert_close(velocity, noise, -x0, alpha, sigma, rounding=rounding(dtype))


def test_device_nothing_unasked() -> None:
    x0, noise, alpha, sigma = make(CASES["latents"], torch.float32, device())
    x, drawn, velocity, state = q_sample.launch(x0, noise, alpha, sigma, None, None, 0, False)
    assert (x.shape, drawn.shape, velocity.shape, state.shape) == (x0.shape, (0,), (0,), (0,))


@pytest.mark.parametrize("shape, stream", [((2, 4, 19, 21), 0), ((3, 7), 1), ((1, 1, 64, 64), 2**33 + 5)])
def test_device_seeds_give_the_specified_bits(shape: tuple[int, ...], stream: int) -> None:
    """fastdiff/counter.py's, on every stream; rounded for a smaller dtype."""
    x, size = torch.empty(shape, device=device()), torch.Size(shape[1:]).numel()
    expected = counter.normal(seeds(len(x)), size, stream).reshape(shape)
    for dtype in (torch.float32, torch.float16):
        noise, state = randn_like.launch(x.to(dtype), None, seeds(len(x)).to(x.device), stream)
        assert torch.equal(noise.cpu(), expected.to(dtype)) and state.numel() == 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_device_cpu_state_gives_torch_bits(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(5)
    noise, state = randn_like.launch(torch.empty(3, 50, dtype=dtype), generator.get_state(), None, 0)
    assert torch.equal(noise, torch.randn(3, 50, dtype=dtype, generator=generator))
    assert torch.equal(state, generator.get_state())


def as_torch_draws(total: int, seed: int, offset: int) -> tuple[Tensor, int]:
    """What torch.randn draws on CUDA, by its recipe, and the offset after; in float64 past the words."""
    threads = q_sample.torch_threads(total, -1 if device() == "cpu" else 0)
    at = torch.arange(total)
    blocks, thread = offset // 4 + at // (4 * threads), at % threads
    each = zip(blocks[:, None], thread.tolist(), strict=True)
    words = [torch.cat(counter.philox(block, high, torch.tensor([seed]))) for block, high in each]
    x, y, z, w = torch.stack(words, 1).double()
    component = at % (4 * threads) // threads
    first, second = torch.where(component < 2, x, z), torch.where(component < 2, y, w)
    radius = torch.sqrt(-2 * torch.log(first * 2**-32 + 2**-33))
    angle = (second + 0.5) * 2**-32 * 2 * torch.pi
    values = radius * torch.where(component % 2 == 0, angle.sin(), angle.cos())
    return values, offset + ((total - 1) // (4 * threads) + 1) * 4


@pytest.mark.parametrize("total", [1, 255, 300, 1029])
def test_device_cuda_state_follows_torch(total: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of torch.randn's threads and counters, also where they go round more than once."""
    if INTERPRETED:
        monkeypatch.setattr(q_sample, "CPU_CARD", (1, 256))
        q_sample.card.cache_clear()
    state = torch.tensor([2**35 + 11, 2**34 + 4]).view(torch.uint8)
    noise, after = randn_like.launch(torch.empty(total, device=device()), state, None, 0)
    expected, offset = as_torch_draws(total, *state.view(torch.int64).tolist())
    q_sample.card.cache_clear()
    torch.testing.assert_close(noise.cpu().double(), expected, rtol=0, atol=2e-5)
    assert after.view(torch.int64).tolist() == [2**35 + 11, offset]
    if device() == "cuda":
        generator = torch.Generator("cuda")
        generator.set_state(state)
        assert torch.equal(noise, torch.randn(total, generator=generator, device="cuda"))
        assert torch.equal(after, generator.get_state())


def test_device_repeatable() -> None:
    inputs = make(DRAWN[0], torch.float16, device())
    for name in SOURCES:
        assert all(torch.equal(a, b) for a, b in zip(run(name, *inputs), run(name, *inputs), strict=True))


def launched(
    monkeypatch: pytest.MonkeyPatch, name: str, dtype: torch.dtype, shape: tuple[int, ...]
) -> Launch:
    x0, levels = torch.empty(shape, dtype=dtype), torch.empty(shape[0])
    given = source(name, x0)
    arguments = (x0, given["noise"], levels, levels, given["state"], given["seeds"], 3, True)
    (launch,) = launches(monkeypatch, q_sample.launch, *arguments)
    return launch


@needs_compiler
@pytest.mark.parametrize("arch, dtype", [(80, torch.bfloat16), (90, torch.bfloat16), (90, torch.float32)])
@pytest.mark.parametrize("name, registers", [("given", 40), ("seeds", 40), ("cuda state", 80)])
def test_compiles_to_vector_code(
    name: str, registers: int, dtype: torch.dtype, arch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """128 bits at a time for images, no spills; drawing takes registers but never local memory."""
    code = compiled(launched(monkeypatch, name, dtype, (8, 4, 512, 512)), arch)
    sass.assert_no_spills(code.kernel, registers=registers)
    chunks = 4 if name == "cuda state" else 1
    vectors = chunks * q_sample.BLOCK * dtype.itemsize // 16 // (32 * q_sample.OPTIONS["num_warps"])
    assert code.kernel.count("LDG.E.128") == vectors * (2 if name == "given" else 1)
    assert (
        code.kernel.count("STG.E.128") == code.kernel.count("STG") == vectors * (2 if name == "given" else 3)
    )


@needs_compiler
def test_compiles_for_odd_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SOURCES[:3]:
        code = compiled(launched(monkeypatch, name, torch.bfloat16, (3, 5, 33, 7)), 90)
        sass.assert_no_spills(code.kernel, registers=128)


@needs_compiler
def test_nothing_is_fused_that_is_not_written_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bits depend on it: seeds give separate products and sums, torch.randn's recipe curand's fast sine."""
    ptx = compiled(launched(monkeypatch, "seeds", torch.float32, (2, 4, 64, 64)), 90).asm["ptx"]
    assert "sqrt.rn" in ptx and "mul.rn.f32" in ptx.replace("mul.f32", "mul.rn.f32")
    assert len(re.findall(r"fma\.rn", ptx)) == 2 * 8  # x and velocity, for 8 elements a thread
    ptx = compiled(launched(monkeypatch, "cuda state", torch.float32, (2, 4, 64, 64)), 90).asm["ptx"]
    assert "sin.approx" in ptx and "cos.approx" in ptx and "sqrt.rn" in ptx
