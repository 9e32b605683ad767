"""Checks how the proxies in front of a running Halt pass its streams.

These are headers, buffering, compression, replay, the idle timeout and Stop.
Each answer contains Halt's own timings. Comparing them with the arrival of the events shows a
proxy that holds events back.
"""

from __future__ import annotations

import secrets
import threading
from dataclasses import dataclass

import httpx2

from halt.cli.source import REQUEST_TIMEOUT, EventStreamDecoder, Remote
from halt.clock import now
from halt.core.connection import NoData, UpstreamConnection
from halt.core.events import Failed, Terminal, encode, is_terminal
from halt.core.receipts import Receipt
from halt.core.request import ChatRequest, Message
from halt.doctor.answers import GATHERED, LONG, SHORT
from halt.doctor.report import Report
from halt.doctor.stop import SLOW_STOP
from halt.errors import HaltError
from halt.transport.http1 import Body, body_of

STOP_AFTER = 2.0  # seconds after which Stop is sent even if no event has arrived
BUFFERING = (
    "Do not buffer or compress Halt's responses "
    "(nginx: `proxy_http_version 1.1; proxy_buffering off; gzip off;`)."
)
#: Codes of refusals by a limit of this Halt.
LIMITS = frozenset({"too_many_requests", "at_capacity"})
#: Text that arrived within less than this share of the time in which the model wrote it was held
#: back by a proxy.
HELD_BACK_SHARE = 0.5
SPREAD_MIN = 100.0  # milliseconds; a shorter answer is no measure of a proxy


class Stopper:
    """Sends Stop in a thread: after `press`, or by itself after `after` seconds.

    A connection that has not ended REQUEST_TIMEOUT seconds later is interrupted.
    """

    def __init__(
        self, remote: Remote, stream_id: str, connection: UpstreamConnection, after: float
    ) -> None:
        self.receipt: Receipt | None = None
        self.fault: HaltError | None = None
        self._remote, self._id, self._connection, self._after = remote, stream_id, connection, after
        self._pressed, self._over = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="halt-doctor", daemon=True)
        self._thread.start()

    def press(self) -> None:
        """Send Stop now."""
        self._pressed.set()

    def close(self) -> None:
        """End the thread after the answer has ended; wait for a Stop that is under way."""
        self._over.set()
        self._pressed.set()
        self._thread.join()

    def _run(self) -> None:
        if self._pressed.wait(self._after) and self._over.is_set():
            return
        try:
            self.receipt = self._remote.stop(self._id, 0)
        except HaltError as fault:
            self.fault = fault
        if not self._over.wait(REQUEST_TIMEOUT):
            self._connection.interrupt()


@dataclass
class Stream:
    """One answer as it arrived; times in seconds from the request."""

    id: str
    headers: httpx2.Headers
    stopper: Stopper
    first_byte: float = 0.0
    first_event: float = 0.0
    last_byte: float = 0.0
    end: float = 0.0
    reads: int = 0  # reads with events
    events: int = 0
    ended: Terminal | None = None


def check_streams(report: Report, remote: Remote, timeout: float) -> bool:
    """Check a complete and a stopped answer. Returns whether further checks make sense."""
    try:
        complete = _stream(remote, SHORT, timeout, None)
    except HaltError as fault:
        report.fail("stream", fault.message, _remedy(fault, "Look at the proxy's and Halt's logs."))
        return False
    _check_headers(report, complete.headers)
    if not _check_end(report, complete):
        return False
    is_held_back = _check_buffering(
        report, complete, _check_replay(report, remote, complete.id, timeout)
    )
    try:
        stopped_stream = _stream(
            remote, LONG, timeout, STOP_AFTER / 2 if is_held_back else STOP_AFTER
        )
    except HaltError as fault:
        report.fail(
            "stop", fault.message, _remedy(fault, "Let the proxy forward POST /stop/... to Halt.")
        )
        return False
    _check_stop(report, stopped_stream)
    return True


def _remedy(fault: HaltError, default_remedy: str) -> str:
    """The remedy for a refusal by a limit of Halt's, else `default_remedy`."""
    if fault.code in LIMITS:
        return "A limit of Halt refused doctor's request: wait or raise it, and run doctor again."
    return default_remedy


def _stream(remote: Remote, prompt: str, timeout: float, stop_after: float | None) -> Stream:
    """Start an answer and measure when its parts arrive. Raises HaltError.

    With `stop_after`, Stop is sent at the first event or after this many seconds; with None, only
    after `timeout`.
    """
    stream_id = f"doctor-{secrets.token_hex(8)}"
    request = ChatRequest([Message("user", prompt)], id=stream_id)
    connection = UpstreamConnection()
    began = now()
    stopper = Stopper(remote, stream_id, connection, timeout if stop_after is None else stop_after)
    try:
        response = remote.open("POST", "/chat/stream", connection, encode(request))
        stream = Stream(stream_id, response.headers, stopper)
        try:
            _follow(stream, body_of(response), began, sends_stop=stop_after is not None)
        finally:
            body_of(response).close()
    finally:
        stopper.close()
    if stopper.fault is not None:
        raise stopper.fault
    return stream


def _follow(stream: Stream, body: Body, began: float, *, sends_stop: bool) -> None:
    decoder = EventStreamDecoder()
    while stream.ended is None:
        try:
            raw = body.read()
        except NoData:
            continue
        except httpx2.HTTPError:
            break
        at = now() - began
        if not raw:
            break
        stream.first_byte = stream.first_byte or at
        stream.last_byte = at
        group = decoder.feed(raw)
        if group:
            stream.first_event = stream.first_event or at
            stream.reads += 1
            stream.events += len(group)
            if is_terminal(group[-1][1]):
                stream.ended = group[-1][1]
            elif sends_stop:
                stream.stopper.press()
    stream.end = now() - began


def _check_replay(report: Report, remote: Remote, stream_id: str, timeout: float) -> str:
    """Report if the stream cannot be read again.

    Returns its Content-Encoding for a client that accepts compression, as browsers do; "" for none.
    """
    headers = {"Accept-Encoding": "gzip, deflate, br, zstd"}
    if remote.token:
        headers["Authorization"] = f"Bearer {remote.token}"
    url = f"{remote.url}/streams/{stream_id}"
    try:
        with httpx2.stream("GET", url, headers=headers, timeout=timeout) as response:
            encoding: str = response.headers.get("content-encoding", "")
            response.raise_for_status()
    except httpx2.HTTPError as exc:
        text = f"the stream cannot be read again: {exc}."
        report.fail("replay", text, "Let the proxy forward GET /streams/... to Halt.")
        return ""
    return encoding


def _check_headers(report: Report, headers: httpx2.Headers) -> None:
    kind, cache = headers.get("content-type", ""), headers.get("cache-control", "")
    if not kind.startswith("text/event-stream"):
        report.fail(
            "stream headers",
            f"Content-Type is {kind or 'missing'}.",
            "Let the proxy keep Halt's Content-Type, text/event-stream.",
        )
    elif "no-cache" not in cache or "no-transform" not in cache:
        report.warn(
            "stream headers",
            f"Cache-Control is {cache or 'missing'}.",
            "Let the proxy keep Halt's Cache-Control, `no-cache, no-transform`.",
        )
    else:
        report.ok("stream headers", "Content-Type and Cache-Control arrive")


def _check_end(report: Report, stream: Stream) -> bool:
    """Report an answer without an end or with an error. Returns False for these."""
    ended = stream.ended
    if isinstance(ended, Failed):
        report.fail("answer", ended.error.message, "Run doctor without URL on Halt's machine.")
        return False
    if ended is not None:
        return True
    silent_seconds = stream.end - stream.last_byte
    report.fail(
        "idle timeout",
        f"the connection was closed after {silent_seconds:.1f} s of silence.",
        "Raise the proxy's idle timeout (nginx: `proxy_read_timeout 3600s;`), "
        "or set HALT_HEARTBEAT to less than it.",
    )
    return False


def _check_buffering(report: Report, stream: Stream, encoding: str) -> bool:
    """Check whether a proxy buffers or compresses the stream. Returns whether it buffers."""
    ended = stream.ended
    assert ended is not None  # noqa: S101 - it is complete
    wrote = ended.metrics.streaming_ms or 0.0
    arrived = (stream.last_byte - stream.first_event) * 1000
    duration_ms = ended.metrics.duration_ms
    first = stream.first_byte * 1000
    # Halt sends the first byte at once. So it arrives long before the last byte, however slow the
    # model is, unless a proxy holds it back.
    is_first_held = duration_ms > SPREAD_MIN and first > HELD_BACK_SHARE * duration_ms
    is_text_held = wrote > SPREAD_MIN and arrived < HELD_BACK_SHARE * wrote
    is_held_back = is_first_held or is_text_held
    if is_held_back or encoding:
        faults = []
        if is_held_back:
            faults.append(
                f"the answer took {duration_ms:.0f} ms and arrived within {arrived:.0f} ms, "
                f"its first byte after {first:.0f} ms: the proxy holds it back."
            )
        if encoding:
            faults.append(
                f"The proxy compresses streams for browsers ({encoding}), which delays events."
            )
        report.fail("buffering", " ".join(faults), BUFFERING)
        return is_held_back
    if wrote <= SPREAD_MIN:
        report.warn(
            "buffering",
            f"not known: the model wrote its answer in {wrote:.0f} ms, too fast to measure.",
            "Run doctor again with a slower model.",
        )
    elif stream.events / max(1, stream.reads) >= GATHERED:
        report.warn(
            "buffering", f"{stream.events} events came in {stream.reads} batches.", BUFFERING
        )
    else:
        report.ok(
            "buffering", f"events arrive as they are written, the first byte in {first:.0f} ms"
        )
    return False


def _check_stop(report: Report, stream: Stream) -> None:
    receipt = stream.stopper.receipt
    if receipt is None or receipt.status == "finished":
        report.warn(
            "stop", "the answer was complete before the Stop was sent.", "Run doctor again."
        )
    elif receipt.status == "pending":
        report.fail(
            "stop",
            "the Stop reached a Halt that does not have the stream.",
            "Let the proxy send all requests to the same Halt.",
        )
    elif receipt.upstream == "closing" or receipt.elapsed_ms > SLOW_STOP:
        report.warn(
            "stop",
            f"the connection to the model is {receipt.upstream} after {receipt.elapsed_ms:.0f} ms.",
            "Run doctor without URL on Halt's machine.",
        )
    else:
        done = "was closed" if receipt.upstream == "closed" else "was not open yet"
        report.ok("stop", f"the connection to the model {done} after {receipt.elapsed_ms:.0f} ms")
