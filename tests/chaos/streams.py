"""Streams in progress on a server that is killed, and what has to be true of them afterwards.

Each stream is of numbered tokens, so that each reader knows what it has to get.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import re
import signal
import socket
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
from tests.support.halt_server import RECORD_TIMEOUT, ROOT, HaltServer, eventually, new_id
from tests.support.http_client import Client, EventStream, ServerEvent

FORM = {"Content-Type": "application/x-www-form-urlencoded", "HX-Request": "true"}
GAP = 100_000  # numbers that no event has, between the last event that was saved and the end
TOKENS = 100_000  # of an answer that does not end by itself
ALL = "".join(f"{n} " for n in range(TOKENS))

#: Seconds before its process was killed, of which something may be missing: 0.25 where the machine
#: has nothing else to do (`python -m bench --only store` measures it), more while many tests
#: run on it at once.
LOST_AT_MOST = 1.0


# --- streams in progress --------------------------------------------------------------------------


class Crowd:
    """All readers of a round. `may_lose`: seconds before a kill of which text may be missing."""

    def __init__(self, may_lose: float) -> None:
        self.may_lose = may_lose
        self.changed = threading.Condition()
        self.count = 0  # tokens that they have got, together; several may come in one event
        self.streams: list[Stream] = []

    def wait_tokens(self, count: int) -> None:
        """Wait until they have got so many."""
        with self.changed:
            assert self.changed.wait_for(lambda: self.count >= count, 60), self.count


class Stream(threading.Thread):
    """A stream in progress, and its reader, who keeps what it gets and when it came.

    `place` is the path of its conversation, "" for a program's.
    """

    def __init__(
        self, crowd: Crowd, client: Client, stream_id: str, place: str, model: str
    ) -> None:
        super().__init__(name=f"reader of {stream_id}", daemon=True)
        self.began = time.monotonic()
        self.client, self.id, self.place, self.model = client, stream_id, place, model
        self.seen: list[tuple[float, ServerEvent]] = []
        self._crowd = crowd
        self.may_lose = crowd.may_lose
        crowd.streams.append(self)

    @property
    def messages(self) -> list[ServerEvent]:
        return [message for _, message in self.seen]

    def run(self) -> None:
        with contextlib.suppress(OSError, http.client.HTTPException, AssertionError):
            if self.place:
                events = self.client.follow(self.id, 0)
            else:
                events = self.client.chat(self.model, id=self.id)
            with events:
                for message in events:
                    with self._crowd.changed:
                        self.seen.append((time.monotonic(), message))
                        self._crowd.count += message.data.count(" ") if message.id else 0
                        self._crowd.changed.notify_all()


def say(client: Client, place: str, text: str, stream_id: str) -> int:
    """Send a prompt from the page; the status."""
    form = urlencode({"prompt": text, "id": stream_id}).encode()
    return client.request("POST", f"{place}/messages", form, FORM).status


def in_progress(
    client: Client, tokens: int = TOKENS, count: int = 4, may_lose: float = LOST_AT_MOST
) -> Crowd:
    """Conversations and programs of one visitor in turn, each with an answer of so many tokens."""
    crowd = Crowd(may_lose)
    for number in range(count):
        place = f"/c/{new_id()}" if number % 2 else ""
        stream = Stream(crowd, client, new_id(), place, f"count?n={tokens}&gap_ms=8")
        if place:
            assert say(client, place, f"/fake {stream.model}", stream.id) == 200
        stream.start()
    return crowd


class Database:
    """What a server's database holds, asked from outside."""

    def __init__(self, folder: Path, url: str) -> None:
        where = url.replace("postgresql://", "postgresql+psycopg://", 1)
        self._is_sqlite = not url
        self._engine = create_engine(where or f"sqlite:///{folder / 'halt.db'}", poolclass=NullPool)

    def __call__(self, query: str, **values: object) -> list[tuple[Any, ...]]:
        """The rows of a query."""
        with self._engine.connect() as connection:
            return [tuple(row) for row in connection.execute(text(query), values)]

    def is_sound(self) -> None:
        """No page of it is damaged."""
        if self._is_sqlite:
            assert self("PRAGMA integrity_check") == [("ok",)]

    def close(self) -> None:
        self._engine.dispose()


# --- what has to be true afterwards ---------------------------------------------------------------


def checked(messages: list[ServerEvent]) -> tuple[str, list[int], ServerEvent]:
    """The text of a whole stream, the events' numbers, and the terminal one, of which there is one.

    Nothing is missing, doubled or out of order.
    """
    *events, last, done = messages
    assert done.data == "[DONE]"
    numbers = [int(each.id) for each in events]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)) if numbers else [])
    assert not [each for each in events if each.json.get("done")]
    assert last.json["done"] is True
    assert not numbers or int(last.id) > numbers[-1]
    return "".join(each.json["content"] for each in events), numbers, last


def saved(database: Database, stream: Stream) -> tuple[str, str]:
    """State and text of a conversation's answer in the database."""
    said = "SELECT state, content FROM messages WHERE stream_id = :id"
    ((state, content),) = database(said, id=stream.id)
    return str(state), str(content)


def nothing_runs(database: Database) -> None:
    """No message and no generation is left as one that is being written."""
    running = (
        "SELECT (SELECT count(*) FROM messages WHERE state = 'running')"
        " + (SELECT count(*) FROM generations WHERE state = 'running')"
    )
    eventually(lambda: database(running) == [(0,)])
    eventually(lambda: database("SELECT count(*) FROM chunks") == [(0,)])
    database.is_sound()


def replayed(stream: Stream, answer: EventStream, killed_at: float) -> list[ServerEvent]:
    """The stream as it is told afterwards, compared with what its reader had got of it before."""
    old = [message for at, message in stream.seen if at < killed_at - stream.may_lose]
    if answer.status == 404:  # it had begun just before, and of that nothing was written yet
        assert not stream.place
        assert not old
        return []
    whole = answer.to_end().seen
    stream.join(60)
    assert not stream.is_alive(), "a reader waits for ever"
    text, numbers, last = checked(whole)
    assert ALL.startswith(text)
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) >= len(old), "text was lost"
    seen = [each for each in stream.messages if each.id]
    if last.json.get("error", {}).get("code") == "interrupted":
        seen = [each for each in seen if int(each.id) < GAP]
        assert seen[: len(numbers)] == whole[: min(len(seen), len(numbers))]
    else:  # its worker lives, though perhaps not the one through which it was read
        assert whole[: len(stream.messages)] == stream.messages
    return whole


def kept(
    stream: Stream, client: Client, whole: list[ServerEvent], killed_at: float
) -> list[ServerEvent]:
    """The stream once more. Of one that was cut short it is what was saved, which is no more than
    a worker that had followed it has told.
    """
    saved = client.follow(stream.id, 0).to_end().seen
    if saved != whole:
        _, numbers, last = checked(saved)
        assert last.json["error"]["code"] == "interrupted"
        assert saved[-2:] == whole[-2:]
        assert saved[:-2] == whole[: len(numbers)]
        assert int(last.id) == len(numbers) + GAP + 1
        assert not [at for at, _ in stream.seen[len(numbers) :] if at < killed_at - stream.may_lose]
    return saved


def resumed(stream: Stream, client: Client, whole: list[ServerEvent]) -> None:
    """A reader that comes back with its last event gets the events after it, and the end."""
    last = max((int(each.id) for each in stream.messages if each.id), default=0)
    rest = client.follow(stream.id, Last_Event_ID=str(last)).to_end().seen
    assert rest == [each for each in whole if not each.id or int(each.id) > last]


def goes_on(stream: Stream, client: Client, database: Database, whole: list[ServerEvent]) -> None:
    """Its conversation shows the answer as far as it was saved, marked, and takes a prompt."""
    text, _, last = checked(whole)
    if not text and last.json["type"] == "cancelled":
        assert client.get(stream.place).status == 404  # the prompt was given back
        return
    state = {"done": "done", "cancelled": "stopped", "error": "error"}[last.json["type"]]
    if last.json.get("error", {}).get("code") == "interrupted":
        state = "interrupted"
    eventually(lambda: saved(database, stream) == (state, text))
    page = client.get(stream.place).body.decode()
    assert re.findall(r'data-state="(\w+)"', page) == [state]
    assert text.strip() in page
    again = new_id()
    assert say(client, stream.place, "/fake count?n=3", again) == 200
    answer, _, last = checked(client.follow(again, 0).to_end().seen)
    assert (answer, last.json["type"]) == ("0 1 2 ", "done")
    page = client.get(stream.place).body.decode()
    assert re.findall(r'data-state="(\w+)"', page) == [state, "done"]


def all_is_well(crowd: Crowd, client: Client, database: Database, killed_at: float) -> None:
    """Of every stream what was saved is there at once, in each way in which it can be read.

    Those of workers that live are stopped first.
    """
    answers = [client.follow(stream.id, 0) for stream in crowd.streams]
    for stream in crowd.streams:
        client.stop(stream.id)
    for stream, answer in zip(crowd.streams, answers, strict=True):
        if whole := replayed(stream, answer, killed_at):
            whole = kept(stream, client, whole, killed_at)
            resumed(stream, client, whole)
            if stream.place:
                goes_on(stream, client, database, whole)
    nothing_runs(database)


def all_closed(fake: FakeOpenAI) -> None:
    """No connection of a dead process is open at the model's server."""
    for record in fake.requests:
        assert record.ended.wait(RECORD_TIMEOUT), record
    fake.clear()


# --- a worker -------------------------------------------------------------------------------------


class Mortal:
    """A server that is killed and started again, with the same data."""

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
        self.server = HaltServer(self._env)
        self.client = self.server.client()
        self.client.get("/")

    @property
    def workers(self) -> list[int]:
        """Process IDs."""
        master = self.server.process.pid
        return [int(n) for n in Path(f"/proc/{master}/task/{master}/children").read_text().split()]

    def kill_worker(self, chance: random.Random) -> float:
        """When it was done. The master starts another one."""
        os.kill(chance.choice(self.workers), signal.SIGKILL)
        return time.monotonic()

    def kill_master(self) -> float:
        """When it was done. Another server is started at once, while the worker looks around."""
        dead = self.server
        os.kill(dead.process.pid, signal.SIGKILL)
        at = time.monotonic()
        self.server = HaltServer(self._env)
        self.client.address = (self.server.host, self.server.port)
        try:
            eventually(lambda: dead.process.poll() is not None and dead.gone, 20)
        finally:
            dead.kill()
            dead.close()
        return at

    def close(self) -> None:
        self.server.close()
        self.database.close()


@contextlib.contextmanager
def newcomer(client: Client) -> Iterator[str]:
    """A prompt that is sent at the moment of the kill; the path of its conversation."""
    place = f"/c/{new_id()}"

    def send() -> None:
        with contextlib.suppress(OSError, http.client.HTTPException):
            say(client, place, "/fake count?n=20&gap_ms=5", new_id())

    thread = threading.Thread(target=send, name="newcomer")
    thread.start()
    yield place
    thread.join(60)
    assert not thread.is_alive()


# --- a model's server ----------------------------------------------------------------------------


class OfItsOwn:
    """One that is a process, killed with -9."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
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
