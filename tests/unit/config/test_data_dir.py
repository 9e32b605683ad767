"""What Halt keeps in its folder is for its owner's eyes, and made once."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import text

from halt.config.data_dir import (
    bind_private,
    mark,
    open_private,
    prepare,
    run_folder,
    secret_key,
    socket_folder,
)
from halt.config.settings import ConfigError
from halt.store.migrate import open_database
from halt.store.store import Store
from halt.testing.fake_openai import FakeOpenAI
from tests.support.halt_server import ROOT, StartHalt, eventually, refused_start
from tests.support.limited_folder import failing_calls
from tests.support.races import together


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_key_is_made_once_and_nobody_else_can_read_it(tmp_path: Path) -> None:
    """The second start finds the first one's; folder and file are closed to others."""
    folder = tmp_path / "new" / "halt"
    first = secret_key(folder)
    assert len(first) >= 32
    assert secret_key(folder) == first
    assert mode(folder) == 0o700
    assert mode(folder / "secret_key") == 0o600
    assert secret_key(tmp_path / "other") != first


@pytest.fixture
def umask() -> Iterator[Callable[[int], None]]:
    """Sets this process's umask, which processes that it starts have too, until the test's end."""
    before = os.umask(0o077)

    def set_umask(mask: int) -> None:
        os.umask(mask)

    yield set_umask
    os.umask(before)


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder in which a socket's path is not too long."""
    with tempfile.TemporaryDirectory(prefix="halt-") as folder:
        yield Path(folder)


def open_to_others(folder: Path) -> list[tuple[str, str]]:
    """What is not for its owner alone, folders above those in the given one included."""
    return [
        (str(path.relative_to(folder)), oct(mode(path)))
        for path in folder.rglob("*")
        if mode(path) != (0o700 if path.is_dir() else 0o600)
    ]


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o277])
def test_modes_do_not_depend_on_the_umask(
    tmp_path: Path, umask: Callable[[int], None], mask: int
) -> None:
    """Folders with those above them, files and sockets are their owner's alone, and whole."""
    umask(mask)
    prepare(tmp_path / "one" / "two")
    os.close(open_private(tmp_path / "one" / "file", os.O_RDWR))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        bind_private(sock, tmp_path / "one" / "socket")
    assert open_to_others(tmp_path) == []


def test_a_socket_is_never_open_to_others(
    tmp_path: Path, umask: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has its mode from the moment in which it is there, not from a moment later."""
    umask(0)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        monkeypatch.setattr(
            os, "chmod", lambda file, to: os.fchmod(file, to) if isinstance(file, int) else None
        )
        bind_private(sock, tmp_path / "socket")
    assert mode(tmp_path / "socket") == 0o600


@pytest.mark.parametrize("workers", [1, 2])
def test_a_server_keeps_everything_from_others(
    start_halt: StartHalt,
    shared_fake: FakeOpenAI,
    short_path: Path,
    umask: Callable[[int], None],
    workers: int,
) -> None:
    """With a loose umask too; what an earlier Halt left open is closed at the start."""
    folder = short_path / "halt"
    (folder / "run").mkdir(parents=True)
    (folder / "run").chmod(0o777)
    for name in ("migrate.lock", "run/1-00000000-00000000.cleanup", "chat-history"):
        (folder / name).write_text("")
        (folder / name).chmod(0o666)
    secret_key(folder)
    (folder / "secret_key").chmod(0o644)
    mine = folder / "mine.toml"
    mine.write_text("")
    mine.chmod(0o644)
    umask(0)
    server = start_halt(
        shared_fake, HALT_DATA=folder, HALT_RATE_ADDRESS="100/minute", WEB_CONCURRENCY=workers
    )
    answer = server.client().post(
        "/chat", {"messages": [{"role": "user", "content": "Hello"}], "model": "echo"}
    )
    assert answer.status == 200
    eventually(lambda: len(list((folder / "run").glob("*.sock"))) == workers)
    left = open_to_others(folder)
    assert {"halt.db", "rates.db", "run"} <= {path.name for path in folder.iterdir()}
    server.terminate()
    server.wait()
    left += open_to_others(folder)
    assert set(left) == {("mine.toml", "0o644")}  # not Halt's


def test_starters_at_once_agree_on_one_key(tmp_path: Path) -> None:
    """Whoever comes first makes it; nobody reads half of it, and nothing else is left behind."""
    for number in range(50):
        folder = tmp_path / str(number)
        keys = together(*[partial(secret_key, folder)] * 4)
        assert len(set(keys)) == 1
        assert [each.name for each in folder.iterdir()] == ["secret_key"]


def test_a_key_that_cannot_be_one_is_a_clear_error(tmp_path: Path) -> None:
    """The file is named, its content is not, and it is left as it is."""
    for content in (b"", b"short-key\n", b"\xff\xfe\x00"):
        (tmp_path / "secret_key").write_bytes(content)
        with pytest.raises(ConfigError) as caught:
            secret_key(tmp_path)
        assert "secret_key" in str(caught.value)
        assert "short-key" not in str(caught.value)
        assert (tmp_path / "secret_key").read_bytes() == content


def test_a_folder_has_a_mark_of_its_own(tmp_path: Path) -> None:
    """It stays as it is; one that was damaged is a clear error."""
    marks = together(*[partial(mark, tmp_path)] * 4)
    assert len(set(marks)) == 1
    assert mark(tmp_path / "other") not in marks
    (tmp_path / "mark").write_text("mine\n")
    with pytest.raises(ConfigError, match="mark"):
        mark(tmp_path)


def test_a_folder_that_is_none_is_named(tmp_path: Path) -> None:
    """One line that says which setting is wrong."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="HALT_DATA"):
        prepare(tmp_path / "file" / "halt")


def test_sockets_are_elsewhere_where_their_path_would_be_too_long(tmp_path: Path) -> None:
    """All workers of a data folder find the same place, and nobody else can look into it."""
    run = run_folder(tmp_path)
    assert socket_folder(run_folder(Path("/tmp") / f"halt-test-{os.getpid()}")).name == "run"  # noqa: S108
    shutil.rmtree(f"/tmp/halt-test-{os.getpid()}")  # noqa: S108
    deep = run_folder(tmp_path / ("x" * 100))
    found = socket_folder(deep)
    try:
        assert found not in {run, deep}
        assert found == socket_folder(deep)
        assert mode(found) == 0o700
        found.chmod(0o755)
        with pytest.raises(ConfigError, match="halt-"):
            socket_folder(deep)
    finally:
        found.rmdir()


def test_starters_at_once_agree_also_after_one_that_died_midway(tmp_path: Path) -> None:
    """What a process left that ended while it made the key is gone on with, and tidied up."""
    for number, left in enumerate(("whole", "empty", "over")):
        folder = tmp_path / str(number)
        (folder / "secret_key.first").mkdir(parents=True)
        if left != "empty":
            (folder / "secret_key.first" / "text").write_text("f" * 64 + "\n")
        if left == "over":
            (folder / "secret_key").write_text("e" * 64 + "\n")
        (key,) = set(together(*[partial(secret_key, folder)] * 4))
        assert key == {"whole": "f" * 64, "over": "e" * 64}.get(left, key)
        assert [each.name for each in folder.iterdir()] == ["secret_key"]


def test_processes_at_once_agree_on_one_key(tmp_path: Path) -> None:
    """As threads do; each finds a whole key at its first look."""
    code = (
        "import sys; from pathlib import Path; from halt.config.data_dir import secret_key\n"
        "sys.stdin.readline()\n"
        "for number in range(100): print(secret_key(Path(sys.argv[1]) / str(number)))"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    printed = {process.communicate(timeout=60)[0] for process in processes}
    assert len(printed) == 1
    assert len(printed.pop().split()) == 100


@pytest.mark.slow
@pytest.mark.parametrize("calls", [("link", "fsync", "chmod", "bind"), ("link", "flock")])
def test_a_folder_that_cannot_do_everything_serves(
    start_halt: StartHalt, shared_fake: FakeOpenAI, tmp_path: Path, calls: tuple[str, ...]
) -> None:
    """No hard links, modes or fsync (FAT), no Unix sockets, no locks (shares): two workers work.

    Stop finds its stream in whichever worker it is, and the session's key is kept.
    """
    data = tmp_path / "data"
    server = start_halt(
        shared_fake,
        HALT_DATA=data,
        WEB_CONCURRENCY=2,
        HALT_RATE_ADDRESS="1000/minute",
        **failing_calls(tmp_path, *calls, inside=data),
    )
    client = server.client()
    for _ in range(4):
        stream = client.chat("stall?n=2")
        stream.until_text("1 ")
        assert client.stop(stream.id).json["status"] == "stopped"
        assert stream.to_end().terminal["type"] == "cancelled"
    server.close()
    assert "Traceback" not in server.printed
    assert (data / "secret_key").exists()
    assert (mode(data / "rates.db"), mode(data / "halt.db")) == (0o600, 0o600)


def test_a_folder_that_cannot_do_enough_is_one_line(tmp_path: Path) -> None:
    """Where the folder for temporary files has no sockets either, the line names what to set."""
    settings = {"HALT_DATA": tmp_path / "data", "OPENAI_BASE_URL": "http://127.0.0.1:9/v1"}
    status, printed = refused_start(**settings, **failing_calls(tmp_path, "bind", inside=Path("/")))
    assert status == 1
    (line,) = printed.splitlines()
    assert line.startswith("halt: HALT_DATA=")
    assert "cannot hold Unix sockets" in line
    assert "(Operation not supported): set HALT_DATA" in line
    assert line.endswith("set HALT_DATA or TMPDIR to a folder of a local disk.")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["secret_key", "run"])
def test_a_folder_with_something_in_the_way_is_one_line(tmp_path: Path, name: str) -> None:
    """A file where a folder is to be, or the other way: the start ends with a line, no traceback."""
    if name == "run":
        (tmp_path / name).write_text("")
    else:
        (tmp_path / name).mkdir()
    status, printed = refused_start(
        HALT_DATA=tmp_path, OPENAI_BASE_URL="http://127.0.0.1:9/v1", HALT_SECRET_KEY=""
    )
    assert status == 1
    (line,) = printed.splitlines()
    assert line.startswith("halt: ")
    assert str(tmp_path) in line


def test_sqlite_without_shared_memory_keeps_its_usual_journal(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Halt works without the write-ahead log, and its log says so once."""
    (tmp_path / "wal-probe.db-shm").mkdir()  # where SQLite wants a file for its shared memory
    store = Store(open_database(tmp_path))
    with store.database.reading() as connection:
        assert connection.scalar(text("PRAGMA journal_mode")) == "delete"
    assert not store.conversations.has_any()
    store.database.close()
    assert "write-ahead log" in caplog.text
    assert "HALT_DATA" in caplog.text
