"""An upstream in this process, controlled step by step by a test.

`ScriptedUpstream.open` takes the next item of its script: a reply, or a fault to raise; after the
last item it returns new replies. `read` of a reply returns the items that a test has fed, one per
call. A reply blocks on a real socket that is attached to its UpstreamConnection, so that interrupts
and receipts work as with a server; one byte in the socket stands for one item.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections import deque
from typing import Any

from halt.core.connection import TICK, NoData, UpstreamConnection
from halt.core.events import Content, Event, text_of
from halt.core.request import ChatRequest, Message, Part
from halt.core.run import Run
from halt.errors import UpstreamError
from halt.model_info import ModelGroup
from tests.support.waiting import WAIT_TIMEOUT

HI = [Message("user", "hi")]


def text_part(text: str, chunks: int = 1) -> Part:
    """Text of one read."""
    return Part((Content(text),), chunks)


class ScriptedReply:
    """A Reply that returns the fed items, and counts the calls of its methods."""

    def __init__(self) -> None:
        self.model = "scripted-1"
        self.finish_reason: str | None = None
        self.usage: dict[str, Any] | None = None
        self.opaque: Any = None
        self.over = threading.Event()  # closed
        self._changed = threading.Condition()  # protects the figures below
        self.reads = 0  # calls of `read`
        self.most_reading = (
            0  # concurrent calls of `read`, at most: more than one is a fault of Halt
        )
        self.readers: list[str] = []  # names of the reading threads, in order
        self.finished = 0  # closed after everything was read, which keeps the connection
        self.closed = 0  # closed earlier
        self.complete = False
        self._reading = 0
        self._blocks = True
        self._connection = UpstreamConnection()
        self._halt_end, self._test_end = socket.socketpair()
        self._fed: deque[Part | Exception] = deque()

    def feed(self, *items: str | Part | Exception) -> None:
        """Add items: text, a Part or a fault to raise, each for one `read`.

        A fault that is fed is met by the read that takes it; a method replaced while the relay is
        inside it would be met by none.
        """
        for item in items:
            self._fed.append(text_part(item) if isinstance(item, str) else item)
            with contextlib.suppress(OSError):  # the item was read, and the reply is closed
                self._test_end.send(b"!")

    def end(self, reason: str = "stop", usage: dict[str, Any] | None = None) -> None:
        """End the answer."""
        self.finish_reason, self.usage = reason, usage
        self.feed(Part(ended=True))

    def wait_reads(self, minimum: int = 1) -> None:
        """Wait until `read` was called at least `minimum` times."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.reads >= minimum, WAIT_TIMEOUT), self.reads

    def wait_reader(self, prefix: str) -> None:
        """Wait until the last reading thread has a name with this prefix."""
        with self._changed:
            assert self._changed.wait_for(
                lambda: bool(self.readers) and self.readers[-1].startswith(prefix), WAIT_TIMEOUT
            ), self.readers

    def attach(self, connection: UpstreamConnection) -> None:
        """Attach to this connection. Raises Interrupted."""
        connection.attach(self._halt_end)
        self._connection = connection

    def wait_interrupted(self, timeout: float) -> bool:
        """Whether the connection is interrupted within `timeout` seconds."""
        return _readable(self._halt_end, timeout)

    def fileno(self) -> int:
        return self._halt_end.fileno()

    def unblock(self) -> None:
        self._blocks = False

    @property
    def pending(self) -> bool:
        return False

    def read(self) -> Part:
        with self._changed:
            self.reads += 1
            self._reading += 1
            self.most_reading = max(self.most_reading, self._reading)
            self.readers.append(threading.current_thread().name)
            self._changed.notify_all()
        try:
            return self.next_part(TICK if self._blocks else 0)
        finally:
            with self._changed:
                self._reading -= 1

    def next_part(self, timeout: float) -> Part:
        if not _readable(self._halt_end, timeout):
            raise NoData
        if not self._halt_end.recv(1):
            raise UpstreamError("upstream_dropped")
        part = self._fed.popleft()
        if isinstance(part, Exception):
            raise part
        self.complete = part.ended
        return part

    def close(self) -> None:
        if self.complete and not self._connection.interrupted:
            self.finished += 1
            self._connection.detach()
        else:
            self.closed += 1
            self._connection.close(self._halt_end)
        self.dispose()

    def dispose(self) -> None:
        """Close the sockets."""
        self._halt_end.close()
        self._test_end.close()
        self.over.set()


class ScriptedUpstream:
    """The Upstream. While `silent`, `open` waits for an interrupt, as with a silent server."""

    def __init__(self, *script: ScriptedReply | UpstreamError, silent: bool = False) -> None:
        self.silent = silent
        self.waiting = threading.Event()  # set in a silent `open`
        self._script = deque(script)
        self._changed = threading.Condition()  # protects the two below
        self.opened: list[ScriptedReply] = []
        self.requests: list[ChatRequest] = []

    def add(self, item: ScriptedReply | UpstreamError) -> None:
        """Add an item to the end of the script."""
        self._script.append(item)

    def reply(self, index: int = 0) -> ScriptedReply:
        """Wait for the reply that is opened at this index."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.opened) > index, WAIT_TIMEOUT), (
                "never opened"
            )
            return self.opened[index]

    def wait_requests(self, count: int = 1) -> None:
        """Wait until `open` was called at least `count` times."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.requests) >= count, WAIT_TIMEOUT), (
                self.requests
            )

    def open(self, request: ChatRequest, connection: UpstreamConnection) -> ScriptedReply:
        with self._changed:
            self.requests.append(request)
            self._changed.notify_all()
        item = self._script.popleft() if self._script else ScriptedReply()
        if isinstance(item, UpstreamError):
            raise item
        try:
            item.attach(connection)
        except BaseException:  # interrupted before it was the run's connection: none was closed
            item.dispose()
            raise
        try:
            if self.silent:
                self.waiting.set()
                item.wait_interrupted(WAIT_TIMEOUT)
                raise UpstreamError("upstream_dropped")
        except BaseException:
            item.close()
            raise
        with self._changed:
            self.opened.append(item)
            self._changed.notify_all()
        return item

    known_model = ""

    def models(self, connection: UpstreamConnection) -> list[str]:
        return ["scripted-1"]

    def catalog(self, connection: UpstreamConnection) -> list[ModelGroup]:
        return [ModelGroup.of("", self.models(connection))]

    def check(self, connection: UpstreamConnection) -> None:
        """It is always reachable."""

    def close(self) -> None:
        """There is nothing to close."""

    def dispose(self) -> None:
        """At the end of a test: close replies that are left open."""
        for reply in [*self.opened, *(r for r in self._script if isinstance(r, ScriptedReply))]:
            reply.dispose()


def _readable(sock: socket.socket, timeout: float) -> bool:
    poller = select.poll()
    poller.register(sock, select.POLLIN)
    return bool(poller.poll(timeout * 1000))


class Reader(threading.Thread):
    """A viewer in its own thread that follows a run and keeps the events."""

    def __init__(self, run: Run, after: int = 0, name: str = "reader") -> None:
        super().__init__(name=name, daemon=True)
        self.events: list[tuple[int, Event]] = []
        self.fault: BaseException | None = None
        self._run = run
        self._after = after
        self._viewer = run.join()
        self._changed = threading.Condition()
        self.start()

    def run(self) -> None:
        try:
            for group in self._run.follow(self._after, self._viewer):
                with self._changed:
                    self.events += group
                    self._changed.notify_all()
        except BaseException as fault:  # noqa: BLE001 - raised by `finish`
            self.fault = fault
        finally:
            self._run.leave(self._viewer)

    @property
    def text(self) -> str:
        return "".join(text_of(event) for _, event in self.events)

    def wait_text(self, text: str) -> None:
        """Wait until the text of the events equals `text`."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.text == text, WAIT_TIMEOUT), self.text

    def leave(self) -> None:
        """Stop following; wait for the end of the thread."""
        self._run.leave(self._viewer)
        self.finish()

    def finish(self) -> list[tuple[int, Event]]:
        """Wait for the end; return all events."""
        self.join(WAIT_TIMEOUT)
        assert not self.is_alive(), f"{self.name} reads on: {self.events}"
        if self.fault is not None:
            raise self.fault
        return self.events
