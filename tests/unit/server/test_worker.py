"""The worker without free threads, and with clients that read nothing or reset connections."""

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
from tests.support.halt_server import HaltServer
from tests.support.process_facts import cpu_seconds
from tests.support.raw_server import receive_until
from tests.support.thread_limit_app import ALLOW, LARGE, REFUSE, RELEASE
from tests.support.waiting import SERVER_TIMEOUT, WAIT_TIMEOUT, wait_until

#: A request that waits for `100 Continue`.
EXPECTS = (
    b"POST /stop HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Content-Length: 5\r\nExpect: 100-continue\r\n\r\n"
)


class ThreadLimitHalt(HaltServer):
    """See `tests.support.thread_limit_app`."""

    command = ("-m", "gunicorn", "tests.support.thread_limit_app:app")


@pytest.fixture(scope="module")
def halt(shared_fake: FakeOpenAI) -> Iterator[ThreadLimitHalt]:
    """A server whose worker has served nothing yet."""
    server = ThreadLimitHalt({"OPENAI_BASE_URL": shared_fake.base_url, "OPENAI_API_KEY": "fake"})
    yield server
    server.close()


def connect(server: HaltServer, request: bytes) -> socket.socket:
    """A connection on which a request was sent."""
    client = socket.create_connection((server.host, server.port), timeout=WAIT_TIMEOUT)
    client.sendall(request.replace(b"\r\n", b"\r\nHost: localhost\r\n", 1))
    return client


def read_process_id(client: socket.socket) -> int:
    """The process ID in the response."""
    response = http.client.HTTPResponse(client)
    response.begin()
    return int(response.read())


def worker(server: HaltServer) -> int:
    """The process ID of the only worker; waits until it has started."""
    path = f"/proc/{server.process.pid}/task/{server.process.pid}/children"
    pids: list[str] = []

    def read_children() -> list[str]:
        with open(path) as children:
            pids[:] = children.read().split()
        return pids

    wait_until(read_children, SERVER_TIMEOUT)
    return int(pids[0])


def test_request_without_a_free_thread_waits_until_one_can_start(halt: ThreadLimitHalt) -> None:
    """If no thread can be started, the worker keeps the request and serves it later.

    Threads of other classes are already running: a Stop is answered.
    """
    process = worker(halt)
    get = "GET /{} HTTP/1.1\r\n\r\n"
    assert halt.client().get("/pid").status == 200  # the first thread of each class has started
    os.kill(process, REFUSE)
    halt.wait_printed("no thread from now on")
    with contextlib.ExitStack() as stack:
        held_client = stack.enter_context(connect(halt, get.format("held").encode()))
        halt.wait_printed("a request is held")
        waiting_client = stack.enter_context(connect(halt, get.format("pid").encode()))
        halt.wait_printed(r"\(quick: 1\)")
        assert halt.client().stop("unknown_id").status == 202
        os.kill(process, ALLOW)
        assert read_process_id(waiting_client) == process
        os.kill(process, RELEASE)
        assert read_process_id(held_client) == process
    assert worker(halt) == process
    assert "Traceback" not in halt.printed


def test_client_that_reads_nothing_is_given_up_without_an_error(halt: ThreadLimitHalt) -> None:
    """A client that reads nothing frees its thread after the time limit of a write, without an
    error in the log.
    """
    with connect(halt, b"GET /flood HTTP/1.1\r\n\r\n") as client:
        halt.wait_printed("the flood is over")
        with contextlib.suppress(ConnectionResetError):
            while client.recv(1 << 20):
                pass
    assert halt.client().get("/pid").status == 200
    assert "Error" not in halt.printed
    assert "Traceback" not in halt.printed


def test_clients_that_read_no_response_hold_no_thread(halt: ThreadLimitHalt) -> None:
    """With more such clients than threads, a further request of their class is answered."""
    with contextlib.ExitStack() as stack:
        for _ in range(40):
            client = stack.enter_context(socket.socket())
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect((halt.host, halt.port))
            client.sendall(b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert halt.client().get("/pid").status == 200
        assert client.recv(1, socket.MSG_PEEK)


def test_reset_before_100_continue_does_not_end_the_worker(halt: ThreadLimitHalt) -> None:
    """The worker and its streams survive a reset that arrives with `Expect: 100-continue`."""
    process = worker(halt)
    with socket.create_connection((halt.host, halt.port)) as client:
        assert (
            halt.client().get("/pid").status == 200
        )  # the worker has accepted the earlier connection
        os.kill(process, signal.SIGSTOP)
        try:
            client.sendall(b"POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
        finally:
            os.kill(process, signal.SIGCONT)
    with connect(halt, b"GET /pid HTTP/1.1\r\n\r\n") as client:
        assert read_process_id(client) == process


def test_waiting_requests_beyond_queued_max_are_refused(halt: ThreadLimitHalt) -> None:
    """With all threads of a class in use, requests beyond QUEUED_MAX bytes are refused at once."""
    size = 4_000_000
    path = "/settings/held"
    head = f"POST {path} HTTP/1.1\r\nContent-Length: {size}\r\n\r\n".encode()
    with contextlib.ExitStack() as stack:
        count_before = halt.printed.count("a request is held")
        held_clients = [
            stack.enter_context(connect(halt, f"GET {path} HTTP/1.1\r\n\r\n".encode()))
            for _ in range(THREADS_MAX[Kind.PAGE])
        ]
        wait_until(
            lambda: halt.printed.count("a request is held") == count_before + len(held_clients),
            SERVER_TIMEOUT,
        )
        client_count = QUEUED_MAX // size + 1
        waiting_clients = [
            stack.enter_context(connect(halt, head + bytes(size))) for _ in range(client_count)
        ]
        assert (
            select.select(waiting_clients, [], [], WAIT_TIMEOUT)[0][0].recv(12) == b"HTTP/1.1 503"
        )
        process = worker(halt)
        while held_clients:
            os.kill(process, RELEASE)
            client = select.select(held_clients, [], [], WAIT_TIMEOUT)[0][0]
            held_clients.remove(client)
            assert read_process_id(client) == process


def test_slow_client_gets_its_whole_response_and_the_next_one(halt: ThreadLimitHalt) -> None:
    """A slow client gets all of its response, and its connection serves the pipelined request."""
    with connect(halt, b"GET /large HTTP/1.1\r\n\r\n") as client:
        client.sendall(b"GET /pid HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert halt.client().get("/pid").status == 200  # the first response has filled the buffers
        assert len(receive_until(client, b"\r\n\r\n%d" % worker(halt))) > LARGE


def test_request_in_single_bytes_is_served(halt: ThreadLimitHalt) -> None:
    """A chunked body, `100 Continue` and a pipelined request work byte by byte."""
    head = b"POST /stop HTTP/1.1\r\nContent-Type: application/json\r\nExpect: 100-continue\r\n"
    body = b'1a\r\n{"stream_id":"unknown_id"}\r\n0\r\n\r\n'
    with connect(halt, head + b"Transfer-Encoding: chunked\r\n\r\n") as client:
        assert receive_until(client, b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        request = body + b"GET /pid HTTP/1.1\r\nHost: localhost\r\n\r\n"
        for offset in range(len(request)):
            client.sendall(request[offset : offset + 1])
        response = receive_until(client, b"\r\n\r\n%d" % worker(halt))
        assert response.startswith(b"HTTP/1.1 202 ")
        assert b"pending" in response


def test_pipelined_request_gets_100_continue(halt: ThreadLimitHalt) -> None:
    """A request whose head came with the request before it gets its `100 Continue`."""
    with connect(halt, b"GET /pid HTTP/1.1\r\n\r\n" + EXPECTS) as client:
        assert receive_until(client, b" Continue\r\n\r\n").startswith(b"HTTP/1.1 200 ")


def test_connection_reset_does_not_end_the_worker(halt: ThreadLimitHalt) -> None:
    """Resets by clients that wait for `100 Continue` do not end the worker."""
    process = worker(halt)
    for _ in range(200):
        client = connect(halt, EXPECTS)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
    assert halt.client().get("/pid").body == b"%d" % process


@pytest.mark.parametrize("path", [b"/stop", b"/chat", b"/nowhere"])
def test_malformed_body_is_refused_without_a_thread(halt: ThreadLimitHalt, path: bytes) -> None:
    """The main loop refuses an endless chunk line, for whose end gunicorn would wait."""
    request = b"POST %b HTTP/1.1\r\nContent-Type: application/json\r\n" % path
    line = b"5;" + b"a" * 5_000
    with connect(halt, request + b"Transfer-Encoding: chunked\r\n\r\n" + line) as client:
        assert receive_until(client, b"\n").startswith(b"HTTP/1.1 4")


def test_unsent_head_is_queued_together_with_its_body() -> None:
    """A head that the network does not take is queued with its body; no thread waits."""
    server_socket, client_socket = socket.socketpair()
    with (
        client_socket,
        ClientSocket(
            server_socket.family, server_socket.type, server_socket.proto, server_socket.detach()
        ) as client,
    ):
        client.leaves_rest = True
        while not client.unsent:
            client.sendall(b"x" * 1_000)
        client.setblocking(False)  # so that a wait fails
        unsent = bytes(client.unsent)
        client.sendall(b"the body")
        assert bytes(client.unsent) == unsent + b"the body"


@pytest.mark.parametrize(
    "framed_body",
    [
        pytest.param(b"Content-Length: 4000000\r\n\r\n" + bytes(4_000_000), id="content length"),
        pytest.param(
            b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\na\r\n" * 200_000 + b"0\r\n\r\n",
            id="small chunks",
        ),
    ],
)
def test_connection_is_reused_after_an_unread_body(
    halt: ThreadLimitHalt, framed_body: bytes
) -> None:
    """The connection stays usable as its response says; the work is linear in the body."""
    head = b"POST /conversations/nowhere HTTP/1.1\r\nContent-Type: application/json\r\n"
    with connect(halt, head + framed_body) as client:
        response = receive_until(client, b"\n")
        assert response.startswith((b"HTTP/1.1 404 ", b"HTTP/1.1 413 "))
        assert b"connection: keep-alive\r\n" in response.lower()
        client.sendall(b"GET /pid HTTP/1.1\r\nHost: localhost\r\n\r\n")
        receive_until(client, b"\r\n\r\n%d" % worker(halt))


def test_early_refusal_of_a_large_body_closes_the_connection(halt: ThreadLimitHalt) -> None:
    """A response to an incomplete body beyond the limit says `Connection: close`."""
    with connect(halt, b"POST /chat HTTP/1.1\r\nContent-Length: 5000000\r\n\r\n") as client:
        response = receive_until(client, b"\n")
    assert response.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close\r\n" in response.lower()


def test_body_in_small_chunks_takes_linear_cpu_time(halt: ThreadLimitHalt) -> None:
    """Four times as many chunks of one byte take about four times the worker's CPU time."""

    def cpu_time(size: int) -> float:
        body = b'{"messages":[{"role":"user","content":"%b"}],"model":"echo"}' % (b"a" * size)
        chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
        head = b"POST /chat HTTP/1.1\r\nContent-Type: application/json\r\nConnection: close\r\n"
        seconds_before = cpu_seconds([worker(halt)])
        with connect(halt, head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks) as client:
            assert client.recv(12) == b"HTTP/1.1 200"
        return cpu_seconds([worker(halt)]) - seconds_before

    small_seconds, large_seconds = cpu_time(50_000), cpu_time(200_000)
    # Quadratic work would take 16 times as long.
    assert large_seconds < 9 * small_seconds + 0.5, (small_seconds, large_seconds)


def test_malformed_requests_write_ten_log_lines_at_most(halt: ThreadLimitHalt) -> None:
    """Of a flood of malformed requests, ten are logged, then a line that says so."""
    for _ in range(30):
        with connect(halt, b"garbage\r\n\r\n") as client:
            assert client.recv(4096).startswith(b"HTTP/1.1 400 ")
    halt.wait_printed("further ones are not logged")
    assert halt.printed.count("Invalid request from") == 10


def test_client_that_reads_nothing_does_not_delay_a_leaving_worker(
    shared_fake: FakeOpenAI,
) -> None:
    """The graceful time is for clients that read; the rest of an unread response is dropped."""
    settings = {"OPENAI_BASE_URL": shared_fake.base_url, "OPENAI_API_KEY": "fake"}
    # Without TEST_SILENCE_MAX the limit on silence would drop the client after 30 s.
    server = ThreadLimitHalt(
        {**settings, "HALT_GRACEFUL_TIMEOUT": "1000", "TEST_SILENCE_MAX": "1000"}
    )
    try:
        with connect(server, b"GET /large HTTP/1.1\r\n\r\n") as client:
            assert client.recv(1)
            server.terminate()
            assert server.wait(60) == 0  # well below HALT_GRACEFUL_TIMEOUT
    finally:
        server.kill()
        server.close()
