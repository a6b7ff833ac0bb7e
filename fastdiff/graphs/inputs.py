"""A call's arguments and results as trees: what a graph is keyed by, and the fixed tensors it reads and writes."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any

import torch
from torch import Tensor

from fastdiff import ops

PLAIN = (
    int,
    float,
    bool,
    str,
    bytes,
    complex,
    type(None),
    torch.dtype,
    torch.device,
    torch.Size,
    torch.memory_format,
)


def exactly(value: Any) -> Hashable:
    """A plain value, to compare by: -0.0 is not 0.0, and nan is nan."""
    return repr(value) if isinstance(value, (float, complex)) else value


class Unknown(TypeError):
    """A tree holds what is neither a tensor, a plain value nor a container of these."""


def mapped(tree: Any, of_tensor: Callable[[Tensor], Any], path: str = "") -> Any:
    """The tree with of_tensor(tensor) for each tensor: tuples (named ones too), lists, dicts and dataclass-like
    mappings (diffusers' and transformers' outputs) are entered. Raises Unknown for anything but plain values."""
    if isinstance(tree, Tensor):
        return of_tensor(tree)
    if isinstance(tree, PLAIN):
        return tree
    kind = type(tree)
    if isinstance(tree, tuple):
        items = [mapped(item, of_tensor, f"{path}[{i}]") for i, item in enumerate(tree)]
        return kind(*items) if hasattr(tree, "_fields") else kind(items)
    if kind is list:
        return [mapped(item, of_tensor, f"{path}[{i}]") for i, item in enumerate(tree)]
    if isinstance(tree, Mapping):
        pairs = {key: mapped(value, of_tensor, f"{path}[{key!r}]") for key, value in tree.items()}
        return kind(**pairs) if hasattr(tree, "__dataclass_fields__") else kind(pairs)
    raise Unknown(f"{path or 'it'} is a {kind.__name__}, which a graph cannot follow")


def described(tree: Any, leaves: list[Tensor], path: str = "") -> Hashable:
    """What a graph takes of a tree as given: its form, its plain values, its tensors' shapes, strides and dtypes.
    Appends the tensors to `leaves`. Raises Unknown for what else it holds."""
    if isinstance(tree, Tensor):
        if type(tree) is not Tensor and type(tree) is not torch.nn.Parameter:
            raise Unknown(f"{path or 'it'} is a {type(tree).__name__}, a tensor with ways of its own")
        if tree.layout != torch.strided or tree.is_neg() or tree.is_conj():
            raise Unknown(f"{path or 'it'} is not a plain strided tensor")
        leaves.append(tree)
        return tree.shape, tree.stride(), tree.dtype
    if isinstance(tree, PLAIN):
        return type(tree), exactly(tree)
    if isinstance(tree, (tuple, list)):
        items = [described(item, leaves, f"{path}[{i}]") for i, item in enumerate(tree)]
        return type(tree), *items
    if isinstance(tree, Mapping):
        pairs = [(key, described(value, leaves, f"{path}[{key!r}]")) for key, value in tree.items()]
        return type(tree), *pairs
    raise Unknown(f"{path or 'it'} is a {type(tree).__name__}, which a graph cannot follow")


def device_of(tensors: list[Tensor]) -> torch.device:
    """The device that they are on, those on the CPU aside, which are copied to it. Raises Unknown if there are two."""
    devices = {tensor.device for tensor in tensors if not tensor.is_cpu}
    if len(devices) > 1:
        raise Unknown(f"the tensors are on {' and '.join(sorted(map(str, devices)))}")
    return devices.pop() if devices else torch.device("cpu")


class Buffers:
    """A tree whose tensors are copies at fixed addresses on the device, laid out like those it was made from."""

    def __init__(self, tree: Any, device: torch.device) -> None:
        self.tensors: list[Tensor] = []
        with torch.inference_mode(False), torch.no_grad():  # kept for later runs, in that mode or not
            self.tree = mapped(tree, lambda tensor: self._held(tensor, device))

    def load(self, leaves: list[Tensor]) -> None:
        """Copies the tensors of a tree of the same description, in its order."""
        if leaves:
            fill(self.tensors, leaves)

    def _held(self, tensor: Tensor, device: torch.device) -> Tensor:
        self.tensors.append(like(tensor, device))
        return self.tensors[-1]


def like(tensor: Tensor, device: torch.device | None = None) -> Tensor:
    """An empty tensor laid out like this one, or contiguous if this one has gaps or overlaps."""
    where = tensor.device if device is None else device
    if tensor.dim() and ops.is_dense(tensor):
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=where)
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=where)


@torch.no_grad()
def fill(kept: list[Tensor], given: list[Tensor]) -> None:
    """Copies each of `given`, from whatever device, to its place: those already there in as few launches as can be."""
    here = [(a, b) for a, b in zip(kept, given, strict=True) if a.device == b.device and a.dtype == b.dtype]
    if len(here) > 1:
        torch._foreach_copy_([a for a, _ in here], [b for _, b in here])
    for a, b in zip(kept, given, strict=True):
        if len(here) < 2 or a.device != b.device or a.dtype != b.dtype:
            a.copy_(b)
