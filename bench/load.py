"""Servers under load (Halt, a tutorial relay, bare threads), and the throughput of one process."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from bench.processes import PORT_WITHIN, Child, HaltProcess, StorelessHaltProcess
from bench.readers import RACE_WITHIN, READY_WITHIN, WHOLE_WITHIN, Job, Way
from bench.sizes import Sizes
from bench.table import Row, at_least, median, required
from tests.support.raw_http import Address

RATE = 33  # tokens a second and stream
PACED = f"paced?rate={RATE}"
SATURATED = 95  # percent of a core, for a process that uses one at most
KEPT_UP = 0.97  # share of the offered tokens
PLACES = 200  # the least HALT_MAX_STREAMS; the default

System = tuple[str, Way, str]  # the server, the way of reading it, and its path

HALT: System = ("halt", "json", "/chat/stream")
STORELESS: System = ("storeless", "json", "/chat/stream")
PAGE: System = ("halt", "page", "")
FASTAPI: System = ("fastapi", "json", "/chat/stream")
BARE: System = ("bare", "bare", "/v1/chat/completions")


@contextlib.contextmanager
def source() -> Iterator[tuple[Child, str]]:
    """The upstream process, and its base URL with /v1."""
    with Child("bench.source") as child:
        yield child, f"http://127.0.0.1:{child.read_json(PORT_WITHIN)['port']}/v1"


@contextlib.contextmanager
def system(kind: str, upstream: str, streams: int) -> Iterator[tuple[Address, int]]:
    """Start a server to be measured; yields its address and the ID of its first process."""
    if kind in ("halt", "storeless"):
        server = HaltProcess if kind == "halt" else StorelessHaltProcess
        # The reader does not answer pings, so none must come while it measures.
        places = max(PLACES, streams)
        with server(
            upstream, HALT_MAX_STREAMS=places, HALT_MODEL=PACED, HALT_HEARTBEAT=120
        ) as halt:
            yield halt.address, halt.master
        return
    with Child("bench.relays", kind, upstream) as child:
        yield ("127.0.0.1", child.read_json(PORT_WITHIN)["port"]), child.pid


def read(job: Job) -> Child:
    """Start a reader process."""
    return Child("bench.readers", json.dumps(asdict(job)))


@contextlib.contextmanager
def steady_reader(
    measured: System, address: Address, watched: dict[str, int], model: str, sizes: Sizes
) -> Iterator[tuple[Child, dict[str, Any]]]:
    """Measure one window of a running server; yields the reader, which reads on, and figures."""
    _, way, path = measured
    job = Job(
        kind="steady",
        way=way,
        path=path,
        address=address,
        streams=sizes.load_streams,
        model=model,
        settle=sizes.load_settle,
        seconds=sizes.load_seconds,
        watched=watched,
    )
    with read(job) as reader:
        reader.read_json(READY_WITHIN + PORT_WITHIN)
        yield reader, reader.read_json(sizes.load_settle + sizes.load_seconds + 20)


def steady(measured: System, sizes: Sizes) -> dict[str, Any]:
    """Measure one window of long streams, in a new server."""
    with (
        source() as (upstream, url),
        system(measured[0], url, sizes.load_streams) as (address, pid),
    ):
        watched = {"server": pid, "source": upstream.pid}
        with steady_reader(measured, address, watched, PACED, sizes) as (_, facts):
            return facts


def whole(
    measured: System,
    address: Address,
    watched: dict[str, int],
    model: str,
    streams: int,
    tokens: int,
) -> dict[str, Any]:
    """Read `streams` streams of `tokens` tokens, all started at once, to their ends."""
    _, way, path = measured
    job = Job(
        kind="whole",
        way=way,
        path=path,
        address=address,
        streams=streams,
        model=f"{model}&n={tokens}",
        tokens=tokens,
        watched=watched,
    )
    with read(job) as reader:
        facts: dict[str, Any] = reader.read_json(WHOLE_WITHIN + PORT_WITHIN)
    return facts


def per_token(facts: dict[str, Any]) -> float:
    """Microseconds of server CPU time per token."""
    return float(facts["cpu"]["server"]) / int(facts["tokens"]) * 1e6


class Shares(NamedTuple):
    """Percent of a core used by each process, and tokens a second; medians of windows."""

    parts: dict[str, float]
    machine: float
    rate: float


def shares(windows: Sequence[dict[str, Any]]) -> Shares:
    """The shares of these windows."""

    def share(seconds: float, window: dict[str, Any]) -> float:
        return 100 * seconds / float(window["watched"])

    names = ("server", "source", "reader")
    return Shares(
        {name: median(share(w["cpu"][name], w) for w in windows) for name in names},
        median(share(w["machine"], w) for w in windows),
        median(w["tokens"] / w["seconds"] for w in windows),
    )


def warnings(windows: Sequence[dict[str, Any]], offered: float = 0.0) -> list[str]:
    """Reasons to doubt a figure; `offered`: the expected tokens a second."""
    parts, machine, rate = shares(windows)
    limits = [name for name in ("source", "reader") if parts[name] > SATURATED]
    out = [f"the generator was the limit: {' and '.join(limits)}"] if limits else []
    if rate < KEPT_UP * offered:
        out.append(f"fell behind: {rate:,.0f} of {offered:,.0f} tokens/s")
    if machine > 190:
        out.append("all cores in use")
    if machine - sum(parts.values()) > 30:
        out.append("other programs were running")
    return out


def busy(windows: Sequence[dict[str, Any]], offered: float = 0.0) -> str:
    """A text with tokens a second, CPU use, and the warnings."""
    parts, machine, rate = shares(windows)
    text = ", ".join(f"{name} {value:.0f} %" for name, value in parts.items())
    text = f"{rate:,.0f} tokens/s ({text}, machine {machine:.0f} %)"
    return " ".join((text, *(f"**{warning}**" for warning in warnings(windows, offered))))


def race_once(kind: str, streams: int, tokens: int) -> dict[str, Any]:
    """Read all streams at once, as fast as possible, and check every token."""
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
            facts: dict[str, Any] = reader.read_json(RACE_WITHIN + 30)
    return facts


def race(sizes: Sizes) -> Iterator[Row]:
    """Rows about the throughput of one process with many streams, and about lost tokens."""
    runs: dict[str, list[dict[str, Any]]] = {"halt": [], "fastapi": []}
    for _ in range(sizes.race_rounds):
        for kind, tokens in (("halt", sizes.race_tokens), ("fastapi", sizes.race_tokens_relay)):
            runs[kind].append(race_once(kind, sizes.race_streams, tokens))
    speed = {
        kind: median(run["tokens"] / run["seconds"] for run in kind_runs)
        for kind, kind_runs in runs.items()
    }
    ratio = speed["halt"] / speed["fastapi"]
    yield at_least(
        f"Tokens/s, {sizes.race_streams} streams at once in one process: Halt / FastAPI relay",
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
    yield required(
        f"Tokens lost or out of order at {sizes.race_streams} streams",
        "0",
        f"{lost} lost, {faults} out of order",
        sound,
    )
