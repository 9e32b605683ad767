"""Streaming for programs: `POST /chat/stream` starts, `GET /streams/ID` replays and follows."""

from __future__ import annotations

import re

import msgspec
from flask import Blueprint, Response, request

from halt.chat import ChatRequest
from halt.errors import RequestError
from halt.events import FINAL_FRAME
from halt.relay import SSE_HEADERS, EventStream, json_frames
from halt.run import Run
from halt.web import after_parameter, client_socket, generations, owner

blueprint = Blueprint("streams", __name__)

_decode = msgspec.json.Decoder(ChatRequest).decode
_PATH = re.compile(r" - at `\$\.?(.*)`$")
_UNKNOWN = re.compile(r"unknown field `(.*?)`|missing required field `(.*?)`")


def decode_request(body: bytes) -> ChatRequest:
    """A request's JSON. Raises RequestError that names the field at fault."""
    try:
        return _decode(body)
    except msgspec.ValidationError as exc:
        message = str(exc)
        path = _PATH.search(message)
        name = _UNKNOWN.search(message)
        parts = [path[1] if path else "", (name[1] or name[2]) if name else ""]
        field = ".".join(part for part in parts if part) or "body"
        raise RequestError(f"{field}: {_PATH.sub('', message)}", field=field) from None
    except RecursionError:
        raise RequestError("The body is nested too deep.", field="body") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise RequestError(f"The body is not valid JSON: {exc}", field="body") from None


def _stream(run: Run, after: int) -> Response:
    body = EventStream(generations(), run, client_socket(), after, json_frames, nothing=FINAL_FRAME)
    # direct_passthrough: werkzeug would wrap each frame once more.
    return Response(
        body,
        headers={**SSE_HEADERS, "X-Stream-Id": run.id},
        direct_passthrough=True,
    )


@blueprint.post("/chat/stream")
def chat_stream() -> Response:
    """Start a generation and follow it."""
    run = generations().start(decode_request(request.get_data()), owner())
    return _stream(run, 0)


@blueprint.get("/streams/<stream_id>")
def follow(stream_id: str) -> Response:
    """Replay a stream after an event and follow it to its end. Starts nothing."""
    return _stream(generations().get(stream_id, owner()), after_parameter())
