"""Delay of Stop in each phase of a stream, with one and with many streams."""

from __future__ import annotations

import contextlib
import json
import random
import secrets
import select
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from bench.load import read
from bench.processes import PORT_WITHIN, HaltProcess, fake_upstream
from bench.readers import READY_WITHIN, Job
from bench.sizes import Sizes
from bench.table import Row, at_most, number, p50_p99, percentile, required
from halt.testing.scenarios import last_user_message
from tests.support.raw_http import Address, chat, complete, connect, fetch, request, stop

BACKGROUND_MODEL = "count?n=1000000&rate=10"
STOPPED_WITHIN = 10.0  # seconds; a slower Stop is a fault, not a figure
BEGUN_WITHIN = 10.0


@dataclass(frozen=True)
class Phase:
    """A phase of a stream: the behaviour of the upstream, and the tokens before the Stop."""

    name: str
    model: str
    tokens: tuple[int, int]  # minimum and maximum, chosen at random
    quiet: tuple[float, float]  # seconds of silence after them, chosen at random


PHASES = (
    Phase("silent headers", "silent_headers", (0, 0), (0.05, 0.1)),
    Phase("silent first token", "silent_first_token", (0, 0), (0.05, 0.1)),
    Phase("flowing", "count?n=1000000&rate=100", (3, 15), (0.0, 0.0)),
    Phase("stalled", "stall?n=5", (1, 1), (0.05, 0.1)),
)
FLOWING = PHASES[2]


@dataclass(frozen=True)
class Stopped:
    """Times of one Stop, in milliseconds since it was sent; `closed` comes from the upstream's log.

    The Stop is sent on a new connection; connecting is included.
    """

    key: str
    at: float
    terminal: float
    answered: float
    receipt: dict[str, Any]
    closed: float = 0.0


class Refused(Exception):
    """The server has no room for another stream (yet)."""


def stop_one(address: Address, phase: Phase) -> Stopped:
    """Start a stream, wait for its phase, stop it, and measure at both ends. Raises Refused."""
    stream_id, key = secrets.token_urlsafe(12), secrets.token_urlsafe(12)
    with connect(address) as stream:
        stream.sendall(chat("/chat/stream", phase.model, key, stream_id))
        data = wait_for(stream, b"", b"\r\n\r\n", 1)
        if data.startswith(b"HTTP/1.1 503"):
            raise Refused(data[-200:].decode(errors="replace"))
        if not data.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"no stream: {data[:300]!r}")
        tokens = random.randint(*phase.tokens)
        data = wait_for(stream, data, b'"type":"content"', tokens)
        time.sleep(random.uniform(*phase.quiet))
        began = time.monotonic()
        with connect(address) as stopper:
            stopper.sendall(stop(stream_id))
            terminal, answered, answer = _both(stream, data, stopper, began + STOPPED_WITHIN)
        # The stream's place becomes free at the end of the whole response.
        wait_for(stream, b"", b"\r\n0\r\n\r\n", 1, already=terminal.data)
    return Stopped(
        key, began, (terminal.at - began) * 1000, (answered - began) * 1000, json.loads(answer)
    )


@dataclass
class _Seen:
    at: float
    data: bytes


def _both(
    stream: socket.socket, data: bytes, stopper: socket.socket, until: float
) -> tuple[_Seen, float, bytes]:
    """Wait for the terminal event and the response to the Stop; return times and data."""
    poller = select.poll()
    for sock in (stream, stopper):
        poller.register(sock, select.POLLIN)
    terminal: _Seen | None = None
    answered = 0.0
    body = reply = b""
    while terminal is None or not answered:
        ready = dict(poller.poll(max(0.0, until - time.monotonic()) * 1000))
        if not ready:
            raise TimeoutError("the Stop had no effect")
        if stream.fileno() in ready:
            received = stream.recv(65536)
            data += received
            if terminal is None and b'"type":"cancelled"' in data:
                terminal = _Seen(time.monotonic(), data)
            elif terminal is not None:
                terminal.data = data
            elif not received:
                raise ConnectionError("the stream ended without a terminal event")
            if not received:
                poller.unregister(stream)
        if stopper.fileno() in ready:
            reply += stopper.recv(65536)
            parts = complete(reply)
            if parts is not None:
                answered, body = time.monotonic(), parts[1]
                poller.unregister(stopper)
    return terminal, answered, body


def wait_for(
    sock: socket.socket, data: bytes, mark: bytes, times: int, already: bytes = b""
) -> bytes:
    """Read until the data has the mark `times` times; return all data."""
    until = time.monotonic() + BEGUN_WITHIN
    data = data or already
    while data.count(mark) < times:
        sock.settimeout(max(0.001, until - time.monotonic()))
        received = sock.recv(65536)
        if not received:
            raise ConnectionError(f"the stream ended before {mark!r}")
        data += received
    return data


def stop_often(address: Address, upstream: str, phase: Phase, times: int) -> list[Stopped]:
    """Measure `times` Stops one after the other, including the upstream's side."""
    measured_stops: list[Stopped] = []
    refused_until = time.monotonic() + BEGUN_WITHIN
    while len(measured_stops) < times:
        try:
            measured_stops.append(stop_one(address, phase))
        except Refused:  # the last stream has not ended yet
            if time.monotonic() > refused_until:
                raise
            time.sleep(0.02)
        else:
            refused_until = time.monotonic() + BEGUN_WITHIN
    return with_closings(upstream, measured_stops)


def with_closings(upstream: str, measured_stops: list[Stopped]) -> list[Stopped]:
    """Fill in `closed` from the log of the upstream."""
    closed = closings(upstream, {stop.key: stop.at for stop in measured_stops})
    return [replace(stop, closed=closed[stop.key]) for stop in measured_stops]


def closings(upstream: str, stopped: Mapping[str, float]) -> dict[str, float]:
    """Prompt -> milliseconds from its Stop to the close of the upstream connection."""
    url = urlsplit(upstream)
    address = (url.hostname or "", url.port or 80)
    records: dict[str, Any] = {}
    until = time.monotonic() + STOPPED_WITHIN
    while time.monotonic() < until:
        records = {
            last_user_message(record["body"]): record
            for record in json.loads(fetch(address, request("GET", "/_log")).body)
            if record["method"] == "POST"
        }
        if all(records[key]["closed_at"] is not None for key in stopped):
            break
        time.sleep(0.02)  # the upstream has not seen the last close yet
    fetch(address, request("POST", "/_clear"))
    delays = {}
    for key, at in stopped.items():
        record = records[key]
        if record["received_at"] > at:
            raise RuntimeError("a stream was stopped before its upstream got the request")
        closed = record["closed_at"]
        delays[key] = (closed - at) * 1000 if closed is not None else float("inf")
    return delays


@contextlib.contextmanager
def open_streams(address: Address, streams: int) -> Iterator[None]:
    """`streams` flowing streams with a reader."""
    if not streams:
        yield
        return
    job = Job(
        kind="drain",
        way="json",
        path="/chat/stream",
        address=address,
        streams=streams,
        model=BACKGROUND_MODEL,
    )
    with read(job) as reader:
        reader.read_json(READY_WITHIN + PORT_WITHIN)
        yield


def phases(sizes: Sizes) -> Iterator[Row]:
    """Rows for every phase, with one and with many streams."""
    measured_stops: dict[tuple[str, int], list[Stopped]] = {}
    for streams, times in ((1, sizes.stops_alone), (sizes.open_streams, sizes.stops_with_others)):
        with (
            fake_upstream() as upstream,
            HaltProcess(upstream, HALT_MAX_STREAMS=sizes.open_streams, HALT_MODEL="echo") as halt,
            open_streams(halt.address, streams - 1),
        ):
            stop_often(halt.address, upstream, FLOWING, 2)  # start-up costs
            for phase in PHASES:
                measured_stops[phase.name, streams] = stop_often(
                    halt.address, upstream, phase, times
                )
    others = f"the others flow at 10 tokens/s; {sizes.stops_with_others} Stops in each phase"
    alone = f"{sizes.stops_alone} Stops in each phase"
    figures: tuple[tuple[str, Callable[[Stopped], float]], ...] = (
        ("Stop sent → upstream closed", lambda stop: stop.closed),
        ("Stop sent → terminal event at the reader", lambda stop: stop.terminal),
    )
    for figure, get in figures:
        for (name, streams), stops in measured_stops.items():
            values = [get(stop) for stop in stops]
            yield at_most(
                f"{figure}, {name}, {streams} open, p50 / p99",
                percentile(values, 99),
                50,
                10,
                " ms",
                f"{p50_p99(values)} ms",
                note=alone if streams == 1 else others,
            )
    receipts = [stop.receipt for stops in measured_stops.values() for stop in stops]
    confirmed = sum(r["status"] == "stopped" and r["upstream"] == "closed" for r in receipts)
    yield required(
        "Stops whose receipt is stopped, closed",
        "all",
        f"{confirmed} of {len(receipts)}",
        confirmed == len(receipts),
    )


def full(sizes: Sizes) -> Iterator[Row]:
    """Rows about Stop, and about one more stream, with all streams open that the limit allows."""
    stops: list[Stopped] = []
    refusals: list[float] = []
    refused = True
    with (
        fake_upstream() as upstream,
        HaltProcess(upstream, HALT_MAX_STREAMS=sizes.open_streams, HALT_MODEL="echo") as halt,
        open_streams(halt.address, sizes.open_streams - 1),
    ):
        while len(stops) < sizes.stops_full:
            with contextlib.ExitStack() as stack:
                for _ in range(sizes.idle_connections):
                    stack.enter_context(connect(halt.address))
                times = min(sizes.stops_in_a_round, sizes.stops_full - len(stops))
                stops += stop_often(halt.address, upstream, FLOWING, times)
        with contextlib.ExitStack() as stack:
            for _ in range(sizes.idle_connections):
                stack.enter_context(connect(halt.address))
            last = stack.enter_context(connect(halt.address))
            last.sendall(chat("/chat/stream", FLOWING.model))
            wait_for(last, b"", b'"type":"content"', 1)
            for _ in range(sizes.stops_in_a_round):
                began = time.monotonic()
                answer = fetch(halt.address, chat("/chat/stream", "echo"))
                refusals.append((answer.at - began) * 1000)
                refused &= answer.status == 503 and answer.header("retry-after").isdigit()
    note = f"{sizes.open_streams} streams open of {sizes.open_streams}, {sizes.idle_connections} idle connections"
    answered = [stop.answered for stop in stops]
    yield at_most(
        f"POST /stop answered with all {sizes.open_streams} places taken, p50 / p99",
        percentile(answered, 99),
        100,
        20,
        " ms",
        f"{p50_p99(answered)} ms",
        note=note,
    )
    slowest = max(refusals)
    yield required(
        f"Stream {sizes.open_streams + 1}: 503 with Retry-After",
        "≤ 100 ms",
        f"{'yes' if refused else 'NO'}, {number(slowest)} ms at most",
        refused and slowest <= 100,
        note,
    )
