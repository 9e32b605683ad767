"""Two people who use the same browser, one after the other."""

from __future__ import annotations

import re

from playwright.sync_api import expect

from halt.testing.fake_openai import FakeOpenAI
from tests.browser.chat import Chat
from tests.browser.conftest import OpenChat
from tests.support.halt_server import HaltServer
from tests.support.server_people import ServerPeople

STORED = """() => JSON.stringify([localStorage, sessionStorage].map(area => ({ ...area })))"""
FILL = """id => {
  localStorage["halt.draft.new"] = JSON.stringify({ text: "a secret", pasted: [], at: 1 });
  localStorage["halt.models"] = JSON.stringify([{ name: "a secret model" }]);
  localStorage["halt.single-key"] = "off";
  localStorage["other.secret"] = "of another program";
  sessionStorage[`halt.queue.${id}`] = JSON.stringify(
    { held: "stopped", waiting: [{ text: "a secret, queued", models: [] }] });
}"""


def visit(chat: Chat, server: HaltServer) -> None:
    chat.page.goto(server.url)
    expect(chat.prompt).to_be_editable()


def test_next_person_finds_nothing_that_the_former_has_stored(
    people_server: HaltServer,
    shared_fake: FakeOpenAI,
    people: ServerPeople,
    open_chat: OpenChat,
) -> None:
    """Drafts, queues and models go before another person's page runs; switches of the browser and
    what other programs have stored stay. Each tab's own storage is cleared when it is loaded again.
    """
    ada, ben = people.add("Ada"), people.add("Ben")
    chat = open_chat(people_server, shared_fake)
    people.sign_in(chat.context, ada)
    visit(chat, people_server)
    chat.page.evaluate(FILL, "q-1")
    chat.page.reload()
    expect(chat.prompt).to_have_value("a secret")
    other = open_chat(people_server, shared_fake, same=chat)
    visit(other, people_server)
    other.page.evaluate("sessionStorage['halt.queue.q-2'] = 'a secret of this tab'")

    people.sign_in(chat.context, ben)
    for tab in (chat, other):  # a page that is still open writes nothing when it is left
        visit(tab, people_server)
        expect(tab.prompt).to_have_value("")
        stored = tab.page.evaluate(STORED)
        assert re.findall(r"secret[^\"]*", stored) == ["secret"], stored
        assert "single-key" in stored


def test_open_page_of_the_former_person_neither_reads_nor_writes_the_next_ones_draft(
    people_server: HaltServer,
    shared_fake: FakeOpenAI,
    people: ServerPeople,
    open_chat: OpenChat,
) -> None:
    """The draft of a page stays in that page once another person's page has been loaded."""
    ada, ben = people.add("Ada"), people.add("Ben")
    chat = open_chat(people_server, shared_fake)
    people.sign_in(chat.context, ada)
    visit(chat, people_server)
    other = open_chat(people_server, shared_fake, same=chat)
    people.sign_in(chat.context, ben)
    visit(other, people_server)
    chat.prompt.fill("Ada's")
    chat.prompt.fill("")
    other.prompt.fill("Ben's")
    other.page.wait_for_function("() => localStorage['halt.draft.new']?.includes(\"Ben's\")")
    expect(chat.prompt).to_have_value("")
    chat.prompt.fill("Ada's")
    chat.page.goto("about:blank")  # a page that is left saves its draft
    other.page.reload()
    expect(other.prompt).to_have_value("Ben's")


def test_drafts_survive_an_ended_sign_in_and_an_upgrade(
    people_server: HaltServer,
    shared_fake: FakeOpenAI,
    people: ServerPeople,
    open_chat: OpenChat,
) -> None:
    """The same person finds the draft after signing in again; so does the first one to load a page
    in a browser that stores no person yet.
    """
    ada = people.add("Ada")
    chat = open_chat(people_server, shared_fake)
    people.sign_in(chat.context, ada)
    visit(chat, people_server)
    chat.page.evaluate("() => ['halt.person'].forEach(key => localStorage.removeItem(key))")
    chat.page.evaluate(FILL, "q-1")
    chat.page.reload()
    expect(chat.prompt).to_have_value("a secret")
    people.sign_ins.end_all(ada)
    chat.page.goto("about:blank")
    chat.context.clear_cookies()
    chat.page.goto(people_server.url)
    expect(chat.page).to_have_url(re.compile("/login"))
    people.sign_in(chat.context, ada)
    visit(chat, people_server)
    expect(chat.prompt).to_have_value("a secret")
