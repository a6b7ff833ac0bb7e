"""The door of the server: whose requests are answered, and the headers every answer carries."""

from __future__ import annotations

import hashlib
import ipaddress
import secrets
from collections.abc import Mapping

from starlette.datastructures import QueryParams
from starlette.requests import cookie_parser
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    ),
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Guard:
    """ASGI middleware that refuses what does not come from the page itself.

    hosts: names that the Host header may have: a page of another name that was made to point here (DNS rebinding) is
    refused. numbers: whether any IP address is such a name, too; it cannot be rebound. token: what a visitor must know,
    from the address that was printed, then from a cookie; None: nobody else can reach the address.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        hosts: tuple[str, ...] = LOOPBACK,
        numbers: bool = False,
        token: str | None = None,
    ) -> None:
        self.app, self.hosts, self.numbers, self.token = app, hosts, numbers, token
        self.cookie = "fastdiff-" + hashlib.sha256((token or "").encode()).hexdigest()[:8]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # websockets are not spoken here
            await send({"type": "websocket.close", "code": 1008})
            return

        async def dressed(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = {name.lower() for name, _ in message["headers"]}
                message["headers"] = [
                    *message["headers"],
                    *((k.encode(), v.encode()) for k, v in HEADERS.items() if k.encode() not in own),
                ]
            await send(message)

        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        answer = self.refusal(scope["method"], headers) or self.token_answer(scope, headers)
        await (answer or self.app)(scope, receive, dressed)

    def refusal(self, method: str, headers: Mapping[str, str]) -> Response | None:
        """The answer to a request that comes from elsewhere, None for one of the page."""
        host = headers.get("host", "")
        if not self.known(host):
            return refuse(
                421, f"this server is not known as {ascii(host)[:80]}: see fastdiff ui --allow-host"
            )
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host:
            return refuse(403, "requests from other pages are refused")
        # Navigation and pictures elsewhere send no Origin; browsers say in this header where they come from.
        site = headers.get("sec-fetch-site", "none")
        if site not in ("none", "same-origin") and (
            method not in ("GET", "HEAD") or headers.get("sec-fetch-mode") != "navigate"
        ):
            return refuse(403, "requests from other pages are refused")
        return None

    def known(self, host: str) -> bool:
        """Whether a Host header names this server."""
        name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
        name = name.lower()
        if name in self.hosts:
            return True
        return self.numbers and is_address(name)

    def token_answer(self, scope: Scope, headers: Mapping[str, str]) -> Response | None:
        """The answer to a visitor without the token, or with it in the address (moved into a cookie), else None."""
        if self.token is None or self.holds(headers):
            return None
        given = QueryParams(scope["query_string"]).get("token", "")
        if scope["path"] == "/" and scope["method"] == "GET" and self.matches(given):
            answer = RedirectResponse(
                "/", status_code=303
            )  # so that the address bar and the history do not hold it
            answer.set_cookie(self.cookie, self.token, httponly=True, samesite="strict", path="/")
            return answer
        return refuse(401, "this page wants its token: open the address that fastdiff ui printed")

    def holds(self, headers: Mapping[str, str]) -> bool:
        """Whether a cookie or an Authorization header carries the token."""
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self.matches(bearer):
            return True
        cookie = cookie_parser(headers.get("cookie", "")).get(self.cookie)
        return cookie is not None and self.matches(cookie)

    def matches(self, given: str) -> bool:
        """Whether it is the token; takes as long for a wrong one."""
        return secrets.compare_digest(given.encode("utf-8", "replace"), (self.token or "").encode())


def is_address(name: str) -> bool:
    """Whether a host name is an IP address."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def refuse(status: int, message: str) -> Response:
    """A refusal as JSON."""
    return JSONResponse({"error": message}, status_code=status)
