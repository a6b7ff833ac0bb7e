"""What a request carries, read within bounds."""

from __future__ import annotations

import json
from typing import Any

import anyio
from starlette.requests import ClientDisconnect, Request

from fastdiff.web.fields import Field
from fastdiff.web.visits import Refused

DROPPED = 8  # times as much as is taken, before an upload is cut off


async def read_body(request: Request, most: int, seconds: float) -> bytes:
    """The body. Refused with 413 if it is too long, with 408 if it takes too long."""
    body, length = bytearray(), 0
    try:
        with anyio.fail_after(seconds):
            async for chunk in request.stream():
                length += len(chunk)
                # Somewhat too much is read and dropped: who still sends when the connection ends misses the answer.
                if length <= most:
                    body += chunk
                elif length > DROPPED * most:
                    break
    except TimeoutError:
        raise Refused(408, f"it took longer than {seconds:g} seconds to arrive") from None
    except ClientDisconnect:
        raise Refused(400, "the connection ended before all had arrived") from None
    if length > most:
        raise Refused(413, f"more than {most / 2**20:.3g} MiB is not taken: make it smaller first")
    return bytes(body)


async def read_json(request: Request, most: int) -> dict[str, Any]:
    """The body as a JSON object."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise Refused(415, "send JSON, as application/json")
    body = await read_body(request, most, 10.0)
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"not valid JSON: {str(error)[:100]}") from None
    if not isinstance(asked, dict):
        raise Refused(400, f"a JSON object is needed, got a {type(asked).__name__}")
    return asked


def query(request: Request, field: Field) -> Any:
    """A whole number of the address's query, checked."""
    given = request.query_params.get(field.name)
    if given is None:
        return field.default
    try:
        return field.read(int(given) if given.isdecimal() and len(given) < 10 else given)
    except ValueError as error:
        raise Refused(400, str(error)) from None
