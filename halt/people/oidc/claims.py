"""The checks of what the provider says of a person: the ID token, and who may use Halt."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from authlib.oidc.core import CodeIDToken
from cryptography.exceptions import UnsupportedAlgorithm
from joserfc import jwt
from joserfc.errors import (
    BadSignatureError,
    ClaimError,
    ExpiredTokenError,
    InvalidKeyIdError,
    JoseError,
    SecurityWarning,
    UnsupportedAlgorithmError,
)
from joserfc.jws import JWSRegistry

from halt.config.settings import Config
from halt.people.oidc.attempt import SignInRefused, readable
from halt.people.oidc.endpoints import Endpoints, Json

#: Signatures of ID tokens that are accepted. None of them can be made with a public key.
ALGORITHMS = ("RS256", "PS256", "ES256", "EdDSA", "Ed25519")
SKEW = 60  # seconds by which the provider's clock may differ
SUBJECT_MAX = 255  # characters, by OpenID Connect
EMAIL = frozenset({"email", "email_verified"})
NAMES = ("name", "preferred_username", "email")  # claims of which the first is shown

#: Why an ID token with this wrong claim is refused.
_WRONG = {
    "iss": "comes from another issuer",
    "aud": "is for another client",
    "azp": "is for another client",
    "nonce": "belongs to another sign-in",
    "iat": "was issued in the future: compare the clocks of both machines",
    "nbf": "is not valid yet: compare the clocks of both machines",
}

_registry = JWSRegistry(algorithms=ALGORITHMS, strict_check_header=False)

# A provider may still call Ed25519 by this name.
warnings.filterwarnings("ignore", "EdDSA is deprecated", SecurityWarning)


def checked_claims(
    endpoints: Endpoints, client_id: str, nonce: str, tokens: Mapping[str, Any]
) -> Json:
    """What the ID token says, after all checks of OpenID Connect.

    `tokens`: the answer to the code. Raises SignInRefused, ProviderFault.
    """
    id_token = tokens.get("id_token")
    if not isinstance(id_token, str):
        raise refused(endpoints, "sent no ID token: is `openid` among the scopes of this client?")
    try:
        decoded = _decoded(endpoints, id_token)
        claims = CodeIDToken(
            decoded.claims,
            decoded.header,
            {
                "iss": {"essential": True, "value": endpoints.metadata().issuer},
                "sub": {"essential": True},
                "aud": {"essential": True, "value": client_id},
            },
            {
                "nonce": nonce,
                "client_id": client_id,
                "access_token": tokens.get("access_token"),
            },
        )
        claims.validate(leeway=SKEW)
    except (JoseError, UnsupportedAlgorithm, ValueError, TypeError, KeyError) as fault:
        raise refused(endpoints, f"sent an ID token that {_wrong(fault)}.") from None
    subject = claims["sub"]
    if not (0 < len(subject) <= SUBJECT_MAX and subject.isprintable()):
        raise refused(endpoints, "sent an ID token with a malformed subject.")
    return dict(claims)


def _decoded(endpoints: Endpoints, id_token: str) -> jwt.Token:
    """An ID token whose signature is right. Raises what joserfc raises, ProviderFault."""
    try:
        return jwt.decode(id_token, endpoints.keys(), registry=_registry)
    except InvalidKeyIdError:  # the provider may have new keys
        if (keys := endpoints.new_keys()) is None:
            raise
    return jwt.decode(id_token, keys, registry=_registry)


def lacks_details(config: Config, claims: Mapping[str, Any]) -> bool:
    """Whether the ID token lacks what Halt needs to know."""
    needed = [not claims.keys().isdisjoint(NAMES)]
    if config.oidc_groups:
        needed.append("groups" in claims)
    if config.oidc_domains:
        needed.append(claims.keys() >= EMAIL)
    return not all(needed)


def with_details(claims: Json, info: Json) -> Json:
    """The ID token's claims with those that it lacks.

    An address and whether it is verified come from one source.
    """
    if "email" in info and not claims.keys() >= EMAIL:
        claims = {key: value for key, value in claims.items() if key not in EMAIL}
    return {**info, **claims}


def check_allowed(config: Config, host: str, claims: Mapping[str, Any]) -> None:
    """Raise SignInRefused unless HALT_OIDC_GROUPS and HALT_OIDC_DOMAINS let the person in."""
    allowed = set(config.oidc_groups)
    groups = claims.get("groups")
    if allowed and groups is None:
        raise SignInRefused(
            f"Groups may use this Halt, but {host} does not say which groups you are in. "
            "Its administrator must add the claim `groups` for Halt's client."
        )
    has = {groups} if isinstance(groups, str) else groups if isinstance(groups, list) else ()
    if allowed and not any(group in allowed for group in has if isinstance(group, str)):
        raise SignInRefused("You are not in a group that may use this Halt.")
    domains = {domain.lower() for domain in config.oidc_domains}
    if not domains:
        return
    email = claims.get("email")
    name, _, domain = email.rpartition("@") if isinstance(email, str) else ("", "", "")
    if not name or domain.lower() not in domains:
        raise SignInRefused("Your email address is not of a domain that may use this Halt.")
    if claims.get("email_verified") is not True:
        raise SignInRefused(
            f"Your email address is of a domain that may use this Halt, but {host} does "
            "not say that it is verified."
        )


def refused(endpoints: Endpoints, reason: str) -> SignInRefused:
    """The error for a sign-in that the provider's answer does not allow."""
    return SignInRefused(f"{endpoints.host} {reason}")


def _wrong(fault: Exception) -> str:
    """What is wrong with an ID token. The texts of the libraries may contain parts of it."""
    if isinstance(fault, UnsupportedAlgorithmError):
        return f"is not signed in one of the ways {', '.join(ALGORITHMS)}"
    if isinstance(fault, BadSignatureError):
        return "has a wrong signature"
    if isinstance(fault, InvalidKeyIdError):
        return "is signed with a key that the provider does not publish"
    if isinstance(fault, ExpiredTokenError):
        return "has expired: compare the clocks of both machines"
    if isinstance(fault, ClaimError):
        return _WRONG.get(fault.claim, f"has no right claim {readable(fault.claim)!r}")
    return "is malformed"
