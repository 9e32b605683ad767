"""The errors of Halt: their codes, HTTP statuses and the texts that users read.

HaltError                       base of all errors that Halt raises on purpose
├── RequestError      400, 413  the request is malformed or over a limit; names the field
│   └── Unstorable              the database works and refuses these values
├── StreamInUse       409       the stream ID belongs to another stream
├── SignInEnded       401       a reader's sign-in or API token is no longer valid
├── UnknownStream     404       no such stream, or a stream of another person
├── OffsetLost        410       the log no longer has the requested events
├── AtCapacity        503       a limit of streams, readers or threads is reached, or of the
│                               streams of a WebSocket; with Retry-After
├── TooManyRequests   429       the client's rate limit is reached; with Retry-After
├── Draining          503       the server is shutting down; with Retry-After
├── StoreUnavailable  503       the database is locked, read-only, full or unreachable; with
│                               Retry-After
├── LoopDetected      508       the request came from this Halt, or passed too many Halts
├── AnswerFailed      4xx, 5xx  a run failed before its answer began
├── Interrupted                 a Stop came while the upstream was being opened
└── UpstreamError               the model's server failed, with one of the CODES below

`code` is for programs, `message` for people; `retryable` says whether the same request may
succeed later. A message never contains a secret or a traceback.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from halt.redaction import without_secrets

STORE_RETRY_AFTER = 2.0  # seconds; Retry-After while the database is unavailable


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
    """The request is malformed or over a limit; `field` names the wrong part."""

    code = "invalid_request"
    status = 400


class TooLarge(RequestError):
    """The request is over a size limit."""

    code = "too_large"
    status = 413


class Unstorable(RequestError):
    """The database works and refuses these values; a retry would fail again."""


class StreamInUse(HaltError):
    """The stream ID that the client chose belongs to another stream."""

    code = "stream_in_use"
    status = 409

    def __init__(self, stream_id: str) -> None:
        message = f"The stream ID {stream_id!r} belongs to another stream: choose a new one."
        super().__init__(message, field="id")


class SignInEnded(HaltError):
    """A reader's sign-in or API token is no longer valid, or its person is no longer known."""

    code = "unauthorized"
    status = 401

    def __init__(self) -> None:
        super().__init__(
            "The sign-in or API token of this request is no longer valid. Sign in again, or use "
            "another token, to read on."
        )


class UnknownStream(HaltError):
    """There is no such stream, or it belongs to another person."""

    code = "unknown_stream"
    status = 404


class OffsetLost(HaltError):
    """The log has already dropped the requested events."""

    code = "offset_lost"
    status = 410


class AtCapacity(HaltError):
    """A limit of open streams, readers or threads, or of a WebSocket's streams, is reached."""

    code = "at_capacity"
    status = 503
    retryable = True


class TooManyRequests(HaltError):
    """The client has reached its rate limit for starting streams."""

    code = "too_many_requests"
    status = 429
    retryable = True


class Draining(HaltError):
    """The server is shutting down and starts no new streams."""

    code = "draining"
    status = 503
    retryable = True


class StoreUnavailable(HaltError):
    """The database is unavailable; the requested operation has not happened.

    `reason` is short enough for a status line: "the disk is full".
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
    """The run was stopped while its upstream was being opened.

    Users never see it, because the log has already ended.
    """

    code = "interrupted"


#: Every code an error event can carry: (sentence for the user, retryable).
CODES: Mapping[str, tuple[str, bool]] = MappingProxyType(
    {
        # no connection
        "upstream_refused": ("The model's server refused the connection. Is it running?", True),
        "upstream_dns": (
            "The name of the model's server could not be found. Check the address.",
            True,
        ),
        "upstream_tls": (
            "No trusted TLS connection to the model's server: its certificate was not accepted.",
            False,
        ),
        "upstream_connect_timeout": (
            "The model's server did not accept a connection in time.",
            True,
        ),
        "upstream_no_tls": (
            "The model's server does not speak TLS: set its address with http:// instead of https://.",
            False,
        ),
        "upstream_tls_timeout": (
            "The model's server accepted the connection but did not start TLS in time. If it "
            "does not speak TLS, set its address with http://.",
            True,
        ),
        "upstream_unreachable": ("The model's server could not be reached.", True),
        "address_refused": (
            "The model's server has a link-local address, to which Halt does not connect.",
            False,
        ),
        # answers that are refusals
        "bad_request": ("The model's server refused this request.", False),
        "tools_refused": (
            "The model's server refused the tools that Halt offers. Choose a model that can call "
            "tools, or unset HALT_TOOLS.",
            False,
        ),
        "images_refused": ("The model's server refused the image.", False),
        "context_too_long": ("The conversation is too long for this model.", False),
        "unauthorized": ("The model's server did not accept the API key.", False),
        "key_needed": ("The key of this provider is missing: enter it again.", False),
        "forbidden": (
            "The API key has no permission for this request at the model's server.",
            False,
        ),
        "region_not_supported": (
            "The model's server does not serve this country or region.",
            False,
        ),
        "content_filter": ("The model's server refused this content.", False),
        "quota_exceeded": (
            "The account at the model's server has no credit left, or its quota is used up.",
            False,
        ),
        "model_not_found": ("The model's server does not have this model.", False),
        "endpoint_not_found": (
            "No API answers at the address of the model's server: correct the address.",
            False,
        ),
        "loop_detected": (
            "The request came back to Halt: the address of the model's server leads to this Halt, "
            "or into a loop of several.",
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
            "The address of the model's server returned a web page: it is not the address of an "
            "API, or the network requires a sign-in first.",
            False,
        ),
        "upstream_error": ("The model's server reported an error.", True),
        # limits of ours
        "first_byte_timeout": ("The model did not begin to answer in time.", True),
        "stalled": ("The model stopped sending in the middle of its answer.", True),
        "run_too_long": ("The answer took too long.", False),
        "answer_too_long": ("The answer is too long.", False),
        "too_many_tool_rounds": ("The model called tools in too many rounds.", False),
        "interrupted": ("Halt shut down or crashed before the answer was complete.", True),
        "no_model": (
            "No model is set up: connect one on the page “Models”, or set OPENAI_API_KEY or "
            "OPENAI_BASE_URL.",
            False,
        ),
        "internal": ("Halt had an internal error. Its log has the details.", True),
    }
)

#: Replaces the sentence of `upstream_server_error` if the server reports that it is overloaded.
OVERLOADED = "The model's server is overloaded."

#: HTTP status for an error of CODES before an answer has begun; 502 for codes that are not here.
#: A refused key of Halt's is 502 too, because the client's own token was accepted.
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
    """A run failed before its answer began; the error is the response to the request."""

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


#: Between Halt's sentence and the words of the model's server in a message.
IT_SAID = " It said: "

#: Codes whose sentence is followed by the server's own message.
_QUOTED = (
    "bad_request tools_refused images_refused context_too_long unauthorized forbidden"
    " region_not_supported content_filter quota_exceeded model_not_found endpoint_not_found"
    " model_loading rate_limited upstream_server_error upstream_web_page upstream_incomplete"
    " upstream_error"
)
QUOTED = frozenset(_QUOTED.split())
DETAIL_MAX = 5_000  # characters of a server's message that are kept
QUOTE_MAX = 300  # characters of a server's message that users see


#: The first words of TOKEN_NEEDED, in older versions of Halt too: discovery knows Halts by them.
TOKEN_NEEDED_BEGINNING = "An access token is needed"  # noqa: S105 - not a token
#: Messages of the errors for a request without the access token, and with a wrong one.
TOKEN_NEEDED = f"{TOKEN_NEEDED_BEGINNING}: send `Authorization: Bearer TOKEN`."
TOKEN_WRONG = "The access token is wrong: send the value of this Halt's HALT_TOKEN."  # noqa: S105
API_TOKEN_WRONG = "The API token is unknown, or it was revoked. Make one on Halt's page."  # noqa: S105


class NameTaken(HaltError):
    """A value with this name is saved already; the request did not ask to replace it."""

    code = "name_taken"
    status = 409


class UpstreamError(HaltError):
    """The model's server or the connection to it failed.

    `detail` is the server's message, for the log and, shortened, for the user: it comes from the
    provider, never from Halt's configuration. `hint` is Halt's own text, added at the end.
    `sentence`, `retryable` and `status` replace the defaults of the code. `resend` is False if
    only the user may retry, because a second request would fail again or be billed too.
    `of_demo`: the server is that of the demo model, which Halt starts. `upstream_status`: the HTTP
    status of the server's refusal.
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
        upstream_status: int | None = None,
    ):
        default_sentence, default_retryable = CODES[code]
        self.code = code
        self.retryable = default_retryable if retryable is None else retryable
        self.status = status or STATUSES.get(code, 502)
        self.detail = detail[:DETAIL_MAX]
        self.hint = hint
        self.own_status = status
        self.of_demo = of_demo
        self.resend = resend
        self.upstream_status = upstream_status
        self._given: dict[str, Any] = {
            "detail": self.detail,
            "retry_after": retry_after,
            "hint": hint,
            "sentence": sentence,
            "retryable": retryable,
            "status": status,
            "resend": resend,
            "of_demo": of_demo,
            "upstream_status": upstream_status,
        }
        message = sentence or default_sentence
        if code in {"rate_limited", "model_loading"} and self.retryable:
            when = f"in {math.ceil(retry_after)} s" if retry_after else "in a moment"
            message += f" Try again {when}."
        if self.quote:
            message = f"{message}{IT_SAID}{shortened(self.quote, QUOTE_MAX)}"
        if hint:
            end = "" if message.endswith((".", "!", "?", "…")) else "."
            message = f"{message}{end} {hint}"
        super().__init__(message, retry_after=retry_after)

    @property
    def quote(self) -> str:
        """The server's own words, if users may see them."""
        return self.detail if self.code in QUOTED else ""

    def with_hint(self, hint: str) -> UpstreamError:
        """A copy of this error with a hint."""
        return self._with(hint=hint)

    def without_retry(self) -> UpstreamError:
        """A copy of this error that Halt does not retry by itself."""
        return self._with(resend=False)

    def marked_demo(self) -> UpstreamError:
        """A copy of this error, marked as one of the demo model's server."""
        return self._with(of_demo=True)

    def with_code(self, code: str, *, sentence: str = "") -> UpstreamError:
        """A new error with another code and the same detail."""
        return UpstreamError(
            code, self.detail, sentence=sentence, upstream_status=self.upstream_status
        )

    def with_secrets_removed(self, secrets: tuple[str, ...]) -> UpstreamError:
        """This error with each occurrence of a secret in its texts replaced by "[key]"."""
        changes = {
            name: clean
            for name in ("detail", "hint", "sentence")
            if (clean := without_secrets(self._given[name], secrets)) != self._given[name]
        }
        return self._with(**changes) if changes else self

    def _with(self, **changes: Any) -> UpstreamError:
        return UpstreamError(self.code, **self._given | changes)


def shortened(text: str, limit: int) -> str:
    """The text cut to at most `limit` characters; a cut text ends with "…"."""
    return text if len(text) <= limit else f"{text[: limit - 1].rstrip()}…"
