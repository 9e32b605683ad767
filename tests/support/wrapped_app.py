"""Halt behind a middleware that changes its bodies: `gunicorn tests.support.wrapped_app:app`.

As tools for errors, for figures or, where TEST_ZIPPED is set, for compression do it.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

from app import app


class Wrapped:
    """A body that hands on what another one gives."""

    chunked = True

    def __init__(self, body: Iterable[bytes]) -> None:
        self._body = body

    def __iter__(self) -> Iterator[bytes]:
        resp = self  # the server's own name for its response
        yield from resp._body

    def close(self) -> None:
        close = getattr(self._body, "close", None)
        if close is not None:
            close()


class Zipped(Wrapped):
    """The same, compressed as it comes."""

    def __iter__(self) -> Iterator[bytes]:
        resp, packer = self, zlib.compressobj(wbits=31)
        for piece in resp._body:
            yield packer.compress(piece) + packer.flush(zlib.Z_SYNC_FLUSH)
        yield packer.flush()


inner = app.wsgi_app


def plain(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """Halt, with its bodies handed on."""
    return Wrapped(inner(environ, start_response))


def zipped(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """Halt, with its bodies compressed."""

    def start(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
        kept = [each for each in headers if each[0].lower() != "content-length"]
        return start_response(status, [*kept, ("Content-Encoding", "gzip")], *rest)

    return Zipped(inner(environ, start))


app.wsgi_app = zipped if os.environ.get("TEST_ZIPPED") else plain  # type: ignore[method-assign]
