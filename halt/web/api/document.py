"""What programs can ask of Halt as an OpenAPI 3.1 document: `/openapi.json`, to read at `/docs`.

The shapes of requests, events and receipts are made from the types that requests are decoded to
and answers are written from. What other modules write by hand has its shape here.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from flask import Blueprint, Response, render_template

from halt import VERSION
from halt.core.decoding import EventNumber
from halt.core.events import CancelReason, ErrorInfo, Event
from halt.core.metrics import Metrics
from halt.core.receipts import Receipt
from halt.core.request import StreamId
from halt.web.request_ids import HEADER
from halt.web.responses import json_response
from halt.web.services import services
from halt.web.starts import StartRequest

Schema = dict[str, Any]

REF = "#/components/schemas/{name}"

ABOUT = """\
A stream is one answer of a model, a log of events numbered from 1. Whoever starts a stream may \
choose its `id`, and so can stop it before the first byte of the answer is back. Reading and \
writing are apart: a reader that comes back is sent every event after the last one it saw. The \
model's end, a Stop or a limit ends a stream, and with `on_disconnect: "stop"` also its last \
reader's leaving; with `"continue"` it goes on for HALT_ORPHAN_GRACE without readers. Where \
neither is said, a stream stops on `/chat` and `/v1`, and on `/chat/stream` and `/stream` where it \
was given no `id`.

Every response names its request in the header `X-Request-Id`, by the ID that the request brought \
in a header of that name, or one that was made up. It stands in the log, and in errors.

A stream that a program starts belongs to nobody: whoever knows its ID may read and stop it.

Many streams over one connection: `GET /ws` is a WebSocket. It takes JSON text messages: `start` \
with the fields of a ChatRequest (its `on_disconnect` is "continue" where not said), `stop` with \
`id` and `seen`, `follow` with `id` and `after`, `unfollow` with `id`, `ping`; the kind stands in \
the field `type`. It answers with `started`, \
`receipt` (the fields of a Receipt), `error` (an ErrorDetail in the field `error`), `pong`, and \
for each event `{"stream": ID, "seq": N, "event": Event}`."""


# --- answers that are written by hand elsewhere ---------------------------------------------------


class Answered(msgspec.Struct, forbid_unknown_fields=True):
    """Fields that are not named here are never sent."""


class ErrorDetail(Answered):
    """`code` is for programs, `message` for people; `field` names the part that is at fault.

    `retryable`: the same request may succeed later. `request_id`: as in the header X-Request-Id.
    """

    code: str
    message: str
    retryable: bool
    request_id: str
    field: str | msgspec.UnsetType = msgspec.UNSET


class Error(Answered):
    """Why a request was refused, or failed."""

    error: ErrorDetail


class OpenAIErrorDetail(Answered):
    """An error in OpenAI's words."""

    message: str
    type: str
    param: str | None
    code: str


class OpenAIError(Answered):
    """Why a request was refused, or failed, in the shape that OpenAI's clients know."""

    error: OpenAIErrorDetail


class Lost(Answered, tag_field="type", tag="error"):
    """The last event of a reader whose next events are no longer kept, or of a stream that is not.

    It has no number, and the stream itself has not ended by it.
    """

    error: ErrorInfo
    done: bool
    content: str


class CalledTool(Answered):
    """A tool that the model has called. `arguments` is JSON as the model wrote it."""

    id: str
    name: str
    arguments: str


class WholeAnswer(Answered):
    """An answer from its beginning to its end."""

    id: StreamId
    model: str
    state: Literal["done", "cancelled"]
    content: str
    finish_reason: str | None
    usage: dict[str, Any] | None
    metrics: Metrics
    reason: CancelReason | msgspec.UnsetType = msgspec.UNSET
    reasoning: str | msgspec.UnsetType = msgspec.UNSET
    tool_calls: list[CalledTool] | msgspec.UnsetType = msgspec.UNSET


class RunningStream(Answered):
    """A stream that is running. `age` is in seconds, `started_at` in seconds since 1970."""

    id: StreamId
    state: str
    model: str
    age: float
    started_at: float
    events: int
    characters: int


class Streams(Answered):
    """The streams that are running."""

    streams: list[RunningStream]


class Stopped(Answered):
    """What was done to each stream that was running."""

    stopped: list[Receipt]


class RelayFigures(Answered):
    """The relay thread of the worker that answers, within the last minute or two.

    `longest_turn_ms`: the longest time for which it served sockets before it waited again.
    `lag_ms`: the longest time from a wake-up, by a Stop for instance, until it was served.
    """

    longest_turn_ms: float
    lag_ms: float


class Health(Answered):
    """`upstream`: "reachable", "unreachable: CODE", or "unknown" until the first answer.

    `open_streams` are those of all `workers`; `worker` is the one that answers.
    """

    status: Literal["ok", "draining"]
    version: str
    open_streams: int
    workers: int
    worker: str
    relay: RelayFigures
    upstream: str


class Passing(msgspec.Struct):
    """Has further fields, where the model's server gives them."""


class CompletionFunction(Passing):
    """The function that a tool call names."""

    name: str
    arguments: str


class CompletionCall(Passing):
    """A tool that the model has called."""

    id: str
    type: Literal["function"]
    function: CompletionFunction


class CompletionAnswer(Passing):
    """The message that the model has written."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: str | msgspec.UnsetType = msgspec.UNSET
    tool_calls: list[CompletionCall] | msgspec.UnsetType = msgspec.UNSET
    function_call: CompletionFunction | msgspec.UnsetType = msgspec.UNSET


class Choice(Passing):
    """The one answer to a request."""

    index: Literal[0]
    message: CompletionAnswer
    logprobs: Any
    finish_reason: str


class AboutRun(Answered):
    """What Halt knows of the run and OpenAI's answer has no field for."""

    id: StreamId
    state: Literal["done", "cancelled"]
    metrics: Metrics
    reason: CancelReason | msgspec.UnsetType = msgspec.UNSET
    finish_reason: str | msgspec.UnsetType = msgspec.UNSET


class Completion(Passing):
    """A whole answer as OpenAI's clients know it."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[Choice]
    halt: AboutRun
    usage: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET


class Model(Answered):
    """A model that can be asked."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class Models(Answered):
    """The models that can be asked."""

    object: Literal["list"]
    data: list[Model]


ANSWERS = (Error, OpenAIError, Lost, WholeAnswer, Streams, Stopped, Health, Completion, Models)


# --- schemas --------------------------------------------------------------------------------------

STREAM_ID: Schema = msgspec.json.schema(StreamId)
NUMBER: Schema = msgspec.json.schema(EventNumber)
SEEN: Schema = {"anyOf": [NUMBER, {"type": "string", "pattern": "^[0-9]{0,15}$"}, {"type": "null"}]}


def _ref(name: str) -> Schema:
    return {"$ref": REF.format(name=name)}


def _of_hook(kind: type) -> Schema:
    """Types that are checked by themselves are described by hand."""
    return _ref(kind.__name__)


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}], "default": None}


KINDS: tuple[Any, ...] = (StartRequest, Event, Receipt, *ANSWERS)
#: `schema_components` builds the types that it describes as a decoder does, so it has to find them
#: built: it is called for each request. See `halt.core.decoding.TypeDecoder`.
_built = msgspec.json.Decoder(tuple[KINDS])  # type: ignore[valid-type]


def _schemas() -> dict[str, Schema]:
    """Every shape that the document names."""
    (_, event, *_), found = msgspec.json.schema_components(
        KINDS, schema_hook=_of_hook, ref_template=REF
    )
    # Of all requests to start, the one that a client needs no other name for.
    found["ChatRequest"] = {**found.pop("StartRequest"), "title": "ChatRequest"}
    found["Event"] = {"description": "One event of a stream; the last has `done`.", **event}
    return {
        **found,
        "Message": MESSAGE,
        "ToolSpec": TOOL,
        **_prompts(found["ChatRequest"]),
        **_completions(found),
        "StopRequest": _stop(),
    }


MESSAGE: Schema = {
    "title": "Message",
    "description": "One message of a conversation, as OpenAI defines it. Fields that are not named "
    "here, parts of any type and further roles go to the model's server as they are.",
    "type": "object",
    "properties": {
        "role": {"type": "string", "examples": ["system", "user", "assistant", "tool"]},
        "content": {"description": "A text, or a list of parts."},
        "tool_calls": {"description": "What the assistant has called in this message."},
        "tool_call_id": {"description": "Of a tool's message: the call whose result it is."},
    },
    "required": ["role"],
}
TOOL: Schema = {
    "title": "ToolSpec",
    "description": 'A tool that the model may call: `{"type": "function", "function": {"name", '
    '"description", "parameters"}}`, or one of the model\'s server\'s own.',
    "type": "object",
}


def _prompts(chat: Schema) -> dict[str, Schema]:
    """What POST /chat takes: a ChatRequest that may have its prompt as a text."""
    rest = {name: each for name, each in chat["properties"].items() if name != "messages"}
    system = {**_or_null({"type": "string"}), "description": "What the model is told beforehand."}
    prompt = {"type": "string", "pattern": r"\S", "description": "What the user says."}
    return {
        "PromptRequest": {
            **chat,
            "title": "PromptRequest",
            "description": "A prompt as a text, and the options of a ChatRequest.",
            "properties": {"prompt": prompt, "system": system, **rest},
            "required": ["prompt"],
        },
        "MessagesRequest": {
            **chat,
            "title": "MessagesRequest",
            "description": "A conversation, and the options of a ChatRequest.",
            "properties": {"prompt": {"type": "null"}, "system": system, **chat["properties"]},
        },
    }


def _completions(found: dict[str, Schema]) -> dict[str, Schema]:
    """What POST /v1/chat/completions takes, where that is not what Halt's own routes do."""
    chat = found["ChatRequest"]["properties"]
    options = chat.keys() - {"id", "extra_body", "stream", "messages", "model", "on_disconnect"}
    free = {"description": "As in a ChatRequest, or what else the model's server takes."}
    usage = {"type": "object", "properties": {"include_usage": _or_null({"type": "boolean"})}}
    return {
        "CompletionRequest": {
            "title": "CompletionRequest",
            "description": "OpenAI's request. Fields that are not named here are passed on to the "
            "model's server. Where tools are given as `functions`, the answer has its first call "
            "as `function_call`.",
            "type": "object",
            "properties": {
                "messages": chat["messages"],
                "model": {"anyOf": [chat["model"], {"const": ""}]},
                "on_disconnect": chat["on_disconnect"],
                "stream": _or_null({"type": "boolean"}),
                "stream_options": _or_null(usage),
                "n": {"enum": [1, None]},
                **{name: free for name in chat if name in options},
                "functions": {"description": "The older form of `tools`."},
                "function_call": {"description": "The older form of `tool_choice`."},
            },
            "required": ["messages"],
        },
    }


def _stop() -> Schema:
    return {
        "title": "StopRequest",
        "description": "`seen`: the last event that the user was shown; what came later is not "
        "part of the stopped answer.",
        "type": "object",
        "properties": {"stream_id": STREAM_ID, "seen": SEEN},
        "required": ["stream_id"],
    }


# --- what is said of each route -------------------------------------------------------------------

WHY = {
    "204": "The stream is over: an EventSource stops asking.",
    "400": "The request is malformed or over a limit, or the model's server refused it.",
    "401": "An access token is needed.",
    "403": "Another site's page asks, or Halt does not go by this name.",
    "404": "There is no such stream or model.",
    "409": "The stream ID is in use.",
    "410": "The events that were asked for are no longer kept.",
    "413": "The body is too large.",
    "429": "Too many starts or wrong access tokens came, or the model's server limits requests.",
    "500": "Something went wrong in Halt itself.",
    "502": "The model's server failed, or could not be reached.",
    "503": "Every place is taken, the server is leaving, the database does not answer, or no "
    "model is set up.",
    "504": "The model's server did not answer in time.",
    "508": "The request came from this Halt itself, or its model's server leads back to a Halt.",
}
GUARD = ("400", "401", "403", "429", "508")  # what may become of any request
STARTS = (*GUARD, "409", "413", "503")  # of one that starts a stream
WAITS = (*STARTS, "404", "500", "502", "504")  # and tells by its status how it began
ASKS = (*GUARD, "404", "500", "502", "503", "504")  # of one that asks the model's server

REQUEST_ID: Schema = {"$ref": f"#/components/headers/{HEADER}"}  # every response has it

JSON, EVENTS, TEXT = "application/json", "text/event-stream", "text/plain"
FORM = "application/x-www-form-urlencoded"


def _errors(statuses: tuple[str, ...], shape: str) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for status in sorted(statuses):
        out[status] = {"description": WHY[status], "content": {JSON: {"schema": _ref(shape)}}}
        if status in {"429", "503"}:
            out[status]["headers"] = {"Retry-After": {"$ref": "#/components/headers/Retry-After"}}
    return out


def _told(description: str, *, stream: bool = False, **content: Schema) -> dict[str, Any]:
    """An answer that is none of the errors; `content` by the short names of the media types."""
    kinds = {"json": JSON, "events": EVENTS, "text": TEXT}
    out: dict[str, Any] = {
        "description": description,
        "content": {kinds[kind]: {"schema": schema} for kind, schema in content.items()},
    }
    if stream:
        out["headers"] = {"X-Stream-Id": {"$ref": "#/components/headers/X-Stream-Id"}}
    return out


def _body(schema: Schema, *kinds: str, required: bool = True) -> dict[str, Any]:
    return {"required": required, "content": {kind: {"schema": schema} for kind in kinds}}


def _parameter(name: str, where: str, schema: Schema, description: str) -> dict[str, Any]:
    out: dict[str, Any] = {"name": name, "in": where, "description": description, "schema": schema}
    if where == "query":
        out["allowEmptyValue"] = True  # as good as left out
    return {**out, "required": where == "path"}


def _operation(
    name: str,
    tag: str,
    summary: str,
    description: str,
    answers: dict[str, Any],
    errors: tuple[str, ...] = GUARD,
    *,
    shape: str = "Error",
    **more: Any,
) -> dict[str, Any]:
    responses = {
        status: {**told, "headers": {**told.get("headers", {}), HEADER: REQUEST_ID}}
        for status, told in {**answers, **_errors(errors, shape)}.items()
    }
    return {
        "operationId": name,
        "tags": [tag],
        "summary": summary,
        "description": description,
        **more,
        "responses": responses,
    }


def _events(item: Schema, *, done: bool = True) -> Schema:
    """One message of Server-Sent Events, which is what OpenAPI 3.1 can describe of them."""
    data = {"type": "string", "contentMediaType": JSON, "contentSchema": item}
    return {
        "description": "One of the Server-Sent Events.",
        "type": "object",
        "properties": {
            "id": {"type": "string"},
            "data": {"anyOf": [data, {"const": "[DONE]"}]} if done else data,
        },
        "required": ["data"],
    }


ITEM: Schema = {"anyOf": [_ref("Event"), _ref("Lost")]}
EVENT: Schema = _events(ITEM)
ID_IN_PATH = _parameter("stream_id", "path", STREAM_ID, "The stream's ID.")


def _paths(chat: Schema) -> dict[str, Any]:
    """Every route that is there for programs."""
    names = ("model", "temperature", "max_tokens", "on_disconnect")
    options = {name: chat["properties"][name] for name in names}
    return {
        "/chat/stream": {
            "post": _operation(
                "startStream",
                "Streams",
                "Start a stream and follow it",
                "Each message has the event's number as `id` and one Event as `data`; after the "
                "last event comes `data: [DONE]`. Heartbeats are comment lines.",
                {"200": _told("The stream's events.", stream=True, events=EVENT)},
                STARTS,
                requestBody=_body(_ref("ChatRequest"), JSON),
            )
        },
        "/streams/{stream_id}": {
            "get": _operation(
                "followStream",
                "Streams",
                "Replay a stream after an event, and follow it to its end",
                "Starts nothing. Where both are given, the header counts.",
                {"200": _told("The stream's events.", stream=True, events=EVENT)},
                (*GUARD, "404", "410", "503"),
                parameters=[
                    ID_IN_PATH,
                    _parameter("after", "query", NUMBER, "The last event that was seen."),
                    _parameter("Last-Event-ID", "header", NUMBER, "The same, by an EventSource."),
                ],
            )
        },
        "/streams": {
            "get": _operation(
                "listStreams",
                "Streams",
                "The streams that are running",
                "All streams that programs have started, for whoever brings the access token; "
                "without one, none.",
                {"200": _told("The streams.", json=_ref("Streams"))},
            )
        },
        "/stop": {
            "post": _operation(
                "pressStop",
                "Stop",
                "Stop a stream",
                STOPS,
                RECEIPTS,
                (*GUARD, "413"),
                requestBody=_body(_ref("StopRequest"), JSON, FORM),
            )
        },
        "/stop/{stream_id}": {
            "post": _operation(
                "stopStream",
                "Stop",
                "Stop the stream of this ID",
                STOPS,
                RECEIPTS,
                (*GUARD, "413"),
                parameters=[ID_IN_PATH],
                requestBody=_body(
                    {"type": "object", "properties": {"seen": SEEN}}, JSON, FORM, required=False
                ),
            )
        },
        "/stop-all": {
            "post": _operation(
                "stopAll",
                "Stop",
                "Stop every stream that is running",
                "All streams that programs have started, for whoever brings the access token; "
                "without one, none.",
                {"200": _told("What was done.", json=_ref("Stopped"))},
                (*GUARD, "413"),
            )
        },
        "/chat": {
            "post": _operation(
                "chat",
                "Plain",
                "An answer as text, or as one JSON object",
                "The text comes as the model writes it; with `Accept: application/json` the whole "
                "answer at its end. A text that is not whole ends without the end that HTTP asks "
                "for, which every HTTP client reports. A model that is silent for longer than "
                "HALT_HEARTBEAT is waited for behind the status 200.",
                {
                    "200": _told(
                        "The answer.",
                        stream=True,
                        text={"type": "string"},
                        json=_ref("WholeAnswer"),
                    )
                },
                (*WAITS, "410"),
                requestBody=_body(
                    {"oneOf": [_ref("PromptRequest"), _ref("MessagesRequest")]}, JSON
                ),
            )
        },
        "/stream": {
            "get": _operation(
                "promptStream",
                "Plain",
                "An answer for `new EventSource(...)`",
                "Each message's data is an Event with text, or the last; the first adds nothing. "
                "Each `id` names the "
                "stream too. An EventSource that asks again sends the last as the header "
                "`Last-Event-ID`: it goes on there, whatever else is asked, and no prompt runs "
                "twice.",
                {
                    "200": _told(
                        "The answer's events.",
                        stream=True,
                        events=_events(ITEM, done=False),
                    ),
                    "204": {"description": WHY["204"]},
                },
                (*GUARD, "409", "503"),
                parameters=[
                    _parameter(
                        "prompt",
                        "query",
                        {"type": "string", "pattern": r"\S"},
                        "What the user says. Needed at the first time.",
                    ),
                    _parameter(
                        "system", "query", {"type": "string"}, "What the model is told beforehand."
                    ),
                    _parameter("id", "query", STREAM_ID, "The stream's ID, where it is chosen."),
                    *(
                        _parameter(name, "query", schema["anyOf"][0], "As in a ChatRequest.")
                        for name, schema in options.items()
                    ),
                ],
            )
        },
        "/v1/chat/completions": {
            "post": _operation(
                "createCompletion",
                "OpenAI",
                "OpenAI's chat completions",
                "For OpenAI's clients: set their base URL to this server's address and `/v1`. With "
                "`stream` the answer comes as `chat.completion.chunk` objects. A client that drops "
                "its connection stops its stream, if no other reader follows it and "
                '`on_disconnect` is not "continue".',
                {
                    "200": _told(
                        "The answer.",
                        stream=True,
                        json=_ref("Completion"),
                        events=_events({"type": "object"}),
                    )
                },
                (*WAITS, "410"),
                shape="OpenAIError",
                parameters=[
                    _parameter(
                        "X-Stream-Id",
                        "header",
                        STREAM_ID,
                        "The stream's ID, where it is chosen.",
                    )
                ],
                requestBody=_body(_ref("CompletionRequest"), JSON),
            )
        },
        "/v1/models": {
            "get": _operation(
                "listModels",
                "OpenAI",
                "The models that can be asked",
                "As the model's server lists them.",
                {"200": _told("The models.", json=_ref("Models"))},
                ASKS,
                shape="OpenAIError",
            )
        },
        "/v1/models/{name}": {
            "get": _operation(
                "getModel",
                "OpenAI",
                "One model",
                "Names may have slashes in them.",
                {"200": _told("The model.", json=_ref("Model"))},
                ASKS,
                shape="OpenAIError",
                parameters=[
                    _parameter(
                        "name", "path", {"type": "string", "minLength": 1}, "The model's name."
                    )
                ],
            )
        },
        "/healthz": {
            "get": _operation(
                "health",
                "Server",
                "How the server is",
                "Needs no token.",
                {
                    "200": _told("It serves.", json=_ref("Health")),
                    "503": _told("It is about to leave.", json=_ref("Health")),
                },
                ("403",),
                security=[],
            )
        },
        "/openapi.json": {
            "get": _operation(
                "openapi",
                "Server",
                "This document",
                "To read it, go to `/docs`.",
                {"200": _told("The document.", json={"type": "object"})},
                GUARD[1:],
            )
        },
    }


STOPS = (
    "Ends the stream at once and closes the connection to the model. Pressing it twice is "
    "harmless. An ID that is not known yet is remembered for 30 seconds: a stream that starts "
    "with it ends at once."
)
RECEIPTS = {
    "200": _told("What the Stop did.", json=_ref("Receipt")),
    "202": _told(
        "The stream has not begun yet. With a `note`: the database did not answer in time, so it "
        "may have ended before.",
        json=_ref("Receipt"),
    ),
}


def document(*, token: bool) -> dict[str, Any]:
    """The whole document; `token`: this server asks for one."""
    schemas = _schemas()
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Halt",
            "version": VERSION,
            "summary": "Streaming chat whose Stop really stops.",
            "description": ABOUT,
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "tags": [
            {"name": "Streams", "description": "Answers as streams of events."},
            {"name": "Stop", "description": "What ends them."},
            {"name": "Plain", "description": "Answers with as little around them as can be."},
            {"name": "OpenAI", "description": "What OpenAI's clients speak."},
            {"name": "Server", "description": "The server itself."},
        ],
        "security": [{"token": []}] if token else [],
        "paths": _paths(schemas["ChatRequest"]),
        "components": {
            "schemas": schemas,
            "headers": {
                "X-Stream-Id": {"description": "The stream's ID.", "schema": STREAM_ID},
                HEADER: {
                    "description": "The request's own ID, or one that was made up for it.",
                    "schema": {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,128}$"},
                },
                "Retry-After": {
                    "description": "Seconds after which to ask again, where they are known.",
                    "schema": {"type": "integer", "minimum": 0},
                },
            },
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "The access token that is set by HALT_TOKEN.",
                }
            },
        },
    }


# --- the routes -----------------------------------------------------------------------------------

blueprint = Blueprint("openapi", __name__)


@blueprint.get("/openapi.json")
def described() -> Response:
    """The document, for programs."""
    return json_response(document(token=bool(services().config.token)))


@blueprint.get("/docs")
def docs() -> str:
    """The document, for people."""
    return render_template("docs.html", api=document(token=bool(services().config.token)))
