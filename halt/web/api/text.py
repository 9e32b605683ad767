"""Answers in simple formats: as plain text, as one JSON object, and for an EventSource.

    POST /chat            streams the text; with `Accept: application/json` the whole answer
    GET  /stream?prompt=  Server-Sent Events for `new EventSource(...)`

An EventSource reconnects after every end, with the ID of the last event it received. Here each ID
contains the stream's ID (`STREAM.SEQ`). The first event has an empty text and is sent before the
model gets the request. So a reconnect finds its run and never runs the prompt again. The last
event's ID is `STREAM.end`; a reconnect with it gets status 204, which ends an EventSource.

Every block has data: other clients take a block without data for an event and fail to parse it.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec
from flask import Blueprint, Response, request

from halt.core.decoding import JSON_OBJECT, check_names
from halt.core.events import Cancelled, Content, Done, Event, encode, is_terminal
from halt.core.generation import Generation
from halt.core.request import fingerprint
from halt.core.run import Run
from halt.errors import AtCapacity, HaltError, OffsetLost, RequestError, StreamInUse, UnknownStream
from halt.web.event_stream import (
    SSE_HEADERS,
    Answer,
    EventStream,
    RunReader,
    TextStream,
    cancel_on_error,
    collect_answer,
)
from halt.web.identity import owner, stream_key
from halt.web.requests import client_socket
from halt.web.responses import add_stream_id_header, json_response
from halt.web.schemas import CalledTool, StreamLost, WholeAnswer
from halt.web.services import services
from halt.web.starts import START_REQUEST, StartRequest, count_starts, grace_seconds

TEXT_HEADERS = {
    "Content-Type": "text/plain; charset=utf-8",
    "Cache-Control": "no-store, no-transform",
    "X-Accel-Buffering": "no",
}
EVENT_SOURCE_HEADERS = {**SSE_HEADERS, "Cache-Control": "no-store, no-transform"}
RETRY = b"retry: 1000\n"  # milliseconds until an EventSource reconnects; the usual default is 3000
PARAMETERS = frozenset(
    {"prompt", "system", "id", "model", "temperature", "max_tokens", "on_disconnect"}
)
#: The fields of a POST: a prompt and a system prompt may replace the messages.
FIELDS = frozenset({"prompt", "system", *StartRequest.__struct_fields__})
LAST_EVENT = re.compile(r"([A-Za-z0-9_-]{8,64})\.([0-9]{1,15}|end)")

blueprint = Blueprint("plain", __name__)


def _start_request(fields: dict[str, Any], *, from_strings: bool = False) -> StartRequest:
    """A StartRequest from `prompt` or `messages`, `system` and options. Raises RequestError."""
    check_names(fields, FIELDS)
    fields = dict(fields)
    prompt, system = fields.pop("prompt", None), fields.pop("system", None)
    if prompt is not None:
        if "messages" in fields:
            raise RequestError("Give prompt or messages, not both.", field="prompt")
        if not isinstance(prompt, str) or not prompt.strip():
            raise RequestError("prompt must be a text that is not empty.", field="prompt")
        fields["messages"] = [{"role": "user", "content": prompt}]
    elif "messages" not in fields:
        # The strings are the parameters of GET /stream, which has no messages.
        choice = "Give a prompt." if from_strings else "Give a prompt, or messages."
        raise RequestError(choice, field="prompt")
    if system is not None:
        if not isinstance(system, str):
            raise RequestError("system must be a text.", field="system")
        if isinstance(fields["messages"], list):
            fields["messages"] = [{"role": "system", "content": system}, *fields["messages"]]
    return START_REQUEST.convert(fields, from_strings=from_strings)


# --- POST /chat -----------------------------------------------------------------------------------


@blueprint.post("/chat")
def chat() -> Response:
    """Start a stream and send its text, or the whole answer as JSON at its end."""
    start = _start_request(JSON_OBJECT.decode(request.get_data()))
    service = services().generations
    count_starts()
    # "stop" also where the request has an ID: a reader cannot resume this response.
    grace = grace_seconds(start.on_disconnect, "stop")
    run = service.start(start.chat_request(), owner(), tools=services().tools, grace=grace)
    add_stream_id_header(run.id)
    accepts = request.accept_mimetypes
    if accepts["application/json"] > accepts["text/plain"]:
        with cancel_on_error(run, lambda: RunReader(service, run, client_socket())) as reader:
            return json_response(_whole(run, collect_answer(reader)))
    body = cancel_on_error(run, lambda: TextStream(service, run, client_socket()))
    try:
        # Wait for the first text, so that an error before it has its own HTTP status; but at most
        # one heartbeat, so that no proxy takes the connection for dead.
        body.wait(lambda event: isinstance(event, Content), services().config.heartbeat)
    except BaseException:
        body.close()
        raise
    return Response(body, headers=TEXT_HEADERS, direct_passthrough=True)


def _whole(run: Run, answer: Answer) -> WholeAnswer:
    ended = answer.ended
    return WholeAnswer(
        id=run.id,
        model=run.model,
        state="done" if isinstance(ended, Done) else "cancelled",
        content=answer.content,
        finish_reason=ended.finish_reason if isinstance(ended, Done) else None,
        usage=ended.usage if isinstance(ended, Done) else None,
        metrics=ended.metrics,
        reason=ended.reason if isinstance(ended, Cancelled) else msgspec.UNSET,
        reasoning=answer.reasoning or msgspec.UNSET,
        tool_calls=[CalledTool(call.id, call.name, call.arguments) for call in answer.calls]
        or msgspec.UNSET,
    )


# --- GET /stream ----------------------------------------------------------------------------------


@blueprint.get("/stream")
def stream() -> Response:
    """Start a stream, or resume the one that an EventSource has lost."""
    if request.method == "HEAD":
        return Response(headers=EVENT_SOURCE_HEADERS)  # HEAD starts no stream
    last = request.headers.get("Last-Event-ID")
    if last:
        return _resume(last)
    for name in request.args:
        if name not in PARAMETERS:
            raise RequestError(f"{name}: there is no such parameter.", field=name)
    start = _start_request(
        {name: value for name, value in request.args.items() if value}, from_strings=True
    )
    run = _find_same(start)
    if run is not None:
        return _follow(run, 0)
    count_starts()
    try:
        run = services().generations.start(
            start.chat_request(), owner(), tools=services().tools, grace=start.grace
        )
    except StreamInUse:
        run = _find_same(start)  # another request has just started it
        if run is None:
            raise
        return _follow(run, 0)
    return cancel_on_error(run, lambda: _follow(run, 0))


def _find_same(start: StartRequest) -> Generation | None:
    """The run with the request's ID, if its messages are the same: a retry after a lost response.

    None where this client has no such run. Raises StreamInUse for other messages.
    """
    try:
        run = services().generations.get(stream_key(start.id or ""))
    except UnknownStream:
        return None
    if run.fingerprint != fingerprint(start.messages):
        raise StreamInUse(start.id or "")
    return run


def _resume(last: str) -> Response:
    match = LAST_EVENT.fullmatch(last)
    if match is None:
        raise RequestError(
            "Last-Event-ID is not an event ID of this server.", field="Last-Event-ID"
        )
    stream_id, seq = match.groups()
    if seq == "end":
        return Response(status=204)
    try:
        return _follow(services().generations.get(stream_key(stream_id)), int(seq))
    except (UnknownStream, OffsetLost) as lost:
        # Sent as an event, because an EventSource does not show its page an error response.
        return Response(_lost(stream_id, lost), headers=EVENT_SOURCE_HEADERS)
    except AtCapacity:
        # Without events: the client reconnects after RETRY.
        return Response(_opening(stream_id, int(seq)), headers=EVENT_SOURCE_HEADERS)


def _follow(run: Generation, after: int) -> Response:
    body = PromptStream(run, after)
    headers = {**EVENT_SOURCE_HEADERS, "X-Stream-Id": run.id}
    return Response(body, headers=headers, direct_passthrough=True)


class PromptStream(EventStream):
    """A run's text and end as Server-Sent Events whose IDs contain the stream's ID."""

    def __init__(self, run: Generation, after: int) -> None:
        """Register the reader. Raises AtCapacity, OffsetLost."""
        super().__init__(
            services().generations,
            run,
            client_socket(),
            after,
            self._messages,
            opening=_opening(run.id, after),
            empty_message=_message(run.id, "end", encode({"done": True, "content": ""})),
        )

    def _messages(self, events: list[tuple[int, Event]]) -> bytes:
        seq, last = events[-1]
        text = "".join(event.content for _, event in events)
        out = b""
        if text:
            out = _message(self.run.id, seq - is_terminal(last), encode(Content(text)))
        if is_terminal(last):
            out += _message(self.run.id, "end", encode(last))
        return out

    def lost_frame(self, lost: HaltError) -> bytes:
        return _lost(self.run.id, lost)


def _message(stream_id: str, seq: int | str, data: bytes) -> bytes:
    return b"id: %b.%b\ndata: %b\n\n" % (stream_id.encode(), str(seq).encode(), data)


def _opening(stream_id: str, after: int) -> bytes:
    """The first bytes: the reconnect time, and an event without text that has the last ID."""
    return RETRY + _message(stream_id, after, encode(Content("")))


def _lost(stream_id: str, lost: HaltError) -> bytes:
    return _message(stream_id, "end", encode(StreamLost.from_error(lost)))
