"""Guards before each request, and the security headers of each response.

- Requests that change or start something, WebSockets included, are refused when they come from
  another site's page, unless HALT_CORS_ORIGINS lets that one in (see `halt.web.cors`). So is what a
  script of another origin reads of the chat page. No response to such a page sets a cookie.
- Every response carries a strict Content-Security-Policy.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from flask import Flask, redirect, request, url_for
from gunicorn.http.errors import ParseException
from werkzeug.wrappers import Response as BaseResponse

from halt.errors import TOKEN_NEEDED, RequestError
from halt.web import via
from halt.web.access import is_authorized, refuse_wrong_bearer
from halt.web.cors import is_api, is_cross_origin, is_same_origin
from halt.web.requests import is_upgrade, wants_fragment, wants_page
from halt.web.responses import RequestRefused, error_response, too_large
from halt.web.services import services

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

#: No inline script or style, nothing from elsewhere, no frame around the page.
CONTENT_SECURITY_POLICY = (
    "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; "
    "object-src 'none'"
)
#: Added to every response that does not have a header of the same name.
SECURITY_HEADERS = (
    ("Content-Security-Policy", CONTENT_SECURITY_POLICY),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "same-origin"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Cache-Control", "no-store"),
)
FORM = "application/x-www-form-urlencoded"
UNSAFE = frozenset({"POST", "PUT", "PATCH", "DELETE"})
STARTED_BY_GET = frozenset({"plain.stream"})  # guarded as the unsafe methods are
STREAMED_BODIES = frozenset({"sidebar.import_"})  # has a limit of its own, and checks what it reads
#: Bodies that are JSON, whatever type they are said to be.
JSON_BODIES = frozenset({"openai_api.completions", "plain.chat", "streams.chat_stream"})
#: Bodies that carry people's or programs' texts, and so may be as long as HALT_MAX_BODY_BYTES.
LONG_BODIES = JSON_BODIES | {"pages.send", "sidebar.save_settings"}
SHORT_BODY_MAX = 65_536  # bytes of all others
#: Fields of a form. 1,000,000 in a body of 4 MB held the interpreter's lock for 0.4 s.
FIELDS_MAX = 1_000


def _is_cross_site() -> bool:
    """A browser says that another site makes this request, one that is not let in."""
    if is_cross_origin():
        return False
    site = request.headers.get("Sec-Fetch-Site")
    if site is not None:
        return site not in {"same-origin", "none"}
    origin = request.headers.get("Origin")
    if origin is None and request.method not in UNSAFE:
        # An image or a link of another site sends neither, where the connection is not secure.
        origin = request.headers.get("Referer")
        if origin is None:
            return "Mozilla/" in request.headers.get("User-Agent", "")
    if origin is None:
        return False  # not a browser, or one that would have sent it for another site
    try:
        return origin == "null" or urlsplit(origin).netloc != request.host
    except ValueError:  # an address that is none
        return True


def _is_read_from_elsewhere() -> bool:
    """A script of another origin asks for what is the chat page's. Following a link is none."""
    origin = request.headers.get("Origin")
    is_page = request.endpoint != "static" and not is_api()
    return origin is not None and is_page and not is_same_origin(origin)


def _has_unknown_host() -> bool:
    """The request is made to a name that this Halt does not go by."""
    names = services().config.trusted_hosts
    if names is None:
        return False
    try:
        return urlsplit(f"//{request.host}").hostname not in names
    except ValueError:
        return True


def _check_body() -> None:
    """Read the body; it must be whole, and within the limit. Raises RequestError, TooLarge.

    The limit is that of the route: a Stop and other requests without a text are short.

    The server leaves it to us whether all of it has come: a form that broke off in the middle of a
    prompt looks like a shorter prompt. One without a length is cut at the limit by werkzeug.
    """
    if request.method not in UNSAFE or request.endpoint in STREAMED_BODIES:
        return
    if request.endpoint is not None and request.endpoint not in LONG_BODIES:
        most = min(SHORT_BODY_MAX, services().config.max_body_bytes)
        request.max_content_length = request.max_form_memory_size = most
    try:
        body = request.get_data()
    except (OSError, ParseException) as exc:  # gunicorn found broken chunks, or lost the client
        raise RequestError("The body's chunks are malformed.", field="body") from exc
    told, size = request.content_length, len(body)
    if told is None and size >= (request.max_content_length or 0):
        raise too_large()
    if told is not None and size < told:
        raise RequestError("The body ended before all of it had come.", field="body")
    # Here, since werkzeug limits the fields of a multipart form alone: 300,000 took 0.24 s of CPU.
    if (
        request.mimetype == FORM
        and request.endpoint not in JSON_BODIES
        and body.count(b"&") >= FIELDS_MAX
    ):
        raise RequestError(f"A form has {FIELDS_MAX:,} fields at most.", field="body")


def guard() -> BaseResponse | None:
    """Before each request: refuse it where it is not allowed. Raises RequestError, LoopDetected."""
    via.check(services().mark)  # first: it may end a circle
    if _has_unknown_host():
        message = "Halt is not known here by this name. Set HALT_HOSTS to it, or HALT_TOKEN."
        return error_response(RequestRefused(403, "unknown_host", message))
    starts = request.method in UNSAFE or request.endpoint in STARTED_BY_GET
    if ((starts or is_upgrade()) and _is_cross_site()) or _is_read_from_elsewhere():
        message = "Requests from another site are refused."
        return error_response(RequestRefused(403, "foreign_site", message))
    if is_authorized():
        _check_body()
        return None
    if (refused := refuse_wrong_bearer()) is not None:
        return refused
    if wants_page():
        return redirect(url_for("pages.login"))
    response = error_response(RequestRefused(401, "unauthorized", TOKEN_NEEDED))
    response.headers["WWW-Authenticate"] = "Bearer"
    if wants_fragment():
        response.headers["HX-Redirect"] = url_for("pages.login")
    return response


class SecurityHeaders:
    """A WSGI application that adds SECURITY_HEADERS to each response, around the one that answers.

    A header that the response has already is kept. Here and not in an `after_request`, since
    werkzeug checks and copies each header of a response several times (20 us a request).
    """

    def __init__(self, app: WSGIApplication) -> None:
        self._app = app

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        def start(status: str, headers: list[tuple[str, str]], *more: Any) -> Any:
            present = {name for name, _ in headers}
            headers += [each for each in SECURITY_HEADERS if each[0] not in present]
            return start_response(status, headers, *more)

        return self._app(environ, start)


def install(app: Flask) -> None:
    """Put guards and headers into the application."""
    app.before_request(guard)
    app.wsgi_app = SecurityHeaders(app.wsgi_app)  # type: ignore[method-assign]
