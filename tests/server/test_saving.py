"""A failing store: streams continue, and the page reports it.

The disk is really full, the size of files is really limited, the database is really locked.
"""

from __future__ import annotations

import contextlib
import resource
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlencode

import pytest

from halt.app import create_app
from halt.config.settings import Config
from halt.errors import StoreUnavailable
from halt.store.turns import Turns
from halt.testing.fake_openai import FakeOpenAI
from halt.web.services import services
from tests.resilience.servers import Postgres
from tests.support.halt_server import HaltServer, StartHalt, new_id
from tests.support.http_client import HttpResponse
from tests.support.scripted_upstream import ScriptedUpstream
from tests.support.small_disk import filled, small_disk
from tests.support.stores import POSTGRES
from tests.support.waiting import SERVER_TIMEOUT, wait_until

FORM = {"Content-Type": "application/x-www-form-urlencoded", "HX-Request": "true"}
DISK_SIZE = "4m"
ENDLESS = "count?n=1000000&gap_ms=5"

Fault = Callable[[HaltServer, Path], contextlib.AbstractContextManager[None]]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path, DISK_SIZE) as disk:
        yield disk


@contextlib.contextmanager
def fill_disk(server: HaltServer, folder: Path) -> Iterator[None]:
    """Another file takes all the free space of the disk."""
    with filled(folder):
        yield


@contextlib.contextmanager
def limit_files(server: HaltServer, folder: Path) -> Iterator[None]:
    """No file of the worker can grow beyond 8192 bytes."""
    master = server.process.pid
    worker = int(Path(f"/proc/{master}/task/{master}/children").read_text().split()[0])
    earlier_limit = resource.prlimit(worker, resource.RLIMIT_FSIZE, (8192, resource.RLIM_INFINITY))
    yield
    resource.prlimit(worker, resource.RLIMIT_FSIZE, earlier_limit)


@contextlib.contextmanager
def lock_database(server: HaltServer, folder: Path) -> Iterator[None]:
    """Another connection holds the write lock of the database."""
    path = folder / "halt.db"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None, timeout=20)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


def check_delayed_saving(server: HaltServer, folder: Path, fault: Fault, reason: str) -> None:
    """Check that streams continue and stop during a fault, and that all is saved afterwards."""
    client = server.client()
    client.get("/")
    page_path, stream_id = f"/c/{new_id()}", new_id()

    def send_prompt(page_path: str, text: str, stream_id: str) -> HttpResponse:
        form = urlencode({"prompt": text, "id": stream_id}).encode()
        return client.request("POST", f"{page_path}/messages", form, FORM)

    assert send_prompt(page_path, f"/fake {ENDLESS}", stream_id).status == 200
    program = client.chat(ENDLESS).until_text("9 ")
    page = client.follow(stream_id, 0).until_text("9 ")
    with fault(server, folder):
        wait_until(lambda: b"Saving fails" in client.get("/saving").body, SERVER_TIMEOUT)
        assert reason in client.get("/saving").body.decode()
        assert reason in client.get(page_path).body.decode()
        refused = send_prompt(f"/c/{new_id()}", "Is anybody there?", new_id())
        assert refused.status == 503
        assert reason in refused.body.decode()
        earlier_length = len(program.until_text("300 ").text)
        for events in (program, page):
            assert client.stop(events.id).json["upstream"] == "closed"
            assert events.to_end().terminal["type"] == "cancelled"
            assert "".join(f"{n} " for n in range(100_000)).startswith(events.text)
        assert len(program.text) >= earlier_length
    wait_until(lambda: b"hidden" in client.get("/saving").body, SERVER_TIMEOUT)
    with contextlib.closing(sqlite3.connect(folder / "halt.db")) as database:
        ended = "SELECT count(*) FROM generations WHERE state = 'stopped' AND id IN (?, ?)"
        # The first write after the fault may hold events from before the ends only.
        wait_until(
            lambda: database.execute(ended, (program.id, page.id)).fetchone() == (2,),
            SERVER_TIMEOUT,
        )
        (content,) = database.execute(
            "SELECT content FROM messages WHERE stream_id = ?", (stream_id,)
        ).fetchone()
        assert content == page.text
    assert send_prompt(page_path, "/fake count?n=3", new_id()).status == 200
    server.terminate()
    assert server.wait() == 0
    assert "Traceback" not in server.printed


@pytest.mark.slow
def test_full_disk_delays_saving_only(start_halt: StartHalt, fake: FakeOpenAI, disk: Path) -> None:
    """While the disk is full streams continue; all events are written when it has room again."""
    check_delayed_saving(start_halt(fake, HALT_DATA=disk), disk, fill_disk, "the disk is full")


@pytest.mark.slow
def test_file_size_limit_delays_saving_only(
    start_halt: StartHalt, fake: FakeOpenAI, tmp_path: Path
) -> None:
    """While files may not grow streams continue; all events are written afterwards, as after a
    quota.
    """
    check_delayed_saving(start_halt(fake, HALT_DATA=tmp_path), tmp_path, limit_files, "the disk ")


@pytest.mark.slow
def test_locked_database_delays_saving_only(
    start_halt: StartHalt, fake: FakeOpenAI, tmp_path: Path
) -> None:
    """While the database is locked, as by a backup, streams continue; all events are written
    afterwards.
    """
    check_delayed_saving(
        start_halt(fake, HALT_DATA=tmp_path),
        tmp_path,
        lock_database,
        "the database is locked by another program",
    )


def send_prompts(server: HaltServer, count: int) -> list[HttpResponse]:
    """Send a prompt of `count` pages concurrently; return the answers."""

    def send() -> HttpResponse:
        form = urlencode({"prompt": "Is anybody there?", "id": new_id()}).encode()
        return server.client().request("POST", f"/c/{new_id()}/messages", form, FORM)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(lambda _: send(), range(count)))


@pytest.mark.slow
def test_locked_database_delays_no_stop(
    start_halt: StartHalt, fake: FakeOpenAI, tmp_path: Path
) -> None:
    """While 40 prompts wait for a locked database, Stops work; all but a few prompts are refused at
    once.
    """
    server = start_halt(fake, HALT_DATA=tmp_path)
    client = server.client()
    streams = [client.chat(ENDLESS).until_text("3 ") for _ in range(4)]
    answers: list[HttpResponse] = []
    with lock_database(server, tmp_path):
        senders = threading.Thread(target=lambda: answers.extend(send_prompts(server, 40)))
        senders.start()
        stop_seconds: list[float] = []
        for events in streams:
            earlier_length = events.text.count(" ")
            for stream_id, status in ((events.id, 200), (new_id(), 202)):
                start = time.monotonic()
                assert client.stop(stream_id).status == status
                stop_seconds.append(time.monotonic() - start)
            assert events.to_end().terminal["type"] == "cancelled"
            assert events.text.count(" ") >= earlier_length
        later_stream = client.chat(ENDLESS, id=new_id()).until_text("3 ")
        client.stop(later_stream.id)
        later_stream.to_end()
        senders.join(60)
        assert not senders.is_alive()
        assert sorted(stop_seconds)[len(stop_seconds) // 2] < 10, stop_seconds
        assert {answer.status for answer in answers} == {503}
        assert {answer.headers["retry-after"] for answer in answers} == {"2"}
        assert any(b"does not answer" in answer.body for answer in answers)  # refused at once
    ids = [events.id for events in [*streams, later_stream]]
    wait_until(lambda: b"hidden" in server.client().get("/saving").body, SERVER_TIMEOUT)
    for stream_id in ids:
        assert client.follow(stream_id, 0).to_end().terminal["type"] == "cancelled"
    assert send_prompts(server, 1)[0].status == 200
    server.terminate()
    assert server.wait() == 0
    assert "Traceback" not in server.printed


@pytest.mark.slow
@pytest.mark.skipif(not POSTGRES, reason="TEST_DATABASE_URL names no PostgreSQL")
def test_frozen_postgres_delays_no_stop(start_halt: StartHalt, fake: FakeOpenAI) -> None:
    """While PostgreSQL is frozen, Stops work, their receipts note it, and the server exits on
    SIGTERM.
    """
    with Postgres() as postgres:
        server = start_halt(fake, DATABASE_URL=postgres.url)
        client = server.client()
        client.get("/")
        events = client.chat(ENDLESS).until_text("3 ")
        with postgres.frozen():
            receipt = client.stop(new_id())
            assert (receipt.status, receipt.json["status"]) == (202, "pending")
            assert "database did not answer" in receipt.json["note"]
            assert "note" not in client.stop(events.id).json
            form = urlencode({"stream_id": new_id(), "shown": "1"}).encode()
            page = client.request("POST", "/stop", form, FORM)
            assert b"database did not answer" in page.body
            server.terminate()
            assert server.wait() == 0


def test_failed_start_is_ended_when_the_store_recovers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start that failed in the store is ended when it recovers, and the next prompt is
    accepted.
    """
    upstream = ScriptedUpstream()
    config = Config(
        data=str(tmp_path), base_url="http://scripted/v1", max_streams=1, titles="words"
    )
    app = create_app(config, upstream=upstream)
    service, store = services(app).generations, services(app).store
    service.begin()
    client = app.test_client()
    client.get("/")

    def send_prompt(path: str) -> int:
        form = {"prompt": "Hello", "id": new_id()}
        return client.post(
            f"{path}/messages", data=form, headers={"HX-Request": "true"}
        ).status_code

    first, second = f"/c/{new_id()}", f"/c/{new_id()}"
    assert send_prompt(first) == 200
    upstream.reply().feed("text")

    def raise_unavailable(*_: object) -> None:
        raise StoreUnavailable("Saving failed: the disk is full.", "the disk is full")

    with monkeypatch.context() as patch:
        # The place is found to be taken only after the check.
        patch.setattr(service, "require_places", lambda starts: None)
        patch.setattr(Turns, "cancel_start", raise_unavailable)
        assert send_prompt(second) == 503
    wait_until(lambda: b'data-state="interrupted"' in client.get(second).data, SERVER_TIMEOUT)
    upstream.reply().end()
    wait_until(lambda: service.open_streams == 0, SERVER_TIMEOUT)
    assert send_prompt(second) == 200
    service.close()
    store.close()
    upstream.dispose()
