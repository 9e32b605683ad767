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

Who writes? As with pumping (see `halt.run`) it is a role, kept by a lock, not a thread. Whoever
adds an event to a log also writes it to the sockets that follow it, without waking another thread
and without ever waiting: what the network does not take at once is left to the socket's own thread.
Until then only positions are kept; the events stay in their logs.

Threads of a socket: the server's own (obeys messages, waits for a slow network, ends the socket)
and simple-websocket's, which reads. That one works on a `Wire` in place of the server's connection:
writers exclude each other there, nothing is read while a message waits to be obeyed, and closing
the connection is left to the server, which would count it twice otherwise.
"""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import ssl
import struct
import threading
from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import Any

import msgspec
from flask import Blueprint, Flask, g, request
from flask_sock import Sock
from simple_websocket import ConnectionClosed, Server
from werkzeug.wrappers import Response
from wsproto.utilities import RemoteProtocolError

from halt.bodies import EventNumber, TypeDecoder
from halt.chat import StreamId
from halt.errors import AtCapacity, HaltError, OffsetLost, RequestError
from halt.events import Event, encode, is_terminal
from halt.generation import RETRY_AFTER, Generations
from halt.metrics import now
from halt.rates import count_starts
from halt.recording import Recording
from halt.request_ids import current, signed
from halt.starts import StartRequest, grace_of
from halt.web import client_socket, generations, owner, refusal

MAX_STREAMS = 32  # that one socket follows at once
BATCH_BYTES = 65_536  # about what one write takes along
BATCH_EVENTS = 64  # of one stream in one write, so that a long replay holds up no other
VISIT = 4  # writes that another's thread does before it leaves the rest to the socket's own
STAY = 16  # writes that the socket's own thread does before it looks for messages again
SEND_BUFFER = 65_536  # bytes given to the kernel ahead of the reader; Linux takes twice as much
LAST_BUFFER = 4 * SEND_BUFFER  # room for the last words, also when the reader has not read
FRAMES_MAX = 256  # answers and pongs that wait for a reader
TICK = 1.0  # seconds between two looks at the server's shutdown
STUCK_TICK = 20  # milliseconds between two looks for messages while the network is stuck
PATIENCE = 0.5  # heartbeats without a byte taken, after which a reader is too slow
LAST_WORDS = 2.0  # seconds for streams to end at a shutdown
CLOSE_WITHIN = 3.0  # seconds for the client to answer a close
READER_ENDS = 5.0  # seconds; it takes none once the connection is shut down

REASON_MAX = 123  # bytes of a close's reason, by the protocol

GOING_AWAY, INTERNAL_ERROR, TOO_SLOW = 1001, 1011, 4008
_TEXT, _CLOSE = b"\x81", b"\x88"

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


class Feed:
    """One stream on its way to one socket. Its position is the writer's."""

    def __init__(self, run: Recording, after: int, wire: Wire) -> None:
        """Begin behind the event `after`. Raises OffsetLost.

        Who has everything of an ended stream is sent its last event again, and so learns of it.
        """
        run.log.read(after)
        self._run = run
        self._after = min(after, run.log.last - (run.log.ended is not None))
        self._wire = wire
        self._prefix = b'{"stream":"%b","seq":' % run.id.encode()
        self._read: Iterator[tuple[int, Event]] = iter(())  # and still to be sent
        self._viewer = run.join()
        self.queued = False  # the wire knows that there is something
        self.over = False
        run.log.subscribe(self.changed)
        self.changed()

    def changed(self) -> None:
        """There may be something to send. Called by whoever added it; neither waits nor raises."""
        if not self.queued and not self.over:
            self.queued = True
            self._wire.offer(self)

    def frames(self) -> tuple[list[bytes], bool]:
        """What comes next, at most a batch, and whether this feed is to be queued again."""
        if self.over:
            return [], False
        fresh = False
        events = list(islice(self._read, BATCH_EVENTS))
        if not events:
            fresh = True
            self.queued = False  # before the log is read: what comes after that is told again
            try:
                self._read = iter(self._run.log.read(self._after))
            except OffsetLost as lost:
                # The reader was slower than the log is long. It is told, never given a gap.
                self.end()
                return [_error(lost, self._run.id)], False
            events = list(islice(self._read, BATCH_EVENTS))
        again = not fresh or (len(events) == BATCH_EVENTS and not self.queued)
        if events:
            self._after, last = events[-1]
            if is_terminal(last):
                again = False
                self.end()
        if again:
            self.queued = True
        prefix = self._prefix
        return [
            frame(_TEXT, b'%b%d,"event":%b}' % (prefix, seq, encode(event)))
            for seq, event in events
        ], again

    def end(self) -> None:
        """Send no more. The reader has left. Harmless when repeated."""
        self.over = True
        self._run.log.unsubscribe(self.changed)
        self._run.leave(self._viewer)


class Wire:
    """The client's connection: where everybody writes, and what simple-websocket reads from.

    The role of the writer guards everything that begins with `_`, apart from the two queues, to
    which anybody may append. Whoever appends tries for the role afterwards; whoever gives it up
    looks into the queues again. So nothing is left lying.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        self.bell = threading.Event()  # the socket's own thread has something to do
        self.inbox: list[str | bytes] = []  # messages that have been read, simple-websocket's list
        self.stuck_since: float | None = None  # when the network took a byte last, if it is full
        self.flooded = False  # more answers were asked for than taken
        self.broken = False  # there is nobody to write to
        self._sock = sock
        self._role = threading.Lock()
        self._frames: deque[bytes] = deque()  # answers and control frames
        self._feeds: deque[Feed] = deque()  # those that have something
        self._rest = b""  # of a write that was not taken as a whole
        self._closing = False  # the last frame is on its way
        self._obeyed = threading.Condition()  # tells the reading thread to go on

    # --- for simple-websocket ---------------------------------------------------------------------

    def fileno(self) -> int:
        return self._sock.fileno()

    def recv(self, size: int) -> bytes:
        """Read on when all that was said before has been obeyed: no queue grows here."""
        with self._obeyed:
            self._obeyed.wait_for(lambda: not self.inbox or self.broken)
        return b"" if self.broken else self._sock.recv(size)

    def send(self, data: bytes) -> None:
        self.put(bytes(data))

    def close(self) -> None:
        """Nobody reads any more. The connection itself is the server's to close."""
        self.bell.set()

    # --- writing ----------------------------------------------------------------------------------

    def put(self, data: bytes) -> None:
        """Write a frame, before events that wait. Never waits."""
        if len(self._frames) >= FRAMES_MAX:
            self.flooded = True
            self.bell.set()
        elif not self._closing:
            self._closing = data[:1] == _CLOSE
            self._frames.append(data)
            self.flush(VISIT)

    def offer(self, feed: Feed) -> None:
        """Write what this stream has. Called by a run's threads; neither waits nor raises."""
        try:
            self._feeds.append(feed)
            self.flush(VISIT)
        except Exception:
            logger.exception("socket")
            self.broken = True
            self.bell.set()

    def flush(self, writes: int) -> None:
        """Write what waits, if nobody else does and the network takes it."""
        for _ in range(writes):
            if self.stuck_since is not None or not self._waiting:
                return
            if not self._role.acquire(blocking=False):
                return
            try:
                self._write()
            finally:
                self._role.release()
        if self._waiting:
            self.bell.set()

    def wait(self, timeout: float) -> None:
        """By the socket's own thread: return when there is something to do; write what waits."""
        if self.stuck_since is None:
            self.bell.wait(timeout)
        else:
            poller = select.poll()
            poller.register(self._sock, select.POLLOUT)
            poller.poll(STUCK_TICK)
            with self._role:
                self._write()
        self.bell.clear()
        self.flush(STAY)

    @property
    def _waiting(self) -> bool:
        return bool(self._frames or (self._feeds and not self._closing))

    def _write(self) -> None:
        """One write. The role is held."""
        data = self._rest or self._gather()
        if self.broken or not data:
            return
        try:
            sent = self._sock.send(data, socket.MSG_DONTWAIT)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.broken = True
            self.bell.set()
            return
        self._rest = data[sent:]
        if not self._rest:
            self.stuck_since = None
        elif sent or self.stuck_since is None:
            self.stuck_since = now()
            self.bell.set()

    def _gather(self) -> bytes:
        """Whole frames for the next write: answers first, then the streams in turn."""
        out: list[bytes] = []
        while self._frames:
            out.append(self._frames.popleft())
        if self._closing:
            return b"".join(out)
        size = 0
        for _ in range(len(self._feeds)):
            feed = self._feeds.popleft()
            frames, again = feed.frames()
            out += frames
            if again:
                self._feeds.append(feed)
            size += sum(map(len, frames))
            if size >= BATCH_BYTES:
                break
        return out[0] if len(out) == 1 else b"".join(out)

    # --- the end ----------------------------------------------------------------------------------

    def obeyed(self) -> None:
        """Every message was obeyed: the next may be read."""
        with self._obeyed:
            self._obeyed.notify_all()

    def say_why(self, code: int, reason: str) -> None:
        """Send a close behind what has been begun, then nothing more.

        The kernel is given more room for it: a reader that is too slow finds it when it reads on.
        """
        with self._role:
            if not self._closing:
                self._frames.append(frame(_CLOSE, struct.pack("!H", code) + reason.encode()))
                self._closing = True
            self._write_last()

    def _write_last(self) -> None:
        """Write the close and what has been begun before it. The role is held."""
        with contextlib.suppress(OSError):
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LAST_BUFFER)
        self._write()
        self._write()  # the first may have been the rest of another

    def end(self, until: float) -> None:
        """Shut the connection down; nobody touches it afterwards.

        Until that time at most, what the client still sends is read: it would not find the last
        words in a connection that is closed over something unread.
        """
        with self._role:
            if self._closing:
                self._write_last()  # put while another wrote, who would find the connection broken
            self.broken = True
        self.obeyed()
        poller = select.poll()
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)
            poller.register(self._sock, select.POLLIN)
            while poller.poll(max(0.0, until - now()) * 1000):
                with contextlib.suppress(BlockingIOError):  # the other thread took it
                    if not self._sock.recv(BATCH_BYTES, socket.MSG_DONTWAIT):
                        break
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)


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
        """The code and reason to close with; code 0 when there is nobody to be told."""
        wire = self._wire
        while not wire.broken:
            # Wakes up for a message, a network that is full, an end: never for an event as such.
            while (message := self._ws.receive(0)) is not None:
                self._answer(message)
            wire.obeyed()
            self._feeds = {name: feed for name, feed in self._feeds.items() if not feed.over}
            leaving = self._service.draining
            if leaving:
                self._leave_by = min(self._leave_by, now() + LAST_WORDS)
                if not self._feeds or now() > self._leave_by:
                    return GOING_AWAY, "The server is about to restart."
            wire.wait(TICK / 10 if leaving else TICK)
            if self._is_too_slow():
                return TOO_SLOW, "Too slow. Connect again and resume with follow."
        return 0, ""

    def _is_too_slow(self) -> bool:
        since = self._wire.stuck_since
        patience = PATIENCE * self._service.config.heartbeat
        return self._wire.flooded or (since is not None and now() - since > patience)

    def _close(self, code: int, reason: str, until: float) -> None:
        """Say why, and wait for the client to agree, until that time at most."""
        self._wire.say_why(code, reason)
        while self._ws.connected and not self._wire.broken and now() < until:
            self._ws.input_buffer.clear()
            self._wire.obeyed()
            self._wire.wait(until - now())

    # --- messages ---------------------------------------------------------------------------------

    def _answer(self, said: str | bytes) -> None:
        try:
            if isinstance(said, bytes):
                raise RequestError("Messages are JSON text; this one was binary.", field="message")
            self._obey(_MESSAGE.decode(said, "message"))
        except HaltError as fault:
            self._wire.put(_error(fault, _id_in(said)))

    def _obey(self, message: Start | Stop | Follow | Unfollow | Ping) -> None:
        """Raises HaltError."""
        if isinstance(message, Start):
            self._check_room()
            count_starts()
            grace = grace_of(message.on_disconnect, "continue")
            run = self._service.start(message.chat(), self._owner, grace=grace)
            self._tell({"type": "started", "id": run.id})
            self._feeds[run.id] = Feed(run, 0, self._wire)
        elif isinstance(message, Stop):
            receipt = self._service.stop(message.id, self._owner, message.seen)
            self._tell({"type": "receipt", **msgspec.structs.asdict(receipt)})
        elif isinstance(message, Follow):
            found = self._service.get(message.id, self._owner)
            if message.id not in self._feeds:
                self._check_room()
            feed = Feed(found, message.after, self._wire)
            self._forget(message.id)
            self._feeds[message.id] = feed
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
        self._wire.put(frame(_TEXT, encode(what)))


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
    """Put the route into the application. `web.guard` has looked at token and origin before."""
    settings = app.extensions["halt.config"]
    app.config["SOCK_SERVER_OPTIONS"] = {
        "ping_interval": settings.heartbeat,
        "max_message_size": settings.max_body_bytes,
        "receive_bytes": 65_536,
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
        generations().take_place()
        g.has_place = True  # first: what follows fails where the client has left
        g.wire = request.environ["gunicorn.socket"] = Wire(client)
        # Without compression: it would cost more than all the rest, for messages this small.
        request.environ.pop("HTTP_SEC_WEBSOCKET_EXTENSIONS", None)

    @routes.teardown_request
    def give_back_place(_: BaseException | None) -> None:
        if g.pop("has_place", False):
            generations().give_back_place()

    @routes.errorhandler(RemoteProtocolError)
    @routes.errorhandler(UnicodeError)
    def not_a_handshake(fault: Exception) -> Response:
        return refusal(RequestError(f"This is no WebSocket handshake: {fault}", field="headers"))

    @sockets.route("/ws", bp=routes)  # type: ignore[untyped-decorator]  # flask-sock has no types
    def talk(ws: Server) -> None:
        Conversation(ws, g.wire, generations(), owner()).serve()

    @routes.get("/ws")
    def plain() -> Response:
        raise RequestError("This address speaks WebSocket only.", field="Upgrade")

    app.register_blueprint(routes)
