"""Begins and ends the sign-in of the requesting browser. Its cookie holds a random token."""

from __future__ import annotations

import time

from flask import request, session

from halt.config.settings import Config
from halt.people.known import digest_of, new_token
from halt.store.people import PersonRow
from halt.store.sign_ins import SignIn
from halt.web.cors import is_cross_origin
from halt.web.requests import client_address
from halt.web.services import services

AGENT_MAX = 300  # characters of a User-Agent that are kept
HOURS = {"accounts": 720.0, "oidc": 24.0}


def sign_in_digest() -> str:
    """The digest of the browser's sign-in, "" where there is none."""
    token = None if is_cross_origin() else session.get("sign_in")
    return digest_of(token) if isinstance(token, str) else ""


def begin_sign_in(person: PersonRow, *, id_token: str | None = None) -> None:
    """Sign this browser in as the person. The one before in this browser ends.

    The person's row must exist. `id_token` is that of the OpenID provider, for the sign-out there.
    Raises StoreUnavailable.
    """
    end_sign_in()
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
    session["sign_in"] = token
    session.permanent = True


def end_sign_in() -> SignIn | None:
    """End the browser's sign-in, if any, and return it. Raises StoreUnavailable."""
    digest = sign_in_digest()
    if not digest:
        return None
    ended = services().store.sign_ins.end(digest)
    if (known := services().known) is not None:
        known.forget(digest)
    session.pop("sign_in", None)
    return ended


def sign_in_seconds(config: Config) -> float:
    """How long a sign-in lasts."""
    way = "oidc" if config.oidc_issuer else "accounts"
    return 3600 * (config.sign_in_hours or HOURS[way])
