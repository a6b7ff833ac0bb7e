"""How the benchmarks time: the compared functions take turns, so that noise falls on all of them alike."""

from __future__ import annotations

import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True)
class Timed:
    """run is timed, after prepare, which is not; one run does `units` of the work that is reported."""

    run: Callable[[], Any]
    prepare: Callable[[], Any] = lambda: None
    units: int = 1


@dataclass(frozen=True)
class Spread:
    """Microseconds for one unit of work: a fifth of the runs took less than p20, half less than p50."""

    p20: float
    p50: float
    p80: float


@dataclass(frozen=True)
class Result:
    """One comparison. ratios: how many times longer each other function took than `ours`, at p50 and at p20."""

    name: str
    error: float
    spreads: dict[str, Spread]
    ours: str

    def ratios(self, quantile: str = "p50") -> dict[str, float]:
        own = getattr(self.spreads[self.ours], quantile)
        return {n: getattr(s, quantile) / own for n, s in self.spreads.items() if n != self.ours}

    def lines(self) -> list[str]:
        """The comparison as text, one function a line."""
        head = f"{self.name}   (largest difference {self.error:.1e})"
        rows = []
        for name, s in self.spreads.items():
            ratio = (
                ""
                if name == self.ours
                else f"{self.ratios()[name]:7.2f}x  (p20 {self.ratios('p20')[name]:.2f}x)"
            )
            rows.append(f"    {name:<22}{s.p20:10.1f}{s.p50:10.1f}{s.p80:10.1f} us {ratio}")
        return [head, *rows]


def interleaved(functions: Mapping[str, Timed], *, seconds: float, least: int = 15) -> dict[str, Spread]:
    """Runs the functions in turn for about `seconds`, at least `least` times each, and returns their spreads."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for timed in functions.values():  # warm up
        timed.prepare()
        timed.run()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(times.values()))) < least:
        for name, timed in functions.items():
            timed.prepare()
            start = time.perf_counter()
            timed.run()
            times[name].append((time.perf_counter() - start) / timed.units * 1e6)
    return {name: spread(values) for name, values in times.items()}


def spread(values: list[float]) -> Spread:
    p20, _, _, p80 = statistics.quantiles(values, n=5)
    return Spread(p20, statistics.median(values), p80)


def environment() -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def processor() -> str:
    """The processor's own name, where Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine()
    )


def save(results: list[Result], path: Path, extra: Mapping[str, Any]) -> None:
    """Writes the results with their environment as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    entries = [{**asdict(r), "ratios_p50": r.ratios(), "ratios_p20": r.ratios("p20")} for r in results]
    path.write_text(json.dumps({**environment(), **extra, "results": entries}, indent=1) + "\n")
