"""Several workers: how soon a Stop through another one has stopped, how late one reads there."""

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
from bench.processes import Halt, fake_upstream
from bench.sizes import Sizes
from bench.table import Row, at_most, p50_p99, percentile
from tests.support.raw_http import TIMEOUT, Address, chat, connect, receive, request, stop

WORKERS = 4
STARTS_WITHIN = 60.0  # seconds for all of them
TOKENS = (2, 6)  # before a Stop, drawn by lot
PACED = "count?n={n}&gap_ms=10"
_NUMBER = re.compile(rb"^id: (\d+)\n", re.MULTILINE)


def workers(sizes: Sizes) -> Iterator[Row]:
    """Rows for a Halt with several workers."""
    with fake_upstream() as upstream, Halt(upstream, WEB_CONCURRENCY=WORKERS) as halt:
        names = _all_there(halt.address)
        stopped = dict(_stopped(halt.address, names) for _ in range(sizes.worker_stops + 1))
        del stopped[next(iter(stopped))]  # what only the first one takes
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
            each
            for _ in range(sizes.worker_follows)
            for each in _lateness(halt.address, names, sizes.worker_tokens)
        ]
        yield at_most(
            "An event at a reader of another worker, later than at one of its own, p50 / p99",
            percentile(late, 99),
            200,
            20,
            " ms",
            f"{p50_p99(late)} ms",
            f"{WORKERS} workers; {sizes.worker_follows} streams of {sizes.worker_tokens} tokens "
            "at 100 tokens/s, one after the other",
        )


def _worker_of(sock: socket.socket) -> tuple[str, int]:
    """The worker that this connection is with, and how many there are."""
    sock.sendall(request("GET", "/healthz"))
    said = json.loads(receive(sock).body)
    return said["worker"], said["workers"]


def _all_there(address: Address) -> list[str]:
    """The names of all workers, once they serve."""
    found: set[str] = set()
    until = time.monotonic() + STARTS_WITHIN
    while len(found) < WORKERS:
        if time.monotonic() > until:
            raise TimeoutError(f"{len(found)} workers of {WORKERS} serve")
        with connect(address) as sock:
            found.add(_worker_of(sock)[0])
    return sorted(found)


def _connect_to(address: Address, worker: str) -> socket.socket:
    """A connection with this worker: the system gives it to any of them."""
    until = time.monotonic() + TIMEOUT
    while time.monotonic() < until:
        sock = connect(address)
        if _worker_of(sock)[0] == worker:
            return sock
        sock.close()
    raise TimeoutError("no connection came to the worker")


def _stopped(address: Address, names: list[str]) -> tuple[str, float]:
    """Start a stream in one worker and stop it through another: what was said, and when."""
    owner, other = random.sample(names, 2)
    said, stream_id = secrets.token_urlsafe(12), secrets.token_urlsafe(12)
    with _connect_to(address, owner) as reader, _connect_to(address, other) as stopper:
        reader.sendall(chat("/chat/stream", FLOWING.model, said, stream_id))
        wait_for(reader, b"", b'"type":"content"', random.randint(*TOKENS))
        at = time.monotonic()
        stopper.sendall(stop(stream_id))
        receive(stopper)
        wait_for(reader, b"", b"0\r\n\r\n", 1)
    return said, at


def _lateness(address: Address, names: list[str], tokens: int) -> list[float]:
    """Milliseconds that each event came later to a reader of another worker."""
    owner, other = random.sample(names, 2)
    stream_id = secrets.token_urlsafe(12)
    came: tuple[dict[int, float], dict[int, float]] = ({}, {})
    with _connect_to(address, owner) as here, _connect_to(address, other) as there:
        here.sendall(chat("/chat/stream", PACED.format(n=tokens), "hello", stream_id))
        begun = wait_for(here, b"", b'"type":"content"', 1)
        there.sendall(request("GET", f"/streams/{stream_id}"))
        wait_for(there, b"", b'"type":"content"', 1)
        reader = threading.Thread(target=_note, args=(there, came[1]))
        reader.start()
        _note(here, came[0], begun)
        reader.join(TIMEOUT)
    both = came[0].keys() & came[1].keys()
    return [(came[1][number] - came[0][number]) * 1000 for number in both]


def _note(sock: socket.socket, came: dict[int, float], data: bytes = b"") -> None:
    """Read to the end of a stream and note when each number came."""
    while b"data: [DONE]" not in data:
        more = sock.recv(65536)
        if not more:
            raise ConnectionError("the stream broke off")
        at = time.monotonic()
        data = data[-200:] + more
        for number in _NUMBER.findall(data):
            came.setdefault(int(number), at)
