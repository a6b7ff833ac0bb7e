"""x = alpha*x0 + sigma*noise with the noise drawn where it is used, and the velocity target, in one pass.

Two kernels, as the noise has two orders. A seed per sample (fastdiff/counter.py) numbers the elements of each sample;
torch.randn on CUDA numbers threads, each of which draws four values that lie a whole grid apart.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdiff.kernels import counter
from fastdiff.kernels.launch import Launcher

OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}
BLOCK = 1024
WIDE = 2**31
CUDA_STATE = 16  # bytes of a CUDA generator's state: seed and offset, int64 each
TORCH_THREADS = 256  # of a block of torch.randn's kernel
CPU_CARD = (132, 2048)  # what the interpreter draws like: an H100's multiprocessors, and threads of each


@triton.jit
def level(ptr, value, at):
    """A weight from memory, or the one that came by value."""
    if ptr is not None:
        weight = tl.load(ptr + at).to(tl.float32)
    else:
        weight = value
    return weight


@triton.jit
def mix_and_store(noise, x0_ptr, x_ptr, velocity_ptr, start, ahead, inside, alpha, sigma):
    """noise: as rounded to its dtype; alpha, sigma: one, or one for each element."""
    x0 = tl.load(x0_ptr + start + ahead, mask=inside, other=0.0).to(tl.float32)
    noise = noise.to(tl.float32)
    x = tl.fma(x0, alpha, noise * sigma)
    tl.store(x_ptr + start + ahead, x.to(x_ptr.dtype.element_ty), mask=inside)
    if velocity_ptr is not None:
        velocity = tl.fma(noise, alpha, -(x0 * sigma))
        tl.store(velocity_ptr + start + ahead, velocity.to(velocity_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["tiles", "stream"])
def sample_kernel(
    noise_ptr,  # read, or written where seeds are given
    x0_ptr,  # None: the noise alone
    x_ptr,
    velocity_ptr,  # None: not wanted
    alpha_ptr,
    sigma_ptr,
    seeds_ptr,  # one per sample, or None: the noise is given
    inner,  # elements of one sample: sample b is [b*inner, (b + 1)*inner)
    tiles,  # programs a sample takes
    stream: tl.int64,
    alpha_value,  # where alpha_ptr is None
    sigma_value,
    ALPHA_STRIDE: tl.constexpr,  # 1: one weight per sample, 0: one for all
    SIGMA_STRIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0)
    sample = (program // tiles).to(tl.int64)
    first = (program % tiles).to(tl.int64) * BLOCK
    ahead = tl.arange(0, BLOCK)
    inside = first + ahead < inner
    start = sample * inner + first

    if seeds_ptr is not None:
        drawn = counter.normal(tl.load(seeds_ptr + sample), stream, first, BLOCK)
        noise = drawn.to(noise_ptr.dtype.element_ty)
        tl.store(noise_ptr + start + ahead, noise, mask=inside)
    else:
        noise = tl.load(noise_ptr + start + ahead, mask=inside, other=0.0)

    if x0_ptr is not None:
        alpha = level(alpha_ptr, alpha_value, sample * ALPHA_STRIDE)
        sigma = level(sigma_ptr, sigma_value, sample * SIGMA_STRIDE)
        mix_and_store(noise, x0_ptr, x_ptr, velocity_ptr, start, ahead, inside, alpha, sigma)


@triton.jit
def level_of_each(
    ptr, value, STRIDE: tl.constexpr, sample, into, inside, inner, total, ONE_BORDER: tl.constexpr
):  # fmt: skip
    """The weight of each element. into: its place, counted from the start of sample `sample`."""
    if STRIDE == 0:
        weight = level(ptr, value, 0)
    elif ONE_BORDER:
        here = tl.load(ptr + sample, mask=sample * inner < total, other=0.0).to(tl.float32)
        after = tl.load(ptr + sample + 1, mask=(sample + 1) * inner < total, other=0.0).to(tl.float32)
        weight = tl.where(into < inner, here, after)
    else:
        weight = tl.load(ptr + sample + into // inner, mask=inside, other=0.0).to(tl.float32)
    return weight


@triton.jit(do_not_specialize=["tiles", "seed", "block"])
def torch_kernel(
    noise_ptr,
    x0_ptr,
    x_ptr,
    velocity_ptr,
    alpha_ptr,
    sigma_ptr,
    total,
    inner,
    threads,  # of torch.randn's grid
    tiles,  # programs that share one counter of all those threads
    seed: tl.int64,
    block: tl.int64,  # the generator's offset, in counters of four values
    alpha_value,  # where alpha_ptr is None
    sigma_value,
    ALPHA_STRIDE: tl.constexpr,
    SIGMA_STRIDE: tl.constexpr,
    ONE_BORDER: tl.constexpr,  # BLOCK elements lie in two samples at most
    LIBDEVICE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0)
    draw = (program // tiles).to(tl.int64)
    first = (program % tiles).to(tl.int64) * BLOCK
    ahead = tl.arange(0, BLOCK)
    thread = first + ahead

    values = counter.torch_normal(seed, block + draw + tl.zeros_like(thread), thread, LIBDEVICE)

    for component in tl.static_range(4):
        start = (draw * 4 + component) * threads + first
        inside = (first + ahead < threads) & (start + ahead < total)
        noise = values[component].to(noise_ptr.dtype.element_ty)
        tl.store(noise_ptr + start + ahead, noise, mask=inside)
        if x0_ptr is not None:
            sample = start // inner
            into = start - sample * inner + ahead
            alpha = level_of_each(
                alpha_ptr, alpha_value, ALPHA_STRIDE, sample, into, inside, inner, total, ONE_BORDER
            )
            sigma = level_of_each(
                sigma_ptr, sigma_value, SIGMA_STRIDE, sample, into, inside, inner, total, ONE_BORDER
            )
            mix_and_store(noise, x0_ptr, x_ptr, velocity_ptr, start, ahead, inside, alpha, sigma)


SAMPLE = Launcher(sample_kernel, **OPTIONS)
TORCH = Launcher(torch_kernel, **OPTIONS)
LIBDEVICE = isinstance(torch_kernel, triton.JITFunction)  # which the interpreter has not


class Images(NamedTuple):
    """What is mixed from the noise: all None for noise alone."""

    x0: Tensor | None = None
    x: Tensor | None = None
    velocity: Tensor | None = None
    alpha: Tensor | None = None
    sigma: Tensor | None = None


class Arguments(NamedTuple):
    """Images as the kernels take them. strides: 1 for a weight per sample, 0 for one for all."""

    pointers: tuple[Tensor | None, ...]
    values: tuple[float, float]
    strides: tuple[int, int]


def arguments(images: Images) -> Arguments:
    x0, x, velocity, alpha, sigma = images
    strides = (int(alpha is not None and alpha.numel() > 1), int(sigma is not None and sigma.numel() > 1))
    alpha, alpha_value = by_value(alpha)
    sigma, sigma_value = by_value(sigma)
    return Arguments((x0, x, velocity, alpha, sigma), (alpha_value, sigma_value), strides)


def by_value(level: Tensor | None) -> tuple[Tensor | None, float]:
    """One weight on the CPU as a number: no copy to the GPU, which would be another launch."""
    if level is not None and level.is_cpu and level.numel() == 1:
        return None, float(level)
    return level, 0.0


def launch(
    x0: Tensor,
    noise: Tensor | None,
    alpha: Tensor,
    sigma: Tensor,
    state: Tensor | None,
    seeds: Tensor | None,
    stream: int,
    velocity: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x0, noise: [B, ...] float32, float16 or bfloat16, dense in one layout with the batch outermost, contiguous where
    noise is drawn; alpha, sigma: [B] or [1], float32 or float64, [1] also on the CPU; state: of a generator, uint8 on
    the CPU; seeds: [B] int64. One of noise, state and seeds is given. Returns x, noise, velocity and the state after,
    each empty [0] if it was given, absent or not asked for; on the caller's current stream."""
    used = torch.empty_like(x0) if noise is None else noise
    images = Images(x0, torch.empty_like(x0), torch.empty_like(x0) if velocity else None, alpha, sigma)
    after = fill(used, images, state, seeds, stream)
    nothing = x0.new_empty(0)
    return images.x, used if noise is None else nothing, images.velocity if velocity else nothing, after


def fill(noise: Tensor, images: Images, state: Tensor | None, seeds: Tensor | None, stream: int) -> Tensor:
    """Draws noise from state or seeds, if there are any, and mixes the images from it. Returns the state after."""
    after = noise.new_empty(0, dtype=torch.uint8) if state is None else state.clone()
    if noise.numel() == 0:
        return after
    if state is not None and state.numel() == CUDA_STATE and noise.nbytes < WIDE:
        return fill_as_torch(noise, images, state)
    if (
        state is not None
    ):  # a CPU generator, which is serial, or more bytes than torch.randn draws in one launch
        generator = torch.Generator(noise.device)
        generator.set_state(state)
        torch.randn(noise.shape, generator=generator, out=noise)
        after = generator.get_state()
    if seeds is not None or images.x0 is not None:
        mix(noise, images, seeds, stream)
    return after


def mix(noise: Tensor, images: Images, seeds: Tensor | None = None, stream: int = 0) -> None:
    """Mixes the images from noise, drawn from seeds if there are any."""
    pointers, values, strides = arguments(images)
    samples = 1 if seeds is None and strides == (0, 0) else noise.shape[0]  # nothing differs: one long sample
    inner = noise.numel() // samples
    tiles = triton.cdiv(inner, BLOCK)
    SAMPLE(samples * tiles, (noise, *pointers, seeds), (inner, tiles, stream, *values), (*strides, BLOCK))


def fill_as_torch(noise: Tensor, images: Images, state: Tensor) -> Tensor:
    """fill from a CUDA generator's state, with the values that torch.randn would draw."""
    seed, offset = state.view(torch.int64).tolist()
    total, device = noise.numel(), noise.get_device()
    threads = torch_threads(total, device)
    draws, tiles = triton.cdiv(total, 4 * threads), triton.cdiv(threads, BLOCK)
    pointers, values, strides = arguments(images)
    inner = total // noise.shape[0] if any(strides) else total
    scalars = (total, inner, threads, tiles, seed, offset // 4, *values)
    constants = (*strides, inner >= BLOCK, LIBDEVICE, BLOCK)
    TORCH(draws * tiles, (noise, *pointers), scalars, constants)
    return torch.tensor([seed, offset + 4 * draws]).view(torch.uint8)


def torch_threads(total: int, device: int) -> int:
    """The threads that torch.randn starts for so many values (ATen/native/cuda/DistributionTemplates.h)."""
    processors, most = card(device)
    return TORCH_THREADS * min(triton.cdiv(total, TORCH_THREADS), processors * (most // TORCH_THREADS))


@cache
def card(device: int) -> tuple[int, int]:
    """The multiprocessors of a GPU and how many threads each holds."""
    if device < 0:
        return CPU_CARD
    properties = torch.cuda.get_device_properties(device)
    return properties.multi_processor_count, properties.max_threads_per_multi_processor
