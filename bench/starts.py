"""CPU time of a start, and added delay of the first token."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

from bench.load import BARE, FASTAPI, HALT, source, system
from bench.phases import wait_for
from bench.readers import AFTERWARDS
from bench.sizes import Sizes
from bench.table import Row, at_most, both_at_most, number, p50_p99, percentile, without_target
from tests.support.process_facts import cpu_seconds, tree
from tests.support.raw_http import Address, chat, connect

SYSTEMS = {"Halt": HALT, "FastAPI relay": FASTAPI, "bare threads": BARE}
FIRST = 5  # starts that are not measured
END = b"\r\n0\r\n\r\n"


def starts(sizes: Sizes) -> Iterator[Row]:
    """Rows about the CPU of a start and of a short generation, and the delay of the first token."""
    start_cpu: dict[str, float] = {}
    generation_cpu: dict[str, float] = {}
    added: dict[str, list[float]] = {}
    for name, measured in SYSTEMS.items():
        kind, _, path = measured
        with source() as (_, url), system(kind, url, sizes.starts + FIRST) as (address, pid):
            direct = _first_tokens(_address(url), "/v1/chat/completions", FIRST + sizes.starts)
            _first_tokens(address, path, FIRST)
            before = cpu_seconds(tree(pid))
            times = _first_tokens(address, path, sizes.starts)
            time.sleep(AFTERWARDS)
            generation_cpu[name] = (cpu_seconds(tree(pid)) - before) / sizes.starts * 1000
            own = percentile(direct[FIRST:], 50)
            added[name] = [ms - own for ms in times]
            start_cpu[name] = _cpu_of_starts(address, path, pid, sizes.starts)
    note = (
        f"{sizes.starts} starts, one after the other, each on a new connection, of an upstream that "
        f"sends a token at once and then nothing: from the POST until {AFTERWARDS:g} s after the token "
        "is read; includes that token, not the end of the stream; user and system "
        "time of all the server's processes"
    )
    others = "; ".join(f"{name} {number(start_cpu[name])}" for name in SYSTEMS if name != "Halt")
    yield at_most(
        "CPU of a start",
        start_cpu["Halt"],
        4,
        2.5,
        " ms",
        f"{number(start_cpu['Halt'])} ms ({others})",
        note,
    )
    others = "; ".join(
        f"{name} {number(generation_cpu[name])}" for name in SYSTEMS if name != "Halt"
    )
    yield without_target(
        "CPU of a generation of one token, from start to end",
        f"{number(generation_cpu['Halt'])} ms ({others})",
        note=f"{sizes.starts} of them, one after the other, each on a new connection",
    )
    others = "; ".join(f"{name} {p50_p99(added[name])}" for name in SYSTEMS if name != "Halt")
    yield both_at_most(
        "Added time to first token of the API, p50 / p99, one stream",
        added["Halt"],
        (6, 12),
        (2, 4),
        f"{p50_p99(added['Halt'])} ms ({others})",
        note=f"{sizes.starts} streams, one after the other: connect, POST, first token read, less "
        "the median of the same without a relay",
    )


def _address(url: str) -> Address:
    at = urlsplit(url)
    return at.hostname or "", at.port or 80


def _begin(address: Address, path: str, model: str) -> tuple[socket.socket, bytes, float]:
    """Start a stream; return its socket, the data up to the first token, and milliseconds."""
    began = time.perf_counter()
    sock = connect(address)
    sock.sendall(chat(path, model))
    data = wait_for(sock, b"", b"@", 1)
    return sock, data, (time.perf_counter() - began) * 1000


def _first_tokens(address: Address, path: str, count: int) -> list[float]:
    """Milliseconds to the first token of `count` streams, each read to its end."""
    times = []
    for _ in range(count):
        sock, data, took = _begin(address, path, "once")
        with sock:
            wait_for(sock, data, END, 1)
        times.append(took)
    return times


def _cpu_of_starts(address: Address, path: str, pid: int, count: int) -> float:
    """Milliseconds of CPU per stream that has its first token and has not ended."""
    with contextlib.ExitStack() as stack:
        for _ in range(FIRST):
            stack.enter_context(_begin(address, path, "held")[0])
        time.sleep(AFTERWARDS)
        before = cpu_seconds(tree(pid))
        for _ in range(count):
            stack.enter_context(_begin(address, path, "held")[0])
        time.sleep(AFTERWARDS)
        return (cpu_seconds(tree(pid)) - before) / count * 1000
