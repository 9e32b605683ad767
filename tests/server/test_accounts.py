"""Accounts with passwords: signing in and out, one-time links, wrong passwords, removals."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import pytest

from halt.app import create_app
from halt.config.environment import load
from halt.testing.fake_openai import FakeOpenAI
from tests.support.halt_server import (
    RECORD_TIMEOUT,
    ROOT,
    HaltServer,
    StartHalt,
    halt_environment,
    new_id,
    request_record,
    settings,
)
from tests.support.http_client import Client, HttpResponse
from tests.support.server_people import ServerPeople

FORM = "application/x-www-form-urlencoded"
PASSWORD = "a good password"


@pytest.fixture(scope="module")
def halt(shared_fake: FakeOpenAI) -> Iterator[HaltServer]:
    """A Halt with accounts behind a proxy, which names the addresses of clients."""
    server = HaltServer(settings(shared_fake, HALT_USERS=1, HALT_TRUSTED_PROXIES=1))
    yield server
    server.close()


@pytest.fixture(scope="module")
def people(halt: HaltServer) -> Iterator[ServerPeople]:
    people = ServerPeople(halt)
    yield people
    people.close()


@pytest.fixture
def name(people: ServerPeople) -> str:
    """The name of a new account."""
    name = f"Person {new_id()}"
    people.add_account(name, PASSWORD)
    return name


def browser(halt: HaltServer, address: str = "192.0.2.1") -> Client:
    return halt.client(Accept="text/html", **{"X-Forwarded-For": address})


def sign_in(client: Client, name: str, password: str = PASSWORD, **fields: str) -> HttpResponse:
    body = urlencode({"name": name, "password": password, **fields}).encode()
    return client.post("/login", body, Content_Type=FORM)


def user_command(halt: HaltServer, *args: str) -> subprocess.CompletedProcess[str]:
    """Run `halt-chat user` with the server's data folder."""
    return subprocess.run(
        [sys.executable, "-m", "halt", "user", *args],
        cwd=ROOT,
        env=halt_environment({"HALT_DATA": str(halt.data_folder), "HALT_USERS": "1"}),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_halt_without_accounts_says_how_to_add_one(start_halt: StartHalt, fake: FakeOpenAI) -> None:
    """The page of a new Halt names the command; after it the same page asks for a name."""
    halt = start_halt(fake, HALT_USERS=1)
    assert b"halt-chat user add NAME" in browser(halt).get("/login").body
    assert halt.client().post("/chat/stream", {"messages": []}).status == 401
    added = user_command(halt, "add", "Ann", "--link")
    assert added.returncode == 0, added.stderr
    assert b'name="password"' in browser(halt).get("/login").body


@pytest.mark.parametrize(
    ("path", "to"),
    [
        ("/c/never-was-1?archived=1", "/c/never-was-1?archived=1"),
        ("", "/"),
        ("/logout", "/"),
        ("/login?next=/account", "/"),
        ("/login/oidc", "/"),
        ("/c/../%6cogout", "/"),
        ("//evil.example/", "/"),
        ("/\\evil.example/", "/"),
        ("/\t/evil.example/", "/"),
        ("https://evil.example/", "/"),
    ],
)
def test_sign_in_returns_to_the_page_that_was_requested(
    halt: HaltServer, name: str, path: str, to: str
) -> None:
    """A path of this Halt is returned to; an address that leads elsewhere is not."""
    client = browser(halt)
    assert client.get("/").headers["location"] == "/login"
    requested = client.get("/c/never-was-1?archived=1").headers["location"]
    assert requested == "/login?next=/c/never-was-1?archived%3D1"
    assert b'value="/c/never-was-1?archived=1"' in client.get(requested).body
    signed_in = sign_in(client, name.upper(), next=path)
    assert (signed_in.status, signed_in.headers["location"]) == (302, to)
    assert client.get("/").status == 200
    assert client.get("/login").headers["location"] == "/"


@pytest.mark.parametrize(
    ("path", "referer", "to"),
    [
        ("/account", "/account", "/login?next=/account"),
        ("/c/never-was-1/messages", "/c/never-was-1?archived=1", None),
        ("/conversations", "", "/login"),
        ("/conversations", "/", "/login"),
        ("/conversations", "/login?next=/account", "/login"),
        ("/conversations", "//evil.example/", "/login"),
        ("/logout", "/account", "/login"),
    ],
)
def test_form_of_a_signed_out_browser_leads_to_the_sign_in(
    halt: HaltServer, path: str, referer: str, to: str | None
) -> None:
    """A form without scripts gets the sign-in, which returns to the form's page; a program does
    not.
    """
    address = f"{halt.url}{referer}"
    sent = browser(halt).post(path, b"prompt=Hello", Content_Type=FORM, Referer=address)
    assert sent.status in {302, 303}
    assert sent.headers["location"] == (to or "/login?next=/c/never-was-1?archived%3D1")
    if path != "/logout":
        program = halt.client(Accept="text/html", Authorization="Bearer halt_unknown")
        assert program.post(path, b"", Content_Type=FORM).status == 401


@pytest.mark.parametrize(
    ("page", "to"),
    [
        ("{}/c/never-was-1?x=1", "/login?next=/c/never-was-1?x%3D1"),
        ("{}/", "/login"),
        ("{}/login?next=/c/1", "/login"),
        ("https://evil.example/c/never-was-1", "/login"),
        ("{}//evil.example/", "/login"),
        ("http://[/c/never-was-1", "/login"),
        ("", "/login"),
    ],
)
def test_page_whose_sign_in_has_ended_returns_after_the_next_one(
    halt: HaltServer, page: str, to: str
) -> None:
    """The page's script is sent to the sign-in with the page's own path, and no other address."""
    refused = browser(halt).get("/saving", HX_Request="true", HX_Current_URL=page.format(halt.url))
    assert refused.status == 401
    assert refused.headers["hx-redirect"] == to


def test_sign_out_ends_the_sign_in_itself(halt: HaltServer, name: str) -> None:
    """A copy of the cookie that was made before is worth nothing afterwards; others stay."""
    client, other, copy = browser(halt), browser(halt), browser(halt)
    sign_in(client, name)
    sign_in(other, name)
    copy.cookies = dict(client.cookies)
    assert b'action="/logout"' in client.get("/").body
    assert client.post("/logout", b"", Content_Type=FORM).headers["location"] == "/login"
    assert copy.get("/").status == 302
    assert other.get("/").status == 200


def test_persons_see_their_own_chats_on_every_device(
    halt: HaltServer, people: ServerPeople, name: str
) -> None:
    """What one browser of a person has begun, another one of the same person shows."""
    another_name = f"Person {new_id()}"
    people.add_account(another_name, PASSWORD)
    desktop, phone, stranger = browser(halt), browser(halt), browser(halt)
    sign_in(desktop, name)
    sign_in(phone, name)
    sign_in(stranger, another_name)
    path = f"/c/{new_id()}"
    sent = desktop.post(f"{path}/messages", b"prompt=Hello&model=count?n=1", Content_Type=FORM)
    assert sent.status == 303
    assert path.encode() in phone.get("/").body
    assert path.encode() not in stranger.get("/").body
    assert stranger.get(path).status == 404


def test_many_wrong_passwords_do_not_lock_the_person_out(
    start_halt: StartHalt, fake: FakeOpenAI, tmp_path: Path
) -> None:
    """They are refused with 429 after a few; the person signs in from elsewhere and from a known
    browser; a restart changes nothing.
    """
    data = str(tmp_path / "data")
    more = {"HALT_USERS": 1, "HALT_TRUSTED_PROXIES": 1, "HALT_DATA": data}
    halt = start_halt(fake, **more)
    halt.data_folder = tmp_path / "data"
    people = ServerPeople(halt)
    people.add_account("Ann", PASSWORD)
    people.close()
    known, attacker = browser(halt), browser(halt)
    sign_in(known, "Ann")
    known.post("/logout", b"", Content_Type=FORM)
    answers = [sign_in(attacker, "Ann", f"wrong {n}") for n in range(100)]
    assert [answer.status for answer in answers] == [401] * 10 + [429] * 90
    assert 0 < int(answers[-1].headers["retry-after"]) <= 300
    assert b"Too many wrong passwords. Try again in" in answers[-1].body
    assert sign_in(browser(halt), "Ann").status == 429
    assert sign_in(known, "Ann").status == 302
    assert sign_in(browser(halt, "198.51.100.7"), "Ann").status == 302
    halt.close()
    restarted = start_halt(fake, **more)
    assert sign_in(browser(restarted), "Ann").status == 429
    assert sign_in(browser(restarted, "198.51.100.7"), "Ann").status == 302
    assert "wrong 1" not in halt.printed


def test_wrong_name_and_wrong_password_get_the_same_page(halt: HaltServer, name: str) -> None:
    """Nothing in the answer tells whether an account exists."""
    bodies = set()
    for wrong_name, password in ((name, "a wrong one"), ("x" * len(name), PASSWORD)):
        answer = sign_in(browser(halt, "198.51.100.9"), wrong_name, password)
        assert answer.status == 401
        bodies.add(answer.body.replace(wrong_name.encode(), b""))
    assert len(bodies) == 1


def test_one_time_link_is_used_up_by_the_password_alone(
    halt: HaltServer, people: ServerPeople
) -> None:
    """Its page can be opened again and again; a saved password signs in and ends the link."""
    name = f"Person {new_id()}"
    token = people.add_link(name)
    client = browser(halt)
    for _ in range(2):
        page = client.get(f"/link?key={token}")
        assert page.status == 200
        assert page.headers["referrer-policy"] == "strict-origin"
        assert name.encode() in page.body

    def save(password: str, repeated: str) -> HttpResponse:
        body = urlencode({"key": token, "password": password, "repeated": repeated}).encode()
        return client.post("/link", body, Content_Type=FORM)

    assert save("short", "short").status == 400
    assert save(PASSWORD, "another").status == 400
    assert save(PASSWORD, PASSWORD).headers["location"] == "/"
    assert client.get("/").status == 200
    for gone in (client.get(f"/link?key={token}"), save(PASSWORD, PASSWORD), client.get("/link")):
        assert gone.status == 410
        assert b"This link has been used" in gone.body
    assert sign_in(browser(halt), name).status == 302


def test_link_does_not_exist_without_accounts(tmp_path: Path) -> None:
    """A Halt whose people are known in another way has no such page."""
    application = create_app(load({"HALT_DATA": str(tmp_path)}))
    assert application.test_client().get("/link?key=any").status_code == 404


def test_disabled_account_is_refused_at_once(
    halt: HaltServer, people: ServerPeople, name: str
) -> None:
    """A disabled person's browser is asked to sign in, and the right password says why."""
    client = browser(halt)
    sign_in(client, name)
    assert user_command(halt, "disable", name).returncode == 0
    refused = sign_in(browser(halt), name)
    assert refused.status == 403
    assert b"This account is disabled. The one who runs this Halt can enable it." in refused.body


def test_reset_password_ends_all_sign_ins(halt: HaltServer, name: str) -> None:
    """After `reset --link` no browser is signed in, and the link that it prints sets a password."""
    client = browser(halt)
    sign_in(client, name)
    reset = user_command(halt, "reset", name, "--link", "--url", halt.url)
    match = re.search(rf"{re.escape(halt.url)}(/link\?key=\S+)", reset.stdout)
    assert match is not None
    assert "1 sign-in ended" in reset.stdout
    assert sign_in(browser(halt), name).status == 401
    assert client.get(match[1]).status == 200


def test_removal_while_halt_runs_stops_the_answers_and_removes_all(
    halt: HaltServer, people: ServerPeople, shared_fake: FakeOpenAI, tmp_path: Path
) -> None:
    """`remove` waits until the person's answer has been stopped, and exports what it was."""
    name, prompt = f"Person {new_id()}", f"Hello {new_id()}"
    person = people.add_account(name, PASSWORD)
    client = browser(halt)
    sign_in(client, name)
    chat = new_id()
    body = urlencode({"prompt": prompt, "model": "stall?n=3"}).encode()
    assert client.post(f"/c/{chat}/messages", body, Content_Type=FORM).status == 303
    record = request_record(shared_fake, prompt)
    file = tmp_path / "export.json"
    removed = user_command(halt, "remove", name, "--yes", "--export", str(file))
    assert removed.stdout.splitlines()[-1:] == [f"Removed {name} with 1 chat."], removed.stderr
    assert record.closed.wait(RECORD_TIMEOUT)
    assert prompt in file.read_text()
    assert people.accounts.of_person(person) is None
    assert client.get("/").headers["location"] == "/login"
