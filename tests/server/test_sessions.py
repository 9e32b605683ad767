"""Sessions: name and lifetime of the cookie, and what a browser sees of other browsers'
conversations.
"""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest

from halt.app import create_app
from halt.config.environment import load
from halt.testing.fake_openai import FakeOpenAI
from halt.web.sessions import browser_id
from tests.support.halt_server import HaltServer, StartHalt
from tests.support.http_client import Client

FORM = "application/x-www-form-urlencoded"
TOKEN = "a-token-for-tests"
KEY = "a key for more than one"
ELSEWHERE = b"chats belong to the browser that began them"


def send_message(browser: Client, conversation_id: str) -> None:
    """Send a message in a new conversation, as the page does."""
    path = f"/c/{conversation_id}/messages"
    assert browser.post(path, b"prompt=Hello&model=count?n=1", Content_Type=FORM).status == 200


def has_conversation(browser: Client, conversation_id: str) -> bool:
    """Whether the browser's list has the conversation; asserts that its page agrees."""
    is_listed = f"/c/{conversation_id}".encode() in browser.get("/conversations").body
    assert (browser.get(f"/c/{conversation_id}").status == 200) == is_listed
    return is_listed


@pytest.mark.slow
def test_servers_behind_the_same_port_use_different_cookies(
    start_halt: StartHalt, shared_fake: FakeOpenAI
) -> None:
    """Servers with equal port and key but other data folders keep their sessions apart.

    The second has the HALT_SECRET_KEY of the first, another token, and a data folder of its own.
    """
    first = start_halt(shared_fake, HALT_SECRET_KEY=KEY, HALT_TOKEN=TOKEN)
    second = start_halt(
        shared_fake, HOST="127.0.0.3", PORT=first.port, HALT_SECRET_KEY=KEY, HALT_TOKEN=f"{TOKEN}-2"
    )
    third_server = start_halt(shared_fake, HOST="127.0.0.4", PORT=first.port)
    browsers = [first.client(), second.client(), third_server.client()]
    for browser in browsers[1:]:
        browser.cookies = browsers[
            0
        ].cookies  # one browser that reaches all servers by one host name
    for token, browser in ((TOKEN, browsers[0]), (f"{TOKEN}-2", browsers[1])):
        browser.post("/login", f"token={token}".encode(), Content_Type=FORM)
    for number, browser in enumerate(browsers):
        send_message(browser, f"conversation-{number}")
    for _ in range(2):
        for number, browser in enumerate(browsers):
            assert has_conversation(browser, f"conversation-{number}")


def test_session_is_valid_for_all_workers_and_at_another_port(
    start_halt: StartHalt, shared_fake: FakeOpenAI, tmp_path: Path
) -> None:
    """The cookie's name follows from the data folder, so workers and a restart know the session."""
    settings = {"HALT_DATA": tmp_path, "WEB_CONCURRENCY": 2}
    first = start_halt(shared_fake, **settings)
    browser = first.client()
    browser.get("/")
    send_message(browser, "kept-conversation")
    for _ in range(8):
        assert has_conversation(browser, "kept-conversation")
    assert len(browser.cookies) == 1
    first.close()
    second = start_halt(shared_fake, **settings)
    assert second.port != first.port
    moved_browser = second.client()
    moved_browser.cookies = browser.cookies
    assert has_conversation(moved_browser, "kept-conversation")


def test_browser_stays_signed_in_when_the_key_is_changed(
    start_halt: StartHalt, shared_fake: FakeOpenAI, tmp_path: Path
) -> None:
    """From the file's key to HALT_SECRET_KEY and beyond it, sign-in and conversation stay."""
    settings = {"HALT_DATA": tmp_path, "HALT_TOKEN": TOKEN, "WEB_CONCURRENCY": 2}
    first = start_halt(shared_fake, **settings)
    browser = first.client()
    browser.post("/login", f"token={TOKEN}".encode(), Content_Type=FORM)
    send_message(browser, "kept-conversation")
    cookies = dict(browser.cookies)
    first.close()
    of_file = (tmp_path / "secret_key").read_text().strip()
    steps = (
        ({"HALT_SECRET_KEY": KEY, "HALT_SECRET_KEY_OLD": of_file}, True),
        ({"HALT_SECRET_KEY": KEY}, True),
        ({"HALT_SECRET_KEY": f"{KEY}, and more"}, False),
    )
    for keys, stays in steps:
        server = start_halt(shared_fake, **settings, **keys)
        browser = server.client()
        browser.cookies = cookies
        assert (browser.get("/").status == 200) is stays
        if stays:
            for _ in range(8):
                assert has_conversation(browser, "kept-conversation")
        cookies = dict(browser.cookies)
        server.close()
        assert not any(key in server.printed for key in keys.values())


class VaultServer(HaltServer):
    """Halt with a route about its vault."""

    command = ("-m", "gunicorn", "tests.support.vault_app:app")


@pytest.mark.parametrize(("settings", "shared"), [({}, False), ({"HALT_SECRET_KEY": KEY}, True)])
def test_workers_tell_a_set_key_from_the_files(settings: dict[str, str], shared: bool) -> None:
    """The master gives workers the file's key; they seal nothing with it on PostgreSQL."""
    server = VaultServer({"OPENAI_BASE_URL": "http://127.0.0.1:9/v1", **settings})
    try:
        assert json.loads(server.client().get("/vault").body) == [True, shared]
    finally:
        server.close()


def test_hosts_with_a_shared_database_use_one_cookie_name(tmp_path: Path) -> None:
    """Hosts that share PostgreSQL and a key use one cookie name; with SQLite each has its own."""
    names: dict[str, list[str]] = {"": [], "postgresql://127.0.0.1:9/halt": []}
    for url, cookie_names in names.items():
        for host in ("first", "second"):
            environ = {"HALT_SECRET_KEY": KEY, "HALT_DATA": str(tmp_path / host)}
            application = create_app(load({**environ, "DATABASE_URL": url}))
            cookie_names.append(application.session_interface.get_cookie_name(application))
    sqlite_names, postgres_names = names.values()
    assert len(set(sqlite_names)) == 2
    assert len(set(postgres_names)) == 1
    assert KEY not in "".join([*sqlite_names, *postgres_names])


def test_cookie_of_an_earlier_version_is_accepted(halt: HaltServer) -> None:
    """A signed cookie with a port in its name is accepted, this Halt's own port first.

    The session goes on under the new name; a cookie with a foreign signature is no session.
    """
    values = []
    for number in range(2):
        browser = halt.client()
        browser.get("/")
        send_message(browser, f"earlier-{number}")
        ((name, value),) = browser.cookies.items()
        values.append(value)
    updated_browser = halt.client()
    foreign_value = values[0][:-4] + "AAAA"
    updated_browser.cookies = {
        "halt_session_0": values[0],  # PORT=0
        "halt_session_8001": values[1],
        "halt_session_8002": foreign_value,
    }
    assert has_conversation(updated_browser, "earlier-0")
    assert name in updated_browser.cookies
    updated_browser.cookies = {name: updated_browser.cookies[name], "halt_session_0": values[1]}
    assert has_conversation(updated_browser, "earlier-0")  # from then on only the new name counts
    other_port = halt.client()
    other_port.cookies = {"halt_session_8001": values[1]}
    assert has_conversation(other_port, "earlier-1")
    other_browser = halt.client()
    other_browser.cookies = {"halt_session_8002": foreign_value}
    assert not has_conversation(other_browser, "earlier-0")


def test_empty_list_explains_that_conversations_belong_to_a_browser(
    start_halt: StartHalt, shared_fake: FakeOpenAI
) -> None:
    """If only other browsers have conversations, the list and the 404 page say so and name none."""
    server = start_halt(shared_fake)
    first, second = server.client(), server.client()
    assert b"No chats yet." in first.get("/").body
    send_message(first, "of-the-first")
    assert ELSEWHERE not in first.get("/").body
    page = second.get("/").body
    assert ELSEWHERE in page
    assert b"Import JSON" in page
    assert b"of-the-first" not in page
    assert b"Hello" not in page
    response = second.get("/c/of-the-first", Accept="text/html")
    assert response.status == 404
    assert b"Conversations belong to the browser that began them." in response.body


@pytest.mark.parametrize("names", [["halt_session_0"], ["halt_session_99999", "halt_session_"]])
def test_unsigned_cookie_begins_a_new_session(halt: HaltServer, names: list[str]) -> None:
    """A cookie with a session's name and no signature is ignored, and a new session begins."""
    client = halt.client()
    client.cookies = dict.fromkeys(names, "nonsense")
    assert client.get("/").status == 200
    assert len(client.cookies) == len(names) + 1


def test_page_alone_renews_the_session_cookie(halt: HaltServer) -> None:
    """A page sets the cookie again; Stop and lists read it and send `Vary: Cookie`."""
    browser = halt.client(Accept="text/html")
    first = browser.get("/")
    assert "set-cookie" in first.headers
    assert "set-cookie" in browser.get("/").headers
    for answer in (
        browser.post("/stop/never-was-1", Accept="application/json"),
        browser.get("/conversations", HX_Request="true"),
        browser.get("/streams", Accept="application/json"),
    ):
        assert answer.status < 400
        assert "set-cookie" not in answer.headers
        assert answer.headers["vary"] == "Cookie"
    program = halt.client().post("/stop/never-was-2")
    assert "set-cookie" not in program.headers


def test_accepted_cookie_still_expires(tmp_path: Path) -> None:
    """A cookie that was accepted before is refused after its lifetime."""
    application = create_app(load({"HALT_SECRET_KEY": KEY, "HALT_DATA": str(tmp_path)}))
    value = application.test_client().get("/").headers["Set-Cookie"].partition(";")[0]

    def known_browser() -> str:
        with application.test_request_context(headers={"Cookie": value}):
            return browser_id()

    assert known_browser()
    assert known_browser() == known_browser()
    application.permanent_session_lifetime = timedelta(seconds=-1)
    assert not known_browser()
