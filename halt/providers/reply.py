"""A streamed answer: reads a response's body and decodes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx2

from halt.core.request import Part
from halt.errors import UpstreamError
from halt.providers.decoder import EventDecoder
from halt.providers.errors import to_upstream_error
from halt.transport.http1 import Body

LINES_MAX = 256  # lines of an answer that are decoded in one turn of the relay


def split_batch(raw: bytes) -> tuple[bytes, bytes]:
    """Split a read into the bytes to decode in this turn of the relay, and the rest.

    Decoding time depends on the number of lines, hardly on bytes: 64 kB of lines of one character
    took 190 ms, in which no other stream advanced. The cut is after a complete event if there is
    one.
    """
    if raw.count(b"\n") <= LINES_MAX:
        return raw, b""
    cut = len(raw) - len(raw.split(b"\n", LINES_MAX)[-1])
    cut = raw.rfind(b"\n\n", 0, cut) + 2 if raw.find(b"\n\n", 0, cut) >= 0 else cut
    return raw[:cut], raw[cut:]


class EventReply:
    """The Reply that decodes a response's body."""

    def __init__(
        self,
        response: httpx2.Response,
        decoder: EventDecoder,
        model: str,
        secrets: tuple[str, ...] = (),
        add_hint: Callable[[UpstreamError], UpstreamError] | None = None,
    ) -> None:
        """`response`: from Halt's transport. `model`: the one in the request.

        `secrets` are removed from every error. `add_hint` is applied to an error that arrives
        before any part of the answer.
        """
        body = response.extensions["halt.body"]
        assert isinstance(body, Body)  # noqa: S101 - Halt's transport set it
        self._body = body
        self._decoder = decoder
        self._requested_model = model
        self._secrets = secrets
        self._add_hint = add_hint
        self._raw = b""  # bytes of the last read that are not decoded yet
        content_type = response.headers.get("content-type", "")
        if coding := response.headers.get("content-encoding", ""):
            decoder.label = f"an answer in the encoding {coding[:80]!r}"
        elif not content_type.lower().startswith("text/event-stream"):
            decoder.label = f"an answer of type {content_type[:80]!r}"

    @property
    def model(self) -> str:
        return self._decoder.model or self._requested_model

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
            self._decoder.check()  # raise the error that came with the last text; do not read
            raw, self._raw = split_batch(self._raw or self._body.read())
            return self._decoder.feed(raw) if raw else self._decoder.end()
        except UpstreamError as exc:
            raise self._for_caller(exc) from None  # a traceback would show the secrets
        except httpx2.HTTPError as exc:
            try:
                return self._decoder.end(to_upstream_error(exc, self._secrets))
            except UpstreamError as fault:
                raise self._for_caller(fault) from None

    def _for_caller(self, fault: UpstreamError) -> UpstreamError:
        """Return the error with its hint, and without the secrets."""
        if self._add_hint is not None and not self._decoder.has_started:
            fault = self._add_hint(fault)
        return fault.with_secrets_removed(self._secrets)

    def close(self) -> None:
        self._body.close()
