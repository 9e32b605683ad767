"""The reading processes of a worker: limits, faults, ends; with real processes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from halt.files import readers as module
from halt.files.faults import FileError, ReadersBusy, Unreadable
from halt.files.protocol import Request, frame
from halt.files.readers import PROCESSES, Readers, ReadFile, temporary_file
from tests.support.files import with_reading
from tests.support.waiting import SERVER_TIMEOUT, WAIT_TIMEOUT, BackgroundCall, wait_until


def read(readers: Readers, folder: Path, content: bytes = b"text") -> ReadFile:
    """Read a text file of this content."""
    with temporary_file(folder) as source, temporary_file(folder) as kept:
        source.write(content)
        source.flush()
        return readers.read(source, kept, "a.txt", max_chars=1000, max_bytes=1000)


def test_process_is_used_again_and_ends_without_work(tmp_path: Path) -> None:
    """One process reads one file after the other; it ends when none comes."""
    readers = Readers(idle=0.2)
    read(readers, tmp_path)
    pids = readers.pids
    read(readers, tmp_path)
    assert readers.pids in (pids, [])
    wait_until(lambda: not readers.pids, SERVER_TIMEOUT)
    read(readers, tmp_path)
    readers.close()


@pytest.mark.parametrize(
    "body",
    [
        "while True: pass",
        "x = bytearray(3 * 10**9); raise SystemExit",
        "import ctypes; ctypes.string_at(0)",
        "import os; os._exit(0)",
        "import threading; threading.Event().wait()",
    ],
    ids=["CPU", "memory", "crash", "exit", "hangs"],
)
def test_file_that_takes_too_much_is_refused(
    body: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process ends with that file alone; the next file has a new one."""
    monkeypatch.setattr(module, "REAL_MAX", 3.0)
    readers = Readers(with_reading(f"if source.read() == b'bad':\n        {body}"))
    read(readers, tmp_path)
    pids = readers.pids
    with pytest.raises(FileError, match=r"^a\.txt: .*too much"):
        read(readers, tmp_path, b"bad")
    assert not set(pids) & set(readers.pids)
    assert read(readers, tmp_path).facts.chars == 4
    readers.close()


def test_process_has_limits_and_not_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that takes over the process finds no keys, and cannot take all memory."""
    monkeypatch.setenv("HALT_TEST_KEY", "secret")
    readers = Readers()
    read(readers, tmp_path)
    (pid,) = readers.pids
    folder = Path(f"/proc/{pid}")
    assert b"secret" not in (folder / "environ").read_bytes()
    limits = (folder / "limits").read_text()
    assert "Max address space         1000000000" in limits
    assert "Max core file size        0" in limits
    assert os.getpriority(os.PRIO_PROCESS, pid) > 0
    readers.close()


def test_files_wait_for_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most PROCESSES are read at once; a file that waits too long is refused."""
    monkeypatch.setattr(module, "WAIT_MAX", 0.2)
    readers = Readers(with_reading("import threading; threading.Event().wait()"))
    calls = [BackgroundCall(lambda: read(readers, tmp_path)) for _ in range(PROCESSES)]
    wait_until(lambda: len(readers.pids) == PROCESSES, SERVER_TIMEOUT)
    with pytest.raises(ReadersBusy):
        read(readers, tmp_path)
    monkeypatch.setattr(module, "WAITING_MAX", 0)
    with pytest.raises(ReadersBusy):
        read(readers, tmp_path)
    readers.close()
    for call in calls:
        assert isinstance(call.end(SERVER_TIMEOUT), Unreadable)


def test_process_that_was_killed_in_between_is_replaced(tmp_path: Path) -> None:
    readers = Readers()
    read(readers, tmp_path)
    (pid,) = readers.pids
    os.kill(pid, signal.SIGKILL)
    assert read(readers, tmp_path).facts.chars == 4
    readers.close()


def test_file_at_the_limit_of_time_is_not_read_again(tmp_path: Path) -> None:
    """The process that it ended had read another file before."""
    tries = tmp_path / "tries"
    readers = Readers(
        with_reading(
            "if source.read() == b'bad':\n"
            f"        open({str(tries)!r}, 'a').write('x')\n"
            f"        import time; until = time.monotonic() + {module.SOON + 0.1}\n"
            "        while time.monotonic() < until: pass\n"
            "        import os; os._exit(0)"
        )
    )
    read(readers, tmp_path)
    with pytest.raises(FileError, match="too much"):
        read(readers, tmp_path, b"bad")
    assert tries.read_text() == "x"
    readers.close()


def test_process_that_a_file_has_made_large_ends(tmp_path: Path) -> None:
    """It would keep that memory while files come."""
    readers = Readers(with_reading("reading.kept = b'x' * 300_000_000"))
    assert read(readers, tmp_path).facts.chars == 4
    assert not readers.pids
    readers.close()


def test_process_whose_worker_has_ended_ends_in_silence(tmp_path: Path) -> None:
    """The worker is killed while a file is read; nothing is printed into its log."""
    stops = with_reading("import os; os.kill(os.getpid(), 19)")  # SIGSTOP
    worker, other_end = socket.socketpair()
    with subprocess.Popen(stops, stdin=other_end.fileno(), stderr=subprocess.PIPE) as process:
        other_end.close()
        with temporary_file(tmp_path) as source, temporary_file(tmp_path) as kept:
            out = frame(Request("a.txt", 1000, 1000))
            socket.send_fds(worker, [out], [source.fileno(), kept.fileno()])
        _, status = os.waitpid(process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        worker.close()
        process.send_signal(signal.SIGCONT)
        printed = process.communicate(timeout=SERVER_TIMEOUT)[1]
    assert (process.returncode, printed) == (0, b"")


def test_program_that_cannot_start_is_told(tmp_path: Path) -> None:
    """The caller gets an OSError; the place is given back."""
    readers = Readers(("false",))
    for _ in range(PROCESSES + 1):
        with pytest.raises(OSError, match="no reading process"):
            read(readers, tmp_path)


def test_many_threads_read_their_own_files(readers: Readers, tmp_path: Path) -> None:
    """The replies do not get mixed up."""
    found: dict[int, int] = {}

    def work(number: int) -> Callable[[], None]:
        def read_one() -> None:
            found[number] = read(readers, tmp_path, b"x" * number).facts.chars

        return read_one

    threads = [threading.Thread(target=work(number)) for number in range(1, 21)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_TIMEOUT * 3)
    assert found == {number: number for number in range(1, 21)}
    assert len(readers.pids) <= PROCESSES
