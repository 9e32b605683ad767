"""The OpenAPI document: complete, valid, and in agreement with a real Halt (tried by schemathesis)."""

from __future__ import annotations

import inspect
import itertools
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import msgspec
import pytest
import requests
import schemathesis
import yaml
from schemathesis.checks import not_a_server_error
from schemathesis.config import SchemathesisConfig
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    ignored_auth,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from halt.app import create_app
from halt.config.environment import load
from halt.core.decoding import EventNumber
from halt.core.events import Event
from halt.core.receipts import Receipt
from halt.core.request import StreamId
from halt.errors import STATUSES, HaltError
from halt.files.faults import FileError
from halt.testing.fake_openai import FakeOpenAI
from halt.web.api.document import document
from halt.web.api.openai_request import CHAT_FIELDS, ResponseOptions
from halt.web.api.text import PARAMETERS
from halt.web.schemas import Reply
from halt.web.starts import StartRequest
from tests.support.halt_server import HaltServer

TOKEN = "open-sesame"
BEARER = {"Authorization": f"Bearer {TOKEN}"}

client_numbers = itertools.count(1)

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
    unsupported_method,
    ignored_auth,
]

#: The same few requests in each run. No request takes values from an earlier response: some of the
#: fake's models never answer.
CONFIG: dict[str, Any] = {
    "seed": 1,
    "generation": {
        "deterministic": True,
        "max-examples": 5,
        "database": "none",
        "no-shrink": True,
        "with-security-parameters": False,
    },
    "phases": {
        name: {"extra-data-sources": {"responses": False}} for name in ("coverage", "fuzzing")
    },
}


@pytest.fixture(scope="module")
def token_server(shared_fake: FakeOpenAI) -> Iterator[HaltServer]:
    """A server with a token and a model with short answers."""
    server = HaltServer(
        {
            "OPENAI_BASE_URL": shared_fake.base_url,
            "OPENAI_API_KEY": "fake",
            "HALT_MODEL": "count?n=2",
            "HALT_TOKEN": TOKEN,
            "HALT_TRUSTED_PROXIES": "1",
        }
    )
    yield server
    server.close()


#: Path -> fields whose invalid values are tried on /chat/stream alone, which has the same shape.
TRIED_ELSEWHERE = {
    "/chat": ("messages -> ", "tools -> ", "stop -> "),
}


def is_tried_elsewhere(case: schemathesis.Case[Any]) -> bool:
    """Whether /chat/stream gets the same invalid value in the same shape."""
    description = getattr(case.meta.phase.data, "description", None) if case.meta else None
    return bool(description) and str(description).startswith(
        TRIED_ELSEWHERE.get(case.operation.path, ("\n",))
    )


api = schemathesis.openapi.from_dict(
    document(token=True), config=SchemathesisConfig.from_dict(CONFIG)
)


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    """One connection for the many requests."""
    with requests.Session() as requests_session:
        requests_session.trust_env = False
        yield requests_session


@pytest.mark.slow
@api.parametrize()
def test_routes_respond_as_documented(
    case: schemathesis.Case[Any], token_server: HaltServer, session: requests.Session
) -> None:
    """Valid and invalid requests get the documented statuses, types and shapes, and no 5xx."""
    if is_tried_elsewhere(case):
        return
    # Some requests have wrong tokens, so each case has its own client address.
    headers = {**BEARER, "X-Forwarded-For": f"client-{next(client_numbers)}"}
    case.call_and_validate(
        token_server.url, session=session, headers=headers, checks=CHECKS, timeout=60
    )


def test_document_is_valid_openapi() -> None:
    """The document is valid by OpenAPI's own schema."""
    api.validate()


def test_document_has_every_route_for_programs() -> None:
    """Each route for programs is documented, and no other; the WebSocket is described in words."""
    app = create_app(load({"OPENAI_BASE_URL": "http://127.0.0.1:9/v1", "OPENAI_API_KEY": "fake"}))
    routes = {
        (re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule), method.lower())
        for rule in app.url_map.iter_rules()
        if rule.endpoint.partition(".")[0]
        not in {
            "static",
            "account",
            "files",
            "pages",
            "providers",
            "sidebar",
            "settings",
            "sockets",
        }
        and rule.endpoint != "openapi.docs"
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    api_document = document(token=True)
    operations = {
        (path, method) for path, methods in api_document["paths"].items() for method in methods
    }
    assert operations == routes
    assert "`GET /ws`" in api_document["info"]["description"]


def test_document_has_every_error_status() -> None:
    """A route that waits for the answer's beginning documents every status of an error."""
    kinds = [HaltError]
    for kind in kinds:
        kinds += kind.__subclasses__()
    of_answers = [kind.status for kind in kinds if not issubclass(kind, FileError)]
    statuses = {str(status) for status in (*STATUSES.values(), *of_answers)}
    for path in ("/chat", "/v1/chat/completions"):
        assert statuses <= document(token=True)["paths"][path]["post"]["responses"].keys()


def test_document_has_the_parsed_fields() -> None:
    """Fields that other modules parse by hand are documented under the same names."""
    schemas = document(token=True)["components"]["schemas"]
    fields = {*CHAT_FIELDS, *ResponseOptions.__struct_fields__}
    assert schemas["CompletionRequest"]["properties"].keys() == fields
    (stream,) = document(token=True)["paths"]["/stream"].values()
    assert {parameter["name"] for parameter in stream["parameters"]} == PARAMETERS


#: Types of requests and responses; openapi.yaml has the shapes that msgspec makes of them.
TYPES: tuple[Any, ...] = (StartRequest, Event, Receipt, *Reply.__subclasses__())


def reference(kind: type) -> dict[str, str]:
    """A reference for types with a check of their own, which are described by hand."""
    return {"$ref": f"#/components/schemas/{kind.__name__}"}


def shapes() -> dict[str, Any]:
    """The shapes of these types by name."""
    (_, event, *_), components = msgspec.json.schema_components(
        TYPES, schema_hook=reference, ref_template="#/components/schemas/{name}"
    )
    # Clients know StartRequest as ChatRequest.
    components["ChatRequest"] = {**components.pop("StartRequest"), "title": "ChatRequest"}
    components["Event"] = {"description": "One event of a stream; the last has `done`.", **event}
    for shape in components.values():  # before 3.13, Python leaves docstrings as they are indented
        shape["description"] = inspect.cleandoc(shape["description"])
    return components


class OneLineDumper(yaml.SafeDumper):  # type: ignore[misc]  # ships no types
    """The style of openapi.yaml: a value that fits into one line; each field in its own line."""

    def represent_mapping(self, tag: str, mapping: dict[str, Any], flow_style: Any = None) -> Any:
        node = super().represent_mapping(tag, mapping, len(json.dumps(mapping)) <= 84)
        for key, value in node.value:
            if key.value == "properties":
                node.flow_style = value.flow_style = False
        return node

    def represent_sequence(self, tag: str, items: list[Any], flow_style: Any = None) -> Any:
        return super().represent_sequence(tag, items, len(json.dumps(items)) <= 84)

    def represent_str(self, text: str) -> Any:
        style = "|" if "\n" in text else ">" if len(text) > 80 else None
        style = style if text.strip() else '"'
        return self.represent_scalar("tag:yaml.org,2002:str", text, style)


OneLineDumper.add_representer(str, OneLineDumper.represent_str)


def test_document_shapes_match_the_types() -> None:
    """The shapes are those of the types that requests, events and answers use."""
    documented = document(token=True)["components"]["schemas"]
    differing = {name: shape for name, shape in shapes().items() if documented.get(name) != shape}
    expected_yaml = yaml.dump(
        differing, Dumper=OneLineDumper, sort_keys=False, width=92, allow_unicode=True
    )
    assert not differing, f"\nThis is to stand in openapi.yaml, under schemas:\n{expected_yaml}"


def test_shared_fields_have_one_shape_on_all_routes() -> None:
    """Options of a ChatRequest, stream IDs and event numbers have one shape on all routes."""
    api_document = document(token=True)
    schemas = api_document["components"]["schemas"]
    options = schemas["ChatRequest"]["properties"]
    for name, excluded in (("PromptRequest", {"messages"}), ("MessagesRequest", set[str]())):
        fields = schemas[name]["properties"].items()
        shapes = {field: shape for field, shape in fields if field not in {"prompt", "system"}}
        assert shapes == {field: shape for field, shape in options.items() if field not in excluded}
    completion = schemas["CompletionRequest"]["properties"]
    assert completion["messages"] == options["messages"]
    assert completion["on_disconnect"] == options["on_disconnect"]
    assert completion["model"] == {"anyOf": [options["model"], {"const": ""}]}
    stop = schemas["StopRequest"]["properties"]
    expected = {name: option["anyOf"][0] for name, option in options.items() if "anyOf" in option}
    expected |= dict.fromkeys(("stream_id", "X-Stream-Id"), msgspec.json.schema(StreamId))
    expected |= dict.fromkeys(("after", "Last-Event-ID"), msgspec.json.schema(EventNumber))
    assert stop["stream_id"] == expected["stream_id"]
    assert stop["seen"]["anyOf"][0] == expected["after"]
    for path, methods in api_document["paths"].items():
        for parameter in (
            parameter
            for operation in methods.values()
            for parameter in operation.get("parameters", ())
        ):
            assert parameter["schema"] == expected.get(parameter["name"], parameter["schema"]), path


def test_document_requires_the_token_if_set(token_server: HaltServer, halt: HaltServer) -> None:
    """The document says whether the server wants a token, and needs the token itself then."""
    assert token_server.client().get("/openapi.json").status == 401
    assert token_server.client(**BEARER).get("/openapi.json").json["security"] == [{"token": []}]
    assert halt.client().get("/openapi.json").json["security"] == []


class Anchors(HTMLParser):
    """A page's IDs, links and elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: set[str] = set()
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.tags.add(tag)
        self.ids += [value for name, value in attrs if name == "id" and value]
        if tag == "a" and (target := attributes.get("href") or "").startswith("#"):
            self.links.add(target[1:])


def test_docs_page_shows_the_whole_document(halt: HaltServer) -> None:
    """Each route and each shape has an anchor on the page, and each link has a target."""
    answer = halt.client().get("/docs", Accept="text/html")
    assert answer.status == 200
    text = answer.body.decode()
    page = Anchors(text)
    api_document = halt.client().get("/openapi.json").json
    operations = [
        method for methods in api_document["paths"].values() for method in methods.values()
    ]
    anchors = [operation["operationId"] for operation in operations]
    assert {*anchors, *api_document["components"]["schemas"]} <= {*page.ids}
    assert len(page.ids) == len({*page.ids})
    assert page.links <= {*page.ids}
    assert not page.tags & {"script", "style", "iframe"}
    for operation in operations:
        for status, response in operation["responses"].items():
            assert f"<strong>{status}</strong>" in text
            assert response["description"]
