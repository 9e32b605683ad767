"""Checks how a proxy treats requests, WebSockets and disconnects, for `halt-chat doctor URL`.

Halt itself reports how requests arrive (see `halt.web.proxies`). The checks use raw connections
for what an HTTP client would hide. Each public function adds its findings to the report.
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
from halt.cli.source import REQUEST_TIMEOUT, EventStreamDecoder, Remote
from halt.clock import now
from halt.config.proxies import INSPECT, ReceivedRequest
from halt.core.events import Cancelled, encode
from halt.doctor.answers import LONG
from halt.doctor.connection import destination
from halt.doctor.report import Report, milliseconds
from halt.errors import HaltError

SOON = 0.1  # seconds until Halt notices a disconnect that are normal also behind a good proxy
LATE = 1.0  # seconds until Halt notices a disconnect that are reported as late
NOTICED_WITHIN = 5.0  # seconds to wait until Halt notices a disconnect
LOOK = 0.02  # seconds between two checks whether an answer has ended
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
    "Caddy: no `flush_interval -1`; Apache notices at its next write: lower HALT_HEARTBEAT."
)

_decode_received = msgspec.json.Decoder(ReceivedRequest).decode

#: Headers of a WebSocket handshake. Proxies may treat it differently from other requests.
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
    """A new connection on which a request was sent. Raises OSError."""
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
        sock.settimeout(REQUEST_TIMEOUT)
        sock.sendall(f"{method} {url.path}{path} HTTP/1.1\r\n{fields}\r\n".encode() + body)
        yield sock


def _status(sock: socket.socket) -> tuple[int, bytes]:
    """The status of the next response, and the bytes after its head. Raises OSError."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = sock.recv(4096)
        if not part:
            raise ConnectionResetError("the connection was closed without an answer")
        data += part
        if len(data) > HEAD_MAX:
            raise ConnectionError("the response is not HTTP")
    status = data.partition(b" ")[2][:3]
    return int(status) if status.isdigit() else 0, data.partition(b"\r\n\r\n")[2]


def _received(
    remote: Remote, path: str, headers: Mapping[str, str], connect_timeout: float
) -> ReceivedRequest:
    """How a request arrives at Halt. Raises OSError, HTTPException, msgspec.MsgspecError."""
    inspecting = {INSPECT: "1", **headers}
    with (
        _requested(remote, connect_timeout, "GET", path, inspecting) as sock,
        HTTPResponse(sock) as response,
    ):
        response.begin()
        return _decode_received(response.read())


def check_client_address(report: Report, remote: Remote, connect_timeout: float) -> None:
    """Check which address counts as the client's, and whether large uploads pass."""
    invented = {"X-Forwarded-For": "192.0.2.1"}  # an address that no host has (RFC 5737)
    ways: list[tuple[str, dict[str, str]]] = [("/chat/stream", {}), ("/ws", HANDSHAKE)]
    try:
        inspections = [
            (
                path,
                _received(remote, path, more, connect_timeout),
                _received(remote, path, more | invented, connect_timeout),
            )
            for path, more in ways
        ]
    except (OSError, HTTPException, msgspec.MsgspecError):
        report.warn(
            "client address",
            "this Halt does not report how requests arrive.",
            "Run doctor of the same version as this Halt.",
        )
        return
    faults = [
        (path, fault)
        for path, plain, forged in inspections
        if (fault := client_address_fault(plain, forged, remote.url.startswith("https")))
        is not None
    ]
    if not faults:
        count = inspections[0][1].trusted_proxies
        proxies = "1 proxy" if count == 1 else f"{count} proxies"
        origin = f"as reported by {proxies}" if count else "as connected"
        report.ok("client address", f"Halt knows the client's own address, {origin}")
    else:
        path, (forgeable, text, remedy) = max(faults, key=lambda fault: fault[1][0])
        (report.fail if forgeable else report.warn)("client address", f"{path}: {text}", remedy)
    _check_uploads(report, remote, inspections[0][1].max_import_bytes, connect_timeout)


def client_address_fault(
    plain_request: ReceivedRequest, forged_request: ReceivedRequest, encrypted: bool
) -> tuple[bool, str, str] | None:
    """The fault of the client address that Halt uses, or None: (can be forged, text, remedy).

    `plain_request` arrived as it was sent, `forged_request` with an invented X-Forwarded-For.
    """
    trusted, hops = plain_request.trusted_proxies, plain_request.forwarded
    if trusted > hops and forged_request.forwarded > hops:
        remedy = f"{ADDRESS} Without a proxy: HALT_TRUSTED_PROXIES=0."
        if hops:
            remedy = f"Start Halt with HALT_TRUSTED_PROXIES={hops}, the number of proxies here."
        text = "a client can invent its address: Halt trusts the client's own X-Forwarded-For."
        return True, text, remedy
    if (
        trusted == hops
        and (hops or forged_request.forwarded)
        and not (trusted == 0 and encrypted and not plain_request.secure)
    ):
        return None
    together = "all clients count as one: Halt only knows the proxy's address"
    if hops == 0:
        remedy = f"{ADDRESS} And start Halt with HALT_TRUSTED_PROXIES=1."
        return False, f"{together}, because X-Forwarded-For is missing.", remedy
    return (
        False,
        f"{together}. X-Forwarded-For has {hops} addresses, HALT_TRUSTED_PROXIES is {trusted}.",
        f"Start Halt with HALT_TRUSTED_PROXIES={hops}.",
    )


def _check_uploads(report: Report, remote: Remote, size: int, connect_timeout: float) -> None:
    """Announce an upload of the largest file that Halt imports; no part of it is sent."""
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
            "uploads", f"a large file does not reach Halt: {exc}.", "Look at the proxy's log."
        )
        return
    megabytes = f"{size / 1_000_000:.0f} MB"
    if status in {100, 200}:
        report.ok("uploads", f"files of {megabytes} reach Halt")
    else:
        report.fail(
            "uploads",
            f"the proxy refuses a file of {megabytes}, which Halt accepts, with status {status}.",
            "Remove the proxy's limit; Halt has its own (nginx: `client_max_body_size 100m;`, "
            "Apache: `LimitRequestBody 0`).",
        )


def check_websocket(report: Report, remote: Remote, connect_timeout: float) -> None:
    """Open a WebSocket and check that a ping is answered."""
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
                        raise ConnectionResetError("the connection was closed")
                    data += part
    except OSError as exc:
        report.fail("websocket", f"a WebSocket does not work: {exc}.", WEBSOCKETS)
        return
    if status == 101:
        report.ok("websocket", f"a message is answered ({milliseconds(now() - began)})")
    elif status == 503:
        report.warn(
            "websocket", "the limit of open streams is reached (503).", "Run doctor again later."
        )
    else:
        report.fail(
            "websocket", f"the proxy does not forward WebSockets: status {status}.", WEBSOCKETS
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
    """Whether a part of the response arrives within LOOK seconds. Raises OSError."""
    sock.settimeout(LOOK)
    try:
        sock.recv(4096)
    except TimeoutError:
        return False
    return True


def check_departure(report: Report, remote: Remote, session: str, connect_timeout: float) -> None:
    """Start an answer, disconnect (if possible before its first text) and wait for its end.

    The answer belongs to a session, so that it can be observed in the list of running streams; a
    reader of the stream would keep it alive.
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
            deadline = now() + REQUEST_TIMEOUT
            while (stream := _running(remote, stream_id, cookie)) is None and not _answers(sock):
                if now() > deadline:
                    raise TimeoutError("the answer did not begin")
        is_silent = stream is not None and stream.events == 0
        left_at = now()
        left_stream = stream = _running(remote, stream_id, cookie)
        while stream is not None and now() - left_at < NOTICED_WITHIN:
            time.sleep(LOOK)
            stream = _running(remote, stream_id, cookie)
        delay = now() - left_at
        remote.request("POST", f"/stop/{stream_id}", cookie)
        group = EventStreamDecoder().feed(
            remote.request("GET", f"/streams/{stream_id}", cookie).content
        )
    except (OSError, HaltError, msgspec.MsgspecError) as exc:
        report.warn("departure", f"the check failed: {exc}.", "Run doctor again.")
        return
    ended = group[-1][1] if group else None
    if stream is not None or (left_stream is not None and not isinstance(ended, Cancelled)):
        text = f"Halt did not notice a disconnect: the model continued for {delay:.1f} s."
        report.warn("departure", text, DEPARTURES)
    elif not isinstance(ended, Cancelled):
        text = "the answer was complete before the client could disconnect."
        report.warn("departure", text, "Run doctor again.")
    elif delay > LATE or (is_silent and ended.metrics.chunks and delay > SOON):
        when = "only when the model wrote, " if ended.metrics.chunks else ""
        text = f"a disconnect was noticed {when}after {milliseconds(delay)}."
        report.warn("departure", text, DEPARTURES)
    else:
        when = "before the model writes" if is_silent else "while the model writes"
        text = f"a disconnect {when} is noticed after {milliseconds(delay)}"
        report.ok("departure", text)
