"""The ID of the request for which a thread works, so that log lines can be put together with it.

It is a context variable, so a thread that works for a request says so by `named`. The server names
its requests in `halt.web.request_ids`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

_current: ContextVar[str] = ContextVar("halt_request_id", default="")


def current() -> str:
    """The ID of the request that this thread answers, "" outside of one."""
    return _current.get()


def quoted(request_id: str) -> str:
    """What is added to a sentence or a log line: " (request ID: ...)", "" without an ID."""
    return f" (request ID: {request_id})" if request_id else ""


@contextlib.contextmanager
def named(request_id: str) -> Iterator[None]:
    """What is done inside belongs to this request."""
    token = _current.set(request_id)
    try:
        yield
    finally:
        _current.reset(token)


def about(request_id: str) -> dict[str, str]:
    """`extra` of a log line that belongs to this request, whichever thread writes it."""
    return {"request_id": request_id}
