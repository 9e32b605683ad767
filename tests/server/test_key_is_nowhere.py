"""No secret of a provider is anywhere but in the requests to it: whatever happens, and however it
is spelled.

The test of a whole life collects every response, the log with all of its lines, the output of the
commands, and every file of the data folder, and searches all of them.
"""

from __future__ import annotations

import base64
import contextlib
import html
import json
import sqlite3
import subprocess
import sys
import zlib
from collections.abc import Iterator
from contextlib import closing
from http.client import IncompleteRead
from itertools import product
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest

from halt.testing.fake_openai import FakeOpenAI
from tests.support.halt_server import ROOT, HaltServer, halt_environment, new_id, settings
from tests.support.http_client import Client, HttpResponse
from tests.support.models_page import ADD, PATH, TRY
from tests.support.page_requests import FORM_HEADERS, STREAM_HEADERS
from tests.support.quoting_server import FAULTS, QuotingServer, quoting_server
from tests.support.server_people import ServerPeople
from tests.support.websocket_client import SocketClosed, WebSocket

KEY = "sk-shared-Zq3/x+Wk9vB7tN5m"
NEXT_KEY = "sk-next-Lp8&y=Rd2cH6sJ4f"
OWN_KEY = "sk-own-Gm1<z>Tx0aE8uK6w"
TEAM = 'team "Vb5\\n Qy7" jX3oC9eA'
SECRETS = (KEY, NEXT_KEY, OWN_KEY, TEAM)
KINDS = ("compatible", "azure", "anthropic")
KIND = "compatible"  # of the tests that need only one


class VerboseHalt(HaltServer):
    command = ("-m", "tests.support.verbose_halt")


def spellings(secret: str) -> Iterator[bytes]:
    """The ways to write a secret that this test knows; also a part of it that gives it away."""
    escaped = json.dumps(secret)[1:-1]
    texts = {secret, secret[:-4], secret[4:], quote(secret), quote(secret, safe=""), escaped}
    texts |= {html.escape(secret), json.dumps(escaped)[1:-1], "".join(reversed(secret))}
    for text in texts:
        yield text.encode()
    for data in (secret.encode(), secret.encode("utf-16-le"), secret.encode("utf-16-be")):
        yield data
        yield data.hex().encode()
        yield data.hex().upper().encode()
        for offset in range(3):
            middle = base64.b64encode(b"\0" * offset + data)[4:-4]
            yield middle
            yield middle.translate(bytes.maketrans(b"+/", b"-_"))


FORMS = {form for secret in SECRETS for form in spellings(secret)}


def found(data: bytes) -> str:
    """The first secret in the data with what is around it, "" without one."""
    for form in FORMS:
        if (at := data.find(form)) >= 0:
            return data[max(0, at - 300) : at + 300].decode("utf-8", "replace")
    return ""


class Witness(Client):
    """A client that keeps all that it has received."""

    seen: list[tuple[str, bytes]]

    @classmethod
    def of(cls, client: Client, seen: list[tuple[str, bytes]]) -> Witness:
        witness = cls(*client.address)
        witness.headers, witness.cookies, witness.seen = client.headers, client.cookies, seen
        return witness

    def request(
        self, method: str, path: str, body: Any = None, headers: Any = None
    ) -> HttpResponse:
        try:
            response = super().request(method, path, body, headers)
        except IncompleteRead as cut:  # a text that failed after its beginning
            response = HttpResponse(200, {}, cut.partial)
        head = json.dumps(response.headers).encode()
        self.seen.append((f"{method} {path} {response.status}", head + b"\n" + response.body))
        return response

    def form(self, path: str, *more: tuple[str, str], **fields: str) -> HttpResponse:
        """Send a form without scripts."""
        body = urlencode([*fields.items(), *more]).encode()
        return self.request("POST", path, body, FORM_HEADERS)


class Life:
    """A Halt with a provider of each kind at one server, and all that was seen."""

    def __init__(self, server: HaltServer, people: ServerPeople, upstream: QuotingServer) -> None:
        self.server, self.people, self.upstream = server, people, upstream
        self.seen: list[tuple[str, bytes]] = []
        self.admin = Witness.of(people.client(people.add("Ada", is_admin=True)), self.seen)
        self.bob = Witness.of(people.client(people.add("Bob")), self.seen)

    def typed(self, kind: str, **more: str) -> dict[str, str]:
        """The fields of a form; TEAM is the value of a header."""
        fields = {"preset": kind, "title": kind, "base_url": self.upstream.url, "models": "good"}
        header = {"header_name": "X-Team", "header_value": TEAM}
        return {
            **fields,
            "api_version": "2024-10-21",
            "own_keys": "on",
            "key": KEY,
            **header,
            **more,
        }

    def surfaces(self, client: Witness, model: str) -> None:
        """Ask a model in every way, and look at every page."""
        messages = [{"role": "user", "content": "Hello"}]
        chat = {"model": model, "messages": messages}
        for body in (chat, chat | {"stream": True}):
            client.post("/v1/chat/completions", body)
        stream_id = new_id()
        client.post("/chat/stream", chat | {"id": stream_id})
        client.get(f"/streams/{stream_id}")
        client.post("/chat", {"model": model, "prompt": "Hello"})
        conversation = new_id()
        fields = urlencode({"prompt": "Hello", "model": model}).encode()
        client.request("POST", f"/c/{conversation}/messages", fields, STREAM_HEADERS)
        for page in ("", "/export?format=json", "/export?format=markdown", "/usage"):
            client.get(f"/c/{conversation}{page}")
        for path in ("/", "/models", "/models?look=1", "/v1/models", "/healthz", "/conversations"):
            client.get(path)

    def socket(self, client: Witness, model: str) -> None:
        """Ask a model over a WebSocket."""
        cookie = "; ".join(f"{name}={value}" for name, value in client.cookies.items())
        agent = client.headers["User-Agent"]
        with WebSocket(self.server, origin=self.server.url, Cookie=cookie, User_Agent=agent) as ws:
            with contextlib.suppress(SocketClosed, AssertionError):
                ws.to_end(ws.start(model))
            self.seen.append(("/ws", repr((ws.seen, ws.others)).encode()))

    def command(self, *args: str, input: str = "", **variables: str) -> str:
        """Run `halt-chat` beside the server."""
        done = subprocess.run(
            [sys.executable, "-m", "halt", *args],
            cwd=ROOT,
            env=halt_environment({"HALT_DATA": str(self.server.data_folder), **variables}),
            input=input,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        self.seen.append((" ".join(args), (done.stdout + done.stderr).encode()))
        return done.stdout + done.stderr

    def check(self) -> None:
        """Search all that was seen, the log, the files, and the arguments of processes."""
        assert self.seen
        for what, data in self.seen:
            assert not found(data), f"{what}: {found(data)}"
        log = self.server.printed.encode()
        assert not found(log), f"log: {found(log)}"
        for path, data in stored(self.server.data_folder):
            assert not found(data), f"{path}: {found(data)}"
        for each in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                assert not found(each.read_bytes())


def stored(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Each file of a data folder, and each value in its databases, also unpacked."""
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # a socket
            yield str(path), path.read_bytes()
    for path in folder.glob("*.db"):
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            names = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            for (name,) in names.fetchall():
                for row in database.execute(f'SELECT * FROM "{name}"'):  # noqa: S608
                    for value in row:
                        if isinstance(value, bytes):
                            with contextlib.suppress(zlib.error):
                                yield f"{path} {name}", zlib.decompress(value)


@pytest.fixture
def life(shared_fake: FakeOpenAI) -> Iterator[Life]:
    more = {"HALT_USERS": 1, "HALT_OWN_KEYS": 1, "HALT_RETRIES": 0}
    server = VerboseHalt(settings(shared_fake, **more))
    try:
        with closing(ServerPeople(server)) as people, quoting_server() as upstream:
            yield Life(server, people, upstream)
    finally:
        server.close()


@pytest.mark.parametrize("kind", KINDS)
def test_secrets_of_a_provider_are_nowhere(life: Life, kind: str) -> None:
    """Tried, saved, used, refused in each way by its server, changed, exported, removed."""
    admin, bob, page = life.admin, life.bob, f"{PATH}/{kind}"
    add, try_ = ADD.replace("compatible", kind), TRY.replace("compatible", kind)
    assert admin.form(add, do="connect", **life.typed(kind)).status == 303
    own = {"do": "own-key", "provider": kind, "key": OWN_KEY}
    assert bob.form(PATH, **own).status == 303
    typed = life.typed(kind, key=NEXT_KEY, title="tried")
    for number, fault in enumerate(("", *FAULTS)):
        life.upstream.fault = fault
        admin.form(try_, do="try", **typed)
        body = urlencode({"do": "try", **typed}).encode()
        admin.request("POST", try_, body, FORM_HEADERS | {"Accept": "text/event-stream"})
        life.surfaces((admin, bob)[number % 2], f"{kind}/good")
        for path in (PATH, page, f"{PATH}/model/{kind}?model=good"):
            admin.get(path)
        life.socket(bob, f"{kind}/good")
    quoted = sum(b"[key]" in data for _, data in life.seen)
    assert quoted > len(FAULTS)  # the server's own words are shown
    life.upstream.fault = "401"
    life.command("models")
    life.command("models", "--json")
    life.command("doctor")
    life.command("doctor", "--json")
    life.upstream.fault = ""
    assert admin.form(page, do="change", **life.typed(kind, key=NEXT_KEY)).status == 303
    life.surfaces(admin, f"{kind}/good")
    for client in (admin, bob):
        client.get("/export")
    life.check()
    assert admin.form(page, do="remove").status == 303
    life.check()


def test_refused_forms_show_no_secret(life: Life) -> None:
    """Each field can be wrong, beside a key and a header; so can the sender."""
    admin, bob, page = life.admin, life.bob, f"{PATH}/{KIND}"
    assert admin.form(ADD, do="connect", **life.typed(KIND)).status == 303
    wrong = [
        *({name: "\x00"} for name in ("title", "base_url", "key", "models", "header_name")),
        *({name: "x" * 400_000} for name in ("title", "base_url", "models", "header_name")),
        *({name: f"x {KEY}"} for name in ("key", "header_name", "max_tokens", "api_version")),
        {"base_url": f"http://user:{KEY}@host/v1"},
        {"base_url": f"http://host/v1?key={KEY}#{NEXT_KEY}"},
        {"base_url": f"//user:{KEY}@host?{NEXT_KEY}"},
        {"header_name": f"Authorization: Bearer {KEY}"},
        {"header_value": f"{TEAM}\r\nX-More: {TEAM}"},
        {"header_name": "Host"},
        {"preset": "none"},
        {"title": KIND},
    ]
    for path, fields in product((ADD, TRY, page, f"{PATH}/try/{KIND}"), wrong):
        action = "try" if "/try/" in path else "change" if path == page else "connect"
        response = admin.form(path, do=action, **life.typed(KIND, **{"title": "New", **fields}))
        assert response.status in {200, 303, 400, 413}, (path, fields, response)
    typed = urlencode(life.typed(KIND)).encode()
    elsewhere = FORM_HEADERS | {"Origin": "https://elsewhere.example"}
    for sender, headers in ((bob, FORM_HEADERS), (admin, elsewhere), (admin, {})):
        for path in (ADD, TRY, page):
            assert sender.request("POST", path, typed, headers).status >= 400
    for method in ("PUT", "DELETE", "PATCH"):
        assert admin.request(method, page, typed, FORM_HEADERS).status == 405
    assert bob.form(PATH, do="own-key", provider=KIND, key=f"x {OWN_KEY}").status == 400
    assert bob.form(PATH, do="own-key", provider="none", key=OWN_KEY).status == 400
    assert bob.form(PATH, do="x", provider=KIND, key=OWN_KEY).status == 400
    life.check()


def test_locked_database_shows_no_secret(life: Life) -> None:
    """A change that cannot be saved is refused on the page, and its secrets are nowhere."""
    admin, bob, page = life.admin, life.bob, f"{PATH}/{KIND}"
    assert admin.form(ADD, do="connect", **life.typed(KIND)).status == 303
    with closing(sqlite3.connect(life.server.data_folder / "halt.db")) as database:
        database.execute("BEGIN IMMEDIATE")
        for response in (
            admin.form(ADD, do="connect", **life.typed(KIND, title="Other", key=NEXT_KEY)),
            admin.form(page, do="change", **life.typed(KIND, key=NEXT_KEY)),
            bob.form(PATH, do="own-key", provider=KIND, key=OWN_KEY),
        ):
            assert response.status == 503, response
    life.check()


def test_secret_in_a_response_would_be_found() -> None:
    """The search of this file is one: it finds each spelling."""
    assert not found(b"nothing here")
    for secret in SECRETS:
        encoded = base64.b64encode(f"Bearer {secret} and more".encode())
        for data in (secret.encode(), quote(secret).encode(), encoded, secret.encode("utf-16")):
            assert found(b"before " + data + b" after")
