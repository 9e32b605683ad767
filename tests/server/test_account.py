"""The account page: sign-ins and API tokens of one person alone, and an administrator's counts."""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlencode

import pytest

from halt.app import create_app
from halt.config.environment import load
from halt.people.known import digest_of
from halt.store.sign_ins import API_TOKENS_MAX
from halt.testing.fake_openai import FakeOpenAI
from halt.web.services import services
from tests.support.halt_server import HaltServer, StartHalt, new_id, settings
from tests.support.http_client import Client, HttpResponse
from tests.support.page_requests import FORM_HEADERS
from tests.support.ports import free_port
from tests.support.server_people import ServerPeople
from tests.support.waiting import SERVER_TIMEOUT, wait_until
from tests.support.websocket_client import WebSocket

PHONE = "Mozilla/5.0 (iPhone; CPU iPhone OS 18_5 like Mac OS X) Version/18.5 Mobile Safari/604.1"
TOKEN = re.compile(rb"halt_[\w-]{43}")
EVERY_WORKER = 8  # requests, of which both workers get some


@pytest.fixture(scope="module")
def server(shared_fake: FakeOpenAI) -> Iterator[HaltServer]:
    """A Halt of two workers whose people have accounts."""
    server = HaltServer(settings(shared_fake, HALT_USERS=1, WEB_CONCURRENCY=2))
    yield server
    server.close()


@pytest.fixture(scope="module")
def people(server: HaltServer) -> Iterator[ServerPeople]:
    """The people of that Halt."""
    with closing(ServerPeople(server)) as people:
        yield people


@pytest.fixture
def alice(people: ServerPeople) -> str:
    """The ID of a new person."""
    return people.add("Alice")


@pytest.fixture
def bob(people: ServerPeople) -> str:
    """The ID of another new person."""
    return people.add("Bob")


def send(browser: Client, action: str, **fields: str) -> HttpResponse:
    """Send a form of the account page."""
    body = urlencode({"do": action, **fields}).encode()
    return browser.request("POST", "/account", body, FORM_HEADERS)


def ids(browser: Client, kind: str) -> list[str]:
    """The IDs of the page's sign-ins or tokens, in order."""
    page = browser.get("/account").body.decode()
    return re.findall(rf'id="{kind}-([0-9a-f]{{18}})"', page)


def make_token(browser: Client, name: str = "Script") -> str:
    """Make an API token on the page; returns it."""
    response = send(browser, "make", name=name, form=new_id()[:32])
    assert response.status == 200, response
    (token,) = set(TOKEN.findall(response.body))
    return str(token.decode())


def is_signed_in(browser: Client) -> bool:
    """Whether the browser's next request for a page is answered with it."""
    response = browser.get("/account")
    assert response.status in {200, 302}, response
    return response.status == 200


def program(server: HaltServer, token: str) -> Client:
    """A program that sends the token."""
    return server.client(Authorization=f"Bearer {token}")


def test_account_without_sign_ins_does_not_exist(halt: HaltServer) -> None:
    """Where browsers are strangers there is no account page, and no link to one."""
    browser = halt.client(Accept="text/html")
    assert b"/account" not in browser.get("/").body
    assert browser.get("/account").status == 404
    assert send(browser, "make", name="Script").status == 404


def test_account_without_sign_in_asks_for_one(server: HaltServer) -> None:
    """A browser that is not signed in is led to the login page, which returns to the account."""
    response = server.client(Accept="text/html").get("/account")
    assert response.status == 302
    assert response.headers["location"] == "/login?next=/account"


def test_account_names_the_person_and_the_browsers(people: ServerPeople, alice: str) -> None:
    """The page has the person's name, and each of the person's browsers in words."""
    browser = people.client(alice)
    people.cookie(alice, PHONE, "203.0.113.7", age=3 * 86_400.0)
    page = browser.get("/account").body.decode()
    assert "Alice" in page
    assert page.index("Firefox on Linux") < page.index("Safari on iPhone")
    assert page.count("This browser") == 1
    assert "203.0.113.7 · signed in" in page
    assert "3 days ago" in page
    assert "Alice" in browser.get("/").body.decode()


def test_end_ends_the_sign_in_of_that_browser_alone(people: ServerPeople, alice: str) -> None:
    """The ended browser is asked to sign in; the person's others stay signed in."""
    phone, desk = people.client(alice, PHONE), people.client(alice)
    assert is_signed_in(phone)
    _, phone_id = ids(desk, "sign-in")
    response = send(desk, "end", id=phone_id)
    assert (response.status, response.headers["location"]) == (303, "/account?done=end")
    wait_until(lambda: not any(is_signed_in(phone) for _ in range(EVERY_WORKER)), SERVER_TIMEOUT)
    assert is_signed_in(desk)
    assert send(desk, "end", id=phone_id).status == 404


def test_end_of_this_browser_logs_it_out(people: ServerPeople, alice: str) -> None:
    """To end the sign-in of this browser is to sign out."""
    desk = people.client(alice)
    (desk_id,) = ids(desk, "sign-in")
    assert send(desk, "end", id=desk_id).headers["location"] == "/login"
    wait_until(lambda: not any(is_signed_in(desk) for _ in range(EVERY_WORKER)), SERVER_TIMEOUT)


def test_end_all_ends_every_sign_in_and_no_token(
    server: HaltServer, people: ServerPeople, alice: str, bob: str
) -> None:
    """After "Sign out everywhere" each browser has to sign in; programs and others go on."""
    browsers = [people.client(alice), people.client(alice, PHONE)]
    other = people.client(bob)
    token = make_token(browsers[0])
    assert send(browsers[0], "end-all").headers["location"] == "/login"
    for browser in browsers:
        wait_until(lambda b=browser: not any(is_signed_in(b) for _ in range(EVERY_WORKER)))  # type: ignore[misc]
    assert program(server, token).get("/v1/models").status == 200
    assert is_signed_in(other)


def test_new_password_ends_the_other_sign_ins(
    server: HaltServer, people: ServerPeople, alice: str
) -> None:
    """The browser that changes it stays signed in, with a new cookie; tokens stay valid."""
    people.set_password(alice, "old password")
    desk, phone = people.client(alice), people.client(alice, PHONE)
    copy = server.client(Accept="text/html")
    copy.cookies = dict(desk.cookies)
    token = make_token(desk)
    passwords = {"old": "old password", "new": "new password", "repeated": "new password"}
    for wrong, message in (
        ({"old": "another"}, "The old password is wrong."),
        ({"new": "short", "repeated": "short"}, "at least 8 characters"),
        ({"new": "old password", "repeated": "old password"}, "The new password is the old one."),
        ({"repeated": "another"}, "The two passwords are not the same."),
    ):
        response = send(desk, "password", **(passwords | wrong))
        assert response.status in {400, 401}
        page = response.body.decode()
        assert message in page
        (field,) = re.findall(r'<input id="(\w+)"[^>]*aria-invalid', page)
        assert field == next(iter(wrong))
        assert not [word for word in ("another", "short") if f'value="{word}' in page]
    assert is_signed_in(phone)
    response = send(desk, "password", **passwords)
    assert (response.status, response.headers["location"]) == (303, "/account?done=password")
    for ended in (phone, copy):
        wait_until(lambda b=ended: not any(is_signed_in(b) for _ in range(EVERY_WORKER)))  # type: ignore[misc]
    assert is_signed_in(desk)
    assert len(ids(desk, "sign-in")) == 1
    assert program(server, token).get("/v1/models").status == 200


def test_ids_of_another_person_do_not_exist(
    server: HaltServer, people: ServerPeople, alice: str, bob: str
) -> None:
    """Nobody sees, ends or revokes what is another person's."""
    of_alice, of_bob = people.client(alice), people.client(bob)
    token = make_token(of_alice, "Token of Alice")
    assert b"Token of Alice" not in of_bob.get("/account").body
    (sign_in,), (token_id,) = ids(of_alice, "sign-in"), ids(of_alice, "token")
    assert send(of_bob, "end", id=sign_in).status == 404
    assert send(of_bob, "revoke", id=token_id).status == 404
    for digest in (digest_of(token), token):  # no other way to name it
        assert send(of_alice, "revoke", id=digest).status == 404
    assert is_signed_in(of_alice)
    assert program(server, token).get("/v1/models").status == 200


def test_token_is_shown_once(people: ServerPeople, alice: str) -> None:
    """A new token is in the response to its form alone, which no cache keeps."""
    browser, form = people.client(alice), {"name": "  My\n script ", "form": new_id()[:32]}
    response = send(browser, "make", **form)
    assert len(set(TOKEN.findall(response.body))) == 1
    assert response.headers["cache-control"] == "no-store"
    again = send(browser, "make", **form)  # as a reload does
    assert again.status == 409
    assert b"already made a token" in again.body
    page = browser.get("/account").body
    assert not TOKEN.search(again.body + page)
    assert page.count(b"My script") == 1
    assert b"never used" in page


@pytest.mark.parametrize("name", ["", " \n ", "x" * 61, "\ufffd" * 61, "a\u202eb"])
def test_token_with_an_unfit_name_is_refused(people: ServerPeople, alice: str, name: str) -> None:
    """A name has 1 to 60 visible characters; the page says so and keeps what was typed."""
    browser = people.client(alice)
    response = send(browser, "make", name=name, form=new_id())
    assert response.status == 400
    assert (b"invisible" if "b" in name else b"A name has 1 to 60 characters.") in response.body
    assert f'value="{name}"' in response.body.decode()
    assert ids(browser, "token") == []


def test_tokens_are_limited(people: ServerPeople, alice: str) -> None:
    """A person has at most API_TOKENS_MAX tokens."""
    for n in range(API_TOKENS_MAX):
        people.sign_ins.add_token(alice, f"{alice}-{n}", f"Token {n}")
    browser = people.client(alice)
    response = send(browser, "make", name="One more", form=new_id())
    assert response.status == 400
    assert b"Revoke one of them first" in response.body
    assert b'value="One more"' in response.body
    assert len(ids(browser, "token")) == API_TOKENS_MAX


def test_token_acts_as_its_person(
    server: HaltServer, people: ServerPeople, alice: str, bob: str
) -> None:
    """Programs with the token share streams and conversations with the person's browsers."""
    browser, script = people.client(alice), program(server, make_token(people.client(alice)))
    conversation_id = new_id()
    path = f"/c/{conversation_id}/messages"
    browser.request("POST", path, b"prompt=Hello&model=count?n=1", FORM_HEADERS)
    assert conversation_id.encode() in script.get("/conversations").body
    completion = script.post(
        "/v1/chat/completions",
        {"model": "count?n=2", "messages": [{"role": "user", "content": "a"}]},
    )
    assert completion.json["choices"][0]["message"]["content"] == "0 1 "
    assert script.get("/stream?prompt=Hi&model=count%3Fn=1", Accept="text/plain").status == 200
    others = people.client(bob)
    with script.chat("stall?n=3", id=new_id()) as stream:
        stream.until_text("2")
        assert others.stop(stream.id).status == 202  # as an ID that nobody has
        with browser.follow(stream.id) as reader:
            reader.until_text("2")
            assert browser.stop(stream.id).json["status"] == "stopped"
            assert reader.to_end().terminal["type"] == "cancelled"
    with WebSocket(server, Authorization=script.headers["Authorization"]) as socket:
        stream_id = socket.start("stall?n=3")
        socket.until_text(stream_id, "2")
        assert browser.stop(stream_id).json["status"] == "stopped"


def test_token_that_is_revoked_is_refused(
    server: HaltServer, people: ServerPeople, alice: str
) -> None:
    """Every worker answers 401 to a revoked token within a few seconds; the others stay valid."""
    browser = people.client(alice)
    kept, token = make_token(browser, "Kept"), make_token(browser, "Revoked")
    script = program(server, token)
    assert all(script.get("/v1/models").status == 200 for _ in range(EVERY_WORKER))
    newest, _ = ids(browser, "token")
    response = send(browser, "revoke", id=newest)
    assert response.headers["location"] == "/account?done=revoke"
    assert b"API token revoked." in browser.get("/account?done=revoke").body
    refusals: list[int] = []

    def is_refused() -> bool:
        statuses = [script.get("/v1/models").status for _ in range(EVERY_WORKER)]
        refusals.extend(status for status in statuses if status != 200)
        return 200 not in statuses

    wait_until(is_refused, SERVER_TIMEOUT)
    assert refusals[0] == 401
    assert set(refusals) <= {401, 429}  # too many wrong tokens
    assert program(server, kept).get("/v1/models").status == 200
    assert send(browser, "revoke", id=newest).status == 404


def test_token_may_not_change_the_account(
    server: HaltServer, people: ServerPeople, alice: str
) -> None:
    """A token can neither make tokens nor end sign-ins, so revoking it is enough."""
    browser = people.client(alice)
    script = program(server, make_token(browser))
    as_browser = {"Accept": "text/html", **script.headers}
    page = server.client(**as_browser).request("POST", "/account", b"do=make", FORM_HEADERS)
    assert page.status == 403
    assert b"This browser" not in page.body
    for response in (
        script.get("/account"),
        send(script, "make", name="x"),
        send(script, "end-all"),
    ):
        assert (response.status, response.error["code"]) == (403, "browsers_only")
    assert is_signed_in(browser)
    assert len(ids(browser, "token")) == 1


def test_form_of_another_site_is_refused(people: ServerPeople, alice: str) -> None:
    """Another site's page cannot send the forms of the account."""
    browser = people.client(alice)
    for header in ({"Sec-Fetch-Site": "cross-site"}, {"Origin": "https://other.example"}):
        body = urlencode({"do": "make", "name": "x"}).encode()
        response = browser.request("POST", "/account", body, FORM_HEADERS | header)
        assert response.status == 403
    assert ids(browser, "token") == []


@pytest.mark.parametrize("action", ["", "remove", "x" * 70_000])
def test_unknown_change_is_refused(people: ServerPeople, alice: str, action: str) -> None:
    """A form that names no known change is refused, and so is a body that is too large."""
    response = send(people.client(alice), action)
    assert response.status == (413 if len(action) > 100 else 400)


def test_change_while_the_database_is_locked_is_refused_on_the_page(
    server: HaltServer, people: ServerPeople, alice: str
) -> None:
    """The error is on the page, with what was typed."""
    browser = people.client(alice)
    with closing(sqlite3.connect(server.data_folder / "halt.db")) as database:
        database.execute("BEGIN IMMEDIATE")
        response = send(browser, "make", name="My script", form=new_id())
        database.rollback()
    assert response.status == 503
    assert b'role="alert"' in response.body
    assert b'value="My script"' in response.body
    assert int(response.headers["retry-after"]) > 0


def test_form_while_nobody_can_be_known_is_refused(tmp_path: Path) -> None:
    """A new worker whose database does not answer says so, and shows no page."""
    database = tmp_path / "halt.db"
    app = create_app(load({"HALT_USERS": "1", "HALT_DATA": str(tmp_path), "HALT_DISCOVER": "0"}))
    database.unlink(missing_ok=True)
    database.mkdir()
    browser = app.test_client()
    with browser.session_transaction() as session:
        session["sign_in"] = "a token"
    response = browser.post(
        "/account", data={"do": "make", "name": "x"}, headers={"Accept": "text/html"}
    )
    services(app).close()
    assert response.status_code == 503
    assert b"the database does not answer" in response.data


def test_access_token_has_an_account_with_api_tokens(
    start_halt: StartHalt, shared_fake: FakeOpenAI
) -> None:
    """With HALT_TOKEN its one person makes API tokens; there is no list of sign-ins."""
    server = start_halt(shared_fake, HALT_TOKEN="open-sesame")
    browser = server.client(Accept="text/html")
    browser.request("POST", "/login", b"token=open-sesame", FORM_HEADERS)
    page = browser.get("/account").body.decode()
    assert "This Halt has one person" in page
    assert "Sign-ins" not in page
    assert "Password" not in page
    script = program(server, make_token(browser))
    assert script.get("/v1/models").status == 200
    with script.chat("stall?n=3", id=new_id()) as stream:
        stream.until_text("2")
        assert browser.stop(stream.id).json["status"] == "stopped"


def test_account_of_openid_connect_lists_sign_ins(
    start_halt: StartHalt, shared_fake: FakeOpenAI
) -> None:
    """It names the provider and the subject; there is no password to change."""
    issuer = f"http://127.0.0.1:{free_port()}"
    server = start_halt(
        shared_fake,
        HALT_OIDC_ISSUER=issuer,
        HALT_OIDC_CLIENT_ID="halt",
        HALT_OIDC_CLIENT_SECRET="secret-of-the-tests",
    )
    with closing(ServerPeople(server, "oidc")) as people:
        ada = people.add("Ada")
        browser, phone = people.client(ada), people.client(ada, PHONE)
        page = browser.get("/account").body.decode()
        assert f"<bdi>{issuer}</bdi>, where you are <bdi>test-" in page
        assert "Safari on iPhone" in page
        assert "Password" not in page
        assert send(browser, "password", old="a", new="b" * 8, repeated="b" * 8).status == 404
        response = send(browser, "end-all")
        assert b"Signed out" in response.body
        for one in (browser, phone):
            wait_until(lambda b=one: not is_signed_in(b), SERVER_TIMEOUT)  # type: ignore[misc]


def test_person_of_a_proxy_has_an_account_with_api_tokens(
    start_halt: StartHalt, shared_fake: FakeOpenAI
) -> None:
    """A person whom the proxy names makes tokens from the first request on."""
    server = start_halt(
        shared_fake,
        HALT_USER_HEADER="Remote-User",
        HALT_PROXY_ADDRESSES="127.0.0.1",
        HALT_HOSTS="127.0.0.1",
    )
    browser = server.client(Accept="text/html", **{"Remote-User": "ada"})
    script = program(server, make_token(browser))
    page = browser.get("/account").body.decode()
    assert "in the header <code>Remote-User</code>" in page
    assert "Sign-ins" not in page
    with script.chat("stall?n=3", id=new_id()) as stream:
        stream.until_text("2")
        other = server.client(**{"Remote-User": "bob"})
        assert other.stop(stream.id).status == 202
        assert browser.stop(stream.id).json["status"] == "stopped"


def test_counts_are_for_administrators_and_have_no_texts(people: ServerPeople) -> None:
    """An administrator sees how much each person has; for others there is no such page."""
    boss, carol = people.add("Boss", is_admin=True), people.add("Carol <b>")
    admin, browser = people.client(boss), people.client(carol)
    path = f"/c/{new_id()}/messages"
    browser.request("POST", path, b"prompt=A+secret&model=count?n=1", FORM_HEADERS)
    page = admin.get("/account/people").body.decode()
    row = page[page.index("Carol &lt;b&gt;") :].partition("</tr>")[0]
    assert re.findall(r">(\d+|just now|never)<", row) == ["1", "2", "just now"]
    assert "secret" not in page
    assert b"how much each person has" in admin.get("/account").body
    assert browser.get("/account/people").status == 404
    assert b"/account/people" not in browser.get("/account").body
    people.disable(carol)
    assert "disabled" in admin.get("/account/people").body.decode()
    assert b"No further people." in admin.get(f"/account/people?page={10**8}").body


def test_use_of_a_token_is_noted(server: HaltServer, people: ServerPeople, alice: str) -> None:
    """The page says when a token was used last."""
    browser = people.client(alice)
    script, before = program(server, make_token(browser)), time.time()
    assert script.get("/v1/models").status == 200

    def used_at() -> float:
        return people.sign_ins.tokens(alice)[0].used_at or 0

    wait_until(lambda: used_at() >= before - 1, SERVER_TIMEOUT)
    assert b"last used <time" in browser.get("/account").body
