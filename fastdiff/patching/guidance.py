"""The denoisers' outputs handed on as fastdiff.lazy_guidance's, so that the step combines the branches of guidance."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastdiff.graphs.watch import GRAPH_SAFE
from fastdiff.lazy_guidance import handed

DENOISERS = ("unet", "transformer", "transformer_2", "prior", "decoder")
"""The names of the components whose output goes through guidance to a scheduler."""


def hand_on(model: nn.Module, inputs: Any, output: Any) -> Any:
    """A forward hook: what a model returns, its image handed on."""
    if torch.compiler.is_compiling():
        return None
    if type(output) is tuple and len(output) == 1:
        return (handed(output[0]),)
    image = getattr(output, "sample", None)
    if isinstance(image, Tensor) and isinstance(output, dict):
        output["sample"] = handed(image)
    return None


setattr(hand_on, GRAPH_SAFE, True)


def arrange(model: nn.Module) -> None:
    """Hands this model's outputs on from here on."""
    if not is_arranged(model):
        model.register_forward_hook(hand_on)


def put_back(model: nn.Module) -> None:
    """Leaves this model's outputs alone."""
    for each in (model, getattr(model, "_orig_mod", model)):  # compiled since, it has the hook inside
        for number, hook in list(each._forward_hooks.items()):
            if hook is hand_on:
                del each._forward_hooks[number]


def is_arranged(model: nn.Module) -> bool:
    """Whether this model's outputs are handed on."""
    return any(hook is hand_on for hook in model._forward_hooks.values())
