"""The person who makes a request, which the guard finds out before any route runs."""

from __future__ import annotations

from hashlib import blake2b

from flask import Response, g, has_request_context, request

from halt.core.stream_key import StreamKey
from halt.people.known import API_TOKEN_PREFIX, digest_of, is_admin
from halt.people.person import ANYONE, MINE, Person
from halt.people.proxy_header import Refusal
from halt.store.people import PersonRow
from halt.web.access import bearer_token, has_login, has_token
from halt.web.cors import is_api, is_cross_origin
from halt.web.responses import RequestRefused, error_response
from halt.web.services import services
from halt.web.sessions import browser_id, ensure_browser_id
from halt.web.sign_ins import sign_in_digest


def person() -> Person:
    """The person who makes this request. On public routes there may be none."""
    result: Person = g.person
    return result


def reader_credential() -> str:
    """The same for any thread: "" outside of a request, and before the person is known."""
    return g.get("credential", "") if has_request_context() else ""


def credential() -> str:
    """The digest of the sign-in or API token that the request uses, "" where it uses none."""
    result: str = g.credential
    return result


def refusal_response() -> Response | None:
    """The response to a request for which the proxy names no person; None in other modes."""
    refusal: Refusal | None = g.refusal
    if refusal is None:
        return None
    response = error_response(RequestRefused(refusal.status, refusal.code, refusal.message))
    if refusal.status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


def owner() -> str:
    """The ID of that person, who owns what the request makes."""
    return person().id


def may_manage() -> bool:
    """Whether that person may change the providers and models that all people use."""
    return person() == MINE if services().mode == "mine" else person().is_admin


def person_tag() -> str:
    """By this a page's scripts tell people apart who share a browser; it tells nothing of them."""
    return blake2b(owner().encode(), digest_size=6, person=b"halt browser").hexdigest()


def stream_key(stream_id: str) -> StreamKey:
    """The key of the person's stream with this ID."""
    return StreamKey(owner(), stream_id)


def identify() -> bool:
    """Find the person who makes this request. False: the request is not let in.

    A page of another origin that HALT_CORS_ORIGINS admits is known by its Bearer token alone: its
    requests may carry the browser's cookies without that person's knowledge.
    """
    g.credential, g.refusal = "", None
    known = _OF_MODE[services().mode]()
    if known is None:
        return False
    g.person = known
    services().connected.start_late()  # other servers than gunicorn do not start these threads
    if (watch := services().watch) is not None:
        watch.start_late()
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


def _named_by_proxy() -> Person | None:
    # A token that a program sends counts by itself: a revoked one is not made good by the proxy.
    if is_cross_origin() or bearer_token().startswith(API_TOKEN_PREFIX):
        return _of_api_token()  # else the guard asks for a token
    row = proxy_person()
    if isinstance(row, Refusal):
        g.refusal = row
        return None
    if (watch := services().watch) is not None:
        watch.named_people.note(row)
    return Person(row.id, row.name, is_admin("header", row, services().config.admins))


def proxy_person() -> PersonRow | Refusal:
    """The person whom the proxy's header names, in the mode `header`."""
    config, environ = services().config, request.environ
    # ProxyFix has replaced the address by what X-Forwarded-For says, which a client may have sent.
    connection = environ.get("werkzeug.proxy_fix.orig", environ)
    return services().proxy_header.read(
        connection.get("REMOTE_ADDR") or "",
        environ.get(_variable(config.user_header)),
        environ.get(_variable(config.user_name_header)),
    )


def _variable(header: str) -> str:
    """The variable of a header in WSGI's environment. Servers drop those with underscores."""
    return f"HTTP_{header.upper().replace('-', '_')}"


def save_person() -> None:
    """Make the row of the request's person, where it may not exist yet. Raises StoreUnavailable.

    For what the database keeps for a person, such as an API token.
    """
    row: PersonRow | Refusal = PersonRow(MINE.id, "mine", "", "", "")
    if services().mode == "header":
        row = proxy_person()
    elif services().mode != "mine":  # there is one since the sign-in
        return
    if not isinstance(row, Refusal):
        services().store.people.ensure(row)


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
    "header": _named_by_proxy,
}
