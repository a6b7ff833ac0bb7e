"""A server that tests of the page share, its client, its model, and a visit for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fastdiff.web.serve import Site
from web_client import LIMITS, Client, Watched, serving


@pytest.fixture(scope="module")
def web_server() -> Iterator[tuple[Client, Watched, Site]]:
    with serving(limits=LIMITS) as everything:
        yield everything


@pytest.fixture
def client(web_server: tuple[Client, Watched, Site]) -> Client:
    return web_server[0]


@pytest.fixture
def model(web_server: tuple[Client, Watched, Site]) -> Watched:
    return web_server[1]


@pytest.fixture
def visit(client: Client) -> Iterator[str]:
    address = client.visit()
    yield address
    client.ask("DELETE", address)
