"""A whole GPU visit, unattended, in less than nine minutes: build, GPU tests, kernel tables, end-to-end tables.

    python benchmarks/gpu.py [--out benchmarks/results/gpu] [--only build tests kernels models] [--rehearse]

Each part is a process of its own with its own limit, so that one that fails, hangs or crashes does not lose the others;
what it wrote by then counts. Into the folder go PART.log, PART.json and summary.json (exit codes, seconds, device,
versions, commit). --rehearse runs everything at small sizes on the CPU, to see that it works before a visit.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from results import RESULTS, ROOT, environment, write_json

HERE = Path(__file__).resolve().parent
BUILD = "from fastdiff import native; import sys; sys.exit(native.problem(sys.argv[1]))"
TESTS = ("-q", "--maxfail=25", "--tb=short", "-rfE", "-p", "no:cacheprovider")
GRACE = 15
"""Seconds that a part which ran past its limit has to say what it found."""


@dataclass(frozen=True)
class Part:
    """A command of this interpreter and the seconds it may take."""

    name: str
    command: tuple[str, ...]
    limit: int


def parts(out: Path, rehearse: bool) -> list[Part]:
    """What a visit does, in order; together well under nine minutes."""
    device = "cpu" if rehearse else "cuda"
    size = ("--device", device, *(("--tiny",) if rehearse else ()))

    def script(name: str, limit: int) -> tuple[str, ...]:
        return (
            str(HERE / f"gpu_{name}.py"),
            "--out",
            str(out / f"{name}.json"),
            "--limit",
            str(limit),
            *size,
        )

    chosen = (
        sorted(map(str, (ROOT / "tests").glob("test_gpu*.py"))) if not rehearse else ["tests/test_floors.py"]
    )
    tests = ("-m", "pytest", *chosen, *TESTS)
    return [
        Part("build", ("-c", BUILD, device), 90),
        Part("tests", tests, 130),
        Part("kernels", script("kernels", 130), 145),
        Part("models", script("models", 75), 90),
    ]


def run(part: Part, out: Path) -> dict[str, Any]:
    """Runs one part; its output goes to a file. Returns its exit code (124: it ran past its limit) and seconds."""
    start = time.perf_counter()
    environ = os.environ | {"PYTHONUNBUFFERED": "1"}
    environ.setdefault("MAX_JOBS", str(min(16, os.cpu_count() or 2)))  # compilers at once
    with open(out / f"{part.name}.log", "w") as log:
        process = subprocess.Popen(
            [sys.executable, *part.command], stdout=log, stderr=subprocess.STDOUT, cwd=ROOT, env=environ,
            start_new_session=True, preexec_fn=heed_interrupts,
        )  # fmt: skip
        try:
            code = process.wait(part.limit)
        except subprocess.TimeoutExpired:
            stop(process)
            code = 124
    return {"exit_code": code, "seconds": round(time.perf_counter() - start, 1), "limit": part.limit}


def heed_interrupts() -> None:
    """In the new process: a shell's background jobs ignore interrupts, and so would what they start."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Interrupts a part, as a keyboard would, then ends it and what it started."""
    os.killpg(process.pid, signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(GRACE)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu")
    parser.add_argument("--only", nargs="+", choices=["build", "tests", "kernels", "models"])
    parser.add_argument("--rehearse", action="store_true", help="small sizes, on the CPU")
    options = parser.parse_args()
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    summary: dict[str, Any] = environment() | {"parts": {}}
    for part in parts(out, options.rehearse):
        if options.only and part.name not in options.only:
            continue
        print(f"{part.name}: at most {part.limit} s", flush=True)
        summary["parts"][part.name] = found = run(part, out)
        print(f"{part.name}: exit code {found['exit_code']} after {found['seconds']} s", flush=True)
        write_json(summary, out / "summary.json")
    return max((part["exit_code"] != 0 for part in summary["parts"].values()), default=False)


if __name__ == "__main__":
    sys.exit(main())
