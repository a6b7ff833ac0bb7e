"""A job on its way through the queue, and the one thread that runs them."""

from __future__ import annotations

import base64
import io
import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from PIL import Image
from torch import Tensor

from fastdiff.apps.work import Job, Made
from fastdiff.errors import FastdiffError
from fastdiff.events import Cancelled
from fastdiff.images import grid, to_pictures
from fastdiff.web.pictures import Kept, kept, stretched

log = logging.getLogger(__name__)

PREVIEW_EVERY = 0.12  # seconds
ENDED = ("done", "failed", "cancelled")


@dataclass(eq=False)
class Task:
    """One job of a visit. tell: called, in the worker's thread, with ("job" | "preview", JSON data).

    before: what results are compared with. status: "queued", "running", or one of ENDED. job: None once it ended.
    """

    operation: str
    fields: dict[str, Any]
    job: Job | None
    tell: Callable[[str, dict[str, Any]], object]
    inputs: dict[str, Kept] = field(default_factory=dict)
    before: Kept | None = None
    id: str = field(default_factory=lambda: secrets.token_urlsafe(12))
    status: str = "queued"
    step: int = 0
    steps: int | None = None
    message: str = ""
    seconds: float = 0.0
    results: list[Kept] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)
    shown: float = 0.0

    def describe(self) -> dict[str, Any]:
        """JSON data, for the page."""
        return {
            "id": self.id, "operation": self.operation, "fields": self.fields, "status": self.status,
            "step": self.step, "steps": self.steps, "message": self.message, "seconds": round(self.seconds, 2),
            "results": [result.describe() for result in self.results],
            "inputs": {name: picture.describe() for name, picture in self.inputs.items()},
            "before": self.before.describe() if self.before else None,
        }  # fmt: skip

    def pictures(self) -> list[Kept]:
        """Everything that a page may ask for because of this task."""
        return [*self.results, *self.inputs.values(), *([self.before] if self.before else [])]

    def run(self, limit: float) -> None:
        """Run the job, for at most `limit` seconds. Whatever happens, the task has ended."""
        assert self.job is not None
        self._become("running")
        started = time.monotonic()

        def cancel() -> bool:
            return self.stop.is_set() or time.monotonic() - started > limit

        try:
            made = self.job.run(progress=self._progress, cancel=cancel, preview=self._preview)
            self.results = results_of(made, self.operation)
            self.before = _fitting(self.before, made)
            status, self.message = "done", ""
        except Cancelled:
            status = "cancelled" if self.stop.is_set() else "failed"
            self.message = "" if self.stop.is_set() else f"stopped after {limit:g} seconds: ask for less"
        except Exception as error:
            status, self.message = "failed", explained(error)
        finally:
            self.job = None
        self.seconds = time.monotonic() - started
        self._become(status)

    def end(self, status: str) -> None:
        """End a task that never ran."""
        self.stop.set()
        self.job = None
        self._become(status)

    def _become(self, status: str) -> None:
        self.status = status
        self.tell("job", self.describe())

    def _progress(self, calls: int) -> None:
        self.step += calls
        self.tell("progress", {"id": self.id, "step": self.step, "steps": self.steps})

    def _preview(self, pictures: Tensor) -> None:
        now = time.monotonic()
        if now - self.shown >= PREVIEW_EVERY and bool(pictures.isfinite().all()):
            self.shown = now
            self.tell("preview", {"id": self.id, "image": data_url(pictures)})


class Worker(threading.Thread):
    """One thread that runs one task after another."""

    def __init__(self, *, limit: float) -> None:
        super().__init__(name="fastdiff-worker", daemon=True)
        self.limit = limit
        self.waiting: deque[Task] = deque()
        self.current: Task | None = None
        self.closed = False
        self.changed = threading.Condition()

    def put(self, task: Task) -> None:
        """Queue a task."""
        with self.changed:
            self.waiting.append(task)
            self.changed.notify()

    def cancel(self, task: Task) -> None:
        """End a task: at its next model call if it runs, at once if it waits."""
        with self.changed:
            waits = task in self.waiting
            if waits:
                self.waiting.remove(task)
        if waits:
            task.end("cancelled")
        else:
            task.stop.set()

    def close(self) -> None:
        """Cancel everything; the thread ends within one step."""
        with self.changed:
            self.closed = True
            self.waiting.clear()
            if self.current is not None:
                self.current.stop.set()
            self.changed.notify()

    def run(self) -> None:
        """Until closed: the next task."""
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.closed or self.waiting)
                if self.closed:
                    return
                self.current = self.waiting.popleft()
            self.current.run(self.limit)
            with self.changed:
                self.current = None


def results_of(made: Made, operation: str) -> list[Kept]:
    """The pictures of a job as PNGs that carry their recipes."""
    return [
        kept(
            made.images[i], recipe=made.recipe_of(i), seed=made.seeds[i], prompt=made.prompts[i],
            name="-".join(filter(None, (operation, plain(made.prompts[i]), f"seed{made.seeds[i]}"))),
        )
        for i in range(len(made.images))
    ]  # fmt: skip


def plain(prompt: str | None) -> str:
    """A prompt as part of a file name."""
    return "".join(c if c.isascii() and c.isalnum() else "_" for c in prompt or "")[:40].strip("_")


def _fitting(before: Kept | None, made: Made) -> Kept | None:
    """`before`, as large as what was made."""
    height, width = made.images.shape[-2:]
    if before is None or (before.width, before.height) == (width, height):
        return before
    return kept(stretched(before.tensor(), height, width), name="before")


def data_url(pictures: Tensor) -> str:
    """[B, 3, H, W] -> a JPEG of at most 512 pixels a side as a data: URL; several stand on a sheet."""
    shown = to_pictures(pictures)
    image = Image.fromarray(shown[0] if len(shown) == 1 else grid(shown, gap=0))
    image.thumbnail((512, 512))
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def explained(error: Exception) -> str:
    """One line for an error of a running job; one that is a fault of the program is logged whole."""
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError) or "allocate" in text or "out of memory" in text:
        return "out of memory: ask for fewer or smaller pictures"
    if isinstance(error, (ValueError, TypeError, OSError, FastdiffError)):
        return text or type(error).__name__
    log.error("a job failed", exc_info=error)
    return f"it failed ({type(error).__name__}): the terminal says more"
