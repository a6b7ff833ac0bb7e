"""What belongs to one open page: its pictures, its jobs, who listens; and all visits together."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from fastdiff.apps.source import Source
from fastdiff.web.limits import Limits
from fastdiff.web.pictures import Kept
from fastdiff.web.tasks import ENDED, Task, Worker

Event = tuple[str, dict[str, Any]]
BEHIND = 64  # events a listener may be behind before it misses previews


class Refused(Exception):
    """A request that cannot be met now. status: of the answer, 4xx."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(eq=False)
class Visit:
    """One page. Touched only by the server's own thread."""

    limits: Limits
    id: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    uploads: dict[str, Kept] = field(default_factory=dict)
    tasks: dict[str, Task] = field(default_factory=dict)
    listeners: set[asyncio.Queue[Event | None]] = field(default_factory=set)
    preparing: int = 0
    seen: float = field(default_factory=time.monotonic)

    @property
    def waiting(self) -> int:
        """Jobs that have not ended, and those about to be queued."""
        return self.preparing + sum(task.status not in ENDED for task in self.tasks.values())

    def keep(self, picture: Kept) -> None:
        """Keep an upload; the oldest goes where there are too many."""
        self.uploads[picture.id] = picture
        while len(self.uploads) > self.limits.uploads:
            del self.uploads[next(iter(self.uploads))]

    def picture(self, name: str) -> Kept:
        """A picture of this visit. Refused with 404 if there is none."""
        if name in self.uploads:
            self.uploads[name] = self.uploads.pop(name)  # the one used last is forgotten last
            return self.uploads[name]
        for task in self.tasks.values():
            for picture in task.pictures():
                if picture.id == name:
                    return picture
        raise Refused(404, "there is no such picture in this visit: it may have made room for newer ones")

    def task(self, name: str) -> Task:
        """A job of this visit. Refused with 404 if there is none."""
        if name not in self.tasks:
            raise Refused(404, "there is no such job in this visit")
        return self.tasks[name]

    def tell(self, kind: str, data: dict[str, Any]) -> None:
        """Pass an event to every listening page, and make room after a job."""
        for queue in self.listeners:
            if kind in ("preview", "progress") and queue.qsize() > BEHIND:
                continue
            queue.put_nowait((kind, data))
        if kind == "job" and data["status"] in ENDED:
            self.make_room()

    def make_room(self) -> None:
        """Forget the oldest ended jobs while there are too many, or too many pictures of them."""
        ended = [task for task in self.tasks.values() if task.status in ENDED]
        pictures = sum(len(task.results) for task in ended)
        while len(ended) > 1 and (len(ended) > self.limits.jobs or pictures > self.limits.pictures):
            oldest = ended.pop(0)
            pictures -= len(oldest.results)
            del self.tasks[oldest.id]
            self.tell("forgotten", {"id": oldest.id})

    @contextlib.contextmanager
    def listening(self) -> Iterator[asyncio.Queue[Event | None]]:
        """A queue of the events from now on, the present state first; None ends it."""
        queue: asyncio.Queue[Event | None] = asyncio.Queue()
        queue.put_nowait(("state", self.describe()))
        self.listeners.add(queue)
        try:
            yield queue
        finally:
            self.listeners.discard(queue)
            self.seen = time.monotonic()

    def describe(self) -> dict[str, Any]:
        """JSON data, for the page."""
        return {"visit": self.id, "jobs": [task.describe() for task in self.tasks.values()]}


class Studio:
    """The model, the worker and every visit."""

    def __init__(self, source: Source, limits: Limits) -> None:
        self.source, self.limits = source, limits
        self.visits: dict[str, Visit] = {}
        self.worker = Worker(limit=limits.seconds)
        self.loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Begin to work, for the running event loop."""
        self.loop = asyncio.get_running_loop()
        self.worker.start()

    def open(self) -> Visit:
        """A new visit. Refused where there are too many that somebody looks at."""
        self.expire()
        if len(self.visits) >= self.limits.visits:
            idle = [visit for visit in self.visits.values() if not visit.listeners and not visit.waiting]
            if not idle:
                raise Refused(429, f"{self.limits.visits} pages are open already: close one")
            self.close(min(idle, key=lambda visit: visit.seen))
        visit = Visit(self.limits)
        self.visits[visit.id] = visit
        return visit

    def visit(self, name: str) -> Visit:
        """The visit of that name. Refused with 404 if there is none."""
        if name not in self.visits:
            raise Refused(404, "this visit has ended: load the page again")
        visit = self.visits[name]
        visit.seen = time.monotonic()
        return visit

    def expire(self) -> None:
        """Close the visits whose page has been gone for longer than the grace."""
        gone = time.monotonic() - self.limits.grace
        for visit in [v for v in self.visits.values() if not v.listeners and v.seen < gone]:
            self.close(visit)

    def close(self, visit: Visit) -> None:
        """End a visit: its jobs are cancelled, its pictures forgotten."""
        self.visits.pop(visit.id, None)
        for task in list(visit.tasks.values()):
            if task.status not in ENDED:
                self.worker.cancel(task)
        for queue in visit.listeners:
            queue.put_nowait(None)
        visit.uploads.clear()
        visit.tasks.clear()

    def close_all(self) -> None:
        """End everything, so that the server can stop."""
        self.worker.close()
        for visit in list(self.visits.values()):
            self.close(visit)

    @contextlib.contextmanager
    def place(self, visit: Visit) -> Iterator[None]:
        """A place in the queue, held while a job is being prepared. Refused where there is none."""
        if visit.waiting >= self.limits.waiting:
            raise Refused(
                429, f"{visit.waiting} jobs of this page are waiting already: wait for one, or cancel it"
            )
        if sum(v.waiting for v in self.visits.values()) >= self.limits.queue:
            raise Refused(429, "the queue is full: try again in a while")
        visit.preparing += 1
        try:
            yield
        finally:
            visit.preparing -= 1

    def queue(self, visit: Visit, task: Task) -> None:
        """Queue a job of a visit."""
        visit.tasks[task.id] = task
        visit.tell("job", task.describe())
        self.worker.put(task)

    def teller(self, visit: Visit) -> Any:
        """What passes a task's events from the worker's thread to its visit."""

        def tell(kind: str, data: dict[str, Any]) -> None:
            assert self.loop is not None
            with contextlib.suppress(RuntimeError):  # the loop has ended: nobody listens
                self.loop.call_soon_threadsafe(visit.tell, kind, data)

        return tell
