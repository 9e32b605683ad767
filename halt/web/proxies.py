"""Trusted proxies: which of their headers Halt uses, and a response that tells what it received.

HALT_TRUSTED_PROXIES=N is the only setting that decides it. With N > 0, the client's address is the
Nth value from the end of X-Forwarded-For, and the scheme is the last value of X-Forwarded-Proto:
the proxy next to Halt sets or passes on this value. With N = 0 both headers are ignored. Requests
with fewer values keep the address of the connection.

The server must not evaluate these headers itself; see gunicorn.conf.py.
"""

from __future__ import annotations

from flask import Flask, Response, request
from werkzeug.http import parse_list_header
from werkzeug.middleware.proxy_fix import ProxyFix

from halt.config.proxies import INSPECT, ReceivedRequest
from halt.web.access import has_token, refuse_wrong_bearer
from halt.web.responses import json_response
from halt.web.services import services


def inspected() -> Response | None:
    """The response to a request with the INSPECT header, None for others: how the request arrived.

    Runs before each request that `security.guard` accepts. With HALT_TOKEN set, the request must
    have the token, also on public routes; a wrong token is counted. Every route responds so,
    because a proxy may treat paths and upgrades differently.
    """
    if INSPECT not in request.headers:
        return None
    config = services().config
    if config.token and not has_token():
        return refuse_wrong_bearer()
    return json_response(
        ReceivedRequest(
            trusted_proxies=config.trusted_proxies,
            forwarded=len(parse_list_header(request.headers.get("X-Forwarded-For", ""))),
            secure=request.is_secure,
            max_import_bytes=config.max_import_bytes,
        )
    )


def install(app: Flask, trusted: int) -> None:
    """Install both in the application, after the guards. `trusted`: HALT_TRUSTED_PROXIES."""
    app.before_request(inspected)
    if trusted:
        app.wsgi_app = ProxyFix(app.wsgi_app, x_for=trusted, x_proto=1)  # type: ignore[method-assign]
