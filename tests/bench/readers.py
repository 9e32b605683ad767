"""The load generator: many streams read by one thread, which parses nothing but stamps and numbers.

`python -m tests.bench.readers JSON` with the fields of `Job`. It prints lines of JSON:

    steady    opens the streams, says {"ready": true}, lets them settle, measures for `seconds`:
              tokens, their latencies, and the processor time of the processes in `watched`
    drain     opens the streams, says {"ready": true}, reads until its standard input ends
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

from tests.bench.processes import cpu_seconds, machine_cpu_seconds
from tests.bench.source import STAMP_MODULUS
from tests.bench.table import percentile
from tests.bench.wire import (
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

READY_WITHIN = 30.0  # seconds for every stream to have brought its first token
RACE_WITHIN = 170.0
MARK = 11  # bytes of a stamp with its `@`

stamps = re.compile(rb"@(\d{10})").findall
numbers = re.compile(rb"#(\d{7})").findall


@dataclass(frozen=True)
class Job:
    """What to do. `way`: how the target is asked for a stream."""

    kind: Literal["steady", "drain", "race"]
    way: Way
    path: str  # of the streaming request; not used by the page
    address: Address
    streams: int
    model: str
    settle: float = 2.0
    seconds: float = 10.0
    tokens: int = 0  # that each stream of a race has
    stream_id: str = ""  # where there is only one stream, and Stop must find it
    watched: dict[str, list[int]] = field(default_factory=dict)  # name -> process IDs


class Stream:
    """One stream being read."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.rest = b""  # a mark that was cut by the read
        self.last = -1  # stamp or number of the newest token
        self.ended = False


def open_socket(job: Job, streams: int) -> socket.socket:
    """A WebSocket with so many streams that were asked for."""
    sock = upgraded(job.address, job.path)
    said = [{"role": "user", "content": "hi"}]
    sock.sendall(message(type="start", model=job.model, messages=said) * streams)
    return sock


def open_stream(job: Job) -> socket.socket:
    """Ask for a stream; its answer is still to be read."""
    sock = connect(job.address)
    if job.way == "page":
        # A session of its own for each: one session may not hold so many.
        conversation, stream_id = secrets.token_urlsafe(12), secrets.token_urlsafe(12)
        sock.sendall(form(f"/c/{conversation}/messages", prompt="hello", id=stream_id))
        answer = receive(sock)
        feed = re.search(rb'hx-sse:connect="([^"]+)"', answer.body)
        if answer.status != 200 or feed is None:
            raise RuntimeError(f"no stream on the page: {answer.status} {answer.body[:300]!r}")
        cookie = f"Cookie: {answer.header('set-cookie').partition(';')[0]}\r\n"
        sock.sendall(request("GET", feed[1].decode(), more=cookie))
    elif job.way == "event source":
        sock.sendall(event_source(job.path, job.model))
    else:
        sock.sendall(chat(job.path, job.model, stream_id=job.stream_id))
    return sock


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
        for _ in range(self.job.streams // together):
            ws = self.job.way.startswith("ws")
            sock = open_socket(self.job, together) if ws else open_stream(self.job)
            sock.setblocking(False)
            self.streams[sock.fileno()] = Stream(sock)
            self._epoll.register(sock, select.EPOLLIN)

    def turn(self, take: Callable[[Stream, bytes], None], until: float) -> None:
        """Read what is there, or wait for it until that time."""
        for fd, _ in self._epoll.poll(max(0.0, until - time.monotonic())):
            stream = self.streams[fd]
            data = stream.sock.recv(262_144)
            if data:
                take(stream, data)
                continue
            stream.ended = True
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
                self.latencies.append(now - stamp)

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
        watched = self.job.watched
        before = {name: cpu_seconds(pids) for name, pids in watched.items()}
        machine, own, began = machine_cpu_seconds(), time.process_time(), time.monotonic()
        self.measuring = True
        self.spend(self.job.seconds)
        self.measuring = False
        seconds = time.monotonic() - began
        cpu = {name: cpu_seconds(pids) - before[name] for name, pids in watched.items()}
        cpu["reader"] = time.process_time() - own
        say(
            {
                "seconds": seconds,
                "tokens": self.tokens,
                "cpu": cpu,
                "machine": machine_cpu_seconds() - machine,
                "p50": percentile(self.latencies, 50) / 1000 if self.tokens else None,
                "p99": percentile(self.latencies, 99) / 1000 if self.tokens else None,
            }
        )

    def drain(self) -> None:
        self.wait_ready(self.take_anything)
        poller = select.poll()
        poller.register(0, select.POLLIN | select.POLLHUP)
        while not poller.poll(0):
            self.turn(self.take_anything, time.monotonic() + 0.1)

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


def say(facts: dict[str, Any]) -> None:
    print(json.dumps(facts), flush=True)


def main() -> None:
    given = json.loads(sys.argv[1])
    job = Job(**given | {"address": tuple(given["address"])})
    reader = Reader(job)
    reader.open_all()
    {"steady": reader.steady, "drain": reader.drain, "race": reader.race}[job.kind]()


if __name__ == "__main__":
    main()
