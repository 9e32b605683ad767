"""The provider's addresses, and Halt's requests to them.

No request is longer than ANSWER_SECONDS, and no answer larger than REFUSAL_MAX.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx2
import msgspec
from authlib.common.errors import AuthlibBaseError
from authlib.integrations.httpx_client import OAuth2Client
from cryptography.exceptions import UnsupportedAlgorithm
from joserfc.errors import JoseError
from joserfc.jwk import Key, KeySet, import_key

from halt import VERSION
from halt.clock import now
from halt.config.addresses import is_loopback
from halt.config.settings import Config
from halt.core.connection import UpstreamConnection, limited_connection
from halt.errors import Interrupted
from halt.people.oidc.attempt import Attempt, ProviderFault, SignInRefused, readable
from halt.providers.cached_query import CachedQuery
from halt.transport.http1 import REFUSAL_MAX, Body
from halt.transport.pool import Transport

KEY_TYPES = frozenset({"RSA", "EC", "OKP"})
ANSWER_SECONDS = 10.0  # for each answer of the provider
CONNECT_SECONDS = 5.0
METADATA_SECONDS = 3600.0  # after which the provider's description and keys are fetched again
FAULT_SECONDS = 1.0  # during which a failed attempt's fault is the answer
KEYS_EVERY = 30.0  # seconds between two fetches of the keys for tokens with an unknown one
_ENDPOINTS = (
    "authorization_endpoint",
    "token_endpoint",
    "jwks_uri",
    "userinfo_endpoint",
    "end_session_endpoint",
)

T = TypeVar("T")
Json = dict[str, Any]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Metadata:
    """What the provider says of itself in its discovery document."""

    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str
    userinfo_endpoint: str
    end_session_endpoint: str
    auth_method: str  # by which Halt proves at the token endpoint that it is the client
    scopes: frozenset[str]


class Endpoints:
    """The provider of HALT_OIDC_ISSUER. Threads share it.

    Its description and its keys are fetched when they are first needed, so that Halt starts while
    it is away. Of two first requests one fetches, and both take the result, also if it is a fault.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self.host = urlsplit(config.oidc_issuer).netloc.rpartition("@")[2]
        self._transport = _WholeAnswers(
            Transport(CONNECT_SECONDS, allow_link_local=config.allow_link_local)
        )
        self._client = httpx2.Client(
            transport=self._transport, timeout=None, headers={"User-Agent": f"halt/{VERSION}"}
        )
        self._metadata = _query("oidc-provider", self._fetch_metadata)
        self._keys = _query("oidc-keys", self._fetch_keys)
        self._lock = threading.Lock()  # protects the time below
        self._refetched_at = float("-inf")  # the keys, for a token with an unknown one

    def metadata(self) -> Metadata:
        """The provider's description of itself. Raises ProviderFault."""
        return self._answer(self._metadata)

    def keys(self) -> KeySet:
        """The keys that the provider publishes. Raises ProviderFault."""
        return self._answer(self._keys)

    def new_keys(self) -> KeySet | None:
        """The keys, fetched now; None if they were a short while ago. Raises ProviderFault."""
        with self._lock:
            if now() - self._refetched_at < KEYS_EVERY:
                return None
            self._refetched_at = now()
        self._keys.expire()
        return self.keys()

    def close(self) -> None:
        """Close the idle connections."""
        self._transport.close_idle()

    def client(self, metadata: Metadata, redirect_uri: str) -> OAuth2Client:
        """Authlib's client for one sign-in, whose state it keeps."""
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

    def tokens(
        self, metadata: Metadata, attempt: Attempt, redirect_uri: str, code: str
    ) -> Mapping[str, Any]:
        """The tokens for a code. Raises SignInRefused, ProviderFault."""
        with limited_connection(ANSWER_SECONDS) as connection:
            try:
                token: Mapping[str, Any] = self.client(metadata, redirect_uri).fetch_token(
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

    def userinfo(self, metadata: Metadata, access_token: str) -> Json:
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

    def _answer(self, query: CachedQuery[T]) -> T:
        """The query's answer, an older one if the provider does not answer now."""
        query.start()
        answer, fault = query.wait(now() + ANSWER_SECONDS + 1, fresh=True)
        if answer is None:
            raise fault if isinstance(fault, ProviderFault) else self._away("it is silent")
        return answer

    def _fetch_metadata(self, connection: UpstreamConnection) -> Metadata:
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
        return Metadata(
            issuer=named,
            auth_method=self._auth_method(value),
            scopes=frozenset(map(str, scopes if isinstance(scopes, list) else ())),
            **addresses,
        )

    def _address(self, value: Json, key: str) -> str:
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

    def _auth_method(self, value: Json) -> str:
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

    def _get(self, connection: UpstreamConnection, url: str, what: str, bearer: str = "") -> Json:
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

    def _away(self, reason: str) -> ProviderFault:
        return ProviderFault(f"The provider {self.host} does not answer: {reason}.")


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


def _query(name: str, fetch: Callable[[UpstreamConnection], T]) -> CachedQuery[T]:
    return CachedQuery(
        name,
        fetch,
        answer_seconds=METADATA_SECONDS,
        fault_seconds=FAULT_SECONDS,
        timeout=ANSWER_SECONDS,
    )


def _reason(fault: Exception, connection: UpstreamConnection) -> str:
    """Why the provider could not be reached, without the request."""
    if connection.interrupted or isinstance(fault, (Interrupted, httpx2.TimeoutException)):
        return "not in time"
    cause = fault.__cause__
    text = cause.strerror if isinstance(cause, OSError) else str(fault)
    return readable(text) or type(fault).__name__
