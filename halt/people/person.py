"""A person, who owns conversations and streams, and the ways to know one."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal

from halt.config.addresses import is_loopback
from halt.config.settings import Config

#: How a Halt knows its people, by its settings: one way at a time.
#: mine: one person, for every request that is let in. anonymous: each browser is a stranger
#: (HALT_ALLOW_ANONYMOUS). accounts: names and passwords in the database (HALT_USERS).
#: header: a proxy's word (HALT_USER_HEADER). oidc: OpenID Connect (HALT_OIDC_ISSUER).
Mode = Literal["mine", "anonymous", "accounts", "header", "oidc"]


@dataclass(frozen=True, slots=True)
class Person:
    """The person of a request. `id` is the `owner` of what the person has."""

    id: str
    name: str = ""  # for display; "" where there is none
    is_admin: bool = False


#: The one person of the mode `mine`.
MINE = Person("mine")
#: Programs and admitted pages of other origins that nothing makes known. They share their streams,
#: so that an ID is all that protects one; none is listed for them.
ANYONE = Person("anyone")


def mode_of(config: Config) -> Mode:
    """The mode that the settings choose."""
    if config.users:
        return "accounts"
    if config.user_header:
        return "header"
    if config.oidc_issuer:
        return "oidc"
    is_open = config.allow_anonymous or not is_loopback(config.host)
    return "anonymous" if is_open and not config.token else "mine"


def person_id(mode: Mode, issuer: str, subject: str) -> str:
    """The ID of a person, who is a mode, an issuer and a subject; never an email address.

    It is the same in each process and on each host, so that no request waits for a row.
    """
    parts = "\0".join((mode, issuer, subject)).encode("utf-8", "surrogatepass")
    digest = blake2b(parts, digest_size=16).digest()
    return f"p_{base64.urlsafe_b64encode(digest).decode().rstrip('=')}"
