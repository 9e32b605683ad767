"""The bytes of a WebSocket: written by the relay alone, in order, also through a full network.

The relay, the logs and the sockets are real; the client's end reads when a test makes it read.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import msgspec
import pytest

from halt.clock import now
from halt.core.events import Content, Done, encode
from halt.core.generation import Generation
from halt.core.log import EventLog
from halt.core.metrics import Meter
from halt.core.relay import Relay
from halt.core.stream_key import StreamKey
from halt.web.websocket.wire import FRAMES_MAX, Feed, Wire, frame
from tests.support.waiting import WAIT_TIMEOUT, wait_until

EVENTS = 400  # of each stream; with STREAMS, several times the buffers of a client
STREAMS = 20
TEXT, CLOSE = b"\x81", b"\x88"


class Message(msgspec.Struct):
    """A message to the client, an event or an answer."""

    stream: str = ""
    seq: int = 0
    answer: int = -1


_message = msgspec.json.Decoder(Message)


class WatchedSocket(socket.socket):
    """A socket that keeps the names of the writing threads and whether the network is full."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(fileno=sock.detach())
        self.writers: set[str] = set()
        self.is_full = False  # the newest `send` did not take all bytes

    def send(self, data: memoryview, flags: int = 0) -> int:  # type: ignore[override]
        self.writers.add(threading.current_thread().name)
        try:
            sent_count = super().send(data, flags)
        except BlockingIOError:
            self.is_full = True
            raise
        self.is_full = sent_count < len(data)
        return sent_count

    sendall = send  # type: ignore[assignment]


class WatchedWire(Wire):
    """A wire that keeps the names of the threads that have checked for room."""

    def __init__(self, *args: Any) -> None:
        self.checkers: set[str] = set()
        super().__init__(*args)

    @property
    def has_room(self) -> bool:
        self.checkers.add(threading.current_thread().name)
        return super().has_room


class Client:
    """Both ends of one connection, and the server's wire."""

    def __init__(self, relay: Relay, patience: float = 60.0) -> None:
        server_socket, self.end = socket.socketpair()
        self.end.settimeout(WAIT_TIMEOUT)
        self.sock = WatchedSocket(server_socket)
        self.wire = WatchedWire(self.sock, relay, patience)
        self.received = b""

    def frames(self) -> Iterator[tuple[bytes, bytes]]:
        """Kind and payload of each frame up to the end of the connection."""
        while True:
            size = self.received[1] if len(self.received) > 1 else 0
            head = 2
            if size == 126:
                head, size = 4, int.from_bytes(self.received[2:4])
            if len(self.received) >= head + size and len(self.received) > 1:
                yield self.received[:1], self.received[head : head + size]
                self.received = self.received[head + size :]
            elif piece := self.end.recv(65_536):
                self.received += piece
            else:
                assert not self.received, "the connection ends within a frame"
                return

    def close(self) -> None:
        self.end.close()
        self.wire.end(now())
        self.sock.close()


@pytest.fixture
def clients(relay: Relay) -> Iterator[list[Client]]:
    with ExitStack() as stack:
        both_clients = [Client(relay) for _ in range(2)]
        for client in both_clients:
            stack.callback(client.close)
        yield both_clients


def generation(number: int) -> Generation:
    return Generation(StreamKey("", f"stream-{number}"), EventLog(10**9), started_at=now())


def follow_run(run: Generation, wire: Wire) -> Feed:
    feed = Feed(run, 0, wire)
    feed.begin()
    return feed


def write(run: Generation) -> None:
    for number in range(EVENTS):
        run.log.append(Content(f"{number} "))
    run.log.end(lambda: Done("stop", Meter().snapshot()))


def read_event_numbers(client: Client, stream_count: int) -> dict[str, list[int]]:
    """Read this many streams to their ends; the event numbers of each."""
    numbers: dict[str, list[int]] = {}
    ended_count = 0
    for _, payload in client.frames():
        message = _message.decode(payload)
        if message.stream:
            numbers.setdefault(message.stream, []).append(message.seq)
            ended_count += message.seq == EVENTS + 1
        if ended_count == stream_count:
            break
    return numbers


def test_relay_alone_writes_the_events_of_many_threads(clients: list[Client]) -> None:
    """Each stream arrives whole and in order with its end last, over a network that was full.

    A client that reads nothing delays neither the other one nor a thread that appends.
    """
    idle_client, reading_client = clients
    runs = [generation(number) for number in range(STREAMS)]
    for run in runs:
        for client in clients:
            follow_run(run, client.wire)
    threads = [threading.Thread(target=write, args=(run,)) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_TIMEOUT)
        assert not thread.is_alive()
    expected = {run.id: list(range(1, EVENTS + 2)) for run in runs}
    assert read_event_numbers(reading_client, STREAMS) == expected
    wait_until(lambda: idle_client.sock.is_full)  # the network is full
    assert read_event_numbers(idle_client, STREAMS) == expected
    assert idle_client.sock.writers == reading_client.sock.writers == {"halt-relay"}


def test_answers_overtake_waiting_events_and_keep_their_order(clients: list[Client]) -> None:
    """Answers given while the network is full are sent before waiting events, in their order."""
    client, _ = clients
    run = generation(0)
    write(run)
    feeds = [follow_run(run, client.wire) for _ in range(STREAMS)]
    wait_until(lambda: client.sock.is_full)
    for number in range(50):
        client.wire.send(frame(TEXT, encode({"answer": number})))
    answers: list[int] = []
    events = 0
    for _, payload in client.frames():
        message = _message.decode(payload)
        if message.stream:
            events += 1
        else:
            answers.append(message.answer)
        if len(answers) == 50:
            break
    assert answers == list(range(50))
    assert events < STREAMS * (EVENTS + 1)
    assert not all(feed.over for feed in feeds)


def test_events_of_a_stream_follow_the_answer_to_its_start(
    clients: list[Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer to a start precedes its stream's events, also while the relay gathers a batch."""
    client, _ = clients
    for number in range(200):
        run = generation(number)
        run.log.append(Content("x"))
        client.wire.send(frame(TEXT, encode({"answer": number})))
        follow_run(run, client.wire)
    busy_run, late_run = generation(-1), generation(200)
    late_run.log.append(Content("x"))
    feed = follow_run(busy_run, client.wire)
    take = feed.take

    def start(max_events: int) -> tuple[bytes, int]:
        monkeypatch.undo()
        client.wire.send(frame(TEXT, encode({"answer": 200})))
        follow_run(late_run, client.wire)
        return take(max_events)

    monkeypatch.setattr(feed, "take", start)
    busy_run.log.append(Content("x"))
    order = []
    for _, payload in client.frames():
        message = _message.decode(payload)
        order.append(message.answer if message.answer >= 0 else message.stream)
        if len(order) == 403:
            break
    for number in range(201):
        assert order.index(number) < order.index(f"stream-{number}")
    assert client.sock.writers == {"halt-relay"}


def test_client_that_takes_no_byte_is_too_slow(relay: Relay) -> None:
    """The wire reports a stuck client in time; the close follows the frames already begun."""
    client = Client(relay, patience=0.05)
    run = generation(0)
    write(run)
    for _ in range(STREAMS):
        follow_run(run, client.wire)
    assert client.wire.wake_event.wait(WAIT_TIMEOUT)
    wait_until(lambda: client.wire.too_slow)
    client.wire.send(frame(CLOSE, struct.pack("!H", 4008) + b"too slow"))
    client.wire.end(now())
    *earlier_frames, (kind, payload) = client.frames()
    assert (kind, payload) == (CLOSE, struct.pack("!H", 4008) + b"too slow")
    assert {kind for kind, _ in earlier_frames} == {TEXT}
    assert client.sock.writers == {"halt-relay"}
    client.close()


def test_frames_before_the_end_are_sent_up_to_the_close(relay: Relay) -> None:
    """Frames put before the end are sent up to the close; a frame behind the close is not."""
    client = Client(relay)
    ending_thread = threading.Thread(target=client.wire.end, args=(now(),))
    close = frame(CLOSE, b"\x03\xf1")
    ready = threading.Event()

    def block_relay() -> None:
        ready.wait(WAIT_TIMEOUT)
        ending_thread.start()
        ending_thread.join(0.2)  # `end` waits for the relay's remaining work

    relay.post(block_relay)
    client.wire.send(frame(TEXT, encode({"answer": 1})))
    client.wire.send(close)
    client.wire.send(frame(TEXT, encode({"answer": 2})))
    ready.set()
    wait_until(lambda: ending_thread.ident is not None)
    ending_thread.join(WAIT_TIMEOUT)
    assert [kind for kind, _ in client.frames()] == [TEXT, CLOSE]
    client.close()


@pytest.mark.parametrize("is_full", [False, True], ids=["free network", "full network"])
def test_relay_close_releases_the_socket(is_full: bool) -> None:
    """After the relay is closed no thread waits for it, whether the network is full or not."""
    relay = Relay(lambda fault: None)
    relay.start()
    client, late_client = Client(relay), Client(relay)
    if is_full:
        run = generation(0)
        write(run)
        for _ in range(STREAMS):
            follow_run(run, client.wire)
        wait_until(lambda: client.sock.is_full)
    client.wire.send(frame(TEXT, encode({"answer": 1})))
    relay.close(WAIT_TIMEOUT)
    assert client.wire.over
    assert client.wire.wake_event.is_set()
    client.wire.end(now())
    if not is_full:
        assert [kind for kind, _ in client.frames()] == [TEXT]
    late_client.wire.send(b"too late")
    late_client.close()
    client.close()


def test_client_that_left_is_noticed_with_a_full_network(clients: list[Client]) -> None:
    """A closed connection ends the wire, although the network was full."""
    client, _ = clients
    run = generation(0)
    write(run)
    for _ in range(STREAMS):
        follow_run(run, client.wire)
    wait_until(lambda: client.sock.is_full)
    client.wire.wake_event.clear()
    client.end.close()
    assert client.wire.wake_event.wait(WAIT_TIMEOUT)
    assert client.wire.over


def test_exception_in_a_frame_ends_one_socket(
    clients: list[Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server's thread gets the exception, the close is sent, and the relay serves others."""
    client, other_client = clients
    run = generation(0)
    failing_feed = follow_run(run, client.wire)
    fault = ValueError("made for a test")

    def fail(max_events: int) -> tuple[bytes, int]:
        raise fault

    monkeypatch.setattr(failing_feed, "take", fail)
    run.log.append(Content("x"))
    assert client.wire.wake_event.wait(WAIT_TIMEOUT)
    assert client.wire.fault is fault
    client.wire.send(frame(CLOSE, b"\x03\xf3"))
    assert next(client.frames())[0] == CLOSE
    follow_run(run, other_client.wire)
    assert next(other_client.frames())[0] == TEXT


def test_reading_pauses_while_too_many_answers_wait(clients: list[Client]) -> None:
    """With FRAMES_MAX waiting answers the reading thread sleeps until the client has read some."""
    client, _ = clients
    answer = frame(TEXT, b" " * 60_000 + b"{}")
    for _ in range(FRAMES_MAX + 10):
        client.wire.send(answer)
    assert not client.wire.has_room
    client.end.sendall(b"said")
    received: list[bytes] = []
    reading = threading.Thread(target=lambda: received.append(client.wire.recv(100)))
    reading.start()
    client.wire.wake_event.clear()
    wait_until(lambda: bool(received) or reading.name in client.wire.checkers)
    assert received == []
    frames = client.frames()
    while not client.wire.has_room:
        next(frames)
    assert client.wire.wake_event.wait(WAIT_TIMEOUT)
    client.wire.wait(0)  # as the server's thread does after `wake_event`
    reading.join(WAIT_TIMEOUT)
    assert received == [b"said"]
