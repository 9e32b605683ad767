"""An upstream with low CPU use: one thread, one epoll, precomputed token bytes.

The model name selects the response:

    paced?rate=33&n=150&step=1
                          `n` tokens (default: endless), `rate` a second, each stamped with the time
                          at which it was given to the socket; the send times of the streams are
                          spread over the gap between tokens, or the same for all with `step`
    once                  one stamped token at once, and the end
    held                  one stamped token at once, and then nothing
    numbered?n=400&gate=300   n numbered tokens as fast as the socket takes them; sending begins
                          when `gate` such responses have been requested

`GET /facts` returns the number of requested responses, and the times at which connections were
closed before the end of a response; it then clears these times.

A stamp is `@` with ten digits: microseconds of CLOCK_MONOTONIC, modulo STAMP_MODULUS. A number is
`#` with seven digits. Every PARAGRAPH-th token ends a paragraph, as in text from a model.
It prints its port and ends with its standard input.
"""

from __future__ import annotations

import heapq
import json
import select
import socket
import time
from itertools import count
from urllib.parse import parse_qsl

PARAGRAPH = 40  # tokens
BATCH = 32  # tokens in one send of a response without pace
GOLDEN = 0.6180339887  # its successive multiples modulo 1 are evenly spread
STAMP_MODULUS = 10**10  # microseconds: 2.8 hours

_HEAD = (
    b'data: {"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1700000000,'
    b'"model":"bench","choices":[{"index":0,"delta":{"content":"'
)
_TAIL = b'"},"logprobs":null,"finish_reason":null}]}\n\n'


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _around(text_size: int) -> tuple[bytes, bytes]:
    """The bytes before and after a text of this size, as one chunk of HTTP."""
    size = len(_HEAD) + text_size + len(_TAIL)
    return b"%x\r\n%b" % (size, _HEAD), _TAIL + b"\r\n"


WORD, BREAK = b" ", b"\\n\\n"  # the ends of tokens
_STAMPED = {end: _around(11 + len(end)) for end in (WORD, BREAK)}
_NUMBERED = {end: _around(8 + len(end)) for end in (WORD, BREAK)}
RESPONSE = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)
LAST = (
    _chunk(
        b'data: {"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1700000000,'
        b'"model":"bench","choices":[{"index":0,"delta":{},"logprobs":null,'
        b'"finish_reason":"stop"}]}\n\n'
    )
    + _chunk(b"data: [DONE]\n\n")
    + b"0\r\n\r\n"
)


def _end_of(number: int) -> bytes:
    return BREAK if number % PARAGRAPH == PARAGRAPH - 1 else WORD


class Connection:
    """One connection, and the state of its response."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.received = b""
        self.pending = b""
        self.open = True
        self.sends_numbers = False  # sends numbered tokens
        self.answering = False
        self.watched = False  # epoll watches for room to send
        self.sent = 0
        self.limit = 0
        self.gap = 0.0

    def request(self) -> tuple[str, dict[str, str]] | None:
        """The kind of response and its settings, once the request is complete, else None."""
        head, end, body = self.received.partition(b"\r\n\r\n")
        if end and head.startswith(b"GET "):
            self.received = b""
            return head.split(b" ")[1].decode(), {}
        fields = head.lower().split(b"content-length:")
        if not end or len(fields) < 2 or len(body) < int(fields[1].split(b"\r\n")[0]):
            return None
        self.received = b""
        kind, _, query = str(json.loads(body)["model"]).partition("?")
        return kind, dict(parse_qsl(query))

    def stamped(self) -> bytes:
        """The next token, stamped with the current time."""
        end = _end_of(self.sent)
        before, after = _STAMPED[end]
        self.sent += 1
        stamp = time.monotonic_ns() // 1000 % STAMP_MODULUS
        return b"%b@%010d%b%b" % (before, stamp, end, after)

    def numbered(self) -> bytes:
        """The next BATCH tokens, and the end of the response after the last."""
        parts = []
        upto = min(self.limit, self.sent + BATCH)
        for number in range(self.sent, upto):
            end = _end_of(number)
            before, after = _NUMBERED[end]
            parts.append(b"%b#%07d%b%b" % (before, number, end, after))
        self.sent = upto
        self.sends_numbers = self.answering = upto < self.limit
        if not self.sends_numbers:
            parts.append(LAST)
        return b"".join(parts)


class Source:
    """The upstream: all connections, served by one thread."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self._listener.setblocking(False)
        self._epoll = select.epoll()
        self._connections: dict[int, Connection] = {}
        self._schedule: list[tuple[float, int, Connection]] = []
        self._order = count()
        self._gated: list[Connection] = []
        self._request_count = 0
        self._closed: list[float] = []

    def run(self) -> None:
        """Serve until the standard input ends."""
        print(json.dumps({"port": self._listener.getsockname()[1]}), flush=True)
        self._epoll.register(self._listener, select.EPOLLIN)
        self._epoll.register(0, select.EPOLLIN | select.EPOLLHUP)
        while True:
            wait = max(0.0, self._schedule[0][0] - time.monotonic()) if self._schedule else -1
            for fd, mask in self._epoll.poll(wait):
                if fd == self._listener.fileno():
                    self._accept()
                elif fd == 0:
                    return
                else:
                    self._serve(self._connections[fd], mask)
            self._send_due()

    def _accept(self) -> None:
        sock, _ = self._listener.accept()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connections[sock.fileno()] = Connection(sock)
        self._epoll.register(sock, select.EPOLLIN | select.EPOLLRDHUP)

    def _serve(self, connection: Connection, mask: int) -> None:
        if mask & (select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR):
            self._drop(connection)
            return
        if mask & select.EPOLLIN:
            connection.received += connection.sock.recv(65536)
            request = connection.request()
            if request is not None:
                self._respond(connection, *request)
        if mask & select.EPOLLOUT and connection.open:
            is_ready = connection.sends_numbers and not connection.pending
            self._send(connection, connection.numbered() if is_ready else b"")

    def _respond(self, connection: Connection, kind: str, settings: dict[str, str]) -> None:
        if kind.startswith("/"):
            facts = (
                {"requests": self._request_count, "closed": self._closed}
                if kind == "/facts"
                else {}
            )
            self._closed = []
            body = json.dumps(facts).encode()
            status = b"200 OK" if facts else b"404 Not Found"
            self._send(
                connection,
                b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body),
            )
            return
        self._request_count += 1
        connection.sent = 0
        connection.answering = True
        connection.limit = int(settings.get("n", 0))
        if kind in ("once", "held"):
            connection.answering = kind == "held"
            end = b"" if connection.answering else LAST
            self._send(connection, RESPONSE + connection.stamped() + end)
            return
        self._send(connection, RESPONSE)
        if kind == "numbered":
            self._gated.append(connection)
            if len(self._gated) >= int(settings.get("gate", 1)):
                waiting, self._gated = self._gated, []
                for waiting_connection in waiting:
                    waiting_connection.sends_numbers = True
                    if waiting_connection.open:
                        self._watch(waiting_connection)
            return
        connection.gap = 1 / float(settings.get("rate", 1))
        number = next(self._order)
        now = time.monotonic()
        if "step" in settings:
            first = (now // connection.gap + 1) * connection.gap
        else:
            first = now + connection.gap * (number * GOLDEN % 1)
        heapq.heappush(self._schedule, (first, number, connection))

    def _send_due(self) -> None:
        now = time.monotonic()
        while self._schedule and self._schedule[0][0] <= now:
            due, number, connection = self._schedule[0]
            if not connection.open:
                heapq.heappop(self._schedule)
                continue
            token = connection.stamped()
            if connection.sent == connection.limit:
                heapq.heappop(self._schedule)
                connection.answering = False
                token += LAST
            else:
                heapq.heapreplace(self._schedule, (due + connection.gap, number, connection))
            self._send(connection, token)

    def _send(self, connection: Connection, data: bytes) -> None:
        pending = connection.pending + data if connection.pending else data
        try:
            sent = connection.sock.send(pending)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._drop(connection)
            return
        connection.pending = pending[sent:]
        self._watch(connection)

    def _watch(self, connection: Connection) -> None:
        watched = bool(connection.pending or connection.sends_numbers)
        if watched != connection.watched:
            connection.watched = watched
            out = select.EPOLLOUT if watched else 0
            self._epoll.modify(connection.sock, select.EPOLLIN | select.EPOLLRDHUP | out)

    def _drop(self, connection: Connection) -> None:
        if connection.open:
            connection.open = False
            if connection.answering:
                self._closed.append(time.monotonic())
            del self._connections[connection.sock.fileno()]
            connection.sock.close()


if __name__ == "__main__":
    Source().run()
