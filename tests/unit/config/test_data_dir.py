"""The data folder: private to its owner, and created once by concurrent starts."""

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
    folder_id,
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
from tests.support.halt_server import ROOT, StartHalt, refused_start
from tests.support.limited_folder import failing_calls
from tests.support.races import together
from tests.support.waiting import SERVER_TIMEOUT, wait_until


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_secret_key_is_created_once_with_private_modes(tmp_path: Path) -> None:
    """A later start reads the first one's key; folder and file are closed to other users."""
    folder = tmp_path / "new" / "halt"
    first = secret_key(folder)
    assert len(first) >= 32
    assert secret_key(folder) == first
    assert mode(folder) == 0o700
    assert mode(folder / "secret_key") == 0o600
    assert secret_key(tmp_path / "other") != first


@pytest.fixture
def umask() -> Iterator[Callable[[int], None]]:
    """Set the umask of this process and of processes that it starts, until the test's end."""
    umask_before = os.umask(0o077)

    def set_umask(mask: int) -> None:
        os.umask(mask)

    yield set_umask
    os.umask(umask_before)


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder whose path is short enough for a socket's."""
    with tempfile.TemporaryDirectory(prefix="halt-") as folder:
        yield Path(folder)


def open_to_others(folder: Path) -> list[tuple[str, str]]:
    """Return the paths below the folder that are not private, with their modes."""
    return [
        (str(path.relative_to(folder)), oct(mode(path)))
        for path in folder.rglob("*")
        if mode(path) != (0o700 if path.is_dir() else 0o600)
    ]


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o277])
def test_modes_do_not_depend_on_the_umask(
    tmp_path: Path, umask: Callable[[int], None], mask: int
) -> None:
    """Folders, those above them, files and sockets are private whatever the umask is."""
    umask(mask)
    prepare(tmp_path / "one" / "two")
    os.close(open_private(tmp_path / "one" / "file", os.O_RDWR))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        bind_private(sock, tmp_path / "one" / "socket")
    assert open_to_others(tmp_path) == []


def test_bind_private_creates_the_socket_with_its_final_mode(
    tmp_path: Path, umask: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A socket has its private mode from its creation, not from a later chmod."""
    umask(0)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        monkeypatch.setattr(
            os,
            "chmod",
            lambda file, mode_bits: os.fchmod(file, mode_bits) if isinstance(file, int) else None,
        )
        bind_private(sock, tmp_path / "socket")
    assert mode(tmp_path / "socket") == 0o600


@pytest.mark.parametrize("workers", [1, 2])
def test_server_keeps_its_whole_folder_private(
    start_halt: StartHalt,
    shared_fake: FakeOpenAI,
    short_folder: Path,
    umask: Callable[[int], None],
    workers: int,
) -> None:
    """Files stay private with a loose umask; those that an earlier Halt left open are closed."""
    folder = short_folder / "halt"
    (folder / "run").mkdir(parents=True)
    (folder / "run").chmod(0o777)
    for name in ("migrate.lock", "run/1-00000000-00000000.cleanup", "chat-history", "last_model"):
        (folder / name).write_text("")
        (folder / name).chmod(0o666)
    secret_key(folder)
    (folder / "secret_key").chmod(0o644)
    own_file = folder / "mine.toml"
    own_file.write_text("")
    own_file.chmod(0o644)
    umask(0)
    server = start_halt(
        shared_fake, HALT_DATA=folder, HALT_RATE_ADDRESS="100/minute", WEB_CONCURRENCY=workers
    )
    answer = server.client().post(
        "/chat", {"messages": [{"role": "user", "content": "Hello"}], "model": "echo"}
    )
    assert answer.status == 200
    wait_until(lambda: len(list((folder / "run").glob("*.sock"))) == workers, SERVER_TIMEOUT)
    public = open_to_others(folder)
    assert {"halt.db", "rates.db", "run"} <= {path.name for path in folder.iterdir()}
    server.terminate()
    server.wait()
    public += open_to_others(folder)
    assert set(public) == {("mine.toml", "0o644")}  # the file of another program


def test_concurrent_starts_agree_on_one_secret_key(tmp_path: Path) -> None:
    """The first of several threads creates the key; no other reads half of it or leaves a file."""
    for number in range(50):
        folder = tmp_path / str(number)
        keys = together(*[partial(secret_key, folder)] * 4)
        assert len(set(keys)) == 1
        assert [path.name for path in folder.iterdir()] == ["secret_key"]


def test_invalid_secret_key_file_is_an_error_without_its_content(tmp_path: Path) -> None:
    """An invalid key file ends the start with an error that has no part of its content; the file
    stays.
    """
    for content in (b"", b"short-key\n", b"\xff\xfe\x00"):
        (tmp_path / "secret_key").write_bytes(content)
        with pytest.raises(ConfigError) as error_info:
            secret_key(tmp_path)
        assert "secret_key" in str(error_info.value)
        assert "short-key" not in str(error_info.value)
        assert (tmp_path / "secret_key").read_bytes() == content


def test_id_of_a_folder_is_unique_and_permanent(tmp_path: Path) -> None:
    """A folder's ID is its own and stays as it is; a damaged one is a clear error."""
    folder_ids = together(*[partial(folder_id, tmp_path)] * 4)
    assert len(set(folder_ids)) == 1
    assert folder_id(tmp_path / "other") not in folder_ids
    (tmp_path / "mark").write_text("mine\n")
    with pytest.raises(ConfigError, match="mark"):
        folder_id(tmp_path)


def test_data_folder_below_a_file_is_refused(tmp_path: Path) -> None:
    """If the data folder cannot be created, the one line names HALT_DATA."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="HALT_DATA"):
        prepare(tmp_path / "file" / "halt")


def test_sockets_of_a_long_path_are_in_a_private_temporary_folder(tmp_path: Path) -> None:
    """If a socket's path would be too long, all workers use the same private folder."""
    run = run_folder(tmp_path)
    assert socket_folder(run_folder(Path("/tmp") / f"halt-test-{os.getpid()}")).name == "run"  # noqa: S108
    shutil.rmtree(f"/tmp/halt-test-{os.getpid()}")  # noqa: S108
    socket_path = run_folder(tmp_path / ("x" * 100))
    folder = socket_folder(socket_path)
    try:
        assert folder not in {run, socket_path}
        assert folder == socket_folder(socket_path)
        assert mode(folder) == 0o700
        folder.chmod(0o755)
        with pytest.raises(ConfigError, match="halt-"):
            socket_folder(socket_path)
    finally:
        folder.rmdir()


def test_concurrent_starts_complete_a_key_that_was_left_unfinished(tmp_path: Path) -> None:
    """What a start that died left of a key is completed and removed."""
    for number, key_state in enumerate(("whole", "empty", "over")):
        folder = tmp_path / str(number)
        (folder / "secret_key.first").mkdir(parents=True)
        if key_state != "empty":
            (folder / "secret_key.first" / "text").write_text("f" * 64 + "\n")
        if key_state == "over":
            (folder / "secret_key").write_text("e" * 64 + "\n")
        (key,) = set(together(*[partial(secret_key, folder)] * 4))
        assert key == {"whole": "f" * 64, "over": "e" * 64}.get(key_state, key)
        assert [path.name for path in folder.iterdir()] == ["secret_key"]


def test_concurrent_processes_agree_on_one_secret_key(tmp_path: Path) -> None:
    """Several processes that start at once read the same complete key."""
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
    outputs = {process.communicate(timeout=120)[0] for process in processes}
    assert len(outputs) == 1
    assert len(outputs.pop().split()) == 100


@pytest.mark.slow
@pytest.mark.parametrize("calls", [("link", "fsync", "chmod", "bind"), ("link", "flock")])
def test_folder_without_links_modes_or_locks_still_serves(
    start_halt: StartHalt, shared_fake: FakeOpenAI, tmp_path: Path, calls: tuple[str, ...]
) -> None:
    """Two workers serve without hard links, modes, fsync, Unix sockets or locks.

    FAT and network shares lack them. Stop reaches its stream in either worker, and the session's
    key is kept.
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


def test_folder_without_any_unix_sockets_is_refused_in_one_line(tmp_path: Path) -> None:
    """If the temporary folder has no sockets either, the one line names the settings."""
    settings = {"HALT_DATA": tmp_path / "data", "OPENAI_BASE_URL": "http://127.0.0.1:9/v1"}
    status, output = refused_start(**settings, **failing_calls(tmp_path, "bind", inside=Path("/")))
    assert status == 1
    (line,) = output.splitlines()
    assert line.startswith("halt: HALT_DATA=")
    assert "cannot hold Unix sockets" in line
    assert "(Operation not supported): set HALT_DATA" in line
    assert line.endswith("set HALT_DATA or TMPDIR to a folder of a local disk.")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["secret_key", "run"])
def test_file_in_place_of_a_folder_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    """A file in place of a folder, or the reverse, ends the start in one line."""
    if name == "run":
        (tmp_path / name).write_text("")
    else:
        (tmp_path / name).mkdir()
    status, output = refused_start(
        HALT_DATA=tmp_path, OPENAI_BASE_URL="http://127.0.0.1:9/v1", HALT_SECRET_KEY=""
    )
    assert status == 1
    (line,) = output.splitlines()
    assert line.startswith("halt: ")
    assert str(tmp_path) in line


def test_sqlite_without_shared_memory_uses_the_rollback_journal(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Halt works without the write-ahead log, and its log says so once."""
    (tmp_path / "wal-probe.db-shm").mkdir()  # SQLite needs a file here for its shared memory
    store = Store(open_database(tmp_path))
    with store.database.reading() as connection:
        assert connection.scalar(text("PRAGMA journal_mode")) == "delete"
    assert store.owners.all() == []
    store.database.close()
    assert "write-ahead log" in caplog.text
    assert "HALT_DATA" in caplog.text
