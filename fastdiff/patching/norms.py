"""The classes that norms and activations of an accelerated model are given; parameters and their names stay.

Each is used by setting a module's __class__, so that state dicts, hooks, adapters and optimizers see the same module.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdiff import ops
from fastdiff.nn import GroupNormSiLU

FEW = 32768
"""Elements below which a norm on the CPU, and what is around it, are PyTorch's own: there the call of our kernel takes
as long as it saves. Measured: in a UNet whose norms have 4096 to 16384 elements, 3% more time with it; norms of 32768,
1.5 to 1.9 times faster; compiled by Inductor 0.7 to 1.0 times as fast up to 16384, 1.05 to 3.8 times from 65536 on."""


def leaves(x: Tensor) -> bool:
    """Whether a norm of x had better be PyTorch's: x is small, and PyTorch need not copy it first as it does what is
    not contiguous, unless Inductor makes the code."""
    return x.is_cpu and x.numel() < FEW and (torch.compiler.is_compiling() or x.is_contiguous())


CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def arranged(x: Tensor) -> Tensor:
    """x, contiguous where PyTorch's norm would make it so: unless it is channels-last, which it does not take single
    images for as attention leaves them, channels together. Our kernel needs no copy, but the convolutions that follow
    inherit its layout, and float32 ones took up to three times as long in the other one."""
    if x.is_contiguous():
        return x
    last = CHANNELS_LAST.get(x.dim())
    kept = last is not None and x.is_contiguous(memory_format=last) and x.stride(0) * x.shape[0] >= x.numel()
    return x if kept else x.contiguous()


class FusedGroupNorm(nn.GroupNorm):
    """nn.GroupNorm in one kernel, with what its block has around it where the block passes it."""

    def forward(
        self,
        input: Tensor,
        add: Tensor | None = None,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
        activation: str = "none",
    ) -> Tensor:
        """input: [B, C, ...]; add, scale, shift: [B, C]. As ops.group_norm_silu; without options as nn.GroupNorm."""
        input = arranged(input)
        if activation == "none" and add is None and scale is None and leaves(input):
            return super().forward(input)
        return ops.group_norm_silu(
            input, self.num_groups, self.weight, self.bias, self.eps,
            add=add, scale=scale, shift=shift, activation=activation,
        )  # fmt: skip


class Pair:
    """Norms and the activation that follows them, children of one parent, as long as they are there."""

    def __init__(self, parent: nn.Module, norms: tuple[str, ...], activation: str) -> None:
        self.parent: Callable[[], nn.Module | None] = weakref.ref(parent)
        self.norms, self.activation = norms, activation

    def holds(self) -> bool:
        """Whether each is in its place still, with nothing between them that would see what is left out."""
        parent = self.parent()
        if parent is None:
            return False
        children = parent._modules
        norms, activation = [children.get(name) for name in self.norms], children.get(self.activation)
        return (
            isinstance(activation, (AppliedSiLU, AppliedGELU))
            and untouched(activation)
            and all(isinstance(n, PairedGroupNorm) and not n._forward_hooks and runs_class(n) for n in norms)
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Pair:
        """Of the parent's copy, if that is what is being made; one that does not hold, for a part alone."""
        parent = memo.get(id(self.parent()), self)
        made = copy.copy(self)
        made.parent = weakref.ref(parent) if isinstance(parent, nn.Module) else _gone
        return made

    def __getstate__(self) -> tuple[nn.Module | None, tuple[str, ...], str]:
        return self.parent(), self.norms, self.activation

    def __setstate__(self, state: tuple[nn.Module | None, tuple[str, ...], str]) -> None:
        parent, self.norms, self.activation = state
        self.parent = _gone if parent is None else weakref.ref(parent)


def _gone() -> None:
    """The parent of a part that was copied alone."""


class PairedGroupNorm(GroupNormSiLU):
    """A GroupNorm that also applies the activation which its model calls next, as long as their pair holds."""

    _fastdiff_pair: Pair

    def forward(self, input: Tensor) -> Tensor:  # type: ignore[override]
        """input: [B, C, ...]. Returns a tensor like it."""
        input = arranged(input)
        activation = self.activation if self._fastdiff_pair.holds() else "none"
        if leaves(input):
            return COMPOSED[activation](nn.GroupNorm.forward(self, input))
        return ops.group_norm_silu(
            input, self.num_groups, self.weight, self.bias, self.eps, activation=activation
        )


class PairedGroupNormSiLU(PairedGroupNorm):
    """A GroupNorm that also applies the SiLU which its model calls next."""


class PairedGroupNormGELU(PairedGroupNorm):
    """A GroupNorm that also applies the GELU which its model calls next."""

    activation = "gelu"


class AppliedSiLU(nn.SiLU):
    """The SiLU of a PairedGroupNormSiLU, which has applied it as long as their pair holds."""

    _fastdiff_pair: Pair

    def forward(self, input: Tensor) -> Tensor:
        """input itself."""
        return input if self._fastdiff_pair.holds() else super().forward(input)


class AppliedGELU(nn.GELU):
    """The GELU of a PairedGroupNormGELU, which has applied it as long as their pair holds."""

    _fastdiff_pair: Pair

    def forward(self, input: Tensor) -> Tensor:
        """input itself."""
        return input if self._fastdiff_pair.holds() else super().forward(input)


PAIRED: dict[str, tuple[type[nn.Module], type[nn.Module]]] = {
    "silu": (PairedGroupNormSiLU, AppliedSiLU),
    "gelu": (PairedGroupNormGELU, AppliedGELU),
}
"""activation -> the classes of the norm and of the activation of a fused pair."""

COMPOSED: dict[str, Callable[[Tensor], Tensor]] = {"silu": F.silu, "gelu": F.gelu, "none": lambda x: x}

PLAIN: dict[type[nn.Module], type[nn.Module]] = {
    FusedGroupNorm: nn.GroupNorm,
    PairedGroupNormSiLU: nn.GroupNorm,
    PairedGroupNormGELU: nn.GroupNorm,
    AppliedSiLU: nn.SiLU,
    AppliedGELU: nn.GELU,
}
"""Our classes -> what they were."""


def activation_of(module: nn.Module | None) -> str | None:
    """The name that ops.group_norm_silu has for what this module computes, or None."""
    kind = type(module)
    if kind is nn.SiLU:
        return "silu"
    if kind is nn.GELU and module.approximate == "none":  # type: ignore[union-attr]
        return "gelu"
    return None


def untouched(module: nn.Module) -> bool:
    """Whether calling this module runs its class's forward and nothing else: no hooks, no forward of its own."""
    return not (module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__)


def runs_class(module: nn.Module) -> bool:
    """Whether this module's forward is its class's, or what offloading put around that."""
    own = module.__dict__
    return "forward" not in own or "_hf_hook" in own or "_diffusers_hook" in own
