"""The provider of OpenID Connect as Halt's client sees it: what it accepts, and when it asks."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import parse_qsl, urlsplit

import pytest
from joserfc.jwk import ECKey, OKPKey

from halt.config.environment import load
from halt.config.settings import ConfigError
from halt.people.oidc import claims, endpoints
from halt.people.oidc.attempt import (
    OVER,
    QUOTED_MAX,
    Attempt,
    ProviderFault,
    SignInRefused,
    readable,
)
from halt.people.oidc.provider import Provider, SignedIn
from halt.people.person import person_id
from tests.support.oidc_provider import OidcProvider, consent
from tests.support.raw_server import RawServer, answering
from tests.support.waiting import BackgroundCall, wait_until

BACK = "http://127.0.0.1:1/login/oidc/callback"
ATTEMPT = Attempt("a-state", "a-nonce", "a-verifier-of-43-characters-or-more-012345678")


@pytest.fixture
def server() -> Iterator[OidcProvider]:
    with OidcProvider() as running:
        yield running


@pytest.fixture
def provider(server: OidcProvider) -> Iterator[Provider]:
    client = Provider(load(server.settings))
    yield client
    client.close()


def code_for(provider: Provider) -> str:
    """The code that the server gives for an attempt."""
    address = consent(provider.authorization_url(ATTEMPT, BACK))
    return dict(parse_qsl(urlsplit(address).query))["code"]


def answers(provider: Provider) -> bool:
    """Whether the server describes itself in time."""
    try:
        return bool(provider.authorization_url(ATTEMPT, BACK))
    except ProviderFault:
        return False


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirect_of_a_provider_is_not_followed(server: OidcProvider, status: int) -> None:
    """A redirect of the discovery document is a fault: nothing is requested elsewhere."""
    moved = b"HTTP/1.1 %d Moved\r\nLocation: %b/x\r\nContent-Length: 0\r\n\r\n"
    with RawServer(answering(moved % (status, server.issuer.encode()))) as raw_server:
        issuer = raw_server.url.removesuffix("/v1")
        client = Provider(load(server.settings | {"HALT_OIDC_ISSUER": issuer}))
        with pytest.raises(ProviderFault, match=f"has status {status}"):
            client.authorization_url(ATTEMPT, BACK)
        client.close()


def test_provider_at_a_link_local_address_is_refused(server: OidcProvider) -> None:
    """The fault says what the host resolves to, and which setting allows it."""
    client = Provider(load(server.settings | {"HALT_OIDC_ISSUER": "https://2852039166"}))
    with pytest.raises(ProviderFault, match=r"link-local address .* HALT_ALLOW_LINK_LOCAL=1"):
        client.authorization_url(ATTEMPT, BACK)
    client.close()


@pytest.mark.filterwarnings("ignore:EdDSA is deprecated")
@pytest.mark.parametrize("alg", claims.ALGORITHMS)
def test_signature_is_accepted(server: OidcProvider, provider: Provider, alg: str) -> None:
    """An ID token may be signed in each of these ways; the person is its issuer and subject."""
    server.alg = alg
    if alg == "ES256":
        server.key = ECKey.generate_key("P-256", {"kid": "curve"})
    elif alg.startswith("Ed"):
        server.key = OKPKey.generate_key("Ed25519", {"kid": "edwards"})
    person = provider.sign_in(ATTEMPT, BACK, code_for(provider)).person
    assert person.id == person_id("oidc", server.issuer, "ada-1")
    assert (person.mode, person.issuer, person.name) == ("oidc", server.issuer, "Ada Lovelace")


@pytest.mark.parametrize("method", ["client_secret_basic", "client_secret_post", "none"])
def test_client_proves_itself_as_the_provider_wants(server: OidcProvider, method: str) -> None:
    """The secret goes where the provider expects it; a public client has none."""
    server.auth_method = method
    secret = {} if method != "none" else {"HALT_OIDC_CLIENT_SECRET": ""}
    provider = Provider(load(server.settings | secret))
    assert provider.sign_in(ATTEMPT, BACK, code_for(provider)).id_token
    provider.close()


def test_issuer_may_lack_its_last_slash(server: OidcProvider) -> None:
    """A slash at the end of HALT_OIDC_ISSUER makes nobody another person."""
    provider = Provider(load(server.settings | {"HALT_OIDC_ISSUER": f"{server.issuer}/"}))
    person = provider.sign_in(ATTEMPT, BACK, code_for(provider)).person
    assert person.id == person_id("oidc", server.issuer, "ada-1")
    provider.close()


@pytest.mark.parametrize("subject", ["", "x" * 256, "\u202e", "a\0b", 7, None])
def test_malformed_subject_is_refused(
    server: OidcProvider, provider: Provider, subject: object
) -> None:
    """A subject that the database could not keep is nobody."""
    server.claims["sub"] = subject
    with pytest.raises(SignInRefused):
        provider.sign_in(ATTEMPT, BACK, code_for(provider))


def test_name_alone_keeps_nobody_out(server: OidcProvider, provider: Provider) -> None:
    """Where the details of a person are away, the person signs in without a name."""
    server.claims = {"sub": "ada-1"}
    server.info = {"name": "\u200b", "preferred_username": "a\u202eda"}
    assert provider.sign_in(ATTEMPT, BACK, code_for(provider)).person.name == "ada"
    server.faults.add("no details")
    other = Attempt("another-state", ATTEMPT.nonce, ATTEMPT.verifier)
    assert provider.sign_in(other, BACK, code_for(provider)).person.name == ""
    narrow = Provider(load(server.settings | {"HALT_OIDC_GROUPS": "family"}))
    with pytest.raises(ProviderFault, match="its description of a person has status 500"):
        narrow.sign_in(ATTEMPT, BACK, code_for(narrow))
    narrow.close()


def test_address_and_its_verification_come_together(server: OidcProvider) -> None:
    """That one address is verified does not count for another one."""
    provider = Provider(load(server.settings | {"HALT_OIDC_DOMAINS": "example.com"}))
    server.claims["email"] = "ada@example.com"
    server.info = {"email": "ada@example.org", "email_verified": True}
    with pytest.raises(SignInRefused, match="is not of a domain"):
        provider.sign_in(ATTEMPT, BACK, code_for(provider))
    provider.close()


def test_first_requests_share_one_answer(server: OidcProvider, provider: Provider) -> None:
    """Of several first requests one asks the provider, and all take its answer."""
    server.faults.add("silent")
    calls = [BackgroundCall(lambda: provider.authorization_url(ATTEMPT, BACK)) for _ in range(4)]
    wait_until(lambda: server.paths)
    server.released.set()
    for call in calls:
        assert call.end() is None
        assert str(call.result).startswith(f"{server.issuer}/authorization?")
    assert server.paths == ["/.well-known/openid-configuration"]


def test_silent_provider_is_given_up(server: OidcProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    """A provider that accepts the connection and is silent is given up after ANSWER_SECONDS; a
    later request asks it again.
    """
    monkeypatch.setattr(endpoints, "ANSWER_SECONDS", 0.2)
    monkeypatch.setattr(endpoints, "FAULT_SECONDS", 0.0)
    provider = Provider(load(server.settings))
    server.faults.add("silent")
    with pytest.raises(ProviderFault, match="does not answer: not in time"):
        provider.authorization_url(ATTEMPT, BACK)
    server.faults.clear()
    server.released.set()
    wait_until(lambda: answers(provider))
    provider.close()


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("huge", "does not answer: more than"),
        ("plain", "The token_endpoint of .* is no https:// address"),
        ("other metadata", "the provider there calls itself 'http://127.0.0.1:1'"),
    ],
)
def test_wrong_description_is_named(
    server: OidcProvider, provider: Provider, fault: str, words: str
) -> None:
    """A description that is too long, of another issuer or with an open address is not used."""
    server.faults.add(fault)
    with pytest.raises(ProviderFault, match=words):
        provider.authorization_url(ATTEMPT, BACK)


def test_attempt_is_used_once(provider: Provider) -> None:
    """Of two answers at once with one state, one signs in."""
    code = code_for(provider)
    calls = [BackgroundCall(lambda: provider.sign_in(ATTEMPT, BACK, code)) for _ in range(2)]
    faults = [call.end() for call in calls]
    assert [str(fault) for fault in faults if fault] == [OVER]
    assert [type(call.result) for call in calls if call.result] == [SignedIn]


def test_provider_s_words_are_one_bounded_line() -> None:
    """Words of a provider have one line, a limit, and no secret."""
    assert readable("a\r\n\x1b[31m b the-code", "the-code", "") == "a [31m b …"
    assert len(readable("x " * 1000)) <= QUOTED_MAX
    assert readable(None) == readable(7) == ""


def test_secret_must_fit_a_header() -> None:
    """A client secret or ID that cannot be sent is named at the start, without its value."""
    needed = {"HALT_OIDC_ISSUER": "https://login.example.com", "HALT_OIDC_CLIENT_ID": "halt"}
    with pytest.raises(ConfigError, match="HALT_OIDC_CLIENT_SECRET holds a space") as raised:
        load(needed | {"HALT_OIDC_CLIENT_SECRET": "sécret"})
    assert "sécret" not in str(raised.value)
