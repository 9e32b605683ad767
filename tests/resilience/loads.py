"""Loads of a server by clients, models and databases: one function for each kind.

Each is a context manager. The load exists from entry until exit, which releases everything. The
tests and `python -m bench --only stop-under-load` share them.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import re
import selectors
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlencode

from tests.resilience.bystander import Address, NotAnswered
from tests.support.hostile_texts import text_of
from tests.support.http_client import Client

#: Hostile texts of models and clients.
CASES = json.loads((Path(__file__).parents[1] / "cases" / "hostile.json").read_text())
FORM = {"Content-Type": "application/x-www-form-urlencoded", "HX-Request": "true"}
JSON = {"Content-Type": "application/json"}
ANSWER_TIMEOUT = 120.0  # seconds for one answer to a hostile request
PIECE = 65_536


def message(
    method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
) -> bytes:
    """The bytes of a request with `Connection: close`."""
    lines = {"Host": "localhost", "Connection": "close", **(headers or {})}
    if body:
        lines["Content-Length"] = str(len(body))
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + body


def chat_body(**fields: object) -> bytes:
    """A chat request's JSON."""
    return json.dumps(
        {"messages": [{"role": "user", "content": "Hello"}], "model": "count?n=3", **fields}
    ).encode()


def close_socket(sock: socket.socket) -> None:
    """Close a connection, also while another thread reads from it."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
    sock.close()


# --- repeated requests ----------------------------------------------------------------------------


class HostileAnswer(NamedTuple):
    """One answer to a hostile request: its status (0: the connection was closed without one)."""

    status: int
    seconds: float
    headers: dict[str, str]
    body: bytes


class Repeated:
    """Clients that send requests; each sends its next one after the answer to the last one."""

    def __init__(self) -> None:
        self.answers: list[HostileAnswer] = []
        self.changed = threading.Condition()
        self.over = False
        self._open: dict[int, socket.socket] = {}

    @property
    def statuses(self) -> list[int]:
        """The statuses of all answers so far."""
        return [answer.status for answer in self.answers]

    def wait(self, count: int, within: float = ANSWER_TIMEOUT) -> Sequence[HostileAnswer]:
        """Wait for `count` answers; return all so far. Raises NotAnswered at the deadline."""
        with self.changed:
            if not self.changed.wait_for(lambda: len(self.answers) >= count, within):
                raise NotAnswered(f"{len(self.answers)} answers of {count} within {within:g} s")
            return list(self.answers)

    def send(self, number: int, address: Address, data: bytes, sent: threading.Event) -> None:
        """Send one request and read its answer; set `sent` when the request was sent."""
        start = time.monotonic()
        status, headers, body = 0, dict[str, str](), b""
        with contextlib.suppress(OSError, http.client.HTTPException):
            sock = socket.create_connection(address, ANSWER_TIMEOUT)
            self._open[number] = sock
            try:
                with contextlib.suppress(
                    OSError
                ):  # a refusal may arrive before the whole request is sent
                    sock.sendall(data)
                sent.set()
                response = http.client.HTTPResponse(sock)
                response.begin()
                status = response.status
                headers = {name.lower(): value for name, value in response.getheaders()}
                body = response.read()
            finally:
                sock.close()
        sent.set()
        with self.changed:
            if not self.over:
                seconds = time.monotonic() - start
                self.answers.append(HostileAnswer(status, seconds, headers, body[:PIECE]))
                self.changed.notify_all()

    def end(self) -> None:
        self.over = True
        for sock in list(self._open.values()):
            close_socket(sock)


@contextlib.contextmanager
def repeated(address: Address, *messages: bytes, clients: int = 4) -> Iterator[Repeated]:
    """`clients` threads that send these requests in turn until exit."""
    load = Repeated()
    turns = itertools.cycle(messages)
    lock = threading.Lock()  # protects `turns`
    started = [threading.Event() for _ in range(clients)]

    def client(number: int) -> None:
        while not load.over:
            with lock:
                data = next(turns)
            load.send(number, address, data, started[number])
            if load.statuses[-1:] == [0]:
                time.sleep(0.05)  # the server accepts no connections: real clients pause as well

    threads = [
        threading.Thread(target=client, args=(number,), daemon=True) for number in range(clients)
    ]
    for thread in threads:
        thread.start()
    try:
        for event in started:
            event.wait(ANSWER_TIMEOUT)
        yield load
    finally:
        load.end()
        for thread in threads:
            thread.join(20)


@contextlib.contextmanager
def calls(*functions: Callable[[], object]) -> Iterator[list[object]]:
    """Call all functions at once, each in a thread; yields their results, in order of completion.

    An exception is a result, too. Exit waits for all functions.
    """
    results: list[object] = []

    def call(function: Callable[[], object]) -> None:
        try:
            results.append(function())
        except Exception as fault:  # noqa: BLE001 - a result, too
            results.append(fault)

    threads = [
        threading.Thread(target=call, args=(function,), daemon=True) for function in functions
    ]
    for thread in threads:
        thread.start()
    try:
        yield results
    finally:
        for thread in threads:
            thread.join(ANSWER_TIMEOUT)


def unknown_field(case: Mapping[str, object]) -> list[bytes]:
    """Requests with a hostile field name, one to each route that takes messages."""
    key = text_of(case)
    messages = [{"role": "user", "content": "x", key: 1}]
    body = json.dumps({"messages": messages, "model": "count?n=1", key: 1}).encode()
    paths = ("/chat/stream", "/chat", "/v1/chat/completions")
    return [message("POST", path, body, JSON) for path in paths]


def many_fields(count: int = 300_000) -> list[bytes]:
    """Requests whose bodies have `count` fields, as forms and as JSON."""
    form = "&".join(f"f{n:x}=" for n in range(count)).encode()
    fields = b"{" + b",".join(b'"f%x":1' % n for n in range(count)) + b"}"
    forms = [
        message("POST", path, form, {"Content-Type": FORM["Content-Type"]})
        for path in ("/stop", "/chat")
    ]
    paths = ("/stop", "/chat", "/chat/stream", "/v1/chat/completions")
    return forms + [message("POST", path, fields, JSON) for path in paths]


def import_file(size: int, messages: int = 1) -> bytes:
    """An export file of one conversation: `size` bytes of text in `messages` messages."""
    line = "Nothing but words in one long row. "
    text = (line * (size // messages // len(line) + 1))[: size // messages]
    rows = [
        {
            "id": n,
            "role": "assistant" if n % 2 == 0 else "user",
            "content": text,
            "parent": n - 1 or None,
        }
        for n in range(1, messages + 1)
    ]
    conversation = {"id": "large-conversation", "title": "Large", "messages": rows}
    return json.dumps(
        {"format": "halt-conversations", "version": 1, "conversations": [conversation]}
    ).encode()


def upload(path: str, data: bytes, headers: Mapping[str, str] | None = None) -> bytes:
    """A request that uploads a file in a multipart form, as browsers send it."""
    mark = "-----------------------------5f3a"
    before = (
        f'--{mark}\r\nContent-Disposition: form-data; name="file"; filename="large.json"\r\n'
        "Content-Type: application/json\r\n\r\n"
    )
    body = before.encode() + data + f"\r\n--{mark}--\r\n".encode()
    kind = {"Content-Type": f"multipart/form-data; boundary={mark}"}
    return message("POST", path, body, {**kind, **(headers or {})})


def imported(answer: HostileAnswer) -> str:
    """The path of the imported conversation, from the answer to the import."""
    path = re.search(rb"/c/[\w-]+", answer.body)
    if answer.status != 200 or path is None:
        raise NotAnswered(f"an import was answered {answer.status} {answer.body[:300]!r}")
    return path[0].decode()


# --- connections ----------------------------------------------------------------------------------


class Connections:
    """The open connections of a load."""

    def __init__(self) -> None:
        self.over = threading.Event()
        self.sockets: list[socket.socket] = []
        self.refused = 0  # connections that the server closed and the load opened again

    @property
    def open(self) -> int:
        """The number of connections that the server has not closed."""
        return sum(not closed(sock) for sock in self.sockets)


def closed(sock: socket.socket) -> bool:
    """Whether the server has closed the connection; reads and drops earlier data."""
    try:
        sock.setblocking(False)  # with a timeout, Python would poll before it calls recv
        while True:
            if not sock.recv(PIECE):
                return True
    except BlockingIOError:
        return False
    except OSError:
        return True


def dial(address: Address, receive_buffer: int | None = None) -> socket.socket:
    """A new connection; with a small receive buffer the server soon waits for the client."""
    sock = socket.socket()
    try:
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.settimeout(ANSWER_TIMEOUT)
        sock.connect(address)
    except BaseException:
        sock.close()
        raise
    return sock


@contextlib.contextmanager
def silent(address: Address, count: int, first: bytes = b"") -> Iterator[Connections]:
    """`count` connections that send `first` and then nothing."""
    load = Connections()
    try:
        for _ in range(count):
            with contextlib.suppress(OSError):
                sock = dial(address)
                load.sockets.append(sock)
                if first:
                    sock.sendall(first)
        yield load
    finally:
        for sock in load.sockets:
            close_socket(sock)


#: Requests after which the server closes the connection.
LAST_REQUESTS: dict[str, bytes] = {
    "close": b"GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    "http-1.0": b"GET /healthz HTTP/1.0\r\n\r\n",
    "garbage": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\xff" * 400 + b"\r\n\r\n",
    "no-method": b"\r\n\r\n\r\n",
    "bad-header": b"GET /healthz HTTP/1.1\r\nHost: a\r\nno colon\r\n\r\n",
    "long-line": b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
    "many-headers": b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 300 + b"\r\n",
    "bad-length": b"POST /stop HTTP/1.1\r\nHost: a\r\nContent-Length: 1x\r\n\r\n{}",
    "expect": b"POST /stop HTTP/1.1\r\nHost: a\r\nExpect: 200-maybe\r\nContent-Length: 2\r\n\r\n{}",
    "h2-preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "too-large": b"POST /chat HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999\r\n\r\n{}",
}


@contextlib.contextmanager
def lingering(address: Address, *requests: bytes, clients: int = 4) -> Iterator[Connections]:
    """Clients that never close: one request per connection, after each answer a new connection.

    At most 400 connections stay open.
    """
    load = Connections()
    started = threading.Event()

    def client(client_requests: Sequence[bytes]) -> None:
        for request in itertools.cycle(client_requests):
            if load.over.is_set() or len(load.sockets) > 400:
                break
            with contextlib.suppress(OSError):
                sock = dial(address)
                load.sockets.append(sock)
                sock.sendall(request)
                started.set()
                while not load.over.is_set():
                    sock.settimeout(0.5)
                    try:
                        sock.recv(PIECE)
                        break
                    except TimeoutError:
                        continue
            load.over.wait(0.02)

    threads = [
        threading.Thread(target=client, args=(requests[n % len(requests) :: clients] or requests,))
        for n in range(clients)
    ]
    for thread in threads:
        thread.start()
    try:
        started.wait(ANSWER_TIMEOUT)
        load.over.wait(0.2)  # so that more than the first connection exists
        yield load
    finally:
        load.over.set()
        for thread in threads:
            thread.join(ANSWER_TIMEOUT)
        for sock in load.sockets:
            close_socket(sock)


@contextlib.contextmanager
def dripping(
    address: Address,
    heads: Sequence[bytes],
    drop: Callable[[int], bytes],
    count: int,
    every: float = 0.05,
) -> Iterator[Connections]:
    """`count` connections that send one of `heads` and then small pieces.

    `drop(n)` is the nth piece; each connection sends one every `every` seconds. A closed
    connection is replaced.
    """
    load = Connections()
    sent = [0] * count

    def begin(number: int) -> socket.socket:
        sock = dial(address)
        sock.sendall(heads[number % len(heads)])
        sock.setblocking(False)
        return sock

    for number in range(count):
        load.sockets.append(begin(number))

    def drip() -> None:
        while not load.over.is_set():
            for number, sock in enumerate(load.sockets):
                try:
                    sock.send(drop(sent[number]))
                    sent[number] += 1
                    is_closed = closed(sock)
                except BlockingIOError:
                    is_closed = closed(sock)
                except OSError:
                    is_closed = True
                if is_closed and not load.over.is_set():
                    load.refused += 1
                    sock.close()
                    sent[number] = 0
                    with contextlib.suppress(OSError):
                        load.sockets[number] = begin(number)
            load.over.wait(every)

    thread = threading.Thread(target=drip, daemon=True)
    thread.start()
    try:
        load.over.wait(5 * every)
        yield load
    finally:
        load.over.set()
        thread.join(ANSWER_TIMEOUT)
        for sock in load.sockets:
            close_socket(sock)


#: The beginning of a request whose head never ends.
HEAD_START = b"GET /healthz HTTP/1.1\r\nHost: a\r\nX-Long: "


def slow_heads(
    address: Address, count: int = 100, every: float = 0.0
) -> contextlib.AbstractContextManager[Connections]:
    """Requests whose heads have 30 kB and continue byte by byte."""
    head = HEAD_START + b"a" * 100 + (b"\r\nX-L: " + b"a" * 2000) * 15
    return dripping(address, [head], lambda n: b"a", count, every)


def body_heads(path: str, kind: str = "application/json") -> list[bytes]:
    """Heads of requests with a body: chunked, long, and with `Expect: 100-continue`."""
    start = f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Type: {kind}\r\n"
    return [
        f"{start}Transfer-Encoding: chunked\r\n\r\n".encode(),
        f"{start}Content-Length: 1000000\r\n\r\n".encode(),
        f"{start}Expect: 100-continue\r\nContent-Length: 60000\r\n\r\n".encode(),
    ]


def slow_bodies(
    address: Address, heads: Sequence[bytes], count: int = 60
) -> contextlib.AbstractContextManager[Connections]:
    """Bodies that arrive byte by byte; chunked ones in chunks of one byte."""
    load = [heads[n % len(heads)] for n in range(count)]
    chunked = b"Transfer-Encoding" in heads[0]
    return dripping(address, load, lambda n: b"1\r\n \r\n" if chunked else b" ", count)


@contextlib.contextmanager
def unread(address: Address, requests: Sequence[bytes], count: int = 60) -> Iterator[Connections]:
    """`count` clients that request a long response and never read it."""
    load = Connections()
    try:
        with selectors.DefaultSelector() as selector:
            for number in range(count):
                sock = dial(address, receive_buffer=4096)
                load.sockets.append(sock)
                sock.sendall(requests[number % len(requests)])
                selector.register(sock, selectors.EVENT_READ)
            # Wait for the first answer. Other requests may be refused, or wait for a thread.
            selector.select(ANSWER_TIMEOUT)
        load.over.wait(0.3)
        yield load
    finally:
        for sock in load.sockets:
            close_socket(sock)


# --- a model's answers ----------------------------------------------------------------------------


def repeated_text(case: Mapping[str, object], piece: int = 0, **pace: object) -> str:
    """The name of the fake's model that writes the text of a case."""
    text = dict(case)
    if language := text.get("language"):
        text["before"] = f"```{language}\n{text['before']}"
        text["after"] = f"{text['after']}\n```\n"
    fields = {name: text[name] for name in ("before", "unit", "times", "after") if text[name]}
    if piece:
        fields["piece"] = piece
    return f"repeat?{urlencode(fields | pace)}"


def send_page_prompt(address: Address, model: str) -> tuple[Client, str, str]:
    """Send a prompt from the page; return client, path of the conversation and stream ID."""
    client = Client(*address)
    client.get("/")
    name = f"load-{time.monotonic_ns():x}"
    form = urlencode({"prompt": f"/fake {model}", "id": name}).encode()
    answer = client.request("POST", f"/c/{name}/messages", form, FORM)
    if answer.status != 200:
        raise NotAnswered(f"a prompt was answered {answer.status} {answer.body[:300]!r}")
    return client, f"/c/{name}", name


def read_page(address: Address, model: str, readers: int = 1) -> list[str]:
    """Send a prompt from the page; `readers` clients read its stream to the end at once.

    Returns the HTML that each reader got.
    """
    client, _, stream_id = send_page_prompt(address, model)

    def read() -> str:
        connection = client.connect()
        try:
            assert connection.sock is not None
            connection.sock.settimeout(ANSWER_TIMEOUT)
            client.send(connection, "GET", f"/streams/{stream_id}/page")
            response = connection.getresponse()
            html = response.read()
            if response.status != 200:
                raise NotAnswered(f"a page's stream was answered {response.status} {html[:300]!r}")
            return html.decode()
        finally:
            connection.close()

    with calls(*[read] * readers) as results:
        pass
    for result in results:
        if isinstance(result, Exception):
            raise result
    return [str(html) for html in results]


def answered_page(address: Address, model: str) -> tuple[Client, str]:
    """A conversation whose answer has ended: its client and its path."""
    client, page_path, stream_id = send_page_prompt(address, model)
    client.follow(stream_id, 0).to_end()
    return client, page_path


# --- databases that do not answer -----------------------------------------------------------------


@contextlib.contextmanager
def lock_database(folder: Path) -> Iterator[None]:
    """Hold the write lock of the SQLite database, as another program might."""
    with contextlib.closing(sqlite3.connect(folder / "halt.db", timeout=60)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            connection.rollback()


def send_prompt(address: Address, cookies: Mapping[str, str]) -> Callable[[], int]:
    """A function that sends a prompt in a new conversation and returns the status."""

    def send() -> int:
        client = Client(*address)
        client.cookies = dict(cookies)
        name = f"load-{threading.get_ident():x}-{time.monotonic_ns():x}"
        form = urlencode({"prompt": "/fake count?n=2", "id": name}).encode()
        return client.request("POST", f"/c/{name}/messages", form, FORM).status

    return send
