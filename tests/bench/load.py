"""What a relayed token costs, and how late it is: Halt, the tutorial's relay, bare sockets."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from tests.bench.processes import PORT_WITHIN, Child, Halt, Storeless, tree
from tests.bench.readers import RACE_WITHIN, READY_WITHIN, TOGETHER, Job, Way
from tests.bench.sizes import Sizes
from tests.bench.table import Row, at_least, at_most, median, number
from tests.bench.wire import Address

RATE = 33  # tokens a second and stream
PACED = f"paced?rate={RATE}"

System = tuple[str, Way, str]  # what is started, how it is read, and under which path

SYSTEMS: dict[str, System] = {
    "Halt, JSON": ("halt", "json", "/chat/stream"),
    "FastAPI relay": ("fastapi", "json", "/chat/stream"),
    "Halt, page": ("halt", "page", ""),
    "Halt, WebSocket": ("halt", "ws", "/ws"),
    f"Halt, WebSocket, {TOGETHER} streams each": ("halt", "ws together", "/ws"),
    "bare sockets": ("bare", "bare", "/v1/chat/completions"),
}


@contextlib.contextmanager
def source() -> Iterator[tuple[Child, str]]:
    """The upstream, and its address up to and with /v1."""
    with Child("tests.bench.source") as child:
        yield child, f"http://127.0.0.1:{child.says(PORT_WITHIN)['port']}/v1"


@contextlib.contextmanager
def system(kind: str, upstream: str, streams: int) -> Iterator[tuple[Address, list[int]]]:
    """A server to be measured: its address and its processes."""
    if kind in ("halt", "storeless"):
        server = Halt if kind == "halt" else Storeless
        # The reader answers no pings: none are to come while it measures.
        with server(
            upstream, HALT_MAX_STREAMS=streams, HALT_MODEL=PACED, HALT_HEARTBEAT=120
        ) as halt:
            yield halt.address, tree(halt.master)
        return
    with Child("tests.bench.relays", kind, upstream) as child:
        yield ("127.0.0.1", child.says(PORT_WITHIN)["port"]), [child.pid]


def read(job: Job) -> Child:
    """Start a reader."""
    return Child("tests.bench.readers", json.dumps(asdict(job)))


def steady(measured: System, sizes: Sizes) -> dict[str, Any]:
    """One window of one system."""
    kind, way, path = measured
    with (
        source() as (upstream, url),
        system(kind, url, sizes.load_streams) as (address, pids),
        read(
            Job(
                kind="steady",
                way=way,
                path=path,
                address=address,
                streams=sizes.load_streams,
                model=PACED,
                settle=sizes.load_settle,
                seconds=sizes.load_seconds,
                watched={"server": pids, "source": [upstream.pid]},
            )
        ) as reader,
    ):
        reader.says(READY_WITHIN + PORT_WITHIN)
        facts: dict[str, Any] = reader.says(sizes.load_settle + sizes.load_seconds + 20)
    return facts


def relay(sizes: Sizes) -> Iterator[Row]:
    """CPU a token and latency, each system in turn, the whole round repeated."""
    windows: dict[str, list[dict[str, Any]]] = {name: [] for name in SYSTEMS}
    for _ in range(sizes.load_rounds):
        for name, measured in SYSTEMS.items():
            windows[name].append(steady(measured, sizes))
    cost = {
        name: median(w["cpu"]["server"] / w["tokens"] * 1e6 for w in each)
        for name, each in windows.items()
    }
    note = (
        f"{sizes.load_streams} streams x {RATE} tokens/s for {sizes.load_seconds:g} s, median of "
        f"{sizes.load_rounds}; user and system time of all the server's processes, network included"
    )
    relay_cost, bare_cost = cost["FastAPI relay"], cost["bare sockets"]
    for figure, name, target, further in (
        ("CPU a token, JSON stream", "Halt, JSON", 0.40, 0.20),
        ("CPU a token, page's HTML stream", "Halt, page", 0.70, 0.35),
        ("CPU a token, WebSocket, a stream each", "Halt, WebSocket", 0.50, 0.25),
        (
            f"CPU a token, WebSocket, {TOGETHER} streams each",
            f"Halt, WebSocket, {TOGETHER} streams each",
            0.50,
            0.25,
        ),
    ):
        yield at_most(
            f"{figure}: Halt over the FastAPI relay (JSON)",
            cost[name] / relay_cost,
            target,
            further,
            measured=f"{cost[name] / relay_cost:.2f} ({cost[name]:.0f} µs / {relay_cost:.0f} µs; "
            f"bare sockets {bare_cost:.0f} µs)",
            note=note,
        )
    for name, each in windows.items():
        p50, p99 = (median(w[p] for w in each) for p in ("p50", "p99"))
        figure = f"Relay latency a token, p50 / p99: {name}"
        shown = f"{number(p50)} / {number(p99)} ms"
        busy = _load(each)
        if not name.startswith("Halt"):
            yield Row(figure, "", "", f"{shown}; {busy}", None)
            continue
        yield Row(
            figure,
            "≤ 5 / 40 ms",
            "≤ 1 / 10 ms",
            f"{shown}; {busy}",
            p50 <= 5 and p99 <= 40,
            p50 <= 1 and p99 <= 10,
            note="a token's way from the upstream's send to the reader's receive; in brackets the "
            "processor time of the window, 100 % is one core",
        )


def _load(windows: list[dict[str, Any]]) -> str:
    """Who used the processor, and a warning where nothing was left of it."""

    def share(of: float, window: dict[str, Any]) -> float:
        return 100 * of / float(window["seconds"])

    parts = {
        name: median(share(w["cpu"][name], w) for w in windows)
        for name in ("server", "source", "reader")
    }
    machine = median(share(w["machine"], w) for w in windows)
    rate = median(w["tokens"] / w["seconds"] for w in windows)
    text = ", ".join(f"{name} {value:.0f} %" for name, value in parts.items())
    text = f"{rate:,.0f} tokens/s ({text}, machine {machine:.0f} %)"
    if machine > 190:
        text += " **saturated**"
    if machine - sum(parts.values()) > 30:
        text += " **other programs were running**"
    return text


def race_once(kind: str, streams: int, tokens: int) -> dict[str, Any]:
    """All streams at once, as fast as they go, every token checked."""
    with source() as (_, url), system(kind, url, streams) as (address, _):
        job = Job(
            kind="race",
            way="json",
            path="/chat/stream",
            address=address,
            streams=streams,
            model=f"numbered?n={tokens}&gate={streams}",
            tokens=tokens,
        )
        with read(job) as reader:
            facts: dict[str, Any] = reader.says(RACE_WITHIN + 30)
    return facts


def race(sizes: Sizes) -> Iterator[Row]:
    """Throughput of one process with many streams, nothing lost, nothing out of order."""
    runs: dict[str, list[dict[str, Any]]] = {"halt": [], "fastapi": []}
    for _ in range(sizes.race_rounds):
        for kind, tokens in (("halt", sizes.race_tokens), ("fastapi", sizes.race_tokens_relay)):
            runs[kind].append(race_once(kind, sizes.race_streams, tokens))
    speed = {kind: median(r["tokens"] / r["seconds"] for r in each) for kind, each in runs.items()}
    ratio = speed["halt"] / speed["fastapi"]
    yield at_least(
        f"Tokens/s, {sizes.race_streams} streams at once in one process: Halt over FastAPI relay",
        ratio,
        1.5,
        3,
        f"{ratio:.1f} ({speed['halt']:,.0f} / {speed['fastapi']:,.0f})",
        note=f"the upstream sends as fast as it is read: {sizes.race_tokens} tokens a stream to "
        f"Halt, {sizes.race_tokens_relay} to the relay",
    )
    faults = sum(run["faults"] for run in runs["halt"])
    lost = sum(sizes.race_streams * sizes.race_tokens - run["tokens"] for run in runs["halt"])
    whole = all(run["whole"] == sizes.race_streams for run in runs["halt"])
    sound = faults == 0 and lost == 0 and whole
    yield Row(
        f"Tokens lost or out of order at {sizes.race_streams} streams",
        "0",
        "0",
        f"{lost} lost, {faults} out of order",
        sound,
        sound,
    )
