"""What may go wrong, and what of it a user is shown.

HaltError                       everything Halt raises on purpose
├── RequestError      400, 413  the request is not one we can serve; names the field
│   └── Unstorable              the database works and rejects these values
├── StreamInUse       409       the stream ID is taken
├── UnknownStream     404       no such stream, or not this session's
├── OffsetLost        410       the log no longer holds what the reader asks for
├── AtCapacity        503       every place for a stream is taken; with Retry-After
├── TooManyRequests   429  the client has started enough for now; with Retry-After
├── Draining          503       the server is about to leave; with Retry-After
├── StoreUnavailable  503       the database is locked, read-only, full or cannot be reached; with
│                               Retry-After
├── LoopDetected      508       the request came from this Halt, or passed too many Halts
├── AnswerFailed      4xx, 5xx  a run failed before its answer began
├── Interrupted                 a Stop came while the upstream was being opened
└── UpstreamError               the model's server failed, in one of the CODES below

`code` is for programs, `message` for people, `retryable` says whether the same request may
succeed later. A message never holds a secret or a traceback.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any
from urllib.parse import quote

STORE_RETRY_AFTER = 2.0  # seconds, told to clients while the database can't be used
SECRET_MIN = 8  # characters; shorter words ("none", "fake") keep no secret


class HaltError(Exception):
    """Base of all errors that Halt raises on purpose."""

    code = "internal"
    status = 500
    retryable = False

    def __init__(self, message: str, *, field: str | None = None, retry_after: float | None = None):
        super().__init__(message)
        self.message = message
        self.field = field
        self.retry_after = retry_after  # seconds


class RequestError(HaltError):
    """The request is malformed or over a limit; `field` names the part that is at fault."""

    code = "invalid_request"
    status = 400


class TooLarge(RequestError):
    """The request is over a size limit."""

    code = "too_large"
    status = 413


class Unstorable(RequestError):
    """The database is well and refuses these values: to try again is in vain."""


class StreamInUse(HaltError):
    """The stream ID that the client chose belongs to another stream."""

    code = "stream_in_use"
    status = 409


class UnknownStream(HaltError):
    """No such stream here, or one of another session."""

    code = "unknown_stream"
    status = 404


class OffsetLost(HaltError):
    """Events below the kept part of a log were asked for."""

    code = "offset_lost"
    status = 410


class AtCapacity(HaltError):
    """Every place for a stream is taken."""

    code = "at_capacity"
    status = 503
    retryable = True


class TooManyRequests(HaltError):
    """The client has started as many streams as it may for now."""

    code = "too_many_requests"
    status = 429
    retryable = True


class Draining(HaltError):
    """The server is shutting down and starts nothing new."""

    code = "draining"
    status = 503
    retryable = True


class StoreUnavailable(HaltError):
    """The database can't be used just now; nothing of what was asked for has happened.

    `reason` is short and fit for a status line: "the disk is full".
    """

    code = "store_unavailable"
    status = 503
    retryable = True

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message, retry_after=STORE_RETRY_AFTER)
        self.reason = reason


class LoopDetected(HaltError):
    """The request came from this Halt itself, or has passed too many Halts: see `halt.web.via`."""

    code = "loop_detected"
    status = 508


class Interrupted(HaltError):
    """The run was stopped while its upstream was being opened. Never shown: the log has ended."""

    code = "interrupted"


#: Every code an error event can carry: (sentence for the user, retryable).
CODES: Mapping[str, tuple[str, bool]] = MappingProxyType(
    {
        # no connection
        "upstream_refused": ("The model's server refused the connection. Is it running?", True),
        "upstream_dns": ("The model server's name could not be found. Check the address.", True),
        "upstream_tls": (
            "No trusted connection to the model's server: its certificate failed.",
            False,
        ),
        "upstream_connect_timeout": (
            "The model's server did not accept a connection in time.",
            True,
        ),
        "upstream_no_tls": (
            "The model's server does not speak TLS: its address begins with http://, not https://.",
            False,
        ),
        "upstream_tls_timeout": (
            "The model's server accepted the connection and did not begin TLS in time. Does its "
            "address begin with http://?",
            True,
        ),
        "upstream_unreachable": ("The model's server could not be reached.", True),
        # answers that are refusals
        "bad_request": ("The model's server refused this request.", False),
        "tools_refused": (
            "The model's server refused the tools that Halt offers. Choose a model that can call "
            "tools, or unset HALT_TOOLS.",
            False,
        ),
        "context_too_long": ("The conversation is too long for this model.", False),
        "unauthorized": ("The model's server did not accept the API key.", False),
        "forbidden": ("The model's server does not allow this with this API key.", False),
        "region_not_supported": (
            "The model's server does not offer this in this country or region.",
            False,
        ),
        "content_filter": ("The model's server refused this content.", False),
        "quota_exceeded": (
            "The account at the model's server has no credit left, or has used up its quota.",
            False,
        ),
        "model_not_found": ("The model's server does not have this model.", False),
        "endpoint_not_found": (
            "No API answers at the address of the model's server: correct the address.",
            False,
        ),
        "loop_detected": (
            "The request goes in a circle: the model's server is this Halt itself, or leads back "
            "to a Halt that has sent it.",
            False,
        ),
        "model_loading": ("The model's server is still loading the model.", True),
        "rate_limited": ("The model's server is limiting requests.", True),
        "upstream_server_error": ("The model's server had an internal error.", True),
        # faults in the stream
        "upstream_dropped": ("The connection to the model's server broke off.", True),
        "upstream_incomplete": (
            "The model's server ended the answer before it was finished.",
            True,
        ),
        "upstream_invalid": ("The model's server sent something that is not a valid stream.", True),
        "upstream_web_page": (
            "A web page came from the address of the model's server: it does not lead to an API, "
            "or the network wants a sign-in first.",
            False,
        ),
        "upstream_error": ("The model's server reported an error.", True),
        # limits of ours
        "first_byte_timeout": ("The model did not begin to answer in time.", True),
        "stalled": ("The model stopped sending in the middle of its answer.", True),
        "run_too_long": ("The answer took longer than is allowed here.", False),
        "answer_too_long": ("The answer grew longer than is allowed here.", False),
        "too_many_tool_rounds": ("The model called tools more often than is allowed here.", False),
        "interrupted": ("Halt ended before the answer did.", True),
        "no_model": ("No model is set up. See the note at the top of the page.", False),
        "internal": ("Something went wrong in Halt itself. It has been logged.", True),
    }
)

#: In place of the sentence of `upstream_server_error`, where the server says so itself.
OVERLOADED = "The model's server is overloaded."

#: The status of an error of CODES where an answer has not begun; 502 for all that are not here.
#: That the model's server refuses our key is 502 too: the client's own token was accepted.
STATUSES: Mapping[str, int] = MappingProxyType(
    {
        "bad_request": 400,
        "context_too_long": 400,
        "content_filter": 400,
        "model_not_found": 404,
        "rate_limited": 429,
        "quota_exceeded": 429,
        "model_loading": 503,
        "internal": 500,
        "interrupted": 503,
        "no_model": 503,
        "upstream_connect_timeout": 504,
        "upstream_tls_timeout": 504,
        "first_byte_timeout": 504,
        "stalled": 504,
        "run_too_long": 504,
        "loop_detected": 508,
    }
)


class AnswerFailed(HaltError):
    """A run failed before its answer began, so the request itself is answered with the error."""

    def __init__(
        self,
        code: str,
        message: str,
        *,
        retryable: bool,
        retry_after: float | None,
        status: int | None = None,
    ):
        super().__init__(message, retry_after=retry_after)
        self.code = code
        self.status = status or STATUSES.get(code, 502)
        self.retryable = retryable


#: Codes whose sentence is followed by what the server said.
_QUOTED = (
    "bad_request tools_refused context_too_long unauthorized forbidden region_not_supported"
    " content_filter quota_exceeded model_not_found endpoint_not_found model_loading rate_limited"
    " upstream_server_error upstream_web_page upstream_incomplete upstream_error"
)
QUOTED = frozenset(_QUOTED.split())
DETAIL_MAX = 5_000  # characters of what a server said that are kept
QUOTE_MAX = 300  # characters of them that are shown


#: A request without the access token is refused with this.
TOKEN_NEEDED = "An access token is needed."  # noqa: S105 - words about one


class UpstreamError(HaltError):
    """The model's server, or the way to it, failed.

    `detail` is what the server said, for the log and, shortened, for the user: it comes from the
    provider, never from our own configuration. `hint` is ours, and is shown behind all of it.
    `sentence` and `retryable` stand in for those of the code, and `status` for its status.
    `resend` is False where the person alone may try again, because a second request is in vain or
    may be billed too. `of_demo`: the server is the demo model's, which Halt starts.
    """

    def __init__(
        self,
        code: str,
        detail: str = "",
        *,
        retry_after: float | None = None,
        hint: str = "",
        sentence: str = "",
        retryable: bool | None = None,
        status: int | None = None,
        resend: bool = True,
        of_demo: bool = False,
    ):
        usual, again = CODES[code]
        self.code = code
        self.retryable = again if retryable is None else retryable
        self.status = status or STATUSES.get(code, 502)
        self.detail = detail[:DETAIL_MAX]
        self.hint = hint
        self.own_status = status
        self.of_demo = of_demo
        self.resend = resend
        self._given: dict[str, Any] = {
            "detail": self.detail,
            "retry_after": retry_after,
            "hint": hint,
            "sentence": sentence,
            "retryable": retryable,
            "status": status,
            "resend": resend,
            "of_demo": of_demo,
        }
        message = sentence or usual
        if code in {"rate_limited", "model_loading"} and self.retryable:
            when = f"in {math.ceil(retry_after)} s" if retry_after else "in a moment"
            message += f" Try again {when}."
        if code in QUOTED and detail:
            message = f"{message} It said: {shortened(detail, QUOTE_MAX)}"
        if hint:
            end = "" if message.endswith((".", "!", "?", "…")) else "."
            message = f"{message}{end} {hint}"
        super().__init__(message, retry_after=retry_after)

    def hinting(self, hint: str) -> UpstreamError:
        """This error with a hint."""
        return self._with(hint=hint)

    def once(self) -> UpstreamError:
        """This error, after which the request is not sent again without being asked to."""
        return self._with(resend=False)

    def demo(self) -> UpstreamError:
        """This error, as one of the demo model's server."""
        return self._with(of_demo=True)

    def instead(self, code: str, *, sentence: str = "") -> UpstreamError:
        """What this one says, with another code."""
        return UpstreamError(code, self.detail, sentence=sentence)

    def without(self, secret: str) -> UpstreamError:
        """This error with a secret that the server quoted taken out."""
        if len(secret) < SECRET_MIN:
            return self
        detail, hint = self.detail, self.hint
        for form in {secret, quote(secret, safe="")}:
            detail, hint = detail.replace(form, "[key]"), hint.replace(form, "[key]")
        if (detail, hint) == (self.detail, self.hint):
            return self
        return self._with(detail=detail, hint=hint)

    def _with(self, **changes: Any) -> UpstreamError:
        return UpstreamError(self.code, **self._given | changes)


def shortened(text: str, limit: int) -> str:
    """At most `limit` characters of a text, with a mark where it was cut."""
    return text if len(text) <= limit else f"{text[: limit - 1].rstrip()}…"
