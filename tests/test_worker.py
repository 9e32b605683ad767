"""The worker in a system that runs short of threads, and with clients that take nothing."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
from collections.abc import Iterator

import pytest

from tests.conftest import HaltServer, eventually
from tests.fake_openai import FakeOpenAI
from tests.short_app import ALLOW, REFUSE, RELEASE
from tests.wire import SOON


class Short(HaltServer):
    """See `tests.short_app`."""

    command = ("-m", "gunicorn", "tests.short_app:app")


@pytest.fixture(scope="module")
def short(shared_fake: FakeOpenAI) -> Iterator[Short]:
    """A server whose worker has served nothing yet."""
    server = Short({"OPENAI_BASE_URL": shared_fake.base_url, "OPENAI_API_KEY": "fake"})
    yield server
    server.close()


def connected(server: HaltServer, request: bytes) -> socket.socket:
    """A connection on which a request was sent."""
    client = socket.create_connection((server.host, server.port), timeout=SOON)
    client.sendall(request.replace(b"\r\n", b"\r\nHost: localhost\r\n", 1))
    return client


def answered_by(client: socket.socket) -> int:
    """The process that says so in its response."""
    response = http.client.HTTPResponse(client)
    response.begin()
    return int(response.read())


def worker(server: HaltServer) -> int:
    """The process of the only worker, which may be about to be started."""
    path = f"/proc/{server.process.pid}/task/{server.process.pid}/children"
    found: list[str] = []

    def look() -> list[str]:
        with open(path) as children:
            found[:] = children.read().split()
        return found

    eventually(look)
    return int(found[0])


def test_a_request_waits_where_the_system_gives_no_thread(short: Short) -> None:
    """The worker lives, and serves it as soon as a thread can be started again.

    The threads of another class are there all the same: a Stop is answered.
    """
    process = worker(short)
    get = "GET /{} HTTP/1.1\r\n\r\n"
    assert short.client().get("/pid").status == 200  # the first thread of each class has started
    os.kill(process, REFUSE)
    short.wait_printed("no thread from now on")
    with contextlib.ExitStack() as stack:
        held = stack.enter_context(connected(short, get.format("held").encode()))
        short.wait_printed("a request is held")
        waits = stack.enter_context(connected(short, get.format("pid").encode()))
        short.wait_printed(r"\(quick: 1\)")
        assert short.client().stop("unknown_id").status == 202
        os.kill(process, ALLOW)
        assert answered_by(waits) == process
        os.kill(process, RELEASE)
        assert answered_by(held) == process
    assert worker(short) == process
    assert "Traceback" not in short.printed


def test_a_client_that_takes_nothing_is_given_up(short: Short) -> None:
    """Its thread is free after the time for a write, and the log has nothing of it."""
    with connected(short, b"GET /flood HTTP/1.1\r\n\r\n") as client:
        short.wait_printed("the flood is over")
        with contextlib.suppress(ConnectionResetError):
            while client.recv(1 << 20):
                pass
    assert short.client().get("/pid").status == 200
    assert "Error" not in short.printed
    assert "Traceback" not in short.printed
