"""How an op enters PyTorch: schemas defined once, in Python, so that the package also works unbuilt.

Every op has two overloads with one schema: the default one, whose C++ and CUDA kernels sit on the CPU and CUDA
keys once the native libraries are loaded, and `.triton`. Without them both run the reference, so exported graphs work
anywhere.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from fastdiff import backend

LIBRARY = torch.library.Library("fastdiff", "DEF")


def define(schema: str, reference: Callable[..., Any], fake: Callable[..., Any]) -> dict[str, OpOverload]:
    """Defines the op `schema` ("name(...) -> ...") and returns backend -> the overload to call.

    reference: the same positional arguments, plain PyTorch; fake: the same, shapes only.
    """
    name, signature = schema.split("(", 1)
    native = define_alone(schema, reference, fake)
    triton = define_alone(f"{name}.triton({signature}", launcher(name, reference), fake)
    return {"cpp": native, "cuda": native, "triton": triton}


def define_alone(schema: str, implementation: Callable[..., Any], fake: Callable[..., Any]) -> OpOverload:
    """Defines one overload, which runs `implementation` where no kernel sits on the device's key."""
    name = schema.split("(", 1)[0]
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fastdiff::{name}", fake, lib=LIBRARY)
    name, _, overload = name.partition(".")
    found: OpOverload = getattr(getattr(torch.ops.fastdiff, name), overload or "default")
    return found


def differentiate(name: str, backward: Callable[..., Any], setup_context: Callable[..., None]) -> None:
    """Gives both overloads of op `name` its gradient."""
    for suffix in ("", ".triton"):
        torch.library.register_autograd(
            f"fastdiff::{name}{suffix}", backward, setup_context=setup_context, lib=LIBRARY
        )


def launcher(name: str, reference: Callable[..., Any]) -> Callable[..., Any]:
    """The Triton kernel `fastdiff.kernels.<name>.launch` (for an op in place, `<name>_`, its `launch_`) where there is
    one, else the reference."""
    op = name.removesuffix("_")
    function = "launch_" if name.endswith("_") else "launch"

    def launch(*args: Any) -> Any:
        first = next(arg for arg in args if isinstance(arg, Tensor))
        kernel = _triton(op, function, first.device.type, first.dtype)
        return (kernel or reference)(*args)

    return launch


@functools.cache
def _triton(op: str, function: str, device_type: str, dtype: torch.dtype) -> Callable[..., Any] | None:
    """The launcher of the Triton kernel for such tensors, or None: an exported graph runs without it."""
    if backend.refusal(op, "triton", device_type, dtype):
        return None
    found: Callable[..., Any] = getattr(importlib.import_module(f"fastdiff.kernels.{op}"), function)
    return found
