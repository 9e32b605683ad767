"""HTTP/1.1 under the openai client, with connections that any thread can interrupt in any phase.

The client's own transport can't be interrupted while it connects or waits for headers, and costs
several times as much a token. This one is an `httpx2.BaseTransport`: the openai client builds every
request and reads every refusal; only the bytes go through here.
"""

from __future__ import annotations

import base64
import ipaddress
import socket
import ssl
import struct
import threading
from collections import deque
from functools import partial
from urllib.request import getproxies, getproxies_environment, proxy_bypass

import httpx2

from halt.clock import now
from halt.core import via
from halt.core.connection import TICK, Line, current_line
from halt.errors import Interrupted
from halt.transport.dns import Resolver
from halt.transport.http1 import CODINGS, Body, NoResponse, read_head, readable, serialize

PROXY_PORT = 3128  # of a proxy that is named without one
IDLE_MAX = 64  # kept-alive connections in all
IDLE_SECONDS = 30.0  # below the keep-alive of the usual servers
RESEND_WITHIN = 1.0  # seconds; a round trip and some more

_TICK_OPTION = struct.pack("ll", int(TICK), int(TICK % 1 * 1e6))

_Key = tuple[str, str, int]


class ProxyFault(httpx2.ConnectError):
    """The proxy could not be used; what the server behind it would do is not known."""


class NoConnection(httpx2.ConnectTimeout):
    """No connection was accepted in time. `seconds` is how long it was waited for."""

    seconds = 0.0


class TLSTimeout(NoConnection):
    """The connection was accepted and TLS did not begin in time."""


class Transport(httpx2.BaseTransport):
    """A pool of kept-alive HTTP/1.1 connections; proxies are those of its beginning."""

    def __init__(
        self,
        connect_timeout: float,
        context: ssl.SSLContext | None = None,
        mark: str = "",
        *,
        direct: bool = False,
    ) -> None:
        """`mark`: of the Halt whose requests these are, empty where it is no server.

        `direct`: no proxy is used, whatever the environment says.
        """
        self._connect_timeout = connect_timeout
        self._context = context or httpx2.create_ssl_context()
        self._mark = mark
        self._proxies = None if direct else Proxies()
        self._resolver = Resolver()
        self._lock = threading.Lock()  # protects the two below; taken for no longer than a look
        self._idle: deque[tuple[_Key, socket.socket, float]] = deque()
        self._closed = False
        # The last TLS session with each server, of a connection that brought a response. A new
        # connection takes 1.6 ms of CPU time (a chain of three certificates), a resumed one 1.0.
        # Any thread gets, sets and drops entries, without the lock.
        self._sessions: dict[_Key, ssl.SSLSession] = {}

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request and read the head of its response. Raises httpx2's errors, Interrupted."""
        line = current_line()
        if self._mark:
            request.headers[via.HEADER] = ", ".join((*line.chain, self._mark))
        url = request.url
        key = (url.scheme, url.host, url.port or (443 if url.scheme == "https" else 80))
        proxy = self._proxies.proxy_for(url) if self._proxies else None
        if proxy is not None and proxy.scheme != "http":
            raise ProxyFault(f"those of the kind {proxy.scheme}:// are not supported")
        if proxy is not None and url.scheme == "http":
            # A proxy is asked for the whole address; https goes through a tunnel instead.
            target = b"http://%b%b" % (url.netloc, url.raw_path)
            message = serialize(request, target, _proxy_credentials(proxy))
        else:
            message = serialize(request)
        sock = self._take_idle(key)
        if sock is not None:
            try:
                return self._exchange(line, key, sock, request, message)
            except (NoResponse, httpx2.WriteError) as exc:
                # A server that closes an idle connection as a request arrives says so at once.
                # One that fails later may have worked on it: sent again, it would be billed twice.
                # (It has not worked on a request of which it did not take the end.)
                late = isinstance(exc, NoResponse) and exc.waited > RESEND_WITHIN
                if line.interrupted or late:
                    raise
        sock = self._connect(line, request, key, proxy)
        response = self._exchange(line, key, sock, request, message)
        if isinstance(sock, ssl.SSLSocket) and (session := sock.session) is not None:
            self._sessions[key] = session
        return response

    def close(self) -> None:
        """Close all idle connections; those in use are closed by their runs, and kept no more."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, deque()
        for _, sock, _ in idle:
            sock.close()

    def return_connection(self, key: _Key, sock: socket.socket) -> None:
        """Keep a connection whose response was read to its end; close it after `close`."""
        with self._lock:
            self._idle.append((key, sock, now()))
            stale = []
            while self._idle and (
                self._closed
                or len(self._idle) > IDLE_MAX
                or now() - self._idle[0][2] > IDLE_SECONDS
            ):
                stale.append(self._idle.popleft()[1])
        for old in stale:
            old.close()

    def _take_idle(self, key: _Key) -> socket.socket | None:
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
            # Readable while idle means end of file, or bytes that answer no request.
            if now() - since < IDLE_SECONDS and not readable(sock, 0):
                return sock
            sock.close()

    def _connect(
        self, line: Line, request: httpx2.Request, key: _Key, proxy: httpx2.URL | None
    ) -> socket.socket:
        scheme, host, port = key
        first = (host, port) if proxy is None else (proxy.host, proxy.port or PROXY_PORT)
        deadline = now() + self._connect_timeout
        try:
            try:
                sock = self._dial(line, first, deadline)
            except OSError as exc:
                if proxy is None or isinstance(exc, TimeoutError):
                    raise
                raise ProxyFault(exc.strerror or str(exc), request=request) from exc
            try:
                if proxy is not None and scheme == "https":
                    self._tunnel(line, sock, host, port, proxy)
                if scheme == "https":
                    sock.settimeout(max(0.001, deadline - now()))
                    sock = self._context.wrap_socket(
                        sock,
                        server_hostname=host,
                        do_handshake_on_connect=False,
                        session=self._sessions.get(key),
                    )
                    line.attach(sock)
                    assert isinstance(sock, ssl.SSLSocket)  # noqa: S101 - for the type checker
                    try:
                        sock.do_handshake()
                    except TimeoutError as exc:
                        raise self._late(TLSTimeout, exc, request) from exc
                sock.settimeout(None)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _TICK_OPTION)
            except BaseException:
                line.close(sock)
                self._resolver.forget(*first)
                self._sessions.pop(key, None)
                raise
        except TimeoutError as exc:
            raise self._late(NoConnection, exc, request) from exc
        except OSError as exc:
            raise httpx2.ConnectError(str(exc), request=request) from exc
        return sock

    def _late(
        self, kind: type[NoConnection], exc: TimeoutError, request: httpx2.Request
    ) -> NoConnection:
        late = kind(str(exc), request=request)
        late.seconds = self._connect_timeout
        return late

    def _dial(self, line: Line, address: tuple[str, int], deadline: float) -> socket.socket:
        """Try each address of the host in turn until one accepts. Raises OSError."""
        fault: OSError = OSError("the name has no address")
        for family, kind, proto, _, target in self._resolver.addresses(*address, deadline):
            sock = socket.socket(family, kind, proto)
            try:
                line.attach(sock, connected=False)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.settimeout(max(0.001, deadline - now()))
                sock.connect(target)
                line.connected()
            except OSError as exc:
                line.close(sock)
                fault = exc
            except Interrupted:
                sock.close()
                raise
            else:
                return sock
        self._resolver.forget(*address)
        raise fault

    def _tunnel(
        self, line: Line, sock: socket.socket, host: str, port: int, proxy: httpx2.URL
    ) -> None:
        name = f"[{host}]" if ":" in host else host
        target = f"{name}:{port}".encode("ascii")
        head = [b"CONNECT %b HTTP/1.1" % target, b"Host: %b" % target, *_proxy_credentials(proxy)]
        sock.sendall(b"\r\n".join((*head, b"", b"")))
        status, _, _ = read_head(line, sock, None)
        if not 200 <= status < 300:
            raise ProxyFault(f"it refused the connection with status {status}")

    def _exchange(
        self, line: Line, key: _Key, sock: socket.socket, request: httpx2.Request, message: bytes
    ) -> httpx2.Response:
        try:
            line.attach(sock)
            try:
                sock.sendall(message)
            except OSError as exc:
                raise httpx2.WriteError(str(exc), request=request) from exc
            sent_at = now()
            try:
                status, headers, rest = read_head(line, sock, request)
            except NoResponse as exc:
                exc.waited = now() - sent_at
                raise
            return_connection = partial(self.return_connection, key)
            body = Body(line, sock, return_connection, headers, rest, status)
        except BaseException:
            line.close(sock)
            raise
        # The body undoes those itself, by its contents.
        headers = [
            (name, value)
            for name, value in headers
            if name.lower() != b"content-encoding" or value.strip().lower() not in CODINGS
        ]
        return httpx2.Response(
            status, headers=headers, stream=body, request=request, extensions={"halt.body": body}
        )


class Proxies:
    """The proxies of the environment, or of the system where the environment names none.

    HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY decide. They are read once: a look through an
    environment of 35 variables takes 0.1 ms, a fifth of the CPU time of a request.
    """

    def __init__(self) -> None:
        named = getproxies_environment()
        self._from_system = not named
        self._proxies = named or getproxies()

    def proxy_for(self, url: httpx2.URL) -> httpx2.URL | None:
        """The proxy for this address, None where the request goes to the server itself."""
        proxy = self._proxies.get(url.scheme) or self._proxies.get("all")
        if not proxy or _is_loopback(url.host):
            return None
        port = url.port or (443 if url.scheme == "https" else 80)
        if bypasses_proxy(self._proxies.get("no", ""), url.host, port):
            return None
        # The settings of macOS and Windows have exceptions of their own.
        if self._from_system and proxy_bypass(url.host):
            return None
        return httpx2.URL(proxy if "://" in proxy else f"http://{proxy}")


def proxy_for(url: str) -> str | None:
    """The proxy through which a request to this address goes, without its user's name and password.

    None: it goes to the server itself.
    """
    proxy = Proxies().proxy_for(httpx2.URL(url))
    if proxy is None:
        return None
    return str(proxy.copy_with(username="", password="", path="/", query=None)).rstrip("/")


def bypasses_proxy(entries: str, host: str, port: int) -> bool:
    """Whether a request to this host and port goes by the proxy, by the entries of NO_PROXY.

    An entry is `*`, a host (with all below it, whether or not it begins with `.` or `*.`), an
    address, or a range of addresses as in 192.168.0.0/16; `:PORT` may follow a host or an address.
    Names are not looked up, so a range holds addresses alone.
    """
    host = host.lower().strip("[]").rstrip(".")
    address = _ip(host)
    for entry in entries.lower().replace(",", " ").split():
        name, wanted = _split_port(entry)
        if wanted is not None and wanted != port:
            continue
        if name == "*":
            return True
        if address is not None:
            network = _network(name)
            if network is not None and address in network:
                return True
            continue
        name = name.removeprefix("*").removeprefix(".").rstrip(".")
        if name and (host == name or host.endswith(f".{name}")):
            return True
    return False


_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def _split_port(entry: str) -> tuple[str, int | None]:
    """An entry's host or range, and its port."""
    name, colon, port = entry.rpartition(":")
    if colon and port.isdigit() and (":" not in name or name.endswith("]")):
        return name.strip("[]"), int(port)
    return entry.replace("[", "").replace("]", ""), None


def _ip(host: str) -> _Address | None:
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _network(name: str) -> _Network | None:
    try:
        return ipaddress.ip_network(name, strict=False)
    except ValueError:
        return None


def _is_loopback(host: str) -> bool:
    """Whether a host is this machine, which no proxy leads to."""
    address = _ip(host.strip("[]"))
    return address.is_loopback if address else host.lower().rstrip(".") == "localhost"


def _proxy_credentials(proxy: httpx2.URL) -> list[bytes]:
    if not proxy.username:
        return []
    pair = f"{proxy.username}:{proxy.password}".encode()
    return [b"Proxy-Authorization: Basic " + base64.b64encode(pair)]
