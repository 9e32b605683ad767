"""The page's streams of HTML: an answer while it is written.

Each message is a set of `<hx-partial>` that append what is new, and the last one replaces the whole
answer. Where the stream of a POST breaks off, after a reload, and for answers side by side, the
page follows `GET /streams/ID/page`, which starts nothing.
"""

from __future__ import annotations

from flask import Response, current_app, render_template, request

from halt.core.events import sse_html
from halt.core.generation import Generation
from halt.core.slots import number_of
from halt.errors import OffsetLost, UnknownStream
from halt.web.event_stream import SSE_HEADERS, EventStream
from halt.web.page.conversations import page_renderer
from halt.web.page.writer import PageWriter, lost_message
from halt.web.requests import after_parameter, client_socket
from halt.web.services import services
from halt.web.sessions import owner

#: Seconds between two messages to the page: about a frame of a 60 Hz screen. A page that swaps
#: more often only falls behind; the first message is never held back.
FRAME_INTERVAL = 0.016

#: Page streams that one session may hold open over HTTP/1.1, where a browser has six connections
#: to a host for all its tabs, and a Stop needs one of them. A further stream ends after the events
#: that are there, and the page's stream reader asks again, about twice a second.
LIVE_PER_SESSION = 4

#: The request header in which the page tells by which protocol its browser has loaded it: an ALPN
#: protocol ID, or nothing where the browser does not know. Only the browser sees it; a proxy speaks
#: HTTP/1.1 to Halt whatever it speaks outside.
PROTOCOL_HEADER = "Halt-Protocol"
#: Protocols that carry all of a browser's streams in one connection. HALT_MAX_STREAMS alone bounds
#: the streams of a page that was loaded by one of them.
MULTIPLEXED = frozenset({"h2", "h3"})


def stream(stream_id: str) -> Response:
    try:
        run = services().generations.get(stream_id, owner())
    except UnknownStream:
        return _one_message(lost_message(stream_id))
    # The last event is sent again to a page that has it: without it the page would ask for ever.
    after = min(after_parameter(), run.log.last - (run.log.ended is not None))
    try:
        body = live_stream(run, after)
    except OffsetLost:
        return _one_message(_writer(run, 0).whole(page_renderer()))
    return Response(body, headers=SSE_HEADERS, direct_passthrough=True)


def live_stream(run: Generation, after: int, opening: bytes | None = None) -> EventStream | None:
    """A page's stream of what comes behind an event. Raises AtCapacity, OffsetLost.

    A session that holds LIVE_PER_SESSION of them gets one that ends after the events that are
    there; or None, where there is an `opening`.
    """
    tabs, place, brief = services().generations.capacity.tabs, None, False
    if request.headers.get(PROTOCOL_HEADER, "") not in MULTIPLEXED:
        place = tabs.take(LIVE_PER_SESSION, number_of(owner() or "", LIVE_PER_SESSION))
        brief = place is None
    if brief and opening is not None:
        return None

    def closed() -> None:
        if place is not None:
            tabs.give_back(place)

    try:
        writer = _writer(run, after)
        services().renderer.warm_up()
        return EventStream(
            services().generations,
            run,
            client_socket(),
            after,
            writer.present,
            opening=opening,
            interval=FRAME_INTERVAL,
            brief=brief,
            idle_message=writer.idle_message,
            on_close=closed,
        )
    except BaseException:
        closed()
        raise


def saving_status() -> str:
    """Asked by a page that was told that saving does not go well, until it does."""
    return render_template("saving.html", saving=services().store_writer.saving)


def _writer(run: Generation, after: int) -> PageWriter:
    template, parts = current_app.jinja_env.get_template("answer.html"), services()
    answer_progress, store_writer = parts.chat.answer_progress, parts.store_writer
    return PageWriter(
        run, after, template, answer_progress, parts.renderer, lambda: store_writer.saving
    )


def _one_message(content: str) -> Response:
    return Response(sse_html(0, content), headers=SSE_HEADERS)
