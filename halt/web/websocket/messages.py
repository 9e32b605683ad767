"""The messages of the WebSocket API: JSON text messages.

The client may send any number of these. They are handled in order:

    {"type":"start","messages":[...],"id"?,...}   as POST /chat/stream, with all of its fields;
                                                  `on_disconnect` is "continue" by default
    {"type":"stop","id":ID,"seen"?}               as POST /stop/ID
    {"type":"follow","id":ID,"after"?}            as GET /streams/ID?after=N
    {"type":"unfollow","id":ID}
    {"type":"ping"}

The server sends:

    {"type":"started","id":ID}                    a start was accepted; its events follow
    {"stream":ID,"seq":N,"event":{...}}           an event, the same object as in Server-Sent Events
    {"type":"receipt","id":ID,"status":...,"upstream":...,"elapsed_ms":...}   the result of a stop
    {"type":"error","id"?,"error":{"code","message","retryable","field"?,"retry_after"?}}
    {"type":"pong"}
"""

from __future__ import annotations

from typing import Any

import msgspec

from halt.core.decoding import EventNumber, TypeDecoder
from halt.core.events import encode
from halt.core.request import StreamId
from halt.core.request_ids import current
from halt.errors import HaltError
from halt.web.request_ids import with_request_id
from halt.web.starts import StartRequest


class Start(StartRequest, tag_field="type", tag="start"):
    """Start a stream and send its events."""


class Stop(msgspec.Struct, tag_field="type", tag="stop", forbid_unknown_fields=True):
    """Stop a stream. `seen`: the number of the last event that the user has seen."""

    id: StreamId
    seen: EventNumber | None = None


class Follow(msgspec.Struct, tag_field="type", tag="follow", forbid_unknown_fields=True):
    """Send all events of a stream after number `after`, also those that were sent before."""

    id: StreamId
    after: EventNumber = 0


class Unfollow(msgspec.Struct, tag_field="type", tag="unfollow", forbid_unknown_fields=True):
    """Send no more events of a stream. Its `on_disconnect` decides whether it runs on."""

    id: StreamId


class Ping(msgspec.Struct, tag_field="type", tag="ping", forbid_unknown_fields=True):
    """Request a `pong`, which is sent when all earlier messages have been handled."""


ClientMessage = Start | Stop | Follow | Unfollow | Ping

MESSAGE: TypeDecoder[ClientMessage] = TypeDecoder(
    ClientMessage  # type: ignore[arg-type]  # a union is no type
)


class _Named(msgspec.Struct):
    id: StreamId


_named = msgspec.json.Decoder(_Named)


def stream_id_in(message: str | bytes) -> str | None:
    """The stream ID in a message, also if the rest of it is invalid; None if there is none."""
    try:
        return _named.decode(message).id
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None


def error_message(fault: HaltError, stream_id: str | None) -> bytes:
    """The message for an error, with the ID of its stream if that is known."""
    message = fault.message
    if fault.status == 500:
        message = with_request_id(message, current())
    error: dict[str, Any] = {
        "code": fault.code,
        "message": message,
        "retryable": fault.retryable,
    }
    if fault.field is not None:
        error["field"] = fault.field
    if fault.retry_after is not None:
        error["retry_after"] = fault.retry_after
    named = {} if stream_id is None else {"id": stream_id}
    return encode({"type": "error", **named, "error": error})
