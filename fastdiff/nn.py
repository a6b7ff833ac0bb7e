"""Modules on top of the ops."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

from fastdiff import ops
from fastdiff.reference import ACTIVATIONS

Norm = TypeVar("Norm", bound="_GroupNorm")


class _GroupNorm(nn.GroupNorm):
    """nn.GroupNorm and an activation: its constructor, parameters and their names, so state dicts load unchanged."""

    activation = "silu"

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str = "silu",
    ) -> None:
        """activation: "silu", "gelu" or "none"; ValueError for another."""
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation is {activation!r}: choose one of {', '.join(ACTIVATIONS)}")
        super().__init__(num_groups, num_channels, eps, affine, device, dtype)
        self.activation = activation

    @classmethod
    def from_group_norm(cls: type[Norm], norm: nn.GroupNorm, *, activation: str = "silu") -> Norm:
        """A module that shares norm's parameters."""
        with torch.device("meta"):  # the parameters made here are replaced at once
            module = cls(norm.num_groups, norm.num_channels, norm.eps, norm.affine, activation=activation)
        module.weight, module.bias = norm.weight, norm.bias
        return module.train(norm.training)

    def extra_repr(self) -> str:
        """nn.GroupNorm's, and the activation."""
        return f"{super().extra_repr()}, activation={self.activation}"


class GroupNormSiLU(_GroupNorm):
    """act(group_norm(x + add)*(1 + scale) + shift) in one kernel.

    It takes the place of nn.Sequential(nn.GroupNorm(...), nn.SiLU()); add is a residual block's time embedding, scale
    and shift its modulation. x: [B, C, ...]; the output has x's dtype, shape and memory format. Raises as
    ops.group_norm_silu does.
    """

    def forward(
        self,
        input: Tensor,
        add: Tensor | None = None,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
    ) -> Tensor:
        """input: [B, num_channels, ...]; add, scale, shift: [B, num_channels]. Returns a tensor like input."""
        return ops.group_norm_silu(
            input, self.num_groups, self.weight, self.bias, self.eps,
            add=add, scale=scale, shift=shift, activation=self.activation,
        )  # fmt: skip


class AddGroupNormSiLU(_GroupNorm):
    """The end of one residual block and the start of the next: x + residual and its GroupNormSiLU, in one kernel."""

    def forward(  # type: ignore[override]  # two tensors in, two out
        self,
        input: Tensor,
        residual: Tensor,
        add: Tensor | None = None,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """input, residual: [B, num_channels, ...]. Returns the sum and the normalised sum, both like input."""
        return ops.add_group_norm_silu(
            input, residual, self.num_groups, self.weight, self.bias, self.eps,
            add=add, scale=scale, shift=shift, activation=self.activation,
        )  # fmt: skip
