"""The page's HTML streams of running answers.

Each message has `<hx-partial>` elements that append new content; the last message replaces the
whole answer. If the stream of a POST breaks off, after a reload, and for answers side by side, the
page follows `GET /streams/ID/page`, which starts no run.
"""

from __future__ import annotations

from flask import Response, current_app, render_template, request

from halt.core.decoding import checked_id
from halt.core.events import sse_html
from halt.core.generation import Generation
from halt.core.slots import number_of
from halt.errors import OffsetLost, UnknownStream
from halt.web.event_stream import SSE_HEADERS, EventStream
from halt.web.identity import owner, stream_key
from halt.web.page.conversations import page_renderer
from halt.web.page.endings import pictures_messages, pictures_slot, pictures_slot_message
from halt.web.page.views import view
from halt.web.page.writer import PageWriter, lost_message
from halt.web.requests import after_parameter, client_socket, message_id
from halt.web.services import services
from halt.web.sessions import browser_id

#: Minimum of seconds between two messages to the page: about one frame of a 60 Hz screen. A page
#: that swaps more often falls behind. The first message is not delayed.
FRAME_INTERVAL = 0.016

#: Page streams that one session may hold open over HTTP/1.1, where a browser opens six connections
#: to a host for all its tabs and a Stop needs one of them. Further streams end after the existing
#: events, and the page reconnects about twice a second.
LIVE_PER_SESSION = 4

#: The page sends the protocol by which its browser has loaded it in this header: an ALPN protocol
#: ID, or an empty value where it is unknown. Halt cannot see it: a proxy uses HTTP/1.1 to Halt with
#: any protocol outside.
PROTOCOL_HEADER = "Halt-Protocol"
#: Protocols that carry all streams of a browser in one connection. Only HALT_MAX_STREAMS limits the
#: streams of a page that was loaded by one of them.
MULTIPLEXED = frozenset({"h2", "h3"})


#: Seconds that a request for an answer's pictures waits for them.
PICTURES_WAIT = 2.0
#: Pause of the page before it requests them again.
PICTURES_PAUSE = "1s"


class PageStream(EventStream):
    """The page's stream of one answer."""

    def dismissal(self) -> bytes:
        return b""  # the page connects again, and is then led to the sign-in


def stream(stream_id: str) -> Response:
    """A running or ended answer as a stream of HTML messages."""
    try:
        run = services().generations.get(stream_key(stream_id))
    except UnknownStream:
        return _one_message(lost_message(stream_id))
    # A page that already has the last event gets it again; otherwise it would reconnect for ever.
    after = min(after_parameter(), run.log.last - (run.log.ended is not None))
    try:
        body = live_stream(run, after)
    except OffsetLost:
        return _one_message(_writer(run, 0).answer_partial(page_renderer()))
    return Response(body, headers=SSE_HEADERS, direct_passthrough=True)


def live_stream(run: Generation, after: int, opening: bytes | None = None) -> EventStream | None:
    """The page's stream of the events after number `after`. Raises AtCapacity, OffsetLost.

    A browser that already has LIVE_PER_SESSION streams gets one that ends after the existing
    events; with `opening` it gets None.
    """
    page_streams, place, brief = services().generations.capacity.page_streams, None, False
    if request.headers.get(PROTOCOL_HEADER, "") not in MULTIPLEXED:
        place = page_streams.take(LIVE_PER_SESSION, number_of(browser_id(), LIVE_PER_SESSION))
        brief = place is None
    if brief and opening is not None:
        return None

    def closed() -> None:
        if place is not None:
            page_streams.give_back(place)

    try:
        writer = _writer(run, after)
        services().renderer.warm_up()
        return PageStream(
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


def pictures(stream_id: str) -> str:
    """The parts of an answer that has ended with its pictures, once they are kept.

    After PICTURES_WAIT without them: an element that requests them again.
    """
    answer_id = message_id("message_id") if "message_id" in request.args else None
    stream_id, chat = checked_id(stream_id, "id"), services().chat
    exchange, is_over = chat.answer_with_pictures(owner(), stream_id, answer_id, PICTURES_WAIT)
    if not is_over:
        slot = pictures_slot(stream_id, request.full_path.rstrip("?"), f" delay:{PICTURES_PAUSE}")
        return pictures_slot_message(stream_id, slot)
    if exchange is None or exchange.ended is None:
        return pictures_slot_message(stream_id, "")
    return pictures_messages(view(exchange, None, chat.answer_progress, page_renderer()))


def saving_status() -> str:
    """The notice about saving. A page with a warning polls it until saving works again."""
    return render_template("saving.html", saving=services().store_writer.saving)


def _writer(run: Generation, after: int) -> PageWriter:
    template, parts = current_app.jinja_env.get_template("answer.html"), services()
    answer_progress, store_writer = parts.chat.answer_progress, parts.store_writer
    return PageWriter(
        run, after, template, answer_progress, parts.renderer, lambda: store_writer.saving
    )


def _one_message(content: str) -> Response:
    return Response(sse_html(0, content), headers=SSE_HEADERS)
