"""The page where no model is set up, and where providers come and go while it is open."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Locator, expect

from halt.config.providers import ModelSettings
from halt.connected.service import ConnectedProviders
from halt.testing.fake_openai import FakeOpenAI
from tests.browser.chat import Chat
from tests.browser.conftest import OpenChat
from tests.browser.model_picker import (
    button,
    choose,
    choose_several,
    panel,
    row,
    value,
    wait_offered,
)
from tests.support.connected import connected_at, details, removed_at_the_end
from tests.support.halt_server import HaltServer, StartHalt, settings
from tests.support.model_servers import listing, models
from tests.support.no_demo import halt_without_model, without_demo
from tests.support.ports import free_port
from tests.support.raw_server import RawServer
from tests.support.waiting import SERVER_TIMEOUT, wait_until

EMPTY = "No model is set up yet."


@pytest.fixture(scope="module")
def empty_halt() -> Iterator[HaltServer]:
    """A Halt of one person, without a model, which looks for none."""
    with halt_without_model() as server:
        yield server


@pytest.fixture
def connected(empty_halt: HaltServer) -> Iterator[ConnectedProviders]:
    """The server's connected providers: none at the beginning and at the end."""
    with removed_at_the_end(empty_halt.data_folder) as service:
        yield service


@pytest.fixture
def empty_chat(open_chat: OpenChat, empty_halt: HaltServer, fake: FakeOpenAI) -> Chat:
    """The page of that server."""
    return open_chat(empty_halt, fake)


def note(chat: Chat) -> Locator:
    """What the page says where no model is set up."""
    return chat.page.get_by_role("region", name=EMPTY)


def ask_again(chat: Chat) -> Locator:
    """Open the picker, which requests the list, and close it. Returns the options."""
    button(chat).click()
    expect(panel(chat)).to_be_visible()
    chat.page.keyboard.press("Escape")
    expect(panel(chat)).to_be_hidden()
    return value(chat).locator("option")


def wait_not_offered(chat: Chat, model: str) -> None:
    """Open the picker until the list is without this model."""

    def is_gone() -> bool:  # the list is requested at most once in some seconds
        return not is_offered(ask_again(chat), model)

    wait_until(is_gone, SERVER_TIMEOUT)


def test_refused_message_stays_and_leaves_no_conversation(empty_chat: Chat) -> None:
    """Without a model a message is refused in words, and stays in its field, also on a reload."""
    chat = empty_chat
    chat.allowed_problems = "503"
    expect(note(chat)).to_be_visible()
    expect(chat.page.get_by_role("heading", name="What are we looking at?")).to_be_hidden()
    expect(button(chat)).to_have_text(re.compile("No model"))
    expect(note(chat).get_by_role("link", name="Connect a model")).to_be_visible()
    expect(note(chat)).to_contain_text("this engine is for another processor")
    address = chat.page.url
    chat.submit("Is anybody there?")
    expect(chat.page.locator("#notice")).to_contain_text("No model is set up")
    expect(chat.prompt).to_have_value("Is anybody there?")
    expect(chat.page.locator(".exchange")).to_have_count(0)
    assert chat.page.url == address
    chat.page.evaluate("dispatchEvent(new Event('pagehide'))")
    chat.reload()
    expect(chat.prompt).to_have_value("Is anybody there?")
    expect(chat.page.locator("#sidebar")).to_contain_text("No chats yet")


def test_open_page_takes_up_a_provider_that_is_connected_elsewhere(
    empty_chat: Chat, connected: ConnectedProviders, fake: FakeOpenAI
) -> None:
    """When the tab is used again the note is gone, and the first message is answered."""
    chat = empty_chat
    expect(note(chat)).to_be_visible()
    chat.prompt.fill("Typed before.")
    connected.add(details(fake.base_url, models=("count?n=3",)))

    def is_taken_up() -> bool:  # a note that is gone requests no list
        chat.page.evaluate("dispatchEvent(new Event('focus'))")
        return note(chat).count() == 0

    wait_until(is_taken_up, SERVER_TIMEOUT)
    wait_offered(chat, "second/count?n=3")
    expect(chat.page.get_by_role("button", name="Explain an error")).to_be_visible()
    expect(button(chat)).to_have_text(re.compile(r"count\?n=3"))
    expect(chat.prompt).to_have_value("Typed before.")
    chat.prompt.press(chat.send_keys)
    chat.wait_text("0 1 2")
    chat.wait_state("done")


def test_look_again_finds_a_server_and_keeps_the_focus(
    open_chat: OpenChat, start_halt: StartHalt, fake: FakeOpenAI
) -> None:
    """The button says what it found; the keyboard stays on it until there is a model."""
    port = free_port()
    with without_demo() as environment:
        halt = start_halt(**environment, HALT_DISCOVER=f"127.0.0.1:{port}")
        chat = open_chat(halt, fake)
        look = note(chat).get_by_role("button", name="Look again")
        look.focus()
        look.press("Enter")
        expect(note(chat)).to_contain_text("None with a model was found.")
        expect(look).to_be_focused()
        with RawServer(listing(models("m", owner="user")), port=port):

            def is_found() -> bool:  # at most two probes in a second
                chat.page.evaluate("document.querySelector('.no-model form button')?.click()")
                return note(chat).count() == 0

            wait_until(is_found, SERVER_TIMEOUT)
            wait_offered(chat, f"local-{port}/m")
            chat.submit("Hello.")
            chat.wait_text("m answers.")
            chat.wait_state("done")


def test_conversation_of_a_removed_provider_keeps_its_model(
    empty_chat: Chat, connected: ConnectedProviders, fake: FakeOpenAI
) -> None:
    """Its name is shown, a message gets the error in words, and another model can be chosen."""
    chat = empty_chat
    connected.add(details(fake.base_url, models=("count?n=2",)))
    connected.add(details(fake.base_url, title="Other", models=("count?n=4",)))
    wait_until(lambda: ask_again(chat).count() == 3)
    choose(chat, "second/count?n=2")
    chat.submit("One.")
    chat.wait_text("0 1")
    chat.wait_state("done")
    connected.remove("second")
    wait_until(lambda: row_words(ask_again(chat)) == "not offered", SERVER_TIMEOUT)
    expect(value(chat)).to_have_value("second/count?n=2")
    chat.reload()
    wait_offered(chat, "other/count?n=4")
    expect(value(chat)).to_have_value("second/count?n=2")
    expect(button(chat)).to_have_text(re.compile(r"second/count\?n=2"))
    chat.submit("Two.")
    chat.wait_state("error")
    expect(chat.answer).to_contain_text("No provider lists the model 'second/count?n=2'")
    expect(chat.page.locator(".exchange:last-child .prompt")).to_contain_text("Two.")
    choose(chat, "other/count?n=4")
    chat.answer.locator(".regenerate").first.click()
    chat.wait_text("0 1 2 3")
    chat.wait_state("done")


def row_words(options: Locator) -> str:
    """The short words of the chosen option."""
    return options.and_(options.page.locator(":checked")).get_attribute("data-can") or ""


def test_hidden_model_stays_in_its_conversation_alone(
    empty_chat: Chat, connected: ConnectedProviders, fake: FakeOpenAI
) -> None:
    """A hidden model leaves the menu of a new chat. Its conversation shows its label and uses it."""
    chat, name = empty_chat, "second/count?n=2"
    connected.add(details(fake.base_url, models=("count?n=2", "echo")))
    wait_until(lambda: ask_again(chat).count() == 3)
    choose(chat, name)
    chat.submit("One.")
    chat.wait_text("0 1")
    chat.wait_state("done")
    connected.set_model("second", "count?n=2", ModelSettings(hidden=True, label="Old counter"))
    wait_until(lambda: row_words(ask_again(chat)) == "hidden", SERVER_TIMEOUT)
    expect(button(chat)).to_have_text(re.compile("Old counter *Second"))
    chat.submit("Two.")
    expect(chat.page.locator(".exchange")).to_have_count(2)
    chat.wait_text("0 1")
    chat.wait_state("done")
    chat.page.get_by_role("link", name="New chat").first.click()
    wait_not_offered(chat, name)
    expect(value(chat)).to_have_value("")


def test_models_of_two_providers_are_compared(
    open_chat: OpenChat, start_halt: StartHalt, fake: FakeOpenAI, shared_fake: FakeOpenAI
) -> None:
    """One prompt goes to a provider of the settings and to a connected one, each at its server."""
    halt = start_halt(**settings(shared_fake))
    with connected_at(halt.data_folder) as service:
        service.add(details(fake.base_url, models=("count?n=3",)))
    chat = open_chat(halt, shared_fake)
    wait_until(lambda: is_offered(ask_again(chat), "second/count?n=3"), SERVER_TIMEOUT)
    button(chat).click()
    expect(panel(chat).get_by_role("group", name="Second")).to_be_visible()
    expect(row(chat, "second/count?n=3")).to_contain_text("count?n=3")
    expect(panel(chat).get_by_role("link", name="Manage models…")).to_have_count(0)  # a stranger
    chat.page.keyboard.press("Escape")
    choose_several(chat, "echo", "second/count?n=3")
    chat.last_prompt = "Compared at two servers."
    chat.submit(chat.last_prompt)
    answers = chat.page.locator(".columns .answer")
    expect(answers).to_have_count(2)
    for answer, text in zip(answers.all(), ("Compared at two servers.", "0 1 2"), strict=True):
        expect(answer).to_have_attribute("data-state", "done")
        expect(answer.locator(".text")).to_contain_text(text)
    assert [r.body["model"] for r in fake.requests if r.scenario] == ["count?n=3"]
    assert chat.record().body["model"] == "echo"


def is_offered(options: Locator, model: str) -> bool:
    return options.and_(options.page.locator(f'[value="{model}"]')).count() == 1


def test_picker_leads_to_the_page_of_the_models(empty_chat: Chat) -> None:
    """Who may change the models gets a link at the end of the list."""
    chat = empty_chat
    button(chat).click()
    panel(chat).get_by_role("link", name="Manage models…").click()
    expect(chat.page).to_have_url(re.compile("/settings/models$"))
    chat.page.go_back()
    note(chat).get_by_role("link", name="Connect a model").click()
    expect(chat.page.get_by_role("heading", level=1)).to_be_visible()
    expect(chat.page).to_have_url(re.compile("/settings/models/add/"))
