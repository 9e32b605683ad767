"""The worker in a system that runs short of threads, and with clients that take nothing."""

from __future__ import annotations

import contextlib
import http.client
import os
import select
import signal
import socket
import struct
from collections.abc import Iterator

import pytest

from halt.server.request_buffer import Kind
from halt.server.thread_pools import THREADS_MAX
from halt.server.worker import QUEUED_MAX
from halt.testing.fake_openai import FakeOpenAI
from halt.web.client_socket import ClientSocket
from tests.support.halt_server import HaltServer, eventually
from tests.support.process_facts import cpu_seconds
from tests.support.raw_server import receive_until
from tests.support.thread_limit_app import ALLOW, LARGE, REFUSE, RELEASE
from tests.support.waiting import WAIT_TIMEOUT

#: A request that waits for a word of the server's.
EXPECTS = (
    b"POST /stop HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Content-Length: 5\r\nExpect: 100-continue\r\n\r\n"
)


class Short(HaltServer):
    """See `tests.support.thread_limit_app`."""

    command = ("-m", "gunicorn", "tests.support.thread_limit_app:app")


@pytest.fixture(scope="module")
def short(shared_fake: FakeOpenAI) -> Iterator[Short]:
    """A server whose worker has served nothing yet."""
    server = Short({"OPENAI_BASE_URL": shared_fake.base_url, "OPENAI_API_KEY": "fake"})
    yield server
    server.close()


def connected(server: HaltServer, request: bytes) -> socket.socket:
    """A connection on which a request was sent."""
    client = socket.create_connection((server.host, server.port), timeout=WAIT_TIMEOUT)
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


def test_clients_that_do_not_take_their_response_hold_no_thread(short: Short) -> None:
    """More of them than there are threads; a further request of their class is answered."""
    with contextlib.ExitStack() as stack:
        for _ in range(40):
            client = stack.enter_context(socket.socket())
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect((short.host, short.port))
            client.sendall(b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert short.client().get("/pid").status == 200
        assert client.recv(1, socket.MSG_PEEK)


def test_a_client_that_leaves_before_it_is_told_to_go_on(short: Short) -> None:
    """The worker, with all its streams, outlives a reset that comes with `Expect: 100-continue`."""
    process = worker(short)
    with socket.create_connection((short.host, short.port)) as client:
        assert short.client().get("/pid").status == 200  # the worker has accepted the one before
        os.kill(process, signal.SIGSTOP)
        try:
            client.sendall(b"POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
        finally:
            os.kill(process, signal.SIGCONT)
    with connected(short, b"GET /pid HTTP/1.1\r\n\r\n") as client:
        assert answered_by(client) == process


def test_large_requests_that_wait_for_a_thread_are_bounded(short: Short) -> None:
    """With all threads of a class taken, requests beyond QUEUED_MAX bytes are refused at once."""
    size = 4_000_000
    path = "/settings/held"
    head = f"POST {path} HTTP/1.1\r\nContent-Length: {size}\r\n\r\n".encode()
    with contextlib.ExitStack() as stack:
        before = short.printed.count("a request is held")
        held = [
            stack.enter_context(connected(short, f"GET {path} HTTP/1.1\r\n\r\n".encode()))
            for _ in range(THREADS_MAX[Kind.PAGE])
        ]
        eventually(lambda: short.printed.count("a request is held") == before + len(held))
        many = QUEUED_MAX // size + 1
        waiting = [stack.enter_context(connected(short, head + bytes(size))) for _ in range(many)]
        assert select.select(waiting, [], [], WAIT_TIMEOUT)[0][0].recv(12) == b"HTTP/1.1 503"
        process = worker(short)
        while held:
            os.kill(process, RELEASE)
            released = select.select(held, [], [], WAIT_TIMEOUT)[0][0]
            held.remove(released)
            assert answered_by(released) == process


def test_a_client_that_takes_its_response_slowly_gets_all_of_it(short: Short) -> None:
    """And its connection goes on with the request that it has sent behind the first."""
    with connected(short, b"GET /large HTTP/1.1\r\n\r\n") as client:
        client.sendall(b"GET /pid HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert short.client().get("/pid").status == 200  # the first one has filled the network
        assert len(receive_until(client, b"\r\n\r\n%d" % worker(short))) > LARGE


def test_a_request_may_come_byte_by_byte(short: Short) -> None:
    """A body in chunks, the word that the client waits for, and a request behind it."""
    head = b"POST /stop HTTP/1.1\r\nContent-Type: application/json\r\nExpect: 100-continue\r\n"
    body = b'1a\r\n{"stream_id":"unknown_id"}\r\n0\r\n\r\n'
    with connected(short, head + b"Transfer-Encoding: chunked\r\n\r\n") as client:
        assert receive_until(client, b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        rest = body + b"GET /pid HTTP/1.1\r\nHost: localhost\r\n\r\n"
        for at in range(len(rest)):
            client.sendall(rest[at : at + 1])
        said = receive_until(client, b"\r\n\r\n%d" % worker(short))
        assert said.startswith(b"HTTP/1.1 202 ")
        assert b"pending" in said


def test_the_word_is_said_also_to_a_request_behind_another_one(short: Short) -> None:
    """Its head came with the request before it."""
    with connected(short, b"GET /pid HTTP/1.1\r\n\r\n" + EXPECTS) as client:
        assert receive_until(client, b" Continue\r\n\r\n").startswith(b"HTTP/1.1 200 ")


def test_a_client_that_resets_its_connection_ends_no_worker(short: Short) -> None:
    """Not where it waits for a word either, which cannot be said any more."""
    process = worker(short)
    for _ in range(200):
        client = connected(short, EXPECTS)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
    assert short.client().get("/pid").body == b"%d" % process


@pytest.mark.parametrize("path", [b"/stop", b"/chat", b"/nowhere"])
def test_a_body_that_is_malformed_holds_no_thread(short: Short, path: bytes) -> None:
    """gunicorn would wait for the end of this line; the main loop does not, and it is refused."""
    request = b"POST %b HTTP/1.1\r\nContent-Type: application/json\r\n" % path
    line = b"5;" + b"a" * 5_000
    with connected(short, request + b"Transfer-Encoding: chunked\r\n\r\n" + line) as client:
        assert receive_until(client, b"\n").startswith(b"HTTP/1.1 4")


def test_a_small_rest_is_left_together_with_what_follows() -> None:
    """A head that the network does not take, and its body: no thread waits for the client."""
    ours, theirs = socket.socketpair()
    with theirs, ClientSocket(ours.family, ours.type, ours.proto, ours.detach()) as client:
        client.leaves_rest = True
        while not client.unsent:
            client.sendall(b"x" * 1_000)
        client.setblocking(False)  # so that a wait fails
        rest = bytes(client.unsent)
        client.sendall(b"the body")
        assert bytes(client.unsent) == rest + b"the body"


@pytest.mark.parametrize(
    "framed",
    [
        pytest.param(b"Content-Length: 4000000\r\n\r\n" + bytes(4_000_000), id="a length"),
        pytest.param(
            b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\na\r\n" * 200_000 + b"0\r\n\r\n",
            id="small chunks",
        ),
    ],
)
def test_a_connection_goes_on_behind_a_body_that_was_not_read(short: Short, framed: bytes) -> None:
    """As the response says; the work is linear in the body."""
    head = b"POST /conversations/nowhere HTTP/1.1\r\nContent-Type: application/json\r\n"
    with connected(short, head + framed) as client:
        said = receive_until(client, b"\n")
        assert said.startswith((b"HTTP/1.1 404 ", b"HTTP/1.1 413 "))
        assert b"connection: keep-alive\r\n" in said.lower()
        client.sendall(b"GET /pid HTTP/1.1\r\nHost: localhost\r\n\r\n")
        receive_until(client, b"\r\n\r\n%d" % worker(short))


def test_a_response_before_its_request_has_come_says_that_the_connection_ends(short: Short) -> None:
    """A body beyond the limit need not come, and what comes of it is no further request."""
    with connected(short, b"POST /chat HTTP/1.1\r\nContent-Length: 5000000\r\n\r\n") as client:
        said = receive_until(client, b"\n")
    assert said.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close\r\n" in said.lower()


def test_a_body_in_small_chunks_takes_linear_time(short: Short) -> None:
    """Four times as many chunks of one byte take about four times the worker's CPU time."""

    def seconds(size: int) -> float:
        body = b'{"messages":[{"role":"user","content":"%b"}],"model":"echo"}' % (b"a" * size)
        chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
        head = b"POST /chat HTTP/1.1\r\nContent-Type: application/json\r\nConnection: close\r\n"
        before = cpu_seconds([worker(short)])
        with connected(short, head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks) as client:
            assert client.recv(12) == b"HTTP/1.1 200"
        return cpu_seconds([worker(short)]) - before

    small, large = seconds(50_000), seconds(200_000)
    assert large < 9 * small + 0.5, (small, large)  # 16 times, if it were quadratic


def test_malformed_requests_write_a_few_lines(short: Short) -> None:
    """Of a flood of them, the log says how it goes on."""
    for _ in range(30):
        with connected(short, b"garbage\r\n\r\n") as client:
            assert client.recv(4096).startswith(b"HTTP/1.1 400 ")
    short.wait_printed("further ones are not logged")
    assert short.printed.count("Invalid request from") == 10


def test_a_client_that_takes_nothing_does_not_hold_a_leaving_worker(
    shared_fake: FakeOpenAI,
) -> None:
    """Its grace is for clients that take something; the rest of a response is given up."""
    settings = {"OPENAI_BASE_URL": shared_fake.base_url, "OPENAI_API_KEY": "fake"}
    server = Short({**settings, "HALT_GRACEFUL_TIMEOUT": "100"})
    try:
        with connected(server, b"GET /large HTTP/1.1\r\n\r\n") as client:
            assert client.recv(1)
            server.terminate()
            assert server.wait(20) == 0  # without a limit: SILENCE_MAX, 30 s
    finally:
        server.kill()
        server.close()
