"""The denoisers of a pipeline as CUDA graphs: fastdiff.graphs.graphed in the place of their forward."""

from __future__ import annotations

from torch import nn

from fastdiff.graphs import Graphed, graphed

DENOISERS = ("unet", "transformer", "transformer_2", "prior", "controlnet", "model")
"""The names of the components that are called at every step; "model" is one given by itself."""


def graph(model: nn.Module) -> None:
    """Replays model's forward from graphs where that can be. Nothing where it does already, or where something else has
    taken its forward's place."""
    if "forward" not in vars(model):
        model.forward = graphed(model)


def ungraph(model: nn.Module) -> None:
    """Gives the model its own forward back."""
    if is_graphed(model):
        del model.forward
    hooked = vars(model).get("_old_forward")  # where accelerate's hooks keep what they took the place of
    if isinstance(hooked, Graphed):
        model._old_forward = hooked.forward  # type: ignore[assignment]


def is_graphed(model: nn.Module) -> bool:
    """Whether graph was called on this model."""
    return isinstance(vars(model).get("forward"), Graphed)
