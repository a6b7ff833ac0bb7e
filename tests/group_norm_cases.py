"""The cases that every backend's tests of group_norm_silu share: shapes, options, layouts, and the right answers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor

from fastdiff import backend, native, ops

SHAPES = [
    ((2, 32, 16, 16), 8),
    ((1, 20, 33), 4),
    ((3, 12, 1, 1), 3),  # 1x1 images
    ((2, 6, 7, 9), 6),  # a channel a group
    ((2, 9, 5, 3), 1),
    ((1, 8, 3, 5, 7), 2),
    ((4, 10), 5),
    ((2, 40, 65, 2), 4),
    ((0, 8, 4, 4), 2),
    ((2, 8, 0), 2),
]
"""(x's shape, groups)."""

VECTORS = ("add", "scale", "shift")
EVERYTHING = ("weight", "bias", *VECTORS, "residual")
OPTIONS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "affine": ("weight", "bias"),
    "weight": ("weight",),
    "bias": ("bias",),
    "add": ("weight", "bias", "add"),
    "scale": ("weight", "bias", "scale"),
    "shift": ("weight", "bias", "shift"),
    "modulation": ("scale", "shift"),
    "gelu": ("weight", "bias", "gelu"),
    "none": ("weight", "bias", "none"),
    "residual": ("weight", "bias", "residual"),
    "all": EVERYTHING,
    "all-gelu": (*EVERYTHING, "gelu"),
    "all-none": (*EVERYTHING, "none"),
}
"""Name -> the inputs that are given, and the activation if it is not silu."""

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"none": lambda z: z, "silu": F.silu, "gelu": F.gelu}
CODES = {"none": 0, "silu": 1, "gelu": 2}


class Inputs(NamedTuple):
    """What group_norm_silu takes, in the order of its schema."""

    x: Tensor
    num_groups: int
    weight: Tensor | None = None
    bias: Tensor | None = None
    eps: float = 1e-5
    add: Tensor | None = None
    scale: Tensor | None = None
    shift: Tensor | None = None
    activation: str = "silu"
    residual: Tensor | None = None

    def to(self, dtype: torch.dtype) -> Inputs:
        """The same with every tensor in another dtype."""
        return Inputs(*(t.to(dtype) if isinstance(t, Tensor) else t for t in self))

    def tensors(self) -> dict[str, Tensor]:
        """Name -> tensor, of those given."""
        return {name: t for name, t in self._asdict().items() if isinstance(t, Tensor)}

    def requiring_grad(self) -> Inputs:
        """Detached, and every tensor a leaf that wants its gradient."""
        return self._replace(**{n: t.detach().requires_grad_() for n, t in self.tensors().items()})

    def arguments(self) -> tuple:
        """For the op or a kernel's launch: the schema's arguments, the activation as its code."""
        return (*self[:8], CODES[self.activation], self.residual)

    def backward_arguments(self, grad: Tensor, mean: Tensor, rstd: Tensor) -> tuple:
        """For group_norm_silu_backward: what its schema asks for, x being the rounded sum where there is a residual."""
        x, groups, weight, bias, _, add, scale, shift, _, residual = self
        x = x if residual is None else torch.empty_like(x).copy_(x + residual)
        return grad, x, groups, weight, bias, mean, rstd, add, scale, shift, CODES[self.activation]


def draw(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    generator: torch.Generator,
    mean: float = 0.0,
    scale: float = 1.0,
) -> Tensor:
    """Normal numbers on the generator's device, rounded to dtype."""
    return (torch.randn(shape, generator=generator, device=generator.device) * scale + mean).to(dtype)


def inputs(
    shape: tuple[int, ...],
    groups: int,
    dtype: torch.dtype,
    generator: torch.Generator,
    *,
    options: str | tuple[str, ...] = "affine",
    vectors: torch.dtype | None = None,
    mean: float = 0.0,
    layout: str = "contiguous",
) -> Inputs:
    """Drawn inputs with these OPTIONS (a name, or what is given) in this one of LAYOUTS; vectors: the dtype of all but
    x and residual."""
    wanted = OPTIONS[options] if isinstance(options, str) else options

    def vector(name: str, *size: int, around: float = 0.0) -> Tensor | None:
        return draw(size, vectors or dtype, generator, around, 0.5) if name in wanted else None

    (batch, channels), place = shape[:2], LAYOUTS[layout]
    return Inputs(
        x=place(draw(shape, dtype, generator, mean, 2.0)),
        num_groups=groups,
        weight=vector("weight", channels, around=1.0),
        bias=vector("bias", channels),
        add=vector("add", batch, channels),
        scale=vector("scale", batch, channels),
        shift=vector("shift", batch, channels),
        activation=next((name for name in ACTIVATIONS if name in wanted), "silu"),
        residual=place(draw(shape, dtype, generator)) if "residual" in wanted else None,
    )


def channels_last(x: Tensor) -> Tensor:
    """[B, C, ...] as [B, ..., C] in memory."""
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def odd_offset(x: Tensor) -> Tensor:
    """Contiguous, one element off any alignment."""
    return x.new_empty(x.numel() + 1)[1:].view(x.shape).copy_(x)


def sliced(x: Tensor) -> Tensor:
    """The left half of a wider tensor."""
    return torch.cat([x, x], dim=-1)[..., : x.shape[-1]]


def strided(x: Tensor) -> Tensor:
    """Every second element of a tensor."""
    return torch.stack([x, x], dim=-1)[..., 0]


def expanded(x: Tensor) -> Tensor:
    """One sample, seen once for each of the batch."""
    return x[:1].expand(x.shape)


def turned(x: Tensor) -> Tensor:
    """Dense, the pixels in another order: no named memory format."""
    return x.transpose(-1, -2).contiguous().transpose(-1, -2)


def shuffled(x: Tensor) -> Tensor:
    """Dense, the batch innermost."""
    return x.movedim(0, -1).contiguous().movedim(-1, 0)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "channels_last": channels_last,
    "odd_offset": odd_offset,
    "sliced": sliced,
    "strided": strided,
    "expanded": expanded,
    "turned": turned,
    "shuffled": shuffled,
}


def through_ops(given: Inputs) -> tuple[Tensor, Tensor]:
    """(summed, y) by the public functions. summed is x without residual."""
    x, groups, weight, bias, eps, add, scale, shift, activation, residual = given
    options = {"add": add, "scale": scale, "shift": shift, "activation": activation}
    if residual is None:
        return x, ops.group_norm_silu(x, groups, weight, bias, eps, **options)
    return ops.add_group_norm_silu(x, residual, groups, weight, bias, eps, **options)


def composition(given: Inputs) -> tuple[Tensor, Tensor]:
    """(summed, y) as plain PyTorch makes them, every step in the dtype of the inputs. summed is x without residual."""
    x = given.x
    shape = (*x.shape[:2], *(1,) * (x.dim() - 2))
    add, scale, shift = (
        None if t is None else t.reshape(shape) for t in (given.add, given.scale, given.shift)
    )
    summed = x if given.residual is None else x + given.residual
    h = summed if add is None else summed + add
    if h.numel():  # PyTorch's group_norm refuses some empty tensors, and fails backward with a bias alone
        weight = (
            torch.ones_like(given.bias) if given.weight is None and given.bias is not None else given.weight
        )
        h = torch.group_norm(h, given.num_groups, weight, given.bias, given.eps)
    h = h if scale is None else h * (1 + scale)
    h = h if shift is None else h + shift
    return summed, ACTIVATIONS[given.activation](h)


def exact(given: Inputs) -> tuple[Tensor, Tensor]:
    """(summed, y) in float64, but summed rounded to x's dtype first, as the op defines it."""
    x = given.x if given.residual is None else given.x + given.residual
    return composition(given._replace(x=x, residual=None).to(torch.float64))


def gradients(
    outputs: tuple[Tensor, Tensor], given: Inputs, grads: tuple[Tensor | None, Tensor]
) -> dict[str, Tensor]:
    """Input name -> its gradient, of (summed*grads[0] + y*grads[1]).sum(); grads[0] None: y alone."""
    pairs = [(y, g) for y, g in zip(outputs, grads, strict=True) if g is not None]
    tensors = given.tensors()
    found = torch.autograd.grad(
        [y for y, _ in pairs],
        list(tensors.values()),
        [g.to(y.dtype) for y, g in pairs],
        materialize_grads=True,  # of an empty tensor the composition uses no weight
    )
    return dict(zip(tensors, found, strict=True))


def exact_gradients(given: Inputs, grads: tuple[Tensor | None, Tensor]) -> dict[str, Tensor]:
    """The gradients in float64, at the sum as rounded to x's dtype."""
    x, residual = given.x.detach(), given.residual
    if residual is not None:  # the rounded sum plus 0: both addends keep their gradients
        rounded = x + residual.detach()
        given = given._replace(x=rounded, residual=torch.zeros_like(rounded))
    wide = given.to(torch.float64).requiring_grad()
    return gradients(composition(wide), wide, grads)


def composed_gradients(given: Inputs, grads: tuple[Tensor | None, Tensor]) -> dict[str, Tensor]:
    """The gradients by PyTorch's composition, every step in x's dtype."""
    narrow = given.to(given.x.dtype).requiring_grad()
    return gradients(composition(narrow), narrow, grads)


ANYTHING = {
    "batch": st.integers(1, 3),
    "groups": st.integers(1, 4),
    "per_group": st.integers(1, 20),
    # at least 32 values a group: of a few, the composition's error may be 0 by luck
    "pixels": st.sampled_from(
        [(32,), (7, 9), (1, 33), (40, 1), (3, 4, 5), (8, 8), (2, 1, 17), (65,), (2, 4, 2, 2)]
    ),
    "options": st.sampled_from(
        [
            tuple(n for n, on in zip(EVERYTHING, given, strict=True) if on)
            for given in itertools.product([0, 1], repeat=6)
        ]
    ),
    "how": st.sampled_from(
        list(
            itertools.product(
                [torch.float32, torch.float16, torch.bfloat16],
                [None, torch.float32],
                LAYOUTS,
                ACTIVATIONS,
                [0.0, -3.0, 100.0],
            )
        )
    ),
}
"""For hypothesis: what any_inputs takes, in few draws, which cost more than the op."""


def any_inputs(
    batch: int, groups: int, per_group: int, pixels: tuple[int, ...], options: tuple[str, ...], how: tuple
) -> Inputs:
    """Inputs from what ANYTHING draws."""
    dtype, vectors, layout, activation, mean = how
    shape = (batch, groups * per_group, *pixels)
    generator = torch.Generator().manual_seed(sum(shape))
    return inputs(
        shape, groups, dtype, generator, options=(*options, activation), vectors=vectors, layout=layout, mean=mean
    )  # fmt: skip


@contextmanager
def running_on(place: str) -> Iterator[None]:
    """The reference, or the C++ kernels at an instruction set."""
    with backend.use("reference" if place == "reference" else "cpp"):
        if place != "reference":
            native.set_isa(place)
        try:
            yield
        finally:
            if place != "reference":
                native.set_isa("")
