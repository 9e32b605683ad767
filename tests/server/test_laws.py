"""The laws of generations, whatever happens in whatever order to two workers and their readers.

Hypothesis makes up sequences of: ask, the model says something, read, follow, stop with what was
seen, finish, kill a worker. The workers are real processes with the parts of the real application,
SQLite in a folder of its own; only the model is scripted.

What happened in the last moments before a kill may be lost, and nothing else: what the database
held then is looked at before each kill.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from halt.store.migrate import open_database
from halt.store.models import State
from tests.support.halt_server import eventually
from tests.support.law_worker import EventRows, Process

pytestmark = pytest.mark.slow

OWNER = "somebody"
STATES: dict[str, State] = {"done": "done", "cancelled": "stopped", "error": "interrupted"}
WORKERS = 2
WORKER = st.integers(0, WORKERS - 1)
WHICH = st.integers(0, 99)  # of things whose number depends on what happened when

T = TypeVar("T")


def one_of(things: Sequence[T], which: int) -> T:
    return things[which % len(things)]


@dataclass(eq=False)
class Stream:
    """A stream as those who watch it know it."""

    id: str
    worker: Process  # that makes it, or made it
    place: str  # its conversation, "" for a program's
    said: list[str] = field(default_factory=list)  # by the model
    known: dict[int, str] = field(default_factory=dict)  # what anybody was told, by number
    ended: int = 0  # the terminal event's number, as soon as anybody knows it
    seen: int | None = None  # what the one who stopped it had seen
    killed: bool = False  # with its worker
    safe: int = 0  # events that were in the database then
    unsure: bool = False  # it had ended, and that was not: some readers were told so

    @property
    def owner(self) -> str | None:
        return OWNER if self.place else None

    @property
    def goes_on(self) -> bool:
        return not self.killed and not self.ended


@dataclass(eq=False)
class Reader:
    """One that stays. `after` is where it began, `got` what it has got."""

    number: int
    worker: Process
    stream: Stream
    after: int
    got: EventRows = field(default_factory=list)


class Laws(RuleBasedStateMachine):
    """See the module."""

    template: Path  # a database with its tables made

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="halt-laws-"))
        shutil.copytree(self.template, self.folder, dirs_exist_ok=True)
        self.workers = [Process(str(self.folder)) for _ in range(WORKERS)]
        self.streams: list[Stream] = []
        self.readers: list[Reader] = []
        self.count = 0

    def number(self) -> int:
        self.count += 1
        return self.count

    def database(self, query: str, *values: object) -> list[Any]:
        path = self.folder / "halt.db"
        with contextlib.closing(sqlite3.connect(path, timeout=10)) as database:
            return database.execute(query, values).fetchall()

    # --- what may happen --------------------------------------------------------------------------

    @rule(worker=WORKER, page=st.booleans())
    def ask(self, worker: int, page: bool) -> None:
        number = self.number()
        place = f"conversation-{number}" if page else ""
        stream = Stream(f"stream-{number}", self.workers[worker], place)
        self.workers[worker].ask(stream.id, stream.owner, place)
        self.streams.append(stream)

    @precondition(lambda self: any(each.goes_on for each in self.streams))
    @rule(which=WHICH, texts=st.lists(st.text("ab c\n", min_size=1), min_size=1, max_size=3))
    def say(self, which: int, texts: list[str]) -> None:
        stream = one_of([each for each in self.streams if each.goes_on], which)
        for text in texts:
            stream.worker.feed(stream.id, stream.owner, text)
            stream.said.append(text)

    @precondition(lambda self: self.streams)
    @rule(which=WHICH, worker=WORKER, place=WHICH)
    def read(self, which: int, worker: int, place: int) -> None:
        stream = one_of(self.streams, which)
        after = one_of([0, *sorted(stream.known)], place)
        with contextlib.suppress(Unsaved):
            self.learn(stream, after, self.told(self.workers[worker], stream, after))

    @precondition(lambda self: self.streams)
    @rule(which=WHICH, worker=WORKER, place=WHICH)
    def follow(self, which: int, worker: int, place: int) -> None:
        stream = one_of(self.streams, which)
        after = one_of([0, *sorted(stream.known)], place)
        with contextlib.suppress(Unsaved):
            self.told(self.workers[worker], stream, after)  # it is to be had
            reader = Reader(self.number(), self.workers[worker], stream, after)
            reader.worker.follow(reader.number, stream.id, stream.owner, after)
            self.readers.append(reader)

    @rule(which=WHICH)
    def leave(self, which: int) -> None:
        if not self.readers:
            return
        reader = one_of(self.readers, which)
        self.look(reader)
        reader.worker.leave(reader.number)
        self.readers.remove(reader)

    @precondition(lambda self: self.streams)
    @rule(which=WHICH, worker=WORKER, shown=WHICH, sees=st.booleans())
    def stop(self, which: int, worker: int, shown: int, sees: bool) -> None:
        stream = one_of(self.streams, which)
        seen = shown % (len(stream.said) + 1) if sees else None
        status = self.workers[worker].stop(stream.id, stream.owner, seen)
        if stream.goes_on:
            assert status == "stopped"
            stream.seen = seen
            stream.ended = len(stream.said) + 1
        elif not stream.killed:
            assert status == "finished"
        else:
            assert status == "finished" or not (stream.safe or stream.place)

    @precondition(lambda self: any(each.goes_on for each in self.streams))
    @rule(which=WHICH)
    def finish(self, which: int) -> None:
        stream = one_of([each for each in self.streams if each.goes_on], which)
        stream.worker.finish(stream.id, stream.owner)
        stream.ended = len(stream.said) + 1

    @rule(worker=WORKER, settled=st.booleans())
    def kill(self, worker: int, settled: bool) -> None:
        dead = self.workers[worker]
        for reader in [each for each in self.readers if each.worker is dead]:
            self.look(reader)
            self.readers.remove(reader)
        mine = [each for each in self.streams if each.worker is dead and not each.killed]
        if settled:
            eventually(lambda: all(self.in_database(each)[0] >= len(each.said) for each in mine))
        before = {each: self.in_database(each) for each in mine}
        dead.kill()
        for stream, (safe, over) in before.items():
            stream.killed, stream.safe = True, safe
            if stream.ended and not over:  # told to its readers, and not written: it may be lost
                stream.known.pop(stream.ended, None)
                stream.ended, stream.seen, stream.unsure = 0, None, True
        self.workers[worker] = Process(str(self.folder))

    def in_database(self, stream: Stream) -> tuple[int, bool]:
        """How many of its events are there at least, and whether its end is."""
        found = self.database(
            "SELECT state <> 'running', (SELECT coalesce(max(first_seq"
            " + json_array_length(payload) - 1), 0) FROM chunks WHERE generation_id = g.id)"
            " FROM generations AS g WHERE id = ?",
            stream.id,
        )
        if not found:
            return 0, False
        ((over, upto),) = found
        return (len(stream.said) if over else upto), bool(over)

    # --- what has to be true ----------------------------------------------------------------------

    def told(self, worker: Process, stream: Stream, after: int) -> EventRows:
        """What a worker tells of a stream. Raises Unsaved where its worker took it to the grave."""
        found: EventRows | None = worker.read(stream.id, stream.owner, after)
        if found is not None:
            return found
        assert stream.killed
        assert not stream.safe
        assert not stream.place
        raise Unsaved

    def learn(self, stream: Stream, after: int, events: EventRows) -> None:
        """These events came after that one: each once, in order, the same for everybody."""
        for number, event in events:
            facts = json.loads(event)
            assert number > after
            if facts["type"] in STATES:
                assert stream.ended in {0, number} or stream.unsure
                assert (number, event) == events[-1]
                if not stream.unsure:
                    assert stream.known.setdefault(number, event) == event
                    stream.ended = number
            else:
                assert number == after + 1
                assert facts["content"] == stream.said[number - 1]
                assert not stream.ended or number < stream.ended
                assert stream.known.setdefault(number, event) == event
            after = number

    def look(self, reader: Reader, *, to_end: bool = False) -> bool:
        """What one that stays has got; whether that was all."""
        got, over = reader.worker.got(reader.number, to_end)
        assert got[: len(reader.got)] == reader.got
        reader.got = got
        self.learn(reader.stream, reader.after, got)
        return bool(over)

    @invariant()
    def readers_get_the_same(self) -> None:
        for reader in getattr(self, "readers", ()):
            self.look(reader)

    def teardown(self) -> None:
        if not hasattr(self, "workers"):
            return
        try:
            self.all_ends()
        finally:
            for worker in self.workers:
                worker.kill()
            shutil.rmtree(self.folder)

    def all_ends(self) -> None:
        """At the end each stream ends, everybody is told, and what is saved is what was seen."""
        for stream in self.streams:
            if stream.goes_on:
                stream.worker.finish(stream.id, stream.owner)
                stream.ended = len(stream.said) + 1
        for reader in self.readers:
            assert self.look(reader, to_end=True), "a reader waits for ever"
        eventually(
            lambda: self.database("SELECT id FROM generations WHERE state = 'running'") == []
        )
        assert self.database("SELECT * FROM chunks") == []
        for stream in self.streams:
            for worker in self.workers:
                with contextlib.suppress(Unsaved):
                    # A worker knows for a moment still what its killed worker has not saved.
                    eventually(lambda: self.is_over(worker, stream))
                    events = self.told(worker, stream, 0)
                    self.learn(stream, 0, events)
                    self.is_kept(stream, worker, [event for _, event in events])

    def is_over(self, worker: Process, stream: Stream) -> bool:
        """For this worker the stream has ended, or is not there."""
        found: EventRows | None = worker.read(stream.id, stream.owner, 0)
        return found is None or (bool(found) and json.loads(found[-1][1])["type"] in STATES)

    def is_kept(self, stream: Stream, worker: Process, events: list[str]) -> None:
        """The whole of a stream that is over, and what its conversation makes of it."""
        *deltas, last = [json.loads(each) for each in events]
        assert last["type"] in STATES
        assert len(deltas) >= stream.safe
        if not stream.killed:
            assert len(deltas) == len(stream.said)
        if not stream.place:
            return
        text = "".join(each["content"] for each in deltas[: stream.seen])
        state = STATES[last["type"]]
        if state == "done" and not text.strip():
            state = "error"  # an answer that brought nothing but blanks
        found = worker.answers(stream.place, OWNER)
        told = worker.prompt_messages(stream.place, OWNER)
        if state == "stopped" and not text:
            assert found == []
            return
        assert found == [(stream.id, state, text)]
        assert told == [
            ("user", "a question"),
            *([("assistant", text)] if text else []),
        ]


class Unsaved(Exception):
    """Nothing of it was written before its worker was killed."""


@pytest.fixture(scope="module", autouse=True)
def template(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A database's tables are made once."""
    Laws.template = tmp_path_factory.mktemp("template")
    open_database(Laws.template).close()


TestLaws = Laws.TestCase
TestLaws.settings = settings(
    max_examples=12,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
