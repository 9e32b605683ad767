"""An answer that comes as events: the body of a response, and the decoder that reads it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx2

from halt.core.request import Part
from halt.errors import UpstreamError
from halt.providers.decoder import EventDecoder
from halt.providers.errors import to_upstream_error
from halt.transport.http1 import Body

LINES_MAX = 256  # lines of an answer that are decoded in one turn


def _split_batch(raw: bytes) -> tuple[bytes, bytes]:
    """The part of a read that is decoded in one turn of the relay, and the rest.

    Lines cost time and bytes cost hardly any: 64 kB of lines of one character took 190 ms, and no
    other stream moved in between. The cut is behind a whole event where there is one.
    """
    if raw.count(b"\n") <= LINES_MAX:
        return raw, b""
    cut = len(raw) - len(raw.split(b"\n", LINES_MAX)[-1])
    cut = raw.rfind(b"\n\n", 0, cut) + 2 if raw.find(b"\n\n", 0, cut) >= 0 else cut
    return raw[:cut], raw[cut:]


class EventReply:
    """The Reply that a decoder makes of a response's body."""

    def __init__(
        self,
        response: httpx2.Response,
        decoder: EventDecoder,
        model: str,
        secret: str = "",
        add_hint: Callable[[UpstreamError], UpstreamError] | None = None,
    ) -> None:
        """`response`: our transport brought it. `model` is the one that was asked.

        `secret` is taken out of every fault. `add_hint` makes the fault that is raised of one that
        came before any part of an answer.
        """
        body = response.extensions["halt.body"]
        assert isinstance(body, Body)  # noqa: S101 - our own transport put it there
        self._body = body
        self._decoder = decoder
        self._asked = model
        self._secret = secret
        self._add_hint = add_hint
        self._raw = b""  # bytes of the last read of the body that were not decoded
        kind = response.headers.get("content-type", "")
        if coding := response.headers.get("content-encoding", ""):
            decoder.label = f"an answer in the encoding {coding[:80]!r}"
        elif not kind.lower().startswith("text/event-stream"):
            decoder.label = f"an answer of type {kind[:80]!r}"

    @property
    def model(self) -> str:
        return self._decoder.model or self._asked

    @property
    def finish_reason(self) -> str | None:
        return self._decoder.finish_reason

    @property
    def usage(self) -> dict[str, Any] | None:
        return self._decoder.usage

    @property
    def opaque(self) -> Any:
        return self._decoder.opaque

    def fileno(self) -> int:
        return self._body.fileno()

    def unblock(self) -> None:
        self._body.unblock()

    @property
    def pending(self) -> bool:
        return self._decoder.has_failed or bool(self._raw) or self._body.pending

    @property
    def complete(self) -> bool:
        return self._body.complete

    def read(self) -> Part:
        try:
            self._decoder.check()  # a fault that came with the last text waits for nothing more
            raw, self._raw = _split_batch(self._raw or self._body.read())
            return self._decoder.feed(raw) if raw else self._decoder.end()
        except UpstreamError as exc:
            raise self._told(exc) from exc
        except httpx2.HTTPError as exc:
            try:
                return self._decoder.end(to_upstream_error(exc, self._secret))
            except UpstreamError as told:
                raise self._told(told) from exc

    def _told(self, fault: UpstreamError) -> UpstreamError:
        if self._add_hint is not None and not self._decoder.has_started:
            fault = self._add_hint(fault)
        return fault.without(self._secret)

    def close(self) -> None:
        self._body.close()
