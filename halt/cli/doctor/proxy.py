"""Looks at a running Halt from outside, through whatever stands before it.

Halt's own figures come with each answer, so a proxy that keeps events back is caught by comparing
when the model wrote with when its words arrived.
"""

from __future__ import annotations

import re
import secrets
import threading
from dataclasses import dataclass
from html import unescape
from http.cookies import SimpleCookie
from urllib.parse import urljoin, urlsplit

import httpx2
import msgspec

from halt.cli.doctor import proxy_checks
from halt.cli.doctor.checks import (
    GATHERED,
    LONG,
    SHORT,
    SLOW_STOP,
    Report,
    goes_through_proxy,
    milliseconds,
    reach,
    trusts,
)
from halt.cli.source import ANSWER_WITHIN, Frames, Remote, RemoteError, body_of
from halt.clock import now
from halt.core.connection import Line, Quiet
from halt.core.events import Failed, Terminal, encode, is_terminal
from halt.core.receipts import Receipt
from halt.core.request import ChatRequest, Message
from halt.errors import HaltError
from halt.transport.http1 import Body

PATIENCE = 2.0  # seconds without the first byte, which Halt sends at once, that mean a delay
BUFFERING = (
    "Neither buffer nor compress Halt's responses "
    "(nginx: `proxy_http_version 1.1; proxy_buffering off; gzip off;`)."
)
ROOT = (
    "Give Halt a name of its own, such as https://halt.example.org/: a path below a name is not "
    "supported yet."
)
#: Codes of refusals that only a limit of this Halt makes.
LIMITS = frozenset({"too_many_requests", "at_capacity"})
#: Shares of the time in which the model wrote: below, its words were kept back.
TOGETHER = 0.5
SPREAD_MIN = 100.0  # milliseconds; a model that wrote for less says nothing about a proxy


class Stopper:
    """Presses Stop in a thread: when told to, or by itself after so many seconds.

    A connection that has not ended ANSWER_WITHIN seconds later is interrupted.
    """

    def __init__(self, remote: Remote, stream_id: str, line: Line, after: float) -> None:
        self.receipt: Receipt | None = None
        self.fault: HaltError | None = None
        self.pressed_at: float | None = None
        self._remote, self._id, self._line, self._after = remote, stream_id, line, after
        self._told, self._over = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="halt-doctor", daemon=True)
        self._thread.start()

    def press(self) -> None:
        """Press it now."""
        self._told.set()

    def close(self) -> None:
        """The answer is over; wait for a Stop that is under way."""
        self._over.set()
        self._told.set()
        self._thread.join()

    def _run(self) -> None:
        if self._told.wait(self._after) and self._over.is_set():
            return
        self.pressed_at = now()
        try:
            self.receipt = self._remote.stop(self._id, 0)
        except HaltError as fault:
            self.fault = fault
        if not self._over.wait(ANSWER_WITHIN):
            self._line.interrupt()


@dataclass
class Stream:
    """One answer as it arrived; times in seconds from the request."""

    id: str
    headers: httpx2.Headers
    first_byte: float = 0.0
    first_event: float = 0.0
    last_byte: float = 0.0
    over: float = 0.0
    reads: int = 0  # that brought events
    events: int = 0
    ended: Terminal | None = None
    stopper: Stopper | None = None


def examine(report: Report, url: str, token: str, timeout: float, connect_timeout: float) -> None:
    """Look at the Halt at a public address; `timeout` is for one answer, in seconds."""
    try:
        remote = Remote(url, token, connect_timeout)
    except RemoteError as fault:
        report.fail("address", fault.message, "Give Halt's public address.")
        return
    try:
        if _reach(report, remote, connect_timeout) and _is_halt(report, remote):
            session = _page(report, remote)
            proxy_checks.arrivals(report, remote, connect_timeout)
            proxy_checks.websocket(report, remote, connect_timeout)
            if _streams(report, remote, timeout):
                proxy_checks.departure(report, remote, session, connect_timeout)
    finally:
        remote.close()


def _reach(report: Report, remote: Remote, connect_timeout: float) -> bool:
    url = urlsplit(remote.url)
    host = url.hostname or ""
    port = url.port or (443 if url.scheme == "https" else 80)
    if goes_through_proxy(report, remote.url):
        return True
    sock = reach(report, host, port, connect_timeout, "the address")
    if sock is None:
        return False
    with sock:
        if url.scheme == "https":
            return trusts(report, sock, host)
    if host not in {"localhost", "127.0.0.1", "::1"}:
        report.warn(
            "HTTPS",
            "token and words can be read on the way.",
            "Put a proxy with a certificate before Halt, as its README shows.",
        )
    return True


class _Health(msgspec.Struct):
    status: str
    version: str
    upstream: str = "unknown"


_health = msgspec.json.Decoder(_Health)


def _is_halt(report: Report, remote: Remote) -> bool:
    began = now()
    try:
        health = _health.decode(remote.request("GET", "/healthz").content)
    except RemoteError as fault:
        remedy = "Start Halt; let the proxy lead to its HOST and PORT."
        report.fail("Halt", fault.message, _at_root(remote, remedy))
        return False
    except msgspec.MsgspecError:
        remedy = "Let the proxy lead to Halt."
        report.fail("Halt", "something else answers at this address.", _at_root(remote, remedy))
        return False
    spent = milliseconds(now() - began)
    report.ok("Halt", f"version {health.version} answers ({spent}), its model is {health.upstream}")
    try:
        if remote.lets_in():
            return True
    except RemoteError as fault:
        report.fail("token", fault.message, "Look at the proxy's log.")
        return False
    report.fail("token", "an access token is needed.", "Set HALT_TOKEN here, or give --token.")
    return False


def _at_root(remote: Remote, remedy: str) -> str:
    """The remedy and, where the address has a path, that Halt is to have none."""
    return f"{remedy} {ROOT}" if urlsplit(remote.url).path else remedy


# --- the page -------------------------------------------------------------------------------------


def _page(report: Report, remote: Remote) -> str:
    """Look at the page; the cookies that it sets, as a request sends them back."""
    try:
        page = remote.request("GET", "/")
    except RemoteError as fault:
        report.fail("page", fault.message, "Look at the proxy's log.")
        return ""
    _files(report, remote, page)
    policy = page.headers.get_list("content-security-policy")
    if not any("default-src 'self'" in each for each in policy):
        report.fail(
            "headers",
            "the page's Content-Security-Policy is gone.",
            "Take the proxy's own rules for this header away.",
        )
    elif len(policy) > 1:
        report.warn(
            "headers",
            "the proxy adds a second Content-Security-Policy.",
            "Take it away: a browser obeys both, and the page may break.",
        )
    else:
        report.ok("headers", "the page's Content-Security-Policy arrives")
    cookies = [SimpleCookie(each) for each in page.headers.get_list("set-cookie")]
    morsels = [morsel for jar in cookies for morsel in jar.values()]
    if remote.url.startswith("https") and morsels:
        if all(morsel["secure"] for morsel in morsels):
            report.ok("cookies", "they are for HTTPS alone")
        else:
            report.warn(
                "cookies",
                "the session's cookie would also be sent without HTTPS.",
                "Let the proxy send X-Forwarded-Proto "
                "(nginx: `proxy_set_header X-Forwarded-Proto $scheme;`), "
                "and start Halt with HALT_TRUSTED_PROXIES=1.",
            )
    return "; ".join(f"{morsel.key}={morsel.value}" for morsel in morsels)


def _files(report: Report, remote: Remote, page: httpx2.Response) -> None:
    """Ask for a style as a browser does, which finds it by the page: at the root of the name."""
    link = re.search(r'<link rel="stylesheet" href="(/[^"]+)"', page.text)
    if link is None:
        return
    path = urlsplit(remote.url).path
    root = Remote(urljoin(remote.url, "/"))
    try:
        style = root.request("GET", unescape(link[1]))
        kind = style.headers.get("content-type", "")
        fault = "" if kind.startswith("text/css") else f"Content-Type {kind or 'missing'}"
    except RemoteError as exc:
        fault = f"status {exc.status}" if exc.status else exc.message
    finally:
        root.close()
    place = f"{urlsplit(remote.url).netloc}{path}/"
    if path and fault:
        text = f"Halt is below a path here ({place}), and its page looks for styles and scripts at "
        report.fail("path", f"{text}the root of the name, where they are not ({fault}).", ROOT)
    elif path:
        text = f"Halt is below a path here ({place}), and its page asks the root of the name."
        report.warn("path", text, f"Use {root.url}/ alone. {ROOT}")
    elif fault:
        text = f"the page's styles and scripts do not arrive ({link[1]}: {fault})."
        report.fail("files", text, "Let the proxy lead every path of this name to Halt.")


# --- streams --------------------------------------------------------------------------------------


def _streams(report: Report, remote: Remote, timeout: float) -> bool:
    """Look at two answers, a whole and a stopped one; whether a third can be looked at."""
    try:
        whole = _stream(remote, SHORT, timeout, None)
    except HaltError as fault:
        report.fail("stream", fault.message, _remedy(fault, "Look at the proxy's and Halt's logs."))
        return False
    _headers(report, whole.headers)
    if not _complete(report, whole):
        return False
    held = _buffers(report, whole, _encoding(report, remote, whole.id, timeout))
    try:
        stopped = _stream(remote, LONG, timeout, PATIENCE / 2 if held else PATIENCE)
    except HaltError as fault:
        report.fail("stop", fault.message, _remedy(fault, "Let POST /stop/... through to Halt."))
        return False
    _stopped(report, stopped)
    return True


def _remedy(fault: HaltError, usual: str) -> str:
    """What to do about a refusal; the usual thing where it is not Halt's own limit."""
    if fault.code in LIMITS:
        return "Halt's own limit refused the doctor: wait, or raise it, and ask again."
    return usual


def _stream(remote: Remote, prompt: str, timeout: float, patience: float | None) -> Stream:
    """Ask and note when things arrive. Raises HaltError.

    With `patience` Stop is pressed when the first event is there, or after so many seconds; without
    it, after `timeout`.
    """
    stream_id = f"doctor-{secrets.token_hex(8)}"
    request = ChatRequest([Message("user", prompt)], id=stream_id)
    line = Line()
    began = now()
    stopper = Stopper(remote, stream_id, line, timeout if patience is None else patience)
    try:
        response = remote.open("POST", "/chat/stream", line, encode(request))
        stream = Stream(stream_id, response.headers, stopper=stopper)
        try:
            presses = stopper if patience is not None else None
            _follow(stream, body_of(response), began, presses)
        finally:
            body_of(response).close()
    finally:
        stopper.close()
    if stopper.fault is not None:
        raise stopper.fault
    return stream


def _follow(stream: Stream, body: Body, began: float, stopper: Stopper | None) -> None:
    frames = Frames()
    while stream.ended is None:
        try:
            raw = body.read()
        except Quiet:
            continue
        except httpx2.HTTPError:
            break
        at = now() - began
        if not raw:
            break
        stream.first_byte = stream.first_byte or at
        stream.last_byte = at
        group = frames.feed(raw)
        if group:
            stream.first_event = stream.first_event or at
            stream.reads += 1
            stream.events += len(group)
            if is_terminal(group[-1][1]):
                stream.ended = group[-1][1]
            elif stopper is not None:
                stopper.press()
    stream.over = now() - began


def _encoding(report: Report, remote: Remote, stream_id: str, timeout: float) -> str:
    """How a stream is compressed for a browser, which takes that; empty where it is not."""
    headers = {"Accept-Encoding": "gzip, deflate, br, zstd"}
    if remote.token:
        headers["Authorization"] = f"Bearer {remote.token}"
    url = f"{remote.url}/streams/{stream_id}"
    try:
        with httpx2.stream("GET", url, headers=headers, timeout=timeout) as response:
            encoding: str = response.headers.get("content-encoding", "")
            response.raise_for_status()
    except httpx2.HTTPError as exc:
        text = f"the stream can't be read again: {exc}."
        report.fail("replay", text, "Let GET /streams/... through to Halt.")
        return ""
    return encoding


def _headers(report: Report, headers: httpx2.Headers) -> None:
    kind, cache = headers.get("content-type", ""), headers.get("cache-control", "")
    if not kind.startswith("text/event-stream"):
        report.fail(
            "stream headers",
            f"Content-Type is {kind or 'missing'}.",
            "Let the proxy pass text/event-stream.",
        )
    elif "no-cache" not in cache or "no-transform" not in cache:
        report.warn(
            "stream headers",
            f"Cache-Control is {cache or 'missing'}.",
            "Let the proxy pass `no-cache, no-transform`.",
        )
    else:
        report.ok("stream headers", "Content-Type and Cache-Control arrive")


def _complete(report: Report, stream: Stream) -> bool:
    """Whether the answer came to an end that says something about the way."""
    ended = stream.ended
    if isinstance(ended, Failed):
        report.fail("answer", ended.error.message, "Run the doctor where Halt runs, without URL.")
        return False
    if ended is not None:
        return True
    silent = stream.over - stream.last_byte
    report.fail(
        "idle timeout",
        f"the connection was closed after {silent:.1f} s of silence.",
        "Raise the proxy's idle timeout (nginx: `proxy_read_timeout 3600s;`), "
        "or set HALT_HEARTBEAT to less than it.",
    )
    return False


def _buffers(report: Report, stream: Stream, encoding: str) -> bool:
    """Whether words are kept back on the way, by a buffer or by a compressor."""
    ended = stream.ended
    assert ended is not None  # noqa: S101 - it is complete
    wrote = ended.metrics.streaming_ms or 0.0
    arrived = (stream.last_byte - stream.first_event) * 1000
    took = ended.metrics.duration_ms
    first = stream.first_byte * 1000
    # Halt says something at once. So the first byte comes long before the last, however slow the
    # model is, unless somebody keeps it.
    kept_first = took > SPREAD_MIN and first > TOGETHER * took
    kept_words = wrote > SPREAD_MIN and arrived < TOGETHER * wrote
    held = kept_first or kept_words
    if held or encoding:
        faults = []
        if held:
            faults.append(
                f"the answer took {took:.0f} ms and arrived within {arrived:.0f} ms, "
                f"its first byte after {first:.0f} ms: the proxy keeps it back."
            )
        if encoding:
            faults.append(
                f"The proxy compresses streams for browsers ({encoding}), which keeps events back."
            )
        report.fail("buffering", " ".join(faults), BUFFERING)
        return held
    if wrote <= SPREAD_MIN:
        report.warn(
            "buffering",
            f"the model wrote all in {wrote:.0f} ms, too fast to tell.",
            "Ask again with a slower model.",
        )
    elif stream.events / max(1, stream.reads) >= GATHERED:
        report.warn("buffering", f"{stream.events} events came in {stream.reads} lumps.", BUFFERING)
    else:
        report.ok(
            "buffering", f"events arrive as they are written, the first byte in {first:.0f} ms"
        )
    return False


def _stopped(report: Report, stream: Stream) -> None:
    stopper = stream.stopper
    receipt = stopper.receipt if stopper is not None else None
    if receipt is None or receipt.status == "finished":
        report.warn("stop", "the answer was over before Stop could be pressed.", "Try again.")
    elif receipt.status == "pending":
        report.fail(
            "stop",
            "Stop reached a Halt that does not know the stream.",
            "Let all requests go to one and the same Halt.",
        )
    elif receipt.upstream == "closing" or receipt.elapsed_ms > SLOW_STOP:
        report.warn(
            "stop",
            f"the connection to the model is {receipt.upstream} after {receipt.elapsed_ms:.0f} ms.",
            "Run the doctor where Halt runs, without URL.",
        )
    else:
        done = "was closed" if receipt.upstream == "closed" else "was not open yet"
        report.ok("stop", f"the connection to the model {done} after {receipt.elapsed_ms:.0f} ms")
