"""Shortcuts, the list of them, and the palette."""

from __future__ import annotations

import re
from typing import Any

import pytest
from playwright.sync_api import Locator, expect

from halt.testing.fake_openai import FakeOpenAI
from tests.browser.chat import LOAD_ERRORS, Chat
from tests.browser.conftest import OpenChat
from tests.support.export_files import exported_conversation
from tests.support.halt_server import HaltServer

SCRIPT = "/static/js/shortcuts.js"

#: Keys with more than one modifier, or with the main one, that Chromium and Firefox use, and that
#: text fields and input methods of macOS use. From the files that `shortcuts.js` names.
TAKEN = {
    "Win32": {
        *(f"Control+{key}" for key in "abcdefghijlmnopqrstuvwxyz0123456789/"),
        *(f"Control+Shift+{key}" for key in "abcdefghijkmnopqrstvwxyz"),
        *(f"Alt+Shift+{key}" for key in "abit"),
        *(f"Alt+{key}" for key in ("d", "e", "f", "ArrowLeft", "ArrowRight", "Home")),
        "Shift+Escape",
    },
    "MacIntel": {
        *(f"Meta+{key}" for key in "abcdefghijlmnopqrstuvwxyz0123456789/[],."),
        *(f"Meta+Shift+{key}" for key in "abcdfghijlmnopqrstvwz"),
        *(f"Control+Shift+{key}" for key in "abefnpvjkrz"),
        *(f"Control+Shift+{key}" for key in ("ArrowUp", "ArrowDown", "ArrowLeft", "ArrowRight")),
        *(f"Control+Meta+{key}" for key in "cdfnpqswxz"),
    },
}


@pytest.fixture
def kept_chats(chat: Chat) -> Chat:
    """A tab whose session has three conversations."""
    chats = (
        exported_conversation("Where is the harbour?", "By the *old* bridge.", title="Ports"),
        exported_conversation("Bread?", "Seventy-five percent.", title="Ärger & <b>bread</b>"),
        exported_conversation("Harbour dues", "Twelve.", title="Dues"),
    )
    chat.page.set_viewport_size({"width": 1280, "height": 800})
    chat.import_conversations(*chats)
    chat.reload()
    expect(chat.page.locator("#conversations li[data-id]")).to_have_count(3)
    return chat


def palette(chat: Chat) -> Locator:
    """The open palette."""
    return chat.page.get_by_role("dialog", name="Search")


@pytest.mark.parametrize("platform", [*TAKEN])
def test_shortcut_is_free_in_browsers_and_systems(chat: Chat, platform: str) -> None:
    """No two actions have the same key, and no key belongs to a browser or a system."""
    chat.page.add_init_script(
        f"Object.defineProperty(navigator, 'platform', {{ value: '{platform}' }});"
        "Object.defineProperty(navigator, 'userAgentData', { value: undefined });"
    )
    chat.reload()
    keys = chat.page.evaluate(
        "async path => { const { SHORTCUTS, ariaKeys } = await import(path);"
        "  return SHORTCUTS.filter(row => row.main || row.wide).map(ariaKeys); }",
        SCRIPT,
    )
    assert len(keys) >= 11
    assert len(set(keys)) == len(keys)
    assert set(keys) & TAKEN[platform] == set()


def test_question_mark_outside_of_fields_lists_the_shortcuts(chat: Chat) -> None:
    """The key ? lists all shortcuts where it types nothing, unless it is switched off there."""
    dialog = chat.page.get_by_role("dialog", name="Shortcuts")
    chat.prompt.press("?")
    expect(chat.prompt).to_have_value("?")
    expect(dialog).to_have_count(0)
    chat.prompt.blur()
    chat.page.keyboard.press("?")
    expect(dialog.get_by_role("term")).to_contain_text(["Send", "New chat", "Stop the answer"])
    dialog.get_by_label("The key ? opens this list").uncheck()
    chat.page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    chat.page.keyboard.press("?")
    expect(dialog).to_have_count(0)
    chat.page.get_by_role("button", name="all shortcuts").click()
    expect(dialog).to_be_visible()


def test_shortcuts_press_the_controls_of_the_page(kept_chats: Chat) -> None:
    """Each shortcut does what its control does, from within the message field too."""
    chat = kept_chats
    chat.context.grant_permissions(["clipboard-read", "clipboard-write"])
    chat.ask("markdown")
    chat.wait_state("done")
    press = chat.page.keyboard.press
    pasted = "navigator.clipboard.readText()"
    press("Alt+Shift+C")
    chat.page.wait_for_function(f"async () => (await {pasted}).includes('```python')")
    press("Alt+Shift+X")
    chat.page.wait_for_function(f"async () => (await {pasted}).startsWith('def greet')")
    press("Alt+Shift+W")
    expect(chat.page.locator(".version").first).to_be_visible()
    chat.wait_state("done")
    theme = chat.page.locator("html")
    press("Alt+Shift+D")
    expect(theme).to_have_attribute("data-theme", "dark")
    chat.reload()
    expect(theme).to_have_attribute("data-theme", "dark")
    here = chat.page.url
    press("Alt+Shift+U")
    expect(chat.page.locator("#conversations li[data-pinned]")).to_have_count(1)
    press("Alt+Shift+ArrowDown")
    expect(chat.page).not_to_have_url(here)
    chat.page.wait_for_load_state()  # its scripts have run
    press("Alt+Shift+ArrowUp")
    expect(chat.page).to_have_url(here)
    chat.page.wait_for_load_state()
    press("Alt+Shift+O")
    expect(chat.page).to_have_url(f"{chat.server.url}/")
    chat.page.wait_for_load_state()
    chat.prompt.blur()
    press("Alt+Shift+M")
    expect(chat.prompt).to_be_focused()
    chat.ask("stall?n=3")
    chat.wait_text("0 1 2")
    press("Escape")
    chat.wait_state("stopped")
    press("Alt+Shift+G")
    chat.wait_state("done")


@pytest.mark.parametrize(
    "fields",
    [
        {"altKey": True, "shiftKey": True, "isComposing": True},
        {"altKey": True, "shiftKey": True, "ctrlKey": True},
        {"altKey": True, "shiftKey": True, "modifierAltGraph": True},
        {"shiftKey": True},
    ],
    ids=["composing", "with control", "AltGr", "shift alone"],
)
def test_other_keys_with_the_same_letter_do_nothing(chat: Chat, fields: dict[str, Any]) -> None:
    """Keys of input methods and layouts are no shortcuts."""
    was_handled = chat.prompt.evaluate(
        """(field, more) => !field.dispatchEvent(new KeyboardEvent('keydown',
          { key: 'D', code: 'KeyD', bubbles: true, cancelable: true, ...more }))""",
        fields,
    )
    assert not was_handled
    assert chat.page.locator("html").get_attribute("data-theme") is None


def test_shortcut_without_a_control_says_so(chat: Chat) -> None:
    """A shortcut that can do nothing now says why."""
    notice, press = chat.page.locator("#notice"), chat.prompt.press
    press("Alt+Shift+C")
    expect(notice).to_have_text("No answer can be copied yet.")
    chat.ask("stall?n=3")
    chat.wait_text("0 1 2")
    press("Escape")
    chat.wait_state("stopped")
    chat.ask("count?n=6&hold=3")
    chat.wait_text("0 1 2")
    press("Alt+Shift+W")
    expect(notice).to_have_text("An answer is still being written.")
    chat.release()
    chat.wait_state("done")
    press("Alt+Shift+G")
    expect(notice).to_have_text("There is no answer to continue.")
    press("Control+k")
    options = palette(chat).get_by_role("option")
    expect(options.filter(has_text="Write the answer again")).to_be_visible()
    expect(options.filter(has_text="Continue the answer")).to_have_count(0)


def test_shortcut_to_the_message_field_closes_what_is_open(chat: Chat) -> None:
    """The key that goes to the message field works in a menu, in the picker and in the sheet."""
    for opener in ("#open-chat-menu", "#open-models"):
        chat.page.locator(opener).click()
        expect(chat.page.locator(":popover-open")).to_have_count(1)
        chat.page.keyboard.press("Alt+Shift+M")
        expect(chat.page.locator(":popover-open")).to_have_count(0)
        expect(chat.prompt).to_be_focused()
    chat.page.set_viewport_size({"width": 390, "height": 844})
    chat.page.locator("#open-sidebar").click()
    expect(chat.page.locator("body.sidebar-open")).to_have_count(1)
    chat.page.keyboard.press("Alt+Shift+M")
    expect(chat.page.locator("body.sidebar-open")).to_have_count(0)
    expect(chat.prompt).to_be_focused()


def test_palette_searches_for_long_texts_of_any_script(chat: Chat) -> None:
    """A search has an address that the server reads, whatever the script of its words."""
    chat.page.keyboard.press("Control+k")
    field = palette(chat).get_by_role("combobox")
    expect(field).to_be_focused()
    chat.page.keyboard.insert_text("漢" * 600)
    expect(palette(chat).get_by_role("status")).to_contain_text("Nothing found.")


def test_palette_opens_chats_by_title_and_by_message(kept_chats: Chat) -> None:
    """The palette finds titles and messages, marks the words, and opens the chosen one by Enter."""
    chat = kept_chats
    chat.page.keyboard.press("Control+k")
    box = palette(chat).get_by_role("combobox")
    expect(box).to_be_focused()
    options = palette(chat).get_by_role("option")
    recent = palette(chat).get_by_role("group", name="Recent").get_by_role("option")
    expect(recent).to_have_count(3)
    expect(palette(chat).get_by_role("status")).to_be_empty()
    box.fill("ärger")
    expect(palette(chat).get_by_role("group", name="Chats")).to_contain_text("Ärger & <b>bread</b>")
    expect(palette(chat).locator("mark")).to_have_text(["Ärger"])
    expect(palette(chat).get_by_role("status")).to_have_text("1 result.")
    box.fill("harbour")
    messages = palette(chat).get_by_role("group", name="Messages").get_by_role("option")
    expect(messages).to_have_count(2)
    expect(options.first).to_have_attribute("aria-selected", "true")
    box.press("ArrowUp")
    expect(options.last).to_have_attribute("aria-selected", "true")
    active = box.get_attribute("aria-activedescendant")
    assert active is not None
    expect(options.last).to_have_id(active)
    box.press("Enter")
    expect(chat.page).to_have_url(re.compile(r"/c/[\w-]+\?at=\d+&q=harbour$"))
    expect(chat.page.locator(".found")).to_be_in_viewport()


def test_palette_adds_more_messages_and_says_if_it_fails(chat: Chat) -> None:
    """Its last message leads to more, an archived chat is marked, and Enter repeats a failed search."""
    chat.allowed_problems = LOAD_ERRORS
    chat.page.set_viewport_size({"width": 1280, "height": 800})
    talk = exported_conversation(*(f"walrus {n}" for n in range(50)), archived_at=1.0)
    chat.import_conversations(talk)
    chat.page.get_by_role("button", name="Search", exact=True).click()
    box, status = palette(chat).get_by_role("combobox"), palette(chat).get_by_role("status")
    chat.page.route("**/conversations/search*", lambda route: route.abort())
    box.fill("walrus")
    expect(status).to_contain_text("The server could not be reached.")
    chat.page.unroute("**/conversations/search*")
    box.press("Enter")
    options = palette(chat).get_by_role("option")
    expect(options).to_have_count(11)
    expect(status).to_have_text("10 or more results.")
    expect(options.first).to_contain_text("Archived · Answer · ")
    box.press("ArrowUp")
    box.press("Enter")
    expect(options).to_have_count(41)
    expect(options.nth(10)).to_have_attribute("aria-selected", "true")
    options.last.click()
    expect(options).to_have_count(50)
    expect(box).to_be_focused()
    expect(status).to_have_text("50 results.")
    numbers = palette(chat).locator(".snippet").all_text_contents()
    assert numbers == [f"walrus {n}" for n in reversed(range(50))]


def test_palette_does_actions_and_returns_the_focus(chat: Chat) -> None:
    """The palette does what its action says; Esc closes it, stops no answer, and keeps the focus."""
    chat.ask("stall?n=3")
    chat.wait_text("0 1 2")
    chat.prompt.focus()
    chat.page.keyboard.press("Control+k")
    box = palette(chat).get_by_role("combobox")
    box.fill("light dark")
    expect(palette(chat).get_by_role("option")).to_have_text(["Light or darkAlt Shift D"])
    box.press("Escape")
    expect(palette(chat)).to_have_count(0)
    expect(chat.prompt).to_be_focused()
    chat.wait_state("running")
    chat.page.keyboard.press("Control+k")
    box.fill("light dark")
    expect(palette(chat).get_by_role("option")).to_have_count(1)
    box.press("Enter")
    expect(chat.page.locator("html")).to_have_attribute("data-theme", "dark")
    chat.page.keyboard.press("Escape")
    chat.wait_state("stopped")


def test_palette_fills_the_screen_of_a_phone(
    open_chat: OpenChat, halt: HaltServer, shared_fake: FakeOpenAI
) -> None:
    """On a phone the palette has the whole screen, a button that closes it, and no action for keys."""
    size = {"width": 390, "height": 844}
    chat = open_chat(halt, shared_fake, viewport=size, has_touch=True, is_mobile=True)
    chat.page.keyboard.press("Control+k")
    expect(palette(chat)).to_be_visible()
    assert palette(chat).bounding_box() == {"x": 0, "y": 0, "width": 390, "height": 844}
    expect(palette(chat).locator("kbd").first).to_be_hidden()
    options = palette(chat).get_by_role("option")
    expect(options.filter(has_text="Light or dark")).to_be_visible()
    for name in ("Go to the message field", "All shortcuts", "Pin or unpin this chat"):
        expect(options.filter(has_text=name)).to_have_count(0)
    palette(chat).get_by_role("button", name="Close").tap()
    expect(palette(chat)).to_have_count(0)
    chat.page.keyboard.press("Control+k")
    options.filter(has_text="Archived chats").tap()
    expect(chat.page.get_by_role("link", name="Back to all chats")).to_be_focused()
