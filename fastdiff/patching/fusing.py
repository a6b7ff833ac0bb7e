"""Which modules of a model are given the classes of `norms` and `blocks`, and back."""

from __future__ import annotations

import types
from collections import Counter
from collections.abc import Iterator
from typing import Any, cast

import diffusers
from torch import nn

from fastdiff.patching import blocks, structure
from fastdiff.patching.norms import PAIRED, PLAIN, FusedGroupNorm, Pair, activation_of, untouched

ATTENTION = {
    "Attention": "group_norm",
    "AttentionBlock": "group_norm",
    "Transformer2DModel": "norm",
    "TransformerSpatioTemporalModel": "norm",
    "TransformerTemporalModel": "norm",
    "AnimateDiffTransformer3D": "norm",
}
"""diffusers' classes that begin with a GroupNorm without an activation -> its name."""

CONDITIONED = "ResnetBlockCondNorm2D"
PAIR = "_fastdiff_pair"
"""The attribute of norms and activations that holds their Pair."""

UNDONE = PLAIN | {ours: theirs for theirs, ours in blocks.FUSED.items()}


def fuse(model: nn.Module) -> None:
    """Gives the norms, activations and residual blocks in this model our classes, wherever that computes the same."""
    for module in model.modules():
        pair = vars(module).get(PAIR)
        if pair is not None and not pair.holds():
            _plain(module)
    shared = _shared(model)
    for parent in list(model.modules()):
        for norms, activation in _pairs(parent):
            if _is_pair(norms, activation, shared):
                _join(parent, norms, activation)
        if type(parent) in blocks.FUSED and why_not_fused(parent) is None:
            parent.norm1.__class__ = parent.norm2.__class__ = FusedGroupNorm
            parent.__class__ = blocks.FUSED[type(parent)]
        lone = getattr(parent, ATTENTION.get(type(parent).__name__, ""), None)
        if type(lone) is nn.GroupNorm and untouched(lone):
            lone.__class__ = FusedGroupNorm


def unfuse(model: nn.Module) -> None:
    """Gives every module of this model the class it had before fuse."""
    for module in model.modules():
        if type(module) in UNDONE:
            _plain(module)


def fused(model: nn.Module) -> dict[str, int]:
    """What of this model is fused: a name for each kind -> how many."""
    found: Counter[str] = Counter()
    for parent in model.modules():
        if type(parent) in blocks.FUSED.values():
            found["residual blocks"] += 1
        else:
            found["norms alone"] += sum(type(child) is FusedGroupNorm for child in parent.children())
        paired = [type(child) for child in parent.children() if type(child) in _PAIRED_NORMS]
        found["norm and activation"] += len(paired)
    return {name: count for name, count in found.items() if count}


def left_alone(model: nn.Module) -> dict[str, int]:
    """Why norms of this model stay as they are: a reason -> how many modules."""
    found: Counter[str] = Counter()
    for parent in model.modules():
        name = type(parent).__name__
        if type(parent) in blocks.FUSED:
            found[f"{name}: {why_not_fused(parent)}"] += 1
        elif name == CONDITIONED:
            found[f"{name}: its norm is {type(parent.norm1).__name__}"] += 1
        else:
            plain = sum(type(child) is nn.GroupNorm for child in parent.children())
            if plain:
                found[f"GroupNorm in {name}: no activation that is its alone follows"] += plain
    return dict(found)


def why_not_fused(block: Any) -> str | None:
    """Why this residual block of diffusers is left alone, or None."""
    for name in ("norm1", "norm2"):
        if type(getattr(block, name, None)) is not nn.GroupNorm:
            return f"its {name} is {type(getattr(block, name, None)).__name__}"
    if activation_of(block.nonlinearity) is None:
        return f"no kernel for its nonlinearity, {type(block.nonlinearity).__name__}"
    if not structure.is_known(cast(Any, type(block))):
        return f"its forward in diffusers {diffusers.__version__} is not one that was compared with ours"
    if not all(map(untouched, (block, block.norm1, block.norm2, block.nonlinearity))):
        return "it has hooks: accelerate first, add them afterwards"
    return None


_PAIRED_NORMS = frozenset(norm for norm, _ in PAIRED.values())


def _join(parent: nn.Module, norms: list[nn.Module], activation: nn.Module) -> None:
    """Gives a pair our classes."""
    names = {id(child): name for name, child in parent._modules.items()}
    pair = Pair(parent, tuple(names[id(norm)] for norm in norms), names[id(activation)])
    ours, applied = PAIRED[activation_of(activation) or ""]
    for module in (*norms, activation):
        module.__class__ = applied if module is activation else ours
        setattr(module, PAIR, pair)


def _plain(module: nn.Module) -> None:
    """Gives a module of ours the class it had, also where hooks keep its forward to call it."""
    ours = type(module)
    module.__class__ = UNDONE.get(ours, ours)
    own = vars(module)
    own.pop(PAIR, None)
    registry = own.get("_diffusers_hook")
    holders = [own, *(vars(reference) for reference in getattr(registry, "_fn_refs", ()))]
    for holder in holders:
        for name in ("forward", "_old_forward", "original_forward"):
            kept = holder.get(name)
            if isinstance(kept, types.MethodType) and kept.__func__ is ours.forward:
                holder[name] = types.MethodType(type(module).forward, module)


def _shared(model: nn.Module) -> set[int]:
    """The modules that stand in more than one place."""
    places = Counter(id(child) for parent in model.modules() for child in parent._modules.values())
    return {each for each, count in places.items() if count > 1}


def _pairs(parent: nn.Module) -> Iterator[tuple[list[nn.Module], nn.Module]]:
    """(norms, activation) among the children of this module: each norm is only ever called right before the
    activation, and the activation right after one of the norms."""
    children = parent._modules
    if not any(type(child) is nn.GroupNorm for child in children.values()):
        return
    if type(parent) is nn.Sequential:
        yield from (([norm], activation) for norm, activation in zip(list(parent), list(parent)[1:]))
        return
    for name, norms in structure.pairs(cast(Any, type(parent))).items():
        activation, before = children.get(name), [children.get(norm) for norm in norms]
        if activation is not None:
            yield [norm for norm in before if norm is not None], activation


def _is_pair(norms: list[nn.Module], activation: nn.Module, shared: set[int]) -> bool:
    """Whether these are plain GroupNorms and an activation with a kernel, each in one place and without hooks."""
    if (
        activation_of(activation) is None
        or not norms
        or any(type(norm) is not nn.GroupNorm for norm in norms)
    ):
        return False
    return all(untouched(module) and id(module) not in shared for module in (*norms, activation))
