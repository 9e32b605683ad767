"""Files that are imported: exports of Halt's, nearly right ones, and those of other products."""

from __future__ import annotations

import http.client
import json
import random
from collections.abc import Iterator
from typing import Any

import msgspec

from halt.errors import RequestError
from halt.store.portable import FORMAT, PortableConversation, read, to_json, to_markdown
from tests.fuzz.mutate import altered, any_value, dumped, mutated
from tests.fuzz.schemas import fitting
from tests.fuzz.server import WITHIN, ServerTarget, spoiled
from tests.fuzz.target import Finding, examples
from tests.support.halt_server import HaltServer

KEYS = (
    *(
        "id",
        "title",
        "messages",
        "role",
        "content",
        "parent",
        "state",
        "rivals",
        "picked",
        "created_at",
    ),
    *("ended", "folds", "chosen", "settings", "mapping", "model", "system_prompt", "temperature"),
)


class Import(ServerTarget):
    """A file is imported whole or refused in words, and comes out again as it went in."""

    name = "import"

    def inputs(self, rng: random.Random) -> Iterator[bytes]:
        (schema,), shapes = msgspec.json.schema_components(
            [PortableConversation], ref_template="#/components/{name}"
        )
        made = examples(fitting(schema, shapes).map(lambda value: json.dumps(value).encode()), rng)
        while True:
            some = [_tree(rng, json.loads(next(made))) for _ in range(rng.randrange(1, 3))]
            file: Any = {"format": FORMAT, "version": 1, "conversations": some}
            kind = rng.randrange(8)
            if kind == 0:
                file = [{"title": "a", "mapping": any_value(rng, KEYS)}]
            for _ in range(rng.randrange(3)):
                file = altered(rng, file, KEYS)
            data = dumped(rng, file)
            if kind == 1:
                data = mutated(rng, data)
            elif kind == 2:
                data = spoiled(rng, data)
            yield data

    def check(self, data: bytes) -> None:
        found: list[PortableConversation] = []
        refused = False
        try:
            found = read(data)
        except RequestError as fault:
            refused = True
            if fault.field != "file" or not fault.message:
                raise Finding("a refusal names no field", fault.message) from None
        if found:
            again = b"".join(to_json(found))
            if b"".join(to_json(read(again))) != again:
                raise Finding("what is written is read in another way", f"{again[:500]!r}")
            for piece in to_markdown(found):
                piece.decode()
        self._refused = refused
        super().check(data)

    def send(self, server: HaltServer, data: bytes) -> None:
        anna, boris = _Person(server), _Person(server)
        status, answer = anna.import_(data)
        if status >= 500 or (status == 200) == self._refused:
            raise Finding(f"an import ends with {status}", f"{answer[:500]!r}")
        if status != 200:
            return
        exported = anna.export()
        status, answer = boris.import_(exported)
        if status != 200 and json.loads(exported)["conversations"]:
            raise Finding("an export cannot be imported", f"{status} {answer[:500]!r}")
        first, second = told(exported), told(boris.export())
        if first != second:
            different = [(a, b) for a, b in zip(first, second, strict=False) if a != b][:1]
            raise Finding("an export changes on its way", f"{different}")


class _Person:
    """A browser with a session of its own."""

    def __init__(self, server: HaltServer) -> None:
        self._server = server
        self._cookie = ""
        self._ask("GET", "/")

    def import_(self, data: bytes) -> tuple[int, bytes]:
        line = b"fuzz-7c1d0e-boundary"
        head = b'Content-Disposition: form-data; name="file"; filename="a.json"'
        body = b"--%b\r\n%b\r\n\r\n%b\r\n--%b--\r\n" % (line, head, data, line)
        kind = f"multipart/form-data; boundary={line.decode()}"
        return self._ask("POST", "/import", body, {"Content-Type": kind})

    def export(self) -> bytes:
        status, body = self._ask("GET", "/export")
        if status != 200:
            raise Finding(f"an export ends with {status}", f"{body[:500]!r}")
        return body

    def _ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(
            self._server.host, self._server.port, timeout=WITHIN
        )
        try:
            more = {"Cookie": self._cookie} if self._cookie else {}
            connection.request(method, path, body, {**(headers or {}), **more})
            response = connection.getresponse()
            if given := response.getheader("Set-Cookie"):
                self._cookie = given.partition(";")[0]
            return response.status, response.read()
        except (OSError, http.client.HTTPException) as exc:
            raise Finding(f"no answer: {type(exc).__name__}", f"{method} {path}: {exc}") from exc
        finally:
            connection.close()


def told(data: bytes) -> list[Any]:
    """What an export says, without the numbers that each import makes anew."""
    found = json.loads(data)["conversations"]
    for each in found:
        del each["id"]
        places = {message["id"]: at for at, message in enumerate(each["messages"])}
        groups: dict[Any, int] = {}
        for message in each["messages"]:
            message["parent"] = places.get(message.get("parent"))
            del message["id"]
            if "rivals" in message:
                message["rivals"] = groups.setdefault(message["rivals"], len(groups))
        each["chosen"] = sorted(places[at] for at in each.get("chosen", ()))
    return sorted(found, key=lambda each: json.dumps(each, sort_keys=True))


def _tree(rng: random.Random, given: dict[str, Any]) -> dict[str, Any]:
    """The conversation with messages that follow one another, as a rule."""
    roles: dict[Any, str] = {}
    messages = given["messages"] * 2
    for number, given_message in enumerate(messages):
        message = messages[number] = dict(given_message)
        prompts = [at for at, role in roles.items() if role == "user"]
        message["id"] = number
        message["role"] = "assistant" if prompts and rng.random() < 0.6 else "user"
        parents = prompts if message["role"] == "assistant" else [None, *roles]
        message["parent"] = rng.choice(parents)
        message["rivals"] = None
        if message["role"] == "assistant" and rng.random() < 0.3:
            message["rivals"] = message["parent"]
        roles[number] = message["role"]
    given["messages"] = messages
    given["chosen"] = rng.sample(list(roles), rng.randrange(len(roles) + 1))
    return given
