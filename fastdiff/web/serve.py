"""The socket, and the server's life: from the printed address to Ctrl-C."""

from __future__ import annotations

import contextlib
import secrets
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn

from fastdiff.apps.source import Source
from fastdiff.web.app import application
from fastdiff.web.guard import LOOPBACK, Guard, is_address
from fastdiff.web.limits import Limits
from fastdiff.web.visits import Studio

EVERYWHERE = ("0.0.0.0", "::")  # addresses that are all of this machine's


class Server(uvicorn.Server):
    """uvicorn's server, whose open event streams end when it is told to stop: it would wait for them."""

    def __init__(self, config: uvicorn.Config, studio: Studio) -> None:
        super().__init__(config)
        self.studio = studio

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Ctrl-C, or a request to terminate."""
        super().handle_exit(sig, frame)
        self.stop()

    def stop(self) -> None:
        """End, from any thread: running jobs within one step."""
        self.should_exit = True
        loop = self.studio.loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self.studio.close_all)


class Site:
    """A socket that is bound, and the server that is going to serve on it.

    host, port: where to listen, port 0 for any that is free. names: further names that this machine is called by.
    token: what visitors must know; None: a new one where others could reach the address, none on 127.0.0.1.
    Raises OSError in one line where it cannot listen.
    """

    def __init__(
        self,
        source: Source,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        names: tuple[str, ...] = (),
        token: str | None = None,
        limits: Limits | None = None,
    ) -> None:
        private = host in LOOPBACK
        self.token = token or (None if private else secrets.token_urlsafe(24))
        self.socket = listening(host, port)
        self.port: int = self.socket.getsockname()[1]
        shown = socket.gethostname() if host in EVERYWHERE else host
        self.host = f"[{shown}]" if ":" in shown else shown
        self.studio = Studio(source, limits or Limits())
        guarded = Guard(
            application(self.studio),
            hosts=(
                *LOOPBACK,
                *(() if private else (host.lower(), shown.lower())),
                *(n.lower() for n in names),
            ),
            numbers=not private and (host in EVERYWHERE or is_address(host)),
            token=self.token,
        )
        config = uvicorn.Config(
            guarded, log_level="warning", access_log=False, server_header=False, proxy_headers=False, ws="none",
            timeout_graceful_shutdown=5, lifespan="on", h11_max_incomplete_event_size=2**16, http="h11", loop="asyncio",
        )  # fmt: skip
        self.server = Server(config, self.studio)

    @property
    def address(self) -> str:
        """What to open in a browser."""
        return f"http://{self.host}:{self.port}/" + (f"?token={self.token}" if self.token else "")

    def run(self, *, ready: Callable[[], object] = lambda: None) -> None:
        """Serve until told to stop. ready: called before, when connections are already taken."""
        with self.socket:
            ready()
            with contextlib.suppress(KeyboardInterrupt):  # raised again once the server has stopped
                self.server.run(sockets=[self.socket])
        self.studio.worker.join(timeout=30)


def listening(host: str, port: int) -> socket.socket:
    """A listening socket. OSError with one helpful line where there can be none."""
    try:
        return socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=64
        )
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise OSError(f"cannot listen on {host}:{port} ({reason}): choose another --port or --host") from None
