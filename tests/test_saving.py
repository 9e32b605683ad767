"""A store that is not well under a server that answers: nobody's stream notices, and it is said.

The disk is really full, the files really may not grow, the database is really locked.
"""

from __future__ import annotations

import contextlib
import os
import resource
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlencode

import pytest

from app import create_app
from halt.config import Config
from halt.errors import StoreUnavailable
from halt.store import SqlStore
from tests.conftest import HaltServer, StartHalt, eventually, new_id
from tests.fake_openai import FakeOpenAI
from tests.scripted import Scripted
from tests.sse import Answer

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

    def say(place: str, text: str, stream_id: str) -> Answer:
        form = urlencode({"prompt": text, "id": stream_id}).encode()
        return client.request("POST", f"{place}/messages", form, FORM)

    assert say(place, f"/fake {ENDLESS}", stream_id).status == 200
    program = client.chat(ENDLESS).until_text("9 ")
    page = client.follow(stream_id, 0).until_text("9 ")
    with spoil(server, folder):
        eventually(lambda: b"Saving fails" in client.get("/saving").body)
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
    eventually(lambda: b"hidden" in client.get("/saving").body)
    with contextlib.closing(sqlite3.connect(folder / "halt.db")) as database:
        ended = "SELECT count(*) FROM generations WHERE state = 'stopped' AND id IN (?, ?)"
        # What was being written when the fault went away may have been from before the ends.
        eventually(lambda: database.execute(ended, (program.id, page.id)).fetchone() == (2,))
        (content,) = database.execute(
            "SELECT content FROM messages WHERE stream_id = ?", (stream_id,)
        ).fetchone()
        assert content == page.text
    assert say(place, "/fake count?n=3", new_id()).status == 200
    server.terminate()
    assert server.wait() == 0
    assert "Traceback" not in server.printed


def test_a_full_disk(start_halt: StartHalt, fake: FakeOpenAI, small_disk: Path) -> None:
    """All is written when there is room again."""
    goes_on_unsaved(start_halt(fake, HALT_DATA=small_disk), small_disk, filled, "the disk is full")


def test_files_that_may_not_grow(start_halt: StartHalt, fake: FakeOpenAI, tmp_path: Path) -> None:
    """As by a quota."""
    goes_on_unsaved(start_halt(fake, HALT_DATA=tmp_path), tmp_path, limited, "the disk ")


def test_a_locked_database(start_halt: StartHalt, fake: FakeOpenAI, tmp_path: Path) -> None:
    """As by a backup that takes its time."""
    goes_on_unsaved(
        start_halt(fake, HALT_DATA=tmp_path),
        tmp_path,
        locked,
        "the database is locked by another program",
    )


def test_a_prompt_that_can_neither_be_answered_nor_taken_back_is_not_left_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the store is well it is told, and the conversation takes the next prompt."""
    upstream = Scripted()
    config = Config(
        data=str(tmp_path), base_url="http://scripted/v1", max_streams=1, titles="words"
    )
    app = create_app(config, upstream=upstream)
    service, store = app.extensions["halt"], app.extensions["halt.store"]
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
        raise StoreUnavailable("This could not be saved: the disk is full.", "the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(service, "expect_room", lambda starts: None)  # the place goes afterwards
        patched.setattr(SqlStore, "take_back", unavailable)
        assert say(second) == 503
    eventually(lambda: b'data-state="interrupted"' in client.get(second).data)
    upstream.reply().end()
    eventually(lambda: service.open_streams == 0)
    assert say(second) == 200
    service.close()
    store.close()
    upstream.dispose()
