"""One sign-in by OpenID Connect: its random values, and why it failed.

This module needs no library of OpenID Connect, unlike the others here.
"""

from __future__ import annotations

from dataclasses import dataclass

from halt.errors import HaltError

QUOTED_MAX = 300  # characters of the provider's own words
OVER = (
    "This sign-in began in another browser or more than 10 minutes ago, or it is over already. "
    "Sign in again."
)


@dataclass(frozen=True)
class Attempt:
    """The random values of one sign-in, which are the browser's and are used once."""

    state: str
    nonce: str
    verifier: str  # of PKCE


class SignInRefused(HaltError):
    """The provider, a check of its answer or the settings refuse this sign-in.

    `quoted`: the provider's own words, "" where there are none.
    """

    code = "sign_in_refused"
    status = 403

    def __init__(self, message: str, *, quoted: str = "") -> None:
        super().__init__(message)
        self.quoted = quoted


class ProviderFault(HaltError):
    """The provider does not answer, or not as OpenID Connect demands: no sign-in is possible."""

    code = "sign_in_unavailable"
    status = 503
    retryable = True
    quoted = ""


def readable(text: object, *secrets: str) -> str:
    """A provider's own words for a page or the log: one line, bounded, without these secrets."""
    if not isinstance(text, str):
        return ""
    for secret in filter(None, secrets):
        text = text.replace(secret, "…")
    printable = "".join(c if c.isprintable() else " " for c in text)
    return " ".join(printable.split())[:QUOTED_MAX]
