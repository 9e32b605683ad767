"""The message field, the keyboard, screen readers, motion and narrow screens."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import expect

from halt.testing.fake_openai import FakeOpenAI
from tests.browser.chat import LOAD_ERRORS, PASTE, STOPPED_BY_USER, Chat
from tests.browser.conftest import OpenChat
from tests.browser.held_requests import HeldRequests
from tests.support.halt_server import HaltServer, StartHalt, request_record

#: Wider than a narrow screen: a table, code, a URL, a word, and a path in code.
WIDE = f"""
| {" | ".join(f"a column {n}" for n in range(12))} |
|{"---|" * 12}
| {" | ".join("some words in a cell" for _ in range(12))} |

```python
{"a_long_line = " + " + ".join(f"value_{n}" for n in range(40))}
```

https://example.org/{"path/" * 40} {"x" * 300} `{"inline_" * 40}`

- {"y" * 200}
  - > {"z" * 200}

{"# " + "Heading" * 30}

The end.
"""


# --- the message field ----------------------------------------------------------------------------


def test_enter_sends_the_message_and_empties_the_field(chat: Chat) -> None:
    """Enter sends the message; the field is then empty and has the focus."""
    prompt_text = chat.ask("count?n=2")
    chat.wait_state("done")
    expect(chat.page.locator(".prompt .text")).to_have_text(prompt_text)
    expect(chat.prompt).to_have_value("")
    expect(chat.prompt).to_be_focused()


def test_enter_on_a_loading_page_sends_once_its_scripts_run(chat: Chat) -> None:
    """Enter before all scripts have loaded sends the message once, when they run."""
    held = HeldRequests(chat, "**/js/main.js")
    chat.page.reload(wait_until="commit")
    chat.prompt.fill("/fake count?n=2")
    chat.prompt.press("Enter")
    chat.prompt.press("Enter")
    expect(chat.prompt).to_have_value("/fake count?n=2")
    held.wait()
    held.release()
    chat.wait_state("done")
    assert chat.exchange_count() == 1
    expect(chat.prompt).to_have_value("")


@pytest.mark.parametrize("status", [200, 503], ids=["accepted", "refused"])
def test_text_typed_while_a_message_is_sent_stays(chat: Chat, status: int) -> None:
    """A second Enter sends no message; the typed text stays, and a refused message comes back."""
    held = HeldRequests(chat, "**/messages")
    chat.allowed_problems = LOAD_ERRORS
    prompt_text = chat.ask("count?n=2")
    held.wait()
    chat.prompt.press("Enter")
    expect(chat.stop).to_be_visible()
    chat.prompt.press_sequentially("the next")
    expect(chat.prompt).to_have_value("the next")
    if status == 200:
        held.release()
        chat.wait_state("done")
        expect(chat.prompt).to_have_value("the next")
    else:
        held.respond(status, "away")
        expect(chat.prompt).to_have_value(f"{prompt_text}\nthe next")
    assert chat.exchange_count() == (status == 200)
    expect(chat.page.locator("#queue li")).to_have_count(0)


def test_shift_enter_adds_a_line(chat: Chat) -> None:
    """Shift+Enter adds a line; a message of several lines is sent and shown as typed."""
    chat.prompt.press_sequentially("first")
    chat.prompt.press("Shift+Enter")
    chat.prompt.press_sequentially("second")
    expect(chat.prompt).to_have_value("first\nsecond")
    assert chat.exchange_count() == 0
    chat.prompt.press("Enter")
    chat.wait_state("done")
    assert chat.page.locator(".prompt .text").inner_text() == "first\nsecond"
    request_record(chat.fake, "first\nsecond")


@pytest.mark.parametrize(
    "event_fields", [{"isComposing": True}, {"keyCode": 229}], ids=["isComposing", "key code 229"]
)
def test_enter_within_a_composition_does_not_send(chat: Chat, event_fields: dict[str, Any]) -> None:
    """Enter that an input method takes to choose a word sends no message."""
    chat.prompt.fill("/fake count?n=1 にほん")
    handled = chat.prompt.evaluate(
        """(field, mark) => {
          const press = more => !field.dispatchEvent(new KeyboardEvent('keydown',
            { key: 'Enter', bubbles: true, cancelable: true, ...more }));
          return [press(mark), document.body.matches('.sending'), press({})];
        }""",
        event_fields,
    )
    assert handled == [False, False, True], "composing, sent by it, and Enter alone"
    chat.wait_state("done")
    assert chat.exchange_count() == 1


@pytest.mark.parametrize(
    "ends_composition", [False, True], ids=["key alone", "key after the composition"]
)
def test_enter_right_after_a_composition_does_not_send(chat: Chat, ends_composition: bool) -> None:
    """Enter that Safari sends right after the end of a composition sends no message."""
    chat.prompt.fill("/fake count?n=1 にほん")
    handled = chat.prompt.evaluate(
        """(field, endsComposition) => {
          const dispatch = (name, more) => !field.dispatchEvent(new (name === 'keydown' ? KeyboardEvent : CompositionEvent)(name,
            { bubbles: true, cancelable: true, ...more }));
          if (endsComposition) dispatch('compositionend', { data: 'にほん' });
          return dispatch('keydown', { key: 'Enter', keyCode: 13 });
        }""",
        ends_composition,
    )
    assert handled == (not ends_composition)
    if ends_composition:
        expect(chat.prompt).to_have_value("/fake count?n=1 にほん")
        chat.frames(6)  # a later Enter does not belong to the composition
        chat.prompt.press("Enter")
    chat.wait_state("done")
    assert chat.exchange_count() == 1


@pytest.mark.parametrize(
    "event_fields", [{"isComposing": True}, {"keyCode": 229}], ids=["isComposing", "key code 229"]
)
def test_escape_within_a_composition_does_not_stop(
    chat: Chat, event_fields: dict[str, Any]
) -> None:
    """Escape that an input method takes does not stop the answer."""
    chat.ask("stall?n=3&rest=2")
    chat.wait_text("0 1 2")
    chat.prompt.evaluate(
        """(field, mark) => field.dispatchEvent(new KeyboardEvent('keydown',
          { key: 'Escape', bubbles: true, cancelable: true, ...mark }))""",
        event_fields,
    )
    chat.record().release()
    chat.wait_state("done")
    assert chat.answer_text() == "0 1 2 3 4"


def test_enter_on_a_touch_screen_adds_a_line(
    open_chat: OpenChat, halt: HaltServer, shared_fake: FakeOpenAI
) -> None:
    """On a touch screen Enter adds a line; the Send button and Ctrl+Enter send."""
    size = {"width": 360, "height": 640}
    chat = open_chat(halt, shared_fake, viewport=size, has_touch=True, is_mobile=True)
    expect(chat.page.locator(".keys")).to_be_hidden()
    chat.prompt.press_sequentially("/fake count?n=2 one")
    line_height = chat.prompt.evaluate("field => field.offsetHeight")
    chat.prompt.press("Enter")
    chat.prompt.press_sequentially("two")
    expect(chat.prompt).to_have_value("/fake count?n=2 one\ntwo")
    assert chat.prompt.evaluate("field => field.offsetHeight") > line_height
    chat.send.tap()
    chat.wait_state("done")
    expect(chat.page.locator(".prompt .text")).to_have_text("/fake count?n=2 one\ntwo")
    chat.page.locator(".exchange .edit").tap()
    editor = chat.page.get_by_role("textbox", name="Edit your message")
    editor.press("End")
    editor.press("Enter")
    expect(editor).to_have_value("/fake count?n=2 one\ntwo\n")
    editor.press("Control+Enter")
    expect(editor).to_have_count(0)
    chat.wait_state("done")


def test_message_sent_on_a_touch_screen_closes_the_keyboard(
    open_chat: OpenChat, halt: HaltServer, shared_fake: FakeOpenAI
) -> None:
    """The focus leaves the field with the message: it goes to Stop, and to Send at the end."""
    size = {"width": 360, "height": 640}
    chat = open_chat(halt, shared_fake, viewport=size, has_touch=True, is_mobile=True)
    chat.ask("stall?n=3&rest=2")
    expect(chat.page.locator("#stop")).to_be_focused()
    chat.record().release()
    expect(chat.send).to_be_focused()


def test_fields_on_a_touch_screen_have_at_least_16_pixel_type(
    open_chat: OpenChat, halt: HaltServer, shared_fake: FakeOpenAI
) -> None:
    """No field has type smaller than 16 pixels, for which Safari on iOS would zoom in."""
    size = {"width": 360, "height": 640}
    chat = open_chat(halt, shared_fake, viewport=size, has_touch=True, is_mobile=True)
    chat.open_settings()
    expect(chat.page.locator("#settings-model")).to_be_visible()
    sizes = chat.page.evaluate(
        """() => [...document.querySelectorAll('input, select, textarea')]
          .map(field => [field.id || field.type, parseFloat(getComputedStyle(field).fontSize)])"""
    )
    assert {"model", "prompt", "settings-prompt"} <= {name for name, _ in sizes}
    assert [(name, size) for name, size in sizes if size < 16] == []


def test_field_grows_with_its_lines_up_to_a_limit(chat: Chat) -> None:
    """The field grows with its lines up to 40 % of the screen, and shrinks again."""

    def height() -> float:
        return float(chat.prompt.evaluate("field => field.offsetHeight"))

    line_height = height()
    chat.prompt.fill("1\n2\n3\n4")
    four = height()
    assert four > line_height + 2 * 16
    assert chat.prompt.evaluate("field => field.scrollHeight == field.clientHeight"), "cut off"
    chat.prompt.fill("line\n" * 200)
    assert four < height() <= 0.4 * 800 + 1
    expect(chat.send).to_be_in_viewport(ratio=1)
    chat.prompt.fill("1")
    assert height() == line_height
    chat.ask("count?n=1", "1\n2\n3\n4")
    chat.wait_state("done")
    assert height() == line_height


@pytest.mark.parametrize(
    "text", ["", "   ", "\n\n \t"], ids=["empty", "spaces", "newlines and a tab"]
)
def test_empty_prompt_is_not_sent(chat: Chat, text: str) -> None:
    """Neither Enter nor Send sends a request for blank text."""
    posts: list[str] = []
    chat.page.on("request", lambda request: posts.append(request.method))
    chat.prompt.fill(text)
    chat.prompt.press("Enter")
    chat.send.click()
    expect(chat.send).to_be_visible()
    chat.ask("count?n=1")
    chat.wait_state("done")
    assert (posts.count("POST"), chat.exchange_count()) == (1, 1)


# --- keyboard and screen reader -------------------------------------------------------------------


def test_controls_and_landmarks_have_accessible_names(chat: Chat) -> None:
    """Buttons, links, fields, the conversation and its articles have accessible names."""
    chat.ask("markdown")
    chat.wait_state("done")
    for control in chat.page.locator(":is(a, button, textarea):visible").all():
        expect(control).to_have_accessible_name(re.compile(r"\w"))
    for role, name in [("log", "Conversation"), ("article", "You"), ("article", "Answer")]:
        expect(chat.page.get_by_role(role, name=name, exact=True)).to_have_count(1)  # type: ignore[arg-type]
    for role in ("main", "banner", "contentinfo"):
        expect(chat.page.get_by_role(role)).to_have_count(1)  # type: ignore[arg-type]
    expect(chat.page.locator("html")).to_have_attribute("lang", "en")
    assert chat.page.title()


def test_focused_control_has_a_visible_outline(chat: Chat) -> None:
    """Tab reaches every control, and each has an outline."""
    chat.ask("markdown")
    chat.wait_state("done")
    chat.prompt.fill("x")
    chat.page.locator("a").first.focus()
    names: list[str] = []
    while "send" not in names:
        assert len(names) < 20, names
        name, width, style = chat.page.evaluate(
            """() => { const e = document.activeElement;
              const look = getComputedStyle(e.matches('#prompt') ? e.closest('.composer') : e);
              return [e.id || e.ariaLabel || e.textContent.trim(), parseFloat(look.outlineWidth), look.outlineStyle]; }"""
        )
        names.append(name)
        assert width >= (1 if name == "prompt" else 2), name  # the caret shows it too
        assert style not in {"none", "hidden"}, name
        chat.page.keyboard.press("Tab")
    assert {"new-chat", "Copy", "Write again", "prompt"} <= set(names), names
    assert names[0] == "Skip to the message field"


def test_draft_survives_a_reload_until_sent(chat: Chat) -> None:
    """Each conversation keeps its own draft over a reload until it is sent."""
    draft = "Dear model,\n\nhow are you?\nYours"
    chat.prompt.fill("For later")
    chat.reload()
    expect(chat.prompt).to_have_value("For later")
    chat.ask("count?n=2")
    chat.wait_state("done")
    chat.reload()
    expect(chat.prompt).to_have_value("")
    address = chat.page.url
    height = chat.prompt.bounding_box()
    chat.prompt.fill(draft)
    chat.page.goto(chat.server.url)
    expect(chat.prompt).to_have_value("")
    chat.page.goto(address)
    expect(chat.prompt).to_have_value(draft)
    grown = chat.prompt.bounding_box()
    assert height is not None
    assert grown is not None
    assert grown["height"] > height["height"]


def test_draft_too_long_to_be_kept_leaves_the_last_one(chat: Chat) -> None:
    """A pasted text of 200,000 characters is kept in the field too; a draft too long is named."""
    notice, cards = chat.page.locator("#notice"), chat.page.locator("#pasted li")
    text = "word " * 40_000
    chat.prompt.fill("What is this?")
    chat.prompt.evaluate(PASTE, text)
    cards.get_by_role("button", name="Edit").click()
    expect(cards).to_have_count(0)
    chat.reload()
    expect(chat.prompt).to_have_value(f"What is this?\n\n{text}")
    for _ in range(2):
        chat.prompt.evaluate(PASTE, text)
    expect(notice).to_have_text("This draft is too long to be kept over a reload.")
    chat.reload()
    expect(chat.prompt).to_have_value(f"What is this?\n\n{text}")
    expect(notice).to_be_empty()


@pytest.mark.parametrize("width", [1000, 390])
def test_many_pasted_texts_leave_the_composer_on_the_screen(chat: Chat, width: int) -> None:
    """Many pasted texts scroll among themselves, the newest in view; the keyboard reaches all."""
    chat.page.set_viewport_size({"width": width, "height": 700})
    cards = chat.page.locator("#pasted li")
    for n in range(20):
        chat.prompt.evaluate(PASTE, f"{n} " + "x" * 20_000)
    expect(cards).to_have_count(20)
    for shown in (chat.page.locator(".composer"), cards.last):
        expect(shown).to_be_in_viewport(ratio=0.9)
    expect(cards.first).not_to_be_in_viewport()
    chat.prompt.focus()
    for _ in range(40):
        chat.page.keyboard.press("Shift+Tab")
    expect(cards.first.get_by_role("button", name="Edit")).to_be_focused()
    expect(cards.first).to_be_in_viewport()


def test_odd_content_of_the_storage_is_left_out(chat: Chat) -> None:
    """Drafts, queues and models of another shape than Halt's leave the page in working order."""
    chat.ask("count?n=2")
    chat.wait_state("done")
    odd = (5, "text", [None, 5, {"text": 5}], {"text": {}, "pasted": 7, "at": "x", "name": 5})
    for n, value in enumerate((*odd, {"pasted": ["text", 5]}, {"waiting": odd, "held": "x"})):
        chat.page.evaluate(
            """text => {
              const id = location.pathname.split('/').at(-1);
              localStorage.setItem(`halt.draft.${id}`, text);
              localStorage.setItem('halt.models', text);
              sessionStorage.setItem(`halt.queue.${id}`, text);
              sessionStorage.setItem('halt.place', text);
            }""",
            json.dumps(value),
        )
        chat.reload()
        expect(chat.page.locator("#queue")).to_be_hidden()
        chat.ask("count?n=2", f"after {n}")
        expect(chat.page.locator(".exchange")).to_have_count(n + 2)
        chat.wait_state("done")


def test_draft_is_shared_by_tabs_and_ends_when_sent(chat: Chat, tab: Callable[[], Chat]) -> None:
    """A draft is in each tab of its chat; a tab changes only what it has not changed itself."""
    chat.ask("count?n=2")
    chat.wait_state("done")
    address = chat.page.url
    chat.prompt.fill("a draft")
    other = tab()
    other.page.goto(address)
    expect(other.prompt).to_have_value("a draft")
    other.prompt.fill("a better draft")
    expect(chat.prompt).to_have_value("a better draft")
    chat.prompt.fill("/fake count?n=1 a better draft")
    chat.prompt.press("Enter")
    expect(other.prompt).to_have_value("")
    chat.wait_state("done")
    other.reload()
    expect(other.prompt).to_have_value("")


def test_draft_of_a_new_chat_stays_in_its_tab(chat: Chat, tab: Callable[[], Chat]) -> None:
    """A tab whose new chat has become a conversation neither takes nor ends another one's draft."""
    other = tab()
    chat.ask("count?n=2")
    chat.wait_state("done")
    other.prompt.fill("not sent yet")
    chat.page.wait_for_function("() => localStorage.getItem('halt.draft.new')")
    chat.prompt.fill("the next message")
    key = f"halt.draft.{chat.page.url.rpartition('/')[2]}"
    other.page.wait_for_function("key => localStorage.getItem(key)", arg=key)
    expect(chat.prompt).to_have_value("the next message")
    other.reload()
    expect(other.prompt).to_have_value("not sent yet")


def test_drafts_are_limited_in_number(chat: Chat) -> None:
    """The oldest drafts are dropped when there are too many."""
    chat.page.evaluate(
        """() => { for (let n = 0; n < 60; n++)
             localStorage.setItem(`halt.draft.${n}`, JSON.stringify({ text: `${n}`, at: n })); }"""
    )
    chat.prompt.fill("the newest")
    chat.page.wait_for_function(
        "() => Object.keys(localStorage).filter(key => key.startsWith('halt.draft.')).length === 50"
    )
    chat.reload()
    expect(chat.prompt).to_have_value("the newest")
    assert chat.page.evaluate("localStorage.getItem('halt.draft.10')") is None
    assert chat.page.evaluate("localStorage.getItem('halt.draft.11')") is not None


def test_long_pasted_text_is_a_card_and_part_of_the_message(chat: Chat) -> None:
    """A long pasted text stands above the field, survives a reload, and is sent below the text."""
    long_text = "word " * 40_000
    cards = chat.page.get_by_role("list", name="Pasted texts").get_by_role("listitem")
    chat.prompt.evaluate(PASTE, long_text)
    chat.prompt.evaluate(PASTE, "<b>" + "x" * 30_000)
    expect(cards).to_contain_text(["200,000 characters", "<b>xxx"])
    expect(chat.prompt).to_have_value("")
    cards.last.get_by_role("button", name="Remove").click()
    expect(cards).to_have_count(1)
    expect(chat.prompt).to_be_focused()
    chat.page.keyboard.type("/fake count?n=3 What is this?")
    chat.reload()
    expect(cards).to_contain_text(["200,000 characters"])
    chat.prompt.press("Enter")
    expect(cards).to_have_count(0)
    chat.wait_state("done")
    sent = chat.page.locator(".prompt .text").evaluate("text => text.textContent")
    assert sent == f"/fake count?n=3 What is this?\n\n{long_text}".strip()


def test_refused_message_comes_back_with_its_pasted_text(chat: Chat) -> None:
    """A message that the server does not take comes back with its pasted text."""
    chat.allowed_problems = LOAD_ERRORS
    held = HeldRequests(chat, "**/messages")
    cards = chat.page.get_by_role("list", name="Pasted texts").get_by_role("listitem")
    chat.prompt.evaluate(PASTE, "line\n" * 5_000)
    chat.prompt.fill("What is this?")
    chat.prompt.press("Enter")
    held.wait()
    expect(cards).to_have_count(0)
    held.respond(503, "away")
    expect(chat.prompt).to_have_value("What is this?")
    cards.get_by_role("button", name="Edit").click()
    expect(chat.prompt).to_have_value("What is this?\n\n" + "line\n" * 5_000)
    expect(cards).to_have_count(0)


def test_up_in_an_empty_field_edits_the_last_message(chat: Chat) -> None:
    """Up edits the last message, Esc returns to the field; with text, Up moves in it."""
    prompt_text = chat.ask("count?n=2")
    chat.wait_state("done")
    chat.prompt.fill("text")
    chat.prompt.press("ArrowUp")
    expect(chat.prompt).to_be_focused()
    chat.prompt.fill("")
    chat.prompt.press("ArrowUp")
    editor = chat.page.get_by_role("textbox", name="Edit your message")
    expect(editor).to_be_focused()
    expect(editor).to_have_value(prompt_text)
    editor.press("Escape")
    expect(editor).to_have_count(0)
    expect(chat.prompt).to_be_focused()


def test_focus_after_an_edit_is_in_the_message_field(chat: Chat) -> None:
    """A sent edit leaves the focus in the message field while the answer runs."""
    chat.ask("count?n=2")
    chat.wait_state("done")
    chat.prompt.press("ArrowUp")
    editor = chat.page.get_by_role("textbox", name="Edit your message")
    editor.fill("/fake stall?n=3")
    editor.press("Enter")
    chat.wait_text("0 1 2")
    expect(chat.prompt).to_be_focused()
    chat.page.keyboard.press("Escape")
    chat.wait_state("stopped")
    expect(chat.prompt).to_be_focused()


def test_keyboard_of_a_phone_moves_neither_head_nor_composer(
    open_chat: OpenChat, halt: HaltServer, shared_fake: FakeOpenAI
) -> None:
    """On a smaller page, as with an open keyboard, head and composer stay at its edges."""
    size = {"width": 390, "height": 844}
    chat = open_chat(halt, shared_fake, viewport=size, has_touch=True, is_mobile=True)
    chat.ask("count?n=600")
    chat.wait_state("done")
    edges = """() => [document.querySelector('.head').getBoundingClientRect().top,
      innerHeight - document.querySelector('.foot').getBoundingClientRect().bottom].map(Math.round)"""
    assert chat.page.evaluate(edges) == [0, 0]
    chat.prompt.tap()
    chat.page.set_viewport_size({"width": 390, "height": 500})
    chat.prompt.fill("one\ntwo\nthree")
    chat.frames()
    assert chat.page.evaluate(edges) == [0, 0]
    expect(chat.send).to_be_in_viewport(ratio=1)
    expect(chat.page.locator(".keys")).to_be_hidden()


def test_focus_stays_in_the_message_field_during_an_answer(chat: Chat) -> None:
    """The field keeps the focus and the typed text while an answer runs and when it is done."""
    chat.ask("stall?n=3&rest=3")
    chat.wait_text("0 1 2")
    expect(chat.prompt).to_be_focused()
    chat.page.keyboard.type("meanwhile")
    chat.record().release()
    chat.wait_state("done")
    chat.page.keyboard.type(" and then")
    expect(chat.prompt).to_have_value("meanwhile and then")


@pytest.mark.parametrize("by", ["click", "Enter"])
def test_focus_of_a_hidden_button_moves_to_the_message_field(chat: Chat, by: str) -> None:
    """When the pressed Send or Stop button disappears, the message field has the focus."""
    chat.prompt.fill("/fake stall?n=3 x")
    chat.send.click() if by == "click" else chat.send.press("Enter")
    chat.wait_text("0 1 2")
    chat.stop.click() if by == "click" else chat.stop.press("Enter")
    chat.wait_state("stopped")
    expect(chat.prompt).to_be_focused()


def test_focus_on_an_earlier_answer_stays_when_an_answer_ends(chat: Chat) -> None:
    """The focus on a link of an earlier answer stays there when the new answer is done."""
    chat.ask("markdown")
    chat.wait_state("done")
    chat.ask("stall?n=3&rest=3")
    chat.wait_text("0 1 2")
    link = chat.page.locator(".exchange:first-child .text a[href^=https]").first
    link.focus()
    chat.record().release()
    chat.wait_state("done")
    expect(link).to_be_focused()


def test_screen_reader_hears_only_start_and_end_of_an_answer(chat: Chat) -> None:
    """A screen reader hears the start and the end of each answer, and no token."""
    chat.page.evaluate(
        """() => {
          const announcer = document.querySelector('#announcer');
          window.announcements = [];
          new MutationObserver(() => announcements.push(announcer.textContent))
            .observe(announcer, { childList: true, characterData: true, subtree: true });
        }"""
    )
    started = "The answer has started."
    chat.ask("count?n=50&hold=20")
    chat.wait_text("18 19")
    chat.release()
    chat.wait_state("done")
    chat.ask("count?n=1000000&gap_ms=4")
    expect(chat.page.locator(".exchange")).to_have_count(2)
    chat.wait_text("20 21 22")
    chat.stop.click()
    chat.wait_state("stopped")
    stopped = chat.answer.locator(".note-title").inner_text()
    assert STOPPED_BY_USER.match(stopped)
    chat.ask("error_in_stream?message=sorry&seconds=inf")
    expect(chat.page.locator(".exchange")).to_have_count(3)
    chat.wait_text("3 4")
    chat.release()
    chat.wait_state("error")
    announcements = chat.page.evaluate("announcements")
    assert announcements[:-1] == [started, "The answer is complete.", started, stopped, started]  # fmt: skip
    assert announcements[-1] == "Error: " + chat.answer.locator(".note-title").inner_text()
    chat.ask("silent_first_token")
    chat.record()
    expect(chat.page.locator(".exchange")).to_have_count(4)
    chat.wait_state("running")
    chat.page.keyboard.press("Escape")
    expect(chat.send).to_be_visible()
    note = chat.page.locator("#notice[aria-live] .note-title")
    expect(note).to_have_text("Stopped by you before any text. Your message is back in the field.")
    assert chat.page.evaluate("announcements.slice(6)") == [started]
    chat.ask("count?n=3")
    expect(note).to_have_count(0)


def test_answer_text_is_no_live_region(chat: Chat) -> None:
    """No element around an answer's text is a live region."""
    chat.ask("stall?n=3")
    chat.wait_text("0 1 2")
    live = """e => {
      for (; e; e = e.parentElement) {
        const live = e.getAttribute('aria-live') ?? (/^(log|status|alert)$/.test(e.role) ? 'by role' : '');
        if (live) return live;
      }
      return 'off';
    }"""
    assert chat.text.evaluate(live) == "off"
    expect(chat.page.locator("#announcer")).to_have_attribute("aria-live", "polite")
    chat.stop.click()
    chat.wait_state("stopped")


# --- motion, narrow screens -----------------------------------------------------------------------


@pytest.mark.parametrize("motion", ["reduce", "no-preference"])
def test_reduced_motion_stops_all_animations(
    open_chat: OpenChat, halt: HaltServer, shared_fake: FakeOpenAI, motion: str
) -> None:
    """With reduced motion the sign of a waiting answer stands still; without, it moves."""
    chat = open_chat(halt, shared_fake, reduced_motion=motion)
    chat.ask("silent_first_token")
    expect(chat.answer.locator(".silence")).to_be_visible()
    chat.frames()
    moving = chat.page.evaluate("document.getAnimations().length")
    assert (moving == 0) == (motion == "reduce")
    chat.record()
    chat.page.keyboard.press("Escape")
    expect(chat.send).to_be_visible()


def test_page_fits_a_narrow_screen(
    open_chat: OpenChat, halt: HaltServer, shared_fake: FakeOpenAI
) -> None:
    """At 360 pixels the page does not overflow, and controls are in view and large enough."""
    chat = open_chat(halt, shared_fake, viewport={"width": 360, "height": 640}, has_touch=True)
    chat.page.evaluate(
        """() => {
          window.overflow = () => (p => p.scrollWidth - p.offsetWidth)(document.scrollingElement);
          window.widest = 0;
          const look = () => { widest = Math.max(widest, overflow()); requestAnimationFrame(look); };
          look();
        }"""
    )
    expect(chat.send).to_be_in_viewport(ratio=1)
    chat.ask_for(WIDE, piece=9, gap_ms=2, hold=5)
    expect(chat.stop).to_be_in_viewport(ratio=1)
    chat.release()
    chat.wait_text("The end.")
    chat.wait_state("done")
    chat.frames()
    assert chat.page.evaluate("widest") == 0, "while it ran"
    assert chat.page.evaluate("overflow()") == 0
    for scrolls in (".table", "pre"):
        chat.text.locator(scrolls).scroll_into_view_if_needed()
        chat.frames()  # it is laid out while it is in view
        assert chat.text.locator(scrolls).evaluate("e => e.scrollWidth > e.clientWidth"), scrolls
    chat.submit("w" * 500)
    expect(chat.page.locator(".exchange")).to_have_count(2)
    chat.wait_state("done")
    assert chat.page.evaluate("overflow()") == 0
    for control in (chat.prompt, chat.send):
        expect(control).to_be_in_viewport(ratio=1)
    buttons = chat.page.locator("button:visible, a.button:visible").all()
    assert len(buttons) >= 5
    for button in buttons:
        box = button.bounding_box()
        assert box is not None
        assert box["height"] >= 24, button.inner_text()
        assert box["width"] >= 24, button.inner_text()


# --- login ----------------------------------------------------------------------------------------


def test_page_of_a_server_with_a_token_asks_for_it(
    open_chat: OpenChat, start_halt: StartHalt, fake: FakeOpenAI
) -> None:
    """The page leads to the login form; a wrong token shows an error, the right one logs in."""
    chat = open_chat(start_halt(fake, HALT_TOKEN="open-sesame"), fake)
    chat.allowed_problems = "401"
    token = chat.page.get_by_label("Access token", exact=True)
    expect(token).to_be_focused()
    assert chat.page.url.endswith("/login")
    chat.page.keyboard.type("a wrong one")
    chat.page.keyboard.press("Enter")
    expect(chat.page.get_by_role("alert")).to_have_text("That is not the token. Try again.")
    expect(token).to_have_attribute("aria-invalid", "true")
    expect(token).to_be_focused()
    expect(chat.prompt).to_have_count(0)
    contrasts = chat.contrasts()
    assert {name: c for name, c in contrasts.items() if c < 4.5} == {}
    token.fill("open-sesame")
    chat.page.get_by_role("button", name="Sign in").click()
    expect(chat.prompt).to_be_focused()
    chat.page.wait_for_load_state()  # its scripts have run
    chat.ask("count?n=3")
    chat.wait_state("done")
    chat.reload()
    assert chat.answer_text() == "0 1 2"


def test_enter_twice_sends_once_and_queues_later_text_alone(chat: Chat) -> None:
    """A second Enter during the request sends no message; text typed after it is queued alone."""
    held = HeldRequests(chat, "**/messages")
    prompt_text = chat.ask("stall?n=3")
    held.wait()
    chat.prompt.press("Enter")
    chat.prompt.press_sequentially(" More")
    chat.prompt.press("Enter")
    expect(chat.page.locator("#queue li .text")).to_have_text(["More"])
    expect(chat.prompt).to_have_value("")
    held.release()
    chat.wait_text("0 1 2")
    expect(chat.prompt).to_have_value("")
    assert chat.page.locator(".prompt .text").inner_text() == prompt_text
    expect(chat.page.locator("#queue li .text")).to_have_text(["More"])
    chat.stop.click()
    chat.wait_state("stopped")


# --- ideas of an empty chat -----------------------------------------------------------------------


def test_idea_begins_a_message_and_keeps_the_draft(chat: Chat) -> None:
    """An idea's words stand before the text in the field; another idea takes their place."""
    chat.prompt.fill("my text")
    chat.page.get_by_role("button", name="Explain an error").click()
    expect(chat.prompt).to_be_focused()
    expect(chat.prompt).to_have_value("Explain this error, and how to fix it:\n\nmy text")
    summary = chat.page.get_by_role("button", name="Summarise a PDF")
    summary.focus()
    with chat.page.expect_file_chooser():
        chat.page.keyboard.press("Enter")
    expect(chat.prompt).to_have_value("Summarise this document in five points. my text")
    chat.prompt.press("Control+A")
    chat.prompt.press_sequentially("Hello.")
    chat.prompt.press("Enter")
    chat.wait_state("done")
    expect(summary).to_be_hidden()


def test_idea_opens_the_comparison_if_there_are_models_to_compare(chat: Chat) -> None:
    """With several models the third idea opens the panel in which several can be chosen."""
    chat.page.get_by_role("button", name="Compare two models").click()
    models = chat.page.get_by_role("dialog", name="Models", exact=True)
    expect(models.get_by_role("listbox")).to_have_attribute("aria-multiselectable", "true")
    expect(chat.page.get_by_role("button", name="Summarise a text")).to_be_hidden()
    chat.page.keyboard.press("Escape")
    expect(models).to_be_hidden()
