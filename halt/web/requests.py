"""What every route shares: who asks, whether they may, and how an error is said.

- A browser has a signed session cookie with a random owner ID. A program has none.
- With HALT_TOKEN set, a program sends it as `Authorization: Bearer`, a browser logs in once. Wrong
  tokens are counted (see `halt.web.token_failures`).
- Requests that change or start something, WebSockets included, are refused when they come from
  another site's page, unless HALT_CORS_ORIGINS lets that one in (see `halt.web.cors`). So is what a
  script of another origin reads of the chat page. No response to such a page sets a cookie.
- Every response carries a strict Content-Security-Policy; errors are JSON for programs and a
  fragment for the page; what was not foreseen is logged and answered without its details.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import logging
import math
import re
import secrets
import socket
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from flask import (
    Flask,
    Request,
    Response,
    after_this_request,
    current_app,
    redirect,
    render_template,
    request,
    session,
    url_for,
)
from flask.sessions import SecureCookieSession, SecureCookieSessionInterface, SessionMixin
from gunicorn.http.errors import ParseException
from itsdangerous import BadSignature, SignatureExpired, URLSafeTimedSerializer
from markupsafe import escape
from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Response as BaseResponse

from halt.config import data_dir
from halt.config.settings import Config
from halt.core import via
from halt.core.decoding import is_number
from halt.core.events import encode
from halt.core.request_ids import current, signed
from halt.core.service import Generations
from halt.core.tools import Toolbox
from halt.errors import TOKEN_NEEDED, HaltError, RequestError, TooLarge
from halt.providers.catalog import Catalog
from halt.store.conversation import Store
from halt.store.writer import Saving
from halt.web.client_address import address
from halt.web.cors import admitted, is_api, is_own
from halt.web.token_failures import TokenFailures, too_many

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
READ_BIT_BY_BIT = frozenset({"shelf.import_"})  # has a limit of its own, and checks what it reads
#: Bodies that are JSON, whatever type they are said to be.
JSON_BODIES = frozenset({"openai_api.completions", "plain.chat", "streams.chat_stream"})
#: Bodies that carry people's or programs' texts, and so may be as long as HALT_MAX_BODY_BYTES.
LONG_BODIES = JSON_BODIES | {"pages.send", "shelf.save_settings"}
SHORT_BODY_MAX = 65_536  # bytes of all others
#: Fields of a form. 1,000,000 in a body of 4 MB held the interpreter's lock for 0.4 s.
FIELDS_MAX = 1_000
OPEN_TO_ALL = frozenset({"static", "pages.login", "api.healthz"})

COOKIES_MAX = 16_384  # bytes of cookies; no browser sends more to a server that sets one
VERIFIED_MAX = 1024  # session cookies that are remembered as signed by this application

#: The session's cookie of an earlier Halt, which had the port in its name.
_NAMED_BY_PORT = re.compile(r"halt_session_[0-9]{1,5}")

logger = logging.getLogger(__name__)


def config() -> Config:
    """The settings of the application that serves this request."""
    found = current_app.extensions["halt.config"]
    assert isinstance(found, Config)  # noqa: S101
    return found


def generations() -> Generations:
    """The generations of the application that serves this request."""
    found = current_app.extensions["halt"]
    assert isinstance(found, Generations)  # noqa: S101
    return found


def conversations() -> Store:
    """What the application that serves this request keeps conversations in."""
    found: Store = current_app.extensions["halt.store"]
    return found


def told_system_prompt(model: str | None = "") -> str:
    """The system prompt of conversations with a model, where they have none of their own."""
    return config().told_system_prompt(model or generations().upstream.known_model)


def catalog() -> Catalog:
    """The models that can be chosen."""
    found: Catalog = current_app.extensions["halt.catalog"]
    return found


def toolbox() -> Toolbox:
    """The tools that this application offers to models; it may be empty."""
    found = current_app.extensions["halt.tools"]
    assert isinstance(found, Toolbox)  # noqa: S101
    return found


def saving() -> Callable[[], Saving]:
    """Says how the saving of what generations produce goes; needs no request."""
    found: Callable[[], Saving] = current_app.extensions["halt.saving"]
    return found


def owner() -> str | None:
    """The session that asks, None for a program without one."""
    found = None if admitted() else session.get("owner")
    return found if isinstance(found, str) else None


def owner_made() -> str:
    """The session that asks; a new one is begun where there is none."""
    found = owner()
    if found is None:
        found = session["owner"] = secrets.token_urlsafe(16)
        session.permanent = True
    return found


def client_socket() -> socket.socket | None:
    """The connection of this request, where the server hands it over (gunicorn does)."""
    found = request.environ.get("gunicorn.socket")
    return found if isinstance(found, socket.socket) else None


def _is_upgrade() -> bool:
    """The request is the beginning of a WebSocket, which may do whatever a POST may."""
    return "websocket" in request.headers.get("Upgrade", "").lower()


def wants_fragment() -> bool:
    """The page asks, not a program."""
    return request.headers.get("HX-Request") == "true"


def wants_page() -> bool:
    """A person goes to an address; programs do not ask for text/html."""
    return (
        request.method == "GET"
        and not wants_fragment()
        and "text/html" in request.headers.get("Accept", "")
    )


def sent_without_scripts() -> bool:
    """The browser itself sends a form of the page; programs do not ask for text/html."""
    return (
        request.method == "POST"
        and not wants_fragment()
        and "text/html" in request.headers.get("Accept", "")
    )


def is_openai() -> bool:
    """The request is to a path that OpenAI's clients ask, there or not."""
    return f"{request.path}/".startswith("/v1/")


def json_response(value: Any, status: int = 200) -> Response:
    """Any value that msgspec can encode, as JSON."""
    return Response(encode(value) + b"\n", status, mimetype="application/json")


def after_parameter() -> int:
    """The event after which a reader wants to go on. Raises RequestError."""
    places = request.headers.get("Last-Event-ID"), request.args.get("after")
    given = [raw for raw in places if raw]
    if not all(map(is_number, given)):
        raise RequestError("after must be the number of an event, 0 or more.", field="after")
    return int(given[0]) if given else 0


def tell_id(stream_id: str) -> None:
    """Let the response to this request name its stream, whatever becomes of it."""

    @after_this_request
    def name(response: Response) -> Response:
        response.headers["X-Stream-Id"] = stream_id
        return response


def token_matches(given: str) -> bool:
    """Compare in constant time with the access token."""
    return hmac.compare_digest(given.encode(), config().token.encode())


def _bearer() -> str:
    """The token that the request carries as `Authorization: Bearer`, "" where it has none."""
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    return given.strip() if scheme.lower() == "bearer" else ""


def brings_token() -> bool:
    """The request itself carries the access token that is set."""
    return bool(config().token) and token_matches(_bearer())


def count_wrong_token() -> int:
    """Count a wrong token of this request's client; seconds to wait where there were too many."""
    failures: TokenFailures = current_app.extensions["halt.token_failures"]
    return failures.count(address())


def wrong_bearer() -> Response | None:
    """Count the wrong token that the request carries. The refusal where there were too many."""
    wait = count_wrong_token() if _bearer() else 0
    if not wait:
        return None
    return _error_response(429, "too_many_requests", too_many(wait), retry_after=wait)


class _Sessions(SecureCookieSessionInterface):
    """Cookies signed with the application's key.

    Browsers send a cookie to every port of a host, and a Halt may not know the port by which it is
    reached. So the cookie's name follows from the key, not from the port: Halts with keys of their
    own never replace each other's cookie, and processes that share a key share the name.
    """

    def __init__(self) -> None:
        self._name = ""
        self._serializer: URLSafeTimedSerializer | None = None
        # Cookies that were verified: 50 us, 8 % of a Stop with a cookie.
        self._verified = lru_cache(VERIFIED_MAX)(self._verify)

    def prepare(self, app: Flask) -> None:
        """Have key and name at hand before the first request. Raises ConfigError."""
        self.get_cookie_name(app)
        self.get_signing_serializer(app)

    def get_signing_serializer(self, app: Flask) -> URLSafeTimedSerializer | None:
        """The one serializer of the application, which has no state: 40 us a request less."""
        if self._serializer is None:
            _key(app)
            self._serializer = super().get_signing_serializer(app)
        return self._serializer

    def get_cookie_name(self, app: Flask) -> str:
        """The cookie's name, the same for every process that serves the same conversations."""
        if not self._name:
            self._name = f"halt_session_{_cookie_mark(app)}"
        return self._name

    def open_session(self, app: Flask, request: Request) -> SecureCookieSession | None:
        """The session of this request.

        A browser without a cookie of this name may have one of an earlier Halt, which named it
        after its port. If it bears this application's signature, its session goes on, and the
        response sets it under the new name. The older cookie is left: another Halt with the same
        key may still need it.

        Too many cookies are none: 800 kB of them took 0.28 s, on the way of a Stop too.
        """
        if not 0 < len(request.environ.get("HTTP_COOKIE", "")) <= COOKIES_MAX:
            return self.session_class()
        if (value := request.cookies.get(self.get_cookie_name(app))) is not None:
            with contextlib.suppress(BadSignature):
                return self.session_class(self._loaded(app, value)[0])
            return self.session_class()
        settings: Config = app.extensions["halt.config"]
        newest: tuple[bool, datetime, dict[str, Any]] | None = None
        for name, value in request.cookies.items():
            if not _NAMED_BY_PORT.fullmatch(name):
                continue
            with contextlib.suppress(BadSignature):
                data, signed_at = self._loaded(app, value)
                is_own = name == f"halt_session_{settings.port}"
                if newest is None or (is_own, signed_at) > newest[:2]:
                    newest = is_own, signed_at, data
        if newest is None:
            return self.session_class()
        session = self.session_class(newest[2])
        session.modified = True
        return session

    def _loaded(self, app: Flask, value: str) -> tuple[dict[str, Any], datetime]:
        """A cookie's content and when it was signed. Raises BadSignature, also for an old one."""
        data, signed_at = self._verified(app, value)
        age = datetime.now(UTC) - signed_at
        if not timedelta() <= age <= app.permanent_session_lifetime:
            raise SignatureExpired("The session's cookie is too old, or from the future.")
        return data, signed_at

    def _verify(self, app: Flask, value: str) -> tuple[dict[str, Any], datetime]:
        """The same, of any age. Only what bears the application's signature is remembered."""
        serializer = self.get_signing_serializer(app)
        assert serializer is not None  # noqa: S101 - there is a key
        data, signed_at = serializer.loads(value, return_timestamp=True)
        return data, signed_at

    def should_set_cookie(self, app: Flask, session: SessionMixin) -> bool:
        """Whether the response sets the cookie: its content has changed, or a page is loaded.

        Each page extends the cookie's life by a year. Other requests leave the cookie as it is,
        because to sign it and to set it takes CPU time: 0.1 ms of a Stop's 1.0.
        """
        if _is_of_another_origin():  # where a browser takes it, its own session would be gone
            return False
        return session.modified or (session.permanent and wants_page())

    def save_session(self, app: Flask, session: SessionMixin, response: Response) -> None:
        """Set the cookie where `should_set_cookie` says so.

        A response that depends on the session says so to caches (`Vary`), with a cookie or without.
        """
        if self.should_set_cookie(app, session):
            super().save_session(app, session, response)
        elif session.accessed:
            others = response.headers.get("Vary")
            response.headers["Vary"] = f"{others}, Cookie" if others else "Cookie"

    def get_cookie_secure(self, app: Flask) -> bool:
        """Whether browsers send the cookie over HTTPS alone: where it was set over HTTPS.

        Halt on a local network without TLS has to work as well.
        """
        return request.is_secure  # behind a proxy: see `halt.web.proxies`


def _key(app: Flask) -> str:
    """What the application signs with: where none is set, what its data folder keeps.

    Raises ConfigError.
    """
    if not app.secret_key:
        settings: Config = app.extensions["halt.config"]
        app.secret_key = data_dir.secret_key(settings.data_folder)
    return str(app.secret_key)


def _cookie_mark(app: Flask) -> str:
    """What tells this application's cookie from those of other Halts. Raises ConfigError.

    It follows from the key and, where the conversations are in the data folder, from the folder's
    mark: two folders may have been given the same key. Hosts that share a PostgreSQL share the key
    alone.
    """
    settings: Config = app.extensions["halt.config"]
    place = "" if settings.database_url else data_dir.mark(settings.data_folder)
    digest = hmac.new(_key(app).encode(), f"cookie name {place}".encode(), hashlib.sha256)
    return digest.hexdigest()[:16]


def login_mark() -> str:
    """What a logged-in session carries: changes with the token, tells nothing about it."""
    digest = hmac.new(_key(current_app).encode(), config().token.encode(), hashlib.sha256)
    return digest.hexdigest()


# --- guards ---------------------------------------------------------------------------------------


def _is_foreign() -> bool:
    """A browser says that another site makes this request, one that is not let in."""
    if admitted():
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
    return origin is not None and is_page and not is_own(origin)


def _is_of_another_origin() -> bool:
    """A page of another origin makes this request; following its link to Halt is none."""
    if admitted():
        return True
    site, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin")
    if site is not None:
        return (
            site not in {"same-origin", "none"}
            and request.headers.get("Sec-Fetch-Mode") != "navigate"
        )
    return origin is not None and not is_own(origin)


def _is_misnamed() -> bool:
    """The request is made to a name that this Halt does not go by."""
    names = config().trusted_hosts
    if names is None:
        return False
    try:
        return urlsplit(f"//{request.host}").hostname not in names
    except ValueError:
        return True


def _may_enter() -> bool:
    if not config().token or request.endpoint in OPEN_TO_ALL:
        return True
    if brings_token():
        return True
    mark = None if admitted() else session.get("login")
    return isinstance(mark, str) and hmac.compare_digest(mark, login_mark())


def _too_large() -> TooLarge:
    return TooLarge(f"The body is larger than {request.max_content_length} bytes.")


def _check_body() -> None:
    """Read the body; it must be whole, and within the limit. Raises RequestError, TooLarge.

    The limit is that of the route: a Stop and other requests without a text are short.

    The server leaves it to us whether all of it has come: a form that broke off in the middle of a
    prompt looks like a shorter prompt. One without a length is cut at the limit by werkzeug.
    """
    if request.method not in UNSAFE or request.endpoint in READ_BIT_BY_BIT:
        return
    if request.endpoint is not None and request.endpoint not in LONG_BODIES:
        most = min(SHORT_BODY_MAX, config().max_body_bytes)
        request.max_content_length = request.max_form_memory_size = most
    try:
        body = request.get_data()
    except (OSError, ParseException) as exc:  # gunicorn found broken chunks, or lost the client
        raise RequestError("The body's chunks are malformed.", field="body") from exc
    told, size = request.content_length, len(body)
    if told is None and size >= (request.max_content_length or 0):
        raise _too_large()
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
    via.check(current_app.extensions["halt.mark"])  # first: it may end a circle
    if _is_misnamed():
        message = "Halt is not known here by this name. Set HALT_HOSTS to it, or HALT_TOKEN."
        return _error_response(403, "unknown_host", message)
    starts = request.method in UNSAFE or request.endpoint in STARTED_BY_GET
    if ((starts or _is_upgrade()) and _is_foreign()) or _is_read_from_elsewhere():
        return _error_response(403, "foreign_site", "Requests from another site are refused.")
    if _may_enter():
        _check_body()
        return None
    if (refused := wrong_bearer()) is not None:
        return refused
    if wants_page():
        return redirect(url_for("pages.login"))
    response = _error_response(401, "unauthorized", TOKEN_NEEDED)
    response.headers["WWW-Authenticate"] = "Bearer"
    if wants_fragment():
        response.headers["HX-Redirect"] = url_for("pages.login")
    return response


class Secure:
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


# --- errors ---------------------------------------------------------------------------------------

_OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_OPENAI_CODES = {
    "context_too_long": "context_length_exceeded",
    "rate_limited": "rate_limit_exceeded",
    "quota_exceeded": "insufficient_quota",
    "too_many_requests": "rate_limit_exceeded",
}


def openai_error(
    status: int, code: str, message: str, request_id: str, field: str | None = None
) -> dict[str, Any]:
    """An error in OpenAI's shape and, where it has some, in its words."""
    kind = _OPENAI_TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    if status == 401:
        code = "invalid_api_key"
    known = _OPENAI_CODES.get(code, code)
    said = signed(message, request_id)
    return {"error": {"message": said, "type": kind, "param": field, "code": known}}


def _error_response(
    status: int,
    code: str,
    message: str,
    *,
    field: str | None = None,
    retryable: bool = False,
    retry_after: float | None = None,
) -> Response:
    request_id = current()
    if status == 500:  # what has happened stands in the log alone
        message = signed(message, request_id)
    if wants_fragment():
        # No template: a Stop may be refused, and its way waits for nothing.
        html = f'<p class="fault" role="alert" data-code="{escape(code)}">{escape(message)}</p>'
        response = Response(html, status, mimetype="text/html")
        response.headers["HX-Retarget"] = "#notice"
        response.headers["HX-Reswap"] = "innerHTML"
    elif is_openai():
        response = json_response(openai_error(status, code, message, request_id, field), status)
        if not retryable or "X-Stream-Id" in request.headers:
            # Heard by OpenAI's clients, which would ask again: in vain, or with an ID in use.
            response.headers["X-Should-Retry"] = "false"
    elif wants_page() or sent_without_scripts():
        response = Response(render_template("error.html", message=message), status)
    else:
        error: dict[str, Any] = {
            "code": code,
            "message": message,
            "retryable": retryable,
            "request_id": request_id,
        }
        if field is not None:
            error["field"] = field
        response = json_response({"error": error}, status)
    if retry_after is not None:
        response.headers["Retry-After"] = str(math.ceil(retry_after))
    return response


def refusal(error: HaltError) -> Response:
    """The response that says this error: JSON, a fragment or a page, whatever was asked for."""
    return _error_response(
        error.status,
        error.code,
        error.message,
        field=error.field,
        retryable=error.retryable,
        retry_after=error.retry_after,
    )


def _on_http_error(error: HTTPException) -> BaseResponse:
    status = error.code or 500
    if status < 400:
        return error.get_response()  # a redirect
    if status == 413:
        return refusal(_too_large())
    name = error.name.lower().replace(" ", "_")
    message = error.description or error.name
    if status == 404 and is_openai():
        name, message = "unknown_path", _known_paths()
    response = _error_response(status, name, message)
    for header, value in error.get_headers():
        if header.lower() == "allow":
            response.headers["Allow"] = value
    return response


def _known_paths() -> str:
    """What a client is told that asks for a path which OpenAI has and Halt has not."""
    known = sorted(
        f"{method} {re.sub('<[^<>]*>', 'NAME', rule.rule)}"
        for rule in current_app.url_map.iter_rules()
        if rule.rule.startswith("/v1/")
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    )
    return f"There is no {request.path[:200]} here. There are: {', '.join(known)}."


def _on_surprise(error: Exception) -> Response:
    logger.error("unforeseen error in %s %s", request.method, request.path, exc_info=error)
    return _error_response(
        500, "internal", "Something went wrong in Halt itself. It has been logged.", retryable=True
    )


def install(app: Flask) -> None:
    """Put guards, headers and error handlers into the application.

    `halt.prepare_sessions` reads the data folder, to be called in a worker before its first
    request; otherwise the first cookie does.
    """
    app.extensions["halt.token_failures"] = TokenFailures()
    app.session_interface = sessions = _Sessions()
    app.extensions["halt.prepare_sessions"] = partial(sessions.prepare, app)
    app.before_request(guard)
    app.wsgi_app = Secure(app.wsgi_app)  # type: ignore[method-assign]
    app.register_error_handler(HaltError, refusal)
    app.register_error_handler(HTTPException, _on_http_error)
    app.register_error_handler(Exception, _on_surprise)
