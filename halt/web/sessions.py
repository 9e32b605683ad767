"""Sessions: a browser has a signed cookie with a random ID, a program has no session."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import re
import secrets
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

from flask import Flask, Request, Response, has_request_context, request, session
from flask.sessions import SecureCookieSession, SecureCookieSessionInterface, SessionMixin
from itsdangerous import BadSignature, SignatureExpired, URLSafeTimedSerializer

from halt.config import data_dir
from halt.config.settings import Config
from halt.people.person import mode_of
from halt.web.cors import is_cross_origin, is_same_origin
from halt.web.requests import wants_page

COOKIES_MAX = 16_384  # bytes of cookies; browsers send less to a server that sets one cookie
VERIFIED_MAX = 1024  # cached session cookies whose signature has been verified

#: The session cookie of an earlier version of Halt, named after the port.
_NAMED_BY_PORT = re.compile(r"halt_session_[0-9]{1,5}")


def browser_id() -> str:
    """The random ID of the requesting browser, "" for a program."""
    known = None if is_cross_origin() else session.get("owner")  # earlier versions' name for it
    return known if isinstance(known, str) else ""


def ensure_browser_id() -> str:
    """The same; it is created where there is none."""
    known = browser_id()
    if not known:
        known = session["owner"] = secrets.token_urlsafe(16)
        session.permanent = True
    return known


class Sessions(SecureCookieSessionInterface):
    """Session cookies, signed with the application's key.

    Browsers send a cookie to every port of a host, and a Halt may not know its public port. So the
    cookie's name is derived from the key, not from the port: Halts with different keys do not
    replace each other's cookie, and processes that share a key share the name.

    Over HTTPS the name has a prefix, and only a cookie with this prefix counts: browsers let no
    other host of the same domain, and no page without TLS, set one. Strangers' browsers (the mode
    `anonymous`) have nothing but their cookie: there a session without the prefix continues under
    the prefixed name, so that an upgrade loses no list.

    With another key the name is another one. A session under the name of HALT_SECRET_KEY_OLD, and
    signed with it, continues under the new name and with the new signature.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._takes_unprefixed = mode_of(config) == "anonymous"
        self._name = self._former_name = ""  # without a prefix; of the former key, if any
        self._serializer: URLSafeTimedSerializer | None = None
        # A cache: verifying a cookie takes 50 us, 8 % of a Stop with a cookie.
        self._verified = lru_cache(VERIFIED_MAX)(self._verify)

    def prepare(self, app: Flask) -> None:
        """Load the key and compute the name before the first request. Raises ConfigError."""
        self.get_cookie_name(app)
        self.get_signing_serializer(app)

    def get_signing_serializer(self, app: Flask) -> URLSafeTimedSerializer | None:
        """The application's serializer, cached: it has no state, and it saves 40 us per request."""
        if self._serializer is None:
            _, *former = self.keys(app)
            app.config["SECRET_KEY_FALLBACKS"] = former
            self._serializer = super().get_signing_serializer(app)
        return self._serializer

    def get_cookie_name(self, app: Flask) -> str:
        """The cookie's name, the same for every process that serves the same conversations.

        Over HTTPS with `__Host-`, and below a path with `__Secure-`: a proxy that maps Halt to a
        path may set the cookie's path too, and browsers refuse `__Host-` then.
        """
        if not self._name:
            key, *former = self.keys(app)
            for former_key in former:
                self._former_name = f"halt_session_{self._cookie_suffix(former_key)}"
            self._name = f"halt_session_{self._cookie_suffix(key)}"
        return f"{_prefix()}{self._name}"

    def open_session(self, app: Flask, request: Request) -> SecureCookieSession | None:
        """The session of this request.

        A browser without a cookie of this name may have a cookie under the name of the former key,
        or one of an earlier version of Halt: without a prefix, or named after the port. If this
        application signed it, its session continues, and the response sets the cookie under the new
        name; over HTTPS an earlier version's counts only in the mode `anonymous`. The older cookie
        is not deleted: another Halt with the same key may still use it.

        Cookies of more than COOKIES_MAX bytes are ignored: 800 kB took 0.28 s, also for a Stop.
        """
        if not 0 < len(request.environ.get("HTTP_COOKIE", "")) <= COOKIES_MAX:
            return self.session_class()
        if (value := request.cookies.get(self.get_cookie_name(app))) is not None:
            with contextlib.suppress(BadSignature):
                return self.session_class(self._loaded(app, value)[0])
            return self.session_class()
        earlier = self._of_former_key(app) or self._of_earlier_version(app)
        session = self.session_class(earlier)
        session.modified = earlier is not None
        return session

    def _of_former_key(self, app: Flask) -> dict[str, Any] | None:
        """What a cookie under the name of the former key holds, if it is valid."""
        if not self._former_name:
            return None
        with contextlib.suppress(BadSignature):
            return self._loaded(app, request.cookies.get(f"{_prefix()}{self._former_name}", ""))[0]
        return None

    def _of_earlier_version(self, app: Flask) -> dict[str, Any] | None:
        """What the best valid cookie of an earlier version of Halt holds."""
        if request.is_secure and not self._takes_unprefixed:
            return None
        # Its rank (its own port, then this Halt's names), when it was signed, what it holds.
        newest: tuple[int, datetime, dict[str, Any]] | None = None
        own_names = f"halt_session_{self._config.port}", self._former_name, self._name
        for name, value in request.cookies.items():
            if not name or (name not in own_names[1:] and not _NAMED_BY_PORT.fullmatch(name)):
                continue
            with contextlib.suppress(BadSignature):
                data, signed_at = self._loaded(app, value)
                rank = 1 + own_names.index(name) if name in own_names else 0
                if newest is None or (rank, signed_at) > newest[:2]:
                    newest = rank, signed_at, data
        return None if newest is None else newest[2]

    def _loaded(self, app: Flask, value: str) -> tuple[dict[str, Any], datetime]:
        """A cookie's content and signing time. Raises BadSignature, also where it is too old."""
        data, signed_at = self._verified(app, value)
        age = datetime.now(UTC) - signed_at
        if not timedelta() <= age <= app.permanent_session_lifetime:
            raise SignatureExpired("The session's cookie is too old, or from the future.")
        return data, signed_at

    def _verify(self, app: Flask, value: str) -> tuple[dict[str, Any], datetime]:
        """The same without the check of its age. Only valid results are cached."""
        serializer = self.get_signing_serializer(app)
        assert serializer is not None  # noqa: S101 - there is a key
        data, signed_at = serializer.loads(value, return_timestamp=True)
        return data, signed_at

    def should_set_cookie(self, app: Flask, session: SessionMixin) -> bool:
        """Whether the response sets the cookie: its content has changed, or a page is loaded.

        Each loaded page extends the cookie's life by a year. Other requests do not set it, because
        signing takes CPU time: 0.1 ms of a Stop's 1.0 ms.
        """
        if _is_of_another_origin():  # the cookie would replace the browser's own session
            return False
        return session.modified or (session.permanent and wants_page())

    def save_session(self, app: Flask, session: SessionMixin, response: Response) -> None:
        """Set the cookie if `should_set_cookie` returns True.

        A response that depends on the session has `Vary: Cookie` for caches in both cases.
        """
        if self.should_set_cookie(app, session):
            super().save_session(app, session, response)
        elif session.accessed:
            vary = response.headers.get("Vary")
            response.headers["Vary"] = f"{vary}, Cookie" if vary else "Cookie"

    def get_cookie_secure(self, app: Flask) -> bool:
        """Whether browsers send the cookie over HTTPS only: True where it is set over HTTPS.

        Halt must also work on a local network without TLS.
        """
        return request.is_secure  # behind a proxy: see `halt.web.proxies`

    def key(self, app: Flask) -> str:
        """The key of the application's signatures; by default the one in its data folder.

        Raises ConfigError.
        """
        if not app.secret_key:
            app.secret_key = data_dir.secret_key(self._config.data_folder)
        return str(app.secret_key)

    def keys(self, app: Flask) -> tuple[str, ...]:
        """That key, and the former one if it is set. Raises ConfigError."""
        former = self._config.secret_key_old
        return (self.key(app), former) if former else (self.key(app),)

    def _cookie_suffix(self, key: str) -> str:
        """The part of the cookie's name that differs between Halts. Raises ConfigError.

        It is derived from the key and, where the conversations are in the data folder, from the
        folder's ID, because two folders may have the same key. Hosts that share a PostgreSQL
        database share the key only, so the ID is left out there.
        """
        folder_id = (
            "" if self._config.database_url else data_dir.folder_id(self._config.data_folder)
        )
        message = f"cookie name {folder_id}".encode()
        digest = hmac.new(key.encode(), message, hashlib.sha256)
        return digest.hexdigest()[:16]


def _prefix() -> str:
    """The prefix of the cookie's name in this request."""
    if not (has_request_context() and request.is_secure):  # behind a proxy: `halt.web.proxies`
        return ""
    return "__Secure-" if request.script_root else "__Host-"


def _is_of_another_origin() -> bool:
    """Whether a page of another origin makes this request, other than by a followed link."""
    if is_cross_origin():
        return True
    site, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin")
    if site is not None:
        return (
            site not in {"same-origin", "none"}
            and request.headers.get("Sec-Fetch-Mode") != "navigate"
        )
    return origin is not None and not is_same_origin(origin)
