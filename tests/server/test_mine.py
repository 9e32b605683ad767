"""The mode `mine`: one person, who is everybody that is let in, from any browser and program."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from halt.store.store import Store
from halt.testing.fake_openai import FakeOpenAI
from tests.support.earlier_database import make_earlier_database
from tests.support.halt_server import ROOT, HaltServer, StartHalt, halt_environment, new_id
from tests.support.http_client import Client
from tests.support.stores import Chat
from tests.support.websocket_client import WebSocket

FORM = "application/x-www-form-urlencoded"
TOKEN = "a-token-for-tests"
SHOP = "https://shop.example"
#: The default settings. HaltServer would set HALT_ALLOW_ANONYMOUS otherwise.
DEFAULT = {"HALT_ALLOW_ANONYMOUS": ""}
WITH_TOKEN = {"HALT_TOKEN": TOKEN}
EARLIER = {"browser-of-anna": "talk-of-anna", "browser-of-boris": "talk-of-boris"}


def browser_of(server: HaltServer, **headers: str) -> Client:
    """A browser without a cookie, or with that of a login where the server has a token."""
    browser = server.client(**headers)
    browser.post("/login", f"token={TOKEN}".encode(), Content_Type=FORM)
    return browser


def program_of(server: HaltServer) -> Client:
    """A program, which has no cookie. Without HALT_TOKEN its word has no effect."""
    return server.client(Authorization=f"Bearer {TOKEN}")


def send_message(client: Client, conversation_id: str, prompt: str = "Hello") -> None:
    """Send a message in a new conversation, as the page does."""
    fields = f"prompt={prompt}&model=count?n=1".encode()
    path = f"/c/{conversation_id}/messages"
    assert client.post(path, fields, Content_Type=FORM).status == 200


def listed(client: Client, *conversation_ids: str) -> list[str]:
    """Those of the conversations that the client's list has; each other one must be unknown."""
    body = client.get("/conversations").body.decode()
    ids = [conversation_id for conversation_id in conversation_ids if conversation_id in body]
    for conversation_id in conversation_ids:
        status = client.get(f"/c/{conversation_id}").status
        assert status == (200 if conversation_id in ids else 404)
    return ids


def adopt(folder: Path, *args: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run `halt-chat adopt`."""
    return subprocess.run(
        [sys.executable, "-m", "halt", "adopt", *args],
        cwd=ROOT,
        env=halt_environment({"HALT_DATA": str(folder), **settings}),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize("settings", [DEFAULT, WITH_TOKEN], ids=["default", "token"])
def test_every_client_has_the_same_conversations_and_streams(
    start_halt: StartHalt, shared_fake: FakeOpenAI, settings: dict[str, str]
) -> None:
    """A second browser, another name of the machine and a program list, read and stop the same."""
    server = start_halt(shared_fake, **settings)
    first = browser_of(server)
    send_message(first, "one-for-all")
    others = (
        browser_of(server),
        browser_of(server, Host=f"localhost:{server.port}"),
        program_of(server),
    )
    for other in others:
        assert listed(other, "one-for-all") == ["one-for-all"]
        with first.chat("stall?n=3") as events:
            events.until_text("2 ")
            assert [entry["id"] for entry in other.get("/streams").json["streams"]] == [events.id]
            assert other.follow(events.id).until_text("2 ")
            receipt = other.stop(events.id)
            assert (receipt.status, receipt.json["status"]) == (200, "stopped")
            assert events.to_end().terminal["type"] == "cancelled"
    with others[-1].chat("stall?n=1") as events:
        events.until_text("0 ")
        (receipt,) = first.post("/stop-all").json["stopped"]
        assert (receipt["id"], receipt["status"]) == (events.id, "stopped")


def test_prompts_and_presets_are_the_same_in_every_browser(
    start_halt: StartHalt, shared_fake: FakeOpenAI
) -> None:
    """A prompt that is saved in one browser can be chosen in another one."""
    server = start_halt(shared_fake, **DEFAULT)
    first, second = browser_of(server), browser_of(server)
    fields = b"system_prompt=Be+brief.&name=Brevity"
    assert first.post("/settings/prompts", fields, Content_Type=FORM).status == 200
    assert b"Brevity" in second.get("/settings").body


def test_other_port_of_the_same_folder_has_the_same(
    start_halt: StartHalt, shared_fake: FakeOpenAI, tmp_path: Path
) -> None:
    """Two servers of one data folder show the same; one stops the other's stream."""
    servers = [start_halt(shared_fake, HALT_DATA=tmp_path, **DEFAULT) for _ in range(2)]
    first, second = map(browser_of, servers)
    send_message(first, "of-both-ports")
    assert listed(second, "of-both-ports") == ["of-both-ports"]
    with first.chat("stall?n=3") as events:
        events.until_text("2 ")
        assert second.follow(events.id).until_text("2 ")
        assert second.stop(events.id).json["status"] == "stopped"
        assert events.to_end().terminal["type"] == "cancelled"


def test_socket_follows_and_stops_a_stream_of_another_browser(
    start_halt: StartHalt, shared_fake: FakeOpenAI
) -> None:
    """A WebSocket without a cookie reads and stops what a browser has started."""
    server = start_halt(shared_fake, **DEFAULT)
    browser = browser_of(server)
    browser.get("/")
    with browser.chat("stall?n=3") as events, WebSocket(server) as other:
        events.until_text("2 ")
        other.send(type="follow", id=events.id)
        other.until_text(events.id, "2 ")
        assert other.stop(events.id)["status"] == "stopped"
        assert events.to_end().terminal["type"] == "cancelled"


@pytest.mark.parametrize("settings", [DEFAULT, WITH_TOKEN], ids=["default", "token"])
def test_restart_on_another_port_keeps_the_list(
    start_halt: StartHalt, shared_fake: FakeOpenAI, tmp_path: Path, settings: dict[str, str]
) -> None:
    """After a restart on another port a browser without a cookie sees the list and the stream."""
    first = start_halt(shared_fake, HALT_DATA=tmp_path, **settings)
    send_message(browser_of(first), "before-the-restart")
    events = program_of(first).chat("count?n=3").to_end()
    first.close()
    second = start_halt(shared_fake, HALT_DATA=tmp_path, **settings)
    assert second.port != first.port
    browser = browser_of(second)
    assert listed(browser, "before-the-restart") == ["before-the-restart"]
    assert browser.follow(events.id).to_end().text == events.text


# --- data of an earlier version -------------------------------------------------------------------


def write_earlier_version(folder: Path, talks: dict[str, str]) -> None:
    """Write the database of an earlier version: a conversation (the value) of each browser."""

    def fill(store: Store) -> None:
        for browser, conversation_id in talks.items():
            Chat(store, conversation_id, browser).add_exchange(f"Talk of {browser}", "Yes.")

    make_earlier_database(folder, "", "0003", fill)


@pytest.mark.parametrize(
    "settings",
    [WITH_TOKEN, {**DEFAULT, "HALT_HOSTS": "chat.example"}, {**DEFAULT, "HALT_TRUSTED_PROXIES": 1}],
    ids=["token", "hosts", "proxy"],
)
def test_lists_of_a_team_are_merged_by_command_only(
    start_halt: StartHalt, shared_fake: FakeOpenAI, tmp_path: Path, settings: dict[str, str]
) -> None:
    """Where others can reach Halt, lists of several browsers stay apart until `halt-chat adopt`.

    Until then the log and the empty list name the command. It takes effect while Halt runs.
    """
    write_earlier_version(tmp_path, EARLIER)
    server = start_halt(shared_fake, HALT_DATA=tmp_path, **settings)
    assert "2 browsers of an earlier version are not shown: `halt-chat adopt`" in server.printed
    browser = browser_of(server)
    assert listed(browser, *EARLIER.values()) == []
    assert b"halt-chat adopt" in browser.get("/").body
    missing = browser.get("/c/talk-of-anna", Accept="text/html")
    assert missing.status == 404
    assert b"halt-chat adopt" in missing.body
    for page in (browser.get("/"), missing):
        assert b"Talk of" not in page.body
        assert b"the browser that began them" not in page.body
    printed = adopt(tmp_path, **{name: str(value) for name, value in settings.items()})
    assert all(owner in printed.stdout for owner in EARLIER), printed
    taken = adopt(tmp_path, "browser-of-a", "--yes")
    assert taken.returncode == 0, taken
    assert listed(browser, *EARLIER.values()) == ["talk-of-anna"]
    assert b"halt-chat adopt" not in browser.get("/").body  # the list is not empty
    assert b"halt-chat adopt" in browser.get("/c/talk-of-boris", Accept="text/html").body
    assert adopt(tmp_path, "--all", "--yes").returncode == 0
    assert listed(browser, *EARLIER.values()) == list(EARLIER.values())
    missing = browser.get("/c/never-was", Accept="text/html")
    assert (missing.status, b"halt-chat adopt" in missing.body) == (404, False)


def test_only_browser_is_taken_over_with_a_token_too(
    start_halt: StartHalt, shared_fake: FakeOpenAI, tmp_path: Path
) -> None:
    """With HALT_TOKEN the conversations of a single browser need no command."""
    write_earlier_version(tmp_path, {"browser-of-anna": "talk-of-anna"})
    server = start_halt(shared_fake, HALT_DATA=tmp_path, **WITH_TOKEN)
    assert listed(program_of(server), "talk-of-anna") == ["talk-of-anna"]


# --- who is not that person -----------------------------------------------------------------------


def test_change_to_anonymous_shows_nobody_what_is_mine(
    start_halt: StartHalt, shared_fake: FakeOpenAI, tmp_path: Path
) -> None:
    """With HALT_ALLOW_ANONYMOUS=1 not even the browser that began them has the conversations.

    Without it they are back, and what strangers began meanwhile is not among them.
    """
    first = start_halt(shared_fake, HALT_DATA=tmp_path, **DEFAULT)
    browser = browser_of(first)
    browser.get("/")
    send_message(browser, "of-the-person")
    events = browser.chat("count?n=3").to_end()
    first.close()
    second = start_halt(shared_fake, HALT_DATA=tmp_path, HALT_ALLOW_ANONYMOUS=1)
    same_browser, program = second.client(), second.client()
    same_browser.cookies = browser.cookies
    for client in (same_browser, program):
        assert client.get(f"/streams/{events.id}").error["code"] == "unknown_stream"
        assert listed(client, "of-the-person") == []
        page = client.get("/").body
        assert b"No chats yet." in page
        assert b"the browser that began them" not in page
    send_message(same_browser, "of-a-stranger")
    second.close()
    third = start_halt(shared_fake, HALT_DATA=tmp_path, **DEFAULT)
    for client in (browser_of(third), program_of(third)):
        assert listed(client, "of-the-person", "of-a-stranger") == ["of-the-person"]


def test_page_of_another_origin_has_nothing_of_mine(
    start_halt: StartHalt, shared_fake: FakeOpenAI
) -> None:
    """A page that HALT_CORS_ORIGINS admits neither lists, reads nor stops a stream of the person.

    An ID of the person's is free for it: its stream and the person's are two.
    """
    server = start_halt(shared_fake, HALT_CORS_ORIGINS=SHOP, **DEFAULT)
    browser = browser_of(server)
    browser.get("/")
    page = server.client(Origin=SHOP, Sec_Fetch_Site="cross-site")
    page.cookies = browser.cookies
    stream_id = new_id()
    with browser.chat("stall?n=3", id=stream_id) as events:
        events.until_text("2 ")
        assert page.get("/streams").json == {"streams": []}
        assert page.post("/stop-all").json["stopped"] == []
        assert page.get(f"/streams/{stream_id}").error["code"] == "unknown_stream"
        assert page.chat("count?n=1", id=stream_id).to_end().text == "0 "
        receipt = page.stop(stream_id)
        assert (receipt.status, receipt.json["status"]) == (200, "finished")
        other_id = new_id()
        receipt = page.stop(other_id)
        assert (receipt.status, receipt.json["status"]) == (202, "pending")
        assert browser.chat("count?n=1", id=other_id).to_end().text == "0 "
        assert page.get("/conversations").status == 403
        (entry,) = browser.get("/streams").json["streams"]
        assert entry["id"] == stream_id
        assert browser.stop(stream_id).json["status"] == "stopped"
        assert events.to_end().terminal["type"] == "cancelled"
        assert page.follow(stream_id).to_end().text == "0 "
