"""The classes that norms and activations of an accelerated model are given; parameters and their names stay.

Each is used by setting a module's __class__, so that state dicts, hooks, adapters and optimizers see the same module.
"""

from __future__ import annotations

from torch import Tensor, nn

from fastdiff import ops
from fastdiff.nn import GroupNormSiLU


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
        return ops.group_norm_silu(
            input, self.num_groups, self.weight, self.bias, self.eps,
            add=add, scale=scale, shift=shift, activation=activation,
        )  # fmt: skip


class PairedGroupNormSiLU(GroupNormSiLU):
    """A GroupNorm that also applies the SiLU which its model calls next."""


class PairedGroupNormGELU(GroupNormSiLU):
    """A GroupNorm that also applies the GELU which its model calls next."""

    activation = "gelu"


class AppliedSiLU(nn.SiLU):
    """The SiLU of a PairedGroupNormSiLU, which has applied it."""

    def forward(self, input: Tensor) -> Tensor:
        """input itself."""
        return input


class AppliedGELU(nn.GELU):
    """The GELU of a PairedGroupNormGELU, which has applied it."""

    def forward(self, input: Tensor) -> Tensor:
        """input itself."""
        return input


PAIRED: dict[str, tuple[type[nn.Module], type[nn.Module]]] = {
    "silu": (PairedGroupNormSiLU, AppliedSiLU),
    "gelu": (PairedGroupNormGELU, AppliedGELU),
}
"""activation -> the classes of the norm and of the activation of a fused pair."""

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
    return not (module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))
