"""The load generator: many streams read by one thread, which parses nothing but stamps and numbers.

`python -m bench.readers JSON` with the fields of `Job`. It prints lines of JSON:

    steady    opens the streams, says {"ready": true}, lets them settle, measures for `seconds`:
              tokens, their latencies, and the processor time of the processes in `watched`; it
              reads on until its standard input ends
    whole     opens the streams and reads all of them to the end; measures the same from before the
              first request until AFTERWARDS seconds after the last end
    drain     opens the streams, says {"ready": true}, reads until its standard input ends flood
    opens a stream, says {"id": its ID}, reads it to its end, and again, until its standard
              input ends
    race      opens the streams and reads all of them to the end: are all tokens there, in order?
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
    message,
    receive,
    request,
    upgraded,
)

Way = Literal["json", "page", "bare", "event source", "ws", "ws together"]

TOGETHER = 25  # streams over each socket of the way "ws together"

READY_WITHIN = 60.0  # seconds for every stream to have brought its first token
RACE_WITHIN = 170.0
WHOLE_WITHIN = 120.0
AFTERWARDS = 0.5  # seconds for what a server still does when a stream has ended: it saves the rest
CAUGHT_UP = 0.2  # seconds to read what came while the reader looked elsewhere
OPENED_AT_ONCE = 10  # streams that are asked for before it looks at those that are there
MARK = 11  # bytes of a stamp with its `@`

stamps = re.compile(rb"@(\d{10})").findall
numbers = re.compile(rb"#(\d{7})").findall


@dataclass(frozen=True)
class Job:
    """What to do. `way`: how the target is asked for a stream."""

    kind: Literal["steady", "whole", "drain", "flood", "race"]
    way: Way
    path: str  # of the streaming request; not used by the page
    address: Address
    streams: int
    model: str
    settle: float = 2.0
    seconds: float = 10.0
    tokens: int = 0  # that each stream has which is read to its end
    stream_ids: list[str] = field(default_factory=list)  # where Stop must find them
    watched: dict[str, int] = field(default_factory=dict)  # name -> the first of its processes


class Stream:
    """One stream being read."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.rest = b""  # a mark that was cut by the read
        self.last = -1  # stamp or number of the newest token
        self.tokens = 0
        self.tail = b""  # of what was read, where its end is looked for
        self.ended = False


def open_socket(job: Job, streams: int) -> socket.socket:
    """A WebSocket with so many streams that were asked for."""
    sock = upgraded(job.address, job.path)
    said = [{"role": "user", "content": "hi"}]
    sock.sendall(message(type="start", model=job.model, messages=said) * streams)
    return sock


def _is_stream(sock: socket.socket) -> bool:
    """Whether the answer that comes is a stream; nothing of it is read."""
    while True:
        head, end, _ = sock.recv(65536, socket.MSG_PEEK).partition(b"\r\n\r\n")
        if end or not head:
            return b"text/event-stream" in head


def open_stream(job: Job, stream_id: str = "") -> tuple[socket.socket, bytes]:
    """Ask for a stream; its answer is still to be read. With it comes what the page had before."""
    sock = connect(job.address)
    if job.way == "page":
        # A session of its own for each: one session may not hold so many.
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
        """Read what is there, or wait for it until that time."""
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
        """Count new tokens. The page's HTML repeats a block when it is finished: not new."""
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
        """Count tokens, and see the end of the response."""
        before = self.tokens
        self.take_stamps(stream, data)
        stream.tokens += self.tokens - before
        stream.tail = data[-7:] if len(data) >= 7 else (stream.tail + data)[-7:]
        if stream.tail == b"\r\n0\r\n\r\n":
            stream.ended = True

    @staticmethod
    def take_anything(stream: Stream, data: bytes) -> None:
        """See that there are tokens, stamped or not."""
        if stream.last < 0 and b'"type":"content"' in data:
            stream.last = 0

    def wait_ready(self, take: Callable[[Stream, bytes], None]) -> None:
        """Read until every stream has brought a token."""
        until = time.monotonic() + READY_WITHIN
        while any(stream.last < 0 for stream in self.streams.values()):
            if time.monotonic() > until or any(s.ended for s in self.streams.values()):
                raise TimeoutError("not every stream has begun")
            self.turn(take, time.monotonic() + 0.1)
        say({"ready": True})

    def spend(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.turn(self.take_stamps, until)

    def steady(self) -> None:
        self.wait_ready(self.take_stamps)
        self.spend(self.job.settle)
        use = Use(self.job.watched)
        self.spend(CAUGHT_UP)
        use.begin()
        self.measuring = True
        self.spend(self.job.seconds)
        self.measuring = False
        say(use.facts(time.monotonic()) | self.facts())
        self.until_told()

    def whole(self) -> None:
        use = Use(self.job.watched)
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
        say(use.facts(ended) | self.facts() | {"whole": whole})

    def facts(self) -> dict[str, Any]:
        """What was read."""
        p50, p99 = (
            percentile(self.latencies, percent) / 1000 if self.tokens else None
            for percent in (50, 99)
        )
        return {"tokens": self.tokens, "p50": p50, "p99": p99}

    def until_told(self) -> None:
        """Read, and count nothing, until the standard input ends."""
        while not told_to_end():
            self.turn(self.take_anything, time.monotonic() + 0.1)

    def drain(self) -> None:
        self.wait_ready(self.take_anything)
        self.until_told()

    def flood(self) -> None:
        def take(stream: Stream, data: bytes) -> None:
            if stream.last < 0 and b"#" in data:
                stream.last = 0
                say({"id": stream_id})
            stream.tail = (stream.tail + data)[-16:]
            stream.ended = b"[DONE]" in stream.tail

        while not told_to_end():
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
            cut = data.rfind(b"#", -MARK)  # longer than a number: at worst some bytes are kept
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
        say(
            {
                "seconds": last_at - first_at,
                "tokens": self.tokens,
                "faults": faults,
                "whole": sum(
                    s.ended and s.last == self.job.tokens - 1 for s in self.streams.values()
                ),
            }
        )


class Use:
    """What is used of the processors."""

    def __init__(self, watched: dict[str, int]) -> None:
        """Find the processes, which takes milliseconds in which tokens wait."""
        self._watched = watched
        self._trees = {name: tree(pid) for name, pid in watched.items()}

    def begin(self) -> None:
        """Count from now on."""
        self._before = {name: cpu_seconds(pids) for name, pids in self._trees.items()}
        self._machine = machine_cpu_seconds()
        self._own = time.process_time()
        self._began = time.monotonic()

    def facts(self, ended: float) -> dict[str, Any]:
        """Processor time of each so far, of processes that came since too, and seconds to `ended`."""
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


def told_to_end(within: float = 0.0) -> bool:
    """Whether the standard input has ended, or ends within so many seconds."""
    poller = select.poll()
    poller.register(0, select.POLLIN | select.POLLHUP)
    return bool(poller.poll(within * 1000))


def say(facts: dict[str, Any]) -> None:
    print(json.dumps(facts), flush=True)


def main() -> None:
    given = json.loads(sys.argv[1])
    job = Job(**given | {"address": tuple(given["address"])})
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
