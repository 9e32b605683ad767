"""A Halt that is its own model's server ends each request at once; a chain of Halts works."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import openai
import pytest

from halt import Halt
from halt.core.via import HEADER
from halt.providers.cached_query import CachedQuery
from halt.testing.fake_openai import FakeOpenAI
from halt.web import via as loop
from halt.web.via import CHAIN_MAX, instance_id_of
from tests.support import websocket_client
from tests.support.halt_server import (
    RECORD_TIMEOUT,
    HaltServer,
    StartHalt,
    new_id,
    request_record,
    settings,
)
from tests.support.http_client import Client, HttpResponse
from tests.support.ports import free_port
from tests.support.waiting import SERVER_TIMEOUT, WAIT_TIMEOUT, wait_until

CHAT = {"model": "echo", "messages": [{"role": "user", "content": "Hello"}]}
#: A body larger than the main loop reads at once, and than a socket's buffers.
LONG_CHAT = {"model": "echo", "messages": [{"role": "user", "content": "long " * 700_000}]}
LIMITS = {"HALT_MAX_PROMPT_CHARS": "4000000"}
ROUNDS = 8  # requests of each kind
#: Threads that a worker may start beside those of its first requests. A loop that is not detected
#: takes far more (47 for one list of models, all places for one chat).
MORE_THREADS = 14


def start_server(port: int, upstream_port: int, **more: str) -> HaltServer:
    """A Halt at `port` whose model's server is at `upstream_port`."""
    url = f"http://127.0.0.1:{upstream_port}/v1"
    return HaltServer(settings(url, PORT=port, HALT_MAX_STREAMS=100, **LIMITS, **more))


def threads_of(server: HaltServer) -> int:
    """The number of threads of the server's process that has most."""
    counts = [0]
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # the process has ended
            if os.getpgid(int(folder.name)) == server.process.pid:
                counts.append(len(list((folder / "task").iterdir())))
    return max(counts)


@pytest.fixture(scope="module")
def self_loop_server() -> Iterator[HaltServer]:
    """A Halt whose model's server is itself."""
    port = free_port()
    server = start_server(port, port)
    yield server
    server.close()


@pytest.fixture(scope="module")
def two_server_loop() -> Iterator[HaltServer]:
    """The first of two Halts, each the model's server of the other; the second has two workers."""
    port, other_port = free_port(), free_port()
    with contextlib.ExitStack() as stack:
        server = start_server(port, other_port)
        stack.callback(server.close)
        second_server = start_server(other_port, port, WEB_CONCURRENCY="2")
        stack.callback(second_server.close)
        yield server


@pytest.fixture(params=["self_loop_server", "two_server_loop"], ids=["one server", "two servers"])
def loop_server(request: pytest.FixtureRequest) -> HaltServer:
    """Each of the two loops."""
    fixture = request.getfixturevalue(request.param)
    assert isinstance(fixture, HaltServer)
    return fixture


def is_loop_error(error: dict[str, Any]) -> bool:
    """Whether the error has the code of a loop and names the variable to set."""
    return error["code"] == "loop_detected" and "set OPENAI_BASE_URL" in error["message"]


def test_loop_takes_no_threads_and_no_places(loop_server: HaltServer) -> None:
    """In a loop lists, health and chats end at once with 508 or its event, and nothing
    accumulates.

    A chat is not retried: a retry would fail again.
    """
    client = loop_server.client()
    for path in ("/", "/static/page.css", "/v1/nothing"):  # the first threads of each kind
        client.get(path)
    before = threads_of(loop_server)
    for _ in range(ROUNDS):
        answer = client.get("/v1/models")
        assert answer.status == 508
        assert is_loop_error(answer.error)
        assert client.get("/healthz").json["upstream"] == "unreachable: loop_detected"
        answer = client.post("/v1/chat/completions", CHAT)
        assert answer.status == 508
        assert is_loop_error(answer.error)
        assert answer.headers["x-should-retry"] == "false"
    for body in (*[CHAT] * ROUNDS, LONG_CHAT):
        terminal = client.stream("POST", "/chat/stream", body).to_end().terminal
        assert is_loop_error(terminal["error"])
        assert not terminal["error"]["retryable"]
    assert threads_of(loop_server) - before <= MORE_THREADS
    wait_until(lambda: client.get("/healthz").json["open_streams"] == 0, SERVER_TIMEOUT)
    assert "trying again" not in loop_server.printed


def test_loop_is_reported_on_each_surface(loop_server: HaltServer) -> None:
    """OpenAI's client, plain text, a WebSocket and the page report the loop."""
    client = loop_server.client()
    with openai.OpenAI(base_url=f"{loop_server.url}/v1", api_key="any") as llm:
        with pytest.raises(openai.InternalServerError) as refused:
            list(llm.chat.completions.create(**CHAT, stream=True))  # type: ignore[call-overload]
        assert refused.value.status_code == 508
        assert refused.value.code == "loop_detected"
    assert client.post("/chat", CHAT).status == 508
    with websocket_client.WebSocket(loop_server) as socket:
        assert is_loop_error(socket.to_end(socket.start("echo"))["error"])
    client.get("/")
    form = urlencode([("prompt", "Hello"), ("id", new_id())]).encode()
    headers = {
        "Content-Type": "application/x-www-form-urlencoded",
        "HX-Request": "true",
        "Accept": "text/html, text/event-stream",
    }
    page = client.request("POST", f"/c/{new_id()}/messages", form, headers).body.decode()
    assert "The request came back to Halt" in page
    assert "set OPENAI_BASE_URL" in page


# --- the header -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def instance_id(halt: HaltServer, shared_fake: FakeOpenAI) -> str:
    """The instance ID of a Halt, as its model's server sees it."""
    prompt = new_id()
    halt.client().chat("echo", prompt).to_end()
    header: str = request_record(shared_fake, prompt).headers[HEADER.lower()]
    return header


OTHER = "0123456789abcdef"


def request_via(
    client: Client, chain: str, method: str, path: str, body: object = None
) -> HttpResponse:
    """Send a request with the instance IDs of these Halts."""
    return client.request(method, path, body, {HEADER: chain})


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/v1/models", None),
        ("POST", "/v1/chat/completions", CHAT),
        ("POST", "/v1/messages", CHAT),  # a path of Anthropic's client, which Halt does not have
        ("POST", "/chat/stream", {**CHAT, "id": "not-to-be-taken-1"}),
        ("POST", "/chat", CHAT),
        ("GET", "/healthz", None),
        ("GET", "/", None),
    ],
)
def test_request_with_the_own_id_is_refused(
    halt: HaltServer, instance_id: str, method: str, path: str, body: object
) -> None:
    """A request with Halt's own ID gets 508 in the shape of each API, and no stream begins."""
    client = halt.client()
    refused = request_via(client, instance_id, method, path, body)
    assert refused.status == 508
    assert refused.error["code"] == "loop_detected"
    assert refused.error["message"].startswith("This Halt has been set up as its own model's ")
    assert ("type" in refused.error) == path.startswith("/v1/")
    refused_ring = request_via(client, f"{OTHER}, {instance_id}, {OTHER[::-1]}", method, path, body)
    assert refused_ring.status == 508
    assert "leads back to this one" in refused_ring.error["message"]
    assert client.get("/streams/not-to-be-taken-1").status == 404


def test_websocket_with_the_own_id_is_refused(halt: HaltServer, instance_id: str) -> None:
    """A WebSocket handshake with Halt's own ID gets 508."""
    refused = websocket_client.refused_handshake(halt, **{HEADER.replace("-", "_"): instance_id})
    assert (refused.status, refused.error["code"]) == (508, "loop_detected")


def test_chain_is_limited_to_chain_max(halt: HaltServer, instance_id: str) -> None:
    """A request that has passed CHAIN_MAX Halts is refused, one that has passed fewer is not."""
    instance_ids = [f"{number:016x}" for number in range(CHAIN_MAX)]
    assert instance_id not in instance_ids
    refused = request_via(halt.client(), ",".join(instance_ids), "POST", "/chat/stream", CHAT)
    assert refused.status == 508
    assert f"passed {CHAIN_MAX} Halts" in refused.error["message"]
    assert request_via(halt.client(), ",".join(instance_ids[1:]), "GET", "/v1/models").status == 200


@pytest.mark.parametrize(
    "chain", ["", ",", "no ID", "\u00e9" * 10, "0" * 7000, "a, " * 2000, "ABCDEF0123456789" * 400]
)
def test_malformed_chain_is_ignored(halt: HaltServer, instance_id: str, chain: str) -> None:
    """A request with a malformed chain is served as without the header; IDs beside other text
    count.
    """
    assert request_via(halt.client(), chain, "GET", "/v1/models").status == 200
    assert request_via(halt.client(), f"{chain}, {instance_id}", "GET", "/v1/models").status == 508


def test_chain_is_passed_to_upstream_requests(
    halt: HaltServer, shared_fake: FakeOpenAI, instance_id: str
) -> None:
    """A chat and a list pass the chain on; shared background queries begin their own chain."""
    client, prompt = halt.client(), new_id()
    body = {"model": "echo", "messages": [{"role": "user", "content": prompt}]}
    assert request_via(client, OTHER, "POST", "/chat/stream", body).status == 200
    assert request_record(shared_fake, prompt).headers[HEADER.lower()] == f"{OTHER}, {instance_id}"
    request_count = len(shared_fake.requests)
    assert request_via(client, OTHER, "GET", "/v1/models").status == 200
    list_requests = [r for r in shared_fake.requests[request_count:] if r.method == "GET"]
    assert f"{OTHER}, {instance_id}" in [r.headers[HEADER.lower()] for r in list_requests]


def test_instance_id_is_unique_to_data_folder_and_master(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Instance IDs differ between data folders, and between starts with one folder."""
    before = instance_id_of(tmp_path)
    assert loop.INSTANCE_ID.fullmatch(before)
    assert instance_id_of(tmp_path / "x" / "..") == before
    assert instance_id_of(tmp_path / "other") != before
    monkeypatch.setattr(loop, "_KEY", secrets.token_bytes(16))
    assert instance_id_of(tmp_path) != before


# --- chains that lead to a model ------------------------------------------------------------------


def test_chain_of_halts_streams_and_stops(
    start_halt: StartHalt, halt: HaltServer, shared_fake: FakeOpenAI
) -> None:
    """Through a Halt in front of a Halt, lists, health and chats work, and a Stop in mid-answer
    closes both.
    """
    first = start_halt(f"{halt.url}/v1")
    client, prompt = first.client(), new_id()
    assert client.get("/v1/models").json["data"]
    assert client.get("/healthz").json["upstream"] == "reachable"
    assert client.chat("count?n=3", "Hello").to_end().text == "0 1 2 "
    answer = client.chat("stall?n=3", prompt).until_text("2 ")
    record = request_record(shared_fake, prompt)
    instance_ids = record.headers[HEADER.lower()].split(", ")
    assert len(set(instance_ids)) == 2
    assert client.stop(answer.id).json["status"] == "stopped"
    assert answer.to_end().terminal["type"] == "cancelled"
    assert record.closed.wait(RECORD_TIMEOUT)
    wait_until(lambda: halt.client().get("/healthz").json["open_streams"] == 0, SERVER_TIMEOUT)


def test_library_sends_no_chain_header(halt: HaltServer, fake: FakeOpenAI) -> None:
    """The library's requests carry no header, to a Halt and to any other server."""
    with Halt(base_url=fake.base_url, api_key="any") as program:
        assert program.generate("Hello", model="count?n=2").result().text == "0 1 "
    assert HEADER.lower() not in fake.requests[-1].headers
    with Halt(base_url=f"{halt.url}/v1", api_key="any") as program:
        assert program.generate("Hello", model="count?n=2").result().text == "0 1 "


def test_provider_that_is_a_loop_hides_no_other(
    start_halt: StartHalt, fake: FakeOpenAI, tmp_path: Path
) -> None:
    """With one provider in a loop the others are listed and answer; a chat with it fails."""
    port = free_port()
    file = tmp_path / "providers.toml"
    file.write_text(
        f'[providers.good]\nkind = "openai"\nbase_url = "{fake.base_url}"\n'
        f'[providers.self]\nkind = "openai"\nbase_url = "http://127.0.0.1:{port}/v1"\n'
    )
    client = start_halt(HALT_CONFIG=file, PORT=port).client()
    model_ids = [model["id"] for model in client.get("/v1/models").json["data"]]
    assert model_ids
    assert all(name.startswith("good/") for name in model_ids)
    assert client.chat("good/count?n=2").to_end().text == "0 1 "
    assert is_loop_error(client.chat("self/echo").to_end().terminal["error"])


def test_background_query_has_the_chain_of_its_request() -> None:
    """A query in the background carries the chain of the request that caused it."""
    query = CachedQuery(
        "test",
        lambda connection: connection.chain,
        answer_seconds=0.0,
        fault_seconds=0.0,
        timeout=WAIT_TIMEOUT,
    )
    for chain in ((OTHER,), ()):
        started_at = query.start(chain)
        assert query.wait(started_at + WAIT_TIMEOUT, fresh=True) == (chain, None)
