"""The access token, HALT_TOKEN: a program sends it as a Bearer, a browser logs in once.

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

PUBLIC_ENDPOINTS = frozenset({"static", "pages.login", "api.healthz"})


def token_matches(given: str) -> bool:
    """Compare in constant time with the access token."""
    return hmac.compare_digest(given.encode(), services().config.token.encode())


def _bearer() -> str:
    """The token that the request carries as `Authorization: Bearer`, "" where it has none."""
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    return given.strip() if scheme.lower() == "bearer" else ""


def has_token() -> bool:
    """The request itself carries the access token that is set."""
    return bool(services().config.token) and token_matches(_bearer())


def count_wrong_token() -> int:
    """Count a wrong token of this request's client; seconds to wait where there were too many."""
    return services().token_failures.count(client_address())


def refuse_wrong_bearer() -> Response | None:
    """Count the wrong token that the request carries. Return 429 where there were too many."""
    wait = count_wrong_token() if _bearer() else 0
    refused = RequestRefused(429, "too_many_requests", too_many_message(wait), retry_after=wait)
    return error_response(refused) if wait else None


def is_authorized() -> bool:
    if not services().config.token or request.endpoint in PUBLIC_ENDPOINTS:
        return True
    if has_token():
        return True
    mark = None if is_cross_origin() else session.get("login")
    return isinstance(mark, str) and hmac.compare_digest(mark, login_mark())


def login_mark() -> str:
    """What a logged-in session carries: changes with the token, tells nothing about it."""
    key, token = services().sessions.key(current_app), services().config.token
    return hmac.new(key.encode(), token.encode(), hashlib.sha256).hexdigest()
