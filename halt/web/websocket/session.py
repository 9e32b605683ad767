"""One client's WebSocket session: handles its messages until the close, in the server's thread."""

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
from halt.core.stream_key import StreamKey
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

MAX_STREAMS = 32  # streams that one socket may follow at the same time
TICK = 1.0  # seconds between two checks whether the server shuts down
SHUTDOWN_WAIT = 2.0  # seconds that a shutdown waits for the streams to end
CLOSE_WAIT = 3.0  # seconds that the client has to answer a close frame
READER_WAIT = 5.0  # seconds to join the reading thread, which ends at once after the shutdown
REASON_MAX = 123  # bytes of the reason in a close frame (RFC 6455)

GOING_AWAY, INTERNAL_ERROR, NOT_ALLOWED, TOO_SLOW = 1001, 1011, 4001, 4008

logger = logging.getLogger(__name__)


class Session:
    """One client's socket, from the handshake to the close. Used by the server's thread."""

    def __init__(
        self, ws: Server, wire: Wire, service: GenerationService, owner: str, credential: str
    ) -> None:
        """`credential`: the digest of the sign-in or token, which is checked while it lasts."""
        self.owner, self.credential = owner, credential
        self._is_refused = False
        self._ws = ws
        self._wire = wire
        self._service = service
        self._feeds: dict[str, Feed] = {}
        self._shutdown_deadline = float("inf")
        wire.wake_event = ws.event
        wire.inbox = ws.input_buffer

    def serve(self) -> None:
        """Handle messages until either side closes. The connection is shut down afterwards."""
        try:
            with self._service.readers.connected(self):
                code, reason = self._serve_messages()
        except ConnectionClosed:
            code, reason = 0, ""
        except Exception:
            logger.exception("socket")
            code, reason = INTERNAL_ERROR, "Halt had an internal error."
            if len(reason_with_id := with_request_id(reason, current())) <= REASON_MAX:
                reason = reason_with_id
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
            # The file descriptor must not be reused for another connection before this thread ends.
            self._ws.thread.join(READER_WAIT)
            if self._ws.thread.is_alive():
                logger.error("a socket's reading thread has not ended")

    def refuse(self) -> None:
        """Close the connection, in its own thread: the client may no longer use it."""
        self._is_refused = True
        self._wire.wake_event.set()

    def _serve_messages(self) -> tuple[int, str]:
        """Handle messages; return code and reason of the close. Code 0: the client has left."""
        wire = self._wire
        while not wire.over:
            if self._is_refused:
                return NOT_ALLOWED, "The sign-in or API token is no longer valid."
            # This thread wakes if a message arrives, the client is too slow, or a feed or the
            # socket ends; never for events.
            while (
                wire.has_room
                and not self._is_refused
                and (message := self._ws.receive(0)) is not None
            ):
                self._handle_raw(message)
            if wire.fault is not None:
                raise wire.fault
            if wire.too_slow:
                return TOO_SLOW, "Too slow. Connect again and resume with follow."
            self._feeds = {
                stream_id: feed for stream_id, feed in self._feeds.items() if not feed.over
            }
            is_draining = self._service.draining
            if is_draining:
                self._shutdown_deadline = min(self._shutdown_deadline, now() + SHUTDOWN_WAIT)
                if not self._feeds or now() > self._shutdown_deadline:
                    return GOING_AWAY, "The server is about to restart."
            wire.wait(TICK / 10 if is_draining else TICK)
        return 0, ""

    def _close(self, code: int, reason: str, until: float) -> None:
        """Send a close frame and wait for the client's close frame, at most until `until`."""
        self._wire.send(frame(CLOSE, struct.pack("!H", code) + reason.encode()))
        while self._ws.connected and not self._wire.over and now() < until:
            self._ws.input_buffer.clear()
            self._wire.wait(until - now())

    # --- messages ---------------------------------------------------------------------------------

    def _handle_raw(self, message: str | bytes) -> None:
        """Handle a message as received; an error is sent to the client."""
        try:
            if isinstance(message, bytes):
                raise RequestError("Messages are JSON text; this one was binary.", field="message")
            self._handle(MESSAGE.decode(message, "message"))
        except HaltError as fault:
            self._wire.send(frame(TEXT, error_message(fault, stream_id_in(message))))

    def _handle(self, message: ClientMessage) -> None:
        """Handle a valid message. Raises HaltError."""
        if isinstance(message, Start):
            self._check_stream_limit()
            count_starts()
            grace = grace_seconds(message.on_disconnect, "continue")
            run = self._service.start(message.chat_request(), self.owner, grace=grace)
            self._send({"type": "started", "id": run.id})
            feed = self._feeds[run.id] = Feed(run, 0, self._wire)
            feed.begin()
        elif isinstance(message, Stop):
            receipt = self._service.stop(StreamKey(self.owner, message.id), message.seen)
            self._send({"type": "receipt", **msgspec.to_builtins(receipt)})
        elif isinstance(message, Follow):
            generation = self._service.get(StreamKey(self.owner, message.id))
            if message.id not in self._feeds:
                self._check_stream_limit()
            feed = Feed(generation, message.after, self._wire)
            self._unfollow(message.id)  # first, so the old feed sends nothing after the new one
            self._feeds[message.id] = feed
            feed.begin()
        elif isinstance(message, Unfollow):
            self._unfollow(message.id)
        else:
            self._send({"type": "pong"})

    def _check_stream_limit(self) -> None:
        if sum(not feed.over for feed in self._feeds.values()) >= MAX_STREAMS:
            raise AtCapacity(
                f"A WebSocket follows at most {MAX_STREAMS} streams at once. Wait until one ends, "
                "or open another WebSocket.",
                retry_after=RETRY_AFTER,
            )

    def _unfollow(self, stream_id: str) -> None:
        feed = self._feeds.pop(stream_id, None)
        if feed is not None:
            feed.end()

    def _send(self, message: dict[str, Any]) -> None:
        self._wire.send(frame(TEXT, encode(message)))
