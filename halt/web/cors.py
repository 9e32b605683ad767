"""Pages of other origins that may use the API (CORS). Off unless HALT_CORS_ORIGINS names some.

Such a page is a program: its requests have no session, whatever cookies a browser sends along, and
no response to them allows credentials or sets a cookie. With HALT_TOKEN set, it sends the token as
a Bearer.

API names the routes that such a page may use. All others, and any that is added, are closed to it:
they are the chat page's, which knows people by their cookies.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from flask import Flask, Response, current_app, g, request
from werkzeug.exceptions import HTTPException, MethodNotAllowed

#: Blueprints and endpoints for programs.
API = frozenset({"api", "openai_api", "openapi.described", "plain", "sockets", "streams"})

METHODS = "GET, POST"
HEADERS = ("Authorization", "Content-Type", "Last-Event-ID", "X-Request-Id", "X-Stream-Id")
OPENAI_HEADERS = "x-stainless-"  # what OpenAI's client for browsers says of itself
EXPOSED = "X-Stream-Id, X-Request-Id, Retry-After"
MAX_AGE = 7200  # seconds that a browser remembers a preflight; no browser does for longer


def is_cross_origin() -> bool:
    """A page of another origin makes this request, and may."""
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
        asks = request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers
        return _preflight() if asks else None

    def tell(response: Response) -> Response:
        if is_api():
            response.vary.add("Origin")
        if is_cross_origin():
            response.headers["Access-Control-Allow-Origin"] = g.cors_origin
            response.headers["Access-Control-Expose-Headers"] = EXPOSED
            response.headers["Cross-Origin-Resource-Policy"] = "cross-origin"
        return response

    app.before_request(admit)
    app.after_request(tell)


def is_api() -> bool:
    """The request is to a route for programs, or to an address that there is not."""
    endpoint = _endpoint()
    return endpoint is None or not API.isdisjoint({endpoint, endpoint.partition(".")[0]})


def _endpoint() -> str | None:
    """The request's endpoint, also where its method is a wrong one; None: no such address."""
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
    """Halt's own page asks. A browser says so itself, where it says anything."""
    site = request.headers.get("Sec-Fetch-Site")
    if site is not None:
        return site == "same-origin"
    try:
        return urlsplit(origin).netloc == request.host
    except ValueError:  # an address that is none
        return False


def _preflight() -> Response:
    """What a page may ask for. Credentials are not among it."""
    wanted = request.headers.get("Access-Control-Request-Headers", "").lower().split(",")
    more = sorted(name for each in wanted if (name := each.strip()).startswith(OPENAI_HEADERS))
    response = Response(status=204)
    response.headers["Access-Control-Allow-Methods"] = METHODS
    response.headers["Access-Control-Allow-Headers"] = ", ".join((*HEADERS, *more))
    response.headers["Access-Control-Max-Age"] = str(MAX_AGE)
    return response
