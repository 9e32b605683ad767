"""Sign-in by OpenID Connect: the way to the provider and back, and each fault on it."""

from __future__ import annotations

import contextlib
import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from html import unescape
from urllib.parse import parse_qsl, urlsplit

import pytest

from halt.testing.fake_openai import FakeOpenAI
from tests.support.halt_server import HaltServer, StartHalt, settings
from tests.support.http_client import Client, HttpResponse
from tests.support.oidc_provider import CLIENT_ID, CLIENT_SECRET, OidcProvider, consent
from tests.support.waiting import SERVER_TIMEOUT, wait_until

FORM = "application/x-www-form-urlencoded"
PAGE = "text/html"


@pytest.fixture
def provider() -> Iterator[OidcProvider]:
    with OidcProvider() as server:
        yield server


@pytest.fixture(scope="module")
def shared_provider() -> Iterator[OidcProvider]:
    with OidcProvider() as server:
        yield server


@pytest.fixture(scope="module")
def halt(shared_fake: FakeOpenAI, shared_provider: OidcProvider) -> Iterator[HaltServer]:
    """A Halt whose provider behaves; tests set `faults` for the time of a sign-in."""
    server = HaltServer(settings(shared_fake, **shared_provider.settings))
    yield server
    server.close()


@pytest.fixture
def faulty(shared_provider: OidcProvider) -> Iterator[OidcProvider]:
    """The provider of `halt`, which behaves again after the test."""
    claims = dict(shared_provider.claims)
    yield shared_provider
    shared_provider.faults.clear()
    shared_provider.claims, shared_provider.info = claims, {}


def local(address: str) -> str:
    """Path and query of an address."""
    url = urlsplit(address)
    return f"{url.path}?{url.query}" if url.query else url.path


def begin(browser: Client, path: str = "/login/oidc") -> str:
    """Begin a sign-in; the address at the provider."""
    response = browser.get(path, Accept=PAGE)
    assert response.status == 302, response
    return response.headers["location"]


def sign_in(browser: Client, path: str = "/login/oidc") -> HttpResponse:
    """Sign in; the answer to the way back."""
    return browser.get(local(consent(begin(browser, path))), Accept=PAGE)


def is_signed_in(browser: Client) -> bool:
    return browser.get("/", Accept=PAGE).status == 200


def text_of(page: HttpResponse) -> str:
    """The text of a page."""
    body = page.body.decode().partition("<body")[2]
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", body)).split())


def assert_refused(server: HaltServer, provider: OidcProvider, status: int, words: str) -> str:
    """Sign in, which must fail with these words; nobody is signed in, no secret is shown."""
    browser, before = server.client(), server.printed
    count = before.count("a sign-in was refused") + 1
    page = sign_in(browser)
    text = text_of(page)
    assert page.status == status
    assert words in text
    assert "Try again" in text
    assert not is_signed_in(browser)
    server.wait_printed(rf"(?s)(?:a sign-in was refused.*){{{count}}}\n")
    log = server.printed.removeprefix(before)
    assert "Traceback" not in log
    assert log.count("a sign-in was refused") == 1
    for secret in (*provider.issued, CLIENT_SECRET):
        assert secret not in log
        assert secret not in page.body.decode()
    return text


def test_sign_in_returns_to_the_page_that_was_asked_for(
    halt: HaltServer, shared_provider: OidcProvider
) -> None:
    """A page leads to the link, the link to the provider, and its answer back to that page."""
    browser = halt.client()
    asked = browser.get("/docs?x=1", Accept=PAGE)
    assert asked.status == 302
    page = browser.get(asked.headers["location"])
    assert f"Sign in with {shared_provider.host}" in text_of(page)
    link = unescape(re.findall(r'href="(/login/oidc[^"]*)"', page.body.decode())[0])
    back = sign_in(browser, link)
    assert (back.status, back.headers["location"]) == (302, "/docs?x=1")
    assert is_signed_in(browser)
    assert browser.get("/login").headers["location"] == "/"


@pytest.mark.parametrize("path", ["//evil.example", "/\\evil.example", "https://evil.example", "x"])
def test_sign_in_returns_to_halt_alone(halt: HaltServer, path: str) -> None:
    """A path to return to that could lead to another server is forgotten."""
    assert sign_in(halt.client(), f"/login/oidc?next={path}").headers["location"] == "/"


def test_person_is_issuer_and_subject(halt: HaltServer, faulty: OidcProvider) -> None:
    """A person has the same chats in each browser, under any name and address; others do not."""
    first, second, other = halt.client(), halt.client(), halt.client()
    faulty.claims |= {"email": "ada@example.com"}
    sign_in(first)
    path = "/c/of-ada-00000001"
    sent = first.post(f"{path}/messages", b"prompt=Hello&model=count?n=1", Content_Type=FORM)
    assert sent.status == 200
    faulty.claims |= {"name": "A. Lovelace", "email": "lovelace@example.com"}
    sign_in(second)
    assert second.get(path).status == 200
    faulty.claims |= {"sub": "somebody-1", "email": "ada@example.com"}
    sign_in(other)
    assert other.get(path).status == 404


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("audience", "is for another client"),
        ("party", "is for another client"),
        ("issuer", "comes from another issuer"),
        ("nonce", "belongs to another sign-in"),
        ("expired", "has expired: compare the clocks"),
        ("future", "was issued in the future: compare the clocks"),
        ("none", "is not signed in one of the ways RS256, PS256, ES256, EdDSA"),
        ("HS256", "is not signed in one of the ways RS256, PS256, ES256, EdDSA"),
        ("signature", "has a wrong signature"),
        ("wrong verifier", "“invalid_grant: The verifier is wrong.”"),
        ("denied", "“access_denied: The <b>owner</b> said no.”"),
    ],
)
def test_fault_of_the_provider_signs_nobody_in(
    halt: HaltServer, faulty: OidcProvider, fault: str, words: str
) -> None:
    """Each wrong answer is refused, with the reason on the page and in one line of the log."""
    faulty.faults.add(fault)
    assert_refused(halt, faulty, 403, words)


def test_token_within_the_skew_is_accepted(halt: HaltServer, faulty: OidcProvider) -> None:
    """Clocks may differ by a minute."""
    faulty.faults.add("skew")
    assert sign_in(halt.client()).status == 302


def test_new_key_of_the_provider_is_fetched(
    start_halt: StartHalt, shared_fake: FakeOpenAI, provider: OidcProvider
) -> None:
    """After a rotation the keys are fetched once more; unknown keys do not flood the provider."""
    server = start_halt(shared_fake, **provider.settings)
    assert sign_in(server.client()).status == 302
    provider.rotate()
    assert sign_in(server.client()).status == 302
    provider.faults.add("unknown key")
    for _ in range(2):
        assert_refused(server, provider, 403, "with a key that the provider does not publish")
    assert provider.paths.count("/keys") == 2


def test_replayed_answer_of_the_provider_is_refused(halt: HaltServer) -> None:
    """The way back signs in once, also with the cookie from before. Opened again by Back or a reload
    it leads the signed-in browser to the page.
    """
    browser = halt.client()
    back = local(consent(begin(browser)))
    cookies = dict(browser.cookies)
    for _ in range(2):
        answer = browser.get(back, Accept=PAGE)
        assert (answer.status, answer.headers["location"]) == (302, "/")
    assert is_signed_in(browser)
    thief = halt.client()
    thief.cookies = cookies
    assert "it is over already" in text_of(thief.get(back, Accept=PAGE))
    assert not is_signed_in(thief)
    browser.post("/logout", b"", Content_Type=FORM)
    assert "it is over already" in text_of(browser.get(back, Accept=PAGE))


def test_used_code_is_refused_with_another_state(
    halt: HaltServer, shared_provider: OidcProvider
) -> None:
    """A code of another sign-in is refused: by the provider, whose words leave the code out."""
    browser = halt.client()
    used = dict(parse_qsl(urlsplit(consent(begin(browser))).query))
    other = dict(parse_qsl(urlsplit(begin(browser)).query))
    page = browser.get(
        f"/login/oidc/callback?code={used['code']}&state={other['state']}", Accept=PAGE
    )
    assert page.status == 403
    assert "“invalid_grant: The verifier is wrong.”" in text_of(page)
    page = browser.get(
        f"/login/oidc/callback?code={used['code']}&state={used['state']}", Accept=PAGE
    )
    assert "“invalid_grant: … was used.”" in text_of(page)
    assert not is_signed_in(browser)


def test_state_of_another_browser_is_refused(halt: HaltServer) -> None:
    """Nobody can sign a browser in as somebody else by a link with an answer of the provider."""
    attacker, victim = halt.client(), halt.client()
    back = local(consent(begin(attacker)))
    begin(victim)
    page = victim.get(back, Accept=PAGE)
    assert page.status == 403
    assert not is_signed_in(victim)
    for query in ("", "?state=", "?state=%C3%A9&code=x", "?error=x&error_description=Call+me"):
        page = victim.get(f"/login/oidc/callback{query}", Accept=PAGE)
        assert page.status == 403
        assert "Call me" not in text_of(page)


def test_two_tabs_sign_in_at_once(halt: HaltServer) -> None:
    """A browser may begin five sign-ins and end them in any order; the oldest beyond is refused."""
    browser = halt.client()
    ways = [local(consent(begin(browser))) for _ in range(6)]
    assert [browser.get(way, Accept=PAGE).status for way in ways] == [403, *[302] * 5]
    assert is_signed_in(browser)


def test_cookie_of_another_halt_is_no_sign_in(
    halt: HaltServer, start_halt: StartHalt, shared_fake: FakeOpenAI, shared_provider: OidcProvider
) -> None:
    """A sign-in, or one that has begun, is not valid at another Halt with the same provider."""
    browser, stranger = halt.client(), None
    back = local(consent(begin(browser)))
    begun = dict(browser.cookies)
    browser.get(back, Accept=PAGE)
    other = start_halt(shared_fake, **shared_provider.settings)
    stranger = other.client()
    stranger.get("/login")
    for cookies in (begun, browser.cookies):
        values = list(cookies.values())
        stranger.cookies |= cookies | dict.fromkeys(stranger.cookies, values[0])
        assert stranger.get(back, Accept=PAGE).status == 403
        assert not is_signed_in(stranger)


def test_groups_and_domains_are_both_needed(
    start_halt: StartHalt, shared_fake: FakeOpenAI, provider: OidcProvider
) -> None:
    """With both settings a person needs one of the groups, and a verified address of a domain."""
    server = start_halt(
        shared_fake,
        **provider.settings,
        HALT_OIDC_GROUPS="staff, family",
        HALT_OIDC_DOMAINS="example.com",
    )
    assert "groups" in dict(parse_qsl(urlsplit(begin(server.client())).query))["scope"].split()
    verified = {"email": "ada@Example.com", "email_verified": True}
    for claims, words in (
        ({**verified}, "does not say which groups you are in"),
        ({**verified, "groups": ["guests", 7]}, "You are not in a group that may use this Halt."),
        ({"groups": ["staff"]}, "not of a domain that may use this Halt"),
        ({**verified, "groups": "staff", "email": "ada@not-example.com"}, "not of a domain"),
        ({**verified, "groups": "staff", "email": "ada@sub.example.com"}, "not of a domain"),
        ({**verified, "groups": "staff", "email": "@example.com"}, "not of a domain"),
        ({**verified, "groups": "staff", "email_verified": "true"}, "not say that it is verified"),
    ):
        provider.info = claims
        text = assert_refused(server, provider, 403, words)
        assert "Sign in as someone else" in text
    provider.info = {**verified, "groups": ["guests", "family"]}
    assert sign_in(server.client()).status == 302
    provider.faults.add("details")
    assert_refused(server, provider, 403, "with the details of another person")
    provider.claims |= provider.info  # now the ID token has all of it
    assert sign_in(server.client()).status == 302


def test_provider_that_is_away_delays_no_start(
    start_halt: StartHalt, shared_fake: FakeOpenAI
) -> None:
    """Halt starts without its provider, says that it does not answer, and goes on when it does."""
    with OidcProvider() as provider:
        pass  # its port is free now
    server = start_halt(shared_fake, **provider.settings)
    browser = server.client()
    page = browser.get("/login/oidc?next=/docs", Accept=PAGE)
    assert page.status == 503
    assert f"The provider {provider.host} does not answer: Connection refused." in text_of(page)
    assert 'href="/login/oidc?next=/docs"' in page.body.decode()
    assert "Traceback" not in server.printed


@pytest.mark.parametrize(
    ("fault", "words"),
    [("other metadata", "calls itself 'http://127.0.0.1:1'"), ("broken", "status 502")],
)
def test_fault_of_the_provider_at_the_first_sign_in_is_named(
    start_halt: StartHalt,
    shared_fake: FakeOpenAI,
    provider: OidcProvider,
    fault: str,
    words: str,
) -> None:
    """A provider of another name, or one behind a broken gateway, is named with the fault."""
    server = start_halt(shared_fake, **provider.settings)
    provider.faults.add(fault)
    browser = server.client()
    page = browser.get("/login/oidc", Accept=PAGE)
    if page.status == 302:
        back = local(consent(page.headers["location"]))
        page = browser.get(back, Accept=PAGE)
    assert page.status == 503
    assert words in text_of(page)
    assert "Traceback" not in server.printed


def test_sign_in_ends_after_its_hours(
    start_halt: StartHalt, shared_fake: FakeOpenAI, provider: OidcProvider
) -> None:
    """After HALT_SIGN_IN_HOURS the browser is led to the sign-in again."""
    server = start_halt(shared_fake, **provider.settings, HALT_SIGN_IN_HOURS=0.5)
    browser = server.client()
    sign_in(browser)
    assert is_signed_in(browser)
    with contextlib.closing(sqlite3.connect(server.data_folder / "halt.db")) as database, database:
        (created_at, until) = database.execute("SELECT created_at, until FROM sign_ins").fetchone()
        assert until - created_at == pytest.approx(1800)
        database.execute("UPDATE sign_ins SET until = ?", (created_at,))  # its time is over
    wait_until(lambda: not is_signed_in(browser), SERVER_TIMEOUT)
    assert browser.get("/", Accept=PAGE).headers["location"] == "/login"


def test_sign_out_needs_no_provider(
    start_halt: StartHalt, shared_fake: FakeOpenAI, provider: OidcProvider
) -> None:
    """Where the provider has no address to sign out, the page leads to a new sign-in alone."""
    provider.faults.add("no end")
    server = start_halt(shared_fake, **provider.settings)
    browser = server.client()
    sign_in(browser)
    page = browser.post("/logout", b"", Content_Type=FORM, Accept=PAGE)
    assert page.status == 200
    assert not is_signed_in(browser)
    assert re.findall(r'<a [^>]*href="([^"]*)"', page.body.decode()) == ["/login"]


def test_sign_out_leads_to_the_provider(halt: HaltServer, faulty: OidcProvider) -> None:
    """To sign out ends the sign-in here and answers a page whose link ends it at the provider."""
    browser = halt.client()
    sign_in(browser)
    page = browser.post("/logout", b"", Content_Type=FORM, Accept=PAGE)
    assert page.status == 200
    assert not is_signed_in(browser)
    link = unescape(re.findall(r'href="(http[^"]*end_session[^"]*)"', page.body.decode())[0])
    query = dict(parse_qsl(urlsplit(link).query))
    assert query["client_id"] == CLIENT_ID
    assert query["id_token_hint"] in faulty.issued
    assert query["post_logout_redirect_uri"] == f"{halt.url}/login"


def test_address_of_the_way_back_follows_the_proxy(
    start_halt: StartHalt, shared_fake: FakeOpenAI, provider: OidcProvider
) -> None:
    """Behind a trusted proxy with TLS, and under a path, the provider leads back to that address."""
    server = start_halt(
        shared_fake, **provider.settings, HALT_TRUSTED_PROXIES=1, SCRIPT_NAME="/halt"
    )
    browser = server.client(**{"X-Forwarded-Proto": "https", "Host": "chat.example.com"})
    address = begin(browser, "/halt/login/oidc?next=/docs")
    query = dict(parse_qsl(urlsplit(address).query))
    assert query["redirect_uri"] == "https://chat.example.com/halt/login/oidc/callback"
    back = browser.get(local(consent(address)), Accept=PAGE)
    assert back.headers["location"] == "/halt/docs"


def test_libraries_are_imported_where_they_are_needed() -> None:
    """A Halt with another way to know people does not import the libraries of this one."""
    code = "import halt.wsgi, sys; print(sorted({'authlib', 'joserfc'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
