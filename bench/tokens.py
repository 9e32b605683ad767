"""CPU and latency per relayed token: Halt, the tutorial relay, and bare threads."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

from bench.load import (
    BARE,
    FASTAPI,
    HALT,
    PACED,
    PAGE,
    RATE,
    STORELESS,
    System,
    busy,
    per_token,
    source,
    steady,
    steady_reader,
    system,
    warnings,
    whole,
)
from bench.sizes import Sizes
from bench.table import Row, at_most, median, number, without_target
from tests.support.process_facts import kernel_events, tree

SYSTEMS: dict[str, System] = {
    "Halt": HALT,
    "Halt, page": PAGE,
    "FastAPI relay": FASTAPI,
    "bare threads": BARE,
}
BEATS = {"spread": PACED, "in step": f"{PACED}&step=1"}
COUNTED = 1.0  # seconds for which `perf` counts
WARM = 5  # warm-up streams, with as many tokens each


class Measurements(NamedTuple):
    """The measurements of one system with one kind of timing."""

    short: dict[str, Any]  # streams from start to end
    long: dict[str, Any]  # a window in the middle of long streams
    events: dict[str, float]  # per token, of long streams


def window(measured: System, model: str, sizes: Sizes) -> Measurements:
    """Measure both kinds of streams on a new server."""
    kind, streams = measured[0], sizes.load_streams
    with source() as (upstream, url), system(kind, url, streams) as (address, pid):
        watched = {"server": pid, "source": upstream.pid}
        whole(measured, address, watched, PACED, WARM, WARM)
        short = whole(measured, address, watched, model, streams, sizes.stream_tokens)
        if short["whole"] != streams:
            raise RuntimeError(f"{short['whole']} of {streams} streams came to their end whole")
        with steady_reader(measured, address, watched, model, sizes) as (_, long):
            counts = kernel_events(tree(pid), COUNTED)
    rate = long["tokens"] / long["seconds"]
    return Measurements(short, long, {name: n / COUNTED / rate for name, n in counts.items()})


def tokens(sizes: Sizes) -> Iterator[Row]:
    """Rows about CPU per token, latencies, and kernel events."""
    windows_by_key: dict[tuple[str, str], list[Measurements]] = {}
    for _, (beat, model), (name, measured) in product(
        range(sizes.load_rounds), BEATS.items(), SYSTEMS.items()
    ):
        windows_by_key.setdefault((name, beat), []).append(window(measured, model, sizes))
    short = {
        key: median(per_token(w.short) for w in windows) for key, windows in windows_by_key.items()
    }
    long = {
        key: median(per_token(w.long) for w in windows) for key, windows in windows_by_key.items()
    }
    long_windows = {key: [w.long for w in windows] for key, windows in windows_by_key.items()}
    doubts = {key: warnings(windows, _offered(sizes)) for key, windows in long_windows.items()}
    yield from _costs(short, long, doubts, sizes)
    yield from _latencies(long_windows, sizes)
    yield from _kernel(
        {key: [w.events for w in windows] for key, windows in windows_by_key.items()}
    )


Costs = dict[tuple[str, str], float]


def _offered(sizes: Sizes) -> float:
    return sizes.load_streams * RATE


def _costs(
    short: Costs, long: Costs, doubts: dict[tuple[str, str], list[str]], sizes: Sizes
) -> Iterator[Row]:
    rounds = f"median of {sizes.load_rounds}" if sizes.load_rounds > 1 else "once"
    shared = (
        "user and system time of all the server's processes (the clock that getrusage reads), "
        "network included; in step: the tokens of all streams fall into the same millisecond"
    )
    notes = {
        "starts included": f"{sizes.load_streams} streams x {RATE} tokens/s, {sizes.stream_tokens} "
        f"tokens each, from before the first request until after the last end, {rounds}; {shared}",
        "long streams": f"{sizes.load_streams} streams x {RATE} tokens/s that do not end, "
        f"{sizes.load_seconds:g} s in the middle of them, {rounds}; {shared}",
    }
    for name, figure, over, kind, target, goal in (
        ("Halt", "JSON", "FastAPI relay", "starts included", 0.27, 0.20),
        ("Halt", "JSON", "FastAPI relay", "long streams", 0.22, 0.16),
        ("Halt", "JSON", "bare threads", "long streams", 1.8, 1.3),
        ("Halt, page", "page's HTML", "FastAPI relay", "long streams", 0.40, 0.28),
    ):
        cost = short if kind == "starts included" else long
        for beat in BEATS:
            own, other, bare = cost[name, beat], cost[over, beat], cost["bare threads", beat]
            beside = f"; bare threads {bare:.0f} µs" if other != bare else ""
            doubt = "".join(
                f" **{label}: {warning}**"
                for label in (name, over)
                for warning in doubts[label, beat]
            )
            yield at_most(
                f"CPU per token, {figure}, {kind}, {beat}: Halt / {over}",
                own / other,
                target,
                goal,
                measured=f"{own / other:.2f} ({own:.0f} µs / {other:.0f} µs{beside}){doubt}",
                note=notes[kind],
            )
    for beat in BEATS:
        page, other = short["Halt, page", beat], short["FastAPI relay", beat]
        yield without_target(
            f"CPU per token, page's HTML, starts included, {beat}: Halt / FastAPI relay",
            f"{page / other:.2f} ({page:.0f} µs / {other:.0f} µs)",
            notes["starts included"],
        )
    for beat in BEATS:
        page, plain = long["Halt, page", beat], long["Halt", beat]
        yield without_target(
            f"CPU per token, page's HTML minus JSON, long streams, {beat}",
            f"{page - plain:.0f} µs ({page:.0f} µs - {plain:.0f} µs)",
            notes["long streams"],
        )


def _latencies(
    windows_by_key: dict[tuple[str, str], list[dict[str, Any]]], sizes: Sizes
) -> Iterator[Row]:
    note = (
        f"from the upstream's send of a token to the reader's receive, {sizes.load_streams} long "
        f"streams x {RATE} tokens/s; in brackets the CPU time of the window, 100 % is one core. "
        "Tokens in step wait for one another: compare them with the bare threads only"
    )
    for (name, beat), windows in sorted(
        windows_by_key.items(), key=lambda item: item[0][1] != "spread"
    ):
        p50, p99 = (median(w[p] for w in windows) for p in ("p50", "p99"))
        judged = (name, beat) == ("Halt", "spread")
        yield Row(
            f"Relay latency per token, {beat}, p50 / p99: {name}",
            "≤ 0.6 / 8 ms" if judged else "",
            "≤ 0.4 / 4 ms" if judged else "",
            f"{number(p50)} / {number(p99)} ms; {busy(windows, _offered(sizes))}",
            p50 <= 0.6 and p99 <= 8 if judged else None,
            p50 <= 0.4 and p99 <= 4,
            note=note,
        )


def _kernel(events_by_key: dict[tuple[str, str], list[dict[str, float]]]) -> Iterator[Row]:
    for (name, beat), windows in events_by_key.items():
        counts = [events for events in windows if events]
        measured = ", ".join(
            f"{median(events[event] for events in counts):.2f} {event}"
            for event in (counts[0] if counts else ())
        )
        yield without_target(
            f"Kernel events per token, {beat}: {name}",
            measured or "not counted: perf is missing or not permitted",
            f"`perf stat` of all the server's threads for {COUNTED:g} s, long streams",
        )


def saving(sizes: Sizes) -> Iterator[Row]:
    """A row about the CPU per token with saving over that without, measured alternately."""
    cost: dict[str, list[float]] = {"with": [], "without": []}
    for _ in range(sizes.store_rounds):
        cost["with"].append(per_token(steady(HALT, sizes)))
        cost["without"].append(per_token(steady(STORELESS, sizes)))
    stored, alone = map(median, cost.values())
    yield at_most(
        "CPU per token, JSON, long streams: with saving / without",
        stored / alone,
        1.15,
        1.05,
        measured=f"{stored / alone:.2f} ({stored:.0f} µs / {alone:.0f} µs)",
        note=f"{sizes.load_streams} streams x {RATE} tokens/s for {sizes.load_seconds:g} s, spread, "
        f"median of {sizes.store_rounds} alternating rounds; all threads of the server's processes, "
        "with the store writer",
    )
