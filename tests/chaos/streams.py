"""Streams on a server that is killed, and the checks of these streams afterwards.

The text of each stream is numbered tokens, so that a reader can check its completeness.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from halt.testing.fake_openai import FakeOpenAI
from tests.support.halt_server import RECORD_TIMEOUT, ROOT, HaltServer, new_id
from tests.support.http_client import Client, EventStream, ServerEvent
from tests.support.ports import free_port
from tests.support.waiting import SERVER_TIMEOUT, wait_until

FORM = {"Content-Type": "application/x-www-form-urlencoded", "HX-Request": "true"}
GAP = 100_000  # unused numbers between the last saved event and the end of an interrupted one
TOKENS = 100_000  # of an answer that does not end by itself
ALL_TEXT = "".join(f"{n} " for n in range(TOKENS))

#: Seconds before the kill of which events may be missing: 0.25 on an idle machine (`python -m bench
#: --only store` measures it), more while many tests run at once.
LOSS_SECONDS_MAX = 1.0


# --- streams in progress --------------------------------------------------------------------------


class StreamGroup:
    """The streams of a round. `may_lose`: seconds before a kill of which text may be missing."""

    def __init__(self, may_lose: float) -> None:
        self.may_lose = may_lose
        self.changed = threading.Condition()
        self.count = 0  # tokens that all readers together received; one event may have several
        self.streams: list[Stream] = []

    def wait_tokens(self, count: int) -> None:
        """Wait until the readers have got `count` tokens."""
        with self.changed:
            assert self.changed.wait_for(lambda: self.count >= count, 60), self.count


class Stream(threading.Thread):
    """A stream and its reader, which keeps the events with their times.

    `path` is that of its conversation, "" without one.
    """

    def __init__(
        self, group: StreamGroup, client: Client, stream_id: str, path: str, model: str
    ) -> None:
        super().__init__(name=f"reader of {stream_id}", daemon=True)
        self.start_time = time.monotonic()
        self.client, self.id, self.path, self.model = client, stream_id, path, model
        self.timed_events: list[tuple[float, ServerEvent]] = []
        self._group = group
        self.may_lose = group.may_lose
        group.streams.append(self)

    @property
    def messages(self) -> list[ServerEvent]:
        return [message for _, message in self.timed_events]

    def run(self) -> None:
        with contextlib.suppress(OSError, http.client.HTTPException, AssertionError):
            if self.path:
                events = self.client.follow(self.id, 0)
            else:
                events = self.client.chat(self.model, id=self.id)
            with events:
                for message in events:
                    with self._group.changed:
                        self.timed_events.append((time.monotonic(), message))
                        self._group.count += message.data.count(" ") if message.id else 0
                        self._group.changed.notify_all()


def send_prompt(client: Client, path: str, text: str, stream_id: str) -> int:
    """Send a prompt from the page; the status."""
    form = urlencode({"prompt": text, "id": stream_id}).encode()
    return client.request("POST", f"{path}/messages", form, FORM).status


def start_streams(
    client: Client, tokens: int = TOKENS, count: int = 4, may_lose: float = LOSS_SECONDS_MAX
) -> StreamGroup:
    """Start `count` streams of `tokens` tokens for one client, every second one in a conversation."""
    group = StreamGroup(may_lose)
    for number in range(count):
        path = f"/c/{new_id()}" if number % 2 else ""
        stream = Stream(group, client, new_id(), path, f"count?n={tokens}&gap_ms=8")
        if path:
            assert send_prompt(client, path, f"/fake {stream.model}", stream.id) == 200
        stream.start()
    return group


class Database:
    """Queries of a server's database on other connections."""

    def __init__(self, folder: Path, url: str) -> None:
        engine_url = url.replace("postgresql://", "postgresql+psycopg://", 1)
        self._is_sqlite = not url
        self._engine = create_engine(
            engine_url or f"sqlite:///{folder / 'halt.db'}", poolclass=NullPool
        )

    def __call__(self, query: str, **values: object) -> list[tuple[Any, ...]]:
        """The rows of a query."""
        with self._engine.connect() as connection:
            return [tuple(row) for row in connection.execute(text(query), values)]

    def check_integrity(self) -> None:
        """Require that no page of a SQLite database is damaged."""
        if self._is_sqlite:
            assert self("PRAGMA integrity_check") == [("ok",)]

    def close(self) -> None:
        self._engine.dispose()


# --- checks ---------------------------------------------------------------------------------------


def checked_parts(messages: list[ServerEvent]) -> tuple[str, list[int], ServerEvent]:
    """The text, the event numbers and the terminal event of a whole stream.

    Requires consecutive numbers, exactly one terminal event and [DONE].
    """
    *events, last, done_message = messages
    assert done_message.data == "[DONE]"
    numbers = [int(event.id) for event in events]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)) if numbers else [])
    assert not [event for event in events if event.json.get("done")]
    assert last.json["done"] is True
    assert not numbers or int(last.id) > numbers[-1]
    return "".join(event.json["content"] for event in events), numbers, last


def saved_answer(database: Database, stream: Stream) -> tuple[str, str]:
    """State and text of the stream's answer in the database."""
    query = "SELECT state, content FROM messages WHERE stream_id = :id"
    ((state, content),) = database(query, id=stream.id)
    return str(state), str(content)


def check_nothing_runs(database: Database) -> None:
    """Require that no message and no generation stays in the state `running`."""
    running = (
        "SELECT (SELECT count(*) FROM messages WHERE state = 'running')"
        " + (SELECT count(*) FROM generations WHERE state = 'running')"
    )
    wait_until(lambda: database(running) == [(0,)], SERVER_TIMEOUT)
    wait_until(lambda: database("SELECT count(*) FROM chunks") == [(0,)], SERVER_TIMEOUT)
    database.check_integrity()


def check_replay(stream: Stream, answer: EventStream, killed_at: float) -> list[ServerEvent]:
    """The stream as replayed after the kill, compared with the events that its reader got before."""
    events_before_kill = [
        message for at, message in stream.timed_events if at < killed_at - stream.may_lose
    ]
    if answer.status == 404:  # it had begun just before the kill: nothing was saved yet
        assert not stream.path
        assert not events_before_kill
        return []
    replayed = answer.to_end().seen
    stream.join(60)
    assert not stream.is_alive(), "a reader waits for ever"
    text, numbers, last = checked_parts(replayed)
    assert ALL_TEXT.startswith(text)
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) >= len(events_before_kill), "text was lost"
    reader_events = [message for message in stream.messages if message.id]
    if last.json.get("error", {}).get("code") == "interrupted":
        reader_events = [message for message in reader_events if int(message.id) < GAP]
        assert reader_events[: len(numbers)] == replayed[: min(len(reader_events), len(numbers))]
    else:  # its producer lives; the reader's worker may have been killed
        assert replayed[: len(stream.messages)] == stream.messages
    return replayed


def check_second_read(
    stream: Stream, client: Client, replayed: list[ServerEvent], killed_at: float
) -> list[ServerEvent]:
    """The stream, read again. An interrupted stream now has the saved events only.

    The first read may have had more: a worker that followed the stream replays unsaved events, too.
    """
    saved_events = client.follow(stream.id, 0).to_end().seen
    if saved_events != replayed:
        _, numbers, last = checked_parts(saved_events)
        assert last.json["error"]["code"] == "interrupted"
        assert saved_events[-2:] == replayed[-2:]
        assert saved_events[:-2] == replayed[: len(numbers)]
        assert int(last.id) == len(numbers) + GAP + 1
        assert not [
            at for at, _ in stream.timed_events[len(numbers) :] if at < killed_at - stream.may_lose
        ]
    return saved_events


def check_resume(stream: Stream, client: Client, replayed: list[ServerEvent]) -> None:
    """Check that a reader that resumes after its last event gets the later events and the end."""
    last = max((int(message.id) for message in stream.messages if message.id), default=0)
    rest = client.follow(stream.id, Last_Event_ID=str(last)).to_end().seen
    assert rest == [message for message in replayed if not message.id or int(message.id) > last]


def check_conversation(
    stream: Stream, client: Client, database: Database, replayed: list[ServerEvent]
) -> None:
    """Check that the conversation shows the saved answer and its state, and accepts a prompt."""
    text, _, last = checked_parts(replayed)
    if not text and last.json["type"] == "cancelled":
        assert client.get(stream.path).status == 404  # the prompt was returned to the composer
        return
    state = {"done": "done", "cancelled": "stopped", "error": "error"}[last.json["type"]]
    if last.json.get("error", {}).get("code") == "interrupted":
        state = "interrupted"
    wait_until(lambda: saved_answer(database, stream) == (state, text), SERVER_TIMEOUT)
    page = client.get(stream.path).body.decode()
    assert re.findall(r'data-state="(\w+)"', page) == [state]
    assert text.strip() in page
    next_stream_id = new_id()
    assert send_prompt(client, stream.path, "/fake count?n=3", next_stream_id) == 200
    answer, _, last = checked_parts(client.follow(next_stream_id, 0).to_end().seen)
    assert (answer, last.json["type"]) == ("0 1 2 ", "done")
    page = client.get(stream.path).body.decode()
    assert re.findall(r'data-state="(\w+)"', page) == [state, "done"]


def check_streams(group: StreamGroup, client: Client, database: Database, killed_at: float) -> None:
    """Check that the saved events of every stream are available at once, by each way of reading.

    Streams of living workers are stopped first.
    """
    answers = [client.follow(stream.id, 0) for stream in group.streams]
    for stream in group.streams:
        client.stop(stream.id)
    for stream, answer in zip(group.streams, answers, strict=True):
        if replayed := check_replay(stream, answer, killed_at):
            replayed = check_second_read(stream, client, replayed, killed_at)
            check_resume(stream, client, replayed)
            if stream.path:
                check_conversation(stream, client, database, replayed)
    check_nothing_runs(database)


def wait_upstream_closed(fake: FakeOpenAI) -> None:
    """Wait until the killed processes' connections to the model's server are closed."""
    for record in fake.requests:
        assert record.ended.wait(RECORD_TIMEOUT), record
    fake.clear()


# --- a worker -------------------------------------------------------------------------------------


class RestartableServer:
    """A server that can be killed and started again with the same data."""

    def __init__(
        self, upstream: str, folder: Path, workers: int = 1, database_url: str = "", **more: str
    ) -> None:
        self.database = Database(folder, database_url)
        self._env = {
            **more,
            "OPENAI_BASE_URL": upstream,
            "OPENAI_API_KEY": "fake",
            "HALT_DATA": str(folder),
            "WEB_CONCURRENCY": str(workers),
            "DATABASE_URL": database_url,
        }
        self.halt = HaltServer(self._env)
        self.client = self.halt.client()
        self.client.get("/")

    @property
    def workers(self) -> list[int]:
        """Process IDs."""
        master = self.halt.process.pid
        return [int(n) for n in Path(f"/proc/{master}/task/{master}/children").read_text().split()]

    def kill_worker(self, rng: random.Random) -> float:
        """Kill a random worker; the master starts another one. Returns the time of the kill."""
        os.kill(rng.choice(self.workers), signal.SIGKILL)
        return time.monotonic()

    def kill_master(self) -> float:
        """Kill the master; returns the time of the kill.

        Another server is started at once, before the old worker notices that its master is dead.
        """
        killed_server = self.halt
        os.kill(killed_server.process.pid, signal.SIGKILL)
        at = time.monotonic()
        self.halt = HaltServer(self._env)
        self.client.address = (self.halt.host, self.halt.port)
        try:
            wait_until(lambda: killed_server.process.poll() is not None and killed_server.gone, 20)
        finally:
            killed_server.kill()
            killed_server.close()
        return at

    def close(self) -> None:
        self.halt.close()
        self.database.close()


@contextlib.contextmanager
def prompt_during_kill(client: Client) -> Iterator[str]:
    """Send a prompt in a thread during the block; yields the path of its conversation."""
    path = f"/c/{new_id()}"

    def send() -> None:
        with contextlib.suppress(OSError, http.client.HTTPException):
            send_prompt(client, path, "/fake count?n=20&gap_ms=5", new_id())

    thread = threading.Thread(target=send, name="prompt during kill")
    thread.start()
    yield path
    thread.join(60)
    assert not thread.is_alive()


# --- a model's server ----------------------------------------------------------------------------


class UpstreamProcess:
    """A fake model's server in its own process; `kill` is `kill -9`."""

    def __init__(self) -> None:
        self._port = free_port()
        self.base_url = f"http://127.0.0.1:{self._port}/v1"
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-u", "-m", "halt.testing.fake_openai", "--port", str(self._port)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        assert b"Fake upstream at" in self._process.stdout.readline()

    def kill(self) -> None:
        with self._process:  # waits, and closes the pipe
            self._process.kill()

    close = kill
