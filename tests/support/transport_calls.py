"""Short calls of a Transport: send a GET request, read its body."""

from __future__ import annotations

import contextlib
import time

import httpx2

from halt.core.connection import NoData, UpstreamConnection, use_connection
from halt.transport.http1 import Body
from halt.transport.pool import Transport
from tests.support.waiting import WAIT_TIMEOUT


def get(
    transport: Transport, url: str, connection: UpstreamConnection | None = None
) -> httpx2.Response:
    """Send a GET request on a connection; the response, its body not read yet."""
    with use_connection(connection or UpstreamConnection()):
        return transport.handle_request(httpx2.Request("GET", url))


def body_of(response: httpx2.Response) -> Body:
    body = response.extensions["halt.body"]
    assert isinstance(body, Body)
    return body


def read_all(body: Body) -> bytes:
    """Read to the end of the body; NoData is retried until WAIT_TIMEOUT."""
    pieces: list[bytes] = []
    deadline = time.monotonic() + WAIT_TIMEOUT
    while time.monotonic() < deadline:
        with contextlib.suppress(NoData):
            data = body.read()
            if not data:
                return b"".join(pieces)
            pieces.append(data)
    raise TimeoutError(f"the body does not end; so far: {b''.join(pieces)[:200]!r}")


def fetch(transport: Transport, url: str, connection: UpstreamConnection | None = None) -> bytes:
    """Send a GET request; the whole body."""
    body = body_of(get(transport, url, connection))
    try:
        return read_all(body)
    finally:
        body.close()
