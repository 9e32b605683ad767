"""Imported files: exports of Halt, nearly valid ones, and exports of other products."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import random
from collections.abc import Iterator
from typing import Any

import msgspec

from halt.errors import RequestError
from halt.store.exports import to_json, to_markdown
from halt.store.portable import FORMAT, PortableConversation, read
from tests.fuzz.mutate import altered, any_value, dumped, mutated
from tests.fuzz.schemas import fitting
from tests.fuzz.server import ANSWER_TIMEOUT, ServerTarget, spoiled
from tests.fuzz.target import Finding, examples
from tests.support.export_files import no_contents
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
    *("edited", "files", "hash", "name", "data"),
)


class Import(ServerTarget):
    """A file is imported whole or refused with a message, and its export equals the import."""

    name = "import"

    def inputs(self, rng: random.Random) -> Iterator[bytes]:
        (schema,), shapes = msgspec.json.schema_components(
            [PortableConversation], ref_template="#/components/{name}"
        )
        conversations = examples(
            fitting(schema, shapes).map(lambda value: json.dumps(value).encode()), rng
        )
        while True:
            trees = [
                _tree(rng, json.loads(next(conversations))) for _ in range(rng.randrange(1, 3))
            ]
            file: Any = {"format": FORMAT, "version": 1, "conversations": trees}
            if rng.randrange(2):
                file["files"] = _with_files(rng, trees)
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
        imported: list[PortableConversation] = []
        refused = False
        try:
            export_read = read(data)
            imported = export_read.conversations
            for file_hash in _hashes(imported) & export_read.files.keys():
                export_read.files[file_hash].check()
        except RequestError as fault:
            imported, refused = [], True
            if fault.field != "file" or not fault.message:
                raise Finding("a refusal names no field", fault.message) from None
        if imported:
            export = b"".join(to_json(imported, no_contents))
            if b"".join(to_json(read(export).conversations, no_contents)) != export:
                raise Finding("an export is read in another way", f"{export[:500]!r}")
            for piece in to_markdown(imported):
                piece.decode()
        self._refused = refused
        super().check(data)

    def send(self, server: HaltServer, data: bytes) -> None:
        first_browser, second_browser = _Browser(server), _Browser(server)
        status, answer = first_browser.import_file(data)
        if status >= 500 or (status == 200) == self._refused:
            raise Finding(f"an import ends with {status}", f"{answer[:500]!r}")
        if status != 200:
            return
        exported = first_browser.export()
        status, answer = second_browser.import_file(exported)
        if status != 200 and json.loads(exported)["conversations"]:
            raise Finding("an export cannot be imported", f"{status} {answer[:500]!r}")
        first, second = comparable(exported), comparable(second_browser.export())
        if first != second:
            different = [(a, b) for a, b in zip(first, second, strict=False) if a != b][:1]
            raise Finding("an export changes by an import", f"{different}")


class _Browser:
    """A browser with a new session."""

    def __init__(self, server: HaltServer) -> None:
        self._server = server
        self._cookie = ""
        self._request("GET", "/")

    def import_file(self, data: bytes) -> tuple[int, bytes]:
        line = b"fuzz-7c1d0e-boundary"
        head = b'Content-Disposition: form-data; name="file"; filename="a.json"'
        body = b"--%b\r\n%b\r\n\r\n%b\r\n--%b--\r\n" % (line, head, data, line)
        kind = f"multipart/form-data; boundary={line.decode()}"
        return self._request("POST", "/import", body, {"Content-Type": kind})

    def export(self) -> bytes:
        status, body = self._request("GET", "/export")
        if status != 200:
            raise Finding(f"an export ends with {status}", f"{body[:500]!r}")
        return body

    def _request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(
            self._server.host, self._server.port, timeout=ANSWER_TIMEOUT
        )
        try:
            more = {"Cookie": self._cookie} if self._cookie else {}
            connection.request(method, path, body, {**(headers or {}), **more})
            response = connection.getresponse()
            if cookie := response.getheader("Set-Cookie"):
                self._cookie = cookie.partition(";")[0]
            return response.status, response.read()
        except (OSError, http.client.HTTPException) as exc:
            raise Finding(f"no answer: {type(exc).__name__}", f"{method} {path}: {exc}") from exc
        finally:
            connection.close()


def comparable(data: bytes) -> list[Any]:
    """The conversations of an export, without the IDs that each import makes new."""
    conversations = json.loads(data)["conversations"]
    for conversation in conversations:
        del conversation["id"]
        positions = {message["id"]: at for at, message in enumerate(conversation["messages"])}
        groups: dict[Any, int] = {}
        for message in conversation["messages"]:
            message["parent"] = positions.get(message.get("parent"))
            del message["id"]
            if "rivals" in message:
                message["rivals"] = groups.setdefault(message["rivals"], len(groups))
        conversation["chosen"] = sorted(positions[at] for at in conversation.get("chosen", ()))
    return sorted(conversations, key=lambda c: json.dumps(c, sort_keys=True))


#: Contents of files: a text, an image of one pixel, one that is not read, nothing.
CONTENTS = (
    b"a,b\n1,2\n",
    base64.b64decode("R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"),
    b"\0\1\2",
    b"",
)


def _with_files(rng: random.Random, trees: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Give files to some of the messages; most of the files, a few of them damaged."""
    items = []
    for content in CONTENTS:
        data = base64.b64encode(content).decode()
        items.append({"hash": hashlib.sha256(content).hexdigest(), "data": data})
    for conversation in trees:
        for message in conversation["messages"]:
            for item in rng.sample(items, rng.randrange(3)):
                file = {"hash": item["hash"], "name": rng.choice(("a.csv", "../b\u202e.png", ""))}
                message["files"] = [*message.get("files", ()), file]
                if rng.random() < 0.5:
                    message["content"] += f"![sky](/files/{item['hash']})"
    return [
        {**item, "data": item["data"][1:]} if rng.random() < 0.05 else item
        for item in items
        if rng.random() < 0.9
    ]


def _hashes(conversations: list[PortableConversation]) -> set[str]:
    """The hashes of the files of all messages."""
    messages = (message for conversation in conversations for message in conversation.messages)
    return {file.hash for message in messages for file in message.files}


def _tree(rng: random.Random, conversation: dict[str, Any]) -> dict[str, Any]:
    """The conversation, with most of its messages linked into a tree."""
    roles: dict[Any, str] = {}
    messages = conversation["messages"] * 2
    for number, source in enumerate(messages):
        message = messages[number] = dict(source)
        prompts = [at for at, role in roles.items() if role == "user"]
        message["id"] = number
        message["role"] = "assistant" if prompts and rng.random() < 0.6 else "user"
        parents = prompts if message["role"] == "assistant" else [None, *roles]
        message["parent"] = rng.choice(parents)
        message["rivals"] = None
        if message["role"] == "assistant" and rng.random() < 0.3:
            message["rivals"] = message["parent"]
        roles[number] = message["role"]
    conversation["messages"] = messages
    conversation["chosen"] = rng.sample(list(roles), rng.randrange(len(roles) + 1))
    return conversation
