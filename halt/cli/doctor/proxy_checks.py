"""What a proxy does to requests, WebSockets and clients that leave, for `halt-chat doctor URL`.

How requests arrive, Halt itself tells (see `halt.web.proxies`). What an HTTP client would hide is
looked at on connections of our own. Each public function adds its findings to the report.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
import time
from base64 import b64encode
from collections.abc import Iterator, Mapping
from http.client import HTTPException, HTTPResponse
from urllib.parse import urlsplit

import httpx2
import msgspec

from halt import VERSION
from halt.cli.doctor.answers import LONG
from halt.cli.doctor.connection import destination
from halt.cli.doctor.report import Report, milliseconds
from halt.cli.source import ANSWER_WITHIN, Frames, Remote
from halt.clock import now
from halt.config.proxies import INSPECT, Seen
from halt.core.events import Cancelled, encode
from halt.errors import HaltError

SOON = 0.1  # seconds to notice that a client has left: less says nothing about the proxy
LATE = 1.0  # from which on that is late
NOTICED_WITHIN = 5.0  # seconds after which a client that has left is given up
LOOK = 0.02  # seconds between two looks whether an answer is over
HEAD_MAX = 65_536  # bytes of a response's head
WEBSOCKETS = (
    "nginx: `proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; "
    "proxy_set_header Connection upgrade;`; Apache: `upgrade=websocket` in ProxyPass."
)
ADDRESS = (
    "nginx: `proxy_set_header X-Forwarded-For $remote_addr;` in each location; "
    "HAProxy: `http-request set-header X-Forwarded-For %[src]`; "
    "Apache: `RequestHeader unset X-Forwarded-For early`."
)
DEPARTURES = (
    "nginx: `proxy_ignore_client_abort off;`; HAProxy: `option abortonclose`; "
    "Caddy: no `flush_interval -1`; Apache notices when it writes next: lower HALT_HEARTBEAT."
)

_decode_seen = msgspec.json.Decoder(Seen).decode

#: The beginning of a WebSocket. Proxies may treat it differently from other requests.
HANDSHAKE = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": b64encode(b"0123456789abcdef").decode(),
}


@contextlib.contextmanager
def _requested(
    remote: Remote,
    connect_timeout: float,
    method: str,
    path: str,
    headers: Mapping[str, str],
    body: bytes = b"",
) -> Iterator[socket.socket]:
    """A connection of our own on which a request was sent. Raises OSError."""
    url = urlsplit(remote.url)
    lines = {"Host": url.netloc.rpartition("@")[2], "User-Agent": f"halt/{VERSION}", **headers}
    if remote.token:
        lines["Authorization"] = f"Bearer {remote.token}"
    fields = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    host, port, is_tls = destination(remote.url)
    sock = socket.create_connection((host, port), timeout=connect_timeout)
    if is_tls:
        sock = httpx2.create_ssl_context().wrap_socket(sock, server_hostname=host)
    with sock:
        sock.settimeout(ANSWER_WITHIN)
        sock.sendall(f"{method} {url.path}{path} HTTP/1.1\r\n{fields}\r\n".encode() + body)
        yield sock


def _status(sock: socket.socket) -> tuple[int, bytes]:
    """The status of the next response, and what came behind its head. Raises OSError."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = sock.recv(4096)
        if not part:
            raise ConnectionResetError("the connection was closed without an answer")
        data += part
        if len(data) > HEAD_MAX:
            raise ConnectionError("the answer is none of HTTP")
    status = data.partition(b" ")[2][:3]
    return int(status) if status.isdigit() else 0, data.partition(b"\r\n\r\n")[2]


def _seen(remote: Remote, path: str, headers: Mapping[str, str], connect_timeout: float) -> Seen:
    """How a request arrives. Raises OSError, HTTPException, msgspec.MsgspecError."""
    inspecting = {INSPECT: "1", **headers}
    with (
        _requested(remote, connect_timeout, "GET", path, inspecting) as sock,
        HTTPResponse(sock) as response,
    ):
        response.begin()
        return _decode_seen(response.read())


def arrivals(report: Report, remote: Remote, connect_timeout: float) -> None:
    """Which address counts as the client's, and whether large files are let through."""
    invented = {"X-Forwarded-For": "192.0.2.1"}  # an address that no host has (RFC 5737)
    ways: list[tuple[str, dict[str, str]]] = [("/chat/stream", {}), ("/ws", HANDSHAKE)]
    try:
        found = [
            (
                path,
                _seen(remote, path, more, connect_timeout),
                _seen(remote, path, more | invented, connect_timeout),
            )
            for path, more in ways
        ]
    except (OSError, HTTPException, msgspec.MsgspecError):
        report.warn(
            "client address",
            "this Halt does not tell how requests arrive.",
            "Use the doctor of the same version as Halt.",
        )
        return
    faults = [
        (path, fault)
        for path, plain, forged in found
        if (fault := misjudged(plain, forged, remote.url.startswith("https"))) is not None
    ]
    if not faults:
        count = found[0][1].trusted_proxies
        told = f"as {count} prox{'y' if count == 1 else 'ies'} told it" if count else "as connected"
        report.ok("client address", f"Halt counts a client by its own address, {told}")
    else:
        path, (forgeable, text, remedy) = max(faults, key=lambda each: each[1][0])
        (report.fail if forgeable else report.warn)("client address", f"{path}: {text}", remedy)
    _uploads(report, remote, found[0][1].max_import_bytes, connect_timeout)


def misjudged(plain: Seen, forged: Seen, encrypted: bool) -> tuple[bool, str, str] | None:
    """What is wrong with the address that Halt counts: can it be invented, words, remedy.

    `plain` is how a request arrived, `forged` one that brought an address of its own.
    """
    trusted, hops = plain.trusted_proxies, plain.forwarded
    if trusted > hops and forged.forwarded > hops:
        remedy = f"{ADDRESS} Without a proxy: HALT_TRUSTED_PROXIES=0."
        if hops:
            remedy = f"Start Halt with HALT_TRUSTED_PROXIES={hops}: so many proxies add to it."
        text = "a client can invent its address: its own X-Forwarded-For reaches Halt and counts."
        return True, text, remedy
    if (
        trusted == hops
        and (hops or forged.forwarded)
        and not (trusted == 0 and encrypted and not plain.secure)
    ):
        return None
    together = "all clients count as one: Halt knows the proxy's address alone"
    if hops == 0:
        remedy = f"{ADDRESS} And start Halt with HALT_TRUSTED_PROXIES=1."
        return False, f"{together}, X-Forwarded-For does not name them.", remedy
    return (
        False,
        f"{together}. X-Forwarded-For holds {hops}, HALT_TRUSTED_PROXIES is {trusted}.",
        f"Start Halt with HALT_TRUSTED_PROXIES={hops}.",
    )


def _uploads(report: Report, remote: Remote, size: int, connect_timeout: float) -> None:
    """Announce the largest file that Halt imports; nothing of it is sent."""
    headers = {
        INSPECT: "1",
        "Content-Type": "application/octet-stream",
        "Content-Length": str(size),
        "Expect": "100-continue",
    }
    try:
        with _requested(remote, connect_timeout, "POST", "/import", headers) as sock:
            status, _ = _status(sock)
    except OSError as exc:
        report.fail(
            "uploads", f"a large file is not let through: {exc}.", "Look at the proxy's log."
        )
        return
    megabytes = f"{size / 1_000_000:.0f} MB"
    if status in {100, 200}:
        report.ok("uploads", f"files of {megabytes} are let through to Halt")
    else:
        report.fail(
            "uploads",
            f"the proxy refuses a file of {megabytes}, which Halt takes, with status {status}.",
            "Let Halt limit bodies itself (nginx: `client_max_body_size 100m;`, "
            "Apache: `LimitRequestBody 0`).",
        )


def websocket(report: Report, remote: Remote, connect_timeout: float) -> None:
    """Open a socket and ask for a sign of life."""
    ping = b'{"type":"ping"}'
    began = now()
    try:
        with _requested(remote, connect_timeout, "GET", "/ws", HANDSHAKE) as sock:
            status, data = _status(sock)
            if status == 101:
                sock.sendall(b"\x81%c\0\0\0\0%b" % (0x80 | len(ping), ping))  # masked with zeros
                while b'"pong"' not in data:
                    part = sock.recv(4096)
                    if not part:
                        raise ConnectionResetError("the socket was closed")
                    data += part
    except OSError as exc:
        report.fail("websocket", f"a WebSocket does not work: {exc}.", WEBSOCKETS)
        return
    if status == 101:
        report.ok("websocket", f"a message is answered ({milliseconds(now() - began)})")
    elif status == 503:
        report.warn("websocket", "every place is taken (503).", "Try again.")
    else:
        report.fail(
            "websocket", f"WebSockets are not passed on: the answer is {status}.", WEBSOCKETS
        )


class _Running(msgspec.Struct):
    id: str
    events: int


class _List(msgspec.Struct):
    streams: list[_Running]


_decode_list = msgspec.json.Decoder(_List).decode


def _running(remote: Remote, stream_id: str, session: Mapping[str, str]) -> _Running | None:
    """The session's stream while it runs. Raises RemoteError, msgspec.MsgspecError."""
    streams = _decode_list(remote.request("GET", "/streams", session).content).streams
    return next((stream for stream in streams if stream.id == stream_id), None)


def _answers(sock: socket.socket) -> bool:
    """Whether something of the response comes within LOOK seconds. Raises OSError."""
    sock.settimeout(LOOK)
    try:
        sock.recv(4096)
    except TimeoutError:
        return False
    return True


def departure(report: Report, remote: Remote, session: str, connect_timeout: float) -> None:
    """Begin an answer and leave, before the model says anything if it can be; see what becomes.

    The answer belongs to a session, which may list what runs: a reader would keep it alive.
    """
    stream_id = f"doctor-{secrets.token_hex(8)}"
    cookie = {"Cookie": session}
    body = encode({"messages": [{"role": "user", "content": LONG}], "stream": True})
    headers = {
        **cookie,
        "X-Stream-Id": stream_id,
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
    }
    try:
        path = "/v1/chat/completions"
        with _requested(remote, connect_timeout, "POST", path, headers, body) as sock:
            deadline = now() + ANSWER_WITHIN
            while (stream := _running(remote, stream_id, cookie)) is None and not _answers(sock):
                if now() > deadline:
                    raise TimeoutError("the answer does not begin")
        silent = stream is not None and stream.events == 0
        left_at = now()
        left = stream = _running(remote, stream_id, cookie)
        while stream is not None and now() - left_at < NOTICED_WITHIN:
            time.sleep(LOOK)
            stream = _running(remote, stream_id, cookie)
        took = now() - left_at
        remote.request("POST", f"/stop/{stream_id}", cookie)
        group = Frames().feed(remote.request("GET", f"/streams/{stream_id}", cookie).content)
    except (OSError, HaltError, msgspec.MsgspecError) as exc:
        report.warn("departure", f"it could not be tried: {exc}.", "Try again.")
        return
    ended = group[-1][1] if group else None
    if stream is not None or (left is not None and not isinstance(ended, Cancelled)):
        text = f"Halt did not notice that a client had left: the model went on for {took:.1f} s."
        report.warn("departure", text, DEPARTURES)
    elif not isinstance(ended, Cancelled):
        report.warn("departure", "the answer was over before a client could leave.", "Try again.")
    elif took > LATE or (silent and ended.metrics.chunks and took > SOON):
        when = "only when the model wrote, " if ended.metrics.chunks else ""
        text = f"that a client had left was noticed {when}after {milliseconds(took)}."
        report.warn("departure", text, DEPARTURES)
    else:
        when = "before the model writes" if silent else "while the model writes"
        text = f"a client that leaves {when} is noticed after {milliseconds(took)}"
        report.ok("departure", text)
