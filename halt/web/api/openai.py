"""OpenAI's chat completions, answered by Halt: any OpenAI client gains Stop, limits and retries.

    POST /v1/chat/completions    streamed or whole
    GET  /v1/models, GET /v1/models/ID

The stream's ID is in the header `X-Stream-Id`, and may be chosen by a header of that name. A client
that drops its connection stops its run at once, if nobody else follows it. A run that was stopped
from elsewhere ends with the finish reason "stop", since strict clients know no other word for it;
the field `halt` beside the choices says `"state": "cancelled"`, and the run's figures. One that the
model's server broke off for a reason of its own ends with "length", and `halt` has that reason.

What Halt has no field for is passed on to the model's server, and so is a value that no field of
Halt's own wire would take: the server knows what it takes. What Halt has no event for comes back in
the chunks, at the place where the server put it. Tools are the client's own. A client that knows
them as `functions` is answered in that form, which has one call: the first.
"""

from __future__ import annotations

import time
from typing import Any

import msgspec
from flask import Blueprint, Response, request

from halt.core import via
from halt.core.connection import limited
from halt.core.decoding import CHAT_REQUEST, JSON_OBJECT, TypeDecoder, checked_id
from halt.core.events import (
    FINAL_FRAME,
    HEARTBEAT,
    Cancelled,
    Content,
    Done,
    Event,
    Extra,
    Failed,
    Reasoning,
    ReasoningEnd,
    Terminal,
    ToolCall,
    ToolCallDelta,
    encode,
    is_terminal,
)
from halt.core.finish_reasons import broken_off
from halt.core.generation import Recording
from halt.core.request import OF_ANSWERS, ChatRequest, fields_of, told_call
from halt.core.request_ids import current
from halt.core.run import Run
from halt.errors import HaltError, Interrupted, OffsetLost, RequestError, UpstreamError
from halt.providers.catalog import NO_LIST
from halt.web.event_stream import (
    SSE_HEADERS,
    Answer,
    EventStream,
    Reading,
    failure,
    gather,
    watched,
)
from halt.web.requests import client_socket
from halt.web.responses import json_response, openai_error, tell_id
from halt.web.schemas import AboutRun, Model, Models
from halt.web.services import services
from halt.web.sessions import owner
from halt.web.starts import OnDisconnect, count_starts, grace_of

MODELS_SECONDS = 10.0  # for the model's server to list its models

#: Fields that ChatRequest has a place for; those of Halt's own wire are none of OpenAI's.
NAMED = frozenset(ChatRequest.__struct_fields__) - {"id", "extra_body", "stream"}

#: What each of them takes. The model and the messages have to fit; the others go on as they are.
FITTING = {
    each.name: TypeDecoder(each.type)
    for each in msgspec.structs.fields(ChatRequest)
    if each.name in NAMED - {"model", "messages"}
}

#: Fields that say how to answer, and go to no server.
MANNERS = frozenset({"on_disconnect", "stream", "stream_options", "n"})

#: Values that say as much as a field that is left out.
SAYS_NOTHING: dict[str, tuple[Any, ...]] = {
    "model": ("",),
    "logprobs": (None, False),
    "modalities": (None, ["text"]),
    "functions": (None, []),
    "function_call": (None,),
}

#: Finish reasons of an answer that calls: of tools, and of functions, their older form.
CALLED = frozenset({"tool_calls", "function_call"})

blueprint = Blueprint("openai_api", __name__, url_prefix="/v1")


class Asked(msgspec.Struct, frozen=True):
    """A request as Halt understands it, and what only matters for how it is answered."""

    chat: ChatRequest
    stream: bool
    include_usage: bool
    functions: bool  # calls are given back as OpenAI's `function_call`
    grace: float | None  # as `Generations.start` takes it


class StreamOptions(msgspec.Struct):
    """Fields that are not named here change nothing for Halt."""

    include_usage: bool | None = None


class Manner(msgspec.Struct):
    """The fields that say how to answer, and those of the older form of calls."""

    on_disconnect: OnDisconnect | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    functions: Any = None
    function_call: Any = None


_MANNER = TypeDecoder(Manner)


def asked(body: bytes, stream_id: str | None) -> Asked:
    """A request's body. Raises RequestError that names the field."""
    fields = JSON_OBJECT.decode(body)
    manner = _MANNER.convert(fields)
    if manner.n not in {None, 1}:
        raise RequestError("n: one answer is given to a request; ask again for more.", field="n")
    if stream_id is not None:
        checked_id(stream_id, "X-Stream-Id")
    given = {
        name: value
        for name, value in fields.items()
        if name not in MANNERS and value not in SAYS_NOTHING.get(name, ())
    }
    functions = _are_functions(manner.functions) and not given.get("tools")
    if functions:
        given |= _tools(given.pop("functions"), given.pop("function_call", None))
    given["messages"] = _cleaned(fields.get("messages"))
    named = {name: given[name] for name in given if name in NAMED and _fits(name, given[name])}
    rest = {name: given[name] for name in given if name not in named}
    options = manner.stream_options or StreamOptions()
    more = fields.get("stream_options") or {}
    if more.keys() - {"include_usage"}:
        rest["stream_options"] = {**more, "include_usage": True}  # Halt counts in any case
    if rest:
        named["extra_body"] = rest
    if stream_id is not None:
        named["id"] = stream_id
    return Asked(
        CHAT_REQUEST.convert(named),
        stream=bool(manner.stream),
        include_usage=bool(options.include_usage),
        functions=functions,
        grace=grace_of(manner.on_disconnect, "stop"),
    )


def _fits(name: str, value: Any) -> bool:
    """The field takes this value; where it has to, it is not asked."""
    try:
        if name in FITTING:
            FITTING[name].convert(value)
    except RequestError:
        return False
    return True


def _are_functions(functions: Any) -> bool:
    return (
        isinstance(functions, list)
        and bool(functions)
        and all(isinstance(each, dict) for each in functions)
    )


def _tools(functions: list[dict[str, Any]], choice: Any) -> dict[str, Any]:
    """The fields that say the same as `functions` and `function_call`."""
    tools: dict[str, Any] = {"tools": [_typed(each) for each in functions]}
    if choice is None:
        return tools
    return {**tools, "tool_choice": _typed(choice) if isinstance(choice, dict) else choice}


def _typed(function: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": function}


def _cleaned(messages: Any) -> Any:
    """Messages whose calls of functions are calls of tools, and that are no list of an answer's.

    What is malformed is left for the decoder, or for the model's server.
    """
    if not isinstance(messages, list):
        return messages
    calls: list[tuple[str, str]] = []  # function and ID of calls that have no result yet
    return [
        _prompt(message, number, calls) if isinstance(message, dict) else message
        for number, message in enumerate(messages)
    ]


def _prompt(message: dict[str, Any], number: int, calls: list[tuple[str, str]]) -> dict[str, Any]:
    if message.get("role") == "function":
        return _result(message, calls)
    if message.get("role") != "assistant":
        return message
    # Clients send answers back as they are: with fields that are empty, and calls that still have
    # their number in a stream.
    kept = {k: v for k, v in message.items() if not (k in OF_ANSWERS and v in (None, []))}
    if isinstance(called := kept.get("tool_calls"), list):
        kept["tool_calls"] = [
            _unnumbered(each) if isinstance(each, dict) else each for each in called
        ]
    function = kept.get("function_call")
    if isinstance(function, dict) and isinstance(function.get("name"), str):
        del kept["function_call"]
        if not kept.get("tool_calls"):
            made_up = f"call_{number}"  # the same each time: a server may know it all again
            kept["tool_calls"] = [{"id": made_up, **_typed(function)}]
            calls.append((function["name"], made_up))
    return kept


def _result(message: dict[str, Any], calls: list[tuple[str, str]]) -> dict[str, Any]:
    """A function's result as that of the newest call of its name that has none, if there is one."""
    known = [call for call in calls if call[0] == message.get("name")]
    if not known:
        return message
    calls.remove(known[-1])
    kept = {name: value for name, value in message.items() if name != "name"}
    content = kept.get("content")
    told = {"role": "tool", "tool_call_id": known[-1][1]}
    return {**kept, **told, "content": "" if content is None else content}


def _unnumbered(call: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in call.items() if name != "index"}


# --- completions ----------------------------------------------------------------------------------


@blueprint.post("/chat/completions")
def completions() -> Response:
    given = asked(request.get_data(), request.headers.get("X-Stream-Id"))
    service = services().generations
    count_starts()
    run = service.start(given.chat, owner(), grace=given.grace)
    tell_id(run.id)
    if not given.stream:
        with watched(run, lambda: Reading(service, run, client_socket())) as reading:
            return json_response(whole(run, gather(reading), functions=given.functions))
    body = watched(run, lambda: ChunkStream(run, given))
    try:
        # So a fault before the first token has its own status. A model that thinks in silence is
        # waited for as long as no proxy takes the connection for dead.
        body.wait(
            lambda event: not (isinstance(event, Extra) or is_terminal(event)),
            services().config.heartbeat,
        )
    except BaseException:
        body.close()
        raise
    return Response(body, headers=SSE_HEADERS, direct_passthrough=True)


def whole(run: Run, answer: Answer, *, functions: bool) -> dict[str, Any]:
    """A whole answer as a `chat.completion`."""
    ended, extras = answer.ended, answer.extras
    message: dict[str, Any] = {
        **extras.delta,
        "role": "assistant",
        "content": answer.content,
        "refusal": None,
    }
    if answer.reasoning:
        message["reasoning_content"] = answer.reasoning
    if answer.calls:
        message["content"] = answer.content or None
        calls = [told_call(call) for call in answer.calls]
        if functions:
            message["function_call"] = calls[0]["function"]
        else:
            message["tool_calls"] = calls
    choice = {
        "logprobs": None,
        **extras.choice,
        "index": 0,
        "message": message,
        "finish_reason": finish_reason(ended, called=bool(answer.calls), functions=functions),
    }
    completion = {
        **extras.chunk,
        "id": f"chatcmpl-{run.id}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": run.model,
        "choices": [choice],
        "halt": about(run, ended),
    }
    if isinstance(ended, Done) and ended.usage:
        completion["usage"] = ended.usage
    return completion


def finish_reason(ended: Terminal, *, called: bool, functions: bool) -> str:
    """Why the answer ended, in a word that OpenAI's clients know."""
    given = ended.finish_reason if isinstance(ended, Done) else "stop"
    if given in CALLED or (called and not given):
        return "function_call" if functions else "tool_calls"
    if broken_off(given):
        return "length"  # the one word for an answer that is not whole and can be gone on with
    return given or "stop"


def about(run: Recording, ended: Terminal) -> AboutRun:
    """What Halt knows of the run and OpenAI's answer has no field for."""
    reason = ended.finish_reason if isinstance(ended, Done) else None
    return AboutRun(
        run.id,
        "cancelled" if isinstance(ended, Cancelled) else "done",
        ended.metrics,
        ended.reason if isinstance(ended, Cancelled) else msgspec.UNSET,
        reason if reason is not None and broken_off(reason) else msgspec.UNSET,
    )


class ChunkStream(EventStream):
    """The body of a streamed completion. Its first chunk has the role, its last the usage."""

    #: With an empty line: no event has an ID here, and clients that cut at empty lines and look
    #: only for blocks that begin with `data:` lose nothing.
    comment = HEARTBEAT + b"\n"

    def __init__(self, run: Run, given: Asked) -> None:
        """Take a reader's place. Raises AtCapacity."""
        super().__init__(services().generations, run, client_socket(), 0, self._chunks)
        self._include_usage = given.include_usage
        self._functions = given.functions
        self._request_id = current()  # while a body is read there is no current request
        self._created = int(time.time())
        self._before = self._after_delta = b""  # the bytes of a chunk around its delta
        self._calls: dict[int, tuple[str, str]] = {}  # index -> ID and name, as far as told

    def _chunks(self, events: list[tuple[int, Event]]) -> bytes:
        out: list[bytes] = []
        if not self._before and not isinstance(events[0][1], Failed):
            self._begin()
            out.append(self._chunk(b'{"role":"assistant","content":""}'))
        for _, event in events:
            if isinstance(event, Content | ReasoningEnd):  # the form cannot take text back
                out.append(self._chunk(b'{"content":%b}' % encode(event.content)))
            elif isinstance(event, Reasoning):
                out.append(self._chunk(b'{"reasoning_content":%b}' % encode(event.text)))
            elif isinstance(event, ToolCallDelta):
                out.append(self._fragment(event.index, event))
            elif isinstance(event, ToolCall):
                # Most have come in fragments, which a client has put together by now.
                if event.id not in {known for known, _ in self._calls.values()}:
                    index = max(self._calls, default=-1) + 1
                    out.append(self._fragment(index, event))
            elif isinstance(event, Extra):
                out.append(self._extra(event))
            elif isinstance(event, Failed):
                fault = failure(event)
                error = openai_error(fault.status, fault.code, fault.message, self._request_id)
                out.append(b"data: %b\n\n" % encode(error))  # and no [DONE]: it is not whole
            elif is_terminal(event):
                out += self._last(event)
        return b"".join(out)

    def _begin(self) -> None:
        """Now that the model is known, make what all chunks have in common."""
        whole = self._object([{"index": 0, "delta": None, "logprobs": None, "finish_reason": None}])
        if self._include_usage:
            whole["usage"] = None
        before, _, after = encode(whole).partition(b'"delta":null')
        self._before = b'data: %b"delta":' % before
        self._after_delta = after + b"\n\n"

    def _object(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": f"chatcmpl-{self.run.id}",
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": self.run.model,
            "choices": choices,
        }

    def _chunk(self, delta: bytes) -> bytes:
        return self._before + delta + self._after_delta

    def _extra(self, event: Extra) -> bytes:
        """Fields that the model's server put into a chunk, each in its place, under Halt's own."""
        own = {"index": 0, "delta": event.delta, "finish_reason": None}
        chunk = self._object([{"logprobs": None, **event.choice, **own}])
        more = {name: value for name, value in event.chunk.items() if name != "halt"}
        if self._include_usage:
            chunk["usage"] = None
        return b"data: %b\n\n" % encode({**more, **chunk})

    def _fragment(self, index: int, piece: ToolCallDelta | ToolCall) -> bytes:
        """A piece of a tool call. Clients append what they are sent: ID and name come once."""
        if self._functions and self._calls and index not in self._calls:
            return b""  # the older form has room for one call
        call = {**fields_of(piece), "index": index}
        function = {**call.get("function", {}), "arguments": piece.arguments}
        told_id, told_name = self._calls.get(index, ("", ""))
        if piece.id and not told_id:
            call |= {"id": piece.id, "type": "function"}
        if piece.name != told_name:  # what has been added: clients put the pieces together
            function = {**function, "name": piece.name.removeprefix(told_name)}
        self._calls[index] = told_id or piece.id, told_name or piece.name
        if self._functions:
            return self._chunk(b'{"function_call":%b}' % encode(function))
        return self._chunk(b'{"tool_calls":%b}' % encode([{**call, "function": function}]))

    def _last(self, ended: Terminal) -> list[bytes]:
        reason = finish_reason(ended, called=bool(self._calls), functions=self._functions)
        last = self._object([{"index": 0, "delta": {}, "logprobs": None, "finish_reason": reason}])
        if self._include_usage:
            last["usage"] = None
        last["halt"] = about(self.run, ended)
        out = [b"data: %b\n\n" % encode(last)]
        if self._include_usage and isinstance(ended, Done) and ended.usage:
            out.append(b"data: %b\n\n" % encode({**self._object([]), "usage": ended.usage}))
        return [*out, FINAL_FRAME]

    def lost(self, lost: OffsetLost) -> bytes:
        return b"data: %b\n\n" % encode(
            openai_error(lost.status, lost.code, lost.message, self._request_id)
        )


# --- models ---------------------------------------------------------------------------------------


@blueprint.get("/models")
def models() -> Response:
    return json_response(Models("list", [_described(name) for name in _names()]))


@blueprint.get("/models/<path:name>")
def model(name: str) -> Response:
    if name not in _names():
        raise UpstreamError("model_not_found", hint="GET /v1/models lists those that there are.")
    return json_response(_described(name))


def _described(name: str) -> Model:
    return Model(name, "model", created=0, owned_by="halt")


def _names() -> list[str]:
    """What the model's server offers now; the configured model where it gives no list.

    Raises UpstreamError, AtCapacity.
    """
    service = services().generations
    configured = [name] if (name := service.upstream.known_model) else []
    with service.readers.place(), limited(MODELS_SECONDS, via.current()) as line:
        try:
            return service.upstream.models(line) or configured
        except Interrupted:
            raise UpstreamError("first_byte_timeout") from None
        except HaltError as fault:
            if line.interrupted:
                raise UpstreamError("first_byte_timeout") from None
            if configured and fault.code in NO_LIST:
                return configured
            raise
