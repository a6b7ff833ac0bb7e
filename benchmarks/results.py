"""What stands beside every figure, and how results reach the disk."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from timing import Result

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PEERS = ("diffusers", "triton", "liger-kernel", "apex", "stable-fast")


def environment() -> dict[str, Any]:
    """What the figures depend on."""
    found: dict[str, Any] = {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "commit": commit(),
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{name: version(name) for name in PEERS},
    }
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found |= {"device": properties.name, "multiprocessors": properties.multi_processor_count}
        found |= {"cuda": torch.version.cuda, "driver": driver()}
    return found


def version(package: str) -> str:
    """A package's version, or that it is not there."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def commit() -> str:
    """The commit the sources are at, marked if they differ from it; outside a checkout what FASTDIFF_COMMIT says."""
    return (
        os.environ.get("FASTDIFF_COMMIT")
        or _output("git", "-C", str(ROOT), "describe", "--always", "--dirty")
        or "unknown"
    )


def driver() -> str:
    """The NVIDIA driver's version."""
    return _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") or "unknown"


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def processor() -> str:
    """The processor's own name, where Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine()
    )


def save(results: Sequence[Result], path: Path, extra: Mapping[str, Any]) -> None:
    """Writes the results with their environment as JSON, whole or not at all."""
    content = {**environment(), **extra, "results": [result.as_data() for result in results]}
    write_json(content, path)


def update(results: Sequence[Result], path: Path, extra: Mapping[str, Any]) -> None:
    """As save, but results of other names that the file holds already stay: for tables that are measured in parts. Each
    result says when and by which command it was measured."""
    now = environment()
    origin = {key: now[key] for key in ("time", "commit", "command")}
    earlier = json.loads(path.read_text())["results"] if path.exists() else []
    rows = {row["name"]: row for row in earlier}
    rows |= {result.name: result.as_data() | {"measured": origin} for result in results}
    write_json({**now, **extra, "results": list(rows.values())}, path)


def write_json(content: Any, path: Path) -> None:
    """Writes content under a temporary name and renames it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(temporary, path)
