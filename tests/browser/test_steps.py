"""Steps of an answer: reasoning with its duration, and tool calls."""

from __future__ import annotations

import re

from playwright.sync_api import Locator, expect

from tests.browser.chat import STOPPED_BY_USER, Chat, numbers


def steps(chat: Chat) -> Locator:
    """The steps of the last answer."""
    return chat.answer.locator(".step")


def test_reasoning_streams_into_a_closed_step_with_its_time(chat: Chat) -> None:
    """Reasoning is in a closed step that counts seconds and then shows the duration."""
    chat.ask("think?thoughts=5&n=5&gap_ms=2")
    summary = steps(chat).locator("summary")
    expect(summary).to_have_text(re.compile(r"Thinking… \d+ s"))
    expect(chat.answer.locator(".silence")).not_to_contain_text("Waiting for the model")
    text = steps(chat).locator(".step-text")
    expect(text).to_be_hidden()
    summary.click()
    expect(text).to_be_visible()
    expect(text).to_contain_text("thought0 thought1 thought2 thought3 thought4")
    chat.record().release()
    chat.wait_state("done")
    expect(summary).to_have_text(re.compile(r"^Thought( for [\d.]+\sm?s)?$"))
    expect(text).to_be_visible()  # an opened step stays open
    expect(text).to_contain_text("thought4 <b>at last</b>")  # text, never markup
    assert chat.answer_text() == numbers(5)
    chat.reload()
    expect(summary).to_have_text(re.compile(r"^Thought( for [\d.]+\sm?s)?$"))
    expect(text).to_be_hidden()
    expect(text).to_have_text("thought0 thought1 thought2 thought3 thought4 <b>at last</b>")


def test_reasoning_survives_a_reload_in_its_middle(chat: Chat) -> None:
    """After a reload in mid-reasoning the step has its text and its time, and adds text once."""
    chat.ask("think?thoughts=3&n=2")
    expect(steps(chat).locator(".step-text")).to_have_text("thought0 thought1 thought2 ")
    chat.reload()
    expect(steps(chat).locator("summary")).to_have_text(re.compile(r"Thinking… \d+ s"))
    expect(steps(chat).locator(".step-text")).to_have_text("thought0 thought1 thought2 ")
    chat.record().release()
    chat.wait_state("done")
    expect(steps(chat)).to_have_count(1)
    expect(steps(chat).locator(".step-text")).to_have_text(
        "thought0 thought1 thought2 <b>at last</b>"
    )


def test_reasoning_is_not_in_the_next_request(chat: Chat) -> None:
    """The next request holds the answer's text without its reasoning."""
    chat.ask("think?seconds=0&n=2")
    chat.wait_state("done")
    chat.ask("count?n=1")
    expect(chat.page.locator(".exchange")).to_have_count(2)
    chat.wait_state("done")
    sent_messages = chat.record().body["messages"]
    assert [m["content"].strip() for m in sent_messages[1:2]] == ["0 1"]
    assert "thought" not in str(sent_messages)


def test_text_before_a_closing_think_tag_moves_into_a_step(chat: Chat) -> None:
    """Text before a closing think tag moves into a step when the tag comes, also on a reload."""
    chat.ask("think_end?n=5")
    text = chat.answer.locator("> .text")
    expect(text).to_contain_text("thought4")
    chat.reload()
    expect(text).to_contain_text("thought4")
    chat.record().release()
    expect(steps(chat)).to_have_count(1)
    chat.wait_state("done")
    for _ in range(2):
        assert chat.answer_text() == numbers(5)
        expect(steps(chat).locator("summary")).to_have_text(
            re.compile(r"^Thought( for [\d.]+\sm?s)?$")
        )
        expect(steps(chat).locator(".step-text")).to_have_text(
            "thought0 thought1 thought2 thought3 thought4 <b>at last</b>"
        )
        chat.reload()
    chat.ask("count?n=1")
    chat.wait_state("done")
    sent_text = str(chat.record().body["messages"])
    assert "0 1 2 3 4" in sent_text
    assert "thought" not in sent_text
    assert "think>" not in sent_text


def test_text_before_a_closing_think_tag_leaves_a_running_answer(chat: Chat) -> None:
    """A running answer loses its reasoning at the tag; a Stop then keeps the answer alone."""
    chat.ask("think_end?seconds=0&n=1000000&gap_ms=5")
    expect(steps(chat)).to_have_count(1)
    expect(chat.answer).to_have_attribute("data-state", "running")
    expect(chat.answer.locator("> .text")).to_have_text(re.compile(r"^\s*0 1 2 "))
    chat.page.keyboard.press("Escape")
    chat.wait_state("stopped")
    expect(chat.answer.locator("> .text")).to_have_text(re.compile(r"^\s*0 1 2 "))
    expect(steps(chat)).to_have_count(1)


def test_tool_call_is_shown_as_its_arguments_arrive(chat: Chat) -> None:
    """A tool call shows its name, then its arguments as text as they arrive, also on a reload."""
    chat.ask("call?seconds=inf")
    label, arguments = steps(chat).locator(".label"), steps(chat).locator(".step-text")
    for _ in range(2):
        expect(label).to_have_text("Calling look_up…")
        expect(arguments).to_have_text('{"city": ')
        chat.reload()
    chat.record().release()
    chat.wait_state("done")
    for _ in range(2):
        expect(label).to_have_text("Called look_up")
        expect(arguments).to_have_text('{"city": "<i>Oslo</i>"}')
        expect(steps(chat)).to_have_count(1)
        chat.reload()


def test_stop_during_reasoning_keeps_the_reasoning(chat: Chat) -> None:
    """Reasoning without an answer is kept at Stop, and can be regenerated and discarded."""
    prompt_text = chat.ask("think?n=2")
    step_text = steps(chat).locator(".step-text")
    expect(step_text).to_contain_text("thought4")
    chat.page.keyboard.press("Escape")
    chat.wait_state("stopped")
    for _ in range(2):
        expect(step_text).to_have_text("thought0 thought1 thought2 thought3 thought4 ")
        expect(chat.answer.locator(".note-title")).to_have_text(STOPPED_BY_USER)
        expect(chat.prompt).to_have_value("")
        expect(chat.button("Continue")).to_have_count(0)  # there is no text to continue
        chat.reload()
    chat.button("Write again").click()
    expect(chat.page.locator(".versions .number")).to_contain_text("2 of")
    expect(step_text).to_contain_text("thought4")
    chat.stop.click()
    chat.wait_state("stopped")
    expect(step_text).to_contain_text("thought4")
    chat.button("Discard").click()
    expect(chat.page.locator(".versions")).to_have_count(0)
    expect(step_text).to_contain_text("thought4")
    chat.button("Discard").click()
    expect(chat.page.locator(".exchange")).to_have_count(0)
    expect(chat.prompt).to_have_value(prompt_text)


def test_step_opens_by_keyboard_and_keeps_the_focus(chat: Chat) -> None:
    """Enter opens a step, which keeps the focus when the answer is done."""
    chat.ask("think?thoughts=3&n=2")
    summary = steps(chat).locator("summary")
    summary.focus()
    summary.press("Enter")
    expect(steps(chat).locator(".step-text")).to_be_visible()
    chat.record().release()
    chat.wait_state("done")
    expect(steps(chat).locator(".step-text")).to_be_visible()
    expect(summary).to_be_focused()
