"""How many requests a model's server works on, where the server says so.

    llama.cpp   GET /slots     a list of slots, each with `is_processing` (older: `state`)
    vLLM        GET /metrics   the gauge `vllm:num_requests_running` in Prometheus' text format

Both count the requests of all clients. A server that has neither, refuses, or answers with
something else is not known: nothing is concluded from its silence.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from itertools import chain, repeat
from typing import NamedTuple

import httpx2
import msgspec

from halt.cli.source import body_of
from halt.clock import now
from halt.config.addresses import is_openai
from halt.config.providers import ProviderSettings
from halt.core.connection import limited_connection
from halt.errors import HaltError
from halt.transport.pool import Transport

ANSWER_WITHIN = 2.0  # seconds for one look
BODY_MAX = 4_194_304  # bytes of an answer; the metrics of a busy vLLM have some 100,000
# Seconds between looks, the last again and again. A llama.cpp that reads a prompt notices a closed
# connection only after a second in which it has answered no request: with a look each 20 ms it went
# on for 30 s, and stopped after 0.9 s when it was left alone.
PAUSES = (0.05, 0.1, 0.2, 0.4, 1.2)

_RUNNING = re.compile(r"^vllm:num_requests_running(?:\{.*\})?[ \t]+(\S+)", re.MULTILINE)
_VERSION_PATH = re.compile(r"/v1/?$")


class _Slot(msgspec.Struct):
    is_processing: bool | None = None
    state: int | None = None  # of a llama.cpp before September 2024: 0 is idle

    @property
    def is_busy(self) -> bool | None:
        """Whether a request is worked on in this slot, None where it does not say."""
        if self.is_processing is not None:
            return self.is_processing
        return None if self.state is None else self.state != 0


_slots: msgspec.json.Decoder[list[_Slot]] = msgspec.json.Decoder(list[_Slot])


def busy_slots(body: bytes) -> int | None:
    """Slots that work on a request, in what llama.cpp's GET /slots answers."""
    try:
        states = [slot.is_busy for slot in _slots.decode(body)]
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None
    return None if not states or None in states else states.count(True)


def running_requests(body: bytes) -> int | None:
    """The sum over all engines in what vLLM's GET /metrics answers."""
    try:
        values = [float(value) for value in _RUNNING.findall(body.decode("utf-8", "replace"))]
    except ValueError:
        return None
    total = sum(values)
    return int(total) if values and math.isfinite(total) and total >= 0 else None


#: What is asked, in this order.
_SOURCES: tuple[tuple[str, Callable[[bytes], int | None]], ...] = (
    ("/slots", busy_slots),
    ("/metrics", running_requests),
)


class Waited(NamedTuple):
    """How waiting for an idle server went. Times in seconds from its beginning."""

    left: int | None  # requests in work at the last look, None where that is not known
    busy: float  # when the last look but one was made, which found the server at work; else 0
    over: float  # when the last look was answered


class ServerLoad:
    """The requests that one provider's server works on. For one thread."""

    def __init__(self, provider: ProviderSettings, model: str) -> None:
        """`model` is asked about where the server is a router for several."""
        is_asked = provider.kind == "openai" and not is_openai(provider.base_url)
        self._sources = _SOURCES if is_asked else ()
        self._root = _VERSION_PATH.sub("", provider.base_url.rstrip("/"))
        self._parameters = {"model": model} if model else {}
        headers = {} if provider.key == "none" else {"Authorization": f"Bearer {provider.key}"}
        self._transport = Transport(min(provider.connect_timeout, ANSWER_WITHIN))
        self._client = httpx2.Client(transport=self._transport, headers=headers, timeout=None)

    @property
    def source(self) -> str:
        """What was asked, for people: `GET /slots`. Meaningful after a count."""
        return f"GET {self._sources[0][0]}" if self._sources else ""

    def count(self) -> int | None:
        """Requests that are worked on now, None where that is not known."""
        for source in self._sources:
            body = self._get(source[0])
            found = None if body is None else source[1](body)
            if found is not None:
                self._sources = (source,)
                return found
        return None

    def wait_idle(self, seconds: float) -> Waited:
        """Look until nothing is worked on, or for so many seconds."""
        began = now()
        busy = 0.0
        pauses = chain(PAUSES, repeat(PAUSES[-1]))
        while True:
            asked = now() - began
            count = self.count()
            if not count or asked >= seconds:
                return Waited(count, busy, now() - began)
            busy = asked
            # The server announces nothing: it has to be asked again.
            time.sleep(min(next(pauses), max(0.0, seconds - (now() - began))))

    def close(self) -> None:
        """Close the connection to the server."""
        self._client.close()
        self._transport.close()

    def _get(self, path: str) -> bytes | None:
        """The body of a whole answer with status 200."""
        with limited_connection(ANSWER_WITHIN):
            try:
                url = self._root + path
                with self._client.stream("GET", url, params=self._parameters) as response:
                    # Of a refusal too: so its connection can be kept.
                    whole = body_of(response).read_all(BODY_MAX)
                    return whole if response.status_code == 200 else None
            except (HaltError, httpx2.HTTPError):
                return None
