"""The thread that ends readers and runs: what it asks the database, and when it ends something."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from halt.config.settings import Config
from halt.core.generation import Generation, Viewer
from halt.core.log import EventLog
from halt.core.service import GenerationService
from halt.core.stop import StopRegistry
from halt.core.stream_key import StreamKey
from halt.errors import StoreUnavailable
from halt.people.known import Known, digest_of
from halt.people.person import Mode, person_id
from halt.people.proxy_header import ProxyHeader
from halt.people.watch import Watch
from halt.store.lookups import Lookups
from halt.store.migrate import open_database
from halt.store.people import PersonRow
from halt.store.store import Store
from tests.support.people import make_api_token, make_person
from tests.support.scripted_upstream import ScriptedUpstream
from tests.support.waiting import wait_until


class WatchHarness:
    """A watch of a service without runs, whose store may fail."""

    def __init__(self, store: Store, mode: Mode) -> None:
        self.store = store
        self.known = Known(store.sign_ins, mode, (), Lookups())
        self.service = GenerationService(Config(), ScriptedUpstream(), StopRegistry())
        self.watch = Watch(mode, self.known, store, self.service)

    def reader(self, owner: str, token: str) -> Viewer:
        """A reader of the person, let in by this token."""
        self.service.readers.credential = lambda: digest_of(token)
        run = Generation(StreamKey(owner, "stream-1"), EventLog(1000), started_at=0.0)
        return self.service.readers.view(run)

    def close(self) -> None:
        self.watch.close(5)
        self.known.close(5)
        self.service.close()
        self.store.database.close()


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[WatchHarness]:
    """A watch of a Halt with accounts."""
    harness = WatchHarness(Store(open_database(tmp_path)), "accounts")
    yield harness
    harness.close()


def test_only_the_reader_of_a_revoked_token_ends(
    harness: WatchHarness, caplog: pytest.LogCaptureFixture
) -> None:
    """A look ends the readers of a revoked token, and no other reader of the person; it logs how
    many.
    """
    caplog.set_level(logging.INFO, "halt")
    person = make_person(harness.store, "accounts", "alice")
    tokens = [make_api_token(harness.store, person) for _ in range(2)]
    lost, kept = (harness.reader(person, token) for token in tokens)
    harness.watch.look()
    assert not lost.gone
    assert not kept.gone
    harness.store.sign_ins.remove_token(person, digest_of(tokens[0]))
    harness.watch.look()
    assert lost.gone
    assert lost.is_refused
    assert not kept.gone
    assert caplog.messages == ["1 reader was ended: no longer allowed to read"]


def test_stopped_streams_are_logged_with_their_number(
    harness: WatchHarness, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line names the person and the reason; one stream is no several."""
    caplog.set_level(logging.INFO, "halt")
    person = make_person(harness.store, "accounts", "alice")
    harness.store.accounts.set_disabled(person, disabled=True)
    monkeypatch.setattr(harness.service, "owners_here", lambda: {person})
    for count in (1, 2):
        monkeypatch.setattr(harness.service, "stop_all_here", lambda _, n=count: [None] * n)
        harness.watch.look()
    assert caplog.messages == [
        f"1 stream of the person {person}, who was disabled, was stopped",
        f"2 streams of the person {person}, who was disabled, were stopped",
    ]


def test_reader_that_registers_after_the_revocation_ends(harness: WatchHarness) -> None:
    """A reader that a late check let in ends by the next look after its registration."""
    person = make_person(harness.store, "accounts", "alice")
    token = make_api_token(harness.store, person)
    assert harness.known.person(digest_of(token)) is not None
    harness.store.sign_ins.remove_token(person, digest_of(token))
    harness.watch.look()
    late = harness.reader(person, token)
    harness.watch.look()
    assert late.is_refused
    assert harness.known.person(digest_of(token)) is None  # not cached any longer


def test_nothing_ends_while_the_database_is_away(
    harness: WatchHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the database fails no reader ends; the first look that reaches it ends them."""
    person = make_person(harness.store, "accounts", "alice")
    token = make_api_token(harness.store, person)
    reader = harness.reader(person, token)
    harness.store.sign_ins.remove_token(person, digest_of(token))

    def fail(*_: object) -> None:
        raise StoreUnavailable("The database does not answer.", "it is away")

    with monkeypatch.context() as patch:
        patch.setattr(harness.store.sign_ins, "usable", fail)
        patch.setattr(harness.store.people, "barred", fail)
        harness.watch.look()
        assert not reader.gone
    harness.watch.look()
    assert reader.gone


def test_idle_worker_asks_nothing(harness: WatchHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without readers, runs and uses, a look does not touch the database."""

    def refuse(*_: object) -> None:
        raise AssertionError("the database was used")

    monkeypatch.setattr(harness.store.database, "reading", refuse)
    monkeypatch.setattr(harness.store.database, "writing", refuse)
    harness.watch.look()


def test_fault_of_a_look_is_logged_and_the_thread_goes_on(
    harness: WatchHarness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An unexpected exception is logged, and the next look comes."""
    looks = 0

    def fail() -> None:
        nonlocal looks
        looks += 1
        raise ValueError("unforeseen")

    monkeypatch.setattr("halt.people.watch.EVERY", 0.001)
    watch = Watch("accounts", harness.known, harness.store, harness.service)
    monkeypatch.setattr(harness.service.readers, "admitted", fail)
    with caplog.at_level(logging.ERROR):
        watch.start()
        wait_until(lambda: looks >= 3)
        watch.close(5)
    assert "unforeseen" in caplog.text


def test_last_use_is_saved_once_a_minute(harness: WatchHarness) -> None:
    """A token's last use reaches the database, and a further one soon after writes nothing."""
    person = make_person(harness.store, "accounts", "alice")
    digest = digest_of(make_api_token(harness.store, person))
    saved: list[object] = []
    save = harness.store.sign_ins.seen

    def count(times: dict[str, float]) -> None:
        saved.append(dict(times))
        save(times)

    harness.store.sign_ins.seen = count  # type: ignore[method-assign,assignment]
    for _ in range(3):
        harness.known.forget(digest)
        assert harness.known.person(digest) is not None
        harness.watch.look()
    assert len(saved) == 1
    (token,) = harness.store.sign_ins.tokens(person)
    assert token.used_at is not None


def test_person_named_by_the_proxy_gets_a_row(tmp_path: Path) -> None:
    """The next look makes the row of a person whom a header names; the request did not wait."""
    harness = WatchHarness(Store(open_database(tmp_path)), "header")
    try:
        row = ProxyHeader("Remote-User", ("127.0.0.1",)).read("127.0.0.1", "alice")
        assert isinstance(row, PersonRow)
        harness.watch.named_people.note(row)
        reader = harness.reader(row.id, "")
        reader.credential = ""
        harness.watch.look()
        assert harness.store.people.get(person_id("header", "", "alice")) is not None
        assert not reader.gone
    finally:
        harness.close()
