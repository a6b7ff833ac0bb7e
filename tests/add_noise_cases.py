"""What every GPU kernel of add_noise must get right, wherever it runs: on a GPU, interpreted or emulated on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

AddNoise = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class Case(NamedTuple):
    shape: tuple[int, ...]
    weights: str  # "each": one per sample, "one": one for all, "mixed": one alpha, a sigma per sample
    layout: torch.memory_format = torch.contiguous_format
    weight_dtype: torch.dtype = torch.float32


CASES = {
    "latents": Case((2, 4, 64, 64), "each"),
    "latents_float64_weights": Case((2, 4, 64, 64), "each", weight_dtype=torch.float64),
    "one_weight": Case((2, 3, 31, 37), "one"),
    "one_alpha": Case((3, 4, 32, 32), "mixed", weight_dtype=torch.float64),
    "rows_off_the_vectors": Case((5, 3, 33, 35), "each"),
    "channels_last": Case((2, 6, 20, 24), "each", torch.channels_last),
    "channels_last_3d": Case((2, 5, 3, 13, 11), "each", torch.channels_last_3d),
    "short_samples": Case((60, 7), "each"),
    "one_pixel": Case((33, 1, 1, 1), "each"),
    "one_element": Case((1,), "one"),
    "no_samples": Case((0, 4, 8, 8), "each"),
    "empty_samples": Case((3, 0, 8, 8), "each"),
}


def make(case: Case, dtype: torch.dtype, device: str, *, mean: float = 0.0) -> tuple[Tensor, ...]:
    """x0, noise, alpha, sigma of a case, drawn from a fixed seed."""
    generator = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(case.shape, generator=generator) for _ in range(2))
    x0 += mean
    counts = {"each": (case.shape[0],) * 2, "one": (1, 1), "mixed": (1, case.shape[0])}[case.weights]
    alpha, sigma = (torch.rand(count, generator=generator) + 0.1 for count in counts)
    images = [t.to(dtype).to(device).contiguous(memory_format=case.layout) for t in (x0, noise)]
    return (*images, *(t.to(device, case.weight_dtype) for t in (alpha, sigma)))


def check_values(
    add_noise: AddNoise,
    case: Case,
    dtype: torch.dtype,
    device: str,
    *,
    mean: float = 0.0,
    rounding: float = 0.5,
) -> None:
    """The error against float64 is at most twice that of plain PyTorch in the same dtype, in the same layout."""
    x0, noise, alpha, sigma = make(case, dtype, device, mean=mean)
    out = add_noise(x0, noise, alpha, sigma)
    assert (out.dtype, out.shape, out.stride()) == (x0.dtype, x0.shape, x0.stride())
    assert_close(out, x0, noise, alpha, sigma, rounding=rounding)
    truth = composed(*(t.double() for t in (x0, noise, alpha, sigma)))
    plain = composed(x0, noise, alpha.to(dtype), sigma.to(dtype))
    if truth.numel() > 1000:  # on few elements plain PyTorch may be exact by luck
        assert error(out, truth) <= 2 * error(plain, truth)


def check_specials(add_noise: AddNoise, dtype: torch.dtype, device: str) -> None:
    """NaN and Inf stay in the element they came in with, at a sample's start, body and end."""
    x0, noise, alpha, sigma = make(Case((2, 3, 31, 37), "each"), dtype, device)
    flat = x0.view(2, -1)
    flat[0, 0], flat[0, 1500], flat[1, -1] = float("nan"), float("inf"), float("nan")
    out = add_noise(x0, noise, alpha, sigma).view(2, -1)
    assert torch.equal(out.isnan(), flat.isnan())
    assert torch.equal(out.isinf(), flat.isinf())


def check_repeatable(add_noise: AddNoise, dtype: torch.dtype, device: str) -> None:
    """The same inputs give the same bits."""
    inputs = make(CASES["rows_off_the_vectors"], dtype, device)
    assert torch.equal(add_noise(*inputs), add_noise(*inputs))


def assert_close(
    out: Tensor, x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor, *, rounding: float = 0.5
) -> None:
    """Every element is within the rounding of its weights and products (float32) and of the store: half a unit of out's
    dtype if that rounds to nearest."""
    wide = [t.double() for t in (x0, noise, alpha, sigma)]
    truth, magnitude = composed(*wide), composed(*(t.abs() for t in wide))
    single, stored = torch.finfo(torch.float32), torch.finfo(out.dtype)
    bound = 2 * single.eps * magnitude + rounding * stored.eps * (truth.abs() + stored.smallest_normal)
    worst = (out.double() - truth).abs() - bound
    assert (worst <= 0).all(), (
        f"{(worst > 0).sum()} of {out.numel()} elements are off, by up to {worst.max()}"
    )


def composed(x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Plain PyTorch in the dtype of its inputs."""
    alpha, sigma = (t.reshape(-1, *(1,) * (x0.dim() - 1)) for t in (alpha, sigma))
    return alpha * x0 + sigma * noise


def error(out: Tensor, truth: Tensor) -> float:
    """The largest absolute difference."""
    return float((out.double() - truth).abs().amax()) if truth.numel() else 0.0
