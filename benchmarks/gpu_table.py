"""The results of one part of a GPU visit: on the disk after each case, with what failed beside what did not."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpu_timing import measured
from results import environment, write_json
from timing import Case, Result


class Table:
    """Adds cases until the limit (seconds from now); one that fails is noted and the others go on."""

    def __init__(self, path: Path, limit: float, device: str) -> None:
        self.path, self.device = path, device
        self.end = time.perf_counter() + limit
        self.environment = environment()
        self.results: list[Result] = []
        self.problems: dict[str, str] = {}
        self.notes: dict[str, Any] = {}
        self.copy: dict[str, float] = {}

    def add(
        self, title: str, make: Callable[[], Case], way: str, notes: dict[str, Any] | None = None
    ) -> None:
        """Makes, checks and times one case."""
        notes = notes or {}

        def work() -> None:
            self.results.append(measured(make(), way, seconds=0.06, notes=notes))
            print("\n".join(self.results[-1].lines()), flush=True)

        self.guarded(" ".join([title, way, *map(str, notes.values())]), work)

    def guarded(self, title: str, work: Callable[[], None]) -> None:
        """Does some work of the table, unless time is up, and saves."""
        if time.perf_counter() > self.end:
            self.problems[title] = "not reached within the limit"
            return
        try:
            work()
        except Exception as error:
            self.problems[title] = f"{type(error).__name__}: {str(error)[:300]}"
            print(f"{title}: {self.problems[title]}", flush=True)
        self.save()

    def save(self) -> None:
        rows = [result.as_data() | {"of_copy": self.share(result)} for result in self.results]
        found = {"copy_gb_per_s": self.copy, "notes": self.notes, "problems": self.problems, "results": rows}
        write_json(self.environment | found, self.path)

    def share(self, result: Result) -> float | None:
        """Our bandwidth on the fewest bytes, as a part of a large copy's in the same run: the roofline."""
        rate, copy = result.rates().get(result.ours), self.copy.get("hot")
        return None if rate is None or not copy else rate / copy


def parser(doc: str | None, limit: float) -> argparse.ArgumentParser:
    """The options that every part has."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    made.add_argument(
        "--limit", type=float, default=limit, help=f"seconds for all of it (default {limit:.0f})"
    )
    made.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    made.add_argument("--tiny", action="store_true", help="small shapes only: a rehearsal")
    return made
