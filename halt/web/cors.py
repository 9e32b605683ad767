"""CORS: lets pages of the origins in HALT_CORS_ORIGINS use the API. Off by default.

Such a page is treated as a program: its requests have no session, even if the browser sends
cookies, and responses to it neither allow credentials nor set cookies. With HALT_TOKEN set, it
sends the token as a Bearer token.

API lists the routes that such a page may use. All other routes, also new ones, are refused to it:
they belong to the chat page, which identifies people by their cookies.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from flask import Flask, Response, current_app, g, request
from werkzeug.exceptions import HTTPException, MethodNotAllowed

#: Blueprints and endpoints that are for programs.
API = frozenset({"api", "openai_api", "openapi.described", "plain", "sockets", "streams"})

METHODS = "GET, POST"
HEADERS = ("Authorization", "Content-Type", "Last-Event-ID", "X-Request-Id", "X-Stream-Id")
OPENAI_HEADERS = "x-stainless-"  # prefix of the headers of OpenAI's JavaScript client
EXPOSED = "X-Stream-Id, X-Request-Id, Retry-After"
MAX_AGE = 7200  # seconds that a browser may cache a preflight; Chromium's limit (version 76, MDN)


def is_cross_origin() -> bool:
    """Whether an admitted page of another origin makes this request."""
    return "cors_origin" in g


def install(app: Flask, origins: tuple[str, ...]) -> None:
    """Admit pages of these origins. Call it before the guards, which use `is_cross_origin`."""
    if not origins:
        return

    def admit() -> Response | None:
        origin = request.headers.get("Origin")
        if origin is None or not is_api() or is_same_origin(origin):
            return None
        if "*" not in origins and origin not in origins:
            return None
        g.cors_origin = "*" if "*" in origins else origin
        is_preflight = (
            request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers
        )
        return _preflight() if is_preflight else None

    def add_headers(response: Response) -> Response:
        if is_api():
            response.vary.add("Origin")
        if is_cross_origin():
            response.headers["Access-Control-Allow-Origin"] = g.cors_origin
            response.headers["Access-Control-Expose-Headers"] = EXPOSED
            response.headers["Cross-Origin-Resource-Policy"] = "cross-origin"
        return response

    app.before_request(admit)
    app.after_request(add_headers)


def is_api() -> bool:
    """Whether the request is to a route for programs, or to an unknown path."""
    endpoint = _endpoint()
    return endpoint is None or not API.isdisjoint({endpoint, endpoint.partition(".")[0]})


def _endpoint() -> str | None:
    """The request's endpoint, also where its method is not allowed; None for an unknown path."""
    if request.endpoint is not None:
        return request.endpoint
    fault, adapter = request.routing_exception, current_app.create_url_adapter(request)
    if isinstance(fault, MethodNotAllowed) and fault.valid_methods and adapter is not None:
        try:
            return str(adapter.match(method=next(iter(fault.valid_methods)))[0])
        except HTTPException:
            return None
    return None


def is_same_origin(origin: str) -> bool:
    """Whether Halt's own page makes this request: by Sec-Fetch-Site if sent, else by `origin`."""
    site = request.headers.get("Sec-Fetch-Site")
    if site is not None:
        return site == "same-origin"
    try:
        return urlsplit(origin).netloc == request.host
    except ValueError:  # a malformed address
        return False


def _preflight() -> Response:
    """The response to a preflight request. It does not allow credentials."""
    requested = request.headers.get("Access-Control-Request-Headers", "").lower().split(",")
    names = map(str.strip, requested)
    openai_names = sorted(name for name in names if name.startswith(OPENAI_HEADERS))
    response = Response(status=204)
    response.headers["Access-Control-Allow-Methods"] = METHODS
    response.headers["Access-Control-Allow-Headers"] = ", ".join((*HEADERS, *openai_names))
    response.headers["Access-Control-Max-Age"] = str(MAX_AGE)
    return response
