"""The load generator: one thread reads many streams and parses only stamps and numbers.

`python -m bench.readers JSON` with the fields of `Job`. It prints lines of JSON:

    steady    opens the streams, prints {"ready": true}, waits for `settle` seconds and measures for
              `seconds`: tokens, their latencies, and the CPU time of the processes in `watched`;
              then reads on until its standard input ends
    whole     opens the streams and reads all of them to the end; measures the same from before the
              first request until AFTERWARDS seconds after the last end
    drain     opens the streams, prints {"ready": true}, reads until its standard input ends
    flood     opens a stream, prints {"id": its ID}, reads it to its end, and repeats this until its
              standard input ends
    race      opens the streams and reads all of them to the end; counts lost and misplaced tokens
"""

from __future__ import annotations

import json
import re
import secrets
import select
import socket
import sys
import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from bench.source import STAMP_MODULUS
from bench.table import percentile
from tests.support.process_facts import cpu_seconds, machine_cpu_seconds, tree
from tests.support.raw_http import (
    Address,
    chat,
    connect,
    event_source,
    form,
    open_websocket,
    receive,
    request,
    socket_message,
)

Way = Literal["json", "page", "bare", "event source", "ws", "ws together"]

TOGETHER = 25  # streams per WebSocket for the way "ws together"

READY_WITHIN = 60.0  # seconds until every stream has its first token
RACE_WITHIN = 170.0
WHOLE_WITHIN = 120.0
AFTERWARDS = 0.5  # seconds for the server's work after the end of a stream (saving)
CAUGHT_UP = 0.2  # seconds to read data that came during other work
OPENED_AT_ONCE = 10  # streams that are opened between two reads of the open ones
MARK = 11  # bytes of a stamp, with its `@`

stamps = re.compile(rb"@(\d{10})").findall
numbers = re.compile(rb"#(\d{7})").findall


@dataclass(frozen=True)
class Job:
    """A job for the load generator. `way`: how a stream is requested and read."""

    kind: Literal["steady", "whole", "drain", "flood", "race"]
    way: Way
    path: str  # of the streaming request; unused for the page
    address: Address
    streams: int
    model: str
    settle: float = 2.0
    seconds: float = 10.0
    tokens: int = 0  # expected tokens of a stream that is read to its end
    stream_ids: list[str] = field(default_factory=list)  # if the streams need known IDs, for Stop
    watched: dict[str, int] = field(default_factory=dict)  # name -> its first process


class Stream:
    """One stream being read."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.rest = b""  # a mark that was cut by a read
        self.last = -1  # stamp or number of the newest token
        self.tokens = 0
        self.tail = b""  # last bytes, to detect the end
        self.ended = False


def open_socket(job: Job, streams: int) -> socket.socket:
    """A WebSocket on which `streams` streams were started."""
    sock = open_websocket(job.address, job.path)
    messages = [{"role": "user", "content": "hi"}]
    sock.sendall(socket_message(type="start", model=job.model, messages=messages) * streams)
    return sock


def _is_stream(sock: socket.socket) -> bool:
    """Whether the response is an event stream; does not consume any of it."""
    while True:
        head, end, _ = sock.recv(65536, socket.MSG_PEEK).partition(b"\r\n\r\n")
        if end or not head:
            return b"text/event-stream" in head


def open_stream(job: Job, stream_id: str = "") -> tuple[socket.socket, bytes]:
    """Request a stream; return its socket, and data of the page that came before the stream."""
    sock = connect(job.address)
    if job.way == "page":
        # One session for each stream: a session has a limit on streams.
        conversation, stream_id = secrets.token_urlsafe(12), secrets.token_urlsafe(12)
        fields = {"prompt": "hello", "id": stream_id, "model": job.model}
        sock.sendall(form(f"/c/{conversation}/messages", **fields))
        if _is_stream(sock):
            return sock, b""
        answer = receive(sock)
        feed = re.search(rb'hx-sse:connect="([^"]+)"', answer.body)
        if answer.status != 200 or feed is None:
            raise RuntimeError(f"no stream on the page: {answer.status} {answer.body[:300]!r}")
        cookie = f"Cookie: {answer.header('set-cookie').partition(';')[0]}\r\n"
        sock.sendall(request("GET", feed[1].decode(), more=cookie))
        return sock, answer.body  # the first tokens may be in it
    if job.way == "event source":
        sock.sendall(event_source(job.path, job.model))
    else:
        sock.sendall(chat(job.path, job.model, stream_id=stream_id))
    return sock, b""


class Reader:
    """All streams of a job."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.streams: dict[int, Stream] = {}
        self._epoll = select.epoll()
        self.tokens = 0
        self.latencies = array("L")
        self.measuring = False

    def open_all(self) -> None:
        together = TOGETHER if self.job.way == "ws together" else 1
        ids = self.job.stream_ids or [""]
        for number in range(self.job.streams // together):
            ws = self.job.way.startswith("ws")
            sock, before = (
                (open_socket(self.job, together), b"")
                if ws
                else open_stream(self.job, ids[number % len(ids)])
            )
            sock.setblocking(False)
            stream = self.streams[sock.fileno()] = Stream(sock)
            self._epoll.register(sock, select.EPOLLIN)
            if self.job.kind == "whole":
                self.take_whole(stream, before)
                if number % OPENED_AT_ONCE == 0:
                    self.turn(self.take_whole, 0)

    def turn(self, take: Callable[[Stream, bytes], None], until: float) -> None:
        """Read the data that is available, waiting for some until `until`."""
        for fd, _ in self._epoll.poll(max(0.0, until - time.monotonic())):
            stream = self.streams[fd]
            data = stream.sock.recv(65536)
            if data:
                take(stream, data)
            else:
                stream.ended = True
            if stream.ended:
                self._epoll.unregister(fd)

    def take_stamps(self, stream: Stream, data: bytes) -> None:
        """Count new tokens. The page's HTML repeats finished blocks, which are not counted again."""
        now = time.monotonic_ns() // 1000 % STAMP_MODULUS
        if stream.rest:
            data = stream.rest + data
        cut = data.rfind(b"@", -MARK)
        stream.rest = data[cut:] if cut >= 0 and len(data) - cut < MARK else b""
        for digits in stamps(data):
            stamp = int(digits)
            if stamp <= stream.last and self.job.way == "page":
                continue
            stream.last = stamp
            if self.measuring:
                self.tokens += 1
                self.latencies.append((now - stamp) % STAMP_MODULUS)

    def take_whole(self, stream: Stream, data: bytes) -> None:
        """Count tokens, and detect the end of the response."""
        before = self.tokens
        self.take_stamps(stream, data)
        stream.tokens += self.tokens - before
        stream.tail = data[-7:] if len(data) >= 7 else (stream.tail + data)[-7:]
        if stream.tail == b"\r\n0\r\n\r\n":
            stream.ended = True

    @staticmethod
    def take_anything(stream: Stream, data: bytes) -> None:
        """Detect the first token, stamped or not."""
        if stream.last < 0 and b'"type":"content"' in data:
            stream.last = 0

    def wait_ready(self, take: Callable[[Stream, bytes], None]) -> None:
        """Read until every stream has received a token."""
        until = time.monotonic() + READY_WITHIN
        while any(stream.last < 0 for stream in self.streams.values()):
            if time.monotonic() > until or any(s.ended for s in self.streams.values()):
                raise TimeoutError("some streams did not begin")
            self.turn(take, time.monotonic() + 0.1)
        print_json({"ready": True})

    def spend(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.turn(self.take_stamps, until)

    def steady(self) -> None:
        self.wait_ready(self.take_stamps)
        self.spend(self.job.settle)
        use = CpuUse(self.job.watched)
        self.spend(CAUGHT_UP)
        use.begin()
        self.measuring = True
        self.spend(self.job.seconds)
        self.measuring = False
        print_json(use.facts(time.monotonic()) | self.facts())
        self.read_until_stdin_ends()

    def whole(self) -> None:
        use = CpuUse(self.job.watched)
        use.begin()
        self.measuring = True
        self.open_all()
        until = time.monotonic() + WHOLE_WITHIN
        while not all(stream.ended for stream in self.streams.values()):
            if time.monotonic() > until:
                break
            self.turn(self.take_whole, time.monotonic() + 0.5)
        ended = time.monotonic()
        time.sleep(AFTERWARDS)
        whole = sum(s.ended and s.tokens == self.job.tokens for s in self.streams.values())
        print_json(use.facts(ended) | self.facts() | {"whole": whole})

    def facts(self) -> dict[str, Any]:
        """The number of tokens and their latencies in milliseconds."""
        p50, p99 = (
            percentile(self.latencies, percent) / 1000 if self.tokens else None
            for percent in (50, 99)
        )
        return {"tokens": self.tokens, "p50": p50, "p99": p99}

    def read_until_stdin_ends(self) -> None:
        """Read without counting until the standard input ends."""
        while not stdin_ended():
            self.turn(self.take_anything, time.monotonic() + 0.1)

    def drain(self) -> None:
        self.wait_ready(self.take_anything)
        self.read_until_stdin_ends()

    def flood(self) -> None:
        def take(stream: Stream, data: bytes) -> None:
            if stream.last < 0 and b"#" in data:
                stream.last = 0
                print_json({"id": stream_id})
            stream.tail = (stream.tail + data)[-16:]
            stream.ended = b"[DONE]" in stream.tail

        while not stdin_ended():
            stream_id = secrets.token_urlsafe(12)
            sock, _ = open_stream(self.job, stream_id)
            with sock:
                stream = Stream(sock)
                while not stream.ended:
                    data = sock.recv(65536)
                    if not data:
                        raise ConnectionError("the stream broke off")
                    take(stream, data)

    def race(self) -> None:
        faults = 0
        first_at = last_at = 0.0

        def take(stream: Stream, data: bytes) -> None:
            nonlocal faults, first_at, last_at
            data = stream.rest + data
            cut = data.rfind(b"#", -MARK)  # longer than a number, which only keeps more bytes
            end = cut if cut >= 0 and len(data) - cut < 8 else len(data)
            for digits in numbers(data[:end]):
                number = int(digits)
                faults += number != stream.last + 1
                stream.last = number
                self.tokens += 1
            last_at = time.monotonic()
            first_at = first_at or last_at
            stream.ended = stream.ended or b"[DONE]" in data
            stream.rest = data[end:] if end < len(data) else data[-6:].rpartition(b"\n")[2]

        until = time.monotonic() + RACE_WITHIN
        while not all(stream.ended for stream in self.streams.values()):
            if time.monotonic() > until:
                break
            self.turn(take, time.monotonic() + 1.0)
        print_json(
            {
                "seconds": last_at - first_at,
                "tokens": self.tokens,
                "faults": faults,
                "whole": sum(
                    s.ended and s.last == self.job.tokens - 1 for s in self.streams.values()
                ),
            }
        )


class CpuUse:
    """CPU use of processes."""

    def __init__(self, watched: dict[str, int]) -> None:
        """Find the processes; this takes milliseconds, in which tokens wait."""
        self._watched = watched
        self._trees = {name: tree(pid) for name, pid in watched.items()}

    def begin(self) -> None:
        """Start to count."""
        self._before = {name: cpu_seconds(pids) for name, pids in self._trees.items()}
        self._machine = machine_cpu_seconds()
        self._own = time.process_time()
        self._began = time.monotonic()

    def facts(self, ended: float) -> dict[str, Any]:
        """CPU seconds since `begin`, also of new processes; `seconds` counts until `ended`."""
        own = time.process_time() - self._own
        machine = machine_cpu_seconds() - self._machine
        watched = time.monotonic() - self._began
        cpu = {
            name: cpu_seconds(tree(pid)) - self._before[name] for name, pid in self._watched.items()
        }
        cpu["reader"] = own
        return {
            "seconds": ended - self._began,
            "watched": watched,
            "cpu": cpu,
            "machine": machine,
        }


def stdin_ended(within: float = 0.0) -> bool:
    """Whether the standard input has ended, or ends within `within` seconds."""
    poller = select.poll()
    poller.register(0, select.POLLIN | select.POLLHUP)
    return bool(poller.poll(within * 1000))


def print_json(facts: dict[str, Any]) -> None:
    print(json.dumps(facts), flush=True)


def main() -> None:
    fields = json.loads(sys.argv[1])
    job = Job(**fields | {"address": tuple(fields["address"])})
    reader = Reader(job)
    if job.kind in ("steady", "drain", "race"):
        reader.open_all()
    kinds = {
        "steady": reader.steady,
        "whole": reader.whole,
        "drain": reader.drain,
        "flood": reader.flood,
        "race": reader.race,
    }
    kinds[job.kind]()


if __name__ == "__main__":
    main()
