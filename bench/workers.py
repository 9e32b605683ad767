"""Several workers: delay of a Stop through another worker, and of events read there."""

from __future__ import annotations

import json
import random
import re
import secrets
import socket
import threading
import time
from collections.abc import Iterator

from bench.phases import FLOWING, closings, wait_for
from bench.processes import HaltProcess, fake_upstream
from bench.sizes import Sizes
from bench.table import Row, at_most, p50_p99, percentile
from tests.support.raw_http import TIMEOUT, Address, chat, connect, receive, request, stop

WORKERS = 4
STARTS_WITHIN = 60.0  # seconds for all workers
TOKENS = (2, 6)  # before a Stop, chosen at random
PACED = "count?n={n}&gap_ms=10"
_NUMBER = re.compile(rb"^id: (\d+)\n", re.MULTILINE)


def workers(sizes: Sizes) -> Iterator[Row]:
    """Rows about a Halt with several workers."""
    with fake_upstream() as upstream, HaltProcess(upstream, WEB_CONCURRENCY=WORKERS) as halt:
        names = _wait_for_workers(halt.address)
        stopped = dict(_stopped(halt.address, names) for _ in range(sizes.worker_stops + 1))
        del stopped[next(iter(stopped))]  # start-up costs
        values = list(closings(upstream, stopped).values())
        yield at_most(
            "Stop sent to another worker → upstream closed, p50 / p99",
            percentile(values, 99),
            300,
            50,
            " ms",
            f"{p50_p99(values)} ms",
            f"{WORKERS} workers; {sizes.worker_stops} Stops of a stream that flows at 100 tokens/s",
        )
        late = [
            milliseconds
            for _ in range(sizes.worker_follows)
            for milliseconds in _lateness(halt.address, names, sizes.worker_tokens)
        ]
        yield at_most(
            "Delay of an event at a reader of another worker against one of the producer, p50 / p99",
            percentile(late, 99),
            200,
            20,
            " ms",
            f"{p50_p99(late)} ms",
            f"{WORKERS} workers; {sizes.worker_follows} streams of {sizes.worker_tokens} tokens "
            "at 100 tokens/s, one after the other",
        )


def _worker_of(sock: socket.socket) -> tuple[str, int]:
    """The name of the worker of this connection, and the number of workers."""
    sock.sendall(request("GET", "/healthz"))
    health = json.loads(receive(sock).body)
    return health["worker"], health["workers"]


def _wait_for_workers(address: Address) -> list[str]:
    """Wait until all workers serve; return their names."""
    names: set[str] = set()
    until = time.monotonic() + STARTS_WITHIN
    while len(names) < WORKERS:
        if time.monotonic() > until:
            raise TimeoutError(f"{len(names)} workers of {WORKERS} serve")
        with connect(address) as sock:
            names.add(_worker_of(sock)[0])
    return sorted(names)


def _connect_to(address: Address, worker: str) -> socket.socket:
    """Connect until the kernel gives the connection to this worker."""
    until = time.monotonic() + TIMEOUT
    while time.monotonic() < until:
        sock = connect(address)
        if _worker_of(sock)[0] == worker:
            return sock
        sock.close()
    raise TimeoutError("no connection came to the worker")


def _stopped(address: Address, names: list[str]) -> tuple[str, float]:
    """Start a stream in one worker, stop it through another; return prompt and time of the Stop."""
    producer, other = random.sample(names, 2)
    prompt, stream_id = secrets.token_urlsafe(12), secrets.token_urlsafe(12)
    with _connect_to(address, producer) as reader, _connect_to(address, other) as stopper:
        reader.sendall(chat("/chat/stream", FLOWING.model, prompt, stream_id))
        wait_for(reader, b"", b'"type":"content"', random.randint(*TOKENS))
        at = time.monotonic()
        stopper.sendall(stop(stream_id))
        receive(stopper)
        wait_for(reader, b"", b"0\r\n\r\n", 1)
    return prompt, at


def _lateness(address: Address, names: list[str], tokens: int) -> list[float]:
    """Milliseconds by which each event was later at a reader of another worker."""
    producer, other = random.sample(names, 2)
    stream_id = secrets.token_urlsafe(12)
    times: tuple[dict[int, float], dict[int, float]] = ({}, {})
    with _connect_to(address, producer) as here, _connect_to(address, other) as there:
        here.sendall(chat("/chat/stream", PACED.format(n=tokens), "hello", stream_id))
        begun = wait_for(here, b"", b'"type":"content"', 1)
        there.sendall(request("GET", f"/streams/{stream_id}"))
        wait_for(there, b"", b'"type":"content"', 1)
        reader = threading.Thread(target=_record_times, args=(there, times[1]))
        reader.start()
        _record_times(here, times[0], begun)
        reader.join(TIMEOUT)
    both = times[0].keys() & times[1].keys()
    return [(times[1][number] - times[0][number]) * 1000 for number in both]


def _record_times(sock: socket.socket, times: dict[int, float], data: bytes = b"") -> None:
    """Read a stream to its end and record the time of each event number."""
    while b"data: [DONE]" not in data:
        received = sock.recv(65536)
        if not received:
            raise ConnectionError("the stream broke off")
        at = time.monotonic()
        data = data[-200:] + received
        for number in _NUMBER.findall(data):
            times.setdefault(int(number), at)
