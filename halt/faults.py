"""The one boundary where the errors of clients, sockets and servers become ours."""

from __future__ import annotations

import logging
import socket
import ssl

import httpx2

from halt.errors import CODES, Interrupted, UpstreamError
from halt.transport import ProxyFault, TLSTimeout

logger = logging.getLogger(__name__)

_STATUS_CODES = {
    400: "bad_request",
    401: "unauthorized",
    403: "forbidden",
    404: "model_not_found",
    408: "upstream_server_error",
    413: "context_too_long",
    422: "bad_request",
    429: "rate_limited",
}


def _said(body: object) -> tuple[str, str]:
    """What an error object says, and its code and type in one lower-case string."""
    if isinstance(body, dict):
        inner = body.get("error")
        if isinstance(inner, (dict, str)):
            return _said(inner)
        message = body.get("message") or body.get("detail") or ""
        return str(message), f"{body.get('code')} {body.get('type')}".lower()
    return (body, "") if isinstance(body, str) else ("", "")


def _is_context(message: str, kind: str) -> bool:
    text = message.lower()
    return (
        "context_length" in kind
        or "exceed_context" in kind
        or "prompt is too long" in text
        or ("context" in text and any(w in text for w in ("length", "size", "window", "too long")))
    )


def error_object(body: object) -> UpstreamError:
    """An error that came inside a stream."""
    message, kind = _said(body)
    if _is_context(message, kind):
        return UpstreamError("context_too_long", message)
    if "rate_limit" in kind or kind.startswith("429"):
        return UpstreamError("rate_limited", message)
    if "overloaded" in kind:
        return UpstreamError("upstream_server_error", message)
    return UpstreamError("upstream_error", message)


def _retry_after(headers: httpx2.Headers) -> float | None:
    try:
        seconds = float(headers.get("retry-after", ""))
    except ValueError:
        return None
    return seconds if 0 <= seconds <= 86_400 else None


def _status_fault(response: httpx2.Response, body: object) -> UpstreamError:
    message, kind = _said(body)
    status = response.status_code
    code = _STATUS_CODES.get(status)
    if code is None:
        code = "upstream_server_error" if status >= 500 else "bad_request"
    if code == "bad_request" and _is_context(message, kind):
        code = "context_too_long"
    return UpstreamError(
        code, message or f"status {status}", retry_after=_retry_after(response.headers)
    )


#: What OpenSSL says of a server that answers in something else than TLS.
PLAIN = frozenset({"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG"})

#: Faults below the client, the most specific first.
_CONNECTION_CODES: tuple[tuple[type[BaseException], str], ...] = (
    (socket.gaierror, "upstream_dns"),
    (ssl.SSLError, "upstream_tls"),
    (TLSTimeout, "upstream_tls_timeout"),
    (ConnectionRefusedError, "upstream_refused"),
    (httpx2.ConnectTimeout, "upstream_connect_timeout"),
    (httpx2.ConnectError, "upstream_unreachable"),
    (httpx2.ReadError, "upstream_dropped"),
    (httpx2.WriteError, "upstream_dropped"),
    (httpx2.ProtocolError, "upstream_invalid"),
    (httpx2.HTTPError, "upstream_unreachable"),
    (Interrupted, "upstream_unreachable"),  # wrapped by a client; whoever asked knows of the Stop
)


def fault(exc: BaseException, secret: str) -> UpstreamError:
    """The one boundary where foreign errors become ours. Some servers quote the key: not we."""
    return _translate(exc).without(secret)


def _translate(exc: BaseException) -> UpstreamError:
    # The clients of OpenAI and Anthropic are siblings: their refusals have the same shape.
    response = getattr(exc, "response", None)
    if isinstance(response, httpx2.Response) and response.is_error:
        return _status_fault(response, getattr(exc, "body", None))
    chain: list[BaseException] = []
    cause: BaseException | None = exc
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__
    for link in chain:
        if isinstance(link, UpstreamError):  # ours, in a client's wrapping
            return link
        if isinstance(link, ssl.SSLError) and link.reason in PLAIN:
            return UpstreamError("upstream_no_tls", str(link))
        if isinstance(link, ProxyFault):
            hint = f"The proxy on the way could not be used: {str(link).rstrip('.')}."
            return UpstreamError("upstream_unreachable", str(link), hint=hint)
    for kind, code in _CONNECTION_CODES:
        for link in chain:
            if isinstance(link, kind):
                return UpstreamError(code, str(link))
    logger.error("unmapped upstream fault", exc_info=exc)
    return UpstreamError("internal", type(exc).__name__)


assert {code for _, code in _CONNECTION_CODES} | set(_STATUS_CODES.values()) <= set(CODES)  # noqa: S101
