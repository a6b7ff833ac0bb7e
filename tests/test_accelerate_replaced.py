"""Parts of accelerated models that are replaced, hooked or offloaded afterwards: what it computes stays right."""

from __future__ import annotations

import copy
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("diffusers")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

from diffusers.hooks import HookRegistry, ModelHook
from diffusers.models import resnet
from diffusers.models.autoencoders.autoencoder_kl_hunyuan_video import HunyuanVideoResnetBlockCausal3D

from accelerated import small_ones_too  # noqa: F401 - a fixture
from fastdiff.patching import accelerate, fusing, restore
from tiny_parts import TEXT, text, unet


@torch.no_grad()
def denoised(model: Any) -> Tensor:
    output: Tensor = model(text(2, 4, 16, 16), 3, text(2, 7, TEXT)).sample
    return output


def alike(actual: Tensor, expected: Tensor) -> bool:
    return bool((actual - expected).abs().max() <= 1e-5 * expected.abs().max())


def norm(model: Any) -> None:
    torch.manual_seed(5)
    made = nn.GroupNorm(model.conv_norm_out.num_groups, model.conv_norm_out.num_channels)
    nn.init.normal_(made.weight)
    model.conv_norm_out = made


def activation(model: Any) -> None:
    model.conv_act = nn.ReLU()


def forward_of_the_norm(model: Any) -> None:
    model.conv_norm_out.forward = lambda x: x * 2


def forward_of_the_activation(model: Any) -> None:
    model.conv_act.forward = torch.relu


def doubling(model: Any) -> None:
    model.conv_norm_out.register_forward_hook(lambda module, given, made: made * 2)


def before_the_activation(model: Any) -> None:
    model.conv_act.register_forward_pre_hook(lambda module, given: (given[0] * 2,))


CHANGES = [norm, activation, forward_of_the_norm, forward_of_the_activation, doubling, before_the_activation]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_pair_of_which_one_is_changed(change: Any) -> None:
    theirs, ours = unet().eval(), accelerate(unet().eval())
    assert fusing.fused(ours)["norm and activation"] == 1
    change(theirs), change(ours)
    expected = denoised(theirs)
    assert alike(denoised(ours), expected)
    assert alike(denoised(accelerate(ours)), expected)
    assert ("norm and activation" in fusing.fused(ours)) == (change is norm)  # accelerate pairs the new one
    assert torch.equal(denoised(restore(ours)), expected)
    assert "_fastdiff_pair" not in vars(ours.conv_act)


@torch.no_grad()
def test_one_of_two_norms_before_an_activation() -> None:
    def block() -> Any:
        torch.manual_seed(0)
        return HunyuanVideoResnetBlockCausal3D(8, 16, groups=4).eval()

    theirs, ours, x = block(), accelerate(block()), torch.randn(1, 8, 3, 4, 4)
    theirs.norm1, ours.norm1 = nn.Identity(), nn.Identity()
    assert alike(ours(x), theirs(x))


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "pickle"]
)
def test_copies_have_pairs_of_their_own(copied: Any) -> None:
    ours = accelerate(unet().eval())
    expected, x = denoised(ours), text(2, 32, 4, 4)
    other = copied(ours)
    assert torch.equal(denoised(other), expected)
    other.conv_norm_out = nn.GroupNorm(8, 32)
    theirs = unet().eval()
    theirs.conv_norm_out = nn.GroupNorm(8, 32)
    assert alike(denoised(other), denoised(theirs))
    assert torch.equal(denoised(ours), expected)
    part, act = copied(ours.conv_norm_out), copied(ours.conv_act)
    assert torch.allclose(part(x), theirs.conv_norm_out(x), atol=1e-5)
    assert torch.equal(act(x), nn.functional.silu(x))


def block_of() -> resnet.ResnetBlock2D:
    torch.manual_seed(0)
    return resnet.ResnetBlock2D(in_channels=16, groups=4, temb_channels=12).eval()


BLOCK_CHANGES = {
    "a hook before the nonlinearity": lambda b: b.nonlinearity.register_forward_pre_hook(
        lambda m, x: (x[0] * 0.5,)
    ),
    "the nonlinearity's forward": lambda b: setattr(b.nonlinearity, "forward", torch.tanh),
    "a norm's forward": lambda b: setattr(b.norm1, "forward", lambda x: x * 0.5),
    "the other norm's forward": lambda b: setattr(b.norm2, "forward", lambda x: x * 0.5),
}


@pytest.mark.parametrize("name", BLOCK_CHANGES)
@torch.no_grad()
def test_what_is_put_on_the_parts_of_a_block(name: str) -> None:
    theirs, ours = block_of(), accelerate(block_of())
    x, temb = text(2, 16, 8, 8), text(2, 12)
    BLOCK_CHANGES[name](theirs), BLOCK_CHANGES[name](ours)
    assert alike(ours(x, temb), theirs(x, temb))


class Passing(ModelHook):
    """diffusers' hooks, of which offloading by groups and layerwise casting are made."""

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return self.fn_ref.original_forward(*args, **kwargs)


def by_accelerate(model: nn.Module) -> None:
    pytest.importorskip("accelerate").cpu_offload(model, torch.device("cpu"), offload_buffers=True)


def by_accelerate_and_off_again(model: nn.Module) -> None:
    hooks = pytest.importorskip("accelerate.hooks")
    hooks.add_hook_to_module(model.conv_norm_out, hooks.ModelHook())
    hooks.remove_hook_from_module(model, recurse=True)


def by_diffusers(model: nn.Module) -> None:
    for module in model.modules():
        HookRegistry.check_if_exists_or_initialize(module).register_hook(Passing(), "passing")


@pytest.mark.parametrize(
    "hook", [by_accelerate, by_accelerate_and_off_again, by_diffusers], ids=lambda h: h.__name__
)
def test_restore_reaches_under_hooks_put_on_after_accelerate(hook: Any) -> None:
    expected, model = denoised(unet().eval()), accelerate(unet().eval())
    hook(model)
    assert alike(denoised(model), expected)
    restore(model)
    assert torch.equal(denoised(model), expected)
