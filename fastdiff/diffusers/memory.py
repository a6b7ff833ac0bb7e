"""Memory: what is found once for a scheduler's state, and known again when set_timesteps leads back to that state."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fastdiff.diffusers.tracing import plain_copy

if TYPE_CHECKING:
    from fastdiff.diffusers.plans import Found

ELSEWHERE = {"_step_index", "_begin_index", "_run", "_fresh", "_plain", "counter", "is_scale_input_called"}
"""Attributes of a scheduler that say where its loop stands: no step depends on them."""
SMALL = 4096
"""Elements up to which tensors are compared rather than hashed anew."""


@dataclass(eq=False)
class Memory:
    """What is found once for a scheduler's state. plain: diffusers' own scheduler in that state, on the CPU, for copies
    to be stepped; times: its timesteps; path: the Brownian path of the loop; versions: of the scheduler's tensors;
    state: its attributes."""

    plain: Any
    times: list[float]
    key: Hashable
    plans: dict[Hashable, Found] = field(default_factory=dict)
    path: Any = None
    output_class: tuple[type, list[str]] | None = None
    versions: tuple[tuple[Tensor, int], ...] = ()
    state: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, state: Mapping[str, Any], base: type) -> Memory:
        """state: the attributes of the scheduler itself, watched for changes in place; base: diffusers' class."""
        plain = plain_copy(state, base)
        times = getattr(plain, "timesteps", None)
        if "counter" in vars(plain):
            plain.counter = 0  # PNDM's: a plan starts with its loop
        return cls(
            plain,
            [] if times is None else times.tolist(),
            state_key(plain),
            versions=_versions(state),
            state=_standing(state),
        )

    def again(self, state: Mapping[str, Any]) -> Memory | None:
        """The same for a new loop of a scheduler in this state; None where its steps might be others."""
        standing, known = _standing(state), self.state
        if standing.keys() != known.keys() or self.outdated():
            return None
        if not all(_alike(value, known[name]) for name, value in standing.items()):
            return None
        made = copy.copy(self)
        made.path, made.versions, made.state = None, _versions(state), standing
        return made

    def outdated(self) -> bool:
        """Whether somebody has written into the scheduler's tensors since."""
        return [tensor._version for tensor, _ in self.versions] != [version for _, version in self.versions]

    def copy(self, begin: int) -> Any:
        """A scheduler to be stepped from step `begin`."""
        plain = plain_copy(vars(self.plain), type(self.plain))
        if hasattr(plain, "_step_index"):
            plain._step_index = begin
        if hasattr(plain, "is_scale_input_called"):
            plain.is_scale_input_called = True  # it would warn
        return plain


def _versions(state: Mapping[str, Any]) -> tuple[tuple[Tensor, int], ...]:
    watched = [value for value in state.values() if isinstance(value, Tensor) and not value.is_inference()]
    return tuple((tensor, tensor._version) for tensor in watched)


def _standing(state: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes that steps depend on, as they are now: lists and arrays are copied, tensors have versions."""
    return {
        name: copy.copy(value) if isinstance(value, list | np.ndarray) else value
        for name, value in state.items()
        if name not in ELSEWHERE
    }


def _alike(one: Any, other: Any) -> bool:
    """Whether two values of an attribute are surely the same to every step."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and _equal(one, other)
    if one is other and not isinstance(one, list | np.ndarray):
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_alike, one, other))
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    return isinstance(one, bool | int | float | str) and bool(one == other)


def _equal(one: Tensor, other: Tensor) -> bool:
    """The same for tensors, nothing of which was written to since their versions were noted."""
    if one.is_inference() or other.is_inference():
        return False  # nobody can tell
    if one is other:
        return True
    same = one.dtype == other.dtype and one.device == other.device and one.shape == other.shape
    return same and one.numel() <= SMALL and not one.is_meta and torch.equal(one, other)


def state_key(plain: Any) -> Hashable:
    """All that a scheduler's steps depend on."""
    state = {
        name: value
        for name, value in vars(plain).items()
        if name not in ELSEWHERE and name != "_internal_dict"
    }
    functions = tuple(
        value for value in dict(plain.config).values() if callable(value)
    )  # kept, for their identity
    attributes = ((name, _frozen(value)) for name, value in state.items())
    return (type(plain), repr(dict(plain.config)), functions, *attributes)


def _frozen(value: Any) -> Hashable:
    if isinstance(value, Tensor):
        flat = value.detach().cpu().reshape(-1).contiguous().view(torch.uint8)
        return value.dtype, tuple(value.shape), hashlib.blake2b(flat.numpy().tobytes()).digest()
    if isinstance(value, np.ndarray):
        return value.tobytes()
    if isinstance(value, (list, tuple)):
        return tuple(_frozen(item) for item in value)
    return value if isinstance(value, int | float | str) else None
