"""HTTP/1.1 under the openai client, with connections that any thread can interrupt in any phase.

The client's own transport can't be interrupted while it connects or waits for headers, and costs
several times as much a token. This one is an `httpx2.BaseTransport`: the openai client builds every
request and reads every refusal; only the bytes go through here.

A `Line` is one run's handle on its connection. The opening thread puts it into `on_line`, and each
socket that is opened or reused for the run is attached to it before anything blocks on it. So
`Line.interrupt` finds the socket in every phase:

    connecting, TLS handshake,          -> socket shutdown, the blocked thread wakes at once
    waiting for headers, between bytes
    looking up a name (nothing can      -> the socket that would follow is refused,
    wake the resolver)                     nothing is sent

Sockets block, with SO_RCVTIMEO as a tick (over TLS: poll): one system call a read, and a `Quiet`
each TICK seconds of silence for whoever has heartbeats to send. How long silence may last is not
decided here.
"""

from __future__ import annotations

import base64
import contextlib
import select
import socket
import ssl
import struct
import threading
from collections import deque
from collections.abc import Iterator
from contextvars import ContextVar
from urllib.request import getproxies, proxy_bypass

import httpx2

from halt.errors import Interrupted
from halt.metrics import now

TICK = 1.0  # seconds of silence after which a read returns to its caller
READ_SIZE = 65_536  # bytes; one TLS record is at most 16 KiB
HEAD_MAX = 65_536  # bytes of a response's status line and headers
REFUSAL_MAX = 1_048_576  # bytes of a body that is read as a whole: errors, the list of models
CHUNK_LINE_MAX = 4_096  # bytes of a chunk's size line with its extensions
LENGTH_DIGITS = 18  # of a Content-Length
BODILESS = frozenset({204, 304})  # statuses whose responses have no body, whatever they say
PROXY_PORT = 3128  # of a proxy that is named without one
IDLE_MAX = 64  # kept-alive connections in all
IDLE_SECONDS = 30.0  # below the keep-alive of the usual servers
DRAIN_SECONDS = 0.25  # to wait for the end of a body whose [DONE] was seen

_TICK_OPTION = struct.pack("ll", int(TICK), int(TICK % 1 * 1e6))


class Quiet(Exception):
    """Nothing has arrived for a tick."""


class Line:
    """One run's connection, as seen by those who may want to interrupt it.

    The lock makes shutdown and close exclude each other: a socket's number is never used after it
    was given back to the system, when it may belong to another stream already.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())  # protects the three below
        self._socket: socket.socket | None = None
        self._closed = False
        self._interrupted = False

    @property
    def interrupted(self) -> bool:
        return self._interrupted

    def attach(self, sock: socket.socket) -> None:
        """Run on this socket from now on. Raises Interrupted after an interrupt."""
        with self._changed:
            if self._interrupted:
                raise Interrupted("stopped while the connection was being made")
            self._socket = sock

    def detach(self) -> None:
        """The socket is healthy and goes to another run; an interrupt must not find it here."""
        with self._changed:
            self._socket = None
            self._changed.notify_all()

    def close(self, sock: socket.socket) -> None:
        """Close a socket of this line."""
        with self._changed:
            self._socket = None  # a line has one connection at a time; TLS replaces its object
            self._closed = True
            sock.close()
            self._changed.notify_all()

    def interrupt(self) -> None:
        """Wake whoever blocks on the connection and tell the peer. Harmless when repeated."""
        with self._changed:
            self._interrupted = True
            if self._socket is not None:
                # Not SSLSocket.shutdown: that one drops the TLS layer under the reading thread.
                with contextlib.suppress(OSError):  # not connected yet, or gone already
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def wait_closed(self, timeout: float) -> str:
        """Wait for the connection's end: "closed", still "closing", or "none".

        None: there was none yet, or its answer was complete and it serves other runs.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._socket is None, timeout):
                return "closing"
            return "closed" if self._closed else "none"


_line: ContextVar[Line | None] = ContextVar("halt_line", default=None)


@contextlib.contextmanager
def on_line(line: Line) -> Iterator[None]:
    """Requests made inside run on `line`."""
    token = _line.set(line)
    try:
        yield
    finally:
        _line.reset(token)


_Key = tuple[str, str, int]


class Transport(httpx2.BaseTransport):
    """A pool of kept-alive HTTP/1.1 connections; proxies are taken from the environment."""

    def __init__(self, connect_timeout: float, context: ssl.SSLContext | None = None) -> None:
        self._connect_timeout = connect_timeout
        self._context = context or httpx2.create_ssl_context()
        self._lock = threading.Lock()  # protects the deque; taken for no longer than a look at it
        self._idle: deque[tuple[_Key, socket.socket, float]] = deque()

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request and read the head of its response. Raises httpx2's errors, Interrupted."""
        line = _line.get() or Line()
        url = request.url
        key = (url.scheme, url.host, url.port or (443 if url.scheme == "https" else 80))
        proxy = _proxy_for(request)
        message = _serialize(request, proxy)
        sock = self._take(key)
        if sock is not None:
            try:
                return self._exchange(line, key, sock, request, message)
            except (httpx2.ReadError, httpx2.WriteError):
                # The server let the kept-alive connection go as we took it. Nothing of this
                # request was answered, so it is made once more, on a new connection.
                if line.interrupted:
                    raise
        return self._exchange(line, key, self._connect(line, request, key, proxy), request, message)

    def close(self) -> None:
        """Close all idle connections; those in use are closed by their runs."""
        with self._lock:
            idle, self._idle = self._idle, deque()
        for _, sock, _ in idle:
            sock.close()

    def give_back(self, key: _Key, sock: socket.socket) -> None:
        """Keep a connection whose response was read to its end."""
        with self._lock:
            self._idle.append((key, sock, now()))
            stale = []
            while self._idle and (
                len(self._idle) > IDLE_MAX or now() - self._idle[0][2] > IDLE_SECONDS
            ):
                stale.append(self._idle.popleft()[1])
        for old in stale:
            old.close()

    def _take(self, key: _Key) -> socket.socket | None:
        """The most recently used idle connection that still looks alive."""
        while True:
            with self._lock:
                for index in range(len(self._idle) - 1, -1, -1):
                    if self._idle[index][0] == key:
                        _, sock, since = self._idle[index]
                        del self._idle[index]
                        break
                else:
                    return None
            # Readable while idle means end of file, or bytes nobody asked for.
            if now() - since < IDLE_SECONDS and not _readable(sock, 0):
                return sock
            sock.close()

    def _connect(
        self, line: Line, request: httpx2.Request, key: _Key, proxy: httpx2.URL | None
    ) -> socket.socket:
        scheme, host, port = key
        first = (host, port) if proxy is None else (proxy.host, proxy.port or PROXY_PORT)
        deadline = now() + self._connect_timeout
        try:
            sock = self._dial(line, first, deadline)
            try:
                if proxy is not None and scheme == "https":
                    self._tunnel(line, sock, host, port, proxy)
                if scheme == "https":
                    sock.settimeout(max(0.001, deadline - now()))
                    sock = self._context.wrap_socket(
                        sock, server_hostname=host, do_handshake_on_connect=False
                    )
                    line.attach(sock)
                    assert isinstance(sock, ssl.SSLSocket)  # noqa: S101 - for the type checker
                    sock.do_handshake()
                sock.settimeout(None)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _TICK_OPTION)
            except BaseException:
                line.close(sock)
                raise
        except TimeoutError as exc:
            raise httpx2.ConnectTimeout(str(exc), request=request) from exc
        except OSError as exc:
            raise httpx2.ConnectError(str(exc), request=request) from exc
        return sock

    def _dial(self, line: Line, address: tuple[str, int], deadline: float) -> socket.socket:
        """Try each address of the host in turn until one accepts. Raises OSError."""
        fault: OSError = OSError("the name has no address")
        for family, kind, proto, _, target in socket.getaddrinfo(*address, 0, socket.SOCK_STREAM):
            sock = socket.socket(family, kind, proto)
            try:
                line.attach(sock)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.settimeout(max(0.001, deadline - now()))
                sock.connect(target)
            except OSError as exc:
                line.close(sock)
                fault = exc
            except Interrupted:
                sock.close()
                raise
            else:
                return sock
        raise fault

    def _tunnel(
        self, line: Line, sock: socket.socket, host: str, port: int, proxy: httpx2.URL
    ) -> None:
        name = f"[{host}]" if ":" in host else host
        target = f"{name}:{port}".encode("ascii")
        head = [b"CONNECT %b HTTP/1.1" % target, b"Host: %b" % target, *_proxy_credentials(proxy)]
        sock.sendall(b"\r\n".join((*head, b"", b"")))
        status, _, _ = _read_head(line, sock, None)
        if not 200 <= status < 300:
            raise OSError(f"the proxy refused the connection with status {status}")

    def _exchange(
        self, line: Line, key: _Key, sock: socket.socket, request: httpx2.Request, message: bytes
    ) -> httpx2.Response:
        try:
            line.attach(sock)
            try:
                sock.sendall(message)
            except OSError as exc:
                raise httpx2.WriteError(str(exc), request=request) from exc
            status, headers, rest = _read_head(line, sock, request)
            body = Body(self, line, key, sock, headers, rest, request, status)
        except BaseException:
            line.close(sock)
            raise
        return httpx2.Response(
            status, headers=headers, stream=body, request=request, extensions={"halt.body": body}
        )


def _serialize(request: httpx2.Request, proxy: httpx2.URL | None) -> bytes:
    content = request.read()
    target = request.url.raw_path
    head: list[bytes] = []
    if proxy is not None and request.url.scheme == "http":
        # A proxy is asked for the whole address; https goes through a tunnel instead.
        target = b"http://%b%b" % (request.url.netloc, target)
        head += _proxy_credentials(proxy)
    head.insert(0, b"%b %b HTTP/1.1" % (request.method.encode("ascii"), target))
    # Compressed events would wait for each other in the compressor.
    skip = {b"accept-encoding", b"connection"}
    head += [b"%b: %b" % (k, v) for k, v in request.headers.raw if k.lower() not in skip]
    if any(b"\r" in line or b"\n" in line for line in head):
        raise httpx2.LocalProtocolError("a header holds a line break", request=request)
    return b"\r\n".join((*head, b"Accept-Encoding: identity", b"", content))


def _read_head(
    line: Line, sock: socket.socket, request: httpx2.Request | None
) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Status, headers and the bytes that came behind them; interim (1xx) responses are skipped."""
    data = b""
    while True:
        head, end, rest = data.partition(b"\r\n\r\n")
        if end:
            status, headers = _parse_head(head, request)
            if status >= 200:
                return status, headers, rest
            data = rest
            continue
        if len(data) > HEAD_MAX:
            raise httpx2.RemoteProtocolError("the response's head does not end", request=request)
        try:
            more = sock.recv(READ_SIZE)
        except (BlockingIOError, ssl.SSLWantReadError):
            continue  # a tick; the run's limits are watched elsewhere
        except TimeoutError:
            raise  # still connecting: the proxy is slow
        except OSError as exc:
            raise httpx2.ReadError(str(exc), request=request) from exc
        if not more:
            fault = "interrupted" if line.interrupted else "the server closed without an answer"
            raise httpx2.ReadError(fault, request=request)
        data += more


def _parse_head(
    head: bytes, request: httpx2.Request | None
) -> tuple[int, list[tuple[bytes, bytes]]]:
    first, *lines = head.split(b"\r\n")
    version, _, tail = first.partition(b" ")
    if version not in {b"HTTP/1.1", b"HTTP/1.0"} or not tail[:3].isdigit():
        raise httpx2.RemoteProtocolError("the server does not speak HTTP/1.1", request=request)
    headers = []
    for item in lines:
        name, colon, value = item.partition(b":")
        if not colon or not name or name != name.strip():
            raise httpx2.RemoteProtocolError("a header is malformed", request=request)
        headers.append((name, value.strip()))
    if version == b"HTTP/1.0":
        headers.append((b"Connection", b"close"))
    return int(tail[:3]), headers


class Body(httpx2.SyncByteStream):
    """A response's body as it comes: everything that one read of the socket brought, unframed.

    Used by one thread at a time. `close` is safe at any point and closes the connection unless the
    body was read to its end.
    """

    def __init__(
        self,
        transport: Transport,
        line: Line,
        key: _Key,
        sock: socket.socket,
        headers: list[tuple[bytes, bytes]],
        rest: bytes,
        request: httpx2.Request,
        status: int = 200,
    ) -> None:
        fields = {name.lower(): value.lower() for name, value in headers}
        self._transport, self._line, self._key, self._request = transport, line, key, request
        self._sock: socket.socket | None = sock
        self._rest = rest  # bytes that were read and not unframed yet
        self._partial = b""  # the beginning of a size line, to which the next read adds
        self._chunked = b"chunked" in fields.get(b"transfer-encoding", b"")
        length = fields.get(b"content-length")
        if status in BODILESS:
            self._chunked = False
            length = b"0"
        if self._chunked:
            self._left: int | None = 0  # bytes to come of the current chunk
        elif length is not None:
            if not length.isdigit() or len(length) > LENGTH_DIGITS:
                raise httpx2.RemoteProtocolError("the length is malformed", request=request)
            self._left = int(length)
        else:
            self._left = None  # until the end of file
        self._gap = 0  # bytes of the line break behind a chunk that are still to come
        self._trailer = False
        self._complete = self._left == 0 and not self._chunked
        self._reusable = b"close" not in fields.get(b"connection", b"") and self._left is not None

    def __iter__(self) -> Iterator[bytes]:
        """As httpx2 reads a refusal's body: to its end, through silence, up to REFUSAL_MAX."""
        left = REFUSAL_MAX
        while left > 0:
            with contextlib.suppress(Quiet):
                data = self.read()
                if not data:
                    return
                left -= len(data)
                yield data

    def read(self, timeout: float = TICK) -> bytes:
        """What comes next; b"" at the end of the body.

        Raises Quiet when nothing came within `timeout` (at most TICK) seconds, httpx2.ReadError
        and httpx2.RemoteProtocolError when the connection fails.
        """
        while not self._complete:
            if self._rest:
                raw, self._rest = self._rest, b""
            else:
                raw = self._receive(timeout)
                if self._partial:
                    raw, self._partial = self._partial + raw, b""
            data = self._unframe(raw)
            if data:
                return data
        return b""

    def _receive(self, timeout: float) -> bytes:
        sock = self._sock
        if sock is None:
            raise httpx2.ReadError("closed", request=self._request)
        # Over TLS Python waits through SO_RCVTIMEO, so the tick is poll's there.
        waits = timeout < TICK or isinstance(sock, ssl.SSLSocket)
        if waits and not _readable(sock, min(timeout, TICK)):
            raise Quiet
        try:
            raw = sock.recv(READ_SIZE)
        except (BlockingIOError, ssl.SSLWantReadError):
            raise Quiet from None
        except OSError as exc:
            raise httpx2.ReadError(str(exc), request=self._request) from exc
        if not raw:
            if self._left is None and not self._line.interrupted:
                self._complete = True
            else:
                raise httpx2.ReadError("the body ended early", request=self._request)
        return raw

    def _unframe(self, raw: bytes) -> bytes:
        if not self._chunked:
            if self._left is not None:
                raw, self._rest = raw[: self._left], raw[self._left :]
                self._left -= len(raw)
                self._complete = self._left == 0
            return raw
        out = []
        at, end = 0, len(raw)
        while at < end:
            if self._left:
                piece = raw[at : at + self._left]
                out.append(piece)
                at += len(piece)
                self._left -= len(piece)
                if not self._left:
                    self._gap = 2
                continue
            if self._gap:
                step = min(self._gap, end - at)
                at += step
                self._gap -= step
                continue
            stop = raw.find(b"\r\n", at)
            if stop < 0:
                if end - at > CHUNK_LINE_MAX:
                    raise httpx2.RemoteProtocolError("bad chunk", request=self._request)
                self._partial = raw[at:]
                break
            size = raw[at:stop]
            at = stop + 2
            if self._trailer:
                if not size:  # the empty line behind the last chunk and its trailers
                    self._complete = True
                    self._rest = raw[at:]
                    break
                continue
            try:
                self._left = int(size.partition(b";")[0].strip(), 16)
            except ValueError:
                self._left = -1
            if self._left < 0:
                self._left = 0
                raise httpx2.RemoteProtocolError("bad chunk", request=self._request)
            self._trailer = self._left == 0
        return out[0] if len(out) == 1 else b"".join(out)

    def finish(self) -> None:
        """The answer is complete: read what is left of the framing, so that the connection can be
        reused, but wait no longer than DRAIN_SECONDS for it; then `close`."""
        deadline = now() + DRAIN_SECONDS
        with contextlib.suppress(Quiet, httpx2.HTTPError):
            while not self._complete and now() < deadline:
                self.read(max(0.0, deadline - now()))
        self.close()

    def close(self) -> None:
        """Give the connection back if it can be reused, else close it."""
        sock, self._sock = self._sock, None
        if sock is None:
            return
        if self._complete and self._reusable and not self._rest and not self._line.interrupted:
            # An interrupt that comes right here finds a shut socket in the pool at worst, and the
            # next run sees its end of file before it uses it.
            self._line.detach()
            self._transport.give_back(self._key, sock)
        else:
            self._line.close(sock)


def _readable(sock: socket.socket, timeout: float) -> bool:
    """Whether a read would return at once, waiting at most `timeout` seconds for it."""
    if isinstance(sock, ssl.SSLSocket) and sock.pending():
        return True
    poller = select.poll()  # not select.select: it fails for descriptors above 1023
    poller.register(sock, select.POLLIN)
    return bool(poller.poll(timeout * 1000))


def _proxy_for(request: httpx2.Request) -> httpx2.URL | None:
    """The proxy that HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY name for this request."""
    scheme, host = request.url.scheme, request.url.host
    proxies = getproxies()
    proxy = proxies.get(scheme) or proxies.get("all")
    if not proxy or host in {"localhost", "127.0.0.1", "::1"} or proxy_bypass(host):
        return None
    url = httpx2.URL(proxy if "://" in proxy else f"http://{proxy}")
    if url.scheme != "http":
        raise httpx2.ConnectError(f"proxies of the kind {url.scheme}:// are not supported")
    return url


def _proxy_credentials(proxy: httpx2.URL) -> list[bytes]:
    if not proxy.username:
        return []
    pair = f"{proxy.username}:{proxy.password}".encode()
    return [b"Proxy-Authorization: Basic " + base64.b64encode(pair)]
