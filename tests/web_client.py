"""A running server for tests, on the tiny model, and a client that speaks to it as a browser or a stranger would."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image

from fastdiff.apps.source import Native
from fastdiff.web.limits import Limits
from fastdiff.web.serve import Site
from tiny_model import tiny_model

LIMITS = Limits(upload_bytes=2**18, upload_pixels=2**18, seconds=20, pixels=2**14, waiting=3, queue=4, jobs=4)


class Watched(Native):
    """The tiny model, which counts its calls and can be made slow. delay: seconds a call; broken: it raises."""

    def __init__(self) -> None:
        super().__init__(tiny_model())
        self.calls, self.delay, self.broken = 0, 0.0, False

    def __call__(self, x: torch.Tensor, t: torch.Tensor, **conditioning: Any) -> torch.Tensor:
        self.calls += 1
        if self.broken:
            raise RuntimeError("the model is broken")
        time.sleep(self.delay)
        return super().__call__(x, t, **conditioning)

    @contextlib.contextmanager
    def slow(self, delay: float = 0.05) -> Iterator[None]:
        """Calls that take a while."""
        self.delay = delay
        try:
            yield
        finally:
            self.delay = 0.0


class Answer:
    """Status, headers and body of an answer."""

    def __init__(self, raw: http.client.HTTPResponse) -> None:
        self.status, self.headers, self.body = raw.status, raw.headers, raw.read()

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The one line of a refusal."""
        assert 400 <= self.status < 500, (self.status, self.body[:300])
        assert set(self.json) == {"error"} and "\n" not in self.json["error"] and self.json["error"]
        return self.json["error"]


class Client:
    """Requests to a server, and what tests do with a visit of their own."""

    def __init__(self, port: int) -> None:
        self.port = port

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        if isinstance(body, (dict, list)):
            body, headers = json.dumps(body), {"Content-Type": "application/json", **headers}
        with contextlib.closing(connection):
            connection.request(method, path, body, headers)
            return Answer(connection.getresponse())

    def visit(self) -> str:
        """A visit's address."""
        return f"/api/visits/{self.ask('POST', '/api/visits').json['visit']}"

    def begin(self, visit: str, operation: str = "generate", **fields: Any) -> dict[str, Any]:
        """A job that is queued."""
        pictures = {name: fields.pop(name) for name in ("picture", "mask") if name in fields}
        answer = self.ask("POST", f"{visit}/jobs", {"operation": operation, "fields": fields, **pictures})
        assert answer.status == 202, answer.body
        return answer.json

    def job(self, visit: str, name: str) -> dict[str, Any]:
        """A job as it is now."""
        return next(job for job in self.ask("GET", visit).json["jobs"] if job["id"] == name)

    def wait(self, visit: str, name: str, *statuses: str) -> dict[str, Any]:
        """A job, once it has one of these statuses (ended, if none is given)."""
        wanted = statuses or ("done", "failed", "cancelled")
        until = time.monotonic() + 30
        while time.monotonic() < until:
            job = self.job(visit, name)
            if job["status"] in wanted:
                return job
            time.sleep(0.01)
        raise AssertionError(f"the job is still {job['status']}")

    def made(self, visit: str, operation: str = "generate", **fields: Any) -> dict[str, Any]:
        """A job that is done."""
        job = self.wait(visit, self.begin(visit, operation, **fields)["id"])
        assert job["status"] == "done", job["message"]
        return job

    def picture(self, visit: str, name: str) -> bytes:
        """A picture's PNG."""
        answer = self.ask("GET", f"{visit}/pictures/{name}.png")
        assert answer.status == 200
        return answer.body

    def upload(self, visit: str, data: bytes, side: int = 256) -> dict[str, Any]:
        """What the server says of an upload that it takes."""
        answer = self.ask("POST", f"{visit}/pictures?side={side}", data, Content_Type="image/png")
        assert answer.status == 201, answer.body
        return answer.json


@contextlib.contextmanager
def serving(**options: Any) -> Iterator[tuple[Client, Watched, Site]]:
    """A server on a free port, stopped afterwards."""
    source = Watched()
    site = Site(source, **options)
    thread = threading.Thread(target=site.run)
    thread.start()
    try:
        until = time.monotonic() + 20
        while not site.server.started and time.monotonic() < until:
            time.sleep(0.005)
        yield Client(site.port), source, site
    finally:
        site.server.stop()
        thread.join(20)
        assert not thread.is_alive(), "the server does not stop"


def pixels(png: bytes) -> np.ndarray:
    """[H, W, 3] of a PNG."""
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image.convert("RGB"))


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """A picture as the bytes of a file."""
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def photograph(width: int = 32, height: int = 24) -> Image.Image:
    """A picture with something in it."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(
        np.stack([x * 255 // width, y * 255 // height, (x * y) % 256], axis=-1).astype(np.uint8)
    )
