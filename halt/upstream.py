"""The model's server behind one small seam: `Upstream.open(request, line)` gives a `Reply`.

A Reply is read in Parts: everything that one read of the connection brought, decoded. Each fault of
the server becomes one UpstreamError with a code of `halt.errors.CODES`; text that came before the
fault is delivered first. The openai client makes the request and reads refusals; the stream itself
is decoded here with typed structs, because building the SDK's objects costs more than all the rest.
"""

from __future__ import annotations

import codecs
import logging
import socket
import ssl
import threading
from typing import Annotated, Any, Literal, Protocol

import httpx2
import msgspec
import openai

from halt.config import Config
from halt.embedded import REQUEST_EXTRA
from halt.errors import CODES, UpstreamError
from halt.transport import TICK, Body, Line, Transport, on_line

LINE_MAX = 1_048_576  # bytes of one event; no model's piece of an answer is near it

logger = logging.getLogger(__name__)

Bounded = Annotated[float, msgspec.Meta(ge=-2, le=2)]


class TextPart(msgspec.Struct, tag_field="type", tag="text", forbid_unknown_fields=True):
    """Text as a part of a message."""

    text: str


class ImageUrl(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Where an image is, or the image itself as a data: URL."""

    url: str
    detail: str | None = None


class ImagePart(msgspec.Struct, tag_field="type", tag="image_url", forbid_unknown_fields=True):
    """An image as a part of a message."""

    image_url: ImageUrl


class AudioPart(msgspec.Struct, tag_field="type", tag="input_audio", forbid_unknown_fields=True):
    """Sound as a part of a message."""

    input_audio: dict[str, str]


class FilePart(msgspec.Struct, tag_field="type", tag="file", forbid_unknown_fields=True):
    """A file as a part of a message."""

    file: dict[str, str]


class Message(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """One message of a conversation. `content` may be a list of parts, as OpenAI defines them."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart | ImagePart | AudioPart | FilePart]
    name: str | None = None


class ChatRequest(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """What a model is asked. The optional fields mean what they mean in OpenAI's API."""

    messages: Annotated[list[Message], msgspec.Meta(min_length=1)]
    id: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]{8,64}\Z")] | None = None
    model: Annotated[str, msgspec.Meta(min_length=1, max_length=200)] | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    max_tokens: Annotated[int, msgspec.Meta(ge=1, le=10_000_000)] | None = None
    max_completion_tokens: Annotated[int, msgspec.Meta(ge=1, le=10_000_000)] | None = None
    presence_penalty: Bounded | None = None
    frequency_penalty: Bounded | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: Literal[True] = True  # accepted because clients send it; an answer always streams

    def size(self) -> int:
        """Characters of all messages."""
        return sum(
            len(m.content) if isinstance(m.content, str) else len(msgspec.json.encode(m.content))
            for m in self.messages
        )

    def options(self) -> dict[str, Any]:
        """The optional fields that were set, under OpenAI's names."""
        given = msgspec.to_builtins(self)
        return {k: v for k, v in given.items() if k not in {"messages", "id", "model", "stream"}}


class Part(msgspec.Struct, frozen=True):
    """What one read brought: text (maybe none), in how many pieces, and whether it was the last."""

    text: str = ""
    chunks: int = 0
    ended: bool = False


class Reply(Protocol):
    """An answer that is coming in. Used by one thread at a time, apart from its Line."""

    @property
    def model(self) -> str:
        """The model that answers, as it names itself."""

    @property
    def finish_reason(self) -> str | None:
        """Why the answer ended, None before."""

    @property
    def usage(self) -> dict[str, Any] | None:
        """The provider's own count, None where it reported none."""

    def read(self, timeout: float) -> Part:
        """What comes next. Raises Quiet after `timeout` seconds of silence, UpstreamError."""

    def finish(self) -> None:
        """After the end: make the connection ready for the next request, or close it."""

    def close(self) -> None:
        """Close the connection, at any point."""


class Upstream(Protocol):
    """A provider of answers."""

    def open(self, request: ChatRequest, line: Line) -> Reply:
        """Send the request, wait for the headers. Raises UpstreamError, Interrupted."""

    def models(self, line: Line) -> list[str]:
        """The models that it offers. Raises UpstreamError, Interrupted."""

    def close(self) -> None:
        """Close the idle connections."""


# --- decoding -------------------------------------------------------------------------------------


class _Delta(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    finish_reason: str | None = None
    index: int = 0


class _Chunk(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: dict[str, Any] | None = None
    model: str | None = None
    error: Any = None


_decode_chunk = msgspec.json.Decoder(_Chunk).decode


class ChatDecoder:
    """Bytes of a chat completion stream to text, by the WHATWG's rules for event streams.

    Bytes may be cut anywhere, within a character too: lines are cut as bytes and decoded whole.
    """

    def __init__(self) -> None:
        self.finish_reason: str | None = None
        self.usage: dict[str, Any] | None = None
        self.model: str | None = None
        self.ended = False
        self._rest = b""  # the beginning of a line
        self._data: list[bytes] = []  # data lines of the event that is coming in
        self._size = 0  # bytes of those, with their line breaks
        self._at_start = True  # no line has been seen; it may begin with a byte order mark
        self._skip_lf = False  # the last byte was a CR, so an LF that follows belongs to it
        self._fault: UpstreamError | None = None

    def check(self) -> None:
        """Raise the UpstreamError that came behind text which was returned before, if any."""
        if self._fault is not None:
            raise self._fault

    def feed(self, raw: bytes) -> Part:
        """Decode what has come. Raises UpstreamError, after all text before it was returned."""
        self.check()
        text: list[str] = []
        try:
            for data in self._events(raw):
                self._take(data, text)
                if self.ended:
                    break
            if len(self._rest) + self._size > LINE_MAX:
                raise UpstreamError("upstream_invalid", "an event without an end")
        except UpstreamError as fault:
            if not text:
                raise
            self._fault = fault
        return Part("".join(text), len(text), self.ended)

    def end(self) -> Part:
        """The body has ended. Raises UpstreamError where the answer had not."""
        self.check()
        if self.finish_reason is None:
            raise UpstreamError("upstream_incomplete")
        self.ended = True
        return Part(ended=True)

    def _events(self, raw: bytes) -> list[bytes]:
        if self._skip_lf and raw:
            self._skip_lf = False
            if raw.startswith(b"\n"):
                raw = raw[1:]
        if b"\r" in raw:
            self._skip_lf = raw.endswith(b"\r")
            raw = raw.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, self._rest = (self._rest + raw).split(b"\n")
        if self._at_start and lines:
            self._at_start = False
            lines[0] = lines[0].removeprefix(codecs.BOM_UTF8)
        events = []
        for line in lines:
            if line.startswith(b"data:"):
                self._data.append(line[6:] if line.startswith(b"data: ") else line[5:])
                self._size += len(line) + 1
            elif not line and self._data:
                events.append(self._data[0] if len(self._data) == 1 else b"\n".join(self._data))
                self._data.clear()
                self._size = 0
        return events

    def _take(self, data: bytes, text: list[str]) -> None:
        if data.startswith(b"[DONE]"):
            self.ended = True
            return
        try:
            chunk = _decode_chunk(data)
        except (msgspec.DecodeError, UnicodeDecodeError) as exc:
            raise UpstreamError("upstream_invalid", str(exc)) from exc
        if chunk.error:
            raise _error_object(chunk.error)
        if chunk.usage is not None:
            self.usage = chunk.usage
        if self.model is None:
            self.model = chunk.model
        for choice in chunk.choices or ():
            if choice.index:
                continue  # one answer is shown; others are never asked for
            if choice.delta is not None and choice.delta.content:
                text.append(choice.delta.content)
            if choice.finish_reason is not None:
                self.finish_reason = choice.finish_reason


class ChatReply:
    """The Reply of an OpenAI-compatible server."""

    def __init__(self, body: Body, model: str, secret: str = "") -> None:
        self._body = body
        self._secret = secret
        self._decoder = ChatDecoder()
        self._asked = model

    @property
    def model(self) -> str:
        return self._decoder.model or self._asked

    @property
    def finish_reason(self) -> str | None:
        return self._decoder.finish_reason

    @property
    def usage(self) -> dict[str, Any] | None:
        return self._decoder.usage

    def read(self, timeout: float = TICK) -> Part:
        try:
            self._decoder.check()  # a fault that came with the last text waits for nothing more
            raw = self._body.read(timeout)
            return self._decoder.feed(raw) if raw else self._decoder.end()
        except UpstreamError as exc:
            raise exc.without(self._secret) from exc
        except httpx2.HTTPError as exc:
            if self.finish_reason is not None:  # only the farewell is missing
                return self._decoder.end()
            raise _fault(exc, self._secret) from exc

    def finish(self) -> None:
        self._body.finish()

    def close(self) -> None:
        self._body.close()


# --- faults ---------------------------------------------------------------------------------------

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
        or ("context" in text and any(w in text for w in ("length", "size", "window", "too long")))
    )


def _error_object(body: object) -> UpstreamError:
    """An error that came inside a stream."""
    message, kind = _said(body)
    if _is_context(message, kind):
        return UpstreamError("context_too_long", message)
    if "rate_limit" in kind or kind.startswith("429"):
        return UpstreamError("rate_limited", message)
    return UpstreamError("upstream_error", message)


def _retry_after(headers: httpx2.Headers) -> float | None:
    try:
        seconds = float(headers.get("retry-after", ""))
    except ValueError:
        return None
    return seconds if 0 <= seconds <= 86_400 else None


def _status_fault(exc: openai.APIStatusError) -> UpstreamError:
    message, kind = _said(exc.body)
    status = exc.status_code
    code = _STATUS_CODES.get(status)
    if code is None:
        code = "upstream_server_error" if status >= 500 else "bad_request"
    if code == "bad_request" and _is_context(message, kind):
        code = "context_too_long"
    return UpstreamError(
        code, message or f"status {status}", retry_after=_retry_after(exc.response.headers)
    )


#: Faults below the client, the most specific first.
_CONNECTION_CODES: tuple[tuple[type[BaseException], str], ...] = (
    (socket.gaierror, "upstream_dns"),
    (ssl.SSLError, "upstream_tls"),
    (ConnectionRefusedError, "upstream_refused"),
    (httpx2.ConnectTimeout, "upstream_connect_timeout"),
    (httpx2.ConnectError, "upstream_unreachable"),
    (httpx2.ReadError, "upstream_dropped"),
    (httpx2.WriteError, "upstream_dropped"),
    (httpx2.ProtocolError, "upstream_invalid"),
    (httpx2.HTTPError, "upstream_unreachable"),
    (openai.APIConnectionError, "upstream_unreachable"),
)


def _fault(exc: BaseException, secret: str) -> UpstreamError:
    """The one boundary where foreign errors become ours. Some servers quote the key: not we."""
    return _translate(exc).without(secret)


def _translate(exc: BaseException) -> UpstreamError:
    if isinstance(exc, openai.APIStatusError):
        return _status_fault(exc)
    chain: list[BaseException] = []
    cause: BaseException | None = exc
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__
    for kind, code in _CONNECTION_CODES:
        for link in chain:
            if isinstance(link, kind):
                return UpstreamError(code, str(link))
    logger.error("unmapped upstream fault", exc_info=exc)
    return UpstreamError("internal", type(exc).__name__)


# --- the provider ---------------------------------------------------------------------------------


class OpenAIUpstream:
    """OpenAI itself or any server that speaks its chat completions."""

    def __init__(self, config: Config, transport: Transport | None = None) -> None:
        self._config = config
        self._transport = transport or Transport(config.connect_timeout)
        # No timeouts and no retries here: the limits of a run are watched by `generation`, which
        # interrupts the line, and a retry inside the client could not be stopped.
        self._client = openai.OpenAI(
            api_key=config.upstream_key,
            base_url=config.upstream_url or "http://127.0.0.1:9/v1",
            max_retries=0,
            timeout=None,
            http_client=httpx2.Client(transport=self._transport, follow_redirects=True),
        )
        self._secret = config.upstream_key
        self._lock = threading.Lock()  # protects the two facts that are learnt on the way
        self._model = config.known_model
        self._asks_usage = True

    def open(self, request: ChatRequest, line: Line) -> ChatReply:
        if not self._config.upstream_url:
            raise UpstreamError("no_model")
        model = request.model or self.default_model(line)
        options = request.options()
        if self._config.on_openai and "max_tokens" in options:
            # OpenAI's current models only take the newer name.
            options["max_completion_tokens"] = options.pop("max_tokens")
        if self._config.wants_embedded:
            options["extra_body"] = REQUEST_EXTRA  # lets it notice a Stop while it reads a prompt
        messages: Any = msgspec.to_builtins(request.messages)
        with on_line(line):
            try:
                response = self._create(model, messages, options)
            except openai.APIError as exc:
                raise _fault(exc, self._secret) from exc
        body = response.extensions["halt.body"]
        assert isinstance(body, Body)  # noqa: S101 - our own transport put it there
        kind = response.headers.get("content-type", "")
        if not kind.startswith("text/event-stream") or "content-encoding" in response.headers:
            body.close()
            raise UpstreamError("upstream_invalid", f"an answer of type {kind[:80]!r}")
        return ChatReply(body, model, self._secret)

    def _create(self, model: str, messages: Any, options: dict[str, Any]) -> httpx2.Response:
        create = self._client.chat.completions.with_raw_response.create
        if self._asks_usage:
            try:
                return create(
                    model=model,
                    messages=messages,
                    stream=True,
                    stream_options={"include_usage": True},
                    **options,
                ).http_response
            except (openai.BadRequestError, openai.UnprocessableEntityError) as exc:
                if "stream_options" not in str(exc.body):
                    raise
                logger.info("the model's server refuses stream_options; usage is estimated")
                with self._lock:
                    self._asks_usage = False
        return create(model=model, messages=messages, stream=True, **options).http_response

    def default_model(self, line: Line) -> str:
        """The model that answers when a request names none. Raises UpstreamError, Interrupted."""
        if not self._model:
            names = self.models(line)
            if not names:
                raise UpstreamError("model_not_found", "its list of models is empty")
            with self._lock:
                self._model = self._model or names[0]
        return self._model

    @property
    def known_model(self) -> str:
        """The default model, empty as long as it was never asked for."""
        return self._model

    def models(self, line: Line) -> list[str]:
        if not self._config.upstream_url:
            raise UpstreamError("no_model")
        with on_line(line):
            try:
                names = [model.id for model in self._client.models.list().data]
            except openai.NotFoundError as exc:
                raise UpstreamError("upstream_invalid", "it has no list of models") from exc
            except openai.APIError as exc:
                raise _fault(exc, self._secret) from exc
            except (AttributeError, TypeError, ValueError) as exc:  # the client expects the shape
                raise UpstreamError("upstream_invalid", "its list of models is malformed") from exc
        if not all(isinstance(name, str) for name in names):
            raise UpstreamError("upstream_invalid", "its list of models is malformed")
        return names

    def close(self) -> None:
        self._transport.close()


assert {code for _, code in _CONNECTION_CODES} | set(_STATUS_CODES.values()) <= set(CODES)  # noqa: S101
