"""OpenAI-compatible chat completions: OpenAI's clients get Halt's Stop, limits and retries.

    POST /v1/chat/completions    streamed or whole
    GET  /v1/models, GET /v1/models/ID

The response header `X-Stream-Id` has the stream's ID; a request header of that name may choose it.
When a client closes its connection, its run stops at once if it has no other reader. A run that
another request stopped ends with the finish reason "stop", since strict clients accept no other
value; the field `halt` beside the choices has `"state": "cancelled"` and the run's metrics. A run
that the model's server broke off for its own reason ends with "length", and `halt` has that reason.

Fields that Halt has no event for are sent in the chunks, in the place where the model's server put
them. A client that sends `functions` gets calls in that format, which has one call only: the first.
"""

from __future__ import annotations

import time
from typing import Any

import msgspec
from flask import Blueprint, Response, request

from halt.core import via
from halt.core.connection import limited_connection
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
from halt.core.finish_reasons import unusual_end_note
from halt.core.generation import Generation
from halt.core.request import fields_of, openai_call
from halt.core.request_ids import current
from halt.core.run import Run
from halt.errors import HaltError, Interrupted, UpstreamError
from halt.providers.catalog import NO_LIST_CODES
from halt.providers.model_list import is_name
from halt.web.api.openai_request import CompletionRequest, parse_request
from halt.web.event_stream import (
    SSE_HEADERS,
    Answer,
    EventStream,
    RunReader,
    answer_failed,
    cancel_on_error,
    collect_answer,
)
from halt.web.identity import owner
from halt.web.requests import client_socket
from halt.web.responses import add_stream_id_header, json_response, openai_error
from halt.web.schemas import AboutRun, Model, Models
from halt.web.services import services
from halt.web.starts import count_starts

MODELS_SECONDS = 10.0  # timeout of a request for the list of models

#: Finish reasons of an answer with calls: of tools, and of functions, their older format.
CALLED = frozenset({"tool_calls", "function_call"})

blueprint = Blueprint("openai_api", __name__, url_prefix="/v1")


# --- completions ----------------------------------------------------------------------------------


@blueprint.post("/chat/completions")
def completions() -> Response:
    completion = parse_request(request.get_data(), request.headers.get("X-Stream-Id"))
    service = services().generations
    count_starts()
    run = service.start(completion.chat, owner(), grace=completion.grace)
    add_stream_id_header(run.id)
    if not completion.stream:
        with cancel_on_error(run, lambda: RunReader(service, run, client_socket())) as reader:
            return json_response(
                completion_object(run, collect_answer(reader), functions=completion.functions)
            )
    body = cancel_on_error(run, lambda: ChunkStream(run, completion))
    try:
        # Wait for the first token, so that an error before it has its own HTTP status; but at most
        # one heartbeat, so that no proxy takes the connection for dead.
        body.wait(
            lambda event: not (isinstance(event, Extra) or is_terminal(event)),
            services().config.heartbeat,
        )
    except BaseException:
        body.close()
        raise
    return Response(body, headers=SSE_HEADERS, direct_passthrough=True)


def completion_object(run: Run, answer: Answer, *, functions: bool) -> dict[str, Any]:
    """A complete answer as a `chat.completion` object."""
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
        calls = [openai_call(call) for call in answer.calls]
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
    """The finish reason, as one of the values that OpenAI's clients accept."""
    reason = ended.finish_reason if isinstance(ended, Done) else "stop"
    if reason in CALLED or (called and not reason):
        return "function_call" if functions else "tool_calls"
    if unusual_end_note(reason):
        return "length"  # the only value for an incomplete answer that can be continued
    return reason or "stop"


def about(run: Generation, ended: Terminal) -> AboutRun:
    """Facts about the run that have no field in OpenAI's format."""
    reason = ended.finish_reason if isinstance(ended, Done) else None
    return AboutRun(
        run.id,
        "cancelled" if isinstance(ended, Cancelled) else "done",
        ended.metrics,
        ended.reason if isinstance(ended, Cancelled) else msgspec.UNSET,
        reason if reason is not None and unusual_end_note(reason) else msgspec.UNSET,
    )


class ChunkStream(EventStream):
    """The body of a streamed completion: the first chunk has the role, the last has the usage."""

    #: With an empty line after it, so that clients that split at empty lines and only use blocks
    #: that begin with `data:` lose no event. No event has an ID here.
    comment = HEARTBEAT + b"\n"

    def __init__(self, run: Run, completion: CompletionRequest) -> None:
        """Register the reader. Raises AtCapacity."""
        super().__init__(services().generations, run, client_socket(), 0, self._chunks)
        self._include_usage = completion.include_usage
        self._functions = completion.functions
        self._request_id = current()  # while a body is read there is no current request
        self._created = int(time.time())
        self._before = self._after_delta = b""  # the bytes of a chunk before and after its delta
        self._calls: dict[int, tuple[str, str]] = {}  # index -> ID and name that were sent

    def _chunks(self, events: list[tuple[int, Event]]) -> bytes:
        out: list[bytes] = []
        if not self._before and not isinstance(events[0][1], Failed):
            self._begin()
            out.append(self._chunk(b'{"role":"assistant","content":""}'))
        for _, event in events:
            if isinstance(event, Content | ReasoningEnd):  # sent text stays text in this format
                out.append(self._chunk(b'{"content":%b}' % encode(event.content)))
            elif isinstance(event, Reasoning):
                out.append(self._chunk(b'{"reasoning_content":%b}' % encode(event.text)))
            elif isinstance(event, ToolCallDelta):
                out.append(self._fragment(event.index, event))
            elif isinstance(event, ToolCall):
                # Most calls were already sent in fragments.
                if event.id not in {call_id for call_id, _ in self._calls.values()}:
                    index = max(self._calls, default=-1) + 1
                    out.append(self._fragment(index, event))
            elif isinstance(event, Extra):
                out.append(self._extra(event))
            elif isinstance(event, Failed):
                fault = answer_failed(event)
                error = openai_error(fault.status, fault.code, fault.message, self._request_id)
                out.append(b"data: %b\n\n" % encode(error))  # no [DONE]: the answer is incomplete
            elif is_terminal(event):
                out += self._last(event)
        return b"".join(out)

    def _begin(self) -> None:
        """Encode the common parts of all chunks, once the model is known."""
        template = self._object(
            [{"index": 0, "delta": None, "logprobs": None, "finish_reason": None}]
        )
        if self._include_usage:
            template["usage"] = None
        before, _, after = encode(template).partition(b'"delta":null')
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
        """A chunk with the extra fields of the model's server; Halt's own fields override them."""
        choice_fields = {"index": 0, "delta": event.delta, "finish_reason": None}
        chunk = self._object([{"logprobs": None, **event.choice, **choice_fields}])
        more = {name: value for name, value in event.chunk.items() if name != "halt"}
        if self._include_usage:
            chunk["usage"] = None
        return b"data: %b\n\n" % encode({**more, **chunk})

    def _fragment(self, index: int, piece: ToolCallDelta | ToolCall) -> bytes:
        """A chunk with a piece of a call. Clients concatenate, so ID and name are sent once."""
        if self._functions and self._calls and index not in self._calls:
            return b""  # the older format has one call
        call = {**fields_of(piece), "index": index}
        function = {**call.get("function", {}), "arguments": piece.arguments}
        sent_id, sent_name = self._calls.get(index, ("", ""))
        if piece.id and not sent_id:
            call |= {"id": piece.id, "type": "function"}
        if piece.name != sent_name:  # send the new part only: clients concatenate
            function = {**function, "name": piece.name.removeprefix(sent_name)}
        self._calls[index] = sent_id or piece.id, sent_name or piece.name
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

    def lost_frame(self, lost: HaltError) -> bytes:
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
        raise UpstreamError("model_not_found", hint="GET /v1/models lists the models.")
    return json_response(_described(name))


def _described(name: str) -> Model:
    return Model(name, "model", created=0, owned_by="halt")


def _names() -> list[str]:
    """The models that the model's server lists now; the configured model where it has no list.

    Without names that no request may have. Raises UpstreamError, AtCapacity.
    """
    service = services().generations
    configured = [name] if (name := service.upstream.known_model) else []
    with service.readers.place(), limited_connection(MODELS_SECONDS, via.current()) as connection:
        try:
            names = service.upstream.models(connection)
            return [name for name in names if is_name(name)] or configured
        except HaltError as fault:
            if connection.interrupted or isinstance(fault, Interrupted):
                raise UpstreamError("first_byte_timeout") from None
            if configured and fault.code in NO_LIST_CODES:
                return configured
            raise
