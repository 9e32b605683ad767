"""A failing store: streams continue, and the page reports it.

The disk is really full, the size of files is really limited, the database is really locked.
"""

from __future__ import annotations

import contextlib
import os
import resource
import sqlite3
import subprocess
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
from tests.support.stores import POSTGRES
from tests.support.waiting import SERVER_TIMEOUT, wait_until

FORM = {"Content-Type": "application/x-www-form-urlencoded", "HX-Request": "true"}
SMALL = "4m"  # of a disk
ENDLESS = "count?n=1000000&gap_ms=5"

Spoil = Callable[[HaltServer, Path], contextlib.AbstractContextManager[None]]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, with next to no room."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = os.getuid() == 0 and not subprocess.call(
        ["mount", "-t", "tmpfs", "-o", f"size={SMALL},mode=700", "tmpfs", str(place)],
        stderr=subprocess.DEVNULL,
    )
    if not mounted:
        pytest.skip("only root can make a small disk")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


@contextlib.contextmanager
def filled(server: HaltServer, folder: Path) -> Iterator[None]:
    """Something else takes all the room of the disk."""
    with (folder / "ballast").open("wb", buffering=0) as ballast, contextlib.suppress(OSError):
        while ballast.write(b"x" * 4096):
            pass
    yield
    (folder / "ballast").unlink()


@contextlib.contextmanager
def limited(server: HaltServer, folder: Path) -> Iterator[None]:
    """No file of the worker's may grow."""
    master = server.process.pid
    worker = int(Path(f"/proc/{master}/task/{master}/children").read_text().split()[0])
    before = resource.prlimit(worker, resource.RLIMIT_FSIZE, (8192, resource.RLIM_INFINITY))
    yield
    resource.prlimit(worker, resource.RLIMIT_FSIZE, before)


@contextlib.contextmanager
def locked(server: HaltServer, folder: Path) -> Iterator[None]:
    """Another program has the database for itself."""
    path = folder / "halt.db"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None, timeout=20)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


def goes_on_unsaved(server: HaltServer, folder: Path, spoil: Spoil, reason: str) -> None:
    """What every fault has in common."""
    client = server.client()
    client.get("/")
    place, stream_id = f"/c/{new_id()}", new_id()

    def say(place: str, text: str, stream_id: str) -> HttpResponse:
        form = urlencode({"prompt": text, "id": stream_id}).encode()
        return client.request("POST", f"{place}/messages", form, FORM)

    assert say(place, f"/fake {ENDLESS}", stream_id).status == 200
    program = client.chat(ENDLESS).until_text("9 ")
    page = client.follow(stream_id, 0).until_text("9 ")
    with spoil(server, folder):
        wait_until(lambda: b"Saving fails" in client.get("/saving").body, SERVER_TIMEOUT)
        assert reason in client.get("/saving").body.decode()
        assert reason in client.get(place).body.decode()
        refused = say(f"/c/{new_id()}", "Is anybody there?", new_id())
        assert refused.status == 503
        assert reason in refused.body.decode()
        reached = len(program.until_text("300 ").text)
        for events in (program, page):
            assert client.stop(events.id).json["upstream"] == "closed"
            assert events.to_end().terminal["type"] == "cancelled"
            assert "".join(f"{n} " for n in range(100_000)).startswith(events.text)
        assert len(program.text) >= reached
    wait_until(lambda: b"hidden" in client.get("/saving").body, SERVER_TIMEOUT)
    with contextlib.closing(sqlite3.connect(folder / "halt.db")) as database:
        ended = "SELECT count(*) FROM generations WHERE state = 'stopped' AND id IN (?, ?)"
        # What was being written when the fault went away may have been from before the ends.
        wait_until(
            lambda: database.execute(ended, (program.id, page.id)).fetchone() == (2,),
            SERVER_TIMEOUT,
        )
        (content,) = database.execute(
            "SELECT content FROM messages WHERE stream_id = ?", (stream_id,)
        ).fetchone()
        assert content == page.text
    assert say(place, "/fake count?n=3", new_id()).status == 200
    server.terminate()
    assert server.wait() == 0
    assert "Traceback" not in server.printed


@pytest.mark.slow
def test_full_disk_delays_saving_only(
    start_halt: StartHalt, fake: FakeOpenAI, small_disk: Path
) -> None:
    """While the disk is full streams continue; all events are written when it has room again."""
    goes_on_unsaved(start_halt(fake, HALT_DATA=small_disk), small_disk, filled, "the disk is full")


@pytest.mark.slow
def test_file_size_limit_delays_saving_only(
    start_halt: StartHalt, fake: FakeOpenAI, tmp_path: Path
) -> None:
    """While files may not grow streams continue; all events are written afterwards, as after a
    quota.
    """
    goes_on_unsaved(start_halt(fake, HALT_DATA=tmp_path), tmp_path, limited, "the disk ")


@pytest.mark.slow
def test_locked_database_delays_saving_only(
    start_halt: StartHalt, fake: FakeOpenAI, tmp_path: Path
) -> None:
    """While the database is locked, as by a backup, streams continue; all events are written
    afterwards.
    """
    goes_on_unsaved(
        start_halt(fake, HALT_DATA=tmp_path),
        tmp_path,
        locked,
        "the database is locked by another program",
    )


def crowd_of_prompts(server: HaltServer, count: int) -> list[HttpResponse]:
    """So many pages send a prompt at the same moment; the answers."""

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
    seen: list[HttpResponse] = []
    with locked(server, tmp_path):
        crowd = threading.Thread(target=lambda: seen.extend(crowd_of_prompts(server, 40)))
        crowd.start()
        took: list[float] = []
        for events in streams:
            reached = events.text.count(" ")
            for stream_id, status in ((events.id, 200), (new_id(), 202)):
                began = time.monotonic()
                assert client.stop(stream_id).status == status
                took.append(time.monotonic() - began)
            assert events.to_end().terminal["type"] == "cancelled"
            assert events.text.count(" ") >= reached
        own = client.chat(ENDLESS, id=new_id()).until_text("3 ")
        client.stop(own.id)
        own.to_end()
        crowd.join(60)
        assert not crowd.is_alive()
        assert sorted(took)[len(took) // 2] < 10, took
        assert {answer.status for answer in seen} == {503}
        assert {answer.headers["retry-after"] for answer in seen} == {"2"}
        assert any(b"does not answer" in answer.body for answer in seen)  # not made to wait
    ids = [events.id for events in [*streams, own]]
    wait_until(lambda: b"hidden" in client.get("/saving").body, SERVER_TIMEOUT)
    for stream_id in ids:
        assert client.follow(stream_id, 0).to_end().terminal["type"] == "cancelled"
    assert crowd_of_prompts(server, 1)[0].status == 200
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

    def say(place: str) -> int:
        form = {"prompt": "Hello", "id": new_id()}
        return client.post(
            f"{place}/messages", data=form, headers={"HX-Request": "true"}
        ).status_code

    first, second = f"/c/{new_id()}", f"/c/{new_id()}"
    assert say(first) == 200
    upstream.reply().feed("text")

    def unavailable(*_: object) -> None:
        raise StoreUnavailable("Saving failed: the disk is full.", "the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(service, "require_places", lambda starts: None)  # the place goes afterwards
        patched.setattr(Turns, "cancel_start", unavailable)
        assert say(second) == 503
    wait_until(lambda: b'data-state="interrupted"' in client.get(second).data, SERVER_TIMEOUT)
    upstream.reply().end()
    wait_until(lambda: service.open_streams == 0, SERVER_TIMEOUT)
    assert say(second) == 200
    service.close()
    store.close()
    upstream.dispose()
