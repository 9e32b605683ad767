"""The page Models in a browser: a second server is connected, tried, broken and mended."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from halt.testing.fake_openai import FakeOpenAI
from tests.browser.chat import LOAD_ERRORS, PATIENCE, Chat
from tests.browser.conftest import OpenChat
from tests.support.halt_server import RECORD_TIMEOUT, HaltServer, settings
from tests.support.models_page import ADD, KEY, PATH
from tests.support.simple_model_server import ModelRequest, serving


@pytest.fixture
def server(shared_fake: FakeOpenAI) -> Iterator[HaltServer]:
    """A Halt of one person, with one provider of the settings."""
    server = HaltServer(settings(shared_fake, HALT_ALLOW_ANONYMOUS="", HALT_MODEL="echo"))
    yield server
    server.close()
    assert KEY not in server.printed


def with_key(request: ModelRequest) -> bool:
    """Whether the request has KEY; otherwise it is refused."""
    if request.headers["Authorization"] == f"Bearer {KEY}":
        return True
    request.reply({"error": {"message": "That key is not one of ours."}}, 401)
    return False


def lists(request: ModelRequest) -> None:
    """Two models, for requests with KEY."""
    if with_key(request):
        request.reply({"object": "list", "data": [{"id": "oak"}, {"id": "elm"}]})


def answers(request: ModelRequest) -> None:
    """An answer, for requests with KEY."""
    if with_key(request):
        request.stream()


@pytest.fixture
def address() -> Iterator[str]:
    """The address of a server that wants KEY."""
    with serving(lists, answers) as address:
        yield address


def choose(chat: Chat, name: str) -> None:
    """Choose a model in the menu."""
    chat.page.locator("#open-models").click()
    chat.page.get_by_role("option", name=name).first.click()


def test_second_server_is_connected_broken_and_mended(
    server: HaltServer, address: str, open_chat: OpenChat, shared_fake: FakeOpenAI
) -> None:
    """From the menu of models to an answer; then its key is broken, and its words lead back."""
    chat = open_chat(server, shared_fake)
    page = chat.page
    page.locator("#open-models").click()
    page.get_by_role("link", name="Manage models…").click()
    page.get_by_role("link", name="Connect a provider").click()
    page.get_by_label("Name", exact=True).fill("Second")
    page.get_by_label("Address").fill(address)
    page.get_by_label("Key", exact=True).fill(KEY)
    page.get_by_role("button", name="Try").click()
    results = page.get_by_role("list", name="Results").get_by_role("listitem")
    expect(results).to_have_count(6)
    expect(results.last).to_contain_text("Nothing failed.")
    expect(page.get_by_label("Key", exact=True)).to_have_value(KEY)
    page.get_by_role("button", name="Connect", exact=True).click()
    expect(page.get_by_role("status").first).to_contain_text("Connected.")
    assert KEY not in page.content()

    page.get_by_role("link", name="Edit").first.click()
    page.get_by_label("Name for people").fill("Old oak")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_text("Old oak", exact=True)).to_be_visible()
    page.get_by_role("listitem").filter(has_text="elm").get_by_role("button", name="Hide").click()
    expect(page.get_by_text("Hidden", exact=True)).to_be_visible()

    page.goto(server.url)
    choose(chat, "Old oak")
    chat.submit("Hello")
    chat.wait_text("19 20")
    page.locator("#open-models").click()
    expect(page.get_by_role("option", name="elm")).to_have_count(0)

    page.goto(f"{server.url}{PATH}/second")
    page.get_by_text("Change…").click()
    page.get_by_label("Key", exact=True).fill("sk-another-key-0123456789")
    page.get_by_role("button", name="Save").click()
    expect(page.locator(".fault")).to_contain_text("That key is not one of ours.")
    page.get_by_text("Change…").click()
    page.get_by_label("Key", exact=True).fill(KEY)
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_text("Reachable")).to_be_visible()
    expect(page.locator(".fault")).to_have_count(0)

    page.get_by_text("Remove…").click()
    page.get_by_role("button", name="Remove it").click()
    expect(page.get_by_role("status")).to_contain_text("Removed")
    expect(page.get_by_role("heading", name="Second")).to_have_count(0)


def fill_in(page: Page, server: HaltServer, fake: FakeOpenAI, model: str) -> None:
    """Fill in the form of a provider with one model of the fake."""
    page.goto(f"{server.url}{ADD}")
    page.get_by_label("Address").fill(fake.base_url)
    page.get_by_text("Headers, models").click()
    page.get_by_label("Models", exact=True).fill(model)


def test_cancel_ends_the_trial_and_its_request(
    server: HaltServer, open_chat: OpenChat, fake: FakeOpenAI
) -> None:
    """Lines appear while a trial runs; Cancel closes its request, and another one can be begun."""
    chat = open_chat(server, fake)
    page = chat.page
    fill_in(page, server, fake, "stall?n=0")
    page.get_by_role("button", name="Try").click()
    results = page.get_by_role("list", name="Results")
    expect(results.get_by_role("listitem")).to_have_count(4)  # the last one waits
    record = fake.wait_request(lambda record: record.method == "POST")
    page.get_by_role("button", name="Cancel").click()
    expect(results).to_contain_text("Cancelled.")
    assert record.closed.wait(RECORD_TIMEOUT)
    expect(page.get_by_role("button", name="Try")).to_be_focused()
    page.get_by_role("button", name="Try").press("Enter")
    expect(results.get_by_role("listitem")).to_have_count(4)
    record = fake.wait_request(lambda record: record.method == "POST", nth=1)
    page.get_by_role("link", name="Back to the models").click()
    assert record.closed.wait(RECORD_TIMEOUT)


def test_wrong_input_is_shown_below_its_field(
    server: HaltServer, open_chat: OpenChat, fake: FakeOpenAI
) -> None:
    """Try tells of a wrong field without a new page; what was typed stays, and is corrected."""
    chat = open_chat(server, fake)
    chat.allowed_problems = LOAD_ERRORS
    page = chat.page
    fill_in(page, server, fake, "count?n=400&gap_ms=2")
    page.get_by_label("Key", exact=True).fill("two words")
    page.get_by_role("button", name="Try").click()
    key = page.get_by_label("Key", exact=True)
    expect(key).to_be_focused()
    expect(key).to_have_attribute("aria-invalid", "true")
    expect(page.locator("#fault-key")).to_contain_text("visible ASCII")
    page.get_by_label("Value of header 1").fill("a value without a name")
    key.fill(KEY)
    page.get_by_role("button", name="Try").click()
    expect(page.get_by_label("Name of header 1")).to_be_focused()
    expect(page.locator("#fault-key")).to_have_count(0)
    page.get_by_label("Value of header 1").fill("")
    page.get_by_role("button", name="Try").click()
    expect(page.locator("#trial .end")).to_contain_text("Nothing failed.")
    expect(page.locator(".field-fault")).to_have_count(0)


def test_page_works_without_scripts(server: HaltServer, address: str, browser: Browser) -> None:
    """A provider is tried, connected, and its models moved; only Cancel is missing."""
    context = browser.new_context(java_script_enabled=False)
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    page.goto(f"{server.url}{ADD}")
    page.get_by_label("Name", exact=True).fill("Plain")
    page.get_by_label("Address").fill(address)
    page.get_by_label("Key", exact=True).fill(KEY)
    page.get_by_role("button", name="Try").click()
    results = page.get_by_role("list", name="Results").get_by_role("listitem")
    expect(results).to_have_count(6)
    expect(page.get_by_role("button", name="Cancel")).to_have_count(0)
    assert KEY not in page.content()
    page.get_by_label("Key", exact=True).fill(KEY)
    page.get_by_role("button", name="Connect", exact=True).click()
    rows = page.locator(".rows li")
    expect(rows.first).to_contain_text("oak")
    rows.nth(1).get_by_role("button", name="Top").click()
    expect(rows.first).to_contain_text("elm")
    rows.first.get_by_role("button", name="Down").click()
    expect(rows.first).to_contain_text("oak")
    context.close()
