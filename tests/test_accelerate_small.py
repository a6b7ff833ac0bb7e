"""Where PyTorch's own code takes less time than ours, accelerated models run it: small norms on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import profile

pytest.importorskip("diffusers")

from diffusers.models import resnet

from fastdiff import ops
from fastdiff.patching import accelerate, norms

LARGE = (2, 16, 48, 48)
"""More elements than any bound."""


def calls(function: Callable[[], Any]) -> int:
    """How many of fastdiff's ops this call runs."""
    with profile() as seen:
        function()
    return sum(event.count for event in seen.key_averages() if event.key.startswith("fastdiff::"))


def fused_norm() -> nn.Module:
    model = nn.GroupNorm(4, 16).eval()
    model.__class__ = norms.FusedGroupNorm
    return model


@torch.no_grad()
def test_a_small_norm_alone_is_pytorch_s() -> None:
    norm, x = fused_norm(), torch.randn(2, 16, 8, 8)
    assert torch.equal(norm(x), F.group_norm(x, 4, norm.weight, norm.bias))
    assert calls(lambda: norm(x)) == 0
    assert calls(lambda: norm(x, activation="silu")) == 1
    assert calls(lambda: norm(x, torch.zeros(2, 16))) == 1
    assert calls(lambda: norm(x.contiguous(memory_format=torch.channels_last))) == 1
    assert calls(lambda: norm(torch.randn(LARGE))) == 1


@torch.no_grad()
@pytest.mark.parametrize("batch", [1, 2])
def test_convolutions_after_attention_get_the_layout_that_they_had(batch: int) -> None:
    """A single image comes out of attention with strides that PyTorch's norm does not take for channels-last."""
    x = torch.randn(batch, 16, 48, 48)
    attended = torch.randn(batch, 48 * 48, 16).transpose(1, 2).reshape(x.shape) + x
    for given in (x.transpose(2, 3), attended, x.contiguous(memory_format=torch.channels_last)):
        block = resnet.ResnetBlock2D(in_channels=16, temb_channels=None, groups=4).eval()
        seen: list[bool] = []
        block.conv1.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0].is_contiguous()))
        block(given, None)
        accelerate(block)(given, None)
        assert seen[0] == seen[1]


@torch.no_grad()
def test_a_compiled_block_is_ours_where_it_is_large() -> None:
    torch.manual_seed(0)
    block = accelerate(resnet.ResnetBlock2D(in_channels=16, temb_channels=12, groups=4).eval())
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    for shape, expected in (((2, 16, 8, 8), 0), (LARGE, 2)):
        x, temb = torch.randn(shape), torch.randn(2, 12)
        torch.testing.assert_close(compiled(x, temb), block(x, temb), atol=1e-5, rtol=1e-5)
        assert calls(lambda x=x, temb=temb: compiled(x, temb)) == expected


@torch.no_grad()
def test_a_compiled_pair_is_ours_where_it_is_large() -> None:
    model = accelerate(nn.Sequential(nn.GroupNorm(4, 16), nn.SiLU()).eval())
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for shape, expected in (((2, 16, 8, 8), 0), (LARGE, 1)):
        x = torch.randn(shape)
        torch.testing.assert_close(compiled(x), model(x))
        assert calls(lambda x=x: compiled(x)) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_op_that_keeps_nothing_for_a_gradient(dtype: torch.dtype) -> None:
    """Without a gradient the norm alone is returned: the same bits, and none where one is wanted."""
    x, add = torch.randn(2, 16, 8, 8).to(dtype), torch.randn(2, 16).to(dtype)
    weight, bias = (torch.randn(16).to(dtype) for _ in range(2))
    torch.library.opcheck(
        torch.ops.fastdiff.group_norm_silu_result.default,
        (x, 4, weight, bias, 1e-5, add, None, None, 1),
        test_utils=("test_schema", "test_faketensor"),
    )

    def normed(x: Tensor) -> Tensor:
        return ops.group_norm_silu(x, 4, weight, bias, add=add)

    alone = normed(x)
    recorded = normed(x.requires_grad_())
    assert alone.grad_fn is None and recorded.grad_fn is not None
    assert torch.equal(alone, recorded)
