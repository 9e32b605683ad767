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
from tests.short_app import ALLOW, REFUSE
from tests.wire import SOON

LONG = 70_000  # bytes of a body that a thread waits for


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
    """The worker lives; the first thread that is free, or can be started again, serves it."""
    process = worker(short)
    short.wait_printed("the worker runs")
    os.kill(process, REFUSE)
    short.wait_printed("no thread from now on")
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(connected(short, b"GET /pid HTTP/1.1\r\n\r\n"))
        short.wait_printed("wait for the 0 that")
        os.kill(process, ALLOW)
        assert answered_by(first) == process

        os.kill(process, REFUSE)
        eventually(lambda: short.printed.count("no thread from now on") == 2)
        head = f"POST /take HTTP/1.1\r\nContent-Length: {LONG}\r\nExpect: 100-continue\r\n\r\n"
        held = stack.enter_context(connected(short, head.encode()))
        assert held.recv(4096).startswith(b"HTTP/1.1 100 ")  # the only thread has it
        second = stack.enter_context(connected(short, b"GET /pid HTTP/1.1\r\n\r\n"))
        short.wait_printed("wait for the 1 that")
        held.sendall(bytes(LONG))
        assert answered_by(held) == process
        assert answered_by(second) == process
    os.kill(process, ALLOW)
    eventually(lambda: short.printed.count("threads again") == 2)
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
