"""The settings of a chat and of the display: named prompts, presets, drafts, theme, a phone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from halt.testing.fake_openai import FakeOpenAI
from tests.browser.chat import LOAD_ERRORS, Chat
from tests.browser.conftest import OpenChat
from tests.support.halt_server import HaltServer

REVIEW = "You review code."


@pytest.fixture(scope="module")
def halt(shared_fake: FakeOpenAI, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HaltServer]:
    """A Halt whose file of providers has a named prompt."""
    file: Path = tmp_path_factory.mktemp("config") / "halt.toml"
    file.write_text(
        f'[providers.local]\nkind = "openai"\nbase_url = "{shared_fake.base_url}"\n'
        f'[prompts]\n"Code reviewer" = "{REVIEW}"\n'
    )
    server = HaltServer({"HALT_CONFIG": str(file)})
    yield server
    server.close()


@pytest.fixture
def chat(open_chat: OpenChat, halt: HaltServer, shared_fake: FakeOpenAI) -> Chat:
    return open_chat(halt, shared_fake)


def focused(page: Page) -> str:
    """The ID of the element with the focus."""
    return str(page.evaluate("document.activeElement.id"))


def test_prompt_is_chosen_by_name_for_a_new_chat(chat: Chat) -> None:
    """The head of a new chat offers the named prompts; the chosen one is in the head and sent."""
    chip = chat.page.locator("#system")
    expect(chip).to_have_text("System prompt")
    chip.click()
    dialog = chat.page.get_by_role("dialog", name="Chat settings")
    dialog.get_by_label("Choose a prompt").select_option("Code reviewer")
    expect(dialog.get_by_label("System prompt", exact=True)).to_have_value(REVIEW)
    expect(dialog).to_contain_text("cannot be changed here")
    dialog.get_by_role("button", name="Save", exact=True).click()
    expect(dialog).to_be_hidden()
    expect(chip).to_have_text("System prompt: Code reviewer")
    assert focused(chat.page) == "system"
    chat.ask("count?n=2")
    chat.wait_state("done")
    assert chat.record().body["messages"][0] == {"role": "system", "content": REVIEW}
    chat.reload()
    expect(chip).to_have_text("System prompt: Code reviewer")


def test_preset_is_saved_applied_and_deleted(chat: Chat) -> None:
    """A preset of one chat fills the fields of another; its name is replaced after a question."""
    chat.allowed_problems = LOAD_ERRORS  # the question is an error to the browser
    dialog = chat.open_settings()
    preset, temperature = dialog.get_by_label("Choose a preset"), dialog.get_by_label("Temperature")
    preset.select_option("Creative")
    expect(temperature).to_have_value("1.2")
    for value in ("0.3", "0.4"):
        temperature.fill(value)
        expect(preset.locator(":checked")).to_have_text("Set for this chat")
        dialog.locator("#settings-sampling-part").get_by_text("Save as a preset…").click()
        name = dialog.get_by_label("Name of the preset")
        name.fill("Tight")
        name.press("Enter")
        if value == "0.4":
            expect(dialog.get_by_role("alert")).to_contain_text("You have a preset “Tight” already")
            expect(name).to_have_attribute("aria-invalid", "true")
            dialog.get_by_role("button", name="Replace it").click()
        expect(preset).to_have_value("Tight")
        assert focused(chat.page) == "settings-preset"
    chat.page.keyboard.press("Escape")
    dialog.get_by_role("button", name="Discard").click()
    chat.open_settings()
    expect(preset).to_have_value("Model defaults")
    preset.select_option("Tight")
    expect(temperature).to_have_value("0.4")
    dialog.get_by_role("button", name="Delete this preset").click()
    expect(preset.locator("option")).to_have_text(
        ["Model defaults", "Precise", "Creative", "Set for this chat"]
    )
    expect(temperature).to_have_value("0.4")


def test_closing_asks_before_typed_text_is_lost(chat: Chat) -> None:
    """Esc and a click outside ask before a changed text is lost; a chosen prompt keeps it too."""
    dialog = chat.open_settings()
    text = dialog.get_by_label("System prompt", exact=True)
    text.fill("Be kind.")
    dialog.get_by_label("Choose a prompt").select_option("Code reviewer")
    expect(text).to_have_value(REVIEW)
    dialog.get_by_label("Choose a prompt").select_option("Written for this chat")
    expect(text).to_have_value("Be kind.")
    for _ in range(2):
        chat.page.keyboard.press("Escape")
        expect(dialog.get_by_text("Discard changes?")).to_be_visible()
    dialog.get_by_role("button", name="Keep editing").click()
    chat.page.mouse.click(5, 5)
    dialog.get_by_role("button", name="Keep editing").click()
    expect(text).to_have_value("Be kind.")
    dialog.get_by_role("button", name="Reset").click()
    expect(text).to_have_value("")
    chat.page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    assert focused(chat.page) == "open-chat-menu"


def test_settings_opened_by_key_begin_at_the_first_field(chat: Chat) -> None:
    """A key leads to the model's field, a pointer to the heading, so that no field has a ring."""
    dialog = chat.open_settings()
    expect(dialog.get_by_role("heading", name="Chat settings")).to_be_focused()
    chat.page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    chat.page.get_by_role("button", name="More", exact=True).press("Enter")
    chat.page.get_by_role("button", name="Chat settings", exact=True).press("Enter")
    expect(dialog.get_by_label("Model", exact=True)).to_be_focused()


def test_theme_is_in_the_first_html(chat: Chat) -> None:
    """A chosen theme applies at once and is in each page that the server sends, so none flashes."""
    dialog = chat.open_display()
    dialog.get_by_label("Dark").check()
    expect(chat.page.locator("html")).to_have_attribute("data-theme", "dark")
    for path in ("/", "/docs", "/c/nothing-is-here", "/login"):
        page = chat.page.request.get(f"{chat.server.url}{path}", headers={"Accept": "text/html"})
        assert '<html lang="en" data-theme="dark"' in page.text(), path
    chat.reload()
    scheme = "getComputedStyle(document.documentElement).colorScheme"
    assert chat.page.evaluate(scheme) == "dark"
    expect(chat.open_display().get_by_label("Dark")).to_be_checked()
    dialog.get_by_label("System").check()
    chat.reload()
    assert chat.page.evaluate(scheme) == "light dark"


def test_dialog_from_a_menu_returns_the_focus_to_the_button_of_the_menu(chat: Chat) -> None:
    """A dialog that was opened in a menu leaves the focus on the menu's button, never nowhere."""
    chat.page.locator("#open-models").click()
    expect(chat.page.locator("#models")).to_be_visible()
    chat.page.keyboard.press("Control+k")
    expect(chat.page.locator("#palette-field")).to_be_focused()
    chat.page.keyboard.press("Escape")
    expect(chat.page.locator("#open-models")).to_be_focused()
    for open_dialog, opener in (
        (chat.open_settings, "#open-chat-menu"),
        (chat.open_display, "#open-all"),
    ):
        open_dialog()
        chat.page.keyboard.press("Escape")
        expect(chat.page.locator(opener)).to_be_focused()


def test_dialogs_fill_a_phone(
    open_chat: OpenChat, halt: HaltServer, shared_fake: FakeOpenAI
) -> None:
    """On a phone a dialog fills the screen, and its controls are at least 44 pixels high."""
    size = {"width": 390, "height": 844}
    chat = open_chat(halt, shared_fake, viewport=size, has_touch=True, is_mobile=True)
    for open_dialog in (chat.open_settings, chat.open_display):
        dialog = open_dialog()
        assert dialog.bounding_box() == {"x": 0, "y": 0, **size}
        small = dialog.evaluate(
            """dialog => [...dialog.querySelectorAll('button, select, summary, label:has(input)')]
              .filter(control => control.checkVisibility() && control.offsetHeight < 44)
              .map(control => control.outerHTML)"""
        )
        assert small == []
        dialog.get_by_role("button", name="Close").click()
        expect(dialog).to_be_hidden()
