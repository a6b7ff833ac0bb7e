"""The routes. All data is JSON but pictures; every refusal is {"error": one line} with a status of 4xx.

GET    /                                     the page;   GET /static/NAME   its parts, from a fixed table
GET    /api/about                            operations and their forms, the model, the limits
POST   /api/visits                           begin a visit: what follows belongs to it alone
GET    /api/visits/V            DELETE       its jobs; its end
GET    /api/visits/V/events                  server-sent events: state, job, progress, preview, forgotten
POST   /api/visits/V/pictures?side=N         upload one (the body is the file): made to fit, its recipe read
GET    /api/visits/V/pictures/P.png
POST   /api/visits/V/jobs                    {"operation", "fields", "picture", "mask"}
DELETE /api/visits/V/jobs/J                  cancel
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from importlib import resources
from typing import Any

import anyio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from fastdiff import __version__
from fastdiff.errors import FastdiffError
from fastdiff.web.fields import Field, short
from fastdiff.web.guard import refuse
from fastdiff.web.operations import MAX_SIDE, Inputs, Operation
from fastdiff.web.pictures import SMALLEST, kept, mask_of, received, recipe_in
from fastdiff.web.reading import query, read_body, read_json
from fastdiff.web.recipes import restored
from fastdiff.web.table import OPERATIONS, offered
from fastdiff.web.tasks import Task
from fastdiff.web.visits import Refused, Studio, Visit

TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
BAD = (ValueError, TypeError, OSError, FastdiffError)  # what the applications raise for what could not work
HEARTBEAT = 15.0  # seconds
SIDE = Field("side", "Longest side", "integer", 256, SMALLEST * 2, MAX_SIDE)


class Routes:
    """What answers, for one studio."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self.heavy = anyio.CapacityLimiter(1)  # pictures are decoded, and jobs prepared, one at a time
        self.arriving = anyio.CapacityLimiter(4)  # uploads held in memory as they come in
        folder = resources.files("fastdiff.web") / "static"
        self.static = {item.name: item.read_bytes() for item in folder.iterdir() if item.is_file()}

    async def page(self, request: Request) -> Response:
        """The page."""
        return Response(
            self.static["index.html"], media_type=TYPES["html"], headers={"cache-control": "no-cache"}
        )

    async def part(self, request: Request) -> Response:
        """A part of the page."""
        name = request.path_params["name"]
        if name not in self.static:
            raise Refused(404, "there is no such file")
        kind = TYPES[name.rpartition(".")[2]]
        return Response(self.static[name], media_type=kind, headers={"cache-control": "no-cache"})

    async def about(self, request: Request) -> Response:
        """What the page can do."""
        source, limits = self.studio.source, self.studio.limits
        return data({
            "version": __version__, "operations": [operation.describe(source) for operation in offered()],
            "model": {"labels": source.labels, "size": source.size, "multiple": source.multiple},
            "limits": {"upload_bytes": limits.upload_bytes, "jobs": limits.jobs, "side": MAX_SIDE},
        })  # fmt: skip

    async def open(self, request: Request) -> Response:
        """A new visit; or the one named by `again`, after a reload, if it is still there."""
        visit = self.studio.visits.get(request.query_params.get("again", ""))
        return data((visit or self.studio.open()).describe(), 201)

    async def visit(self, request: Request) -> Response:
        """The jobs of a visit."""
        return data(self._visit(request).describe())

    async def close(self, request: Request) -> Response:
        """The end of a visit."""
        self.studio.close(self._visit(request))
        return Response(status_code=204)

    async def events(self, request: Request) -> Response:
        """What happens, as it happens."""
        return StreamingResponse(
            stream(self._visit(request)),
            media_type="text/event-stream",
            headers={"cache-control": "no-store"},
        )

    async def upload(self, request: Request) -> Response:
        """Keep an uploaded picture, and read the recipe it carries."""
        visit, limits = self._visit(request), self.studio.limits
        side = query(request, SIDE)
        async with self.arriving:
            body = await read_body(request, limits.upload_bytes, limits.upload_seconds)
        picture = await self._apart(lambda: received(body, side=side, limits=limits))
        visit.keep(picture)
        about = picture.describe() | {"digest": picture.digest, "recipe": None, "problem": ""}
        try:
            recipe = recipe_in(body)
            about["recipe"] = None if recipe is None else restored(recipe, self.studio.source)
        except ValueError as error:
            about["problem"] = str(error)
        return data(about, 201)

    async def picture(self, request: Request) -> Response:
        """A picture, as a PNG."""
        picture = self._visit(request).picture(request.path_params["picture"])
        headers = {"cache-control": "private, max-age=86400, immutable"}
        if "download" in request.query_params:
            headers["content-disposition"] = f'attachment; filename="{picture.name}.png"'
        return Response(picture.png, media_type="image/png", headers=headers)

    async def begin(self, request: Request) -> Response:
        """Check a job and queue it."""
        visit = self._visit(request)
        asked = await read_json(request, self.studio.limits.json_bytes)
        operation = operation_of(asked)
        inputs = {
            name: visit.picture(asked[name])
            for name in ("picture", "mask")
            if isinstance(asked.get(name), str)
        }
        fields = asked.get("fields", {})
        with self.studio.place(visit):
            task = await self._apart(lambda: self._prepared(visit, operation, fields, inputs))
            if visit.id not in self.studio.visits:
                raise Refused(404, "this visit has ended: load the page again")
            self.studio.queue(visit, task)
        return data(task.describe(), 202)

    async def cancel(self, request: Request) -> Response:
        """Cancel a job; one that has ended stays as it is."""
        task = self._visit(request).task(request.path_params["job"])
        self.studio.worker.cancel(task)
        return data(task.describe(), 202)

    def _visit(self, request: Request) -> Visit:
        return self.studio.visit(request.path_params["visit"])

    def _prepared(self, visit: Visit, operation: Operation, fields: Any, inputs: dict[str, Any]) -> Task:
        """A task, its job checked. In a thread of its own: it may take a while."""
        picture = inputs["picture"].tensor() if "picture" in inputs and operation.picture else None
        mask = mask_of(inputs["mask"]) if "mask" in inputs and operation.mask else None
        if picture is not None and mask is not None and picture.shape[-2:] != mask.shape[-2:]:
            raise ValueError(
                f"the mask is {mask.shape[-1]}x{mask.shape[-2]}, the picture {picture.shape[-1]}x{picture.shape[-2]}: "
                "they must be of one size"
            )
        prepared = operation.job(
            self.studio.source, fields, Inputs(picture, mask), most=self.studio.limits.pixels
        )
        taken = {name: given for name, given in inputs.items() if getattr(operation, name)}
        before = taken.get("picture") if prepared.before is None else kept(prepared.before, name="before")
        return Task(
            operation.name,
            dict(prepared.values),
            prepared.job,
            self.studio.teller(visit),
            steps=prepared.job.total_calls,
            inputs=taken,
            before=before,
        )

    async def _apart(self, work: Any) -> Any:
        """work() in a thread, one at a time; what the applications refuse is a Refused."""
        try:
            return await anyio.to_thread.run_sync(work, limiter=self.heavy)
        except BAD as error:
            raise Refused(400, " ".join(str(error).split())[:500] or type(error).__name__) from None


async def stream(visit: Visit) -> AsyncIterator[str]:
    """Server-sent events of a visit, until it ends or nobody listens."""
    with visit.listening() as queue:
        while True:
            try:
                event = await asyncio.wait_for(queue.get(), HEARTBEAT)
            except (asyncio.TimeoutError, TimeoutError):
                yield ": still here\n\n"
                continue
            if event is None:
                yield "event: ended\ndata: {}\n\n"
                return
            yield f"event: {event[0]}\ndata: {json.dumps(event[1])}\n\n"


def operation_of(asked: dict[str, Any]) -> Operation:
    """The operation asked for."""
    name = asked.get("operation")
    operation = OPERATIONS.get(name) if isinstance(name, str) else None
    if operation is None or not operation.offered:
        names = ", ".join(operation.name for operation in offered())
        raise Refused(400, f"operation must be one of {names}, got {short(name)}")
    return operation


def data(value: Any, status: int = 200) -> Response:
    """JSON, never cached."""
    return JSONResponse(value, status_code=status, headers={"cache-control": "no-store"})


def application(studio: Studio) -> Starlette:
    """The routes of a studio as an ASGI application."""
    routes = Routes(studio)
    one = "/api/visits/{visit}"

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        studio.start()
        sweeping = asyncio.create_task(sweep(studio))
        yield
        sweeping.cancel()
        studio.close_all()

    return Starlette(
        routes=[
            Route("/", routes.page),
            Route("/static/{name}", routes.part),
            Route("/api/about", routes.about),
            Route("/api/visits", routes.open, methods=["POST"]),
            Route(one, routes.visit, methods=["GET"]),
            Route(one, routes.close, methods=["DELETE"]),
            Route(f"{one}/events", routes.events),
            Route(f"{one}/pictures", routes.upload, methods=["POST"]),
            Route(f"{one}/pictures/{{picture}}.png", routes.picture),
            Route(f"{one}/jobs", routes.begin, methods=["POST"]),
            Route(f"{one}/jobs/{{job}}", routes.cancel, methods=["DELETE"]),
        ],
        exception_handlers={Refused: refused, HTTPException: refused_by_routing, Exception: failed},
        lifespan=lifespan,
    )


async def sweep(studio: Studio) -> None:
    """Close visits whose pages are gone."""
    while True:
        await asyncio.sleep(min(5.0, studio.limits.grace / 2))
        studio.expire()


async def refused(request: Request, error: Exception) -> Response:
    """The answer to what cannot be met."""
    assert isinstance(error, Refused)
    return refuse(error.status, str(error))


async def refused_by_routing(request: Request, error: Exception) -> Response:
    """The answer to an address or a method that there is not."""
    assert isinstance(error, HTTPException)
    return refuse(error.status_code, "there is no such address" if error.status_code == 404 else error.detail)


async def failed(request: Request, error: Exception) -> Response:
    """The answer to a fault of the server; it is raised again, and uvicorn logs it."""
    return refuse(500, "the server failed: its terminal says more")
