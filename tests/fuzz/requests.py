"""Requests to every route that the OpenAPI document describes, and forms to those of the page.

An input is a request as sent, without the Content-Length of its body.
"""

from __future__ import annotations

import contextlib
import json
import random
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, urlencode

from hypothesis import strategies as st

from halt.web.api.document import document
from tests.fuzz.mutate import NUMBERS, TEXTS, altered, dumped, mutated
from tests.fuzz.schemas import fitting
from tests.fuzz.server import ServerTarget, exchange, spoiled
from tests.fuzz.target import Finding, examples
from tests.support.halt_server import HaltServer

JSON = "application/json"
FORM = "application/x-www-form-urlencoded"
#: Statuses whose errors name no field: they concern the whole request or its route.
NAMELESS = frozenset({401, 403, 404, 405, 406, 408, 409, 410, 411, 415, 429})

#: Forms of the page, which the document does not describe.
PAGE_FORMS = {
    "/c/{id}/messages": ("prompt", "model", "models", "after", "seen", "files"),
    "/c/{id}/settings": (
        "model",
        "system_prompt",
        "prompt_name",
        "temperature",
        "top_p",
        "max_tokens",
    ),
    "/settings/prompts": ("name", "system_prompt", "replace"),
    "/settings/presets": ("name", "temperature", "top_p", "max_tokens", "replace"),
    "/c/{id}/rename": ("title",),
    "/c/{id}/delete": ("back", "current"),
    "/c/{id}/undelete": ("back",),
    "/stop": ("stream_id", "seen"),
}


class Requests(ServerTarget):
    """Any request is answered in time with a status other than 500; a refusal names its field."""

    name = "requests"

    def inputs(self, rng: random.Random) -> Iterator[bytes]:
        api_document = document(token=False)
        shapes = api_document["components"]["schemas"]
        routes = [
            (method.upper(), path, operation)
            for path, methods in api_document["paths"].items()
            for method, operation in methods.items()
        ]
        sources = {
            f"{method} {path}": examples(_request(method, path, operation, shapes), rng)
            for method, path, operation in routes
        }
        while True:
            if rng.random() < 0.1:
                yield _form(rng)
                continue
            # Prefer requests with a body.
            name = rng.choice([name for name in sources for _ in range(6 if name[0] == "P" else 1)])
            yield _varied(rng, next(sources[name]))

    def send(self, server: HaltServer, data: bytes) -> None:
        request = parsed(data)
        if request is None:
            return
        method, path, headers, body = request
        status, answer = exchange(server, method, path, body or None, headers)
        if status == 500:
            raise Finding(f"500 from {method} {route_of(path)}", f"{answer[:500]!r}")
        if b"Traceback (most" in answer:
            raise Finding(f"a traceback from {route_of(path)}", f"{answer[:500]!r}")
        if status < 400 or status > 499 or status in NAMELESS:
            return
        with contextlib.suppress(ValueError):  # a page's answer is HTML
            fault = json.loads(answer)["error"]
            is_ours = fault.get("code") in {"invalid_request", "too_large"}
            if is_ours and not (fault.get("field") or fault.get("param")):
                raise Finding(f"a refusal of {route_of(path)} names no field", f"{answer[:500]!r}")


def route_of(path: str) -> str:
    """The route of a path, as it is named in a finding."""
    return re.sub(r"(?<=/)(?:c/)?[^/?]*[^a-z/?-][^/?]*", "*", path.partition("?")[0])


def parsed(data: bytes) -> tuple[str, str, dict[str, str], bytes] | None:
    """Method, path, headers and body of an input; None if http.client would refuse to send it."""
    head, _, body = data.partition(b"\n\n")
    first, *lines = head.decode("latin-1").split("\n")
    method, _, path = first.partition(" ")
    if method not in {"GET", "POST"} or not re.fullmatch(r"/[!-~]*", path):
        return None
    headers = {}
    for line in lines:
        name, colon, value = line.partition(": ")
        if not colon or not re.fullmatch(r"[A-Za-z-]+", name) or not value.isprintable():
            return None
        headers[name] = value
    return method, path, headers, body


def _request(
    method: str, path: str, operation: dict[str, Any], shapes: dict[str, Any]
) -> st.SearchStrategy[bytes]:
    """Valid requests to a route."""
    content = operation.get("requestBody", {}).get("content", {})
    body: st.SearchStrategy[tuple[str, Any]] = st.just(("", None))
    if content:
        kinds = [
            st.tuples(st.just(kind), fitting(media["schema"], shapes))
            for kind, media in content.items()
        ]
        body = st.one_of(kinds)
    parameters = operation.get("parameters", [])
    values = st.tuples(*(fitting(parameter["schema"], shapes) for parameter in parameters))

    def encode(parts: tuple[tuple[str, Any], tuple[Any, ...]]) -> bytes:
        (kind, value), chosen_values = parts
        address, query, lines = path, {}, []
        for parameter, chosen in zip(parameters, chosen_values, strict=True):
            text = _as_text(chosen)
            if parameter["in"] == "path":
                name = f"{{{parameter['name']}}}"
                address = address.replace(name, quote(text, safe="", errors="replace") or "a")
            elif parameter["in"] == "query" and chosen is not None:
                query[parameter["name"]] = text
            elif chosen is not None:
                plain = re.sub(r"[^ -~]", "?", text)
                lines.append(f"{parameter['name']}: {plain}".encode())
        target = f"{method} {address}{'?' + urlencode(query, errors='replace') if query else ''}"
        if kind:
            lines.append(b"Content-Type: " + kind.encode())
        payload = b""
        if kind == FORM and isinstance(value, dict):
            fields = {name: _as_text(item) for name, item in value.items()}
            payload = urlencode(fields, errors="replace").encode()
        elif kind:
            payload = json.dumps(value).encode()
        return b"\n".join([target.encode(), *lines]) + b"\n\n" + payload

    return st.tuples(body, values).map(encode)


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _varied(rng: random.Random, data: bytes) -> bytes:
    """A request: one in eight unchanged, the others altered."""
    head, _, body = data.partition(b"\n\n")
    kind = rng.randrange(8)
    if kind == 0:
        return data
    if kind == 1:
        at = rng.randrange(len(head) + 1)
        return mutated(rng, head[:at]) + head[at:] + b"\n\n" + body
    if b"application/json" not in head:
        return head + b"\n\n" + mutated(rng, body)
    if kind == 2:
        return head + b"\n\n" + mutated(rng, body)
    if 3 <= kind < 6:
        return head + b"\n\n" + spoiled(rng, body)
    value = json.loads(body)
    for _ in range(rng.randrange(1, 3)):
        value = altered(rng, value, KEYS)
    return head + b"\n\n" + dumped(rng, value)


KEYS = (
    *(
        "messages",
        "id",
        "model",
        "temperature",
        "max_tokens",
        "stop",
        "tools",
        "role",
        "content",
        "n",
    ),
    *(
        "stream",
        "stream_options",
        "functions",
        "function_call",
        "tool_calls",
        "tool_call_id",
        "name",
    ),
    *(
        "extra_body",
        "response_format",
        "seed",
        "on_disconnect",
        "stream_id",
        "seen",
        "type",
        "image_url",
    ),
)


def _form(rng: random.Random) -> bytes:
    """A form of the page."""
    path, names = rng.choice(list(PAGE_FORMS.items()))
    path = path.replace(
        "{id}", rng.choice(("conversation-1", "a", "%00", "x" * 70, "conversation-2"))
    )
    fields = [
        (rng.choice(names), rng.choice((*TEXTS, *(str(number) for number in NUMBERS[:-2]))))
        for _ in range(rng.randrange(6))
    ]
    body = urlencode(fields, errors="surrogatepass").encode()
    head = f"POST {path}\nContent-Type: {FORM}\nHX-Request: {rng.choice(('true', 'x'))}\n\n"
    return head.encode() + (mutated(rng, body) if rng.random() < 0.5 else body)
