"""Channels-last for the convolutions of a model, and back to exactly what they were."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

CHOICES = ("auto", "keep", "channels_last")
MARK = "_fastdiff_channels_last"


def arrange(model: nn.Module, choice: str) -> None:
    """Lays the model's 2-D convolutions out channels-last where `choice` says so and nothing speaks against it."""
    wanted = choice == "channels_last" or (choice == "auto" and pays(model))
    if wanted and why_not(model) is None and not is_arranged(model):
        for weight in _weights(model):
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)
        setattr(model, MARK, True)


def put_back(model: nn.Module) -> None:
    """Undoes arrange: every weight has its strides of before."""
    if is_arranged(model):
        for weight in _weights(model):
            # not .contiguous(), which leaves the strides of a 1x1 kernel as they are
            weight.data = torch.empty_like(weight.data, memory_format=torch.contiguous_format).copy_(
                weight.data
            )
        delattr(model, MARK)


def is_arranged(model: nn.Module) -> bool:
    """Whether arrange has laid this model out."""
    return bool(getattr(model, MARK, False))


def pays(model: nn.Module) -> bool:
    """Whether channels-last makes convolutions faster where this model is: in half precision on CUDA, whose matrix
    units work in that order (PyTorch's channels-last guide). On CPUs the difference was within the noise."""
    weight = next(_weights(model), None)
    return weight is not None and weight.is_cuda and weight.dtype in (torch.float16, torch.bfloat16)


def why_not(model: nn.Module) -> str | None:
    """Why the layout of this model is left as it is, or None."""
    weights = list(_weights(model))
    if not any(weight.shape[2] * weight.shape[3] > 1 for weight in weights):
        return "no 2-D convolutions"
    if any(type(weight.data) is not Tensor or not weight.is_floating_point() for weight in weights):
        return "its weights are quantised"
    if any(weight.is_meta for weight in weights) or any(_is_hooked(module) for module in model.modules()):
        return "it is offloaded"
    if not is_arranged(model) and any(weight.stride() != _plain_stride(weight) for weight in weights):
        return "it is laid out already"
    return None


def _weights(model: nn.Module) -> Iterator[nn.Parameter]:
    """The weights of the 2-D convolutions, each once."""
    seen: set[int] = set()
    for module in model.modules():
        weight = (
            getattr(module, "weight", None) if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)) else None
        )
        if isinstance(weight, nn.Parameter) and weight.dim() == 4 and id(weight) not in seen:
            seen.add(id(weight))
            yield weight


def _plain_stride(weight: Tensor) -> tuple[int, ...]:
    return torch.empty(weight.shape, device="meta").stride()


def _is_hooked(module: nn.Module) -> bool:
    """Whether accelerate or diffusers moves this module's weights about."""
    return hasattr(module, "_hf_hook") or hasattr(module, "_diffusers_hook")
