"""A connection pool for the openai client, whose connections any thread can interrupt at any time.

The client's own transport cannot be interrupted while it connects or waits for headers, and needs
several times as much CPU time per token. This one is an `httpx2.BaseTransport`: the openai client
builds every request and reads every error response; this module only transfers the bytes.
"""

from __future__ import annotations

import socket
import ssl
import struct
import threading
from collections import deque
from functools import partial

import httpx2

from halt.clock import now
from halt.core import via
from halt.core.connection import TICK, UpstreamConnection, current_connection
from halt.errors import Interrupted
from halt.transport.address_policy import allowed_addresses, check_literal
from halt.transport.dns import Resolver
from halt.transport.http1 import CODINGS, Body, NoResponse, read_head, readable, serialize
from halt.transport.proxies import Proxies, proxy_credentials

PROXY_PORT = 3128  # of a proxy whose URL has no port
IDLE_MAX = 64  # kept-alive connections in all
IDLE_SECONDS = 30.0  # less than the keep-alive time of the usual servers
RESEND_WITHIN = 1.0  # seconds; more than a round trip

TICK_OPTION = struct.pack("ll", int(TICK), int(TICK % 1 * 1e6))

_Key = tuple[str, str, int]


class ProxyFault(httpx2.ConnectError):
    """The proxy could not be used; the state of the server behind it is unknown."""


class NoConnection(httpx2.ConnectTimeout):
    """No connection was accepted in time. `seconds` is the time limit."""

    seconds = 0.0


class TLSTimeout(NoConnection):
    """The connection was accepted, but the TLS handshake did not end in time."""


class Transport(httpx2.BaseTransport):
    """A pool of keep-alive HTTP/1.1 connections. Thread-safe. Reads the proxy settings once."""

    def __init__(
        self,
        connect_timeout: float,
        context: ssl.SSLContext | None = None,
        instance_id: str = "",
        *,
        direct: bool = False,
        allow_link_local: bool = False,
    ) -> None:
        """`instance_id`: of the server that sends the requests (see `core.via`); empty: no server.

        `direct`: use no proxy, whatever the environment says. `allow_link_local`: connect also to
        the addresses that `halt.transport.address_policy` refuses.
        """
        self._connect_timeout = connect_timeout
        self._context = context or httpx2.create_ssl_context()
        self._instance_id = instance_id
        self._allow_link_local = allow_link_local
        self._proxies = None if direct else Proxies()
        self._resolver = Resolver()
        self._lock = threading.Lock()  # protects the two below; held for list operations only
        self._idle: deque[tuple[_Key, socket.socket, float]] = deque()
        self._closed = False
        # The last TLS session with each server, from a connection that brought a response. A new
        # connection takes 1.6 ms of CPU time (a chain of three certificates), a resumed one 1.0.
        # Threads read, set and delete entries without the lock.
        self._sessions: dict[_Key, ssl.SSLSession] = {}

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request and read the head of its response.

        Raises httpx2 errors, among them AddressRefused, and Interrupted.
        """
        connection = current_connection()
        if self._instance_id:
            request.headers[via.HEADER] = ", ".join((*connection.chain, self._instance_id))
        url = request.url
        key = (url.scheme, url.host, url.port or (443 if url.scheme == "https" else 80))
        proxy = self._proxies.proxy_for(url) if self._proxies else None
        if proxy is not None and proxy.scheme != "http":
            raise ProxyFault(f"{proxy.scheme}:// proxies are not supported")
        if proxy is not None and url.scheme == "http":
            # The request line for a proxy has the whole URL; https uses a tunnel instead.
            target = b"http://%b%b" % (url.netloc, url.raw_path)
            message = serialize(request, target, proxy_credentials(proxy))
        else:
            message = serialize(request)
        sock = self._take_idle(key)
        if sock is not None:
            try:
                return self._exchange(connection, key, sock, request, message)
            except (NoResponse, httpx2.WriteError) as exc:
                # If the server closes an idle connection just as the request arrives, the failure
                # comes at once. After a later failure the server may have processed the request:
                # sent again, it would be billed twice. (After a WriteError the server has not
                # received the whole request, so it has not processed it.)
                is_late = isinstance(exc, NoResponse) and exc.waited > RESEND_WITHIN
                if connection.interrupted or is_late:
                    raise
        sock = self._connect(connection, request, key, proxy)
        response = self._exchange(connection, key, sock, request, message)
        if isinstance(sock, ssl.SSLSocket) and (session := sock.session) is not None:
            self._sessions[key] = session
        return response

    def close(self) -> None:
        """Close the idle connections. Those in use are closed by their runs and no longer kept."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, deque()
        for _, sock, _ in idle:
            sock.close()

    def return_connection(self, key: _Key, sock: socket.socket) -> None:
        """Keep a connection whose response was read to its end, or close it after `close`."""
        with self._lock:
            self._idle.append((key, sock, now()))
            stale = []
            while self._idle and (
                self._closed
                or len(self._idle) > IDLE_MAX
                or now() - self._idle[0][2] > IDLE_SECONDS
            ):
                stale.append(self._idle.popleft()[1])
        for stale_socket in stale:
            stale_socket.close()

    def _take_idle(self, key: _Key) -> socket.socket | None:
        """Remove and return the last used idle connection that still looks alive, if any."""
        while True:
            with self._lock:
                for index in range(len(self._idle) - 1, -1, -1):
                    if self._idle[index][0] == key:
                        _, sock, since = self._idle[index]
                        del self._idle[index]
                        break
                else:
                    return None
            # Readable while idle means end of file, or bytes that belong to no request.
            if now() - since < IDLE_SECONDS and not readable(sock, 0):
                return sock
            sock.close()

    def _connect(
        self,
        connection: UpstreamConnection,
        request: httpx2.Request,
        key: _Key,
        proxy: httpx2.URL | None,
    ) -> socket.socket:
        scheme, host, port = key
        peer = (host, port) if proxy is None else (proxy.host, proxy.port or PROXY_PORT)
        deadline = now() + self._connect_timeout
        if proxy is not None and not self._allow_link_local:
            # The proxy resolves names; its own address is the environment's choice.
            check_literal(host)
        try:
            try:
                sock = self._dial(connection, peer, deadline, is_proxy=proxy is not None)
            except OSError as exc:
                if proxy is None or isinstance(exc, TimeoutError):
                    raise
                raise ProxyFault(exc.strerror or str(exc), request=request) from exc
            try:
                if proxy is not None and scheme == "https":
                    self._tunnel(connection, sock, host, port, proxy)
                if scheme == "https":
                    sock.settimeout(max(0.001, deadline - now()))
                    sock = self._context.wrap_socket(
                        sock,
                        server_hostname=host,
                        do_handshake_on_connect=False,
                        session=self._sessions.get(key),
                    )
                    connection.attach(sock)
                    assert isinstance(sock, ssl.SSLSocket)  # noqa: S101 - for the type checker
                    try:
                        sock.do_handshake()
                    except TimeoutError as exc:
                        raise self._timeout(TLSTimeout, exc, request) from exc
                sock.settimeout(None)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, TICK_OPTION)
            except BaseException:
                connection.close(sock)
                self._resolver.forget(*peer)
                self._sessions.pop(key, None)
                raise
        except TimeoutError as exc:
            raise self._timeout(NoConnection, exc, request) from exc
        except OSError as exc:
            raise httpx2.ConnectError(str(exc), request=request) from exc
        return sock

    def _timeout(
        self, kind: type[NoConnection], exc: TimeoutError, request: httpx2.Request
    ) -> NoConnection:
        timeout = kind(str(exc), request=request)
        timeout.seconds = self._connect_timeout
        return timeout

    def _dial(
        self,
        connection: UpstreamConnection,
        address: tuple[str, int],
        deadline: float,
        *,
        is_proxy: bool,
    ) -> socket.socket:
        """Try the addresses of the host in order until one accepts.

        Raises OSError, AddressRefused.
        """
        fault: OSError = OSError("the name has no address")
        resolved = self._resolver.addresses(*address, deadline)
        if not (is_proxy or self._allow_link_local):
            resolved = allowed_addresses(address[0], resolved)
        # These very addresses are connected to: a second look-up could return others.
        for family, kind, proto, _, target in resolved:
            sock = socket.socket(family, kind, proto)
            try:
                connection.attach(sock, connected=False)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.settimeout(max(0.001, deadline - now()))
                sock.connect(target)
                # After an interrupt just before, `connect` returns at once though no peer accepted.
                sock.getpeername()
                connection.connected()
            except OSError as exc:
                connection.close(sock)
                fault = exc
            except Interrupted:
                sock.close()
                raise
            else:
                return sock
        self._resolver.forget(*address)
        raise fault

    def _tunnel(
        self,
        connection: UpstreamConnection,
        sock: socket.socket,
        host: str,
        port: int,
        proxy: httpx2.URL,
    ) -> None:
        name = f"[{host}]" if ":" in host else host
        target = f"{name}:{port}".encode("ascii")
        head = [b"CONNECT %b HTTP/1.1" % target, b"Host: %b" % target, *proxy_credentials(proxy)]
        sock.sendall(b"\r\n".join((*head, b"", b"")))
        status, _, _ = read_head(connection, sock, None)
        if not 200 <= status < 300:
            raise ProxyFault(f"the proxy refused the connection with status {status}")

    def _exchange(
        self,
        connection: UpstreamConnection,
        key: _Key,
        sock: socket.socket,
        request: httpx2.Request,
        message: list[bytes],
    ) -> httpx2.Response:
        try:
            connection.attach(sock)
            try:
                for piece in message:
                    sock.sendall(piece)
            except OSError as exc:
                raise httpx2.WriteError(str(exc), request=request) from exc
            sent_at = now()
            try:
                status, headers, rest = read_head(connection, sock, request)
            except NoResponse as exc:
                exc.waited = now() - sent_at
                raise
            return_connection = partial(self.return_connection, key)
            body = Body(connection, sock, return_connection, headers, rest, status)
        except BaseException:
            connection.close(sock)
            raise
        # `Body` decodes these itself.
        headers = [
            (name, value)
            for name, value in headers
            if name.lower() != b"content-encoding" or value.strip().lower() not in CODINGS
        ]
        return httpx2.Response(
            status, headers=headers, stream=body, request=request, extensions={"halt.body": body}
        )
