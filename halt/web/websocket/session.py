"""One client's WebSocket, from the handshake to the close: its messages, obeyed by one thread."""

from __future__ import annotations

import logging
import struct
from typing import Any

import msgspec
from simple_websocket import ConnectionClosed, Server

from halt.clock import now
from halt.core.capacity import RETRY_AFTER
from halt.core.events import encode
from halt.core.request_ids import current
from halt.core.service import GenerationService
from halt.errors import AtCapacity, HaltError, RequestError
from halt.web.request_ids import with_request_id
from halt.web.starts import count_starts, grace_seconds
from halt.web.websocket.messages import (
    MESSAGE,
    ClientMessage,
    Follow,
    Start,
    Stop,
    Unfollow,
    error_message,
    stream_id_in,
)
from halt.web.websocket.wire import CLOSE, TEXT, Feed, Wire, frame

MAX_STREAMS = 32  # that one socket follows at once
TICK = 1.0  # seconds between two looks at the server's shutdown
SHUTDOWN_WAIT = 2.0  # seconds for streams to end at a shutdown
CLOSE_WAIT = 3.0  # seconds for the client to answer a close
READER_WAIT = 5.0  # seconds; it takes none once the connection is shut down
REASON_MAX = 123  # bytes of a close's reason, by the protocol

GOING_AWAY, INTERNAL_ERROR, TOO_SLOW = 1001, 1011, 4008

logger = logging.getLogger(__name__)


class Session:
    """One client's socket, from the handshake to the close. Runs in the server's thread."""

    def __init__(
        self, ws: Server, wire: Wire, service: GenerationService, requester: str | None
    ) -> None:
        self._ws = ws
        self._wire = wire
        self._service = service
        self._owner = requester
        self._feeds: dict[str, Feed] = {}
        self._shutdown_deadline = float("inf")
        wire.wake_event = ws.event
        wire.inbox = ws.input_buffer

    def serve(self) -> None:
        """Obey and send until either side has enough. The connection is shut down afterwards."""
        try:
            code, reason = self._serve_messages()
        except ConnectionClosed:
            code, reason = 0, ""
        except Exception:
            logger.exception("socket")
            code, reason = INTERNAL_ERROR, "Halt had an internal error."
            if len(known := with_request_id(reason, current())) <= REASON_MAX:
                reason = known
        finally:
            for feed in self._feeds.values():
                feed.end()
        until = now() + CLOSE_WAIT
        if code == TOO_SLOW:
            logger.info("a socket's reader was too slow and has been dropped")
        try:
            if code:
                self._close(code, reason, until)
        finally:
            self._wire.end(until)
            # Its number on the system must not be given to another connection under the reader.
            self._ws.thread.join(READER_WAIT)
            if self._ws.thread.is_alive():
                logger.error("a socket's reading thread has not ended")

    def _serve_messages(self) -> tuple[int, str]:
        """The code and reason to close with; code 0 when the client has gone."""
        wire = self._wire
        while not wire.over:
            # Wakes up for a message, a client that is too slow, an end: never for an event.
            while wire.has_room and (message := self._ws.receive(0)) is not None:
                self._handle_text(message)
            if wire.fault is not None:
                raise wire.fault
            if wire.too_slow:
                return TOO_SLOW, "Too slow. Connect again and resume with follow."
            self._feeds = {name: feed for name, feed in self._feeds.items() if not feed.over}
            leaving = self._service.draining
            if leaving:
                self._shutdown_deadline = min(self._shutdown_deadline, now() + SHUTDOWN_WAIT)
                if not self._feeds or now() > self._shutdown_deadline:
                    return GOING_AWAY, "The server is about to restart."
            wire.wait(TICK / 10 if leaving else TICK)
        return 0, ""

    def _close(self, code: int, reason: str, until: float) -> None:
        """Say why, and wait for the client to agree, until that time at most."""
        self._wire.send(frame(CLOSE, struct.pack("!H", code) + reason.encode()))
        while self._ws.connected and not self._wire.over and now() < until:
            self._ws.input_buffer.clear()
            self._wire.wait(until - now())

    # --- messages ---------------------------------------------------------------------------------

    def _handle_text(self, said: str | bytes) -> None:
        try:
            if isinstance(said, bytes):
                raise RequestError("Messages are JSON text; this one was binary.", field="message")
            self._handle(MESSAGE.decode(said, "message"))
        except HaltError as fault:
            self._wire.send(frame(TEXT, error_message(fault, stream_id_in(said))))

    def _handle(self, message: ClientMessage) -> None:
        """Raises HaltError."""
        if isinstance(message, Start):
            self._check_room()
            count_starts()
            grace = grace_seconds(message.on_disconnect, "continue")
            run = self._service.start(message.chat_request(), self._owner, grace=grace)
            self._send({"type": "started", "id": run.id})
            feed = self._feeds[run.id] = Feed(run, 0, self._wire)
            feed.begin()
        elif isinstance(message, Stop):
            receipt = self._service.stop(message.id, self._owner, message.seen)
            self._send({"type": "receipt", **msgspec.structs.asdict(receipt)})
        elif isinstance(message, Follow):
            found = self._service.get(message.id, self._owner)
            if message.id not in self._feeds:
                self._check_room()
            feed = Feed(found, message.after, self._wire)
            self._forget(message.id)  # before the new one begins: it sends nothing behind
            self._feeds[message.id] = feed
            feed.begin()
        elif isinstance(message, Unfollow):
            self._forget(message.id)
        else:
            self._send({"type": "pong"})

    def _check_room(self) -> None:
        if sum(not feed.over for feed in self._feeds.values()) >= MAX_STREAMS:
            raise AtCapacity(
                f"A socket follows at most {MAX_STREAMS} streams at once.", retry_after=RETRY_AFTER
            )

    def _forget(self, stream_id: str) -> None:
        feed = self._feeds.pop(stream_id, None)
        if feed is not None:
            feed.end()

    def _send(self, what: dict[str, Any]) -> None:
        self._wire.send(frame(TEXT, encode(what)))
