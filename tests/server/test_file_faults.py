"""Uploads that fail: clients that leave or are slow, a full disk, a reading process that dies.

After each of them nothing is left behind, and the next file is taken.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import sqlite3
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

from halt.chat.uploads import RECEIVED_MAX
from halt.server.request_buffer import FILE_BODY_MAX, Kind
from halt.server.thread_pools import THREADS_MAX
from halt.testing.fake_openai import FakeOpenAI
from tests.support import small_disk
from tests.support.files import image
from tests.support.halt_server import HaltServer, StartHalt, settings
from tests.support.process_facts import tree
from tests.support.uploads import multipart, upload, uploaded
from tests.support.waiting import SERVER_TIMEOUT, BackgroundCall, wait_until

READER = b"halt.files.process"  # in the command of a reading process
MANY = 3 * FILE_BODY_MAX  # bytes of a file that a thread receives


@pytest.fixture(scope="module")
def server(shared_fake: FakeOpenAI) -> Iterator[HaltServer]:
    server = HaltServer(settings(shared_fake))
    uploaded(server.client(), b"The first file starts what reads files.")
    yield server
    server.close()


def head(
    length: int | None, path: str = "/files?name=a.txt", cookies: Mapping[str, str] | None = None
) -> bytes:
    """The head of an upload, in chunks where it has no length."""
    how = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    if cookies:
        how += "\r\nCookie: " + "; ".join(f"{name}={value}" for name, value in cookies.items())
    return f"POST {path} HTTP/1.1\r\nHost: localhost\r\n{how}\r\n\r\n".encode()


def connect(server: HaltServer) -> socket.socket:
    return socket.create_connection((server.host, server.port), timeout=20)


def spooled(server: HaltServer, folder: Path | None = None) -> list[str]:
    """The files without names that processes of the server have open in its data folder."""
    paths = []
    for pid in tree(server.process.pid):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):  # it is closed meanwhile
                paths.append(os.readlink(link))
    inside = str(folder or server.data_folder)
    return [path for path in paths if path.startswith(inside) and path.endswith(" (deleted)")]


def uploading(server: HaltServer) -> int:
    """The number of uploads that are received: each has two files, one for what is kept of it."""
    return len(spooled(server)) // 2


def kept(folder: Path) -> list[tuple[str, bool]]:
    """The hashes of the files in the database, and whether they are complete."""
    with contextlib.closing(sqlite3.connect(folder / "halt.db")) as database:
        return database.execute("SELECT hash, complete FROM files").fetchall()


def readers(server: HaltServer) -> list[int]:
    """The process IDs of the reading processes."""
    found = []
    for pid in tree(server.process.pid):
        with contextlib.suppress(OSError):
            if READER in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


def leave(sock: socket.socket) -> None:
    """Close a connection, as a client that leaves."""
    sock.close()


def abort(sock: socket.socket) -> None:
    """Close a connection with a reset, as a network that is cut."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def wait_nothing_left(server: HaltServer, before: list[tuple[str, bool]]) -> None:
    """Wait until no file is spooled; the database has what it had."""
    wait_until(lambda: not spooled(server), SERVER_TIMEOUT)
    assert kept(server.data_folder) == before
    assert "Traceback" not in server.printed
    assert upload(server.client(), secrets.token_hex(20).encode()).status == 201


# --- clients --------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [leave, abort])
@pytest.mark.parametrize("is_chunked", [False, True])
def test_client_that_leaves_in_mid_upload_leaves_nothing(
    server: HaltServer, end: Callable[[socket.socket], None], is_chunked: bool
) -> None:
    """Neither a temporary file nor a row; a thread was receiving the file."""
    before = kept(server.data_folder)
    sock = connect(server)
    data = b"x" * (2 * FILE_BODY_MAX)
    sock.sendall(head(None) + b"%x\r\n" % MANY + data if is_chunked else head(MANY) + data)
    wait_until(lambda: spooled(server), SERVER_TIMEOUT)
    end(sock)
    wait_nothing_left(server, before)


def test_client_that_leaves_early_leaves_nothing(server: HaltServer) -> None:
    """A short file that breaks off is refused where the client still listens."""
    before = kept(server.data_folder)
    for length in (1000, None):
        sock = connect(server)
        sock.sendall(head(length) + (b"5\r\nabcde\r\n" if length is None else b"abcde"))
        sock.shutdown(socket.SHUT_WR)
        answer = sock.makefile("rb").read()  # head and body may come apart
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b"The upload broke off." in answer
        sock.close()
    wait_nothing_left(server, before)


def test_form_that_breaks_off_sends_nothing(server: HaltServer) -> None:
    """Not even its prompt, or the files that had arrived."""
    before = kept(server.data_folder)
    body, kind = multipart({"prompt": "Hello"}, [("a.txt", b"first"), ("b.txt", bytes(5000))])
    conversation = secrets.token_urlsafe(16)
    lines = "".join(f"{name}: {value}\r\n" for name, value in kind.items())
    start = head(len(body), f"/files/messages/{conversation}").replace(
        b"\r\n\r\n", f"\r\n{lines}\r\n".encode()
    )
    with connect(server) as sock:
        sock.sendall(start + body[:-3000])
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(10_000).startswith(b"HTTP/1.1 400 ")
    wait_nothing_left(server, before)


@pytest.mark.parametrize(
    "chunks", [b"x\r\n", b"5\r\nabcdefgh\r\n", b"-5\r\nabcde\r\n0\r\n\r\n"], ids=repr
)
def test_malformed_chunks_are_refused(server: HaltServer, chunks: bytes) -> None:
    """With an error, and nothing is kept."""
    before = kept(server.data_folder)
    with connect(server) as sock:
        sock.sendall(head(None) + chunks)
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(10_000).startswith(b"HTTP/1.1 400 ")
    wait_nothing_left(server, before)


@pytest.mark.parametrize("path", ["/files/messages/some_conversation", "/import"])
def test_form_is_kept_in_the_data_folder_while_it_arrives(server: HaltServer, path: str) -> None:
    """The folder for temporary files of the system may be in memory, or small."""
    before = kept(server.data_folder)
    body, kind = multipart({}, [("a.txt", bytes(MANY))], "files" if "messages" in path else "file")
    lines = "".join(f"{name}: {value}\r\n" for name, value in kind.items())
    with connect(server) as sock:
        sock.sendall(head(len(body), path).replace(b"\r\n\r\n", f"\r\n{lines}\r\n".encode()))
        sock.sendall(body[:-3000])
        wait_until(lambda: spooled(server), SERVER_TIMEOUT)
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(10_000).startswith(b"HTTP/1.1 400 ")
    wait_nothing_left(server, before)


def test_slow_uploads_hold_up_no_other_client(server: HaltServer) -> None:
    """Fifty clients send a byte of a file now and then: others are served at once."""
    client = server.client()
    client.get("/")
    with ExitStack() as stack:
        slow = [stack.enter_context(connect(server)) for _ in range(50)]
        events = stack.enter_context(client.chat("stall?n=1")).until_text("0 ")
        for sock in slow:
            sock.sendall(head(MANY))
        for _ in range(3):
            for sock in slow:
                sock.sendall(b"x")
            assert upload(client, secrets.token_hex(20).encode()).status == 201
            assert client.get("/").status == 200
        assert client.stop(events.id).json["upstream"] == "closed"
        assert client.chat("count?n=3").to_end().text == "0 1 2 "


def test_uploads_that_stall_take_no_place_of_a_stream(
    start_halt: StartHalt, fake: FakeOpenAI
) -> None:
    """Threads wait for the rest of their files; another file, an answer and a Stop have others."""
    server = start_halt(fake, HALT_MAX_STREAMS=1)
    client = server.client()
    client.get("/")
    with ExitStack() as stack:
        for _ in range(THREADS_MAX[Kind.UPLOAD] - 1):
            sock = stack.enter_context(connect(server))
            sock.sendall(head(MANY) + bytes(FILE_BODY_MAX))
        wait_until(lambda: uploading(server) >= THREADS_MAX[Kind.UPLOAD] - 1, SERVER_TIMEOUT)
        events = stack.enter_context(client.chat("stall?n=1")).until_text("0 ")
        assert upload(client, image(), "a.png").status == 201
        assert client.stop(events.id).json["upstream"] == "closed"
        events.to_end()
    wait_until(lambda: not spooled(server), SERVER_TIMEOUT)


def test_uploads_of_one_person_leave_threads_to_others(server: HaltServer) -> None:
    """As many uploads as there are threads stall: the next one is refused, one of another taken."""
    anna, ben = server.client(), server.client()
    anna.get("/")
    with ExitStack() as stack:
        for _ in range(THREADS_MAX[Kind.UPLOAD]):
            sock = stack.enter_context(connect(server))
            sock.sendall(head(MANY, cookies=anna.cookies) + bytes(FILE_BODY_MAX))
        wait_until(lambda: uploading(server) >= RECEIVED_MAX, SERVER_TIMEOUT)
        refused = upload(anna, b"The next file of the same person.")
        assert (refused.status, refused.error["code"]) == (503, "at_capacity")
        assert int(refused.headers["retry-after"]) > 0
        assert upload(ben, b"A file of another person.").status == 201
    wait_until(lambda: not spooled(server), SERVER_TIMEOUT)


# --- the disk -------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk.small_disk(tmp_path, "4m") as disk:
        yield disk


def test_full_disk_refuses_a_file_and_says_so(
    start_halt: StartHalt, fake: FakeOpenAI, disk: Path
) -> None:
    """A running answer goes on; with room again the same file is taken."""
    server = start_halt(fake, HALT_DATA=disk)
    client = server.client()
    uploaded(client, b"The first file.")
    before = kept(disk)
    data = secrets.token_hex(100_000).encode()
    with client.chat("stall?n=1").until_text("0 ") as events:
        with small_disk.filled(disk):
            refused = upload(client, data, "large.txt")
            assert (refused.status, refused.error["code"]) == (503, "store_unavailable")
            assert refused.error["message"] == (
                "large.txt: The disk is full. The file was not kept."
            )
            assert refused.error["retryable"] is True
            assert int(refused.headers["retry-after"]) >= 1
        assert client.stop(events.id).json["upstream"] == "closed"
    assert not spooled(server, disk)
    assert kept(disk) == before
    assert upload(client, data, "large.txt").status == 201
    assert "Traceback" not in server.printed


def test_full_database_refuses_a_file_and_says_so(
    start_halt: StartHalt, fake: FakeOpenAI, disk: Path
) -> None:
    """The file was received and read; there was no room to keep it."""
    server = start_halt(fake, HALT_DATA=disk)
    client = server.client()
    data = secrets.token_hex(1_100_000).encode()
    refused = upload(client, data, "large.txt")
    assert (refused.status, refused.error["code"]) == (503, "store_unavailable")
    assert "the disk is full" in refused.error["message"].lower()
    assert not spooled(server, disk)
    assert [row for row in kept(disk) if row[1]] == []
    assert "Traceback" not in server.printed
    assert client.get("/").status == 200


# --- the reading process --------------------------------------------------------------------------


def test_file_whose_reading_process_is_killed_is_read_by_another(server: HaltServer) -> None:
    """The process was killed by the system, not by the file."""
    client = server.client()
    uploaded(client, secrets.token_hex(20).encode())
    first = readers(server)
    assert first
    for pid in first:
        os.kill(pid, signal.SIGSTOP)
    waiting = BackgroundCall(lambda: upload(client, image(300, 200), "a.png"))
    wait_until(lambda: spooled(server), SERVER_TIMEOUT)
    for pid in first:
        os.kill(pid, signal.SIGKILL)
    assert waiting.end(SERVER_TIMEOUT) is None
    assert getattr(waiting.result, "status", None) == 201
    assert not set(readers(server)) & set(first)
    assert "Traceback" not in server.printed


def test_server_ends_with_a_file_in_mid_upload(start_halt: StartHalt, fake: FakeOpenAI) -> None:
    """It waits for no client, and no process of it remains."""
    server = start_halt(fake, HALT_GRACEFUL_TIMEOUT=1)
    uploaded(server.client(), b"text")
    with connect(server) as sock:
        sock.sendall(head(MANY) + bytes(2 * FILE_BODY_MAX))
        wait_until(lambda: spooled(server), SERVER_TIMEOUT)
        server.terminate()
        assert server.wait() == 0
    wait_until(lambda: server.gone, SERVER_TIMEOUT)
