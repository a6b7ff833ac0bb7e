"""diffusers' residual blocks with each norm, what is around it and its activation in one kernel.

Subclasses by the same name (device maps and repeated-block compilation go by class names) whose forward does what
diffusers' does; `known` says for which of diffusers' forwards that has been established. Each call first looks whether
the block still has the parts it was patched with and enough to do, and otherwise runs diffusers' forward.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models import resnet
from torch import Tensor, nn

from fastdiff.patching.norms import FusedGroupNorm, activation_of, arranged, leaves, runs_class, untouched

Conditioning = tuple[Tensor | None, Tensor | None, Tensor | None]


class ResnetBlock2D(resnet.ResnetBlock2D):
    """diffusers' ResnetBlock2D: norm1 and norm2 take in the time embedding, as a sum or as scale and shift, and the
    nonlinearity."""

    def forward(self, input_tensor: Tensor, temb: Tensor | None, *args: Any, **kwargs: Any) -> Tensor:
        """input_tensor: [B, C, H, W]; temb: [B, time channels] or None. Returns [B, out channels, H, W]."""
        input_tensor = arranged(input_tensor)
        activation = None if leaves(input_tensor) else _fused_activation(self)
        if activation is None or args or kwargs or not self._takes(temb):
            output: Tensor = super().forward(input_tensor, temb, *args, **kwargs)  # type: ignore[arg-type]
            return output
        hidden = self.norm1(input_tensor, None, None, None, activation)
        if self.upsample is not None:
            if hidden.shape[0] >= 64:  # as diffusers: its upsampling is for contiguous tensors there
                input_tensor, hidden = input_tensor.contiguous(), hidden.contiguous()
            input_tensor, hidden = self.upsample(input_tensor), self.upsample(hidden)
        elif self.downsample is not None:
            input_tensor, hidden = self.downsample(input_tensor), self.downsample(hidden)
        hidden = self.conv1(hidden)
        add, scale, shift = self._conditioning(temb, hidden)
        hidden = self.norm2(hidden, add, scale, shift, activation)
        hidden = self.conv2(self.dropout(hidden))
        if self.conv_shortcut is not None:
            if self.training:
                input_tensor = input_tensor.contiguous()
            input_tensor = self.conv_shortcut(input_tensor)
        output = input_tensor + hidden
        return output if self.output_scale_factor == 1 else output / self.output_scale_factor

    def _takes(self, temb: Tensor | None) -> bool:
        """Whether temb is what _conditioning knows: an embedding to project, or none where none is needed."""
        projects, way = getattr(self, "time_emb_proj", None) is not None, self.time_embedding_norm
        if temb is None or not projects:
            return temb is None and not projects and way != "scale_shift"
        return temb.dim() == 2 and way in ("default", "scale_shift")

    def _conditioning(self, temb: Tensor | None, hidden: Tensor) -> Conditioning:
        """(add, scale, shift), each [B, out channels] or None."""
        if temb is None:
            return None, None, None
        temb = self.time_emb_proj(temb if self.skip_time_act else self.nonlinearity(temb))
        if temb.shape[0] != hidden.shape[0]:
            temb = temb.expand(hidden.shape[0], -1)
        if temb.dtype not in (hidden.dtype, torch.float32):
            temb = temb.to(hidden.dtype)
        if self.time_embedding_norm == "default":
            return temb, None, None
        scale, shift = temb.chunk(2, dim=1)
        return None, scale.contiguous(), shift.contiguous()  # else the op's long way copies them


class TemporalResnetBlock(resnet.TemporalResnetBlock):
    """diffusers' TemporalResnetBlock: norm1 and norm2 take in the nonlinearity. Its time embedding differs between
    frames, which a norm over all frames does not take."""

    def forward(self, input_tensor: Tensor, temb: Tensor | None) -> Tensor:
        """input_tensor: [B, C, F, H, W]; temb: [B, F, time channels] or None. Returns [B, out channels, F, H, W]."""
        input_tensor = arranged(input_tensor)
        activation = None if leaves(input_tensor) else _fused_activation(self)
        if activation is None:
            output: Tensor = super().forward(input_tensor, temb)  # type: ignore[arg-type]
            return output
        hidden = self.conv1(self.norm1(input_tensor, None, None, None, activation))
        if self.time_emb_proj is not None:
            embedded = self.time_emb_proj(self.nonlinearity(temb))
            hidden = hidden + embedded.transpose(1, 2)[:, :, :, None, None]
        hidden = self.norm2(hidden, None, None, None, activation)
        hidden = self.conv2(self.dropout(hidden))
        if self.conv_shortcut is not None:
            input_tensor = self.conv_shortcut(input_tensor)
        return input_tensor + hidden


FUSED: dict[type[nn.Module], type[nn.Module]] = {
    resnet.ResnetBlock2D: ResnetBlock2D,
    resnet.TemporalResnetBlock: TemporalResnetBlock,
}
"""diffusers' blocks -> ours."""


def _fused_activation(block: Any) -> str | None:
    """The activation that the block's norms take in, or None where a part was replaced or is watched by a hook."""
    parts = block._modules  # not by attribute: that takes nn.Module longer than the rest of this
    norm1, norm2, nonlinearity = parts.get("norm1"), parts.get("norm2"), parts.get("nonlinearity")
    if type(norm1) is not FusedGroupNorm or type(norm2) is not FusedGroupNorm:
        return None
    if norm1._forward_hooks or norm2._forward_hooks or not (runs_class(norm1) and runs_class(norm2)):
        return None
    if nonlinearity is None or not untouched(nonlinearity):
        return None
    return activation_of(nonlinearity)
