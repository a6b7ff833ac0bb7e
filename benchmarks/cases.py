"""The ops' cases, for any device: our function, its peers, the truth in float64, and the bytes that must move."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdiff import ops, reference
from shapes import Shape
from timing import Case, Timed, difference, draw

GROUPS = 32
ALLOWED = {torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}
"""How far a result may be from float64, relative to the largest value."""

Norm = Callable[[Tensor, int, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Image:
    """What a tensor is like. layout: contiguous or channels_last."""

    shape: Shape
    dtype: torch.dtype = torch.float32
    layout: str = "contiguous"
    device: str = "cpu"

    def __str__(self) -> str:
        return f"{self.shape} {str(self.dtype).removeprefix('torch.')} {self.layout}"

    def draw(self, seed: int = 0) -> Tensor:
        x = draw(self.shape, self.dtype, self.device, seed=seed)
        if self.layout == "contiguous":
            return x
        return x.movedim(1, -1).contiguous().movedim(-1, 1)

    def channels(self, seed: int) -> Tensor:
        return draw(self.shape[1:2], self.dtype, self.device, seed=seed)

    @property
    def nbytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def eager_norm(x: Tensor, groups: int, weight: Tensor, bias: Tensor) -> Tensor:
    """What we replace."""
    return F.silu(F.group_norm(x, groups, weight, bias))


def copy_of(x: Tensor) -> Timed:
    """A copy into memory that is there already: the fastest a pass over x can be."""
    target = torch.empty_like(x)
    return Timed(lambda: target.copy_(x))


def norm_case(image: Image, peers: Mapping[str, Norm]) -> Case:
    """group_norm_silu against its peers and a copy."""
    arguments = (image.draw(), GROUPS, image.channels(1), image.channels(2))
    exact = eager_norm(*(a.double() if isinstance(a, Tensor) else a for a in arguments))
    functions = {"group_norm_silu": Timed(partial(ops.group_norm_silu, *arguments))}
    functions |= {name: Timed(partial(peer, *arguments)) for name, peer in peers.items()}
    functions["copy"] = copy_of(arguments[0])
    error = difference(ops.group_norm_silu(*arguments), exact)
    return Case(f"norm {image}", functions, "group_norm_silu", error, ALLOWED[image.dtype], 2 * image.nbytes)


def backward_case(image: Image, peers: Mapping[str, Norm]) -> Case:
    """The gradients of group_norm_silu (x, weight, bias) against those of its peers."""
    everyone = {"group_norm_silu": ops.group_norm_silu, **peers}
    functions = {name: Timed(gradients(norm, image, image.dtype)) for name, norm in everyone.items()}
    functions["copy"] = copy_of(image.draw())
    pairs = zip(functions["group_norm_silu"].run(), gradients(eager_norm, image, torch.float64)())
    error = max(difference(ours, exact) for ours, exact in pairs)
    allowed = 5 * ALLOWED[image.dtype]  # a weight's gradient is a long sum
    return Case(f"backward {image}", functions, "group_norm_silu", error, allowed, 3 * image.nbytes)


def gradients(norm: Callable[..., Tensor], image: Image, dtype: torch.dtype) -> Callable[[], Any]:
    """Calls the backward pass of `norm` alone, again and again on one graph."""
    with torch.inference_mode(False), torch.enable_grad():
        inputs = [t.to(dtype).requires_grad_() for t in (image.draw(), image.channels(1), image.channels(2))]
        y = norm(inputs[0], GROUPS, *inputs[1:])
        cotangent = image.draw(3).to(dtype)
    return lambda: torch.autograd.grad(y, inputs, cotangent, retain_graph=True)


def gradient_case(image: Image, name: str) -> Case:
    """The kernels of the backward pass alone, on one backend, against those that eager PyTorch would launch."""
    x, grad, weight, bias = image.draw(), image.draw(3), image.channels(1), image.channels(2)
    packet = torch.ops.fastdiff.group_norm_silu_backward
    op = packet.triton if name == "triton" else packet.default
    statistics = [
        t.float() for t in reference.group_statistics(x, GROUPS, 1e-5)
    ]  # as the forward pass leaves them
    batch, channels, pixels = *x.shape[:2], x[0, 0].numel()

    def ours() -> Tensor:
        return op(grad, x, GROUPS, weight, bias, *statistics, None, None, None, 1)[0]

    def theirs() -> Tensor:
        plain = x.contiguous()  # as F.group_norm has it on a GPU
        y, mean, rstd = torch.native_group_norm(plain, weight, bias, batch, channels, pixels, GROUPS, 1e-5)
        dz = torch.ops.aten.silu_backward(grad.contiguous(), y)
        backward = torch.ops.aten.native_group_norm_backward
        return backward(dz, plain, mean, rstd, weight, batch, channels, pixels, GROUPS, [True] * 3)[0]

    exact = gradients(eager_norm, image, torch.float64)()[0]
    functions = {"backward": Timed(ours), "eager, with its forward norm": Timed(theirs)}
    error = difference(ours(), exact)
    return Case(f"gradient {image}", functions, "backward", error, 5 * ALLOWED[image.dtype], 3 * image.nbytes)


def add_noise_case(image: Image) -> Case:
    """add_noise with the noise given."""
    x0, noise = image.draw(), image.draw(1)
    level = torch.linspace(0.1, 1.0, image.shape[0], device=image.device)
    wide = level.view(-1, *(1,) * (x0.dim() - 1)).to(x0.dtype)
    target = torch.empty(x0.numel() * 3 // 2, dtype=x0.dtype, device=x0.device)
    source = torch.cat([x0.flatten(), noise.flatten()])[: target.numel()]
    functions = {
        "add_noise": Timed(lambda: ops.add_noise(x0, noise, level, 0.5)),
        "eager": Timed(lambda: wide * x0 + 0.5 * noise),
        # reads and writes 1.5 times x0: as many bytes as add_noise moves, into memory that is there already
        "copy, same bytes": Timed(lambda: target.copy_(source)),
    }
    exact = level.double().view_as(wide) * x0.double() + 0.5 * noise.double()
    error = difference(ops.add_noise(x0, noise, level, 0.5), exact)
    return Case(f"noise {image}", functions, "add_noise", error, ALLOWED[image.dtype], 3 * image.nbytes)


def q_sample_case(image: Image) -> Case:
    """Noise drawn in the kernel, with torch.randn's bits, against randn + mul + mul + add."""
    x0 = image.draw()
    ours, theirs = (torch.Generator(image.device).manual_seed(7) for _ in range(2))
    level = torch.linspace(0.1, 1.0, image.shape[0], device=image.device)
    wide = level.view(-1, *(1,) * (x0.dim() - 1)).to(x0.dtype)
    seeds = torch.arange(image.shape[0], device=image.device)

    def composed() -> tuple[Tensor, Tensor]:
        noise = torch.randn(x0.shape, generator=theirs, dtype=x0.dtype, device=x0.device)
        return wide * x0 + 0.5 * noise, noise

    drawn, (_, noise) = ops.q_sample(x0, level, 0.5, generator=ours), composed()
    if not torch.equal(drawn.noise, noise):
        raise ValueError(f"q_sample {image}: the noise has other bits than torch.randn's: nothing was timed")
    exact = level.double().view_as(wide) * x0.double() + 0.5 * noise.double()
    functions = {
        "q_sample, generator": Timed(lambda: ops.q_sample(x0, level, 0.5, generator=ours)),
        "q_sample, seeds": Timed(lambda: ops.q_sample(x0, level, 0.5, seeds=seeds)),
        "randn, mul, mul, add": Timed(composed),
        "randn alone": Timed(
            lambda: torch.randn(x0.shape, generator=theirs, dtype=x0.dtype, device=x0.device)
        ),
    }
    error = difference(drawn.x, exact)
    return Case(
        f"draw {image}", functions, "q_sample, generator", error, ALLOWED[image.dtype], 3 * image.nbytes
    )
