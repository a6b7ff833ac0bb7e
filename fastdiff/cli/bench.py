"""fastdiff bench: run the repository's benchmarks and draw their bars."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
GROUPS = ("step", "loop", "guided", "norm", "backward", "noise", "draw")


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the command `bench`."""
    parser = subparsers.add_parser(
        "bench",
        help="time the ops against what they replace, and draw bars",
        description="Run a benchmark of the repository, each figure beside a correctness check, and draw its bars. "
        "Ratios of one run are what counts; close other programs first.",
    )
    parser.add_argument("what", nargs="?", choices=["cpu", "gpu"], default="cpu", help="default cpu")
    parser.add_argument("--only", nargs="+", choices=GROUPS, help="of the CPU benchmark, these groups")
    parser.add_argument(
        "--seconds", type=float, default=2.0, help="of the CPU benchmark, for each comparison"
    )
    parser.add_argument(
        "--compile", action="store_true", help="of the CPU benchmark, against torch.compile too"
    )
    parser.add_argument(
        "--out", metavar="PATH", help="keep the results: a JSON file (cpu), a folder (gpu, needed)"
    )
    parser.add_argument("--plot", metavar="FILE.png", help="draw the bars (needs matplotlib)")
    parser.add_argument(
        "--from", dest="results", metavar="FILE.json", help="draw results of an earlier run; run nothing"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run, report and draw."""
    from fastdiff.files import check_writable, write_atomic

    check(args)
    for path in filter(None, (args.plot, args.out if args.what == "cpu" else None)):
        check_writable(path, overwrite=args.overwrite)
    if args.results:
        return plotted(read(Path(args.results)), args)
    if args.what == "gpu":
        code = subprocess.call([sys.executable, str(BENCHMARKS / "gpu.py"), "--out", args.out])
        table = Path(args.out) / "kernels.json"
        return code or (plotted(read(table), args) if args.plot else 0)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "cpu.json"
        code = subprocess.call(
            [sys.executable, str(BENCHMARKS / "cpu.py"), *options(args), "--out", str(out)]
        )
        if code:
            return code
        if args.out:
            write_atomic(args.out, lambda file: file.write(out.read_bytes()), overwrite=args.overwrite)
        return plotted(read(out), args)


def check(args: argparse.Namespace) -> None:
    """ValueError or OSError for what cannot be done."""
    if not (BENCHMARKS / "cpu.py").exists():
        raise ValueError(
            "the benchmarks are not part of the installed package: clone the repository and pip install -e it"
        )
    if not 0 < args.seconds <= 3600:
        raise ValueError(f"--seconds must lie between 0 and 3600, got {args.seconds}")
    if args.results and not args.plot:
        raise ValueError("--from draws earlier results: say where with --plot FILE.png")
    if args.what == "gpu" and not args.results:
        if not args.out:
            raise ValueError("a GPU visit writes several files: say where with --out FOLDER")
        import torch

        if not torch.cuda.is_available():
            raise ValueError("torch sees no GPU here: run fastdiff bench cpu")


def options(args: argparse.Namespace) -> list[str]:
    """The benchmark's own options."""
    only = ["--only", *args.only] if args.only else []
    return [*only, "--seconds", str(args.seconds), *(["--compile"] if args.compile else [])]


def read(path: Path) -> dict[str, Any]:
    """The results in a file. Raises ValueError if it holds none."""
    try:
        data = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} holds no benchmark results: {error}") from error
    if not isinstance(data, dict) or "results" not in data:
        raise ValueError(f"{path} holds no benchmark results")
    return data


def plotted(data: dict[str, Any], args: argparse.Namespace) -> int:
    """Draws the bars if that was asked for."""
    if args.plot:
        from fastdiff.files import write_atomic

        draw = plot().draw
        write_atomic(args.plot, lambda file: draw(data, file, args.only or ()), overwrite=args.overwrite)
        print(args.plot)
    return 0


def plot() -> ModuleType:
    """benchmarks/plot.py, which is no part of the package."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("fastdiff_benchmarks_plot", BENCHMARKS / "plot.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
