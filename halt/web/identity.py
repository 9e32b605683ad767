"""The person who makes a request, which the guard finds out before any route runs."""

from __future__ import annotations

from flask import g

from halt.core.stream_key import StreamKey
from halt.people.known import API_TOKEN_PREFIX, digest_of
from halt.people.person import ANYONE, MINE, Person
from halt.web.access import bearer_token, has_login, has_token
from halt.web.cors import is_api, is_cross_origin
from halt.web.services import services
from halt.web.sessions import browser_id, ensure_browser_id
from halt.web.sign_ins import sign_in_digest


def person() -> Person:
    """Whoever makes this request. Public routes have nobody."""
    result: Person = g.person
    return result


def credential() -> str:
    """The digest of the sign-in or API token that the request uses, "" where it uses none."""
    result: str = g.credential
    return result


def owner() -> str:
    """The ID of that person, who owns what the request makes."""
    return person().id


def stream_key(stream_id: str) -> StreamKey:
    """The key of the person's stream with this ID."""
    return StreamKey(owner(), stream_id)


def identify() -> bool:
    """Find out who makes this request. False: nobody who is let in.

    A page of another origin that HALT_CORS_ORIGINS admits is known by its Bearer token alone: its
    requests may carry the browser's cookies without that person's knowledge.
    """
    g.credential = ""
    known = _OF_MODE[services().mode]()
    if known is None:
        return False
    g.person = known
    if not is_api():  # the page's limits count by browser
        ensure_browser_id()
    return True


def _mine() -> Person | None:
    if not services().config.token:
        return ANYONE if is_cross_origin() else MINE
    return MINE if has_token() or has_login() else _of_api_token()


def _anonymous() -> Person:
    browser = browser_id() if is_api() else ensure_browser_id()
    return Person(browser) if browser else ANYONE


def _signed_in() -> Person | None:
    return _of_api_token() or _of_sign_in()


def _of_api_token() -> Person | None:
    token = bearer_token()
    known = services().known
    if known is None or not token.startswith(API_TOKEN_PREFIX):
        return None
    g.credential = digest_of(token)
    return known.person(g.credential)


def _of_sign_in() -> Person | None:
    known, digest = services().known, sign_in_digest()
    if known is None or not digest:
        return None
    g.credential = digest
    return known.person(digest)


_OF_MODE = {
    "mine": _mine,
    "anonymous": _anonymous,
    "accounts": _signed_in,
    "oidc": _signed_in,
}
