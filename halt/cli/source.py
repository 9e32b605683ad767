"""Sources of answers for the terminal: the configured model, or a Halt server at a URL.

Both implement `Source`: `start` yields the events of an answer as they come, `stop` ends it from
any thread. `Remote` survives a dropped connection: it requests all events after the last one it
has, as a browser does.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from typing import Any, Protocol
from urllib.parse import quote, urlsplit

import httpx2
import msgspec

from halt import VERSION
from halt.clock import now
from halt.config.provider_setup import setup
from halt.config.settings import Config
from halt.core.connection import NoData, UpstreamConnection, limited_connection, use_connection
from halt.core.events import Event, encode, is_terminal
from halt.core.receipts import Receipt
from halt.core.request import ChatRequest
from halt.core.service import GenerationService
from halt.core.stream_key import StreamKey
from halt.errors import HaltError, Interrupted
from halt.model_info import Abilities
from halt.providers.catalog import Catalog
from halt.transport.http1 import body_of
from halt.transport.pool import Transport

REQUEST_TIMEOUT = 10.0  # seconds for a short request: Stop, the list of models
SILENCE_MAX = 60.0  # seconds without a byte, not even of a heartbeat: the connection is dead
BODY_MAX = 4_194_304  # bytes of a request's body: the default of HALT_MAX_BODY_BYTES
PARTS_SHARE = 0.7  # of a request's body for images before base64, which makes 4 bytes of 3
EVENT_MAX = 16_777_216  # bytes of one event
RESUME_PAUSES = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)  # seconds before each attempt to resume

#: Events with their numbers that arrived together; empty after a second of silence.
Group = list[tuple[int, Event]]


class Source(Protocol):
    """A source of answers. Only one thread at a time may use `start`, any thread the rest."""

    @property
    def name(self) -> str:
        """The source's name for users: model and address."""

    def start(self, request: ChatRequest) -> Iterator[Group]:
        """Start an answer and yield its events in groups, an empty group per second of silence.

        The last event is terminal. Raises HaltError. The request must have an ID.
        """

    def stop(self, stream_id: str, seen: int) -> Receipt:
        """Stop an answer; `seen` is the number of the last shown event. Raises HaltError."""

    def model(self, stream_id: str) -> str:
        """The name of the model that gave an answer; empty if unknown."""

    def models(self) -> list[str]:
        """The names of the available models. Raises HaltError."""

    def abilities(self, model: str) -> Abilities:
        """What is known of a model, "" for the default one."""


class Local:
    """The models of this process's own settings, without a server."""

    def __init__(self, config: Config, generations: GenerationService) -> None:
        """`generations` was made from this configuration."""
        self._config = config
        self._generations = generations

    @property
    def name(self) -> str:
        config = self._config
        model = self._generations.upstream.known_model or "the first model"
        if config.has_demo and model == config.embedded_model:
            return f"the demo model {model}"
        providers = setup(config).providers
        if len(providers) == 1:
            return f"{model} at {providers[0].base_url}"
        return f"{model}, at {', '.join(provider.name for provider in providers)}"

    def start(self, request: ChatRequest) -> Iterator[Group]:
        run = self._generations.start(request)
        viewer = self._generations.readers.view(run)
        try:
            yield from run.follow(0, viewer)
        finally:
            self._generations.readers.unview(run, viewer)

    def stop(self, stream_id: str, seen: int) -> Receipt:
        return self._generations.stop(StreamKey("", stream_id), seen)

    def model(self, stream_id: str) -> str:
        return self._generations.get(StreamKey("", stream_id)).model

    def models(self) -> list[str]:
        with limited_connection(REQUEST_TIMEOUT) as connection:
            return self._generations.upstream.models(connection)

    def abilities(self, model: str) -> Abilities:
        catalog = Catalog(self._generations.upstream)
        catalog.refresh()
        return catalog.abilities_of(model)


class RemoteError(HaltError):
    """A Halt server refused a request or was not reached. `status` is 0 without a response."""

    def __init__(self, message: str, code: str, status: int = 0, *, retryable: bool = False):
        super().__init__(message)
        self.code = code
        self.status = status
        self.retryable = retryable


class Dropped(Exception):
    """The connection ended before the answer; the stream can be resumed."""


class EventStreamDecoder:
    """Decodes Halt's event stream to numbered events. `comments` counts heartbeats."""

    def __init__(self) -> None:
        self.comments = 0
        self._rest = b""  # the start of an incomplete line
        self._seq, self._data = 0, b""  # of the event that is being read

    def feed(self, raw: bytes) -> Group:
        """Take bytes, return the events that are now complete. Raises RemoteError."""
        *lines, self._rest = (self._rest + raw).split(b"\n")
        if len(self._rest) > EVENT_MAX:
            raise RemoteError(f"Halt sent an event of more than {EVENT_MAX:,} bytes.", "invalid")
        group: Group = []
        for raw_line in lines:
            line = raw_line.removesuffix(b"\r")
            if not line:
                group += self._event()
                continue
            name, _, value = line.partition(b":")
            value = value.removeprefix(b" ")
            if not name:
                self.comments += 1
            elif name == b"id" and value.isdigit():
                self._seq = int(value)
            elif name == b"data":
                self._data = value
        return group

    def _event(self) -> Group:
        """The event that an empty line has ended, in a list; an unknown one is left out."""
        seq, data = self._seq, self._data
        self._seq, self._data = 0, b""
        if not data or data == b"[DONE]":
            return []
        try:
            return [(seq, _decode_event(data))]
        except msgspec.ValidationError:
            return []  # a newer Halt has more kinds of events
        except msgspec.DecodeError as exc:
            raise RemoteError("Halt sent an event that is not valid JSON.", "invalid") from exc


_decode_event: Any = msgspec.json.Decoder(Event).decode


class Remote:
    """A Halt server at an address."""

    def __init__(
        self,
        url: str,
        token: str = "",
        connect_timeout: float = 5.0,
        max_body_bytes: int = BODY_MAX,
    ) -> None:
        """`token` may be empty; `max_body_bytes`: what the server takes in one request.

        Raises RemoteError for an invalid address.
        """
        try:
            parts = urlsplit(url)
            valid = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
        except ValueError:
            valid = False
        if not valid:
            raise RemoteError(
                f"{url!r} is not an address: use http(s)://HOST[:PORT], "
                "as in http://127.0.0.1:8000.",
                "invalid_address",
            )
        self.url = url.rstrip("/")
        # The user of this program has typed the address.
        self._transport = Transport(connect_timeout, allow_link_local=True)
        self._client = httpx2.Client(
            transport=self._transport,
            timeout=None,
            headers={"User-Agent": f"halt/{VERSION}"},
        )
        self.token = token
        self._parts_bytes = int(max_body_bytes * PARTS_SHARE)
        self._connection = UpstreamConnection()  # of the answer being read
        self._closed = threading.Event()

    @property
    def name(self) -> str:
        return f"Halt at {self.url}"

    def start(self, request: ChatRequest) -> Iterator[Group]:
        self._connection = connection = UpstreamConnection()
        after = 0
        pauses = iter(RESUME_PAUSES)
        response: httpx2.Response | None
        response = self.open("POST", "/chat/stream", connection, encode(request))
        while True:
            try:
                if response is None:
                    path = f"/streams/{request.id}?after={after}"
                    response = self.open("GET", path, connection)
                for group in _read(response):
                    if group:
                        after = group[-1][0] or after
                        pauses = iter(RESUME_PAUSES)
                    yield group
                    if group and is_terminal(group[-1][1]):
                        return
            except (Dropped, RemoteError) as fault:
                if isinstance(fault, RemoteError) and not fault.retryable:
                    raise
                pause = next(pauses, None)
                if pause is None:
                    raise RemoteError(
                        "The connection to Halt was lost and could not be restored.", "dropped"
                    ) from fault
                if self._closed.wait(pause):
                    raise Interrupted("closed") from fault
            finally:
                if response is not None:
                    body_of(response).close()
                    response = None

    def stop(self, stream_id: str, seen: int) -> Receipt:
        response = self.request("POST", f"/stop/{quote(stream_id)}?seen={seen}")
        try:
            return _receipt.decode(response.content)
        except msgspec.MsgspecError as exc:
            raise RemoteError(
                "The response to Stop is not a receipt of Halt's.", "invalid"
            ) from exc

    def model(self, stream_id: str) -> str:
        return ""

    def models(self) -> list[str]:
        try:
            response = self.request("GET", "/v1/models")
            listing = _models.decode(response.content)
        except RemoteError as fault:
            if fault.status != 404:
                raise
            raise RemoteError("This Halt provides no list of models.", "no_models", 404) from fault
        except msgspec.MsgspecError as exc:
            raise RemoteError("The list of models is malformed.", "invalid") from exc
        return [model.id for model in listing.data]

    def abilities(self, model: str) -> Abilities:
        return Abilities(parts_bytes=self._parts_bytes)  # its list of models has the names alone

    def accepts_token(self) -> bool:
        """Whether Halt accepts the token, or needs none. Raises RemoteError."""
        try:
            self.request("GET", "/streams/no-such-stream")
        except RemoteError as fault:
            if fault.status not in {401, 404}:
                raise
            return fault.status == 404
        return True

    def close(self) -> None:
        """Close all connections; an answer that is being read ends."""
        self._closed.set()
        self._connection.interrupt()
        self._transport.close()

    def request(
        self, method: str, path: str, headers: Mapping[str, str] | None = None
    ) -> httpx2.Response:
        """Send a short request, return the whole response. Raises RemoteError, also on 4xx, 5xx."""
        with limited_connection(REQUEST_TIMEOUT) as connection:
            try:
                response = self.open(method, path, connection, headers=headers)
                response.read()
            except (HaltError, httpx2.HTTPError) as exc:
                if connection.interrupted:
                    message = f"Halt did not answer within {REQUEST_TIMEOUT:g} s."
                    raise RemoteError(message, "unreachable", retryable=True) from exc
                if isinstance(exc, HaltError):
                    raise
                raise self._unreachable(exc) from exc
        return response

    def open(
        self,
        method: str,
        path: str,
        connection: UpstreamConnection,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx2.Response:
        """Send a request and read the response's head. Raises RemoteError, also on 4xx, 5xx."""
        more = {} if body is None else {"Content-Type": "application/json"}
        if self.token:
            more["Authorization"] = f"Bearer {self.token}"
        more |= headers or {}
        try:
            request = self._client.build_request(
                method, self.url + path, content=body, headers=more
            )
            with use_connection(connection):
                response = self._client.send(request, stream=True)
            self._client.cookies.clear()  # a program, not a browser: its streams have no session
            if response.is_success:
                return response
            with contextlib.suppress(httpx2.HTTPError):
                response.read()
            body_of(response).close()
        except httpx2.HTTPError as exc:
            raise self._unreachable(exc) from exc
        raise _refusal(response)

    def _unreachable(self, exc: Exception) -> RemoteError:
        cause = exc.__cause__ or exc
        reason = (isinstance(cause, OSError) and cause.strerror) or cause
        hint = " Is it running?" if isinstance(cause, ConnectionRefusedError) else ""
        return RemoteError(
            f"Halt could not be reached at {self.url}: {reason}.{hint}",
            "unreachable",
            retryable=True,
        )


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


_receipt = msgspec.json.Decoder(Receipt)
_models = msgspec.json.Decoder(_Models)


def _read(response: httpx2.Response) -> Iterator[Group]:
    """Yield events as they come.

    Raises Dropped at an end without a terminal event and after SILENCE_MAX, RemoteError.
    """
    body, decoder = body_of(response), EventStreamDecoder()
    received_at = now()
    while True:
        try:
            raw = body.read()
        except NoData:
            if now() - received_at > SILENCE_MAX:
                raise Dropped("silence") from None
            yield []
            continue
        except httpx2.HTTPError as exc:
            raise Dropped(str(exc)) from exc
        if not raw:
            raise Dropped("the end came early")
        received_at = now()
        yield decoder.feed(raw)


def _refusal(response: httpx2.Response) -> RemoteError:
    """The error of a refused request, with Halt's message if the response contains one."""
    status = response.status_code
    if 300 <= status < 400:
        location = response.headers.get("location", "another address")
        return RemoteError(f"This address redirects to {location}. Use that.", "redirect", status)
    code, message, retryable = "refused", "", status in {502, 503, 504}
    with contextlib.suppress(ValueError):
        body = response.json()
        error = body.get("error") if isinstance(body, dict) else None
        if isinstance(error, dict):
            code, message = str(error.get("code", code)), str(error.get("message", ""))
            retryable = error.get("retryable") is True
    message = message or f"The server answered with status {status}, without a message from Halt."
    return RemoteError(message, code, status, retryable=retryable)
