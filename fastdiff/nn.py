"""Modules on top of the ops."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastdiff import ops


class GroupNormSiLU(nn.GroupNorm):
    """silu(group_norm(x)) in one kernel: takes the place of nn.Sequential(nn.GroupNorm(...), nn.SiLU()).

    Its parameters, their names and its constructor are those of nn.GroupNorm, so state dicts load unchanged.
    x: [B, C, ...]; the output has x's dtype, shape and memory format. Raises as ops.group_norm_silu does.
    """

    def forward(self, input: Tensor) -> Tensor:
        """silu(group_norm(input)). input: [B, num_channels, ...]."""
        return ops.group_norm_silu(input, self.num_groups, self.weight, self.bias, self.eps)

    @classmethod
    def from_group_norm(cls, norm: nn.GroupNorm) -> GroupNormSiLU:
        """A module that shares norm's parameters."""
        with torch.device("meta"):  # the parameters made here are replaced at once
            module = cls(norm.num_groups, norm.num_channels, norm.eps, norm.affine)
        module.weight, module.bias = norm.weight, norm.bias
        return module.train(norm.training)
