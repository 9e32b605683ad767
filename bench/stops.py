"""Stop: cost of the request, many Stops at once, and a stream at full speed."""

from __future__ import annotations

import contextlib
import json
import random
import secrets
import socket
import time
from collections.abc import Iterator, Sequence
from urllib.parse import urlsplit

from bench.load import PACED, RATE, read, source
from bench.phases import STOPPED_WITHIN, wait_for
from bench.processes import PORT_WITHIN, Child, HaltProcess, bare_flask
from bench.readers import AFTERWARDS, READY_WITHIN, Job
from bench.sizes import Sizes
from bench.table import Row, at_most, both_at_most, median, number, without_target
from tests.support.process_facts import cpu_seconds, tree
from tests.support.raw_http import Address, chat, connect, fetch, receive, request, stop

THREADS = 232  # of the bare server; the default number of Halt
FIRST = 20  # requests that are not measured


def stops(sizes: Sizes) -> Iterator[Row]:
    """All rows about Stop, except those for each phase and each API."""
    yield from _cost(sizes)
    yield _at_once(sizes)
    yield _at_full_speed(sizes)


# --- cost ------------------------------------------------------------------------------------------


def _cost(sizes: Sizes) -> Iterator[Row]:
    with (
        source() as (_, url),
        HaltProcess(url, HALT_MODEL="once", HALT_HEARTBEAT=120) as halt,
        bare_flask(THREADS) as (bare_address, bare_pid),
    ):
        ended = secrets.token_urlsafe(12)
        with connect(halt.address) as sock:
            sock.sendall(chat("/chat/stream", "once", stream_id=ended))
            wait_for(sock, b"", b"\r\n0\r\n\r\n", 1)
        with connect(halt.address) as sock:
            _stop_all(sock, [ended] * FIRST, "finished")
            cost = _cpu(halt.master, sock, [ended] * sizes.ended_stops, "finished")
            live = []
            for _ in range(sizes.stop_rounds):
                with open_silent_streams(halt.address, sizes.live_stops) as ids:
                    live.append(_cpu(halt.master, sock, ids, "stopped"))
        with connect(bare_address) as sock:
            _stop_all(sock, [ended] * FIRST, "stopped")
            bare = _cpu(bare_pid, sock, [ended] * sizes.ended_stops, "stopped")
    yield at_most(
        "CPU of POST /stop on a kept-alive connection",
        cost,
        1.2,
        0.8,
        " ms",
        f"{number(cost)} ms (bare gunicorn and Flask {number(bare)})",
        f"{sizes.ended_stops:,} Stops of a stream that has ended, on one connection; user and system "
        "time of all the server's processes",
    )
    yield without_target(
        "CPU of POST /stop of a live stream, with the end of the stream",
        f"{number(median(live))} ms",
        note=f"{sizes.live_stops} silent streams with a reader, stopped one after the other on "
        f"one kept-alive connection, until {AFTERWARDS:g} s after the last; median of "
        f"{sizes.stop_rounds} rounds",
    )


def _stop_all(sock: socket.socket, ids: Sequence[str], expected_status: str) -> None:
    for stream_id in ids:
        sock.sendall(stop(stream_id))
        answer = receive(sock)
        if answer.status != 200 or json.loads(answer.body)["status"] != expected_status:
            raise RuntimeError(f"a Stop had an unexpected response: {answer}")


def _cpu(pid: int, sock: socket.socket, ids: Sequence[str], expected_status: str) -> float:
    """Milliseconds of CPU per Stop."""
    before = cpu_seconds(tree(pid))
    _stop_all(sock, ids, expected_status)
    time.sleep(AFTERWARDS)
    return (cpu_seconds(tree(pid)) - before) / len(ids) * 1000


@contextlib.contextmanager
def open_silent_streams(address: Address, count: int) -> Iterator[list[str]]:
    """`count` streams that have a token and have not ended; yields their IDs."""
    ids = [secrets.token_urlsafe(12) for _ in range(count)]
    with contextlib.ExitStack() as stack:
        for stream_id in ids:
            sock = stack.enter_context(connect(address))
            sock.sendall(chat("/chat/stream", "held", stream_id=stream_id))
            wait_for(sock, b"", b"@", 1)
        time.sleep(AFTERWARDS)
        yield ids


# --- many at the same moment ----------------------------------------------------------------------


def _at_once(sizes: Sizes) -> Row:
    count = sizes.stops_at_once
    with source() as (_, url), HaltProcess(url, HALT_MODEL=PACED) as halt:
        took = [_round(halt.address, url, count) for _ in range(sizes.stops_at_once_rounds + 1)]
    del took[0]  # start-up costs
    return at_most(
        f"{count} Stops at the same moment until the last upstream is closed, p50 / most",
        median(took),
        90,
        60,
        " ms",
        f"{number(median(took))} / {number(max(took))} ms",
        note=f"{count} streams x {RATE} tokens/s with a reader, and no other load; each Stop on a "
        f"kept-alive connection of its own; {sizes.stops_at_once_rounds} rounds",
    )


def _round(address: Address, url: str, count: int) -> float:
    """Milliseconds from the first Stop to the close of the last upstream connection."""
    at = urlsplit(url)
    upstream = (at.hostname or "", at.port or 80)
    ids = [secrets.token_urlsafe(12) for _ in range(count)]
    job = Job(
        kind="drain",
        way="json",
        path="/chat/stream",
        address=address,
        streams=count,
        model=PACED,
        stream_ids=ids,
    )
    with read(job) as reader, contextlib.ExitStack() as stack:
        reader.read_json(READY_WITHIN + PORT_WITHIN)
        stoppers = [stack.enter_context(connect(address)) for _ in ids]
        for sock in stoppers:  # first responses, so that the connections are kept alive
            sock.sendall(request("GET", "/healthz"))
            receive(sock)
        fetch(upstream, request("GET", "/facts"))
        messages = [stop(stream_id) for stream_id in ids]
        began = time.monotonic()
        for sock, message in zip(stoppers, messages, strict=True):
            sock.sendall(message)
        for sock in stoppers:
            answer = receive(sock)
            if json.loads(answer.body)["status"] != "stopped":
                raise RuntimeError(f"a Stop had an unexpected response: {answer}")
        closed: list[float] = []
        until = began + STOPPED_WITHIN
        while len(closed) < count:
            if time.monotonic() > until:
                raise TimeoutError(f"{len(closed)} of {count} upstreams were closed")
            closed += json.loads(fetch(upstream, request("GET", "/facts")).body)["closed"]
    return (max(closed) - began) * 1000


# --- full speed -----------------------------------------------------------------------------------


def _at_full_speed(sizes: Sizes) -> Row:
    settings = {"HALT_MAX_ANSWER_CHARS": 50_000_000, "HALT_LOG_SECONDS": 1}
    with source() as (_, url), HaltProcess(url, HALT_MODEL="numbered", **settings) as halt:
        job = Job(
            kind="flood",
            way="json",
            path="/chat/stream",
            address=halt.address,
            streams=1,
            model="numbered?n=9999999",
        )
        with read(job) as reader, connect(halt.address) as sock:
            times = [_stop_flood(reader, sock) for _ in range(sizes.stops_at_full_speed + 1)]
    del times[0]
    return both_at_most(
        "POST /stop of a stream at full speed answered, p50 / p99",
        times,
        (10, 30),
        (3, 10),
        note=f"one stream, as fast as another process can read it; {len(times)} Stops on a kept-alive "
        "connection, 0.1 to 0.3 s after the first token; each receipt is stopped, closed",
    )


def _stop_flood(reader: Child, sock: socket.socket) -> float:
    stream_id = reader.read_json(READY_WITHIN)["id"]
    time.sleep(random.uniform(0.1, 0.3))
    began = time.monotonic()
    sock.sendall(stop(stream_id))
    reply = receive(sock)
    receipt = json.loads(reply.body)
    if (receipt["status"], receipt["upstream"]) != ("stopped", "closed"):
        raise RuntimeError(f"a Stop had an unexpected response: {receipt}")
    return (reply.at - began) * 1000
