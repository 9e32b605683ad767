"""OpenAI's chat completions, answered by Halt: any OpenAI client gains Stop, limits and retries.

    POST /v1/chat/completions    streamed or whole
    GET  /v1/models, GET /v1/models/ID

The stream's ID is in the header `X-Stream-Id`, and may be chosen by a header of that name. A client
that drops its connection stops its run at once, if nobody else follows it. A run that was stopped
from elsewhere ends with the finish reason "stop", since strict clients know no other word for it;
the field `halt` beside the choices says `"state": "cancelled"`, and the run's figures.

What Halt has no field for is passed on to the model's server. Tools are the client's own. A client
that knows them as `functions` is answered in that form, which has one call: the first.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Literal

import msgspec
from flask import Blueprint, Response, request

from halt.bodies import JSON_OBJECT, TypeDecoder, checked_id
from halt.chat import CHAT_REQUEST, ChatRequest, FunctionCall, ToolFunction
from halt.errors import HaltError, Interrupted, OffsetLost, RequestError, UpstreamError
from halt.events import (
    FINAL_FRAME,
    HEARTBEAT,
    Content,
    Done,
    Event,
    Failed,
    Reasoning,
    Terminal,
    ToolCall,
    ToolCallDelta,
    encode,
    is_terminal,
)
from halt.line import limited
from halt.rates import count_starts
from halt.recording import Recording
from halt.relay import SSE_HEADERS, Answer, EventStream, Reading, failure, gather, watched
from halt.request_ids import current
from halt.run import Run
from halt.starts import OnDisconnect, grace_of
from halt.web import (
    client_socket,
    config,
    generations,
    json_response,
    openai_error,
    owner,
    tell_id,
)

MODELS_SECONDS = 10.0  # for the model's server to list its models

#: Fields that ChatRequest has a place for; those of Halt's own wire are none of OpenAI's.
NAMED = frozenset(ChatRequest.__struct_fields__) - {"id", "extra_body", "stream"}

#: What an answer carries and a prompt has no use for; clients send their answers back as they are.
OF_ANSWERS = ("refusal", "annotations", "audio", "function_call", "reasoning", "reasoning_content")

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


class FunctionChoice(msgspec.Struct):
    """The one function that is to be called."""

    name: str


class CallingMessage(msgspec.Struct):
    """What a message may have of the older form of calls."""

    function_call: FunctionCall | None = None


class Manner(msgspec.Struct):
    """The fields that say how to answer, and those of the older form of calls."""

    messages: list[CallingMessage] | None = None
    on_disconnect: OnDisconnect | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    logprobs: bool | None = None
    functions: list[ToolFunction] | None = None
    function_call: Literal["none", "auto"] | FunctionChoice | None = None
    modalities: list[str] | None = None


_MANNER = TypeDecoder(Manner)


def asked(body: bytes, stream_id: str | None) -> Asked:
    """A request's body. Raises RequestError that names the field."""
    fields = JSON_OBJECT.decode(body)
    manner = _MANNER.convert(fields)
    if manner.n not in {None, 1}:
        raise RequestError("n: one answer is given to a request; ask again for more.", field="n")
    if manner.logprobs:
        raise RequestError("logprobs: they are not kept of an answer.", field="logprobs")
    if manner.modalities not in (None, ["text"]):
        raise RequestError("modalities: answers are text.", field="modalities")
    if stream_id is not None:
        checked_id(stream_id, "X-Stream-Id")
    named = {name: value for name, value in fields.items() if name in NAMED}
    named["messages"] = _cleaned(fields.get("messages"))
    named |= _tools(manner, named)
    rest = fields.keys() - NAMED - frozenset(Manner.__struct_fields__)
    if rest:
        named["extra_body"] = {name: fields[name] for name in fields if name in rest}
    if stream_id is not None:
        named["id"] = stream_id
    options = manner.stream_options
    return Asked(
        CHAT_REQUEST.convert(named),
        stream=bool(manner.stream),
        include_usage=options is not None and bool(options.include_usage),
        functions=bool(manner.functions),
        grace=grace_of(manner.on_disconnect, "stop"),
    )


def _tools(manner: Manner, named: dict[str, Any]) -> dict[str, Any]:
    """The fields that say the same as `functions` and `function_call`. Raises RequestError."""
    choice = manner.function_call
    if not manner.functions:
        if isinstance(choice, FunctionChoice):
            raise RequestError("function_call: there are no functions.", field="function_call")
        return {}
    for name in ("tools", "tool_choice"):
        if named.get(name):
            raise RequestError(f"{name}: give tools or functions, not both.", field=name)
    tools: list[Any] = [{"function": msgspec.to_builtins(each)} for each in manner.functions]
    if isinstance(choice, FunctionChoice):
        return {"tools": tools, "tool_choice": _typed({"name": choice.name})}
    return {"tools": tools, "tool_choice": choice}


def _typed(function: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": function}


def _cleaned(messages: Any) -> Any:
    """Messages without what an answer alone has; calls of functions become calls of tools.

    What is malformed is left for the decoder. Raises RequestError for a result without its call.
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
        return _result(message, number, calls)
    if message.get("role") != "assistant":
        return message
    kept = {name: value for name, value in message.items() if name not in OF_ANSWERS}
    if isinstance(asked := kept.get("tool_calls"), list):
        # Put together from a stream, calls still have their number.
        kept["tool_calls"] = [
            _unnumbered(each) if isinstance(each, dict) else each for each in asked
        ]
    if (function := message.get("function_call")) and not kept.get("tool_calls"):
        made_up = f"call_{number}"  # the same each time: a server may know the conversation again
        kept["tool_calls"] = [{"id": made_up, **_typed(function)}]
        calls.append((function["name"], made_up))
    return kept


def _result(message: dict[str, Any], number: int, calls: list[tuple[str, str]]) -> dict[str, Any]:
    """A function's result as that of the newest call of its name that has none."""
    kept = {name: value for name, value in message.items() if name != "name"}
    known = [call for call in calls if call[0] == message.get("name")]
    if not known:
        raise RequestError(
            f"messages[{number}]: no function_call of this name comes before the function's result "
            "and has none yet.",
            field=f"messages[{number}].name",
        )
    calls.remove(known[-1])
    content = kept.get("content")
    told = {"role": "tool", "tool_call_id": known[-1][1]}
    return {**kept, **told, "content": "" if content is None else content}


def _unnumbered(call: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in call.items() if name != "index"}


# --- completions ----------------------------------------------------------------------------------


@blueprint.post("/chat/completions")
def completions() -> Response:
    given = asked(request.get_data(), request.headers.get("X-Stream-Id"))
    service = generations()
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
        body.wait(lambda event: not is_terminal(event), config().heartbeat)
    except BaseException:
        body.close()
        raise
    return Response(body, headers=SSE_HEADERS, direct_passthrough=True)


def whole(run: Run, answer: Answer, *, functions: bool) -> dict[str, Any]:
    """A whole answer as a `chat.completion`."""
    ended = answer.ended
    message: dict[str, Any] = {"role": "assistant", "content": answer.content, "refusal": None}
    if answer.reasoning:
        message["reasoning_content"] = answer.reasoning
    if answer.calls:
        message["content"] = answer.content or None
        told = [_function(call.name, call.arguments) for call in answer.calls]
        if functions:
            message["function_call"] = told[0]
        else:
            message["tool_calls"] = [
                {"id": call.id, **_typed(function)}
                for call, function in zip(answer.calls, told, strict=True)
            ]
    choice = {
        "index": 0,
        "message": message,
        "logprobs": None,
        "finish_reason": finish_reason(ended, called=bool(answer.calls), functions=functions),
    }
    completion = {
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


def _function(name: str, arguments: str) -> dict[str, str]:
    return {"name": name, "arguments": arguments}


def finish_reason(ended: Terminal, *, called: bool, functions: bool) -> str:
    """Why the answer ended, in a word that OpenAI's clients know."""
    given = ended.finish_reason if isinstance(ended, Done) else "stop"
    if given in CALLED or (called and not given):
        return "function_call" if functions else "tool_calls"
    return given or "stop"


def about(run: Recording, ended: Terminal) -> dict[str, Any]:
    """What Halt knows of the run and OpenAI's answer has no field for."""
    known: dict[str, Any] = {"id": run.id, "state": run.state, "metrics": ended.metrics}
    if not isinstance(ended, Done | Failed):
        known["reason"] = ended.reason
    return known


class ChunkStream(EventStream):
    """The body of a streamed completion. Its first chunk has the role, its last the usage."""

    #: With an empty line: no event has an ID here, and clients that cut at empty lines and look
    #: only for blocks that begin with `data:` lose nothing.
    comment = HEARTBEAT + b"\n"

    def __init__(self, run: Run, given: Asked) -> None:
        """Take a reader's place. Raises AtCapacity."""
        super().__init__(generations(), run, client_socket(), 0, self._chunks)
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
            if isinstance(event, Content):
                out.append(self._chunk(b'{"content":%b}' % encode(event.content)))
            elif isinstance(event, Reasoning):
                out.append(self._chunk(b'{"reasoning_content":%b}' % encode(event.text)))
            elif isinstance(event, ToolCallDelta):
                out.append(self._fragment(event.index, event.id, event.name, event.arguments))
            elif isinstance(event, ToolCall):
                # Most have come in fragments, which a client has put together by now.
                if event.id not in {known for known, _ in self._calls.values()}:
                    index = max(self._calls, default=-1) + 1
                    out.append(self._fragment(index, event.id, event.name, event.arguments))
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

    def _fragment(self, index: int, call_id: str, name: str, arguments: str) -> bytes:
        """A piece of a tool call. Clients append what they are sent: ID and name come once."""
        if self._functions and self._calls and index not in self._calls:
            return b""  # the older form has room for one call
        call: dict[str, Any] = {"index": index}
        function = {"arguments": arguments}
        told_id, told_name = self._calls.get(index, ("", ""))
        if call_id and not told_id:
            call |= {"id": call_id, "type": "function"}
        if name and not told_name:
            function = _function(name, arguments)
        self._calls[index] = told_id or call_id, told_name or name
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
    return json_response({"object": "list", "data": [_described(name) for name in _names()]})


@blueprint.get("/models/<path:name>")
def model(name: str) -> Response:
    if name not in _names():
        raise UpstreamError("model_not_found", hint="GET /v1/models lists those that there are.")
    return json_response(_described(name))


def _described(name: str) -> Mapping[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "halt"}


def _names() -> list[str]:
    """What the model's server offers now. Raises UpstreamError, AtCapacity."""
    service = generations()
    with service.place(), limited(MODELS_SECONDS) as line:
        try:
            return service.upstream.models(line)
        except Interrupted:
            raise UpstreamError("first_byte_timeout") from None
        except HaltError:
            if line.interrupted:
                raise UpstreamError("first_byte_timeout") from None
            raise
