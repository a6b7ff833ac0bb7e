"""A progress bar on stderr that needs no package and stays silent where stderr is no terminal."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TextIO

WIDTH = 30
INTERVAL = 0.1  # seconds between redraws


class ProgressBar:
    """`label [=====>    ] 12/20 0.6 s` redrawn in place; use as a context manager, `advance` counts.

    label: shown before the bar; total: the count that is complete; file: where to draw, default stderr.
    """

    def __init__(self, label: str, *, total: int, file: TextIO | None = None, quiet: bool = False) -> None:
        self.label, self.total, self.done = label, max(total, 1), 0
        self.file = file or sys.stderr
        self.visible = not quiet and self.file.isatty()
        self.start = self.drawn = time.perf_counter()

    def __enter__(self) -> ProgressBar:
        self._draw()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.visible:
            self._draw()
            self.file.write("\n")

    def advance(self, count: int = 1) -> None:
        """Count `count` more as done."""
        self.done += count
        if time.perf_counter() - self.drawn >= INTERVAL:
            self._draw()

    def _draw(self) -> None:
        if not self.visible:
            return
        self.drawn = time.perf_counter()
        elapsed = self.drawn - self.start
        filled = min(WIDTH, WIDTH * self.done // self.total)
        bar = "=" * filled + ">" * (filled < WIDTH) + " " * (WIDTH - filled - 1)
        left = elapsed / self.done * (self.total - self.done) if self.done else 0.0
        self.file.write(
            f"\r{self.label} [{bar}] {self.done}/{self.total}  {elapsed:.1f} s, {left:.0f} s left "
        )
        self.file.flush()
