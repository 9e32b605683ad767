"""Scrolling: following an answer, the way back to the end, long conversations, a reader's place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Locator, ViewportSize, expect

from tests.browser.chat import Chat
from tests.browser.conftest import OpenChat
from tests.support.export_files import exported_conversation
from tests.support.halt_server import HaltServer
from tests.support.waiting import SERVER_TIMEOUT, wait_until

PHONE: ViewportSize = {"width": 390, "height": 700}
PARAGRAPHS = "\n\n".join(f"Paragraph {n} with a few words." for n in range(120))
CODE = "\n".join(("```python", *(f"value_{n} = {n}  # a line" for n in range(30)), "```"))


def open_long(chat: Chat, exchanges: int = 30) -> None:
    """Import a conversation with answers of very different heights, and open it."""
    texts: list[str] = []
    for n in range(exchanges):
        texts += [f"Question {n}", f"Answer {n}.\n\n" + f"{CODE}\n\n" * (n % 4) + "Done."]
    conversation = exported_conversation(*texts, title="Long")
    chat.import_conversations(conversation)
    chat.page.goto(f"{chat.server.url}/c/{conversation['id']}")
    chat.frames()


def to_end(chat: Chat) -> Locator:
    """The button that leads to the end."""
    return chat.page.locator("#to-end")


def top_of(chat: Chat, text: str) -> float:
    """Pixels from the top of the window to the prompt with this text."""
    top: float = chat.page.get_by_text(text, exact=True).evaluate(
        "e => e.getBoundingClientRect().top"
    )
    return top


def by_key(chat: Chat) -> None:
    chat.page.evaluate("document.activeElement.blur()")
    chat.page.keyboard.press("PageUp")


def by_focus(chat: Chat) -> None:
    chat.page.evaluate("document.querySelector('#messages button.copy').focus()")


def by_search(chat: Chat) -> None:
    assert chat.page.evaluate("find('Paragraph 2 with', false, true)")


@pytest.mark.usefixtures("stepwise")
def test_page_at_its_end_follows_the_text(chat: Chat) -> None:
    """While the page is scrolled to its end, new text and the figures stay in view."""
    chat.ask_for_paragraphs(PARAGRAPHS, (30, 70, 115))
    for n in (20, 60, 110):
        chat.wait_text(f"Paragraph {n} ")
        assert chat.pixels_above() > 0
        assert chat.pixels_below() < 40
        chat.wait_state("running")
        chat.release()
    chat.wait_state("done")
    expect(chat.answer.locator(".figures")).to_be_in_viewport()


@pytest.mark.usefixtures("stepwise")
@pytest.mark.parametrize("pixels", [15, 300], ids=["15 pixels", "300 pixels"])
def test_page_scrolled_up_stays_until_scrolled_to_its_end(chat: Chat, pixels: int) -> None:
    """After scrolling up, even a little, the page stays until it is scrolled to its end again."""
    chat.ask_for_paragraphs(PARAGRAPHS, (30, 40, 75))
    chat.wait_text("Paragraph 29 ")
    chat.frames()
    before = chat.pixels_above()
    chat.page.mouse.move(400, 300)
    chat.page.mouse.wheel(0, -pixels)
    wait_until(lambda: chat.pixels_above() < before, SERVER_TIMEOUT)
    chat.release()
    wait_until(lambda: chat.pixels_below() > 100, SERVER_TIMEOUT)
    position = chat.pixels_above()
    chat.wait_text("Paragraph 39 ")
    chat.release()
    chat.wait_text("Paragraph 70 ")
    assert chat.pixels_above() == position

    def is_at_the_end() -> bool:
        chat.page.evaluate("scrollTo(0, document.scrollingElement.scrollHeight)")
        chat.frames()  # new text may move the end meanwhile
        return chat.pixels_below() < 40

    wait_until(is_at_the_end, SERVER_TIMEOUT)
    chat.wait_state("running")
    chat.release()
    chat.wait_text("Paragraph 110 ")
    assert chat.pixels_below() < 40
    chat.wait_state("done")
    expect(chat.answer.locator(".figures")).to_be_in_viewport()


def test_page_scrolled_up_stays_when_the_answer_ends(chat: Chat) -> None:
    """The end of an answer does not move a page that is scrolled up; a new prompt does."""
    chat.ask_for(PARAGRAPHS, piece=8, hold=200)
    chat.wait_text("Paragraph 25 ")
    chat.frames()  # the page is at the end of the text, so that the next line scrolls up
    chat.page.evaluate("scrollTo(0, 100)")
    chat.release()
    chat.wait_state("done")
    chat.frames()
    assert chat.pixels_above() == 100
    chat.ask("count?n=3")
    chat.wait_state("done")
    expect(chat.answer.locator(".figures")).to_be_in_viewport()


@pytest.mark.usefixtures("stepwise")
@pytest.mark.parametrize("scroll_up", [by_key, by_focus, by_search])
def test_scroll_up_by_any_means_stays_and_the_button_leads_back(
    chat: Chat, scroll_up: Callable[[Chat], Any]
) -> None:
    """A reader who has scrolled up is not moved; the button tells of new text, and follows again."""
    chat.ask_for_paragraphs(PARAGRAPHS, (40, 80, 110))
    chat.wait_text("Paragraph 39 ")
    chat.frames()
    expect(to_end(chat)).to_be_hidden()
    before = chat.pixels_above()
    scroll_up(chat)
    wait_until(lambda: chat.pixels_above() < before - 100, SERVER_TIMEOUT)
    wait_until(lambda: is_at_rest(chat), SERVER_TIMEOUT)
    position = chat.pixels_above()
    expect(to_end(chat)).to_have_accessible_name("To the end")
    chat.release()
    chat.wait_text("Paragraph 79 ")
    expect(to_end(chat)).to_have_accessible_name("New text below: to the end")
    assert chat.pixels_above() == position
    to_end(chat).focus()
    chat.page.keyboard.press("Enter")
    expect(to_end(chat)).to_be_hidden()
    expect(chat.prompt).to_be_focused()
    chat.release()
    chat.wait_text("Paragraph 109 ")
    assert chat.pixels_below() < 2
    chat.stop.click()
    chat.wait_state("stopped")


def is_at_rest(chat: Chat) -> bool:
    """Whether the page does not scroll for some frames."""
    before = chat.pixels_above()
    chat.frames(8)
    return chat.pixels_above() == before


def test_conversation_opens_at_its_exact_end(chat: Chat) -> None:
    """Opening a conversation shows its end, though the code above has no layout yet."""
    open_long(chat)
    assert chat.pixels_below() < 2
    expect(chat.text.get_by_text("Done.")).to_be_in_viewport()
    expect(to_end(chat)).to_be_hidden()
    chat.page.evaluate("scrollTo(0, document.scrollingElement.scrollTop - 3000)")
    expect(to_end(chat)).to_be_visible()
    to_end(chat).click()
    expect(to_end(chat)).to_be_hidden()
    wait_until(lambda: chat.pixels_below() < 2, SERVER_TIMEOUT)


def test_reload_keeps_the_place_of_a_reader_who_scrolled_up(chat: Chat) -> None:
    """A reload shows the same text in the same place, also in a part that was loaded later."""
    open_long(chat, 90)
    question = chat.page.get_by_text("Question 20", exact=True)
    for loaded in (80, 90):
        chat.page.evaluate("scrollTo(0, 0)")
        expect(chat.page.locator(".exchange")).to_have_count(loaded)
    question.evaluate("e => { e.scrollIntoView({ block: 'start' }); scrollBy(0, -150); }")
    wait_until(lambda: is_at_rest(chat), SERVER_TIMEOUT)
    top = top_of(chat, "Question 20")
    chat.reload()
    expect(question).to_be_in_viewport()
    wait_until(lambda: is_at_rest(chat), SERVER_TIMEOUT)
    assert abs(top_of(chat, "Question 20") - top) < 2
    chat.page.goto(chat.page.url)
    expect(chat.text.get_by_text("Done.")).to_be_in_viewport()


def test_search_of_the_browser_finds_text_far_from_the_visible_part(chat: Chat) -> None:
    """Text that has no layout yet is found, and its place is shown."""
    open_long(chat)
    assert chat.page.evaluate("find('Answer 3.', false, true)")
    wait_until(lambda: is_at_rest(chat), SERVER_TIMEOUT)
    expect(chat.page.get_by_text("Answer 3.", exact=True)).to_be_in_viewport()


def test_keyboard_of_a_phone_leaves_the_end_in_sight(
    open_chat: OpenChat, halt: HaltServer, shared_fake: Any
) -> None:
    """When the window becomes lower, a page at its end stays there, and one above stays too."""
    chat = open_chat(halt, shared_fake, viewport=PHONE, has_touch=True, is_mobile=True)
    open_long(chat)
    chat.page.set_viewport_size({"width": PHONE["width"], "height": 380})
    chat.frames()
    assert chat.pixels_below() < 2
    chat.page.set_viewport_size(PHONE)
    chat.page.evaluate("scrollBy(0, -2000)")
    wait_until(lambda: is_at_rest(chat), SERVER_TIMEOUT)
    position = chat.pixels_above()
    chat.page.set_viewport_size({"width": PHONE["width"], "height": 380})
    chat.frames()
    assert abs(chat.pixels_above() - position) < 2
