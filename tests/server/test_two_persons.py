"""Two persons and nobody on every route: what is another person's behaves as if it did not exist."""

from __future__ import annotations

import contextlib
import re
import secrets
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from halt.app import create_app
from halt.config.environment import load
from halt.people.known import digest_of, new_api_token
from halt.people.person import person_id
from halt.store.migrate import open_database
from halt.store.people import PersonRow
from halt.store.store import Store
from halt.testing.fake_openai import FakeOpenAI
from halt.web.access import PUBLIC_ENDPOINTS
from halt.web.api.document import document
from tests.support.files import image
from tests.support.halt_server import HaltServer
from tests.support.http_client import Client, EventStream, HttpResponse
from tests.support.uploads import send, uploaded

SECRET = "saffron"  # a word of the first person's chat
ENDLESS = "count?n=1000000&gap_ms=20"
STREAM = "the-stream-of-one"
FORM = {"Content-Type": "application/x-www-form-urlencoded", "HX-Request": "true"}


@dataclass(frozen=True)
class TwoPersons:
    """A Halt, a client of each person and of nobody; the first person's chat and running stream."""

    server: HaltServer
    one: Client
    two: Client
    nobody: Client
    ids: dict[str, str]  # of the conversation and its messages, by the names of fields
    stream: EventStream

    @property
    def chat(self) -> str:
        return self.ids["conversation_id"]


@pytest.fixture(scope="module")
def persons(shared_fake: FakeOpenAI) -> Iterator[TwoPersons]:
    server = HaltServer(
        {
            "OPENAI_BASE_URL": shared_fake.base_url,
            "OPENAI_API_KEY": "fake",
            "HALT_MODEL": "echo",
            "HALT_USERS": "1",
        }
    )
    one, two = (
        server.client(Authorization=f"Bearer {add_person(server, name)}") for name in ("one", "two")
    )
    stream = one.stream("POST", "/chat/stream", prompt(STREAM))
    stream.until_text("3")
    ids = begin_chat(server, one)
    yield TwoPersons(server, one, two, server.client(), ids, stream)
    stream.close()
    server.close()


def add_person(server: HaltServer, name: str) -> str:
    """Add a person to the server's database; return an API token of the person."""
    store = Store(open_database(server.data_folder))
    row = PersonRow(person_id("accounts", "", name), "accounts", "", name, name)
    store.people.ensure(row)
    token = new_api_token()
    store.sign_ins.add_token(row.id, digest_of(token), "test")
    store.close()
    return token


def begin_chat(server: HaltServer, client: Client) -> dict[str, str]:
    """Begin a chat about SECRET; return its ID and those of its messages, by names of fields."""
    chat, answer = secrets.token_urlsafe(16), secrets.token_urlsafe(16)
    file_hash = uploaded(client, image(), f"{SECRET}.png")["id"]
    _, sent = send(client, SECRET, [(file_hash, f"{SECRET}.png")], f"/c/{chat}", id=answer)
    assert sent.status == 200, sent
    with contextlib.closing(sqlite3.connect(server.data_folder / "halt.db")) as database:
        query = "SELECT id FROM messages WHERE conversation_id = ? ORDER BY depth"
        (prompt_id,), (message_id,) = database.execute(query, (chat,)).fetchall()
    ids = {"conversation_id": chat, "prompt_id": str(prompt_id), "message_id": str(message_id)}
    more = {"answer": answer, "stream_id": STREAM, "path:name": "echo", "file_hash": file_hash}
    return ids | more


def prompt(stream_id: str, model: str = ENDLESS) -> dict[str, Any]:
    messages = [{"role": "user", "content": "hello"}]
    return {"messages": messages, "model": model, "id": stream_id, "on_disconnect": "continue"}


def outcome(response: HttpResponse) -> tuple[int, str]:
    """What tells responses apart: the status and, of an error or a receipt, what it says."""
    body = response.json if response.headers.get("content-type") == "application/json" else {}
    said = body.get("error") or body
    return response.status, str(said.get("code") or said.get("status") or "")


#: Of each operation that names a stream: its request, given the stream's ID.
WITH_STREAM: dict[str, Any] = {
    "followStream": lambda client, stream_id: client.get(f"/streams/{stream_id}"),
    "pressStop": lambda client, stream_id: client.post("/stop", {"stream_id": stream_id}),
    "stopStream": lambda client, stream_id: client.post(f"/stop/{stream_id}"),
}
#: Of each operation that starts a stream with an ID: its request.
STARTING: dict[str, Any] = {
    "startStream": lambda client, stream_id: client.post(
        "/chat/stream", prompt(stream_id, "count?n=2")
    ),
    "chat": lambda client, stream_id: client.post("/chat", prompt(stream_id, "count?n=2")),
    "promptStream": lambda client, stream_id: client.get(
        f"/stream?prompt=hello&model=count?n=2&id={stream_id}"
    ),
    "createCompletion": lambda client, stream_id: client.request(
        "POST",
        "/v1/chat/completions",
        {"model": "count?n=2", "messages": [{"role": "user", "content": "hello"}]},
        {"X-Stream-Id": stream_id},
    ),
}
#: The other ones, which name no stream.
PLAIN = {"listStreams", "stopAll", "listModels", "getModel", "health", "openapi"}


def operations() -> Iterator[tuple[str, str, str]]:
    """The method, path and name of each operation of the OpenAPI document."""
    for path, methods in document(token=True)["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation["operationId"]


def test_walk_knows_every_operation() -> None:
    """Each operation of the OpenAPI document is among those that this file tries."""
    assert {name for _, _, name in operations()} == {*WITH_STREAM, *STARTING, *PLAIN}


@pytest.mark.parametrize("operation", WITH_STREAM)
def test_stream_of_another_person_behaves_as_one_that_does_not_exist(
    persons: TwoPersons, operation: str
) -> None:
    """Reading it gives 404 and stopping it 202, both as for an unknown ID; it goes on."""
    call = WITH_STREAM[operation]
    answers = [call(persons.two, stream_id) for stream_id in (STREAM, secrets.token_urlsafe(16))]
    assert outcome(answers[0]) == outcome(answers[1])
    assert outcome(answers[0])[0] == (404 if operation == "followStream" else 202)
    persons.stream.until_text(str(len(persons.stream.seen) + 2))  # it goes on
    assert [stream["id"] for stream in persons.one.get("/streams").json["streams"]] == [STREAM]
    assert persons.two.get("/streams").json["streams"] == []


@pytest.mark.parametrize("operation", STARTING)
def test_id_of_another_persons_stream_can_be_used(persons: TwoPersons, operation: str) -> None:
    """A start with it begins a stream of its own; with one's own running ID it is refused."""
    name = f"{operation}-of-one"
    with persons.one.stream("POST", "/chat/stream", prompt(name)) as stream:
        stream.until_text("2")
        assert STARTING[operation](persons.two, name).status == 200
        if operation != "promptStream":  # which reads on, as an EventSource does
            assert STARTING[operation](persons.one, name).status == 409
        stream.until_text(str(len(stream.seen) + 2))
        assert persons.two.get(f"/streams/{name}").status == 200
        assert persons.one.post(f"/stop/{name}").json["status"] == "stopped"
        stream.to_end()


def test_stop_all_of_another_person_stops_nothing(persons: TwoPersons) -> None:
    """Stop all stops the person's own streams alone."""
    assert persons.two.post("/stop-all").json["stopped"] == []
    persons.stream.until_text(str(len(persons.stream.seen) + 2))


def test_stream_can_be_read_and_stopped_with_another_token_of_the_person(
    persons: TwoPersons,
) -> None:
    """Each of a person's tokens and sign-ins gives the same streams."""
    other = persons.server.client(Authorization=f"Bearer {add_person(persons.server, 'one')}")
    with persons.one.stream("POST", "/chat/stream", prompt("of-both-tokens")) as stream:
        stream.until_text("2")
        with other.stream("GET", "/streams/of-both-tokens") as second:
            second.until_text("2")
            assert other.post("/stop/of-both-tokens").json["status"] == "stopped"
            assert second.to_end().terminal == stream.to_end().terminal


@pytest.mark.parametrize(("method", "path", "name"), list(operations()))
def test_nobody_is_refused_on_every_operation(
    persons: TwoPersons, method: str, path: str, name: str
) -> None:
    """Without a sign-in or a token each operation but the health check answers 401."""
    filled = path.replace("{stream_id}", STREAM).replace("{name}", "echo")
    response = persons.nobody.request(method, filled, {} if method == "POST" else None)
    assert response.status == (200 if name == "health" else 401), response
    wrong = persons.server.client(Authorization=f"Bearer {new_api_token()}")
    response = wrong.request(method, filled, {} if method == "POST" else None)
    assert response.status == (200 if name == "health" else 401), response


def page_routes() -> Iterator[tuple[str, str, str]]:
    """The endpoint, method and path of each route of the page."""
    app = create_app(load({"OPENAI_BASE_URL": "http://127.0.0.1:9/v1", "OPENAI_API_KEY": "fake"}))
    for rule in sorted(app.url_map.iter_rules(), key=lambda rule: rule.rule):
        if rule.endpoint not in PUBLIC_ENDPOINTS:
            for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"}):
                yield rule.endpoint, method, rule.rule


BEGIN_A_CHAT = {"files.send_with_files", "pages.send", "settings.save_settings"}


def call_page(client: Client, method: str, path: str, ids: dict[str, str]) -> HttpResponse:
    """A request of the page, with a field of each kind that a route may need."""
    for name, value in ids.items():
        path = path.replace(f"<{name}>", value)
    fields = {
        "prompt": "hello",
        "id": secrets.token_urlsafe(16),
        "stream_id": ids["answer"],
        "prompt_id": ids["prompt_id"],
        "message_id": ids["message_id"],
        "after": ids["message_id"],
        "before": ids["message_id"],
        "text": "changed",
        "title": "changed",
        "do": "delete",
        "conversation": ids["conversation_id"],
        "prompt_name": "changed",
        "q": SECRET,
        "name": "n",
    }
    form = "&".join(f"{name}={value}" for name, value in fields.items())
    if method == "GET":
        return client.request("GET", f"{path}?{form}", None, {"HX-Request": "true"})
    return client.request(method, path, form.encode(), FORM)


@pytest.mark.parametrize(
    ("endpoint", "method", "path"),
    [route for route in page_routes() if "<conversation_id>" in route[2]],
)
def test_page_route_of_another_persons_chat_answers_as_for_an_unknown_one(
    persons: TwoPersons, endpoint: str, method: str, path: str
) -> None:
    """Its answer is that for a chat that does not exist, and it shows and changes nothing."""
    before = persons.one.get(f"/c/{persons.chat}/export").body
    unknown = secrets.token_urlsafe(16)
    answers = [
        call_page(persons.two, method, path, persons.ids | {"conversation_id": conversation})
        for conversation in (persons.chat, unknown)
    ]
    assert SECRET not in answers[0].body.decode()
    if endpoint not in BEGIN_A_CHAT:  # with an unknown ID they make one; this ID is taken
        assert outcome(answers[0]) == outcome(answers[1])
    assert answers[0].status == 404 or not answers[0].body
    assert persons.one.get(f"/c/{persons.chat}/export").body == before
    if endpoint == "pages.select_answer":
        return  # which needs a prompt with two answers
    own = call_page(persons.one, method, path, begin_chat(persons.server, persons.one))
    assert own.status not in {400, 404}, own  # so the request was right but for the person


@pytest.mark.parametrize(
    ("method", "path"), [(method, path) for _, method, path in page_routes() if "<file_" in path]
)
def test_file_of_another_person_behaves_as_one_that_does_not_exist(
    persons: TwoPersons, method: str, path: str
) -> None:
    """Its routes answer as for an unknown hash, whatever the client has cached."""
    unknown = secrets.token_hex(32)
    own = call_page(persons.one, method, path, persons.ids)
    assert own.status == 200
    shown = {"If-None-Match": own.headers.get("etag", "*")}
    answers = [
        persons.two.request(method, path.replace("<file_hash>", file_hash), None, shown)
        for file_hash in (persons.ids["file_hash"], unknown)
    ]
    assert answers[0].status == 404
    texts = [answer.body.decode().replace(unknown, persons.ids["file_hash"]) for answer in answers]
    requests = re.compile(r'"request_id":"[^"]*"')
    assert len({requests.sub("", text) for text in texts}) == 1
    headers = [{**answer.headers, "x-request-id": "", "date": ""} for answer in answers]
    assert {key: value for key, value in headers[0].items() if key != "content-length"} == {
        key: value for key, value in headers[1].items() if key != "content-length"
    }


def test_prompt_with_the_hash_of_another_persons_file_is_refused_as_with_an_unknown_one(
    persons: TwoPersons,
) -> None:
    """Another person cannot read a file, or learn that it is there, by naming its hash."""
    hashes = (persons.ids["file_hash"], secrets.token_hex(32))
    paths, answers = zip(
        *(send(persons.two, "What is it?", [(file_hash, "it.png")]) for file_hash in hashes),
        strict=True,
    )
    assert [answer.status for answer in answers] == [404, 404]
    assert answers[0].body == answers[1].body
    assert [persons.two.get(path).status for path in paths] == [404, 404]


def test_same_file_of_two_persons_is_each_ones_own(persons: TwoPersons) -> None:
    """An upload tells nothing about another person's files, and each can read their own."""
    first = uploaded(persons.one, b"a text of both", "of one.txt")
    assert uploaded(persons.two, b"a text of both", "of two.txt") == first | {"name": "of two.txt"}
    for person in (persons.one, persons.two):
        assert person.get(f"/files/{first['id']}/download").body == b"a text of both"


@pytest.mark.parametrize(("endpoint", "method", "path"), list(page_routes()))
def test_nobody_is_refused_on_every_route(
    persons: TwoPersons, endpoint: str, method: str, path: str
) -> None:
    """Without a sign-in each route is refused, or leads to the sign-in page."""
    if "filename" in path:
        return
    response = call_page(persons.nobody, method, path, persons.ids)
    assert response.status == 401, (endpoint, response)
    assert SECRET not in response.body.decode()


def test_lists_and_exports_hold_nothing_of_another_person(persons: TwoPersons) -> None:
    """The list, the search, the export of all and the import's lookups are the person's own."""
    for path in (
        "/",
        "/conversations",
        f"/conversations/search?q={SECRET}",
        "/export",
        "/settings",
    ):
        assert SECRET not in persons.two.get(path).body.decode(), path
    selected = f"conversation={persons.chat}".encode()
    response = persons.two.request("POST", "/export", selected, FORM)
    assert SECRET not in response.body.decode()
    deleted = f"do=delete&conversation={persons.chat}".encode()
    persons.two.request("POST", "/conversations", deleted, FORM)
    assert SECRET in persons.one.get(f"/c/{persons.chat}/export").body.decode()
