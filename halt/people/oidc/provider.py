"""Sign-in at an OpenID Connect provider: the authorization code flow with PKCE, by Authlib.

No method keeps a sign-in's state; the browser's session does (see `halt.web.page.oidc`).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

from authlib.common.urls import add_params_to_uri

from halt.config.settings import Config
from halt.people.names import shown_name
from halt.people.oidc import claims as checks
from halt.people.oidc.attempt import OVER, Attempt, SignInRefused
from halt.people.oidc.endpoints import Endpoints
from halt.people.person import person_id
from halt.store.people import PersonRow

ID_TOKEN_HINT_MAX = 4_096  # characters; servers refuse longer addresses
DEFAULT_SCOPES = ("profile", "email")  # besides `openid`
NAME_MAX = 100  # characters of a name for display
USED_MAX = 10_000  # states of sign-ins that are over


@dataclass(frozen=True)
class SignedIn:
    """The person who has signed in, and the ID token that says so."""

    person: PersonRow
    id_token: str


class Provider:
    """The provider of HALT_OIDC_ISSUER. Threads share it."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._endpoints = Endpoints(config)
        self._lock = threading.Lock()  # protects the states below
        self._used: OrderedDict[str, None] = OrderedDict()  # states, the oldest first

    @property
    def host(self) -> str:
        """The provider's host, for pages and messages."""
        return self._endpoints.host

    @property
    def issuer(self) -> str:
        """The provider's name for itself. Raises ProviderFault."""
        return self._endpoints.metadata().issuer

    def authorization_url(self, attempt: Attempt, redirect_uri: str, *, prompt: str = "") -> str:
        """Where the browser goes to sign in. Raises ProviderFault.

        `prompt`: "login" makes the provider ask also a person who is signed in there.
        """
        metadata = self._endpoints.metadata()
        scopes = dict.fromkeys(("openid", *(self._config.oidc_scopes or DEFAULT_SCOPES)))
        if self._config.oidc_groups and "groups" in metadata.scopes:
            scopes["groups"] = None
        url, _ = self._endpoints.client(metadata, redirect_uri).create_authorization_url(
            metadata.authorization_endpoint,
            state=attempt.state,
            nonce=attempt.nonce,
            code_verifier=attempt.verifier,
            scope=" ".join(scopes),
            prompt=prompt or None,
        )
        return str(url)

    def sign_in(self, attempt: Attempt, redirect_uri: str, code: str) -> SignedIn:
        """Redeem a code and check all that the provider says. Raises SignInRefused, ProviderFault.

        An attempt is used once: here by its state, in other workers by its code, which the provider
        redeems once.
        """
        endpoints, config = self._endpoints, self._config
        metadata = endpoints.metadata()
        self._use(attempt.state)
        tokens = endpoints.tokens(metadata, attempt, redirect_uri, code)
        claims = checks.checked_claims(endpoints, config.oidc_client_id, attempt.nonce, tokens)
        subject = claims["sub"]
        if checks.lacks_details(config, claims) and metadata.userinfo_endpoint:
            info = endpoints.userinfo(metadata, str(tokens.get("access_token", "")))
            if info.get("sub", subject) != subject:
                raise checks.refused(endpoints, "answered with the details of another person.")
            claims = checks.with_details(claims, info)
        checks.check_allowed(config, self.host, claims)
        texts = (text for key in checks.NAMES if isinstance(text := claims.get(key), str))
        name = next(filter(None, (shown_name(text, NAME_MAX) for text in texts)), "")
        identity = person_id("oidc", metadata.issuer, subject)
        person = PersonRow(identity, "oidc", metadata.issuer, subject, name)
        return SignedIn(person, tokens["id_token"])

    def _use(self, state: str) -> None:
        """Use an attempt up. Raises SignInRefused if it was."""
        with self._lock:
            is_used = state in self._used
            self._used[state] = None
            if len(self._used) > USED_MAX:
                self._used.popitem(last=False)
        if is_used:
            raise SignInRefused(OVER)

    def end_session_url(self, id_token: str | None, back: str) -> str:
        """Where the browser goes to sign out, "" if the provider has no such address.

        Raises ProviderFault.
        """
        endpoint = self._endpoints.metadata().end_session_endpoint
        if not endpoint:
            return ""
        parameters = {
            "client_id": self._config.oidc_client_id,
            "post_logout_redirect_uri": back,
        }
        if id_token and len(id_token) <= ID_TOKEN_HINT_MAX:
            parameters["id_token_hint"] = id_token
        return str(add_params_to_uri(endpoint, parameters))

    def check(self) -> None:
        """Ask the provider for its description and its keys. Raises ProviderFault."""
        self._endpoints.keys()

    def close(self) -> None:
        """Close the idle connections."""
        self._endpoints.close()
