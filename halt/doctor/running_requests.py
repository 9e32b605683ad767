"""Requests the number of running requests from a model's server, if the server reports it.

    llama.cpp   GET /slots     a list of slots, each with `is_processing` (older: `state`)
    vLLM        GET /metrics   the gauge `vllm:num_requests_running` in Prometheus' text format

Both count the requests of all clients. If a server has neither, refuses, or answers in another
format, the number is not known, and no conclusion is drawn.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from itertools import chain, repeat
from typing import NamedTuple

import httpx2
import msgspec

from halt.clock import now
from halt.config.addresses import is_openai_url
from halt.config.providers import ProviderSettings
from halt.core.connection import limited_connection
from halt.doctor.cancellation import Cancellation
from halt.errors import HaltError
from halt.transport.http1 import body_of
from halt.transport.pool import Transport

LOAD_TIMEOUT = 2.0  # seconds for one request
BODY_MAX = 4_194_304  # bytes of a response; the metrics of a busy vLLM have some 100,000
# Seconds between requests; the last value repeats. A llama.cpp that reads a prompt notices a closed
# connection only after a second without any other request: with a request every 20 ms it continued
# for 30 s, without requests it stopped after 0.9 s.
PAUSES = (0.05, 0.1, 0.2, 0.4, 1.2)

_RUNNING = re.compile(r"^vllm:num_requests_running(?:\{.*\})?[ \t]+(\S+)", re.MULTILINE)
_VERSION_PATH = re.compile(r"/v1/?$")


class _Slot(msgspec.Struct):
    is_processing: bool | None = None
    state: int | None = None  # of a llama.cpp before September 2024: 0 is idle

    @property
    def is_busy(self) -> bool | None:
        """Whether this slot has a running request; None if it does not report that."""
        if self.is_processing is not None:
            return self.is_processing
        return None if self.state is None else self.state != 0


_slots: msgspec.json.Decoder[list[_Slot]] = msgspec.json.Decoder(list[_Slot])


def busy_slots(body: bytes) -> int | None:
    """The number of busy slots in a response of llama.cpp's GET /slots; None if malformed."""
    try:
        states = [slot.is_busy for slot in _slots.decode(body)]
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None
    return None if not states or None in states else states.count(True)


def running_requests(body: bytes) -> int | None:
    """The sum over all engines in a response of vLLM's GET /metrics; None if malformed."""
    try:
        values = [float(value) for value in _RUNNING.findall(body.decode("utf-8", "replace"))]
    except ValueError:
        return None
    total = sum(values)
    return int(total) if values and math.isfinite(total) and total >= 0 else None


#: Paths and their parsers, in the order of requests.
_SOURCES: tuple[tuple[str, Callable[[bytes], int | None]], ...] = (
    ("/slots", busy_slots),
    ("/metrics", running_requests),
)


class WaitResult(NamedTuple):
    """The result of waiting for an idle server. Times in seconds from the start of the wait."""

    running: int | None  # running requests at the last count, None if not known
    last_busy_at: float  # start of the last count that another one followed; 0 if there is none
    ended_at: float  # end of the last count


class ServerLoad:
    """Counts the running requests of one provider's server. For one thread."""

    def __init__(
        self, provider: ProviderSettings, model: str, cancellation: Cancellation | None = None
    ) -> None:
        """`model` selects the instance if the server is a router for several models.

        After a cancellation, and in the waits that it ends, the methods raise ChecksEnded.
        """
        self._cancellation = cancellation or Cancellation()
        may_report = provider.kind == "openai" and not is_openai_url(provider.base_url)
        self._sources = _SOURCES if may_report else ()
        self._root = _VERSION_PATH.sub("", provider.base_url.rstrip("/"))
        self._parameters = {"model": model} if model else {}
        headers = {} if provider.key == "none" else {"Authorization": f"Bearer {provider.key}"}
        headers |= provider.headers
        self._transport = Transport(
            min(provider.connect_timeout, LOAD_TIMEOUT), allow_link_local=provider.allow_link_local
        )
        self._client = httpx2.Client(transport=self._transport, headers=headers, timeout=None)

    @property
    def source(self) -> str:
        """The request that gives the count, for users: `GET /slots`. Valid after a count."""
        return f"GET {self._sources[0][0]}" if self._sources else ""

    def count(self) -> int | None:
        """The number of running requests now; None if not known."""
        for source in self._sources:
            body = self._get(source[0])
            count = None if body is None else source[1](body)
            if count is not None:
                self._sources = (source,)
                return count
        return None

    def wait_idle(self, seconds: float) -> WaitResult:
        """Count repeatedly until no request is running, or for this many seconds."""
        began = now()
        last_busy_at = 0.0
        pauses = chain(PAUSES, repeat(PAUSES[-1]))
        while True:
            count_at = now() - began
            count = self.count()
            if not count or count_at >= seconds:
                return WaitResult(count, last_busy_at, now() - began)
            last_busy_at = count_at
            # The server sends no notification, so the wait polls.
            self._cancellation.pause(min(next(pauses), max(0.0, seconds - (now() - began))))

    def close(self) -> None:
        """Close the connection to the server."""
        self._client.close()
        self._transport.close()

    def _get(self, path: str) -> bytes | None:
        """The body of a complete response with status 200, else None."""
        with (
            limited_connection(LOAD_TIMEOUT) as connection,
            self._cancellation.interrupting(connection.interrupt),
        ):
            try:
                url = self._root + path
                with self._client.stream("GET", url, params=self._parameters) as response:
                    # Read the body of a refusal too, so that the connection can be reused.
                    body = body_of(response).read_all(BODY_MAX)
                    return body if response.status_code == 200 else None
            except (HaltError, httpx2.HTTPError):
                return None
