"""fastdiff env: what is installed and built, and which backend each op uses and why. It prints whatever is broken."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Callable
from typing import Any

from fastdiff import __version__
from fastdiff.cli import explain

PACKAGES = (
    "fastdiff",
    "torch",
    "numpy",
    "pillow",
    "safetensors",
    "triton",
    "diffusers",
    "k-diffusion",
    "matplotlib",
)
DTYPES = ("float32", "bfloat16", "float16", "float64")


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the command `env`."""
    parser = subparsers.add_parser(
        "env",
        help="what is built and which backend each op uses, and why",
        description="Print versions, the machine, what native code is built and which backend each op uses and why.",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    explain.add_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the report; a part that cannot be told shows its error. With --explain, what those shapes would run on."""
    report = explain.report(args) if args.explain else collect()
    print(json.dumps(report, indent=2) if args.json else as_text(report))
    return 0


def collect() -> dict[str, Any]:
    """The report as plain data. A section that fails is {"error": ...}."""
    sections: dict[str, Callable[[], dict[str, Any]]] = {
        "versions": versions,
        "machine": machine,
        "devices": devices,
        "backends": backends,
        "ops": ops,
        "native": native_build,
        "model": model,
    }
    return {name: _guarded(section) for name, section in sections.items()}


def _guarded(section: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return section()
    except Exception as error:  # a broken install is exactly when this report is read
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"}


def versions() -> dict[str, Any]:
    """Versions of Python and of the packages that matter."""
    found: dict[str, Any] = {"fastdiff": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def machine() -> dict[str, Any]:
    """Processor, threads, and the settings that change which code runs."""
    import torch

    found: dict[str, Any] = {
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "torch threads": torch.get_num_threads(),
        "cpu capability": torch.backends.cpu.get_cpu_capability(),
    }
    found.update({name: value for name, value in sorted(os.environ.items()) if _matters(name)})
    return found


def _matters(name: str) -> bool:
    return name.startswith("FASTDIFF_") or name in (
        "OMP_NUM_THREADS",
        "TRITON_INTERPRET",
        "CUDA_VISIBLE_DEVICES",
    )


def devices() -> dict[str, Any]:
    """The accelerators that torch sees."""
    import torch

    if not torch.cuda.is_available():
        return {
            "cuda": f"none (torch built for CUDA {torch.version.cuda})"
            if torch.version.cuda
            else "none (CPU build of torch)"
        }
    return {f"cuda:{i}": torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}


def backends() -> dict[str, Any]:
    """Each backend: whether it can run here, or why not."""
    from fastdiff import backend

    asked = {"asked for": backend.current()}
    return asked | {name: backend.unavailable(name) or "available" for name in backend.NAMES}


def ops() -> dict[str, Any]:
    """op and device -> dtype -> the backend chosen and why."""
    import torch

    from fastdiff import backend

    kinds = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    return {
        f"{op} on {kind}": {name: _explain(op, kind, getattr(torch, name)) for name in DTYPES}
        for op in backend.KERNELS
        for kind in kinds
    }


def _explain(op: str, kind: str, dtype: Any) -> str:
    from fastdiff import backend

    try:
        return backend.explain(op, kind, dtype)
    except Exception as error:  # FASTDIFF_BACKEND may name one that cannot run: say so for each op, and go on
        return f"error: {' '.join(str(error).split())}"


def native_build() -> dict[str, Any]:
    """The compilers, and the native libraries: where they are, or what went wrong with them."""
    import torch

    from fastdiff import _build, native

    found: dict[str, Any] = {
        "c++ compiler": _build.find_compiler() or "none found",
        "nvcc": _build.find_nvcc() or "none found",
        "cpu library": native.problem("cpu") or str(native.library("cpu")),
    }
    if not native.problem("cpu"):
        found["cpu kernels"] = native.isa()
    if torch.cuda.is_available():
        found["cuda library"] = native.problem("cuda") or str(native.library("cuda"))
    else:
        found["cuda library"] = "not loaded: torch sees no CUDA device"
    return found


def model() -> dict[str, Any]:
    """The bundled checkpoint."""
    from fastdiff import models

    bundled = models.load()
    return {"parameters": sum(p.numel() for p in bundled.parameters()), "labels": ", ".join(bundled.labels)}


def as_text(report: dict[str, Any]) -> str:
    """The report as aligned lines, a section a paragraph."""
    lines: list[str] = []
    for section, content in report.items():
        lines += ["", section] if lines else [section]
        width = max([16, *map(len, content)])
        for name, value in content.items():
            if isinstance(value, dict):
                lines.append(f"  {name}")
                merged = _merged(value)
                wide = max([14, *map(len, merged)])
                lines += [f"    {inner:<{wide}} {text}" for inner, text in merged.items()]
            else:
                lines.append(f"  {name:<{width}} {value}")
    encoding = sys.stdout.encoding or "ascii"
    return "\n".join(lines).encode(encoding, "replace").decode(encoding)


def _merged(values: dict[str, str]) -> dict[str, str]:
    """The names that share a text as one name."""
    texts: dict[str, list[str]] = {}
    for name, text in values.items():
        texts.setdefault(text, []).append(name)
    return {", ".join(names): text for text, names in texts.items()}
