"""Sessions: a browser has a signed cookie with a random owner ID, a program has none."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import re
import secrets
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

from flask import Flask, Request, Response, request, session
from flask.sessions import SecureCookieSession, SecureCookieSessionInterface, SessionMixin
from itsdangerous import BadSignature, SignatureExpired, URLSafeTimedSerializer

from halt.config import data_dir
from halt.config.settings import Config
from halt.web.cors import is_cross_origin, is_same_origin
from halt.web.requests import wants_page

COOKIES_MAX = 16_384  # bytes of cookies; no browser sends more to a server that sets one
VERIFIED_MAX = 1024  # session cookies that are remembered as signed by this application

#: The session's cookie of an earlier Halt, which had the port in its name.
_NAMED_BY_PORT = re.compile(r"halt_session_[0-9]{1,5}")


def owner() -> str | None:
    """The session that asks, None for a program without one."""
    found = None if is_cross_origin() else session.get("owner")
    return found if isinstance(found, str) else None


def ensure_owner() -> str:
    """The session that asks; a new one is begun where there is none."""
    found = owner()
    if found is None:
        found = session["owner"] = secrets.token_urlsafe(16)
        session.permanent = True
    return found


class Sessions(SecureCookieSessionInterface):
    """Cookies signed with the application's key.

    Browsers send a cookie to every port of a host, and a Halt may not know the port by which it is
    reached. So the cookie's name follows from the key, not from the port: Halts with keys of their
    own never replace each other's cookie, and processes that share a key share the name.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
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
            self.key(app)
            self._serializer = super().get_signing_serializer(app)
        return self._serializer

    def get_cookie_name(self, app: Flask) -> str:
        """The cookie's name, the same for every process that serves the same conversations."""
        if not self._name:
            self._name = f"halt_session_{self._cookie_mark(app)}"
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
        newest: tuple[bool, datetime, dict[str, Any]] | None = None
        for name, value in request.cookies.items():
            if not _NAMED_BY_PORT.fullmatch(name):
                continue
            with contextlib.suppress(BadSignature):
                data, signed_at = self._loaded(app, value)
                is_own = name == f"halt_session_{self._config.port}"
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

    def key(self, app: Flask) -> str:
        """What the application signs with: where none is set, what its data folder keeps.

        Raises ConfigError.
        """
        if not app.secret_key:
            app.secret_key = data_dir.secret_key(self._config.data_folder)
        return str(app.secret_key)

    def _cookie_mark(self, app: Flask) -> str:
        """What tells this application's cookie from those of other Halts. Raises ConfigError.

        It follows from the key and, where the conversations are in the data folder, from the
        folder's mark: two folders may have been given the same key. Hosts that share a PostgreSQL
        share the key alone.
        """
        place = "" if self._config.database_url else data_dir.mark(self._config.data_folder)
        digest = hmac.new(self.key(app).encode(), f"cookie name {place}".encode(), hashlib.sha256)
        return digest.hexdigest()[:16]


def _is_of_another_origin() -> bool:
    """A page of another origin makes this request; following its link to Halt is none."""
    if is_cross_origin():
        return True
    site, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin")
    if site is not None:
        return (
            site not in {"same-origin", "none"}
            and request.headers.get("Sec-Fetch-Mode") != "navigate"
        )
    return origin is not None and not is_same_origin(origin)
