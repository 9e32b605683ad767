"""Leaks after many generations, and whether the cost of a very long answer is linear."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from bench.load import source
from bench.processes import HaltProcess, fake_upstream
from bench.readers import Job, Way, numbers, open_stream
from bench.sizes import Sizes
from bench.table import Row, at_most, median, required
from tests.support.process_facts import descriptors, megabytes, status
from tests.support.raw_http import Address, chat, connect, fetch, stop

CLIENTS = 8  # concurrent
FORGOTTEN_AFTER = 3.0  # seconds; logs are kept for one, and the keeper checks four times a second
ANSWER_WITHIN = 60.0

# Threads and connections of pools may differ by the number of clients: the thread pool of short
# requests grows with concurrent ones, and each client may leave one idle upstream connection.
TOLERANCE = CLIENTS
RSS_MAX = 6.0  # MB
NOISE = 2.0  # MB; difference between the memory of two processes after the same work

WAYS: tuple[tuple[str, Way], ...] = (("JSON stream", "json"), ("page's HTML stream", "page"))


class Holdings(NamedTuple):
    """Resources held by a worker."""

    threads: int
    descriptors: int
    rss: float  # MB


def holdings(halt: HaltProcess) -> Holdings:
    return Holdings(
        status(halt.worker, "Threads"), descriptors(halt.worker), megabytes(halt.worker)
    )


def generate(address: Address, stopped: bool) -> None:
    """Run one generation to its end; stop it in the middle if `stopped`."""
    stream_id = secrets.token_urlsafe(12)
    model = "count?n=100000&rate=200" if stopped else "count?n=20"
    with connect(address) as sock:
        sock.sendall(chat("/chat/stream", model, stream_id=stream_id))
        data = b""
        stop_sent = not stopped
        while b"[DONE]" not in data:
            received = sock.recv(65536)
            if not received:
                raise ConnectionError(f"a stream broke off: {data[-300:]!r}")
            data += received
            if not stop_sent and b'"type":"content"' in data:
                stop_sent = True
                fetch(address, stop(stream_id))
    expected = b'"type":"cancelled"' if stopped else b'"type":"done"'
    if expected not in data:
        raise RuntimeError(f"a stream did not end as expected: {data[-300:]!r}")


def run_generations(address: Address, count: int) -> None:
    """Run `count` generations, every second one stopped, CLIENTS + 1 at a time."""
    faults: list[BaseException] = []

    def client(numbers: range) -> None:
        try:
            for number in numbers:
                generate(address, stopped=number % 2 == 1)
        except (OSError, RuntimeError) as fault:
            faults.append(fault)

    shares = [range(start, count, CLIENTS + 1) for start in range(CLIENTS + 1)]
    clients = [threading.Thread(target=client, args=(share,), daemon=True) for share in shares]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join(120)
    if faults or any(thread.is_alive() for thread in clients):
        raise RuntimeError(f"not all generations were completed: {faults}")


def leak(sizes: Sizes) -> Iterator[Row]:
    """A row about threads, descriptors and memory after many generations."""
    with (
        fake_upstream() as upstream,
        HaltProcess(upstream, HALT_LOG_SECONDS=1, HALT_MODEL="echo") as halt,
    ):
        run_generations(halt.address, sizes.warm_generations)
        time.sleep(FORGOTTEN_AFTER)
        before = holdings(halt)
        run_generations(halt.address, sizes.generations)
        time.sleep(FORGOTTEN_AFTER)
        after = holdings(halt)
    grown = after.rss - before.rss
    sound = (
        after.threads - before.threads <= TOLERANCE
        and after.descriptors - before.descriptors <= TOLERANCE
        and grown < RSS_MAX
    )
    yield required(
        f"No resource left after {sizes.generations:,} generations, half of them stopped",
        "yes",
        f"{'yes' if sound else 'NO'}: threads {before.threads} → {after.threads}, descriptors "
        f"{before.descriptors} → {after.descriptors}, memory {before.rss:.1f} → "
        f"{after.rss:.1f} MB",
        sound,
        note=f"after a warm-up of {sizes.warm_generations}, {CLIENTS + 1} at a time; pools may "
        f"differ by {TOLERANCE} threads or connections, memory by {RSS_MAX:g} MB",
    )


class LongAnswer(NamedTuple):
    """The cost of a very long answer."""

    seconds: float
    grown: float  # MB by which the worker's memory grew, at its peak


def answer(halt: HaltProcess, way: Way, tokens: int) -> LongAnswer:
    """Read one answer of `tokens` tokens to its end, as fast as possible."""
    before = megabytes(halt.worker)
    began = time.monotonic()
    end = b"</article>" if way == "page" else b"[DONE]"
    job = Job(
        kind="drain",
        way=way,
        path="/chat/stream",
        address=halt.address,
        streams=1,
        model=f"numbered?n={tokens}",
    )
    sock, _ = open_stream(job)
    with sock:
        sock.settimeout(ANSWER_WITHIN)
        tail = b""
        newest = -1
        while end not in tail:
            received = sock.recv(1 << 20)
            if not received:
                raise ConnectionError("the long answer broke off")
            tail = tail[-64:] + received  # a mark may be cut by the read
            token_numbers = numbers(tail)
            newest = int(token_numbers[-1]) if token_numbers else newest
    if newest != tokens - 1:
        raise RuntimeError(f"the long answer ended at token {newest!r}")
    return LongAnswer(time.monotonic() - began, megabytes(halt.worker, "VmHWM") - before)


def answer_of_new_server(url: str, way: Way, tokens: int) -> LongAnswer:
    """`answer` in a new server, so that its memory is not affected by earlier answers."""
    with HaltProcess(url, HALT_MODEL=f"numbered?n={tokens}") as halt:
        answer(halt, "json", 1000)
        return answer(halt, way, tokens)


def long(sizes: Sizes) -> Iterator[Row]:
    """Rows about time and memory of an answer against one of half the tokens."""
    with source() as (_, url):
        for name, way in WAYS:
            half, whole = [], []
            for _ in range(sizes.long_rounds):
                half.append(answer_of_new_server(url, way, sizes.long_tokens))
                whole.append(answer_of_new_server(url, way, 2 * sizes.long_tokens))
            yield from _linear(name, sizes.long_tokens, half, whole)


def _linear(
    stream: str, tokens: int, half: list[LongAnswer], whole: list[LongAnswer]
) -> Iterator[Row]:
    note = (
        f"median of {len(half)} answers at full speed, each in a new server; memory is its peak "
        f"above that at the start, and less than {NOISE:g} MB counts as {NOISE:g}"
    )
    figures: tuple[tuple[str, str, float, Callable[[LongAnswer], float]], ...] = (
        ("time", "s", 0.0, lambda answer: answer.seconds),
        ("memory", "MB", NOISE, lambda answer: answer.grown),
    )
    for name, unit, least, get in figures:
        less, more = (median(map(get, answers)) for answers in (half, whole))
        ratio = max(more, least) / max(less, least)
        yield at_most(
            f"{stream}: {name} of {2 * tokens:,} tokens over that of {tokens:,}",
            ratio,
            2.4,
            2.4,
            measured=f"{ratio:.2f} ({more:.2f} {unit} / {less:.2f} {unit})",
            note=note,
        )
