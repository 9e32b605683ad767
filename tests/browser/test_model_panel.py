"""The panel of the model picker: search, keyboard, recents, comparison, phone, hostile names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Locator, expect

from halt.testing.fake_openai import FakeOpenAI
from tests.browser.chat import Chat
from tests.browser.conftest import OpenChat
from tests.browser.model_picker import (
    button,
    choose,
    choose_one,
    choose_several,
    panel,
    row,
    value,
    wait_offered,
)
from tests.support.halt_server import HaltServer, StartHalt, settings
from tests.support.model_servers import listing, models, refusing
from tests.support.ports import free_port
from tests.support.raw_server import RawServer

HOSTILE = "<img src=x onerror=alert(1)>\"'&amp;"
LONG = "maker/" + "endless-" * 24
NAMES = [f"maker-{n % 7}/model-{n}" for n in range(300)] + [HOSTILE, LONG]
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}


@pytest.fixture(scope="module")
def long_list() -> Iterator[HaltServer]:
    """A Halt whose model server lists NAMES, each with some abilities; the third is the default."""
    names = models(*NAMES, context_length=131072, capabilities=["vision", "tools"])
    with RawServer(listing(names)) as server:
        halt = HaltServer(settings(server.url, HALT_MODEL=NAMES[2]))
        yield halt
        halt.close()


@pytest.fixture
def panel_chat(open_chat: OpenChat, long_list: HaltServer, shared_fake: FakeOpenAI) -> Chat:
    """A tab with NAMES in its list."""
    chat = open_chat(long_list, shared_fake)
    wait_offered(chat, NAMES[299])
    return chat


def search(chat: Chat) -> Locator:
    return panel(chat).get_by_role("combobox", name="Search models")


def active_row(chat: Chat) -> Locator:
    """The row that assistive technology takes as the active one."""
    row_id = search(chat).get_attribute("aria-activedescendant")
    return chat.page.locator(f"#{row_id}")


def test_search_narrows_a_long_list_and_enter_chooses(panel_chat: Chat) -> None:
    """Words of a name, in any order, leave the rows that have them; Enter takes the first."""
    chat = panel_chat
    button(chat).click()
    expect(search(chat)).to_be_focused()
    expect(panel(chat).get_by_role("option")).to_have_count(len(NAMES))
    default = panel(chat).get_by_role("option", selected=True)
    expect(default).to_have_attribute("data-name", NAMES[2])
    expect(default).to_contain_text("Default · 128k context · images · tools")
    search(chat).press_sequentially("29 Maker-5")
    expect(panel(chat).get_by_role("option")).to_have_count(3)  # 292, 299 and 229
    expect(panel(chat).get_by_role("status").first).to_have_text("3 models")
    search(chat).press("Enter")
    expect(panel(chat)).to_be_hidden()
    expect(button(chat)).to_be_focused()
    expect(value(chat)).to_have_value(NAMES[229])
    expect(button(chat)).to_contain_text("model-229")
    expect(chat.prompt).to_have_attribute("placeholder", "Message model-229")
    chat.submit("Hello.")
    chat.wait_text(f"{NAMES[229]} answers.")
    button(chat).click()
    search(chat).fill("no such model")
    expect(panel(chat).get_by_text("No models found.")).to_be_visible()
    search(chat).press("Enter")
    expect(panel(chat)).to_be_visible()


def test_panel_is_usable_by_keyboard_alone(panel_chat: Chat) -> None:
    """Arrows, Home and End move, Enter chooses, Esc closes; the focus returns to the button."""
    chat = panel_chat
    button(chat).focus()
    chat.page.keyboard.press("Enter")
    expect(panel(chat)).to_be_visible()
    for key, index in (
        ("ArrowDown", 3),
        ("ArrowUp", 2),
        ("Home", 0),
        ("ArrowUp", len(NAMES) - 1),
        ("ArrowDown", 0),
        ("End", len(NAMES) - 1),
        ("PageUp", len(NAMES) - 11),
    ):
        chat.page.keyboard.press(key)
        expect(active_row(chat)).to_have_attribute("data-name", NAMES[index])
        expect(active_row(chat)).to_be_in_viewport()
    chat.page.keyboard.press("Escape")
    expect(panel(chat)).to_be_hidden()
    expect(button(chat)).to_be_focused()
    expect(value(chat)).to_have_value("")


def test_short_list_has_no_search_until_one_types(
    open_chat: OpenChat, start_halt: StartHalt, fake: FakeOpenAI
) -> None:
    """With a few models the list has the focus, and a letter opens the search."""
    with RawServer(listing(models("alpha", "beta", "gamma", owner="library"))) as server:
        chat = open_chat(start_halt(server.url), fake)
        wait_offered(chat, "gamma")
        expect(button(chat)).to_have_accessible_name("Model: alpha Ollama")
        chat.page.keyboard.press("Shift+Tab")
        button(chat).press("Enter")
        expect(panel(chat)).to_be_visible()
        expect(search(chat)).to_be_hidden()
        chat.page.keyboard.press("ArrowDown")
        chat.page.keyboard.press("g")
        expect(search(chat)).to_have_value("g")
        chat.page.keyboard.press("Enter")
        expect(value(chat)).to_have_value("gamma")


def test_escape_closes_the_panel_and_stops_no_answer(chat: Chat) -> None:
    """Esc in the open panel closes it; the answer that runs goes on."""
    chat.ask("stall?n=3")
    chat.wait_state("running")
    button(chat).click()
    expect(panel(chat)).to_be_visible()  # its module is loaded first
    chat.page.keyboard.press("Escape")
    expect(panel(chat)).to_be_hidden()
    expect(chat.stop).to_be_visible()
    chat.page.keyboard.press("Escape")
    expect(chat.send).to_be_visible()


def test_recent_models_stand_first_and_once(panel_chat: Chat) -> None:
    """The models that were chosen last stand first, the latest at the top, also after a reload."""
    chat = panel_chat
    for name in (NAMES[250], NAMES[120]):
        choose(chat, name)
    chat.reload()
    wait_offered(chat, NAMES[299])
    expect(value(chat)).to_have_value(NAMES[120])
    button(chat).click()
    group = panel(chat).get_by_role("group", name="Recent")
    expect(group.get_by_role("option")).to_have_count(2)
    expect(panel(chat).get_by_role("option").nth(0)).to_have_attribute("data-name", NAMES[120])
    expect(panel(chat).get_by_role("option").nth(1)).to_have_attribute("data-name", NAMES[250])
    expect(row(chat, NAMES[120])).to_have_count(1)


def test_comparison_takes_four_models_and_leads_back_to_one(panel_chat: Chat) -> None:
    """At most four models; the first one stays when the comparison is left."""
    chat = panel_chat
    choose_several(chat, *NAMES[:5])
    expect(button(chat)).to_contain_text("4 models")
    expect(button(chat)).to_have_attribute("title", ", ".join(NAMES[:4]))
    expect(chat.prompt).to_have_attribute("placeholder", "Message 4 models")
    button(chat).click()
    expect(panel(chat).get_by_role("option", selected=True)).to_have_count(4)
    expect(panel(chat)).to_contain_text("4 of at most 4 models")
    row(chat, NAMES[1]).click()
    expect(panel(chat).get_by_role("option", selected=True)).to_have_count(3)
    chat.page.keyboard.press("Escape")
    choose_one(chat)
    expect(button(chat)).to_be_focused()
    expect(button(chat)).to_contain_text("model-0")
    expect(chat.page.locator(".choices [name=model]")).to_have_count(1)


def test_panel_is_a_sheet_on_a_phone(
    open_chat: OpenChat, long_list: HaltServer, shared_fake: FakeOpenAI
) -> None:
    """The sheet has the screen's width and its bottom edge, big rows, and opens no keyboard."""
    chat = open_chat(long_list, shared_fake, **PHONE)
    wait_offered(chat, NAMES[299])
    button(chat).tap()
    box = panel(chat).bounding_box()
    assert box is not None
    assert (box["x"], box["width"], box["y"] + box["height"]) == (0, 390, 844)
    expect(search(chat)).not_to_be_focused()
    first_row = panel(chat).get_by_role("option").first.bounding_box()
    assert first_row is not None
    assert first_row["height"] >= 44
    row(chat, NAMES[1]).tap()
    expect(panel(chat)).to_be_hidden()
    expect(value(chat)).to_have_value(NAMES[1])


@pytest.mark.parametrize("name", [HOSTILE, LONG], ids=["markup", "long"])
def test_hostile_name_is_text_and_breaks_no_head(
    open_chat: OpenChat, long_list: HaltServer, shared_fake: FakeOpenAI, name: str
) -> None:
    """Markup in a name is text; a name of 200 characters leaves the head's buttons in view."""
    chat = open_chat(long_list, shared_fake, **PHONE)
    wait_offered(chat, NAMES[299])
    button(chat).click()
    search(chat).fill(name[-30:])
    expect(panel(chat).get_by_role("option")).to_have_text(
        [f"{name} 128k context · images · tools"]
    )
    search(chat).press("Enter")
    expect(value(chat)).to_have_value(name)
    expect(button(chat)).to_have_attribute("title", name)
    for control in ("#open-models", "#open-chat-menu", "#open-sidebar"):
        expect(chat.page.locator(control)).to_be_in_viewport(ratio=1)
    assert chat.page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")


def test_panel_has_the_words_of_a_server_that_refuses(
    open_chat: OpenChat, start_halt: StartHalt, fake: FakeOpenAI
) -> None:
    """Without a list the panel offers the default, and says why there is no more."""
    body = {"error": {"message": "Invalid API key", "code": "invalid_api_key"}}
    with RawServer(refusing(b"401 Unauthorized", body)) as server:
        chat = open_chat(start_halt(server.url, HALT_MODEL="m"), fake)
        button(chat).click()
        expect(panel(chat)).to_contain_text("did not accept the API key")
        expect(panel(chat).get_by_role("option")).to_have_count(1)
        expect(row(chat, "")).to_contain_text("Default")


def test_provider_that_failed_is_asked_again_by_its_button(
    open_chat: OpenChat, start_halt: StartHalt, fake: FakeOpenAI, tmp_path: Path
) -> None:
    """A provider's fault has its name, and a button that asks this provider at once."""
    port, file = free_port(), tmp_path / "halt.toml"
    file.write_text(
        f'[providers.local]\nkind = "openai"\nbase_url = "{fake.base_url}"\n'
        f'[providers.away]\nkind = "openai"\nbase_url = "http://127.0.0.1:{port}/v1"\n'
    )
    chat = open_chat(start_halt(HALT_CONFIG=file), fake)
    wait_offered(chat, "local/echo")
    button(chat).click()
    expect(panel(chat).get_by_role("heading", name="away")).to_be_visible()
    retry = panel(chat).get_by_role("button", name="Try again")
    retry.click()
    expect(retry).to_be_enabled()
    expect(retry).to_be_focused()
    with RawServer(listing(models("late")), port=port):
        retry.click()
        expect(row(chat, "away/late")).to_be_visible()
    expect(retry).to_have_count(0)
    expect(search(chat)).to_be_focused()
