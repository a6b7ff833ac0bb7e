"""What the tests of Triton kernels share: where they run, and their code for GPUs that are not here."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

import sass
from fastdiff.kernels.launch import Launcher

NAMES = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float64: "fp64",
    torch.int64: "i64",
    torch.int32: "i32",
}

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
needs_compiler = pytest.mark.skipif(INTERPRETED, reason="the interpreter has no compiler")


def _interpret_faster() -> None:
    """The interpreter patches triton.language anew at every call of a device function, which takes half of its time;
    the kernel that calls ours has patched it already."""
    from triton.runtime.interpreter import InterpretedFunction

    patching = InterpretedFunction.__call__

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        ours = self.fn.__module__.startswith("fastdiff.") and hasattr(self, "rewrite")
        return self.rewrite()(*args, **kwargs) if ours else patching(self, *args, **kwargs)

    InterpretedFunction.__call__ = call


if INTERPRETED:
    _interpret_faster()


def device() -> str:
    """Where kernels can run: interpreted on the CPU, or on a GPU; skips where neither is."""
    if INTERPRETED:
        return "cpu"
    if torch.cuda.is_available():
        return "cuda"
    pytest.skip("needs a GPU or TRITON_INTERPRET=1, under which test_triton_interpreted.py runs it")


def rounding(dtype: torch.dtype) -> float:
    """Units that a store may be off by: the interpreter truncates to bfloat16, GPUs round to nearest."""
    return 1.0 if INTERPRETED and dtype == torch.bfloat16 else 0.5


class Launch(NamedTuple):
    """One call of a Launcher."""

    launcher: Launcher
    grid: int | tuple[int, ...]
    arguments: tuple[Any, ...]
    options: dict[str, Any]


class Code(NamedTuple):
    kernel: sass.Kernel
    asm: Any  # "ttir", "ptx", ... as text


def launches(monkeypatch: pytest.MonkeyPatch, function: Callable[..., Any], *arguments: Any) -> list[Launch]:
    """What function(*arguments), on CPU tensors, would launch on a GPU; nothing runs."""
    found = []

    def record(self, grid, tensors, scalars=(), constants=(), *, num_warps=None):  # type: ignore[no-untyped-def]
        options = self.options if num_warps is None else {**self.options, "num_warps": num_warps}
        found.append(Launch(self, grid, (*tensors, *scalars, *constants), options))

    with monkeypatch.context() as patch:
        patch.setattr(Launcher, "__call__", record)
        function(*arguments)
    return found


def compiled(launch: Launch, arch: int) -> Code:
    """The code of a launch on sm_<arch>, specialised as Triton would."""
    kernel = launch.launcher.kernel
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    for number, (parameter, value) in enumerate(zip(kernel.params, launch.arguments, strict=True)):
        kind, multiple = _specialised(parameter, value)
        signature[parameter.name] = kind
        if kind == "constexpr":
            constants[parameter.name] = value
        if multiple:
            attributes[(number,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constexprs=constants, attrs=attributes)
    result = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=launch.options)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(result.asm["cubin"])
        (code,) = sass.read(path, f"sm_{arch}")
    return Code(code, result.asm)


def _specialised(parameter: Any, value: Any) -> tuple[str, bool]:
    """Triton's type of an argument, and whether it compiles for a multiple of 16."""
    if parameter.is_constexpr or value is None:
        return "constexpr", False
    if isinstance(value, torch.Tensor):
        return "*" + NAMES[value.dtype], value.data_ptr() % 16 == 0
    if isinstance(value, float):
        return "fp32", False
    kind = parameter.annotation_type or ("i32" if -(2**31) <= value < 2**31 else "i64")
    if parameter.do_not_specialize:
        return kind, False
    return ("constexpr", False) if value == 1 else (kind, value % 16 == 0)
