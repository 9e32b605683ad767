"""The store: text lost by a kill, and the speed of a store with a million messages."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sqlite3
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from urllib.parse import urlencode

from bench import token_counter
from bench.load import source
from bench.processes import Child, HaltProcess, fake_in_process, fake_upstream
from bench.sizes import Sizes
from bench.table import Row, at_most, median, p50_p99, percentile
from tests.support.halt_server import new_id
from tests.support.http_client import Client, ServerEvent
from tests.support.process_facts import tree
from tests.support.waiting import SERVER_TIMEOUT, wait_until

FORM = {"Content-Type": "application/x-www-form-urlencoded", "HX-Request": "true"}
IN_A_CONVERSATION = 100  # messages
WORDS_IN_A_MESSAGE = 40
VOCABULARY = 20_000  # words; the nth is used 1 / n times as often as the first
RARE_EVERY = 50_000  # messages
FLOW = "count?n=1000000&gap_ms=2"
LOST_STREAMS, LOST_RATE = 190, 20  # streams, and tokens a second of each


def store(sizes: Sizes) -> Iterator[Row]:
    """All rows about the store."""
    yield lost(sizes)
    yield from lookups(sizes)


# --- loss by a kill -------------------------------------------------------------------------------


def lost(sizes: Sizes) -> Row:
    """A row about `kill -9` of the worker: the age of the oldest text that was not saved."""
    chance = random.Random(4)
    ages: list[float] = []
    with (
        fake_in_process() as fake,
        tempfile.TemporaryDirectory(prefix="halt-bench-") as folder,
        HaltProcess(fake.base_url, HALT_DATA=folder) as halt,
    ):
        client = Client(*halt.address)
        for _ in range(sizes.kills):
            client.get("/healthz")  # wait for the worker
            reader = Reading(client)
            reader.wait(0.3 + chance.random() / 2)
            (worker,) = tree(halt.master)[1:]
            os.kill(worker, signal.SIGKILL)
            killed_at = time.monotonic()
            reader.thread.join()
            saved = _saved(Path(folder), reader.stream_id)
            came = [
                at
                for at, message in reader.events_by_time
                if message.id and int(message.id) > saved
            ]
            ages.append((killed_at - min(came, default=killed_at)) * 1000)
            wait_until(partial(_replaced, halt.master, worker), SERVER_TIMEOUT)
    return at_most(
        f"Text lost by kill -9 of a worker, p50 / worst of {sizes.kills}",
        max(ages),
        250,
        150,
        " ms",
        f"{median(ages):.0f} / {max(ages):.0f} ms",
        note="the age of the oldest event that its reader had got and that was not saved",
    )


def lost_of_many_streams(sizes: Sizes) -> Iterator[Row]:
    """A row about `kill -9` with many streams: text that readers had and the store does not have.

    In milliseconds: the number of missing tokens over their rate.
    """
    chance = random.Random(4)
    missing: list[float] = []
    gap = 1000 / LOST_RATE
    with source() as (_, url):
        for _ in range(sizes.many_stream_kills):
            with (
                tempfile.TemporaryDirectory(prefix="halt-bench-") as folder,
                HaltProcess(url, HALT_DATA=folder) as halt,
            ):
                ids = [new_id() for _ in range(LOST_STREAMS)]
                model = f"paced?rate={LOST_RATE}"
                job = {"address": halt.address, "model": model, "ids": ids}
                with Child("bench.token_counter", json.dumps(job)) as reader:
                    reader.read_json(token_counter.WITHIN)
                    time.sleep(2 + chance.random())
                    (worker,) = tree(halt.master)[1:]
                    os.kill(worker, signal.SIGKILL)
                    counts: dict[str, int] = reader.read_json(token_counter.WITHIN)
                saved = _tokens_saved(Path(folder))
                missing += [
                    gap * max(0, count - saved.get(stream_id, 0))
                    for stream_id, count in counts.items()
                ]
    p50, p99, worst = median(missing), percentile(missing, 99), max(missing)
    yield Row(
        f"Text lost by kill -9 of a worker with {LOST_STREAMS} streams, p50 / p99 / worst",
        "≤ 100 / 200 / 250 ms",
        "",
        f"{p50:.0f} / {p99:.0f} / {worst:.0f} ms",
        p50 <= 100 and p99 <= 200 and worst <= 250,
        note=f"{LOST_RATE} tokens/s each, {sizes.many_stream_kills} kills; tokens that the reader received "
        "and the store lacks, over their rate",
    )


def _tokens_saved(folder: Path) -> dict[str, int]:
    """Tokens of each stream in the store, after the generations of a dead worker were ended."""
    with contextlib.closing(sqlite3.connect(folder / "halt.db", timeout=20)) as database:
        running = "SELECT count(*) FROM generations WHERE state = 'running'"
        wait_until(lambda: database.execute(running).fetchone() == (0,), SERVER_TIMEOUT)
        rows = database.execute("SELECT id, events FROM generations").fetchall()
    return {stream_id: zlib.decompress(events).count(b"@") for stream_id, events in rows}


class Reading:
    """A stream, and a thread that records the times of its events."""

    def __init__(self, client: Client) -> None:
        self.events = client.chat(FLOW)
        self.stream_id = self.events.id
        self.events_by_time: list[tuple[float, ServerEvent]] = []
        self._over = threading.Event()
        self.thread = threading.Thread(target=self._read)
        self.thread.start()

    def wait(self, seconds: float) -> None:
        """Wait while the stream flows."""
        assert not self._over.wait(seconds), self.events_by_time[-2:]

    def _read(self) -> None:
        with contextlib.suppress(Exception), self.events as events:  # the server is killed
            for message in events:
                self.events_by_time.append((time.monotonic(), message))
        self._over.set()


def _replaced(master: int, worker: int) -> bool:
    workers = tree(master)[1:]
    return bool(workers) and worker not in workers


def _saved(folder: Path, stream_id: str) -> int:
    """The number of the last event of a stream in the database."""
    with contextlib.closing(sqlite3.connect(folder / "halt.db")) as database:
        (last,) = database.execute(
            "SELECT coalesce(max(last), 0) FROM ("
            " SELECT max(first_seq + json_array_length(payload) - 1) AS last FROM chunks"
            " WHERE generation_id = :id"
            " UNION SELECT last_seq - 100001 FROM generations"
            " WHERE id = :id AND state = 'interrupted')",
            {"id": stream_id},
        ).fetchone()
    return int(last)


# --- a million messages ---------------------------------------------------------------------------


def lookups(sizes: Sizes) -> Iterator[Row]:
    """Rows about list, conversation and search in a store with many messages of one session."""
    with (
        fake_upstream() as upstream,
        tempfile.TemporaryDirectory(prefix="halt-bench-") as folder,
        HaltProcess(upstream, HALT_DATA=folder) as halt,
    ):
        client = Client(*halt.address)
        client.get("/")
        form = urlencode({"prompt": "/fake count?n=2", "id": new_id()}).encode()
        client.request("POST", f"/c/{new_id()}/messages", form, FORM)
        long = fill(Path(folder) / "halt.db", sizes.messages, sizes.long_conversation)
        note = (
            f"{sizes.messages:,} messages of {WORDS_IN_A_MESSAGE} words in conversations of "
            f"{IN_A_CONVERSATION}, and one of {sizes.long_conversation:,}, all of one session; "
            f"{sizes.lookups} requests, each on its own connection, with rendering"
        )
        for figure, path in (
            ("Open the list of conversations", "/conversations"),
            (f"Open a conversation of {sizes.long_conversation:,} messages", f"/c/{long}"),
            ("Open an empty page with the list", "/"),
            ("Search, a rare word", "/conversations/search?q=quagga"),
            ("Search, a frequent word", "/conversations/search?q=w0"),
            ("Search, a frequent prefix", "/conversations/search?q=w"),
            ("Search, three words", "/conversations/search?q=w1+w2+w3"),
            ("Search, a rare and a frequent word", "/conversations/search?q=quagga+w0"),
            ("Search, an unknown word", "/conversations/search?q=okapi"),
        ):
            times = [_milliseconds(partial(client.get, path)) for _ in range(sizes.lookups + 2)][2:]
            yield at_most(
                f"{figure}, p50 / p99",
                percentile(times, 99),
                100,
                30,
                " ms",
                f"{p50_p99(times)} ms",
                note=note,
            )


def _milliseconds(get: Callable[[], object]) -> float:
    began = time.perf_counter()
    answer = get()
    took = (time.perf_counter() - began) * 1000
    assert getattr(answer, "status", 0) == 200, answer
    return took


def fill(path: Path, count: int, long: int) -> str:
    """Insert `count` messages for the only session; return the ID of the long conversation."""
    chance = random.Random(4)
    words = [f"w{n}" for n in range(VOCABULARY)]
    weights = [1 / (n + 1) for n in range(VOCABULARY)]
    chosen_words = chance.choices(words, weights, k=2_000_000)

    def text(number: int) -> str:
        start = chance.randrange(len(chosen_words) - WORDS_IN_A_MESSAGE)
        content = " ".join(chosen_words[start : start + WORDS_IN_A_MESSAGE])
        return f"{content} quagga" if number % RARE_EVERY == 0 else content

    with contextlib.closing(sqlite3.connect(path, isolation_level=None, timeout=60)) as database:
        ((owner,),) = database.execute("SELECT DISTINCT owner FROM conversations").fetchall()
        (number,) = database.execute("SELECT max(id) FROM messages").fetchone()
        now = time.time()
        names = [f"bench-{n:08}" for n in range((count - long) // IN_A_CONVERSATION)]
        sizes = {**dict.fromkeys(names, IN_A_CONVERSATION), "bench-long": long}

        def conversations() -> Iterator[tuple[object, ...]]:
            first = number + 1
            for n, (name, size) in enumerate(sizes.items()):
                at = now - len(sizes) + n
                yield (name, owner, owner, f"Conversation {n}", "words", "", first, at, at)
                first += size

        def messages() -> Iterator[tuple[object, ...]]:
            at = number
            for name, size in sizes.items():
                for depth in range(size):
                    at += 1
                    above = at - 1 if depth else None
                    below = at + 1 if depth < size - 1 else None
                    role = "assistant" if depth % 2 else "user"
                    stream = f"stream-{at}" if depth % 2 else ""
                    yield (at, name, above, below, depth, role, stream, now, text(at))

        database.execute("PRAGMA synchronous=OFF")
        _set_index_buffer(database, 1 << 27)
        database.execute("BEGIN IMMEDIATE")
        database.executemany(
            "INSERT INTO conversations (id, owner, indexed_as, title, titled_by, model, first_id,"
            " created_at, updated_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            conversations(),
        )
        database.executemany(
            "INSERT INTO messages (id, conversation_id, parent_id, chosen_id, depth, role,"
            " stream_id, created_at, content, asked_model, model, state, picked)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, '', 'm-1', 'done', 0)",
            messages(),
        )
        database.execute("COMMIT")
        _set_index_buffer(database, 1 << 20)
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return "bench-long"


def _set_index_buffer(database: sqlite3.Connection, size: int) -> None:
    """Set how many bytes of the full-text index are collected before a write."""
    database.execute(
        "INSERT INTO messages_words (messages_words, rank) VALUES ('hashsize', ?)", (size,)
    )
