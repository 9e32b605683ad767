"""Loads of a server by clients, models and databases: one function for each kind.

Each is a context manager. On entry the load is there; it goes on until exit, which leaves nothing
behind. The tests and `python -m bench --only held` use the same ones.
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

from tests.resilience.bystander import Address, Held
from tests.support.http_client import Client

#: Hostile texts, as models and strangers write them.
CASES = json.loads((Path(__file__).parents[1] / "cases" / "hostile.json").read_text())
FORM = {"Content-Type": "application/x-www-form-urlencoded", "HX-Request": "true"}
JSON = {"Content-Type": "application/json"}
PATIENCE = 120.0  # seconds for one answer to a hostile request
PIECE = 65_536


def text_of(case: Mapping[str, object]) -> str:
    """The text of a case, a fenced code block where it names a language."""
    text = f"{case['before']}{str(case['unit']) * int(str(case['times']))}{case['after']}"
    language = case.get("language")
    return f"```{language}\n{text}\n```\n" if language else text


def message(
    method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
) -> bytes:
    """A request, on a connection that is closed behind its answer."""
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


def shut(sock: socket.socket) -> None:
    """End a connection, also under a thread that reads from it."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
    sock.close()


# --- requests that are sent again and again -------------------------------------------------------


class Answered(NamedTuple):
    """One answer to a hostile request: its status (0: the connection was closed without one)."""

    status: int
    seconds: float
    headers: dict[str, str]
    body: bytes


class Repeated:
    """Clients that send requests, each the next one when the one before was answered."""

    def __init__(self) -> None:
        self.answers: list[Answered] = []
        self.changed = threading.Condition()
        self.over = False
        self._open: dict[int, socket.socket] = {}

    @property
    def statuses(self) -> list[int]:
        """Of all answers so far."""
        return [each.status for each in self.answers]

    def wait(self, count: int, within: float = PATIENCE) -> Sequence[Answered]:
        """Wait until there were so many answers."""
        with self.changed:
            if not self.changed.wait_for(lambda: len(self.answers) >= count, within):
                raise Held(f"{len(self.answers)} answers of {count} within {within:g} s")
            return list(self.answers)

    def send(self, number: int, address: Address, data: bytes, sent: threading.Event) -> None:
        """One request and its answer."""
        began = time.monotonic()
        status, headers, body = 0, dict[str, str](), b""
        with contextlib.suppress(OSError, http.client.HTTPException):
            sock = socket.create_connection(address, PATIENCE)
            self._open[number] = sock
            try:
                with contextlib.suppress(OSError):  # a refusal may come before all was sent
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
                taken = time.monotonic() - began
                self.answers.append(Answered(status, taken, headers, body[:PIECE]))
                self.changed.notify_all()

    def end(self) -> None:
        self.over = True
        for sock in list(self._open.values()):
            shut(sock)


@contextlib.contextmanager
def repeated(address: Address, *messages: bytes, clients: int = 4) -> Iterator[Repeated]:
    """So many clients send these requests in turn, for as long as it lasts."""
    load = Repeated()
    turns = itertools.cycle(messages)
    lock = threading.Lock()  # protects `turns`
    begun = [threading.Event() for _ in range(clients)]

    def client(number: int) -> None:
        while not load.over:
            with lock:
                data = next(turns)
            load.send(number, address, data, begun[number])
            if load.statuses[-1:] == [0]:
                time.sleep(0.05)  # the server takes no connections: a client would wait as well

    threads = [
        threading.Thread(target=client, args=(number,), daemon=True) for number in range(clients)
    ]
    for thread in threads:
        thread.start()
    try:
        for each in begun:
            each.wait(PATIENCE)
        yield load
    finally:
        load.end()
        for thread in threads:
            thread.join(20)


@contextlib.contextmanager
def calls(*functions: Callable[[], object]) -> Iterator[list[object]]:
    """Functions that are called at once, each in a thread; the results, in order of their ends.

    A fault of one stands among the results. On exit each is waited for.
    """
    results: list[object] = []

    def call(function: Callable[[], object]) -> None:
        try:
            results.append(function())
        except Exception as fault:  # noqa: BLE001 - the caller looks at it
            results.append(fault)

    threads = [threading.Thread(target=call, args=(each,), daemon=True) for each in functions]
    for thread in threads:
        thread.start()
    try:
        yield results
    finally:
        for thread in threads:
            thread.join(PATIENCE)


def unknown_field(case: Mapping[str, object]) -> list[bytes]:
    """Requests with a hostile name of a field, to each route that takes messages."""
    key = text_of(case)
    said = [{"role": "user", "content": "x", key: 1}]
    body = json.dumps({"messages": said, "model": "count?n=1", key: 1}).encode()
    paths = ("/chat/stream", "/chat", "/v1/chat/completions")
    return [message("POST", path, body, JSON) for path in paths]


def many_fields(count: int = 300_000) -> list[bytes]:
    """Bodies of so many fields, as a form and as JSON."""
    form = "&".join(f"f{n:x}=" for n in range(count)).encode()
    fields = b"{" + b",".join(b'"f%x":1' % n for n in range(count)) + b"}"
    forms = [
        message("POST", path, form, {"Content-Type": FORM["Content-Type"]})
        for path in ("/stop", "/chat")
    ]
    paths = ("/stop", "/chat", "/chat/stream", "/v1/chat/completions")
    return forms + [message("POST", path, fields, JSON) for path in paths]


def import_file(size: int, messages: int = 1) -> bytes:
    """A file of one conversation with so many bytes of text in all, in so many messages."""
    line = "Nothing but words in one long row. "
    text = (line * (size // messages // len(line) + 1))[: size // messages]
    said = [
        {
            "id": n,
            "role": "assistant" if n % 2 == 0 else "user",
            "content": text,
            "parent": n - 1 or None,
        }
        for n in range(1, messages + 1)
    ]
    conversation = {"id": "large-conversation", "title": "Large", "messages": said}
    return json.dumps(
        {"format": "halt-conversations", "version": 1, "conversations": [conversation]}
    ).encode()


def upload(path: str, data: bytes, headers: Mapping[str, str] | None = None) -> bytes:
    """A file of a form, as browsers send it."""
    mark = "-----------------------------5f3a"
    before = (
        f'--{mark}\r\nContent-Disposition: form-data; name="file"; filename="large.json"\r\n'
        "Content-Type: application/json\r\n\r\n"
    )
    body = before.encode() + data + f"\r\n--{mark}--\r\n".encode()
    kind = {"Content-Type": f"multipart/form-data; boundary={mark}"}
    return message("POST", path, body, {**kind, **(headers or {})})


def imported(answer: Answered) -> str:
    """The path of the conversation that an import has made."""
    found = re.search(rb"/c/[\w-]+", answer.body)
    if answer.status != 200 or found is None:
        raise Held(f"an import was answered {answer.status} {answer.body[:300]!r}")
    return found[0].decode()


# --- connections ----------------------------------------------------------------------------------


class Connections:
    """Connections that a load holds. `answered` are those on which the server has said something."""

    def __init__(self) -> None:
        self.over = threading.Event()
        self.held: list[socket.socket] = []
        self.refused = 0  # connections that the server closed, and that were made again

    @property
    def open(self) -> int:
        """Connections that the server has not closed."""
        return sum(not closed(sock) for sock in self.held)


def closed(sock: socket.socket) -> bool:
    """Whether the server has closed it; what it said before is dropped."""
    try:
        sock.setblocking(False)  # with a time limit, Python waits before it asks the system
        while True:
            if not sock.recv(PIECE):
                return True
    except BlockingIOError:
        return False
    except OSError:
        return True


def dial(address: Address, receive_buffer: int | None = None) -> socket.socket:
    """A connection; with a small buffer its server soon has to wait."""
    sock = socket.socket()
    try:
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.settimeout(PATIENCE)
        sock.connect(address)
    except BaseException:
        sock.close()
        raise
    return sock


@contextlib.contextmanager
def silent(address: Address, count: int, first: bytes = b"") -> Iterator[Connections]:
    """So many connections that say this much, nothing by default, and then nothing."""
    load = Connections()
    try:
        for _ in range(count):
            with contextlib.suppress(OSError):
                sock = dial(address)
                load.held.append(sock)
                if first:
                    sock.sendall(first)
        yield load
    finally:
        for sock in load.held:
            shut(sock)


#: What clients say that leave their side of the connection open behind the answer.
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
    """Clients that ask one thing each and do not close; as soon as one is answered, another comes.

    At most 400 connections are held.
    """
    load = Connections()
    begun = threading.Event()

    def client(share: Sequence[bytes]) -> None:
        for request in itertools.cycle(share):
            if load.over.is_set() or len(load.held) > 400:
                break
            with contextlib.suppress(OSError):
                sock = dial(address)
                load.held.append(sock)
                sock.sendall(request)
                begun.set()
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
        begun.wait(PATIENCE)
        load.over.wait(0.2)  # for more than the first of them
        yield load
    finally:
        load.over.set()
        for thread in threads:
            thread.join(PATIENCE)
        for sock in load.held:
            shut(sock)


@contextlib.contextmanager
def dripping(
    address: Address,
    heads: Sequence[bytes],
    drop: Callable[[int], bytes],
    count: int,
    every: float = 0.05,
) -> Iterator[Connections]:
    """So many connections, each begun with one of these, that go on byte by byte.

    `drop(n)` is what is sent as the nth piece; all connections send one each `every` seconds. One
    that the server closes is made anew.
    """
    load = Connections()
    sent = [0] * count

    def begin(number: int) -> socket.socket:
        sock = dial(address)
        sock.sendall(heads[number % len(heads)])
        sock.setblocking(False)
        return sock

    for number in range(count):
        load.held.append(begin(number))

    def drip() -> None:
        while not load.over.is_set():
            for number, sock in enumerate(load.held):
                try:
                    sock.send(drop(sent[number]))
                    sent[number] += 1
                    gone = closed(sock)
                except BlockingIOError:
                    gone = closed(sock)
                except OSError:
                    gone = True
                if gone and not load.over.is_set():
                    load.refused += 1
                    sock.close()
                    sent[number] = 0
                    with contextlib.suppress(OSError):
                        load.held[number] = begin(number)
            load.over.wait(every)

    thread = threading.Thread(target=drip, daemon=True)
    thread.start()
    try:
        load.over.wait(5 * every)
        yield load
    finally:
        load.over.set()
        thread.join(PATIENCE)
        for sock in load.held:
            shut(sock)


#: The beginning of a request whose head never ends.
HEAD_START = b"GET /healthz HTTP/1.1\r\nHost: a\r\nX-Long: "


def slow_heads(
    address: Address, count: int = 100, every: float = 0.0
) -> contextlib.AbstractContextManager[Connections]:
    """Heads of which 30 kB are there, and the rest comes byte by byte."""
    so_far = HEAD_START + b"a" * 100 + (b"\r\nX-L: " + b"a" * 2000) * 15
    return dripping(address, [so_far], lambda n: b"a", count, every)


def body_heads(path: str, kind: str = "application/json") -> list[bytes]:
    """Requests whose bodies are not there yet: in chunks, long, and one that waits for a word."""
    start = f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Type: {kind}\r\n"
    return [
        f"{start}Transfer-Encoding: chunked\r\n\r\n".encode(),
        f"{start}Content-Length: 1000000\r\n\r\n".encode(),
        f"{start}Expect: 100-continue\r\nContent-Length: 60000\r\n\r\n".encode(),
    ]


def slow_bodies(
    address: Address, heads: Sequence[bytes], count: int = 60
) -> contextlib.AbstractContextManager[Connections]:
    """Bodies that come byte by byte; those in chunks as chunks of one byte."""
    load = [heads[n % len(heads)] for n in range(count)]
    chunked = b"Transfer-Encoding" in heads[0]
    return dripping(address, load, lambda n: b"1\r\n \r\n" if chunked else b" ", count)


@contextlib.contextmanager
def unread(address: Address, requests: Sequence[bytes], count: int = 60) -> Iterator[Connections]:
    """So many clients that ask for something long and never read it."""
    load = Connections()
    try:
        with selectors.DefaultSelector() as selector:
            for number in range(count):
                sock = dial(address, receive_buffer=4096)
                load.held.append(sock)
                sock.sendall(requests[number % len(requests)])
                selector.register(sock, selectors.EVENT_READ)
            # Some of them are being answered. Others may be refused, or wait for a thread.
            selector.select(PATIENCE)
        load.over.wait(0.3)
        yield load
    finally:
        for sock in load.held:
            shut(sock)


# --- a model's answers ----------------------------------------------------------------------------


def repeated_text(case: Mapping[str, object], piece: int = 0, **pace: object) -> str:
    """The model that writes the text of a case."""
    text = dict(case)
    if language := text.get("language"):
        text["before"] = f"```{language}\n{text['before']}"
        text["after"] = f"{text['after']}\n```\n"
    fields = {name: text[name] for name in ("before", "unit", "times", "after") if text[name]}
    if piece:
        fields["piece"] = piece
    return f"repeat?{urlencode(fields | pace)}"


def ask_on_page(address: Address, model: str) -> tuple[Client, str, str]:
    """Send a prompt from the page: its visitor, the conversation's path, the answer's stream."""
    client = Client(*address)
    client.get("/")
    name = f"load-{time.monotonic_ns():x}"
    form = urlencode({"prompt": f"/fake {model}", "id": name}).encode()
    answer = client.request("POST", f"/c/{name}/messages", form, FORM)
    if answer.status != 200:
        raise Held(f"a prompt was answered {answer.status} {answer.body[:300]!r}")
    return client, f"/c/{name}", name


def read_page(address: Address, model: str, readers: int = 1) -> list[str]:
    """Ask on the page, and read the answer's stream to its end, several times at once.

    The HTML that each reader was sent.
    """
    client, _, stream_id = ask_on_page(address, model)

    def read() -> str:
        connection = client.connect()
        try:
            assert connection.sock is not None
            connection.sock.settimeout(PATIENCE)
            client.send(connection, "GET", f"/streams/{stream_id}/page")
            response = connection.getresponse()
            html = response.read()
            if response.status != 200:
                raise Held(f"a page's stream was answered {response.status} {html[:300]!r}")
            return html.decode()
        finally:
            connection.close()

    with calls(*[read] * readers) as results:
        pass
    for each in results:
        if isinstance(each, Exception):
            raise each
    return [str(each) for each in results]


def answered_page(address: Address, model: str) -> tuple[Client, str]:
    """A conversation with an answer that has ended: its visitor and its path."""
    client, place, stream_id = ask_on_page(address, model)
    client.follow(stream_id, 0).to_end()
    return client, place


# --- a database that does not answer ---------------------------------------------------------------


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Another program has the SQLite database for itself."""
    with contextlib.closing(sqlite3.connect(folder / "halt.db", timeout=60)) as other:
        other.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            other.rollback()


def send_prompt(address: Address, cookies: Mapping[str, str]) -> Callable[[], int]:
    """Press Send in a new conversation of the page's; the status."""

    def send() -> int:
        client = Client(*address)
        client.cookies = dict(cookies)
        name = f"load-{threading.get_ident():x}-{time.monotonic_ns():x}"
        form = urlencode({"prompt": "/fake count?n=2", "id": name}).encode()
        return client.request("POST", f"/c/{name}/messages", form, FORM).status

    return send
