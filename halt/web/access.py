"""The access token (HALT_TOKEN): a program sends it as a Bearer token, a browser signs in once.

Wrong tokens are counted (see `halt.web.token_failures`).
"""

from __future__ import annotations

import hashlib
import hmac

from flask import Response, current_app, request, session

from halt.web.cors import is_cross_origin
from halt.web.requests import client_address
from halt.web.responses import RequestRefused, error_response
from halt.web.services import services
from halt.web.token_failures import too_many_message

PUBLIC_ENDPOINTS = frozenset(
    {
        "static",
        "pages.link",
        "pages.login",
        "pages.logout",
        "pages.manifest",
        "api.healthz",
        "oidc.start",
        "oidc.callback",
    }
)


def token_matches(token: str) -> bool:
    """Compare `token` with the access token, in constant time."""
    return hmac.compare_digest(token.encode(), services().config.token.encode())


def bearer_token() -> str:
    """The token in the request's header `Authorization: Bearer`, "" where there is none."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def has_token() -> bool:
    """Whether the request has the access token in its `Authorization` header."""
    return bool(services().config.token) and token_matches(bearer_token())


def count_wrong_token() -> int:
    """Count a wrong token for the client's address; the seconds to wait, 0 below the limit."""
    return services().token_failures.count(client_address())


def refuse_wrong_bearer() -> Response | None:
    """Count the request's wrong Bearer token, if any. A response 429 where there were too many."""
    wait = count_wrong_token() if bearer_token() else 0
    refused = RequestRefused(429, "too_many_requests", too_many_message(wait), retry_after=wait)
    return error_response(refused) if wait else None


def has_login() -> bool:
    """Whether the request's browser is signed in with the access token.

    A sign-in that was made with the former key goes on: the session gets the value of the new one.
    """
    login_value = None if is_cross_origin() else session.get("login")
    if not isinstance(login_value, str):
        return False
    digest, *former = map(_login_digest, services().sessions.keys(current_app))
    if hmac.compare_digest(login_value, digest):
        return True
    if any(hmac.compare_digest(login_value, old) for old in former):
        session["login"] = digest
        return True
    return False


def login_digest() -> str:
    """What the session of such a browser contains: an HMAC of the token, so it changes with it."""
    return _login_digest(services().sessions.key(current_app))


def _login_digest(key: str) -> str:
    token = services().config.token
    return hmac.new(key.encode(), token.encode(), hashlib.sha256).hexdigest()
