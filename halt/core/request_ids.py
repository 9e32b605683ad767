"""The ID of the HTTP request that a thread works for, for the log lines that belong to it.

It is a context variable; a thread that works for another thread's request sets it with `named`. The
server assigns the IDs in `halt.web.request_ids`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

_current: ContextVar[str] = ContextVar("halt_request_id", default="")


def current() -> str:
    """The ID of the request that this thread works for, "" for none."""
    return _current.get()


def quoted(request_id: str) -> str:
    """The suffix of a sentence or a log line: " (request ID: ...)", "" without an ID."""
    return f" (request ID: {request_id})" if request_id else ""


@contextlib.contextmanager
def named(request_id: str) -> Iterator[None]:
    """Context manager: work done inside belongs to this request."""
    token = _current.set(request_id)
    try:
        yield
    finally:
        _current.reset(token)


def about(request_id: str) -> dict[str, str]:
    """The `extra` of a log line that belongs to this request, for any thread."""
    return {"request_id": request_id}
