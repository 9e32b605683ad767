"""The model picker: its list, its choice, and where the choice is kept."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from halt.testing.fake_openai import FakeOpenAI
from tests.browser.chat import Chat
from tests.browser.conftest import OpenChat
from tests.browser.model_picker import button, choose, value, wait_offered
from tests.support.halt_server import StartHalt
from tests.support.model_servers import listing, models
from tests.support.ports import free_port
from tests.support.raw_server import RawServer
from tests.support.waiting import SERVER_TIMEOUT, wait_until


def test_picker_lists_the_providers_models_and_sends_the_choice(chat: Chat) -> None:
    """The default stands first; the chosen model is in the request and under its answer."""
    wait_offered(chat, "count")
    expect(value(chat).locator("option").first).to_contain_text("Default")
    expect(value(chat)).to_have_value("")
    choose(chat, "markdown")
    chat.last_prompt = "Hello, markdown."
    chat.submit(chat.last_prompt)
    chat.wait_state("done")
    assert chat.record().body["model"] == "markdown"
    expect(chat.text.locator("h1")).to_have_text("A fixed answer")
    expect(chat.answer.locator(".figures")).to_contain_text("markdown")


def test_picker_keeps_the_choice_of_a_conversation(chat: Chat) -> None:
    """A conversation keeps its model; a new chat starts with the last choice."""
    choose(chat, "length")
    chat.submit("One.")
    chat.wait_state("done")
    first = chat.page.url
    chat.reload()
    expect(value(chat)).to_have_value("length")
    chat.page.get_by_role("link", name="New chat").click()
    expect(chat.page.locator(".exchange")).to_have_count(0)
    expect(value(chat)).to_have_value("length")
    choose(chat, "no_usage")
    chat.submit("Two.")
    chat.wait_state("done")
    chat.page.goto(first)
    expect(value(chat)).to_have_value("length")


def test_regenerate_uses_the_model_chosen_now(chat: Chat) -> None:
    """ "Write again" sends the prompt to the model that is chosen now."""
    choose(chat, "echo")
    chat.last_prompt = "Say it again."
    chat.submit(chat.last_prompt)
    chat.wait_text("Say it again.")
    chat.wait_state("done")
    choose(chat, "no_usage")
    chat.button("Write again").click()
    chat.wait_text("18 19")
    chat.wait_state("done")
    assert chat.record(1).body["model"] == "no_usage"
    chat.reload()
    expect(value(chat)).to_have_value("no_usage")


def test_picker_of_a_silent_provider_offers_the_default(
    open_chat: OpenChat, start_halt: StartHalt, fake: FakeOpenAI
) -> None:
    """A provider without a model list delays no page; the default model is offered."""
    with FakeOpenAI.unaccepting() as address:
        chat = open_chat(start_halt(address, HALT_MODEL="count", HALT_CONNECT_TIMEOUT=60), fake)
        expect(value(chat).locator("option")).to_have_text(["Default: count"])
        expect(chat.prompt).to_be_focused()
        with chat.page.expect_response(lambda r: "/models?" in r.url) as response_info:
            chat.reload()
        assert response_info.value.ok
        expect(value(chat).locator("option")).to_have_text(["Default: count"])


def test_picker_replaces_a_retired_model_by_the_default(chat: Chat) -> None:
    """A remembered model that is no longer offered is replaced by the default."""
    chat.page.evaluate("localStorage.setItem('halt.model', 'retired-1')")
    chat.page.goto(chat.server.url)
    wait_offered(chat, "count")
    expect(value(chat)).to_have_value("")


def test_invalid_model_name_is_refused_and_the_prompt_stays(chat: Chat) -> None:
    """The server refuses an invalid model name; the prompt stays in its field."""
    chat.allowed_problems = "400"
    value(chat).evaluate("e => e.add(new Option('bad', 'x'.repeat(300), true, true))")
    chat.submit("Hello?")
    expect(chat.page.locator("#notice")).to_contain_text("model must be a name")
    expect(chat.prompt).to_have_value("Hello?")
    assert chat.exchange_count() == 0


@pytest.mark.slow
def test_picker_offers_a_new_server_when_opened(
    open_chat: OpenChat, start_halt: StartHalt, fake: FakeOpenAI
) -> None:
    """A model server that starts later is offered without a reload when the list is opened."""
    port = free_port()
    halt = start_halt(HALT_DISCOVER=f"127.0.0.1:{port}", HOST="0.0.0.0", HALT_ALLOW_ANONYMOUS=1)
    halt.url = f"http://127.0.0.1:{halt.port}"
    chat = open_chat(halt, fake)
    notice = chat.page.locator("#model-notice .banner")
    expect(notice).to_contain_text("open the list of models")
    chat.page.wait_for_load_state("networkidle")
    name = f"local-{port}/m"
    with RawServer(listing(models("m", owner="user")), port=port):
        expect(value(chat).locator(f'option[value="{name}"]')).to_have_count(0)

        def is_offered() -> bool:  # opening it requests the list, at most once in some seconds
            button(chat).click()
            chat.page.keyboard.press("Escape")
            return value(chat).locator(f'option[value="{name}"]').count() == 1

        wait_until(is_offered, SERVER_TIMEOUT)
        expect(value(chat).locator("option").first).to_have_text(f"Default: {name}")
        expect(notice).to_have_count(0)
        expect(chat.page.locator("#system")).to_be_hidden()
        chat.submit("Hello.")
        chat.wait_text("m answers.")
        chat.wait_state("done")
