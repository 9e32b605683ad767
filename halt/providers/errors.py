"""Translates the errors of clients, sockets and servers to UpstreamError. Nothing else does."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import socket
import ssl
import traceback
from collections.abc import Mapping
from datetime import datetime
from email.utils import parsedate_to_datetime
from time import time

import httpx2

from halt.errors import CODES, OVERLOADED, Interrupted, UpstreamError
from halt.providers.error_body import (
    FAILURE,
    ErrorInfo,
    error_part,
    is_error,
    parse_error_info,
    parse_seconds,
)
from halt.providers.error_code import classify_error, is_overloaded
from halt.redaction import without_secrets
from halt.transport.address_policy import AddressRefused
from halt.transport.pool import NoConnection, ProxyFault, TLSTimeout

logger = logging.getLogger(__name__)

WAIT_MAX = 86_400.0 * 31  # seconds; a longer wait is ignored
HEADER_MAX = 86_400.0  # seconds; the same for a header
_LIMITS = re.compile(r"limit:? (\d[\d,]{0,15}).{0,60}?requested:? (\d[\d,]{0,15})", re.IGNORECASE)


def parse_error(value: object, *, event: str = "") -> UpstreamError | None:
    """Return the error that a decoded JSON value holds, None if it holds none.

    `value` is the body of an answer, or the data of an event with the name `event`. An event whose
    name says failure is an error, whatever its data, unless that is empty.
    """
    if FAILURE.search(event) and value not in (None, "", [], {}):
        return _error_from(parse_error_info(value))
    if isinstance(value, list):
        return next((error for item in value[:8] if (error := _item_error(item))), None)
    if not isinstance(value, dict) or not is_error(value):
        return None
    info = parse_error_info(error_part(value))
    return _error_from(info if info.message else parse_error_info(value))


def _item_error(item: object) -> UpstreamError | None:
    """Return the error in an item of a list, as Gemini and FastAPI send them."""
    if isinstance(item, dict) and "loc" in item and "msg" in item:
        return _error_from(parse_error_info(item))
    return parse_error(item) if isinstance(item, dict) else None


# --- what an error means --------------------------------------------------------------------------


def _error_from(
    info: ErrorInfo, status: int | None = None, wait: float | None = None
) -> UpstreamError:
    """Return the error for `info`.

    `status`: of the response, None in a stream. `wait`: seconds according to the headers.
    """
    code = classify_error(info, status or info.status)
    sentence, hint, retryable = "", "", CODES[code][1]
    response_status = status
    if status is None:  # in a stream: the server has accepted the address and the request
        if code in {"bad_request", "endpoint_not_found"}:
            code, retryable = "upstream_error", False
        elif code == "upstream_server_error" and not is_overloaded(info):
            code = "upstream_error"
    status = status or info.status
    if info.retry_after is not None:  # the body knows more than a proxy's headers: the longer wins
        wait = info.retry_after if wait is None else max(info.retry_after, wait)
    if code == "upstream_server_error":
        if status == 529 or is_overloaded(info):
            sentence = OVERLOADED
        elif status in {408, 409, 425}:
            sentence = "The model's server could not take the request just now."
    if code == "rate_limited" and (match := _LIMITS.search(info.message)):
        limit, requested = (int(number.replace(",", "")) for number in match.groups())
        if requested > limit:
            retryable, wait = False, None
            hint = "This request alone is over that limit: shorten it, or choose another model."
    return UpstreamError(
        code,
        info.message,
        sentence=sentence,
        retryable=retryable,
        retry_after=wait if retryable and wait is not None and wait <= WAIT_MAX else None,
        status=402 if code == "quota_exceeded" and status == 402 else None,
        hint=hint,
        upstream_status=response_status,
    )


# --- refusals -------------------------------------------------------------------------------------


def _status_fault(response: httpx2.Response) -> UpstreamError:
    info = parse_error_info(_body(response))
    info.message = info.message or f"{response.status_code} {response.reason_phrase}".strip()
    wait = retry_delay(response.headers, time())
    if wait is None and info.rate_headers:
        wait = retry_delay({str(k).lower(): str(v) for k, v in info.rate_headers.items()}, time())
    return _error_from(info, response.status_code, wait)


def _body(response: httpx2.Response) -> object:
    """Return the body of a refusal: its JSON value, or its text if it is no JSON."""
    try:
        text = response.content.decode("utf-8", "replace")
    except httpx2.StreamError:  # the body was not read to its end
        return ""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def retry_delay(headers: Mapping[str, str], at: float) -> float | None:
    """Return the seconds to wait according to headers, None if they do not say.

    `at`: the current time, in seconds since the epoch.
    """
    milliseconds = parse_seconds(headers.get("retry-after-ms"), "ms")
    if milliseconds is not None and milliseconds <= HEADER_MAX * 1000:
        return milliseconds
    value = headers.get("retry-after", "").strip()
    seconds = parse_seconds(value) if value[:1].isdigit() else None
    if seconds is None and value:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - at
        except (ValueError, TypeError, OverflowError):
            seconds = None
    if seconds is None:
        seconds = _reset(headers, at)
    return seconds if seconds is not None and 0 <= seconds <= HEADER_MAX else None


def _reset(headers: Mapping[str, str], at: float) -> float | None:
    """Return the seconds until the rate limits that are used up reset, None if none is.

    A number in a header is seconds to wait, or a time since the epoch in seconds or milliseconds.
    """
    wait_times = []
    for name, value in headers.items():
        if "ratelimit" not in name or "reset" not in name:
            continue
        remaining = headers.get(name.replace("reset", "remaining"))
        seconds = parse_seconds(value)
        if seconds is None:  # Anthropic's is a date
            with contextlib.suppress(ValueError):
                seconds = datetime.fromisoformat(value).timestamp()
        if seconds is None or (remaining is not None and remaining.strip() not in {"0", "0.0"}):
            continue
        if seconds > 1e11:
            seconds /= 1000
        if seconds > 1e9 or "T" in value:
            seconds = max(0.0, seconds - at)
        wait_times.append(seconds)
    return max(wait_times, default=None)


# --- connections ----------------------------------------------------------------------------------

#: OpenSSL's reasons for a server that does not speak TLS.
PLAIN = frozenset({"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG"})

#: Errors below the client, the most specific first.
_CONNECTION_CODES: tuple[tuple[type[BaseException], str], ...] = (
    (socket.gaierror, "upstream_dns"),
    (ssl.SSLError, "upstream_tls"),
    (TLSTimeout, "upstream_tls_timeout"),
    (ConnectionRefusedError, "upstream_refused"),
    (NoConnection, "upstream_connect_timeout"),
    (httpx2.ConnectTimeout, "upstream_connect_timeout"),
    (httpx2.ConnectError, "upstream_unreachable"),
    (httpx2.ReadError, "upstream_dropped"),
    (httpx2.WriteError, "upstream_dropped"),
    (httpx2.ProtocolError, "upstream_invalid"),
    (httpx2.HTTPError, "upstream_unreachable"),
    (Interrupted, "upstream_unreachable"),  # wrapped by a client; the caller knows of the Stop
)


def to_upstream_error(exc: BaseException, secrets: tuple[str, ...]) -> UpstreamError:
    """Translate an error to an UpstreamError without the secrets: some servers quote the key."""
    return _translate(exc, secrets).with_secrets_removed(secrets)


def _translate(exc: BaseException, secrets: tuple[str, ...]) -> UpstreamError:
    # The clients of OpenAI and Anthropic raise refusals of the same shape.
    response = getattr(exc, "response", None)
    if isinstance(response, httpx2.Response) and not response.is_success:
        return _status_fault(response)
    chain: list[BaseException] = []
    cause: BaseException | None = exc
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__
    for link in chain:
        if isinstance(link, UpstreamError):  # raised by Halt's transport, wrapped by the client
            return link
        if isinstance(link, ssl.SSLError) and link.reason in PLAIN:
            return UpstreamError("upstream_no_tls", str(link))
        if isinstance(link, AddressRefused):
            return UpstreamError("address_refused", sentence=str(link))
        if isinstance(link, ProxyFault):
            hint = f"The proxy could not be used: {str(link).rstrip('.')}."
            return UpstreamError("upstream_unreachable", str(link), hint=hint)
    for kind, code in _CONNECTION_CODES:
        for link in chain:
            if isinstance(link, kind):
                hint = ""
                if isinstance(link, NoConnection):
                    hint = f"Halt waited {link.seconds:g} s: HALT_CONNECT_TIMEOUT."
                return UpstreamError(code, str(link), hint=hint)
    trace = without_secrets("".join(traceback.format_exception(exc)), secrets)
    logger.error("unmapped upstream fault\n%s", trace)
    return UpstreamError("internal", type(exc).__name__)


assert {code for _, code in _CONNECTION_CODES} <= set(CODES)  # noqa: S101
