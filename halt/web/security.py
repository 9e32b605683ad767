"""Guards before each request, and the security headers of each response.

- Requests of another site's page that change or start something, WebSockets included, are refused,
  unless HALT_CORS_ORIGINS admits the page (see `halt.web.cors`). So are requests for the chat page
  by scripts of another origin. No response to such a page sets a cookie.
- Every response carries a strict Content-Security-Policy.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from flask import Flask, redirect, request
from gunicorn.http.errors import ParseException
from werkzeug.wrappers import Response as BaseResponse

from halt.errors import API_TOKEN_WRONG, TOKEN_NEEDED, TOKEN_WRONG, RequestError
from halt.people.known import API_TOKEN_PREFIX
from halt.web import via
from halt.web.access import PUBLIC_ENDPOINTS, bearer_token, refuse_wrong_bearer
from halt.web.cors import is_api, is_cross_origin, is_same_origin
from halt.web.identity import identify, refusal_response
from halt.web.requests import is_plain_form_post, is_upgrade, wants_fragment, wants_page
from halt.web.responses import RequestRefused, error_response, too_large
from halt.web.return_path import login_url
from halt.web.services import services

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

#: No inline scripts or styles, nothing from other origins, no frame around the page. `blob:` shows
#: the pictures that are being attached.
CONTENT_SECURITY_POLICY = (
    "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; "
    "object-src 'none'; img-src 'self' blob:"
)
#: Added to every response that has no header of the same name.
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
STARTED_BY_GET = frozenset({"plain.stream"})  # starts a run, so guarded like UNSAFE methods
#: They have limits of their own, and check their bodies themselves.
STREAMED_BODIES = frozenset({"sidebar.import_", "files.upload", "files.send_with_files"})
#: Endpoints whose bodies are JSON with any Content-Type.
JSON_BODIES = frozenset({"openai_api.completions", "plain.chat", "streams.chat_stream"})
#: Endpoints whose bodies contain long texts: their limit is HALT_MAX_BODY_BYTES.
LONG_BODIES = JSON_BODIES | {
    "pages.send",
    "pages.edit_answer",
    "providers.change_provider",
    "providers.connect",
    "providers.try_changed",
    "providers.try_new",
    "settings.delete_prompt",
    "settings.save_prompt",
    "settings.save_settings",
}
SHORT_BODY_MAX = 65_536  # bytes of all other bodies
#: Maximum of fields in a form. 1,000,000 in a body of 4 MB held the interpreter's lock for 0.4 s.
FIELDS_MAX = 1_000


def _is_cross_site() -> bool:
    """Whether a page of another site, which is not admitted, makes this request."""
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
        return False  # no browser; or one that sends Origin for other sites
    try:
        return origin == "null" or urlsplit(origin).netloc != request.host
    except ValueError:  # a malformed address
        return True


def _is_read_from_elsewhere() -> bool:
    """Whether a script of another origin requests the chat page. A followed link has no Origin."""
    origin = request.headers.get("Origin")
    is_page = request.endpoint != "static" and not is_api()
    return origin is not None and is_page and not is_same_origin(origin)


def _unknown_host() -> str | None:
    """The request's host name if HALT_HOSTS does not allow it, without the port; else None."""
    names = services().config.trusted_hosts
    if names is None:
        return None
    try:
        name = urlsplit(f"//{request.host}").hostname or ""
    except ValueError:
        return request.host
    return None if name in names else name


def _check_body() -> None:
    """Read the body and check that it is complete and within the route's limit.

    Raises RequestError, TooLarge. Requests without long texts, such as a Stop, have a low limit.

    The server does not check completeness: a form that is cut off in the middle of a prompt looks
    like a shorter prompt. werkzeug cuts a body without a length at the limit.
    """
    if request.method not in UNSAFE or request.endpoint in STREAMED_BODIES:
        return
    if request.endpoint is not None and request.endpoint not in LONG_BODIES:
        limit = min(SHORT_BODY_MAX, services().config.max_body_bytes)
        request.max_content_length = request.max_form_memory_size = limit
    try:
        body = request.get_data()
    except (OSError, ParseException) as exc:  # broken chunks, or the client has left
        raise RequestError("The body's chunks are malformed.", field="body") from exc
    length, size = request.content_length, len(body)
    if length is None and size >= (request.max_content_length or 0):
        raise too_large()
    if length is not None and size < length:
        raise RequestError("The body ended before all of it had come.", field="body")
    # werkzeug limits only the fields of multipart forms: 300,000 took 0.24 s of CPU.
    if (
        request.mimetype == FORM
        and request.endpoint not in JSON_BODIES
        and body.count(b"&") >= FIELDS_MAX
    ):
        raise RequestError(f"A form has {FIELDS_MAX:,} fields at most.", field="body")


def guard() -> BaseResponse | None:
    """Before each request: return a refusal or None. Raises RequestError and LoopDetected."""
    via.check(services().instance_id)  # first, so that it ends a loop of requests early
    if (name := _unknown_host()) is not None:
        message = (
            f"The host name {name[:200]!r} is not allowed. Add it to HALT_HOSTS"
            f"{'' if services().config.user_header else ', or set HALT_TOKEN'}."
        )
        return error_response(RequestRefused(403, "unknown_host", message))
    starts = request.method in UNSAFE or request.endpoint in STARTED_BY_GET
    if ((starts or is_upgrade()) and _is_cross_site()) or _is_read_from_elsewhere():
        message = (
            "Requests from another site are refused. "
            "HALT_CORS_ORIGINS lists the sites that may use the API."
        )
        return error_response(RequestRefused(403, "foreign_site", message))
    if request.endpoint in PUBLIC_ENDPOINTS or identify():
        _check_body()
        return None
    if (refused := refuse_wrong_bearer()) is not None:
        return refused
    if (refused := refusal_response()) is not None:
        return refused
    if wants_page():
        return redirect(login_url())
    token = bearer_token()
    if is_plain_form_post() and not (token or is_api()):
        return redirect(login_url(), 303)
    wrong = API_TOKEN_WRONG if token.startswith(API_TOKEN_PREFIX) else TOKEN_WRONG
    message = wrong if token else TOKEN_NEEDED
    response = error_response(RequestRefused(401, "unauthorized", message))
    response.headers["WWW-Authenticate"] = "Bearer"
    if wants_fragment():
        response.headers["HX-Redirect"] = login_url()
    return response


class SecurityHeaders:
    """WSGI middleware that adds SECURITY_HEADERS to each response.

    Headers that the response already has are kept. It is no `after_request` function, because
    werkzeug checks and copies each header of a response several times (20 us per request).
    """

    def __init__(self, app: WSGIApplication) -> None:
        self._app = app

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        def start(status: str, headers: list[tuple[str, str]], *more: Any) -> Any:
            present = {name for name, _ in headers}
            headers += [header for header in SECURITY_HEADERS if header[0] not in present]
            return start_response(status, headers, *more)

        return self._app(environ, start)


def install(app: Flask) -> None:
    """Install the guard and the headers in the application."""
    app.before_request(guard)
    app.wsgi_app = SecurityHeaders(app.wsgi_app)  # type: ignore[method-assign]
