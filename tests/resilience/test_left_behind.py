"""What is left of generations that ended in every way on every surface: nothing.

And of those that a server interrupts, or that a full disk keeps from being saved: all that was seen.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import resource
import socket
import sqlite3
import struct
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlencode

import pytest

from halt.app import create_app
from halt.config.settings import Config
from halt.testing.fake_openai import FakeOpenAI
from tests.resilience import loads
from tests.resilience.bystander import STOP_WITHIN, Bystander
from tests.resilience.servers import (
    LimitedServer,
    descriptors_limited,
    workers,
)
from tests.support.halt_server import HaltServer, StartHalt, eventually, new_id, settings
from tests.support.http_client import Client
from tests.support.process_facts import descriptors, status
from tests.support.websocket_client import WebSocket

pytestmark = pytest.mark.slow

FLOWING = "count?n=100000&gap_ms=2"
FORM = loads.FORM
LEAVES_WITHIN = 120.0  # seconds, of the hour that it could take


# --- left, reset, stopped, ended ------------------------------------------------------------------


def reset(sock: socket.socket) -> None:
    """Break a connection off, so that its peer is told at once."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def opened(client: Client, surface: str, stream_id: str, model: str) -> http.client.HTTPConnection:
    """A generation on this surface, asked for."""
    connection = client.connect()
    said = {"messages": [{"role": "user", "content": "Hi"}], "model": model}
    match surface:
        case "events":
            client.send(connection, "POST", "/chat/stream", said | {"id": stream_id})
        case "text":
            accept = {"Accept": "text/plain"}
            client.send(connection, "POST", "/chat", said | {"id": stream_id}, accept)
        case "whole":
            accept = {"Accept": "application/json"}
            client.send(connection, "POST", "/chat", said | {"id": stream_id}, accept)
        case "v1":
            name = {"X-Stream-Id": stream_id}
            client.send(connection, "POST", "/v1/chat/completions", said | {"stream": True}, name)
        case "EventSource":
            query = urlencode({"prompt": "Hi", "model": model, "id": stream_id})
            client.send(connection, "GET", f"/stream?{query}")
        case "page":
            form = urlencode({"prompt": f"/fake {model}", "id": stream_id}).encode()
            assert client.request("POST", f"/c/{new_id()}/messages", form, FORM).status == 200
            client.send(connection, "GET", f"/streams/{stream_id}/page")
    return connection


def one(client: Client, fake: FakeOpenAI, surface: str, end: str) -> None:
    """One generation, from its start to this end."""
    stream_id = new_id()
    model = f"{FLOWING}&first_ms=0" if end != "ended" else "count?n=5"
    connection = opened(client, surface, stream_id, model)
    sock = connection.sock
    assert sock is not None
    if end == "ended":
        assert connection.getresponse().read()
        connection.close()
        return
    if surface != "whole":
        sock.recv(1, socket.MSG_PEEK)
    else:
        eventually(lambda: client.get(f"/streams/{stream_id}?after=0").status or True)
    if end == "stopped":
        assert client.stop(stream_id).status in {200, 202}
        connection.getresponse().read()
    if end == "reset":
        reset(sock)
    connection.close()
    client.stop(stream_id)


SURFACES = ("events", "text", "v1", "EventSource", "page")
ENDS = ("left", "reset", "stopped", "ended")


def all_ways(server: HaltServer, fake: FakeOpenAI) -> None:
    """Each surface with each end, several at a time; and as many streams over sockets."""
    client = server.client()
    client.get("/")

    def work(surface: str) -> Callable[[], None]:
        def run() -> None:
            for end in ENDS:
                one(client, fake, surface, end)

        return run

    def socket_() -> None:
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

    with loads.calls(*map(work, SURFACES), socket_) as results:
        pass
    assert results == [None] * (len(SURFACES) + 1), results


def test_generations_leave_no_thread_and_no_descriptor(
    start_halt: StartHalt, fake: FakeOpenAI
) -> None:
    """However they end, on every surface: left, reset, stopped and whole."""
    server = start_halt(fake, HALT_LOG_SECONDS=0, HALT_ORPHAN_GRACE=0)
    (worker,) = workers(server)
    all_ways(server, fake)  # pools grow and libraries are loaded
    eventually(lambda: all(record.ended.is_set() for record in fake.requests))
    before = (status(worker, "Threads"), descriptors(worker))
    for _ in range(3):
        all_ways(server, fake)
    eventually(lambda: all(record.ended.is_set() for record in fake.requests))
    # Request threads stay for the next request, and idle connections to the model are kept.
    # The later rounds may be more at once than the first.
    spare = 2 * (len(SURFACES) + 1)
    eventually(lambda: status(worker, "Threads") <= before[0] + spare)
    eventually(lambda: descriptors(worker) <= before[1] + spare)
    assert workers(server) == [worker]
    assert "Traceback" not in server.printed


# --- a server that leaves -------------------------------------------------------------------------


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
        assert server.wait(LEAVES_WITHIN) == 0
    eventually(lambda: server.gone)
    later = HaltServer(settings(fake, HALT_DATA=tmp_path))
    with contextlib.closing(later):
        again = later.client()
        for events in streams[::9]:
            assert again.follow(events.id, 0).to_end().seen == events.seen


# --- a disk without room --------------------------------------------------------------------------


def limit_files(server: HaltServer, size: int) -> None:
    """No file of the workers' can grow beyond so many bytes."""
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
            eventually(lambda: saved_events(tmp_path, streams[-1].id))
            well = client.get("/saving").body
            limit_files(server, 1)
            for record in fake.requests:
                if record.args.get("rest"):
                    record.release()
            for events in streams:
                assert events.to_end().text == "0 1 2 3 4 5 "
            assert bystander.stop() < STOP_WITHIN
            eventually(lambda: client.get("/saving").body != well)
            limit_files(server, resource.RLIM_INFINITY)
            eventually(lambda: client.get("/saving").body == well)
    with contextlib.closing(sqlite3.connect(tmp_path / "halt.db")) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        for events in streams:
            ((state,),) = database.execute(
                "SELECT state FROM generations WHERE id = ?", (events.id,)
            ).fetchall()
            assert state == "done"


def saved_events(folder: Path, stream_id: str) -> bool:
    """Whether something of a stream is in the database."""
    with contextlib.closing(sqlite3.connect(folder / "halt.db")) as database:
        found = database.execute("SELECT 1 FROM generations WHERE id = ?", (stream_id,))
        return found.fetchone() is not None


# --- few descriptors ------------------------------------------------------------------------------


def test_server_with_256_descriptors_refuses_and_continues(fake: FakeOpenAI) -> None:
    """Streams beyond the limit are refused in words or closed; running ones are whole."""
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
            assert not bystander.lost
            assert workers(server) == [worker]
            assert results.count("done") >= 20, results
        eventually(lambda: client.get("/healthz").status == 200)
        with client.chat("count?n=3") as events:
            assert events.to_end().terminal["type"] == "done"


# --- other people's ------------------------------------------------------------------------------


def routes_of_others() -> list[tuple[str, str]]:
    """Every route that names a stream or a conversation, from the application itself."""
    found = []
    for rule in create_app(
        Config(base_url="http://127.0.0.1:9/v1", api_key="x")
    ).url_map.iter_rules():
        if {"stream_id", "conversation_id"} & rule.arguments:
            found += [
                (method, rule.rule)
                for method in sorted(rule.methods or ())
                if method in {"GET", "POST"}
            ]
    return sorted(set(found))


def without_numbers(page: bytes) -> str:
    """A page without the times in it."""
    return re.sub(r"\d+", "", page.decode())


def test_every_route_hides_other_sessions(halt: HaltServer) -> None:
    """Each route answers as for an ID that does not exist, and changes nothing."""
    theirs = halt.client()
    theirs.get("/")
    stream_id, place = new_id(), new_id()
    secret = "a-secret-of-theirs"
    form = urlencode({"prompt": f"/fake count?n=2 {secret}", "id": new_id()}).encode()
    assert theirs.request("POST", f"/c/{place}/messages", form, FORM).status == 200
    # The list of conversations knows the end when it is saved, a moment after the answer.
    eventually(lambda: b"data-running" not in theirs.get(f"/c/{place}").body)
    page = without_numbers(theirs.get(f"/c/{place}").body)
    assert secret in page
    assert 'data-state="done"' in page
    running = theirs.chat("stall?n=2", secret, id=stream_id).until_text("1 ")
    mine = halt.client()
    mine.get("/")

    def answer(method: str, rule: str, stream: str, conversation: str) -> tuple[int, str]:
        path = rule.replace("<stream_id>", stream).replace("<conversation_id>", conversation)
        fields = {"message": 1, "answer": 1, "of": 1, "after": 0}
        body = urlencode(fields).encode() if method == "POST" else None
        said = mine.request(method, path, body, FORM)
        text = said.body.decode()
        assert secret not in text
        text = re.sub(r"req_\w+", "", text.replace(stream, "").replace(conversation, ""))
        return said.status, re.sub(r"[\d.]+", "", text)

    routes = routes_of_others()
    assert len(routes) > 15
    for method, rule in routes:
        if "messages" in rule or (method == "POST" and "settings" in rule):
            continue  # begins a conversation where there is none, which the next test looks at
        found = answer(method, rule, stream_id, place)
        assert found == answer(method, rule, new_id(), new_id()), (method, rule)
    assert without_numbers(theirs.get(f"/c/{place}").body) == page
    assert theirs.stop(stream_id).json["status"] == "stopped"
    assert running.to_end().terminal["type"] == "cancelled"


@pytest.mark.parametrize("route", ["messages", "settings"])
def test_other_sessions_conversations_are_read_only(halt: HaltServer, route: str) -> None:
    """Prompts and settings for another session's conversation are refused and leave no trace."""
    theirs, mine = halt.client(), halt.client()
    theirs.get("/")
    mine.get("/")
    place = f"/c/{new_id()}"
    form = urlencode({"prompt": "/fake count?n=2", "id": new_id()}).encode()
    assert theirs.request("POST", f"{place}/messages", form, FORM).status == 200
    fields = {"prompt": "mine", "id": new_id(), "system_prompt": "mine", "model": "mine"}
    answer = mine.request("POST", f"{place}/{route}", urlencode(fields).encode(), FORM)
    assert answer.status == 404
    assert mine.get(place).status == 404
    eventually(lambda: b'data-state="done"' in theirs.get(place).body)
    assert b"mine" not in theirs.get(place).body + theirs.get(f"{place}/settings").body
