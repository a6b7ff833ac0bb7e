"""The modules that accelerate patches: which, and that each computes what diffusers' does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("diffusers")

from diffusers.models import resnet
from diffusers.models.autoencoders.autoencoder_kl_hunyuan_video import HunyuanVideoResnetBlockCausal3D
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.models.unets.unet_3d_condition import UNet3DConditionModel

from accelerated import small_ones_too  # noqa: F401 - a fixture
from fastdiff.patching import accelerate, blocks, fusing, restore, structure

BLOCKS: dict[str, dict[str, Any]] = {
    "default": {},
    "other width": {"out_channels": 32},
    "no embedding": {"temb_channels": None},
    "a decoder's": {"temb_channels": None, "time_embedding_norm": "group"},
    "scale and shift": {"time_embedding_norm": "scale_shift"},
    "activated embedding": {"skip_time_act": True},
    "groups of its own": {"groups_out": 8, "out_channels": 24},
    "up": {"up": True},
    "down": {"down": True},
    "fir up": {"up": True, "kernel": "fir"},
    "sde down": {"down": True, "kernel": "sde_vp"},
    "scaled output": {"output_scale_factor": 1.4},
    "gelu": {"non_linearity": "gelu"},
    "two widths": {"conv_2d_out_channels": 20},
}


def block_of(**options: Any) -> resnet.ResnetBlock2D:
    """A block of 16 channels, its norms' weights not at their first values."""
    torch.manual_seed(0)
    made = resnet.ResnetBlock2D(**{"in_channels": 16, "groups": 4, "temb_channels": 12} | options)
    for norm in (made.norm1, made.norm2):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    return made.eval()


def inputs(batch: int = 2, embeddings: int | None = None) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, 16, 8, 8, generator=generator)
    return x, torch.randn(embeddings or batch, 12, generator=generator)


class OfImages(TorchDispatchMode):
    """Notes the operations on images."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(isinstance(value, Tensor) and value.dim() == 4 for value in args):
            self.seen.add(func._schema.name.split("::")[1])
        return func(*args, **(kwargs or {}))


def close(actual: Tensor, expected: Tensor) -> bool:
    return bool((actual - expected).abs().max() <= 2e-6 * expected.abs().max())


@pytest.mark.parametrize("name", BLOCKS)
@torch.no_grad()
def test_residual_blocks(name: str) -> None:
    block = block_of(**BLOCKS[name])
    x, temb = inputs()
    if block.time_emb_proj is None:
        temb = None
    before, parameters = block(x, temb), [id(p) for p in block.parameters()]
    accelerate(block)
    assert type(block) is blocks.ResnetBlock2D
    assert type(block).__name__ == "ResnetBlock2D"
    with OfImages() as ops:
        assert close(block(x, temb), before)
    assert not ops.seen & {"native_group_norm", "silu", "gelu"} and "group_norm_silu_result" in ops.seen
    assert [id(p) for p in block.parameters()] == parameters
    restore(block)
    assert type(block) is resnet.ResnetBlock2D
    assert torch.equal(block(x, temb), before)


@torch.no_grad()
def test_one_embedding_for_the_whole_batch() -> None:
    for way in ("default", "scale_shift"):
        block = block_of(time_embedding_norm=way)
        x, temb = inputs(4, 1)
        before = block(x, temb)
        assert close(accelerate(block)(x, temb), before)


@torch.no_grad()
def test_temporal_blocks() -> None:
    torch.manual_seed(0)
    for width, channels in ((32, 12), (64, 12), (32, None)):
        block = resnet.TemporalResnetBlock(32, width, temb_channels=channels).eval()
        x, temb = torch.randn(2, 32, 3, 4, 4), torch.randn(2, 3, 12)
        before = block(x, temb)
        accelerate(block)
        assert type(block) is blocks.TemporalResnetBlock
        assert close(block(x, temb), before)


@torch.no_grad()
def test_blocks_whose_activation_only_follows_norms() -> None:
    torch.manual_seed(0)
    block = HunyuanVideoResnetBlockCausal3D(8, 16, groups=4).eval()
    x = torch.randn(1, 8, 3, 4, 4)
    before = block(x)
    accelerate(block)
    assert fusing.fused(block) == {"norm and activation": 2}
    assert close(block(x), before)
    restore(block)
    assert torch.equal(block(x), before)


@torch.no_grad()
def test_sequences_of_norm_and_activation() -> None:
    torch.manual_seed(0)
    layer = resnet.TemporalConvLayer(8, norm_num_groups=4).eval()
    nn.init.normal_(layer.conv4[-1].weight)
    x = torch.randn(6, 8, 4, 4)
    before = layer(x, 3)
    accelerate(layer)
    assert fusing.fused(layer) == {"norm and activation": 4}
    assert close(layer(x, 3), before)


@pytest.mark.parametrize("options", [{"non_linearity": "mish"}, {"non_linearity": "relu"}])
def test_activations_without_a_kernel_are_left_alone(options: dict[str, str]) -> None:
    block = block_of(**options)
    accelerate(block)
    assert type(block) is resnet.ResnetBlock2D
    assert "nonlinearity" in str(block.report)


def test_norms_of_another_kind_are_left_alone() -> None:
    block = resnet.ResnetBlockCondNorm2D(in_channels=32, temb_channels=12)
    accelerate(block)
    assert type(block) is resnet.ResnetBlockCondNorm2D
    assert "AdaGroupNorm" in str(block.report)


def test_a_forward_that_is_not_known_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(structure, "KNOWN", {})
    structure.is_known.cache_clear()
    block = accelerate(block_of())
    structure.is_known.cache_clear()
    assert type(block) is resnet.ResnetBlock2D
    assert "not one that was compared" in str(block.report)


def test_a_subclass_is_left_alone() -> None:
    class Mine(resnet.ResnetBlock2D):
        def forward(self, x: Tensor, temb: Tensor) -> Tensor:
            return super().forward(x, temb) * 2

    block = Mine(in_channels=16, groups=4, temb_channels=12)
    assert type(accelerate(block)) is Mine


def test_the_installed_diffusers_is_known() -> None:
    assert structure.is_known(resnet.ResnetBlock2D)
    assert structure.is_known(resnet.TemporalResnetBlock)
    for kind in (UNet2DConditionModel, UNet3DConditionModel):
        assert structure.pairs(kind) == {"conv_act": ("conv_norm_out",)}


@torch.no_grad()
def test_hooks_on_the_parts_see_what_they_saw() -> None:
    block = block_of()
    x, temb = inputs()
    seen: list[Tensor] = []
    accelerate(block)
    with block.norm1.register_forward_hook(lambda module, given, made: seen.append(made)):
        block(x, temb)
    assert torch.allclose(
        seen[0], nn.functional.group_norm(x, 4, block.norm1.weight, block.norm1.bias, 1e-6), atol=1e-5
    )


@torch.no_grad()
def test_hooks_there_before_are_respected() -> None:
    block = block_of()
    block.norm1.register_forward_hook(lambda module, given, made: made * 2)
    x, temb = inputs()
    before = block(x, temb)
    assert torch.equal(accelerate(block)(x, temb), before)
    assert "hooks" in str(block.report)


@torch.no_grad()
def test_a_part_that_is_replaced_later_is_used() -> None:
    for name, part in (("nonlinearity", nn.Mish()), ("norm2", nn.Identity()), ("norm1", nn.GroupNorm(2, 16))):
        ours, theirs = accelerate(block_of()), block_of()
        x, temb = inputs()
        setattr(ours, name, part)
        setattr(theirs, name, part)
        assert close(ours(x, temb), theirs(x, temb)), name


@torch.no_grad()
def test_a_model_whose_source_is_out_of_reach_is_left_alone() -> None:
    space: dict[str, Any] = {"nn": nn}
    exec(
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.norm, self.act = nn.GroupNorm(2, 4), nn.SiLU()\n"
        "    def forward(self, x):\n"
        "        x = self.norm(x)\n"
        "        x = self.act(x)\n"
        "        return x\n",
        space,
    )
    net = space["Net"]()
    accelerate(net)
    assert type(net.norm) is nn.GroupNorm


class Reused(nn.Module):
    """An activation that also follows something else."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.act, self.proj = nn.GroupNorm(2, 4), nn.SiLU(), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        x = self.act(x)
        x = self.proj(x)
        x = self.act(x)
        return x


class Peeked(nn.Module):
    """A norm whose result is used before the activation."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.act = nn.GroupNorm(2, 4), nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        y = x * 2
        x = self.act(x)
        return x + y


class Helped(nn.Module):
    """A norm that another method calls as well."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.act = nn.GroupNorm(2, 4), nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        x = self.act(x)
        return x

    def normalised(self, x: Tensor) -> Tensor:
        return self.norm(x)


class Shared(nn.Module):
    """Two models that share an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.GroupNorm(2, 4), Reused()
        self.act = self.second.act

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = self.act(x)
        return self.second(x)


@pytest.mark.parametrize("kind", [Reused, Peeked, Helped, Shared])
@torch.no_grad()
def test_norms_and_activations_that_are_not_pairs_are_left_alone(kind: type[nn.Module]) -> None:
    model = kind()
    x = torch.randn(1, 4, 3, 3)
    before = model(x)
    accelerate(model)
    assert torch.equal(model(x), before)
    assert not fusing.fused(model)
