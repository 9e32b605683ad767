"""Empty stores and databases for tests, and short calls that build a conversation."""

from __future__ import annotations

import os
import secrets
import shutil
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from halt.core.events import Content, Done, Event, Terminal
from halt.core.metrics import Meter
from halt.core.steps import Step
from halt.core.stream_key import StreamKey
from halt.store.batches import Batch, Chunk, GenerationEnd, NewGeneration
from halt.store.migrate import open_database
from halt.store.models import Conversation, Exchange
from halt.store.store import Store
from halt.store.tables import metadata

METRICS = Meter().snapshot()
DONE = Done("stop", METRICS)
POSTGRES = os.environ.get("TEST_DATABASE_URL", "")
WORKER = "worker-1"

#: The databases that the tests run with.
DATABASES = [
    "sqlite",
    pytest.param(
        "postgres",
        marks=pytest.mark.skipif(not POSTGRES, reason="TEST_DATABASE_URL names no PostgreSQL"),
    ),
]


@contextmanager
def postgres_schema() -> Iterator[str]:
    """Create an empty PostgreSQL schema; yield its DATABASE_URL; drop it at the end."""
    schema = f"test_{secrets.token_hex(8)}"
    url = POSTGRES.replace("postgresql://", "postgresql+psycopg://", 1)
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as connection:
            connection.execute(text(f"CREATE SCHEMA {schema}"))
        yield f"{POSTGRES}{'&' if '?' in POSTGRES else '?'}options=-csearch_path%3D{schema}"
        with engine.connect() as connection:
            connection.execute(text(f"DROP SCHEMA {schema} CASCADE"))
    finally:
        engine.dispose()


class Databases:
    """Databases whose tables are created once; each test gets an empty one."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder, self._stack = folder, stack
        self._url = ""
        self._count = 0
        open_database(folder / "sqlite").close()

    def new(self, kind: str) -> tuple[Path, str]:
        """A new data folder and its DATABASE_URL ("" for SQLite)."""
        self._count += 1
        folder = self._folder / f"{self._count}"
        if kind == "sqlite":
            shutil.copytree(self._folder / "sqlite", folder)
            return folder, ""
        if not self._url:
            self._url = self._stack.enter_context(postgres_schema())
            open_database(folder, self._url).close()
        else:
            database = open_database(folder, self._url)
            with database.writing() as connection:
                for table in reversed(metadata.sorted_tables):
                    connection.execute(table.delete())
            database.close()
        return folder, self._url


@contextmanager
def open_store(folder: Path, url: str = "", events_days: float = 7.0) -> Iterator[Store]:
    """A store that is closed at the end."""
    store = Store(open_database(folder, url), events_days)
    try:
        yield store
    finally:
        store.close()


def write_end(
    store: Store,
    key: StreamKey,
    answer: str,
    terminal: Terminal = DONE,
    *,
    new_events: Sequence[Event] | None = None,
    steps: tuple[Step, ...] = (),
    model: str = "m-1",
) -> None:
    """Write all events of a generation, and its end.

    `new_events`: the events, if they are not the answer's text in one event.
    """
    events: list[Event] = [
        *([Content(answer)] if answer and new_events is None else new_events or []),
        terminal,
    ]
    timed = [(float(10 * n), event) for n, event in enumerate(events)]
    store.generations.write(
        Batch(
            chunks=(Chunk(key, 1, timed),),
            ends=(GenerationEnd(key, terminal, time.time(), len(events), answer, model, steps),),
        )
    )


def new_generation(key: StreamKey) -> NewGeneration:
    """A generation without a conversation, started by an API client."""
    return NewGeneration(key, WORKER, "m-1", time.time())


def first_value(folder: Path, query: str, stream_id: str) -> Any:
    """The first column of a query's first row in SQLite, or None; `?` is the stream's ID."""
    with closing(sqlite3.connect(folder / "halt.db")) as database:
        row = database.execute(query, (stream_id,)).fetchone()
    return row[0] if row else None


def saved_events(folder: Path, stream_id: str) -> int:
    """The number of the newest event of a running generation that is in SQLite; 0 for none."""
    query = (
        "SELECT max(first_seq + json_array_length(payload) - 1) FROM chunks WHERE generation_id = ?"
    )
    return first_value(folder, query, stream_id) or 0


class Chat:
    """One conversation of one owner; stream IDs are its name and a count."""

    def __init__(self, store: Store, name: str = "talk", owner: str = "anna") -> None:
        self.store, self.name, self.owner = store, name, owner
        self.stream_count = 0

    def key(self, stream_id: str) -> StreamKey:
        return StreamKey(self.owner, stream_id)

    def new_stream(self) -> StreamKey:
        self.stream_count += 1
        return self.key(f"{self.name}-{self.stream_count}")

    def ask(self, prompt: str, edit_of: int | None = None) -> StreamKey:
        """Add a prompt; the key of the stream of its answer."""
        key = self.new_stream()
        self.store.turns.add_prompt(
            self.name, self.owner, prompt, [(key.id, "")], worker=WORKER, edit_of=edit_of
        )
        return key

    def regenerate(self, prompt_id: int | None = None) -> StreamKey:
        key = self.new_stream()
        self.store.turns.regenerate(
            self.name, self.owner, key.id, worker=WORKER, prompt_id=prompt_id
        )
        return key

    def edit_answer(self, text: str, answer_id: int | None = None) -> Conversation:
        """Edit an answer, by default the last one."""
        return self.store.turns.edit_answer(
            self.name, self.owner, answer_id or self.last_exchange().answer_id, text
        )

    def continue_answer(self) -> StreamKey:
        """Continue the last answer; the key of the new stream."""
        key = self.new_stream()
        self.store.turns.continue_answer(
            self.name, self.owner, self.last_exchange().answer_id, key.id, worker=WORKER
        )
        return key

    def end(self, key: StreamKey, answer: str, terminal: Terminal = DONE) -> None:
        write_end(self.store, key, answer, terminal)

    def add_exchange(
        self, prompt: str, answer: str, terminal: Terminal = DONE, edit_of: int | None = None
    ) -> None:
        self.end(self.ask(prompt, edit_of), answer, terminal)

    def read(self, limit: int = 1000) -> Conversation:
        return self.store.conversations.get(self.name, self.owner, limit=limit)

    def last_exchange(self) -> Exchange:
        return self.read().exchanges[-1]

    def exchanges(self) -> list[tuple[str, str]]:
        return [(e.prompt, e.answer) for e in self.read().exchanges]

    def prompt_messages(self, system: str = "") -> list[tuple[str, object]]:
        """The messages that the model gets, as (role, content)."""
        path = self.store.conversations.prompt_path(self.name, self.owner)
        return [(m.role, m.content) for m in path.messages(system)]
