"""Begins and ends the sign-in of the requesting browser. Its cookie holds a random token."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from flask import request, session

from halt.config.settings import Config
from halt.errors import StoreUnavailable
from halt.people.known import digest_of, new_token
from halt.store.people import PersonRow
from halt.store.sign_ins import SignIn
from halt.web.cors import is_cross_origin
from halt.web.requests import client_address
from halt.web.services import services

AGENT_MAX = 300  # characters of a User-Agent that are kept
HOURS = {"accounts": 720.0, "oidc": 24.0}

logger = logging.getLogger(__name__)


def sign_in_digest() -> str:
    """The digest of the browser's sign-in, "" where there is none."""
    token = None if is_cross_origin() else session.get("sign_in")
    return digest_of(token) if isinstance(token, str) else ""


def begin_sign_in(person: PersonRow, *, id_token: str | None = None) -> None:
    """Sign this browser in as the person. After that the browser's sign-in before it ends.

    The person's row must exist. `id_token` is that of the OpenID provider, for the sign-out there.
    Raises StoreUnavailable; the browser's sign-in is the same as before then.
    """
    token, at = new_token(), time.time()
    services().store.sign_ins.begin(
        person.id,
        SignIn(
            digest=digest_of(token),
            created_at=at,
            seen_at=at,
            until=at + sign_in_seconds(services().config),
            agent=request.headers.get("User-Agent", "")[:AGENT_MAX],
            address=client_address()[:64],
            id_token=id_token,
        ),
    )
    end_sign_in()
    session["sign_in"] = token
    session.permanent = True


def end_sign_in() -> SignIn | None:
    """End the browser's sign-in, if any, and return it. The cookie loses it in any case.

    While nothing can be saved it stays in the database, and the log says so. The cookie was its
    only token, unless someone has copied that.
    """
    digest = sign_in_digest()
    if not digest:
        return None
    session.pop("sign_in", None)
    if (known := services().known) is not None:
        known.forget(digest)
    try:
        return services().store.sign_ins.end(digest)
    except StoreUnavailable as fault:
        logger.warning(
            "a browser has signed out, and its sign-in stays in the database: %s", fault.reason
        )
        return None


def renew_sign_in(renew: Callable[[str, str], None]) -> None:
    """Give the browser's sign-in a new token, so that a copied cookie has no use any more.

    `renew` gets the old and the new digest and saves the new one; what it raises changes nothing.
    """
    old, token = sign_in_digest(), new_token()
    renew(old, digest_of(token))
    session["sign_in"] = token
    if (known := services().known) is not None:
        known.forget(old)


def sign_in_seconds(config: Config) -> float:
    """How long a sign-in lasts."""
    way = "oidc" if config.oidc_issuer else "accounts"
    return 3600 * (config.sign_in_hours or HOURS[way])
