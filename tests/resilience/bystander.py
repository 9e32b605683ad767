"""A client beside a load: measures the time of its Stops and the longest gap of its stream.

It uses sockets alone and no pytest, so that tests and benchmarks share it.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import secrets
import socket
import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

Address = tuple[str, int]

#: Model of the stream that the bystander reads: a token every 20 ms.
STEADY = "count?n=1000000&gap_ms=20"
#: Model of the streams that are stopped: one token, then silence.
SILENT = "stall?n=1"
#: Seconds after which a Stop or a token counts as missing.
NEVER = 60.0
#: Seconds that tests allow for the answer to a Stop and for the next token. Tens of milliseconds
#: are usual on an idle machine; a server that a load blocks takes NEVER or more.
STOP_WITHIN = 10.0


class NotAnswered(Exception):
    """The server's answer was late, wrong, or missing."""


class Bystander:
    """One stream that is read, and `victims` further streams that `stop` stops one by one.

    All of them have started before `__enter__` returns.
    """

    def __init__(
        self, address: Address, victims: int = 3, headers: Mapping[str, str] | None = None
    ) -> None:
        self._address = address
        self._headers = dict(headers or {})
        self._victims = victims
        self._sockets: list[socket.socket] = []
        self._running: list[str] = []
        self._ended: list[str] = []
        self._is_closing = threading.Event()
        self._started = threading.Event()
        self._lock = threading.Lock()  # protects the three below
        self._newest = 0.0  # when the steady stream's newest piece arrived
        self._longest = 0.0  # seconds between two pieces since `mark`
        self.end_reason = ""  # why the steady stream ended; "" while it runs
        self.stops: list[float] = []  # seconds that each Stop took

    def __enter__(self) -> Self:
        try:
            for _ in range(self._victims):
                self._running.append(self._start(SILENT))
            steady = self._open_stream(STEADY, self._new_id())
        except BaseException:
            self._close()
            raise
        self._reader = threading.Thread(target=self._read, args=(steady,), daemon=True)
        self._reader.start()
        if not self._started.wait(NEVER):
            self._close()
            raise NotAnswered("the steady stream does not begin")
        self.mark()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, _: TracebackType | None
    ) -> None:
        self._close()

    def mark(self) -> None:
        """Count the stream's gaps from now on."""
        with self._lock:
            self._longest, self._newest = 0.0, time.monotonic()

    @property
    def longest_gap(self) -> float:
        """The most seconds between two pieces of the steady stream, including the present gap."""
        with self._lock:
            return max(self._longest, time.monotonic() - self._newest)

    @property
    def running(self) -> int:
        """The number of streams that can still be stopped."""
        return len(self._running)

    def stop(self, within: float = NEVER, unknown: bool = False) -> float:
        """Send a Stop on a new connection; return the seconds until its answer.

        The Stop is for a running stream if there is one, otherwise for one of the ended ones in
        turn; with `unknown`, for an ID without a stream. Raises NotAnswered for a late, wrong or
        missing answer.
        """
        live = bool(self._running) and not unknown
        ended = self._ended
        if unknown:
            stream_id = self._new_id()
        else:
            stream_id = self._running.pop() if live else ended[len(self.stops) % len(ended)]
        start = time.monotonic()
        connection = http.client.HTTPConnection(*self._address, timeout=within)
        try:
            connection.request("POST", f"/stop/{stream_id}", b"", self._headers)
            response = connection.getresponse()
            status, body = response.status, response.read()
        except (OSError, http.client.HTTPException) as fault:
            seconds = time.monotonic() - start
            if live:
                self._running.insert(0, stream_id)
            raise NotAnswered(f"Stop had no answer after {seconds:.1f} s: {fault!r}") from fault
        finally:
            connection.close()
        seconds = time.monotonic() - start
        self.stops.append(seconds)
        if live:
            ended.append(stream_id)
        expected_statuses = {"stopped"} if live else {"stopped", "finished"}
        if unknown:
            expected_statuses = {"pending"}
        if status != 200 + 2 * unknown or json.loads(body)["status"] not in expected_statuses:
            raise NotAnswered(f"Stop was answered {status} {body[:300]!r}")
        return seconds

    # --- streams ----------------------------------------------------------------------------------

    @staticmethod
    def _new_id() -> str:
        return secrets.token_urlsafe(12)

    def _start(self, model: str) -> str:
        """Start a stream and read its first token; return its ID."""
        stream_id = self._new_id()
        connection = self._open_stream(model, stream_id)
        _until_content(connection)
        return stream_id

    def _open_stream(self, model: str, stream_id: str) -> socket.socket:
        body = {
            "messages": [{"role": "user", "content": "Hello"}],
            "model": model,
            "id": stream_id,
            "on_disconnect": "stop",  # the stream ends when this client disconnects
        }
        sock = socket.create_connection(self._address, NEVER)
        self._sockets.append(sock)
        data = json.dumps(body).encode()
        head = {
            "Host": "localhost",
            "Content-Type": "application/json",
            "Content-Length": str(len(data)),
            **self._headers,
        }
        lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
        sock.sendall(f"POST /chat/stream HTTP/1.1\r\n{lines}\r\n".encode() + data)
        return sock

    def _read(self, sock: socket.socket) -> None:
        data, reason = b"", "its connection was closed"
        try:
            while piece := sock.recv(65_536):
                at = time.monotonic()
                with self._lock:
                    if self._newest:
                        self._longest = max(self._longest, at - self._newest)
                    self._newest = at
                data = data[-40_000:] + piece
                if not self._started.is_set() and b'"type":"content"' in data:
                    self._started.set()
                if b"[DONE]" in data:
                    reason = f"it was ended: {data[-600:]!r}"
                    break
        except OSError as fault:
            reason = repr(fault)
        if not self._is_closing.is_set():
            self.end_reason = reason

    def _close(self) -> None:
        self._is_closing.set()
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        if hasattr(self, "_reader"):
            self._reader.join(10)


def _until_content(sock: socket.socket) -> None:
    data = b""
    while b'"type":"content"' not in data:
        piece = sock.recv(65_536)
        if not piece or b"HTTP/1.1 200" not in data + piece:
            raise NotAnswered(f"a stream did not begin: {(data + piece)[:500]!r}")
        data += piece
