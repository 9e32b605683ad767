"""The account page in a browser: API tokens and sign-ins."""

from __future__ import annotations

import re
from typing import Any

from playwright.sync_api import Browser, Page, expect

from halt.testing.fake_openai import FakeOpenAI
from tests.browser.chat import LOAD_ERRORS, PATIENCE, Chat
from tests.browser.conftest import OpenChat
from tests.browser.list_tab import PHONE, WIDE
from tests.support.halt_server import HaltServer
from tests.support.server_people import ServerPeople
from tests.support.waiting import SERVER_TIMEOUT, wait_until

PHONE_AGENT = (
    "Mozilla/5.0 (Linux; Android 16) AppleWebKit/537.36 (KHTML, like Gecko) "
    "Chrome/142.0.0.0 Mobile Safari/537.36"
)


def status_of(server: HaltServer, token: str) -> int:
    """The status of a program's request with the token."""
    return server.client(Authorization=f"Bearer {token}").get("/v1/models").status


def make_token(page: Page, name: str) -> str:
    """Make an API token on the page; returns it."""
    page.get_by_label("Name of a new token").fill(name)
    page.get_by_role("button", name="Make token").click()
    return page.get_by_label("Your new token").input_value()


def revoke(page: Page, name: str) -> None:
    """Revoke a token on the page."""
    row = page.get_by_role("listitem").filter(has_text=name)
    expect(row.get_by_role("button", name="Revoke it")).to_be_hidden()
    row.get_by_text("Revoke…").click()
    row.get_by_role("button", name="Revoke it").click()
    expect(page.get_by_role("status")).to_contain_text("API token revoked.")
    expect(row).to_have_count(0)


def test_token_is_made_copied_and_revoked(
    people_server: HaltServer, people: ServerPeople, open_chat: OpenChat, shared_fake: FakeOpenAI
) -> None:
    """The menu leads to the account, where a token is made, copied once, and revoked."""
    chat = open_chat(people_server, shared_fake, viewport=WIDE)
    chat.context.grant_permissions(["clipboard-read", "clipboard-write"])
    chat.allowed_problems = LOAD_ERRORS
    page = chat.page
    people.sign_in(chat.context, people.add("Ada"))
    page.goto(people_server.url)
    page.get_by_role("button", name="Ada").click()
    page.get_by_role("link", name="Account").click()
    token = make_token(page, "Backup script")
    expect(page.get_by_label("Your new token")).to_be_focused()
    page.get_by_role("button", name="Copy").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == token
    assert status_of(people_server, token) == 200
    page.reload()  # sends the form again
    expect(page.get_by_role("alert")).to_contain_text("already made a token")
    expect(page.get_by_text("Backup script", exact=True)).to_have_count(1)
    assert token not in page.content()
    revoke(page, "Backup script")
    wait_until(lambda: status_of(people_server, token) == 401, SERVER_TIMEOUT)


def test_account_without_scripts_makes_and_revokes_tokens(
    people_server: HaltServer, people: ServerPeople, browser: Browser
) -> None:
    """Without scripts there is no Copy button; everything else works."""
    context = browser.new_context(java_script_enabled=False)
    context.set_default_timeout(PATIENCE)
    people.sign_in(context, people.add("Grace"))
    page = context.new_page()
    page.goto(people_server.url)
    page.get_by_role("button", name="Grace").click()
    page.get_by_role("link", name="Account").click()
    token = make_token(page, "Script")
    expect(page.get_by_role("button", name="Copy")).to_be_hidden()
    assert status_of(people_server, token) == 200
    revoke(page, "Script")
    wait_until(lambda: status_of(people_server, token) == 401, SERVER_TIMEOUT)
    context.close()


def test_browser_whose_sign_in_is_ended_has_to_sign_in(
    people_server: HaltServer, people: ServerPeople, browser: Browser
) -> None:
    """At its next click the ended browser is led to the login page, also by the page's script."""
    person = people.add("Alan")
    desk, phone = browser.new_context(), browser.new_context()
    for context in (desk, phone):
        context.set_default_timeout(PATIENCE)
        people.sign_in(context, person)
    other, page = phone.new_page(), desk.new_page()
    other.goto(people_server.url)
    page.goto(f"{people_server.url}/account")
    row = page.get_by_role("listitem").filter(has_not_text="This browser")
    row.get_by_role("button", name="End").click()
    expect(page.get_by_role("status")).to_contain_text("Sign-in ended.")
    expect(row).to_have_count(0)
    other.get_by_role("button", name="More", exact=True).click()
    other.get_by_role("button", name="Chat settings", exact=True).click()
    expect(other).to_have_url(re.compile(r"/login"))
    for context in (desk, phone):
        context.close()


def test_person_signs_in_on_two_devices_and_ends_one(
    people_server: HaltServer, people: ServerPeople, open_chat: OpenChat, shared_fake: FakeOpenAI
) -> None:
    """An answer that is begun on one device is stopped on another; the first one then ends the
    other's sign-in, which has to sign in again at its next click.
    """
    password = "a good password"
    people.add_account("Grace", password)

    def sign_in_on(**options: Any) -> Chat:
        chat = open_chat(people_server, shared_fake, **options)
        chat.allowed_problems = LOAD_ERRORS
        page = chat.page
        expect(page.get_by_label("Name")).to_be_focused()
        page.keyboard.type("grace")
        page.get_by_label("Password").fill(password)
        page.keyboard.press("Enter")
        expect(chat.prompt).to_be_visible()
        page.wait_for_load_state()
        return chat

    desktop = sign_in_on(viewport=WIDE)
    desktop.ask("stall?n=3")
    desktop.wait_text("0 1 2")
    phone = sign_in_on(viewport=PHONE, user_agent=PHONE_AGENT)
    phone.page.goto(desktop.page.url)
    phone.wait_text("0 1 2")
    phone.stop.click()
    desktop.wait_state("stopped")
    page = desktop.page
    page.goto(f"{people_server.url}/account")
    other = page.get_by_role("listitem").filter(has_text="Android")
    other.get_by_role("button", name="End").click()
    expect(page.get_by_role("status")).to_contain_text("Sign-in ended.")
    phone.page.goto(people_server.url)
    expect(phone.page.get_by_label("Name")).to_be_visible()
    page.goto(people_server.url)
    expect(desktop.prompt).to_be_visible()
