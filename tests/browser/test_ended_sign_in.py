"""The page after its sign-in has ended elsewhere, in mid-answer."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

from halt.testing.fake_openai import FakeOpenAI
from tests.browser.chat import LOAD_ERRORS, PATIENCE
from tests.browser.conftest import OpenChat
from tests.support.halt_server import HaltServer
from tests.support.server_people import ServerPeople


@pytest.mark.parametrize("follows", [False, True], ids=["post", "get"])
def test_page_goes_to_the_sign_in_when_it_ends_in_mid_answer(
    people_server: HaltServer,
    people: ServerPeople,
    shared_fake: FakeOpenAI,
    open_chat: OpenChat,
    follows: bool,
) -> None:
    """A running answer's page leads to the sign-in, and does not retry for ever; signed in again,
    it shows the answer, which went on.
    """
    person = people.add("Ada")
    chat = open_chat(people_server, shared_fake)
    chat.allowed_problems = f"{LOAD_ERRORS}|reconnect failed with status 401"
    people.sign_in(chat.context, person)
    chat.page.goto(people_server.url)
    chat.ask("count?n=1000000&gap_ms=20")
    chat.wait_text("5 6 7")
    if follows:
        chat.reload()
        chat.wait_text("10 11 12")
    address = chat.page.url
    people.sign_ins.end_all(person)
    expect(chat.page).to_have_url(re.compile(r"/login\?next=/c/"), timeout=PATIENCE)
    people.sign_in(chat.context, person)
    chat.page.goto(address)
    chat.wait_text("40 41 42")
    chat.stop.click()
    chat.wait_state("stopped")
