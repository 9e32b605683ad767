"""Halt behind a middleware that wraps its response bodies: `gunicorn
tests.support.wrapped_app:app`.

Tools for error reports and metrics do so; with TEST_ZIPPED set it compresses the bodies.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

from app import app


class Wrapped:
    """A body that passes on another body."""

    chunked = True

    def __init__(self, body: Iterable[bytes]) -> None:
        self.body = body

    def __iter__(self) -> Iterator[bytes]:
        resp = self  # the server's own name for its response
        yield from resp.body

    def close(self) -> None:
        close = getattr(self.body, "close", None)
        if close is not None:
            close()


class Zipped(Wrapped):
    """A body that compresses another body piece by piece."""

    def __iter__(self) -> Iterator[bytes]:
        resp, packer = self, zlib.compressobj(wbits=31)
        for piece in resp.body:
            yield packer.compress(piece) + packer.flush(zlib.Z_SYNC_FLUSH)
        yield packer.flush()


inner = app.wsgi_app


def plain(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """Halt with wrapped bodies."""
    return Wrapped(inner(environ, start_response))


def zipped(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """Halt with compressed bodies."""

    def start(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
        other_headers = [pair for pair in headers if pair[0].lower() != "content-length"]
        return start_response(status, [*other_headers, ("Content-Encoding", "gzip")], *rest)

    return Zipped(inner(environ, start))


app.wsgi_app = zipped if os.environ.get("TEST_ZIPPED") else plain  # type: ignore[method-assign]
