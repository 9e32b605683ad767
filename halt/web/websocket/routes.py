"""Many streams over one WebSocket: `GET /ws`.

The client sends JSON text messages, as many as it likes, and they are obeyed in their order:

    {"type":"start","messages":[...],"id"?,...}   as POST /chat/stream, with all of its fields;
                                                  `on_disconnect` is "continue" where not said
    {"type":"stop","id":ID,"seen"?}               as POST /stop/ID
    {"type":"follow","id":ID,"after"?}            as GET /streams/ID?after=N
    {"type":"unfollow","id":ID}
    {"type":"ping"}

It is sent one JSON text message for each of these:

    {"type":"started","id":ID}                    a start was accepted; its events follow
    {"stream":ID,"seq":N,"event":{...}}           an event, the object that Server-Sent Events carry
    {"type":"receipt","id":ID,"status":...,"upstream":...,"elapsed_ms":...}      what a stop did
    {"type":"error","id"?,"error":{"code","message","retryable","field"?,"retry_after"?}}
    {"type":"pong"}

Which thread touches the client's socket, and when:

    the relay             writes every byte, the answer to the handshake and the close included, one
                          batch at a time. It never waits: no batch is made before the network has
                          taken the one before.
    simple-websocket's    reads, on a `Wire` in place of the socket, so that its pongs, pings and
    thread                closes go to the relay too. It reads nothing while a message waits to be
                          obeyed, or FRAMES_MAX answers wait to be taken.
    the server's thread   obeys messages. At the end it takes the socket back from the relay and
                          shuts it down (`Wire.end`); then the server closes it.
"""

from __future__ import annotations

import contextlib
import logging
import select
import selectors
import socket
import ssl
import struct
import threading
from collections import deque
from functools import partial
from typing import Any

import msgspec
from flask import Blueprint, Flask, g, request
from flask_sock import Sock
from simple_websocket import ConnectionClosed, Server
from werkzeug.wrappers import Response
from wsproto.utilities import RemoteProtocolError

from halt.clock import now
from halt.core.capacity import RETRY_AFTER
from halt.core.decoding import EventNumber, TypeDecoder
from halt.core.events import encode, is_terminal
from halt.core.generation import Recording
from halt.core.relay import WRITE, Relay, Timer, contained
from halt.core.request import StreamId
from halt.core.request_ids import current
from halt.core.service import Generations
from halt.errors import AtCapacity, HaltError, OffsetLost, RequestError
from halt.web.client_socket import ClientSocket
from halt.web.request_ids import signed
from halt.web.requests import client_socket
from halt.web.responses import refusal
from halt.web.services import services
from halt.web.sessions import owner
from halt.web.sink import GROUP_CHARS, GROUP_EVENTS, fitting
from halt.web.starts import StartRequest, count_starts, grace_of

MAX_STREAMS = 32  # that one socket follows at once
SEND_BUFFER = 65_536  # bytes given to the kernel ahead of the reader; Linux takes twice as much
LAST_BUFFER = 4 * SEND_BUFFER  # room for the last words, also when the reader has not read
FRAMES_MAX = 256  # answers and pongs that wait; with so many, nothing more is read or obeyed
TICK = 1.0  # seconds between two looks at the server's shutdown
PATIENCE = 0.5  # heartbeats without a byte taken, after which a reader is too slow
LAST_WORDS = 2.0  # seconds for streams to end at a shutdown
CLOSE_WITHIN = 3.0  # seconds for the client to answer a close
READER_ENDS = 5.0  # seconds; it takes none once the connection is shut down

REASON_MAX = 123  # bytes of a close's reason, by the protocol

GOING_AWAY, INTERNAL_ERROR, TOO_SLOW = 1001, 1011, 4008
_TEXT, _CLOSE, _PONG = b"\x81", b"\x88", b"\x8a"
_NOTHING = memoryview(b"")

logger = logging.getLogger(__name__)


class Start(StartRequest, tag_field="type", tag="start"):
    """Start a stream and follow it."""


class Stop(msgspec.Struct, tag_field="type", tag="stop", forbid_unknown_fields=True):
    """Stop a stream. `seen`: the last event that was shown."""

    id: StreamId
    seen: EventNumber | None = None


class Follow(msgspec.Struct, tag_field="type", tag="follow", forbid_unknown_fields=True):
    """Send all events of a stream above `after`, again where they have been sent before."""

    id: StreamId
    after: EventNumber = 0


class Unfollow(msgspec.Struct, tag_field="type", tag="unfollow", forbid_unknown_fields=True):
    """Send no more of a stream; what becomes of it says its `on_disconnect`."""

    id: StreamId


class Ping(msgspec.Struct, tag_field="type", tag="ping", forbid_unknown_fields=True):
    """Answer this: everything before it has been obeyed."""


_MESSAGE: TypeDecoder[Start | Stop | Follow | Unfollow | Ping] = TypeDecoder(
    Start | Stop | Follow | Unfollow | Ping  # type: ignore[arg-type]  # a union is no type
)


def frame(kind: bytes, payload: bytes) -> bytes:
    """A server's WebSocket frame (RFC 6455): not masked, not split."""
    size = len(payload)
    if size < 126:
        return b"%b%c%b" % (kind, size, payload)
    if size < 65536:
        return b"%b\x7e%b%b" % (kind, size.to_bytes(2), payload)
    return b"%b\x7f%b%b" % (kind, size.to_bytes(8), payload)


def _closes(data: bytes) -> bool:
    """Whether these frames end with a close. simple-websocket sends one behind pongs it owes."""
    while data[:1] == _PONG:
        data = data[2 + data[1] :]  # a control frame's size is one byte
    return data[:1] == _CLOSE


class EarlyFirst(selectors.DefaultSelector):
    """simple-websocket waits by it for one `Wire`, of which something may be read already."""

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        self._wire = fileobj
        return super().register(fileobj, events, data)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if self._wire.early:
            return [(self.get_key(self._wire), selectors.EVENT_READ)]
        return super().select(timeout)


class Feed:
    """One stream on its way to one socket. Its place in the log is the relay's own."""

    def __init__(self, run: Recording, after: int, wire: Wire) -> None:
        """Take a viewer's place behind the event `after`. Raises OffsetLost.

        A reader that has all of an ended stream gets its last event again, and so learns of the
        end.
        """
        run.log.read(after, 1)
        self._run = run
        self._after = min(after, run.log.last - (run.log.ended is not None))
        self._wire = wire
        self._prefix = b'{"stream":"%b","seq":' % run.id.encode()
        self._viewer = run.join()
        self._queued = False  # the wire knows that there is something
        self.over = False

    def begin(self) -> None:
        """Send what is there, and what comes."""
        self._run.log.subscribe(self.changed)
        self.changed()

    def changed(self) -> None:
        """There may be something to send. Called by the thread that added it; takes no lock."""
        if not self._queued and not self.over:
            self._queued = True
            self._wire.offer(self)

    def take(self, most: int) -> tuple[bytes, int]:
        """By the relay: the frames of what comes next, and how many: at most so many."""
        self._queued = False  # before the log is read: what comes after that is announced again
        run, after = self._run, self._after
        try:
            events = [] if self.over else fitting(run.log.read(after, most))
        except OffsetLost as lost:
            # The reader is further behind than the log is long: an error, never a gap.
            self.end()
            return _error(lost, run.id), 1
        if not events:
            return b"", 0
        self._after, last = events[-1]
        if is_terminal(last):
            self.end()
        elif run.log.last > self._after:
            self.changed()
        newest = run.newest_frame
        if newest is None or newest[:3] != (Feed, after, self._after):
            data = b"".join(
                frame(_TEXT, b'%b%d,"event":%b}' % (self._prefix, seq, encode(event)))
                for seq, event in events
            )
            newest = run.newest_frame = (Feed, after, self._after, data)
        return newest[3], len(events)

    def end(self) -> None:
        """Send no more. The reader has left. Harmless when repeated."""
        self.over = True
        self._run.log.unsubscribe(self.changed)
        self._run.leave(self._viewer)


class Wire:
    """The client's connection, from the handshake to `end`. See the module for its threads."""

    def __init__(self, sock: socket.socket, relay: Relay, patience: float) -> None:
        """Give the socket to the relay. `patience`: seconds for the client to take something."""
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        self.bell = threading.Event()  # the server's thread has something to do
        self.inbox: list[str | bytes] = []  # messages that have been read, simple-websocket's list
        self.too_slow = False  # the client has taken nothing for `patience`
        self.over = False  # nothing is written any more
        self.early = b""  # what came before the connection became a WebSocket, until it is read
        self.fault: Exception | None = None  # why the relay could not make a frame
        self._sock = sock
        self._relay = relay
        self._patience = patience
        # Any thread may append to these two. `_due`: the relay will look at them.
        self._frames: deque[bytes] = deque()  # answers and control frames
        self._feeds: deque[Feed] = deque()  # those that have something
        self._due = False
        self._go_on = threading.Condition()  # the reading thread waits for it
        self._released = threading.Event()  # the socket is the server's thread's again
        # The relay's own:
        self._rest = _NOTHING  # of a batch, what the network has not taken
        self._stuck = Timer(self._drop)  # due when the client has taken nothing for `patience`
        self._closed = False  # the last frame is in a batch
        relay.post(partial(relay.at_end.add, self._release))

    # --- for simple-websocket ---------------------------------------------------------------------

    def fileno(self) -> int:
        return self._sock.fileno()

    def recv(self, size: int) -> bytes:
        """Read on when all that was said before has been obeyed: no queue grows here."""
        with self._go_on:
            self._go_on.wait_for(lambda: (self.has_room and not self.inbox) or self.over)
        if self.over:
            return b""
        early, self.early = self.early[:size], self.early[size:]
        # Past the end of the request, which is that of a `ClientSocket`.
        return early or socket.socket.recv(self._sock, size)

    def close(self) -> None:
        """Nothing is read any more. The connection itself is the server's to close."""
        self.bell.set()

    # --- for any thread ---------------------------------------------------------------------------

    @property
    def has_room(self) -> bool:
        """Whether one more message may be obeyed. The bell rings when there is room again."""
        return len(self._frames) < FRAMES_MAX

    def send(self, data: bytes) -> None:
        """Have a frame written, before events that wait. Behind a close nothing is."""
        if _closes(data):
            # Room for it: a reader that is too slow finds it when it reads on.
            with contextlib.suppress(OSError):
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LAST_BUFFER)
        self._frames.append(data)
        self._wake()

    def offer(self, feed: Feed) -> None:
        """Have written what this stream has."""
        self._feeds.append(feed)
        self._wake()

    def _wake(self) -> None:
        if self._due:
            return
        self._due = True
        if self._relay.is_current:
            # At the turn's end: of 25 tokens for one socket in a turn, each costs 4.5 us, not 6.
            self._relay.at(0.0, self._serve)
        else:
            self._relay.post(self._serve)

    # --- for the server's thread ------------------------------------------------------------------

    def wait(self, timeout: float) -> None:
        """Let the next message be read where all were obeyed. Return when there is work to do."""
        with self._go_on:
            self._go_on.notify()
        self.bell.wait(timeout)
        self.bell.clear()

    def release(self) -> None:
        """Take the socket back from the relay; nothing is written afterwards. May be repeated."""
        self._relay.post(self._release)
        while not self._released.wait(TICK) and self._relay.is_running:
            pass
        self.over = True
        self.wait(0)  # for the reading thread to see it

    def end(self, until: float) -> None:
        """Shut the connection down; no thread uses it afterwards.

        Until that time at most, what the client still sends is read: it would not find the last
        words in a connection that is closed over something unread.
        """
        self.release()
        poller = select.poll()
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)
            poller.register(self._sock, select.POLLIN)
            while poller.poll(max(0.0, until - now()) * 1000):
                with contextlib.suppress(BlockingIOError):  # the other thread took it
                    if not self._sock.recv(GROUP_CHARS, socket.MSG_DONTWAIT):
                        break
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    # --- the relay's own --------------------------------------------------------------------------

    @contained
    def _serve(self, _: int = WRITE) -> None:
        """Send what is left of a batch, or else the next one."""
        if not self.over:
            self._push(self._rest or memoryview(self._gather()))

    def broken(self, exc: Exception) -> None:
        """A frame cannot be made or sent: the server's thread is told, and closes."""
        self.fault, self._due = exc, False
        self.bell.set()

    def _gather(self) -> bytes:
        """Whole frames for the next batch: answers first, then the streams in turn."""
        out, size, room = list[bytes](), 0, GROUP_EVENTS
        # Counted before answers are taken: a stream's events come behind the answer to its start.
        feeds = len(self._feeds)
        while self._frames and size < GROUP_CHARS and not self._closed:
            data = self._frames.popleft()
            self._closed = _closes(data)
            out.append(data)
            size += len(data)
            if len(self._frames) == FRAMES_MAX - 1:
                self.bell.set()
        while feeds and room > 0 and size < GROUP_CHARS and not self._closed:
            data, count = self._feeds.popleft().take(room)
            out.append(data)
            feeds -= 1
            room -= count
            size += len(data)
        return b"".join(out)

    def _push(self, data: memoryview) -> None:
        try:
            sent = self._sock.send(data, socket.MSG_DONTWAIT) if data else 0
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            self.over, sent = True, len(data)
            self.bell.set()
        if sent < len(data):
            if not self._rest:
                self._relay.watch(self._sock, WRITE, self._serve)
            if sent or not self._rest:
                self._stuck.cancel()
                self._stuck = self._relay.at(now() + self._patience, self._drop)
            self._rest = data[sent:]
            return
        self._forget_rest()
        self._due = False  # before the queues are looked at: what comes after that wakes the relay
        if (self._frames or self._feeds) and not (self._closed or self.over):
            self._due = True
            self._relay.again(self._serve)

    def _forget_rest(self) -> None:
        if self._rest:
            self._rest = _NOTHING
            self._relay.unwatch(self._sock)
            self._stuck.cancel()

    def _drop(self) -> None:
        self.too_slow = True
        self.bell.set()

    def _release(self) -> None:
        self._serve()
        self._serve()  # the first may have been the rest of a batch
        self._forget_rest()
        self._relay.at_end.discard(self._release)
        self.over = True
        self._released.set()
        self.bell.set()


class Conversation:
    """One client's socket, from the handshake to the close. Runs in the server's thread."""

    def __init__(self, ws: Server, wire: Wire, service: Generations, requester: str | None) -> None:
        self._ws = ws
        self._wire = wire
        self._service = service
        self._owner = requester
        self._feeds: dict[str, Feed] = {}
        self._leave_by = float("inf")
        wire.bell = ws.event
        wire.inbox = ws.input_buffer

    def serve(self) -> None:
        """Obey and send until either side has enough. The connection is shut down afterwards."""
        try:
            code, reason = self._talk()
        except ConnectionClosed:
            code, reason = 0, ""
        except Exception:
            logger.exception("socket")
            code, reason = INTERNAL_ERROR, "Something went wrong in Halt itself."
            if len(known := signed(reason, current())) <= REASON_MAX:
                reason = known
        finally:
            for feed in self._feeds.values():
                feed.end()
        until = now() + CLOSE_WITHIN
        if code == TOO_SLOW:
            logger.info("a socket's reader was too slow and has been dropped")
        try:
            if code:
                self._close(code, reason, until)
        finally:
            self._wire.end(until)
            # Its number on the system must not be given to another connection under the reader.
            self._ws.thread.join(READER_ENDS)
            if self._ws.thread.is_alive():
                logger.error("a socket's reading thread has not ended")

    def _talk(self) -> tuple[int, str]:
        """The code and reason to close with; code 0 when the client has gone."""
        wire = self._wire
        while not wire.over:
            # Wakes up for a message, a client that is too slow, an end: never for an event.
            while wire.has_room and (message := self._ws.receive(0)) is not None:
                self._answer(message)
            if wire.fault is not None:
                raise wire.fault
            if wire.too_slow:
                return TOO_SLOW, "Too slow. Connect again and resume with follow."
            self._feeds = {name: feed for name, feed in self._feeds.items() if not feed.over}
            leaving = self._service.draining
            if leaving:
                self._leave_by = min(self._leave_by, now() + LAST_WORDS)
                if not self._feeds or now() > self._leave_by:
                    return GOING_AWAY, "The server is about to restart."
            wire.wait(TICK / 10 if leaving else TICK)
        return 0, ""

    def _close(self, code: int, reason: str, until: float) -> None:
        """Say why, and wait for the client to agree, until that time at most."""
        self._wire.send(frame(_CLOSE, struct.pack("!H", code) + reason.encode()))
        while self._ws.connected and not self._wire.over and now() < until:
            self._ws.input_buffer.clear()
            self._wire.wait(until - now())

    # --- messages ---------------------------------------------------------------------------------

    def _answer(self, said: str | bytes) -> None:
        try:
            if isinstance(said, bytes):
                raise RequestError("Messages are JSON text; this one was binary.", field="message")
            self._obey(_MESSAGE.decode(said, "message"))
        except HaltError as fault:
            self._wire.send(_error(fault, _id_in(said)))

    def _obey(self, message: Start | Stop | Follow | Unfollow | Ping) -> None:
        """Raises HaltError."""
        if isinstance(message, Start):
            self._check_room()
            count_starts()
            grace = grace_of(message.on_disconnect, "continue")
            run = self._service.start(message.chat(), self._owner, grace=grace)
            self._tell({"type": "started", "id": run.id})
            feed = self._feeds[run.id] = Feed(run, 0, self._wire)
            feed.begin()
        elif isinstance(message, Stop):
            receipt = self._service.stop(message.id, self._owner, message.seen)
            self._tell({"type": "receipt", **msgspec.structs.asdict(receipt)})
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
            self._tell({"type": "pong"})

    def _check_room(self) -> None:
        if sum(not feed.over for feed in self._feeds.values()) >= MAX_STREAMS:
            raise AtCapacity(
                f"A socket follows at most {MAX_STREAMS} streams at once.", retry_after=RETRY_AFTER
            )

    def _forget(self, stream_id: str) -> None:
        feed = self._feeds.pop(stream_id, None)
        if feed is not None:
            feed.end()

    def _tell(self, what: dict[str, Any]) -> None:
        self._wire.send(frame(_TEXT, encode(what)))


def _error(fault: HaltError, stream_id: str | None) -> bytes:
    """The frame that says an error, and which stream it is about where that is known."""
    error: dict[str, Any] = {
        "code": fault.code,
        "message": signed(fault.message, current()) if fault.status == 500 else fault.message,
        "retryable": fault.retryable,
    }
    if fault.field is not None:
        error["field"] = fault.field
    if fault.retry_after is not None:
        error["retry_after"] = fault.retry_after
    named = {} if stream_id is None else {"id": stream_id}
    return frame(_TEXT, encode({"type": "error", **named, "error": error}))


class _Named(msgspec.Struct):
    id: StreamId


_named = msgspec.json.Decoder(_Named)


def _id_in(said: str | bytes) -> str | None:
    """The stream that a message names, also when nothing else of it is right."""
    try:
        return _named.decode(said).id
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None


# --- the route ------------------------------------------------------------------------------------


def install(app: Flask) -> None:
    """Put the route into the application. `security.guard` has looked at token and origin."""
    settings = services(app).config
    app.config["SOCK_SERVER_OPTIONS"] = {
        "ping_interval": settings.heartbeat,
        "max_message_size": settings.max_body_bytes,
        "receive_bytes": 65_536,
        "selector_class": EarlyFirst,
    }
    routes = Blueprint("sockets", __name__)
    sockets = Sock()

    @routes.before_request
    def admit() -> None:
        """Whatever is wrong is told before the connection becomes a WebSocket."""
        if request.endpoint != "sockets.talk":
            return
        client = client_socket()
        if client is None or isinstance(client, ssl.SSLSocket):
            # Two threads must not use one TLS connection.
            raise RequestError("WebSockets need a proxy in front that ends TLS.", field="Upgrade")
        service = services().generations
        service.readers.take_place()
        g.has_place = True  # first: what follows fails where the client has left
        g.wire = Wire(client, service.relay, PATIENCE * service.config.heartbeat)
        if isinstance(client, ClientSocket):
            g.wire.early = client.behind
        request.environ["gunicorn.socket"] = g.wire
        # Without compression: it would cost more than all the rest, for messages this small.
        request.environ.pop("HTTP_SEC_WEBSOCKET_EXTENSIONS", None)

    @routes.teardown_request
    def give_back_place(_: BaseException | None) -> None:
        if wire := g.pop("wire", None):
            wire.release()  # where the handshake went wrong, the answer is the server's to write
        if g.pop("has_place", False):
            services().generations.readers.give_back_place()

    @routes.errorhandler(RemoteProtocolError)
    @routes.errorhandler(UnicodeError)
    def not_a_handshake(fault: Exception) -> Response:
        return refusal(RequestError(f"This is no WebSocket handshake: {fault}", field="headers"))

    @sockets.route("/ws", bp=routes)  # type: ignore[untyped-decorator]  # flask-sock has no types
    def talk(ws: Server) -> None:
        Conversation(ws, g.wire, services().generations, owner()).serve()

    @routes.get("/ws")
    def plain() -> Response:
        raise RequestError("This address speaks WebSocket only.", field="Upgrade")

    app.register_blueprint(routes)
