"""A name for each request, so that a client's report, its response and the log can be put together.

A response carries it as the header `X-Request-Id`. It is the request's own where that has one of
1 to 128 characters of A-Z, a-z, 0-9, dot, _ and -, and is made up otherwise. Log lines of Halt that
are written while a request is answered end with it; lines about a run end with that of the request
which started the run (see `halt.core.request_ids`).
"""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from halt.core.request_ids import current, named, quoted
from halt.core.via import passing_on
from halt.web import via

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

HEADER = "X-Request-Id"
GIVEN = re.compile(r"[A-Za-z0-9._-]{1,128}")


def with_request_id(sentence: str, request_id: str) -> str:
    """A sentence that ends with the request's ID, once."""
    mark = quoted(request_id)
    return sentence if sentence.endswith(mark) else sentence + mark


class RequestContext:
    """A WSGI application that names each request, and reads its chain, around the one that answers.

    Both are `current` until the response's body is there, not while the body is read.
    """

    def __init__(self, app: WSGIApplication) -> None:
        self._app = app

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        given = environ.get("HTTP_X_REQUEST_ID", "")
        request_id = given if GIVEN.fullmatch(given) else f"req_{secrets.token_hex(12)}"

        def start(status: str, headers: list[tuple[str, str]], *more: Any) -> Any:
            return start_response(status, [*headers, (HEADER, request_id)], *more)

        with named(request_id), passing_on(via.chain_of(environ)):
            return self._app(environ, start)


def add_to_log() -> None:
    """Let the lines of Halt's own loggers end with the request's ID. Harmless when repeated.

    Filters of a logger are not those of the loggers below it, so each logger gets its own: whatever
    handlers the server has, its lines have the ID.
    """
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("halt."):
            logging.getLogger(name).addFilter(_add)


def _add(record: logging.LogRecord) -> bool:
    request_id = record.__dict__.setdefault("request_id", current())
    if request_id:
        record.msg = f"{record.msg}{quoted(request_id)}"
    return True
