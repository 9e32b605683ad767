"""Resources of a server: released by ended generations, and the server's behaviour without more.

Generations end in every way on every surface and leave no thread and no descriptor. SIGTERM, a full
disk and a limit of descriptors lose no event that a reader got.
"""

from __future__ import annotations

import contextlib
import http.client
import resource
import socket
import sqlite3
import struct
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlencode

import pytest

from halt.testing.fake_openai import FakeOpenAI
from tests.resilience import loads
from tests.resilience.bystander import STOP_WITHIN, Bystander
from tests.resilience.servers import (
    LimitedServer,
    descriptors_limited,
    workers,
)
from tests.support.halt_server import HaltServer, StartHalt, new_id, settings
from tests.support.http_client import Client
from tests.support.process_facts import descriptors, status
from tests.support.waiting import SERVER_TIMEOUT, wait_until
from tests.support.websocket_client import WebSocket

pytestmark = pytest.mark.slow

FLOWING = "count?n=100000&gap_ms=2"
FORM = loads.FORM
EXIT_TIMEOUT = 120.0  # seconds; HALT_GRACEFUL_TIMEOUT would allow an hour


# --- generations that end -------------------------------------------------------------------------


def reset(sock: socket.socket) -> None:
    """Close a connection with a TCP reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def open_generation(
    client: Client, surface: str, stream_id: str, model: str
) -> http.client.HTTPConnection:
    """Request a generation on this surface; the connection, its response not read."""
    connection = client.connect()
    body = {"messages": [{"role": "user", "content": "Hi"}], "model": model}
    match surface:
        case "events":
            client.send(connection, "POST", "/chat/stream", body | {"id": stream_id})
        case "text":
            accept = {"Accept": "text/plain"}
            client.send(connection, "POST", "/chat", body | {"id": stream_id}, accept)
        case "v1":
            name = {"X-Stream-Id": stream_id}
            client.send(connection, "POST", "/v1/chat/completions", body | {"stream": True}, name)
        case "EventSource":
            query = urlencode({"prompt": "Hi", "model": model, "id": stream_id})
            client.send(connection, "GET", f"/stream?{query}")
        case "page":
            form = urlencode({"prompt": f"/fake {model}", "id": stream_id}).encode()
            assert client.request("POST", f"/c/{new_id()}/messages", form, FORM).status == 200
            client.send(connection, "GET", f"/streams/{stream_id}/page")
    return connection


def run_generation(client: Client, fake: FakeOpenAI, surface: str, end: str) -> None:
    """Start a generation on this surface and end it in this way."""
    stream_id = new_id()
    model = f"{FLOWING}&first_ms=0" if end != "ended" else "count?n=5"
    connection = open_generation(client, surface, stream_id, model)
    sock = connection.sock
    assert sock is not None
    if end == "ended":
        assert connection.getresponse().read()
        connection.close()
        return
    sock.recv(1, socket.MSG_PEEK)  # the response has begun
    if end == "stopped":
        assert client.stop(stream_id).status in {200, 202}
        connection.getresponse().read()
    if end == "reset":
        reset(sock)
    connection.close()
    client.stop(stream_id)


SURFACES = ("events", "text", "v1", "EventSource", "page")
ENDS = ("left", "reset", "stopped", "ended")


def run_all_ends(server: HaltServer, fake: FakeOpenAI) -> None:
    """Run each surface with each end, the surfaces in parallel; and WebSockets with each end."""
    client = server.client()
    client.get("/")

    def surface_runner(surface: str) -> Callable[[], None]:
        def run() -> None:
            for end in ENDS:
                run_generation(client, fake, surface, end)

        return run

    def run_sockets() -> None:
        for end in ENDS:
            with WebSocket(server) as ws:
                for _ in range(2):
                    stream_id = ws.start("count?n=5" if end == "ended" else FLOWING)
                    if end == "ended":
                        ws.to_end(stream_id)
                    elif end == "stopped":
                        ws.stop(stream_id)
                    else:
                        ws.until_text(stream_id, "1 ")
                        ws.send(type="stop", id=stream_id)
                        ws.wait_processed()
                if end == "reset":
                    ws.connection.socket.shutdown(socket.SHUT_RDWR)

    with loads.calls(*map(surface_runner, SURFACES), run_sockets) as results:
        pass
    assert results == [None] * (len(SURFACES) + 1), results


def test_generations_leave_no_thread_and_no_descriptor(
    start_halt: StartHalt, fake: FakeOpenAI
) -> None:
    """Generations that are left, reset, stopped or ended on any surface release everything."""
    server = start_halt(fake, HALT_LOG_SECONDS=0, HALT_ORPHAN_GRACE=0)
    (worker,) = workers(server)
    run_all_ends(server, fake)  # pools grow and libraries are loaded
    wait_until(lambda: all(record.ended.is_set() for record in fake.requests), SERVER_TIMEOUT)
    before = (status(worker, "Threads"), descriptors(worker))
    for _ in range(3):
        run_all_ends(server, fake)
    wait_until(lambda: all(record.ended.is_set() for record in fake.requests), SERVER_TIMEOUT)
    # Request threads stay for the next request, and idle connections to the model are kept.
    # Later rounds may run more of them at once than the first.
    spare = 2 * (len(SURFACES) + 1)
    wait_until(lambda: status(worker, "Threads") <= before[0] + spare, SERVER_TIMEOUT)
    wait_until(lambda: descriptors(worker) <= before[1] + spare, SERVER_TIMEOUT)
    assert workers(server) == [worker]
    assert "Traceback" not in server.printed


# --- SIGTERM --------------------------------------------------------------------------------------


def test_sigterm_ends_and_saves_a_hundred_streams(fake: FakeOpenAI, tmp_path: Path) -> None:
    """Each reader gets one end, and every event it got is in the store."""
    server = HaltServer(settings(fake, HALT_DATA=tmp_path, HALT_GRACEFUL_TIMEOUT=3600))
    client = server.client()
    with contextlib.closing(server), contextlib.ExitStack() as stack:
        streams = [
            stack.enter_context(client.chat("count?n=1000000&gap_ms=50")) for _ in range(100)
        ]
        for events in streams:
            events.until_text("1 ")
        server.terminate()
        for events in streams:
            assert events.to_end().terminal["error"]["code"] == "interrupted"
        assert server.wait(EXIT_TIMEOUT) == 0
    wait_until(lambda: server.gone, SERVER_TIMEOUT)
    next_server = HaltServer(settings(fake, HALT_DATA=tmp_path))
    with contextlib.closing(next_server):
        new_client = next_server.client()
        for events in streams[::9]:
            assert new_client.follow(events.id, 0).to_end().seen == events.seen


# --- full disk ------------------------------------------------------------------------------------


def limit_files(server: HaltServer, size: int) -> None:
    """Let no file of the workers grow beyond `size` bytes."""
    for pid in workers(server):
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def test_full_disk_breaks_no_stream(fake: FakeOpenAI, tmp_path: Path) -> None:
    """Readers get everything and Stop works; the events are saved when there is room."""
    server = HaltServer(settings(fake, HALT_DATA=tmp_path))
    with contextlib.closing(server):
        client = server.client()
        with Bystander((server.host, server.port)) as bystander, contextlib.ExitStack() as stack:
            streams = [stack.enter_context(client.chat("stall?n=3&rest=3")) for _ in range(10)]
            for events in streams:
                events.until_text("2 ")
            wait_until(lambda: is_saved(tmp_path, streams[-1].id), SERVER_TIMEOUT)
            healthy = client.get("/saving").body
            limit_files(server, 1)
            for record in fake.requests:
                if record.args.get("rest"):
                    record.release()
            for events in streams:
                assert events.to_end().text == "0 1 2 3 4 5 "
            assert bystander.stop() < STOP_WITHIN
            wait_until(lambda: client.get("/saving").body != healthy, SERVER_TIMEOUT)
            limit_files(server, resource.RLIM_INFINITY)
            wait_until(lambda: client.get("/saving").body == healthy, SERVER_TIMEOUT)
    with contextlib.closing(sqlite3.connect(tmp_path / "halt.db")) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        for events in streams:
            ((state,),) = database.execute(
                "SELECT state FROM generations WHERE id = ?", (events.id,)
            ).fetchall()
            assert state == "done"


def is_saved(folder: Path, stream_id: str) -> bool:
    """Whether the stream is in the database."""
    with contextlib.closing(sqlite3.connect(folder / "halt.db")) as database:
        rows = database.execute("SELECT 1 FROM generations WHERE id = ?", (stream_id,))
        return rows.fetchone() is not None


# --- few descriptors ------------------------------------------------------------------------------


def test_server_with_256_descriptors_refuses_and_continues(fake: FakeOpenAI) -> None:
    """Streams beyond the limit get an error or are closed; running ones are complete."""
    server = LimitedServer(settings(fake), descriptors_limited(256))
    with contextlib.closing(server):
        client = server.client()
        with Bystander((server.host, server.port)) as bystander:
            (worker,) = workers(server)

            def stream() -> object:
                with client.chat("count?n=100&gap_ms=10") as events:
                    if events.status != 200:
                        return events.answer().error["code"]
                    return events.to_end().terminal["type"]

            with loads.calls(*[stream] * 200) as results:
                for _ in range(20):
                    assert bystander.stop() < STOP_WITHIN
            assert not bystander.end_reason
            assert workers(server) == [worker]
            assert results.count("done") >= 20, results
        wait_until(lambda: client.get("/healthz").status == 200, SERVER_TIMEOUT)
        with client.chat("count?n=3") as events:
            assert events.to_end().terminal["type"] == "done"
