"""Many streams in one process; streams during page loads; threads of open runs without readers."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

from bench.load import BARE, HALT, PACED, RATE, System, busy, source, steady_reader, whole
from bench.load import system as start_system
from bench.phases import wait_for
from bench.processes import PORT_WITHIN, Child, HaltProcess
from bench.sizes import Sizes
from bench.table import Row, at_least, at_most, number, p50_p99, without_target
from tests.support.process_facts import pss, status, tree
from tests.support.raw_http import chat, connect, fetch, request

CLIENTS = 2
LEFT_FOR = 2.0  # seconds after the last reader has left
OPEN_RUNS = 200

#: streams -> (tokens/s, p99 in ms, memory in MB): target and goal of each
GOALS = {
    300: ((7_500, 8_200), (100, 30), None),
    1_000: ((9_000, 13_000), (1_000, 400), (250, 190)),
}


class Memory:
    """The peak memory of a server within a `with` block, sampled twice a second, in MB."""

    def __init__(self, pid: int) -> None:
        self.peak = 0.0
        self._pid = pid
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory", daemon=True)

    def _watch(self) -> None:
        while not self._over.wait(0.5):
            with contextlib.suppress(OSError):  # a process has ended in between
                self.peak = max(self.peak, pss(tree(self._pid)))

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def many_streams(sizes: Sizes) -> Iterator[Row]:
    """Rows for each number of streams: Halt and, for comparison, bare threads."""
    for streams in sizes.many_streams:
        yield from _crowd(streams, sizes.stream_tokens, "Halt", HALT)
        yield from _crowd(streams, sizes.stream_tokens, "bare threads", BARE)


def _crowd(streams: int, tokens: int, name: str, measured: System) -> Iterator[Row]:
    with (
        source() as (upstream, url),
        start_system(measured[0], url, streams) as (address, pid),
        Memory(pid) as memory,
    ):
        watched = {"server": pid, "source": upstream.pid}
        facts = whole(measured, address, watched, PACED, streams, tokens)
    speed = facts["tokens"] / facts["seconds"]
    note = (
        f"{tokens} tokens a stream at {RATE}/s, all streams requested at once, spread; tokens/s from "
        "before the first request until the last end; the generator runs on the same cores; memory "
        "is the highest sample (PSS of all processes). If a stream is incomplete, the target is missed"
    )
    figure = f"{streams:,} streams x {RATE}/s in one process: {name}"
    ends = f"{facts['whole']} of {streams} whole; {busy([facts])}"
    latency_text = f"{number(facts['p50'])} / {number(facts['p99'])} ms"
    (target, goal), latency_goals, memory_goals = GOALS[streams]
    if name != "Halt":
        measured_as = f"{speed:,.0f} tokens/s, {latency_text}, {memory.peak:.0f} MB; {ends}"
        yield without_target(f"{figure}, tokens/s, p50 / p99, memory", measured_as, note)
        return
    row = at_least(f"{figure}, tokens/s", speed, target, goal, f"{speed:,.0f} ({ends})", note=note)
    yield row if facts["whole"] == streams else replace(row, met=False, goal_met=False)
    yield at_most(
        f"{figure}, latency p50 / p99", facts["p99"], *latency_goals, " ms", latency_text, note
    )
    if memory_goals is not None:
        yield at_most(f"{figure}, memory", memory.peak, *memory_goals, " MB", note=note)
    else:
        yield without_target(f"{figure}, memory", f"{memory.peak:.0f} MB", note)


def page_loads(sizes: Sizes) -> Iterator[Row]:
    """A row about the relay latency while clients load pages without a pause."""
    streams = sizes.load_streams
    with source() as (upstream, url), start_system("halt", url, streams) as (address, pid):
        watched = {"server": pid, "source": upstream.pid}
        with Child("bench.page_loader", *map(str, (*address, CLIENTS))) as loader:
            loader.read_json(PORT_WITHIN)
            with steady_reader(HALT, address, watched, PACED, sizes) as (_, facts):
                pages = loader.finish(PORT_WITHIN)
    p50, p99 = facts["p50"], facts["p99"]
    yield at_most(
        f"Relay latency while {CLIENTS} clients load pages without a pause, p50 / p99",
        p99,
        150,
        60,
        " ms",
        f"{number(p50)} / {number(p99)} ms; {busy([facts], streams * RATE)}; {p50_p99(pages['times'])} ms a page, "
        f"{len(pages['times']) / pages['seconds']:.0f} pages/s",
        note=f"{streams} long streams x {RATE} tokens/s, spread; alternately an empty page and a "
        "conversation of two turns, both with the list, over kept-alive connections",
    )


def no_reader(sizes: Sizes) -> Iterator[Row]:
    """A row about the threads of a server whose runs continue without readers."""
    with (
        source() as (_, url),
        HaltProcess(
            url, HALT_MAX_STREAMS=OPEN_RUNS + 50, HALT_MODEL="held", HALT_ORPHAN_GRACE=600
        ) as halt,
    ):
        fetch(halt.address, request("GET", "/healthz"))  # wait for its worker
        before = status(halt.worker, "Threads")
        for _ in range(OPEN_RUNS):
            body = chat("/chat/stream", "held", on_disconnect="continue")
            with connect(halt.address) as sock:
                sock.sendall(body)
                wait_for(sock, b"", b'"type":"content"', 1)
        time.sleep(LEFT_FOR)
        after = sum(status(pid, "Threads") for pid in tree(halt.master)[1:])
        health = json.loads(fetch(halt.address, request("GET", "/healthz")).body)
    if health["open_streams"] != OPEN_RUNS:
        raise RuntimeError(f"{health['open_streams']} of {OPEN_RUNS} runs are open")
    yield at_most(
        f"Threads with {OPEN_RUNS} open runs without readers, between tokens",
        after,
        39,
        19,
        "",
        f"{after} ({before} before)",
        note=f"{OPEN_RUNS} times POST /chat/stream with on_disconnect=continue, closed after the first "
        f"token; counted {LEFT_FOR:g} s after the last close",
    )
