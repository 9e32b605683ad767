"""Sign-in at an OpenID Connect provider: the authorization code flow with PKCE, by Authlib.

The libraries are imported where HALT_OIDC_ISSUER is set, and nowhere else: they take 11 MB. No
method keeps a sign-in's state; the browser's session does (see `halt.web.page.oidc`).
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx2
import msgspec
from authlib.common.errors import AuthlibBaseError
from authlib.common.urls import add_params_to_uri
from authlib.integrations.httpx_client import OAuth2Client
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
from joserfc.jwk import Key, KeySet, import_key
from joserfc.jws import JWSRegistry

from halt import VERSION
from halt.clock import now
from halt.config.addresses import is_loopback
from halt.config.settings import Config
from halt.core.connection import UpstreamConnection, limited_connection
from halt.errors import Interrupted
from halt.people.oidc_attempt import OVER, Attempt, ProviderFault, SignInRefused, readable
from halt.people.person import person_id
from halt.providers.cached_query import CachedQuery
from halt.store.people import PersonRow
from halt.transport.http1 import REFUSAL_MAX, Body
from halt.transport.pool import Transport

#: Signatures of ID tokens that are accepted. None of them can be made with a public key.
ALGORITHMS = ("RS256", "PS256", "ES256", "EdDSA", "Ed25519")
KEY_TYPES = frozenset({"RSA", "EC", "OKP"})
SKEW = 60  # seconds by which the provider's clock may differ
ANSWER_SECONDS = 10.0  # for each answer of the provider
CONNECT_SECONDS = 5.0
METADATA_SECONDS = 3600.0  # after which the provider's description and keys are fetched again
FAULT_SECONDS = 1.0  # during which a failed attempt's fault is the answer
KEYS_EVERY = 30.0  # seconds between two fetches of the keys for tokens with an unknown one
ID_TOKEN_HINT_MAX = 4_096  # characters; servers refuse longer addresses
SUBJECT_MAX = 255  # characters, by OpenID Connect
DEFAULT_SCOPES = ("profile", "email")  # besides `openid`
NAME_MAX = 100  # characters of a name for display
USED_MAX = 10_000  # states of sign-ins that are over

#: Why an ID token with this wrong claim is refused.
_WRONG = {
    "iss": "comes from another issuer",
    "aud": "is for another client",
    "azp": "is for another client",
    "nonce": "belongs to another sign-in",
    "iat": "was issued in the future: compare the clocks of both machines",
    "nbf": "is not valid yet: compare the clocks of both machines",
}

logger = logging.getLogger(__name__)

# A provider may still call Ed25519 by this name.
warnings.filterwarnings("ignore", "EdDSA is deprecated", SecurityWarning)

_Json = dict[str, Any]


@dataclass(frozen=True)
class SignedIn:
    """The person who has signed in, and the ID token that says so."""

    person: PersonRow
    id_token: str


@dataclass(frozen=True)
class _Metadata:
    """What the provider says of itself in its discovery document."""

    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str
    userinfo_endpoint: str
    end_session_endpoint: str
    auth_method: str  # by which Halt proves at the token endpoint that it is the client
    scopes: frozenset[str]


class Provider:
    """The provider of HALT_OIDC_ISSUER. Threads share it.

    Its description and its keys are fetched when they are first needed, so that Halt starts while
    it is away. Of two first requests one fetches, and both take the result, also if it is a fault.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self.host = urlsplit(config.oidc_issuer).netloc.rpartition("@")[2]
        self._transport = _WholeAnswers(Transport(CONNECT_SECONDS))
        self._client = httpx2.Client(
            transport=self._transport, timeout=None, headers={"User-Agent": f"halt/{VERSION}"}
        )
        self._metadata = self._query("oidc-provider", self._fetch_metadata)
        self._keys = self._query("oidc-keys", self._fetch_keys)
        self._registry = JWSRegistry(algorithms=ALGORITHMS, strict_check_header=False)
        self._lock = threading.Lock()  # protects both below
        self._refetched_at = float("-inf")  # the keys, for a token with an unknown one
        self._used: OrderedDict[str, None] = OrderedDict()  # states, the oldest first

    def authorization_url(self, attempt: Attempt, redirect_uri: str, *, prompt: str = "") -> str:
        """Where the browser goes to sign in. Raises ProviderFault.

        `prompt`: "login" makes the provider ask also a person who is signed in there.
        """
        metadata = self.metadata()
        scopes = dict.fromkeys(("openid", *(self._config.oidc_scopes or DEFAULT_SCOPES)))
        if self._config.oidc_groups and "groups" in metadata.scopes:
            scopes["groups"] = None
        url, _ = self._oauth(metadata, redirect_uri).create_authorization_url(
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
        metadata = self.metadata()
        with self._lock:
            is_used = attempt.state in self._used
            self._used[attempt.state] = None
            if len(self._used) > USED_MAX:
                self._used.popitem(last=False)
        if is_used:
            raise SignInRefused(OVER)
        token = self._redeem(metadata, attempt, redirect_uri, code)
        id_token = token.get("id_token")
        if not isinstance(id_token, str):
            raise self._refused("sent no ID token: is `openid` among the scopes of this client?")
        claims = self._checked_claims(metadata, id_token, attempt.nonce, token)
        subject = claims["sub"]
        if not (0 < len(subject) <= SUBJECT_MAX and subject.isprintable()):
            raise self._refused("sent an ID token with a malformed subject.")
        if self._lacks(claims) and metadata.userinfo_endpoint:
            info = self._userinfo(metadata, str(token.get("access_token", "")))
            if info.get("sub", subject) != subject:
                raise self._refused("answered with the details of another person.")
            if "email" in info and not claims.keys() >= _EMAIL:  # take both from one source
                claims = {key: value for key, value in claims.items() if key not in _EMAIL}
            claims = {**info, **claims}
        self._check_allowed(claims)
        name = next((text for key in _NAMES if (text := readable(claims.get(key)))), "")
        issuer = metadata.issuer
        identity = person_id("oidc", issuer, subject)
        person = PersonRow(identity, "oidc", issuer, subject, name[:NAME_MAX])
        return SignedIn(person, id_token)

    def end_session_url(self, id_token: str | None, back: str) -> str:
        """Where the browser goes to sign out, "" if the provider has no such address.

        Raises ProviderFault.
        """
        endpoint = self.metadata().end_session_endpoint
        if not endpoint:
            return ""
        parameters = {
            "client_id": self._config.oidc_client_id,
            "post_logout_redirect_uri": back,
        }
        if id_token and len(id_token) <= ID_TOKEN_HINT_MAX:
            parameters["id_token_hint"] = id_token
        return str(add_params_to_uri(endpoint, parameters))

    def metadata(self) -> _Metadata:
        """The provider's description of itself. Raises ProviderFault."""
        metadata: _Metadata = self._answer(self._metadata)
        return metadata

    def check(self) -> None:
        """Ask the provider for its description and its keys. Raises ProviderFault."""
        self._answer(self._keys)

    def close(self) -> None:
        """Close the idle connections."""
        self._transport.close_idle()

    # --- requests ---------------------------------------------------------------------------------

    def _query(self, name: str, fetch: Callable[[UpstreamConnection], Any]) -> CachedQuery[Any]:
        return CachedQuery(
            name,
            fetch,
            answer_seconds=METADATA_SECONDS,
            fault_seconds=FAULT_SECONDS,
            timeout=ANSWER_SECONDS,
        )

    def _answer(self, query: CachedQuery[Any]) -> Any:
        """The query's answer, an older one if the provider does not answer now."""
        query.start()
        answer, fault = query.wait(now() + ANSWER_SECONDS + 1, fresh=True)
        if answer is None:
            raise fault if isinstance(fault, ProviderFault) else self._away("it is silent")
        return answer

    def _fetch_metadata(self, connection: UpstreamConnection) -> _Metadata:
        issuer = self._config.oidc_issuer
        url = f"{issuer.rstrip('/')}/.well-known/openid-configuration"
        value = self._get(connection, url, "its /.well-known/openid-configuration")
        named = value.get("issuer")
        if not isinstance(named, str) or named.rstrip("/") != issuer.rstrip("/"):
            raise ProviderFault(
                f"HALT_OIDC_ISSUER is {issuer!r}, but the provider there calls itself "
                f"{readable(named)!r}. Set HALT_OIDC_ISSUER to that."
            )
        addresses = {key: self._address(value, key) for key in _ENDPOINTS}
        for key in _ENDPOINTS[:3]:
            if not addresses[key]:
                raise ProviderFault(f"The description of {self.host} has no {key}.")
        scopes = value.get("scopes_supported")
        return _Metadata(
            issuer=named,
            auth_method=self._auth_method(value),
            scopes=frozenset(map(str, scopes if isinstance(scopes, list) else ())),
            **addresses,
        )

    def _address(self, value: _Json, key: str) -> str:
        """An address of the discovery document, "" if there is none. Raises ProviderFault."""
        address = value.get(key) or ""
        try:
            url = urlsplit(address)
            is_safe = url.scheme == "https" or is_loopback(url.hostname or "")
            if not address or (url.hostname and url.scheme in {"http", "https"} and is_safe):
                return str(address)
        except (AttributeError, TypeError, ValueError):
            pass
        raise ProviderFault(f"The {key} of {self.host} is no https:// address.")

    def _auth_method(self, value: _Json) -> str:
        if not self._config.oidc_client_secret:
            return "none"
        methods = value.get("token_endpoint_auth_methods_supported")
        if isinstance(methods, list) and "client_secret_basic" not in methods:
            return "client_secret_post"
        return "client_secret_basic"

    def _fetch_keys(self, connection: UpstreamConnection) -> KeySet:
        value = self._get(connection, self.metadata().jwks_uri, "its list of keys")
        listed = value.get("keys")
        keys: list[Key] = []
        for data in listed if isinstance(listed, list) else ():
            if not isinstance(data, dict) or data.get("kty") not in KEY_TYPES:
                continue
            try:  # a key that is not understood must not stop the others
                keys.append(import_key(data))
            except (JoseError, UnsupportedAlgorithm, ValueError, TypeError, KeyError):
                continue
        if not keys:
            raise ProviderFault(f"{self.host} publishes no key that Halt can use.")
        return KeySet(keys)

    def _get(self, connection: UpstreamConnection, url: str, what: str, bearer: str = "") -> _Json:
        """A JSON object of the provider. Raises ProviderFault."""
        headers = {"Authorization": f"Bearer {bearer}"} if bearer else {}
        try:
            response = self._client.get(url, headers={"Accept": "application/json", **headers})
            value = msgspec.json.decode(response.content) if response.status_code == 200 else None
        except (httpx2.HTTPError, httpx2.InvalidURL, Interrupted) as fault:
            raise self._away(_reason(fault, connection)) from fault
        except (msgspec.MsgspecError, UnicodeDecodeError):
            value = None
        if isinstance(value, dict):
            return value
        status = response.status_code
        reason = "is no JSON object" if status == 200 else f"has status {status}"
        raise ProviderFault(f"{self.host} does not answer as a provider does: {what} {reason}.")

    def _oauth(self, metadata: _Metadata, redirect_uri: str) -> OAuth2Client:
        """Authlib's client of one sign-in, which keeps what it is told."""
        return OAuth2Client(
            self._config.oidc_client_id,
            self._config.oidc_client_secret or None,
            token_endpoint_auth_method=metadata.auth_method,
            code_challenge_method="S256",
            redirect_uri=redirect_uri,
            transport=self._transport,
            timeout=None,
            headers={"User-Agent": f"halt/{VERSION}"},
        )

    def _redeem(
        self, metadata: _Metadata, attempt: Attempt, redirect_uri: str, code: str
    ) -> Mapping[str, Any]:
        """The tokens for a code."""
        with limited_connection(ANSWER_SECONDS) as connection:
            try:
                token: Mapping[str, Any] = self._oauth(metadata, redirect_uri).fetch_token(
                    metadata.token_endpoint, code=code, code_verifier=attempt.verifier
                )
            except AuthlibBaseError as fault:
                secrets = (code, attempt.verifier, self._config.oidc_client_secret)
                words = [readable(text, *secrets) for text in (fault.error, fault.description)]
                message = f"{self.host} does not accept Halt's request for the sign-in's tokens."
                raise SignInRefused(message, quoted=": ".join(filter(None, words))) from None
            except httpx2.HTTPStatusError as fault:
                status = fault.response.status_code
                raise self._away(f"status {status} for the sign-in's tokens") from None
            except (httpx2.HTTPError, Interrupted) as fault:
                raise self._away(_reason(fault, connection)) from None
            except (ValueError, TypeError):
                raise self._away("its tokens are no JSON object") from None
        return token

    def _userinfo(self, metadata: _Metadata, access_token: str) -> _Json:
        """What the provider says of a person beside the ID token.

        Nothing if it fails and Halt needs it for the name alone. Raises ProviderFault.
        """
        what, url = "its description of a person", metadata.userinfo_endpoint
        with limited_connection(ANSWER_SECONDS) as connection:
            try:
                info = self._get(connection, url, what, access_token)
                return info if "sub" in info else {**info, "sub": None}
            except ProviderFault as fault:
                if self._config.oidc_groups or self._config.oidc_domains:
                    raise
                logger.warning("a person signs in without a name: %s", fault.message)
                return {}

    def _away(self, reason: str) -> ProviderFault:
        return ProviderFault(f"The provider {self.host} does not answer: {reason}.")

    # --- checks -----------------------------------------------------------------------------------

    def _checked_claims(
        self, metadata: _Metadata, id_token: str, nonce: str, token: Mapping[str, Any]
    ) -> _Json:
        """What an ID token says, after all checks of OpenID Connect. Raises SignInRefused."""
        client_id = self._config.oidc_client_id
        try:
            decoded = self._decoded(id_token)
            claims = CodeIDToken(
                decoded.claims,
                decoded.header,
                {
                    "iss": {"essential": True, "value": metadata.issuer},
                    "sub": {"essential": True},
                    "aud": {"essential": True, "value": client_id},
                },
                {
                    "nonce": nonce,
                    "client_id": client_id,
                    "access_token": token.get("access_token"),
                },
            )
            claims.validate(leeway=SKEW)
        except (JoseError, UnsupportedAlgorithm, ValueError, TypeError, KeyError) as fault:
            raise self._refused(f"sent an ID token that {_wrong(fault)}.") from None
        return dict(claims)

    def _decoded(self, id_token: str) -> jwt.Token:
        """An ID token whose signature is right. Raises what joserfc raises, ProviderFault."""
        keys = self._answer(self._keys)
        try:
            return jwt.decode(id_token, keys, registry=self._registry)
        except InvalidKeyIdError:  # the provider may have new keys
            with self._lock:
                if now() - self._refetched_at < KEYS_EVERY:
                    raise
                self._refetched_at = now()
        self._keys.expire()
        return jwt.decode(id_token, self._answer(self._keys), registry=self._registry)

    def _refused(self, reason: str) -> SignInRefused:
        return SignInRefused(f"{self.host} {reason}")

    def _lacks(self, claims: Mapping[str, Any]) -> bool:
        """Whether the ID token lacks what Halt needs to know."""
        needed = [not claims.keys().isdisjoint(_NAMES)]
        if self._config.oidc_groups:
            needed.append("groups" in claims)
        if self._config.oidc_domains:
            needed.append(claims.keys() >= _EMAIL)
        return not all(needed)

    def _check_allowed(self, claims: Mapping[str, Any]) -> None:
        """Raise SignInRefused unless HALT_OIDC_GROUPS and HALT_OIDC_DOMAINS let the person in."""
        allowed = set(self._config.oidc_groups)
        groups = claims.get("groups")
        if allowed and groups is None:
            raise SignInRefused(
                f"Groups may use this Halt, but {self.host} does not say which groups you are in. "
                "Its administrator must add the claim `groups` for Halt's client."
            )
        has = {groups} if isinstance(groups, str) else groups if isinstance(groups, list) else ()
        if allowed and not any(group in allowed for group in has if isinstance(group, str)):
            raise SignInRefused("You are not in a group that may use this Halt.")
        domains = {domain.lower() for domain in self._config.oidc_domains}
        if not domains:
            return
        email = claims.get("email")
        name, _, domain = email.rpartition("@") if isinstance(email, str) else ("", "", "")
        if not name or domain.lower() not in domains:
            raise SignInRefused("Your email address is not of a domain that may use this Halt.")
        if claims.get("email_verified") is not True:
            raise SignInRefused(
                f"Your email address is of a domain that may use this Halt, but {self.host} does "
                "not say that it is verified."
            )


_ENDPOINTS = (
    "authorization_endpoint",
    "token_endpoint",
    "jwks_uri",
    "userinfo_endpoint",
    "end_session_endpoint",
)
_EMAIL = frozenset({"email", "email_verified"})
_NAMES = ("name", "preferred_username", "email")  # claims of which the first is shown


class _WholeAnswers(httpx2.BaseTransport):
    """Reads each answer as a whole, up to a limit. Its clients cannot close the connections."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        response = self._transport.handle_request(request)
        body = response.extensions["halt.body"]
        assert isinstance(body, Body)  # noqa: S101 - for the type checker
        try:
            content = body.read_all(REFUSAL_MAX)
        finally:
            body.close()
        if content is None:
            raise httpx2.ReadError(f"more than {REFUSAL_MAX} bytes", request=request)
        headers = response.headers.copy()
        for name in ("content-length", "transfer-encoding"):
            headers.pop(name, None)
        return httpx2.Response(
            response.status_code, headers=headers, content=content, request=request
        )

    def close_idle(self) -> None:
        self._transport.close()


def _reason(fault: Exception, connection: UpstreamConnection) -> str:
    """Why the provider could not be reached, without the request."""
    if connection.interrupted or isinstance(fault, (Interrupted, httpx2.TimeoutException)):
        return "not in time"
    cause = fault.__cause__
    text = cause.strerror if isinstance(cause, OSError) else str(fault)
    return readable(text) or type(fault).__name__


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
