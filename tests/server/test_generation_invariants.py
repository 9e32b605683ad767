"""Invariants of generations with two workers and their readers, under random sequences of calls.

Hypothesis generates sequences of: start a stream, send text from the model, read, follow, stop with
the number of seen events, finish, kill a worker. The workers are real processes with the parts of the
real application and SQLite in a new folder; only the model is scripted.

A kill may lose only events that were not yet in the database: the test reads the database before
each kill.
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
from tests.support.invariant_worker import EventRows, Process
from tests.support.waiting import SERVER_TIMEOUT, wait_until

pytestmark = pytest.mark.slow

OWNER = "anna"
STATES: dict[str, State] = {"done": "done", "cancelled": "stopped", "error": "interrupted"}
WORKERS = 2
WORKER = st.integers(0, WORKERS - 1)
INDEX = st.integers(0, 99)  # an item of a list whose length depends on the earlier steps

T = TypeVar("T")


def item_at(items: Sequence[T], index: int) -> T:
    return items[index % len(items)]


@dataclass(eq=False)
class Stream:
    """The expected state of a stream."""

    id: str
    worker: Process  # its producer
    conversation: str  # "" for none
    texts: list[str] = field(default_factory=list)  # sent by the model
    known_events: dict[int, str] = field(
        default_factory=dict
    )  # events that a reader got, by number
    ended: int = 0  # the terminal event's number; 0 until it is known
    seen_by_stop: int | None = None  # the last event that the stopping viewer had seen
    killed: bool = False  # its producer was killed
    saved_count: int = 0  # events that were in the database before the kill
    has_unsaved_end: bool = False  # readers got its end, but the end was not in the database

    @property
    def owner(self) -> str:
        return OWNER if self.conversation else "berta"

    @property
    def runs(self) -> bool:
        return not self.killed and not self.ended


@dataclass(eq=False)
class Reader:
    """A reader that follows a stream. It got `events`, all after event number `after`."""

    number: int
    worker: Process
    stream: Stream
    after: int
    events: EventRows = field(default_factory=list)


class GenerationInvariants(RuleBasedStateMachine):
    """The steps and the checks of the state machine."""

    template: Path  # a data folder with an empty database

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="halt-invariants-"))
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

    # --- steps ------------------------------------------------------------------------------------

    @rule(worker=WORKER, in_conversation=st.booleans())
    def start(self, worker: int, in_conversation: bool) -> None:
        number = self.number()
        conversation_id = f"conversation-{number}" if in_conversation else ""
        stream = Stream(f"stream-{number}", self.workers[worker], conversation_id)
        self.workers[worker].start(stream.id, stream.owner, conversation_id)
        self.streams.append(stream)

    @precondition(lambda self: any(stream.runs for stream in self.streams))
    @rule(index=INDEX, texts=st.lists(st.text("ab c\n", min_size=1), min_size=1, max_size=3))
    def send_text(self, index: int, texts: list[str]) -> None:
        stream = item_at([stream for stream in self.streams if stream.runs], index)
        for text in texts:
            stream.worker.feed(stream.id, stream.owner, text)
            stream.texts.append(text)

    @precondition(lambda self: self.streams)
    @rule(index=INDEX, worker=WORKER, position=INDEX)
    def read(self, index: int, worker: int, position: int) -> None:
        stream = item_at(self.streams, index)
        after = item_at([0, *sorted(stream.known_events)], position)
        with contextlib.suppress(Unsaved):
            self.check_events(stream, after, self.events_from(self.workers[worker], stream, after))

    @precondition(lambda self: self.streams)
    @rule(index=INDEX, worker=WORKER, position=INDEX)
    def follow(self, index: int, worker: int, position: int) -> None:
        stream = item_at(self.streams, index)
        after = item_at([0, *sorted(stream.known_events)], position)
        with contextlib.suppress(Unsaved):
            self.events_from(self.workers[worker], stream, after)  # require that it can be read
            reader = Reader(self.number(), self.workers[worker], stream, after)
            reader.worker.follow(reader.number, stream.id, stream.owner, after)
            self.readers.append(reader)

    @rule(index=INDEX)
    def leave(self, index: int) -> None:
        if not self.readers:
            return
        reader = item_at(self.readers, index)
        self.check_reader(reader)
        reader.worker.leave(reader.number)
        self.readers.remove(reader)

    @precondition(lambda self: self.streams)
    @rule(index=INDEX, worker=WORKER, seen_index=INDEX, sends_seen=st.booleans())
    def stop(self, index: int, worker: int, seen_index: int, sends_seen: bool) -> None:
        stream = item_at(self.streams, index)
        seen = seen_index % (len(stream.texts) + 1) if sends_seen else None
        status = self.workers[worker].stop(stream.id, stream.owner, seen)
        if stream.runs:
            assert status == "stopped"
            stream.seen_by_stop = seen
            stream.ended = len(stream.texts) + 1
        elif not stream.killed:
            assert status == "finished"
        else:
            assert status == "finished" or not (stream.saved_count or stream.conversation)

    @precondition(lambda self: any(stream.runs for stream in self.streams))
    @rule(index=INDEX)
    def finish(self, index: int) -> None:
        stream = item_at([stream for stream in self.streams if stream.runs], index)
        stream.worker.finish(stream.id, stream.owner)
        stream.ended = len(stream.texts) + 1

    @rule(worker=WORKER, after_saving=st.booleans())
    def kill(self, worker: int, after_saving: bool) -> None:
        killed_worker = self.workers[worker]
        for reader in [reader for reader in self.readers if reader.worker is killed_worker]:
            self.check_reader(reader)
            self.readers.remove(reader)
        its_streams = [s for s in self.streams if s.worker is killed_worker and not s.killed]
        if after_saving:
            wait_until(
                lambda: all(self.in_database(s)[0] >= len(s.texts) for s in its_streams),
                SERVER_TIMEOUT,
            )
        saved_before = {s: self.in_database(s) for s in its_streams}
        killed_worker.kill()
        for stream, (saved_count, has_ended) in saved_before.items():
            stream.killed, stream.saved_count = True, saved_count
            if (
                stream.ended and not has_ended
            ):  # readers got an end that is not saved: it may be lost
                stream.known_events.pop(stream.ended, None)
                stream.ended, stream.seen_by_stop, stream.has_unsaved_end = 0, None, True
        self.workers[worker] = Process(str(self.folder))

    def in_database(self, stream: Stream) -> tuple[int, bool]:
        """The number of its events in the database, at least, and whether its end is there."""
        rows = self.database(
            "SELECT state <> 'running', (SELECT coalesce(max(first_seq"
            " + json_array_length(payload) - 1), 0) FROM chunks WHERE generation_id = g.id)"
            " FROM generations AS g WHERE id = ?",
            stream.id,
        )
        if not rows:
            return 0, False
        ((has_ended, last),) = rows
        return (len(stream.texts) if has_ended else last), bool(has_ended)

    # --- checks -----------------------------------------------------------------------------------

    def events_from(self, worker: Process, stream: Stream, after: int) -> EventRows:
        """A stream's events as a worker returns them.

        Raises Unsaved if the stream is unknown because its producer was killed before the first write.
        """
        events: EventRows | None = worker.read(stream.id, stream.owner, after)
        if events is not None:
            return events
        assert stream.killed
        assert not stream.saved_count
        assert not stream.conversation
        raise Unsaved

    def check_events(self, stream: Stream, after: int, events: EventRows) -> None:
        """Check the events after number `after`: complete, in order, equal for all readers."""
        for number, event in events:
            fields = json.loads(event)
            assert number > after
            if fields["type"] in STATES:
                assert stream.ended in {0, number} or stream.has_unsaved_end
                assert (number, event) == events[-1]
                if not stream.has_unsaved_end:
                    assert stream.known_events.setdefault(number, event) == event
                    stream.ended = number
            else:
                assert number == after + 1
                assert fields["content"] == stream.texts[number - 1]
                assert not stream.ended or number < stream.ended
                assert stream.known_events.setdefault(number, event) == event
            after = number

    def check_reader(self, reader: Reader, *, to_end: bool = False) -> bool:
        """Check the events of a following reader; return whether it got the end."""
        events, has_ended = reader.worker.events_of(reader.number, to_end)
        assert events[: len(reader.events)] == reader.events
        reader.events = events
        self.check_events(reader.stream, reader.after, events)
        return bool(has_ended)

    @invariant()
    def readers_get_the_same(self) -> None:
        for reader in getattr(self, "readers", ()):
            self.check_reader(reader)

    def teardown(self) -> None:
        if not hasattr(self, "workers"):
            return
        try:
            self.check_all_ends()
        finally:
            for worker in self.workers:
                worker.kill()
            shutil.rmtree(self.folder)

    def check_all_ends(self) -> None:
        """In the end each stream ends, each reader gets the end, and the store has the same events."""
        for stream in self.streams:
            if stream.runs:
                stream.worker.finish(stream.id, stream.owner)
                stream.ended = len(stream.texts) + 1
        for reader in self.readers:
            assert self.check_reader(reader, to_end=True), "a reader waits for ever"
        wait_until(
            lambda: self.database("SELECT id FROM generations WHERE state = 'running'") == [],
            SERVER_TIMEOUT,
        )
        assert self.database("SELECT * FROM chunks") == []
        for stream in self.streams:
            for worker in self.workers:
                with contextlib.suppress(Unsaved):
                    # For a moment a worker still has unsaved events of the killed worker.
                    wait_until(lambda: self.is_over(worker, stream), SERVER_TIMEOUT)
                    events = self.events_from(worker, stream, 0)
                    self.check_events(stream, 0, events)
                    self.check_saved(stream, worker, [event for _, event in events])

    def is_over(self, worker: Process, stream: Stream) -> bool:
        """Whether the stream has ended, or is unknown, for this worker."""
        events: EventRows | None = worker.read(stream.id, stream.owner, 0)
        return events is None or (bool(events) and json.loads(events[-1][1])["type"] in STATES)

    def check_saved(self, stream: Stream, worker: Process, events: list[str]) -> None:
        """Check an ended stream, and the answer in its conversation."""
        *deltas, last = [json.loads(event) for event in events]
        assert last["type"] in STATES
        assert len(deltas) >= stream.saved_count
        if not stream.killed:
            assert len(deltas) == len(stream.texts)
        if not stream.conversation:
            return
        text = "".join(delta["content"] for delta in deltas[: stream.seen_by_stop])
        state = STATES[last["type"]]
        if state == "done" and not text.strip():
            state = "error"  # an answer of white space alone
        answers = worker.answers(stream.conversation, OWNER)
        messages = worker.prompt_messages(stream.conversation, OWNER)
        if state == "stopped" and not text:
            assert answers == []
            return
        assert answers == [(stream.id, state, text)]
        assert messages == [
            ("user", "a question"),
            *([("assistant", text)] if text else []),
        ]


class Unsaved(Exception):
    """Nothing of the stream was saved before its producer was killed."""


@pytest.fixture(scope="module", autouse=True)
def template(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Create the database's tables once for all sequences."""
    GenerationInvariants.template = tmp_path_factory.mktemp("template")
    open_database(GenerationInvariants.template).close()


TestGenerationInvariants = GenerationInvariants.TestCase
TestGenerationInvariants.settings = settings(
    max_examples=12,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
