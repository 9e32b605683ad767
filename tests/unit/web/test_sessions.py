"""A browser's session: which cookie it is, and what another browser is told."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from halt.app import create_app
from halt.config.environment import load
from halt.testing.fake_openai import FakeOpenAI
from halt.web.sessions import owner
from tests.support.halt_server import HaltServer, StartHalt
from tests.support.http_client import Client

FORM = "application/x-www-form-urlencoded"
TOKEN = "a-token-for-tests"
KEY = "a key for more than one"
ELSEWHERE = b"This browser has no conversations here"


def converse(browser: Client, conversation_id: str) -> None:
    """Send a message in a new conversation, as the page does."""
    path = f"/c/{conversation_id}/messages"
    assert browser.post(path, b"prompt=Hello&model=count?n=1", Content_Type=FORM).status == 200


def has(browser: Client, conversation_id: str) -> bool:
    """Whether the browser's list holds the conversation, and its page is there."""
    listed = f"/c/{conversation_id}".encode() in browser.get("/conversations").body
    assert (browser.get(f"/c/{conversation_id}").status == 200) == listed
    return listed


def test_halts_with_the_same_port_keep_their_sessions_apart(
    start_halt: StartHalt, shared_fake: FakeOpenAI
) -> None:
    """Behind two published ports of one name each has its own cookie, whatever PORT says inside.

    The second bears the same HALT_SECRET_KEY as the first, another token, and a folder of its own.
    """
    first = start_halt(shared_fake, HALT_SECRET_KEY=KEY, HALT_TOKEN=TOKEN)
    second = start_halt(
        shared_fake, HOST="127.0.0.3", PORT=first.port, HALT_SECRET_KEY=KEY, HALT_TOKEN=f"{TOKEN}-2"
    )
    third = start_halt(shared_fake, HOST="127.0.0.4", PORT=first.port)
    browsers = [first.client(), second.client(), third.client()]
    for browser in browsers[1:]:
        browser.cookies = browsers[0].cookies  # one browser, which reaches all by one name
    for token, browser in ((TOKEN, browsers[0]), (f"{TOKEN}-2", browsers[1])):
        browser.post("/login", f"token={token}".encode(), Content_Type=FORM)
    for number, browser in enumerate(browsers):
        converse(browser, f"conversation-{number}")
    for _ in range(2):
        for number, browser in enumerate(browsers):
            assert has(browser, f"conversation-{number}")


def test_workers_and_a_restart_at_another_port_know_the_session(
    start_halt: StartHalt, shared_fake: FakeOpenAI, tmp_path: Path
) -> None:
    """The cookie's name follows from the data folder: all workers agree, a new port changes none."""
    settings = {"HALT_DATA": tmp_path, "WEB_CONCURRENCY": 2}
    first = start_halt(shared_fake, **settings)
    browser = first.client()
    browser.get("/")
    converse(browser, "kept-conversation")
    for _ in range(8):
        assert has(browser, "kept-conversation")
    assert len(browser.cookies) == 1
    first.close()
    second = start_halt(shared_fake, **settings)
    assert second.port != first.port
    moved = second.client()
    moved.cookies = browser.cookies
    assert has(moved, "kept-conversation")


def test_hosts_that_share_a_key_and_a_database_share_the_name(tmp_path: Path) -> None:
    """With PostgreSQL each host has a data folder of its own; with SQLite those are two Halts."""
    names: dict[str, list[str]] = {"": [], "postgresql://127.0.0.1:9/halt": []}
    for url, found in names.items():
        for host in ("first", "second"):
            environ = {"HALT_SECRET_KEY": KEY, "HALT_DATA": str(tmp_path / host)}
            application = create_app(load({**environ, "DATABASE_URL": url}))
            found.append(application.session_interface.get_cookie_name(application))
    alone, shared = names.values()
    assert len(set(alone)) == 2
    assert len(set(shared)) == 1
    assert KEY not in "".join([*alone, *shared])


def test_the_cookie_of_an_earlier_version_is_taken_over(halt: HaltServer) -> None:
    """Its name held the port: of those with this Halt's signature its own port's counts first.

    The session goes on under the new name; one signed elsewhere is no session.
    """
    values = []
    for number in range(2):
        browser = halt.client()
        browser.get("/")
        converse(browser, f"earlier-{number}")
        ((name, value),) = browser.cookies.items()
        values.append(value)
    updated = halt.client()
    foreign = values[0][:-4] + "AAAA"
    updated.cookies = {
        "halt_session_0": values[0],  # PORT=0
        "halt_session_8001": values[1],
        "halt_session_8002": foreign,
    }
    assert has(updated, "earlier-0")
    assert name in updated.cookies
    updated.cookies = {name: updated.cookies[name], "halt_session_0": values[1]}
    assert has(updated, "earlier-0")  # the new name alone counts from then on
    other_port = halt.client()
    other_port.cookies = {"halt_session_8001": values[1]}
    assert has(other_port, "earlier-1")
    stranger = halt.client()
    stranger.cookies = {"halt_session_8002": foreign}
    assert not has(stranger, "earlier-0")


def test_an_empty_list_says_whose_conversations_are_shown(
    start_halt: StartHalt, shared_fake: FakeOpenAI
) -> None:
    """Where only other browsers have conversations the list says so, and names none of them."""
    server = start_halt(shared_fake)
    first, second = server.client(), server.client()
    assert b"No conversations yet." in first.get("/").body
    converse(first, "of-the-first")
    assert ELSEWHERE not in first.get("/").body
    page = second.get("/").body
    assert ELSEWHERE in page
    assert b"Conversations belong to the browser that began" in page
    assert b"Import JSON" in page
    assert b"of-the-first" not in page
    assert b"Hello" not in page
    missing = second.get("/c/of-the-first", Accept="text/html")
    assert missing.status == 404
    assert b"Conversations belong to the browser that began them." in missing.body


@pytest.mark.parametrize("names", [["halt_session_0"], ["halt_session_99999", "halt_session_"]])
def test_what_is_no_session_begins_a_new_one(halt: HaltServer, names: list[str]) -> None:
    """Cookies of these names that nobody signed are passed over."""
    client = halt.client()
    client.cookies = dict.fromkeys(names, "nonsense")
    assert client.get("/").status == 200
    assert len(client.cookies) == len(names) + 1


def test_only_a_page_sets_the_cookie_again(halt: HaltServer) -> None:
    """A Stop or a list reads the session and says so to caches; a page makes the cookie last."""
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


def test_a_cookie_that_was_accepted_before_grows_old(tmp_path: Path) -> None:
    """What is remembered of a cookie is its signature, not how long it is good for."""
    application = create_app(load({"HALT_SECRET_KEY": KEY, "HALT_DATA": str(tmp_path)}))
    value = application.test_client().get("/").headers["Set-Cookie"].partition(";")[0]

    def seen() -> str | None:
        with application.test_request_context(headers={"Cookie": value}):
            return owner()

    assert seen()
    assert seen() == seen()
    application.permanent_session_lifetime = timedelta(seconds=-1)
    assert seen() is None
