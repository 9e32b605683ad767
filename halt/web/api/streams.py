"""Event streams for programs: `POST /chat/stream` starts one, `GET /streams/ID` resumes it."""

from __future__ import annotations

from flask import Blueprint, Response, request

from halt.core.events import FINAL_FRAME
from halt.core.generation import Generation
from halt.core.run import Run
from halt.web.event_stream import SSE_HEADERS, EventStream, cancel_on_error, json_frames
from halt.web.identity import owner, stream_key
from halt.web.requests import after_parameter, client_socket
from halt.web.services import services
from halt.web.starts import START_REQUEST, count_starts

blueprint = Blueprint("streams", __name__)


def _stream(run: Generation, after: int, unopened_run: Run | None = None) -> Response:
    body = EventStream(
        services().generations,
        run,
        client_socket(),
        after,
        json_frames,
        empty_message=FINAL_FRAME,
        unopened_run=unopened_run,
    )
    # direct_passthrough, because werkzeug would wrap each frame otherwise.
    return Response(
        body,
        headers={**SSE_HEADERS, "X-Stream-Id": run.id},
        direct_passthrough=True,
    )


@blueprint.post("/chat/stream")
def chat_stream() -> Response:
    """Start a stream and send its events."""
    start = START_REQUEST.decode(request.get_data())
    count_starts()
    run = services().generations.start(
        start.chat_request(),
        owner(),
        tools=services().tools,
        grace=start.grace,
        opened_by_reader=True,
    )
    return cancel_on_error(run, lambda: _stream(run, 0, run), is_unopened=True)


@blueprint.get("/streams/<stream_id>")
def follow(stream_id: str) -> Response:
    """Send a stream's events after a number, up to its end. Starts no stream."""
    return _stream(services().generations.get(stream_key(stream_id)), after_parameter())
