"""Request IDs: they relate a client's report, the response and the log lines of one request.

A response has the ID in the header `X-Request-Id`. It is the ID that the request sent, where that
has 1 to 128 characters of A-Z, a-z, 0-9, dot, _ and -; otherwise it is generated. Halt's log lines
during a request end with its ID; lines about a run end with the ID of the request that started the
run (see `halt.core.request_ids`).
"""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from halt.core.request_ids import current, named, quoted
from halt.core.via import use_chain
from halt.web import via

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

HEADER = "X-Request-Id"
VALID_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


def with_request_id(sentence: str, request_id: str) -> str:
    """The sentence with the request's ID at its end; unchanged where it already ends so."""
    suffix = quoted(request_id)
    return sentence if sentence.endswith(suffix) else sentence + suffix


class RequestContext:
    """WSGI middleware that sets the current request ID and the current chain (see `halt.web.via`).

    Both are set until the application returns the response's body, not while the body is read.
    """

    def __init__(self, app: WSGIApplication) -> None:
        self._app = app

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        client_id = environ.get("HTTP_X_REQUEST_ID", "")
        request_id = client_id if VALID_ID.fullmatch(client_id) else f"req_{secrets.token_hex(12)}"

        def start(status: str, headers: list[tuple[str, str]], *more: Any) -> Any:
            return start_response(status, [*headers, (HEADER, request_id)], *more)

        with named(request_id), use_chain(via.chain_of(environ)):
            return self._app(environ, start)


def add_to_log() -> None:
    """Add the request's ID to the end of the log lines of Halt's loggers. May be repeated.

    Each logger gets its own filter, because a logger's filter does not apply to its child loggers.
    So lines have the ID with any handlers of the server.
    """
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("halt."):
            logging.getLogger(name).addFilter(_add)


def _add(record: logging.LogRecord) -> bool:
    request_id = record.__dict__.setdefault("request_id", current())
    if request_id:
        record.msg = f"{record.msg}{quoted(request_id)}"
    return True
