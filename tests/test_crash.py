"""`kill -9` at a hundred random moments: of a worker, of the master, of the model's server.

Each round has several streams in progress, from pages and from programs, of numbered tokens, so
that each reader knows what it has to get. TEST_SEED=... repeats the moments of an earlier run.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import re
import secrets
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol
from urllib.parse import urlencode

import pytest

from tests.conftest import ROOT, SEEN_WITHIN, HaltServer, eventually, new_id
from tests.fake_openai import FakeOpenAI
from tests.sse import Client, Events, Message

FORM = {"Content-Type": "application/x-www-form-urlencoded", "HX-Request": "true"}
GAP = 100_000  # numbers that nobody gets between the last event that was saved and the end
TOKENS = 100_000  # of an answer that does not end by itself
ALL = "".join(f"{n} " for n in range(TOKENS))

#: Seconds before its process was killed, of which something may be missing: 0.25 where the machine
#: has nothing else to do (`python -m tests.bench --only store` measures it), more while many tests
#: run on it at once.
LOST_AT_MOST = 1.0


@pytest.fixture
def chance() -> random.Random:
    """The moments of this test."""
    seed = int(os.environ.get("TEST_SEED", "0")) or secrets.randbits(32)
    print(f"TEST_SEED={seed} repeats these moments")
    return random.Random(seed)


# --- streams in progress --------------------------------------------------------------------------


class Crowd:
    """All readers of a round."""

    def __init__(self) -> None:
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
        self.seen: list[tuple[float, Message]] = []
        self._crowd = crowd
        crowd.streams.append(self)

    @property
    def messages(self) -> list[Message]:
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


def in_progress(client: Client, tokens: int = TOKENS) -> Crowd:
    """Two conversations and two programs of one visitor, each with an answer of so many tokens."""
    crowd = Crowd()
    for number in range(4):
        place = f"/c/{new_id()}" if number % 2 else ""
        stream = Stream(crowd, client, new_id(), place, f"count?n={tokens}&gap_ms=8")
        if place:
            assert say(client, place, f"/fake {stream.model}", stream.id) == 200
        stream.start()
    return crowd


# --- what has to be true afterwards ---------------------------------------------------------------


def checked(messages: list[Message]) -> tuple[str, list[int], Message]:
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


def saved(folder: Path, stream: Stream) -> tuple[str, str]:
    """State and text of a conversation's answer in the database."""
    with contextlib.closing(sqlite3.connect(folder / "halt.db")) as database:
        found = database.execute(
            "SELECT state, content FROM messages WHERE stream_id = ?", (stream.id,)
        ).fetchall()
    ((state, content),) = found
    return str(state), str(content)


def nothing_runs(folder: Path) -> None:
    """No message and no generation is left as one that is being written."""
    with contextlib.closing(sqlite3.connect(folder / "halt.db")) as database:

        def running() -> int:
            found = database.execute(
                "SELECT (SELECT count(*) FROM messages WHERE state = 'running')"
                " + (SELECT count(*) FROM generations WHERE state = 'running')"
            )
            return int(found.fetchone()[0])

        eventually(lambda: not running())
        assert database.execute("SELECT count(*) FROM chunks").fetchone() == (0,)
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def replayed(stream: Stream, answer: Events, killed_at: float) -> list[Message]:
    """The stream as it is told afterwards, compared with what its reader had got of it before."""
    old = [message for at, message in stream.seen if at < killed_at - LOST_AT_MOST]
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


def kept(stream: Stream, client: Client, whole: list[Message], killed_at: float) -> list[Message]:
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
        assert not [at for at, _ in stream.seen[len(numbers) :] if at < killed_at - LOST_AT_MOST]
    return saved


def resumed(stream: Stream, client: Client, whole: list[Message]) -> None:
    """Who comes back with the last event that it has gets what it has not, and the end."""
    last = max((int(each.id) for each in stream.messages if each.id), default=0)
    rest = client.follow(stream.id, Last_Event_ID=str(last)).to_end().seen
    assert rest == [each for each in whole if not each.id or int(each.id) > last]


def goes_on(stream: Stream, client: Client, folder: Path, whole: list[Message]) -> None:
    """Its conversation shows the answer as far as it was saved, marked, and takes a prompt."""
    text, _, last = checked(whole)
    if not text and last.json["type"] == "cancelled":
        assert client.get(stream.place).status == 404  # the prompt was given back
        return
    state = {"done": "done", "cancelled": "stopped", "error": "error"}[last.json["type"]]
    if last.json.get("error", {}).get("code") == "interrupted":
        state = "interrupted"
    eventually(lambda: saved(folder, stream) == (state, text))
    page = client.get(stream.place).body.decode()
    assert re.findall(r'data-state="(\w+)"', page) == [state]
    assert text.strip() in page
    again = new_id()
    assert say(client, stream.place, "/fake count?n=3", again) == 200
    answer, _, last = checked(client.follow(again, 0).to_end().seen)
    assert (answer, last.json["type"]) == ("0 1 2 ", "done")
    page = client.get(stream.place).body.decode()
    assert re.findall(r'data-state="(\w+)"', page) == [state, "done"]


def all_is_well(crowd: Crowd, client: Client, folder: Path, killed_at: float) -> None:
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
                goes_on(stream, client, folder, whole)
    nothing_runs(folder)


def all_closed(fake: FakeOpenAI) -> None:
    """No connection of a dead process is open at the model's server."""
    for record in fake.requests:
        assert record.ended.wait(SEEN_WITHIN), record
    fake.clear()


# --- a worker -------------------------------------------------------------------------------------


class Mortal:
    """A server that is killed and started again, with the same data."""

    def __init__(self, upstream: str, folder: Path, workers: int = 1) -> None:
        self.folder = folder
        self._env = {
            "OPENAI_BASE_URL": upstream,
            "OPENAI_API_KEY": "fake",
            "HALT_DATA": str(folder),
            "WEB_CONCURRENCY": str(workers),
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


@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_is_killed(
    workers: int, fake: FakeOpenAI, tmp_path: Path, chance: random.Random
) -> None:
    """Fifteen times: each reader gets what was saved, and the end, from whichever worker answers."""
    with contextlib.closing(Mortal(fake.base_url, tmp_path, workers)) as mortal:
        for _ in range(15):
            crowd = in_progress(mortal.client)
            crowd.wait_tokens(chance.randrange(300))
            with newcomer(mortal.client) as place:
                killed_at = mortal.kill_worker(chance)
            all_is_well(crowd, mortal.client, tmp_path, killed_at)
            page = mortal.client.get(place)
            assert page.status in {200, 404}
            assert b'data-state="running"' not in page.body
            all_closed(fake)


def test_the_master_is_killed(fake: FakeOpenAI, tmp_path: Path, chance: random.Random) -> None:
    """Five times: its worker leaves by itself, and the next server has what it had."""
    with contextlib.closing(Mortal(fake.base_url, tmp_path)) as mortal:
        for _ in range(5):
            crowd = in_progress(mortal.client)
            crowd.wait_tokens(chance.randrange(300))
            killed_at = mortal.kill_master()
            all_is_well(crowd, mortal.client, tmp_path, killed_at)
            all_closed(fake)


# --- the model's server ---------------------------------------------------------------------------


class Upstream(Protocol):
    """A model's server at one address, which dies and comes back."""

    base_url: str

    def kill(self) -> None:
        """All at once, in the middle of whatever it says."""

    def start(self) -> None:
        """It is there again."""

    def close(self) -> None:
        """For good."""


class InProcess:
    """One whose connections end."""

    def __init__(self) -> None:
        self._fake = FakeOpenAI().start()
        self.base_url = self._fake.base_url

    def kill(self) -> None:
        self._fake.close()

    def start(self) -> None:
        self._fake = FakeOpenAI(port=self._fake.port).start()

    close = kill


class OfItsOwn:
    """One that is a process, killed with -9."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        self.base_url = f"http://127.0.0.1:{self._port}/v1"
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-u", "-m", "tests.fake_openai", "--port", str(self._port)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        assert b"Fake upstream at" in self._process.stdout.readline()

    def kill(self) -> None:
        with self._process:  # waits, and closes the pipe
            self._process.kill()

    close = kill


@pytest.mark.parametrize(("make", "rounds"), [(InProcess, 40), (OfItsOwn, 25)])
def test_the_models_server_is_killed(
    make: Callable[[], Upstream], rounds: int, tmp_path: Path, chance: random.Random
) -> None:
    """Readers get all that it said and the end; what had not begun begins at the next one."""
    with contextlib.ExitStack() as stack:
        upstream = make()
        stack.callback(upstream.close)
        mortal = Mortal(upstream.base_url, tmp_path)
        stack.callback(mortal.close)
        for _ in range(rounds):
            crowd = in_progress(mortal.client, tokens=100)
            crowd.wait_tokens(chance.randrange(300))
            upstream.kill()
            upstream.start()
            for stream in crowd.streams:
                stream.join(60)
                assert not stream.is_alive(), "a reader waits for ever"
                text, numbers, _ = checked(stream.messages)
                assert ALL.startswith(text)
                assert numbers == list(range(1, len(numbers) + 1))
                whole = mortal.client.follow(stream.id, 0).to_end().seen
                assert whole == stream.messages
                if stream.place:
                    goes_on(stream, mortal.client, tmp_path, whole)
            nothing_runs(tmp_path)
