"""Versions: regenerated answers, edited prompts, and the switcher between them."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import Locator, expect

from halt.core.notes import EDITED
from halt.testing.scenarios import SCENARIOS
from halt.testing.wire import Reply
from tests.browser.chat import Chat
from tests.browser.model_picker import choose
from tests.support.halt_server import new_id, request_record


@pytest.fixture
def answer_key(monkeypatch: pytest.MonkeyPatch) -> str:
    """A key for the scenario `numbered`, which numbers its answers; answer `silent=N` is silent."""

    def numbered_answer(reply: Reply, key: str = "", silent: int = 0) -> None:
        nth = reply.failures(key)
        if nth == silent:
            SCENARIOS["silent_first_token"](reply)
        else:
            reply.tokens([f"Answer {nth} ", f"to {key}."])
            reply.finish()

    monkeypatch.setitem(SCENARIOS, "numbered", numbered_answer)
    return f"k{new_id()[-6:]}"


def exchange(chat: Chat, nth: int) -> Locator:
    """The nth exchange of the page, counted from 1."""
    return chat.page.locator(f".exchange:nth-child({nth})")


def button(chat: Chat, nth: int, name: str) -> Locator:
    """A button of the nth exchange, with the pointer on the exchange."""
    exchange(chat, nth).hover()
    return exchange(chat, nth).get_by_role("button", name=name, exact=True)


def versions(chat: Chat, nth: int, part: str) -> Locator:
    """The switcher of the `part` "answer" or "message"."""
    return exchange(chat, nth).get_by_role("group", name=f"Versions of the {part}")


def wait_answer(chat: Chat, nth: int, text: str) -> None:
    """Wait until the nth exchange has this answer, done."""
    expect(exchange(chat, nth).locator("> .answer > .text")).to_have_text(re.compile(rf"^\s*{text}\s*$"))  # fmt: skip
    expect(exchange(chat, nth).locator("> .answer")).to_have_attribute("data-state", "done")


def wait_version(chat: Chat, nth: int, part: str, position: str) -> None:
    """Wait until the switcher shows this position, such as "1/2"."""
    expect(versions(chat, nth, part).locator(".number")).to_have_text(
        "Version " + position.replace("/", " of ")
    )


def editor(chat: Chat) -> Locator:
    """The field in which a prompt is edited."""
    return chat.page.get_by_role("textbox", name="Edit your message")


def test_switcher_shows_each_regenerated_answer(chat: Chat, answer_key: str) -> None:
    """The switcher, by keyboard too, shows each version; the shown one is in the next request."""
    prompt_text = chat.ask(f"numbered?key={answer_key}")
    wait_answer(chat, 1, f"Answer 1 to {answer_key}.")
    expect(versions(chat, 1, "answer")).to_have_count(0)
    for nth in (2, 3):
        button(chat, 1, "Write again").click()
        wait_answer(chat, 1, f"Answer {nth} to {answer_key}.")
        wait_version(chat, 1, "answer", f"{nth}/{nth}")
    group = versions(chat, 1, "answer")
    expect(group.get_by_role("button", name="Next version")).to_be_disabled()
    before = group.get_by_role("button", name="Previous version")
    before.focus()
    chat.page.keyboard.press("Enter")
    wait_answer(chat, 1, f"Answer 2 to {answer_key}.")
    expect(before).to_be_focused()
    expect(chat.page.locator("#announcer")).to_have_text("Version 2 of 3")
    chat.page.keyboard.press("Enter")
    wait_answer(chat, 1, f"Answer 1 to {answer_key}.")
    expect(before).to_be_disabled()
    expect(group.get_by_role("button", name="Next version")).to_be_focused()
    chat.page.keyboard.press("Enter")
    wait_answer(chat, 1, f"Answer 2 to {answer_key}.")
    chat.reload()
    wait_answer(chat, 1, f"Answer 2 to {answer_key}.")
    wait_version(chat, 1, "answer", "2/3")
    chat.ask("count?n=1")
    wait_answer(chat, 2, "0")
    sent_messages = [message["content"] for message in chat.record().body["messages"]]
    assert sent_messages == [prompt_text, f"Answer 2 to {answer_key}.", chat.last_prompt]


def test_regenerate_in_the_middle_starts_a_branch(chat: Chat, answer_key: str) -> None:
    """Later exchanges belong to the version before them, and come back with it."""
    chat.ask(f"numbered?key={answer_key}")
    wait_answer(chat, 1, f"Answer 1 to {answer_key}.")
    chat.ask(f"numbered?key={answer_key}b")
    wait_answer(chat, 2, f"Answer 1 to {answer_key}b.")
    button(chat, 1, "Write again").click()
    wait_answer(chat, 1, f"Answer 2 to {answer_key}.")
    assert chat.exchange_count() == 1
    chat.ask(f"numbered?key={answer_key}c")
    wait_answer(chat, 2, f"Answer 1 to {answer_key}c.")
    assert f"{answer_key}b" not in str(chat.record().body)
    button(chat, 1, "Previous version").click()
    wait_answer(chat, 2, f"Answer 1 to {answer_key}b.")
    for _ in range(2):
        assert chat.exchange_count() == 2
        wait_answer(chat, 1, f"Answer 1 to {answer_key}.")
        wait_answer(chat, 2, f"Answer 1 to {answer_key}b.")
        chat.reload()
    button(chat, 1, "Next version").click()
    wait_answer(chat, 1, f"Answer 2 to {answer_key}.")
    wait_answer(chat, 2, f"Answer 1 to {answer_key}c.")


@pytest.mark.parametrize("by", ["Enter", "Control+Enter", "click"])
def test_edited_prompt_is_a_version_with_its_own_branch(chat: Chat, by: str) -> None:
    """An edited prompt is sent from its place and starts a branch of its own."""
    first = chat.ask("count?n=3")
    wait_answer(chat, 1, "0 1 2")
    second = chat.ask("count?n=2")
    wait_answer(chat, 2, "0 1")
    button(chat, 1, "Edit message").click()
    expect(editor(chat)).to_have_value(first)
    expect(editor(chat)).to_be_focused()
    edited = first.replace("n=3", "n=5")
    editor(chat).fill(edited)
    if by == "click":
        exchange(chat, 1).locator(".editor").get_by_role("button", name="Send").click()
    else:
        editor(chat).press(by)
    wait_answer(chat, 1, "0 1 2 3 4")
    assert chat.exchange_count() == 1
    wait_version(chat, 1, "message", "2/2")
    expect(chat.prompt).to_have_value("")
    assert len(request_record(chat.fake, edited).body["messages"]) == 1
    third = chat.ask("count?n=1")
    wait_answer(chat, 2, "0")
    assert [message["content"].strip() for message in chat.record().body["messages"]] == [
        edited,
        "0 1 2 3 4",
        third,
    ]
    button(chat, 1, "Previous version").click()
    wait_answer(chat, 1, "0 1 2")
    for _ in range(2):
        expect(chat.page.locator(".prompt .text")).to_have_text([first, second])
        wait_answer(chat, 2, "0 1")
        wait_version(chat, 1, "message", "1/2")
        chat.reload()


def test_editor_closes_by_escape_or_cancel_without_sending(chat: Chat) -> None:
    """Esc and Cancel close the editor without a request; an edit without text says what it needs."""
    first = chat.ask("count?n=3")
    wait_answer(chat, 1, "0 1 2")
    posts: list[str] = []
    chat.page.on("request", lambda request: posts.append(request.method))
    for leave in ("Escape", "Cancel"):
        button(chat, 1, "Edit message").click()
        editor(chat).fill("something else")
        chat.page.keyboard.press("Shift+Enter")
        if leave == "Escape":
            chat.page.keyboard.press("Escape")
        else:
            chat.page.get_by_role("button", name="Cancel").click()
        expect(editor(chat)).to_have_count(0)
        expect(chat.page.locator(".prompt .text")).to_have_text(first)
        expect(button(chat, 1, "Edit message")).to_be_focused()
    button(chat, 1, "Edit message").click()
    editor(chat).fill("  ")
    editor(chat).press("Enter")
    expect(chat.page.get_by_role("alert")).to_have_text("A message needs text.")
    expect(editor(chat)).to_be_focused()
    button(chat, 1, "Edit answer").click()
    field = chat.page.get_by_label("Edit the answer")
    field.fill("")
    field.press("Control+Enter")
    expect(chat.page.get_by_role("alert").last).to_have_text("An answer needs text.")
    field.fill("x")
    expect(chat.page.get_by_role("alert")).to_have_count(1)
    assert "POST" not in posts


def test_edit_with_changes_is_not_dropped_by_another_action(chat: Chat, answer_key: str) -> None:
    """What would remove an edit with changes is refused; the edit gets the focus."""
    chat.ask(f"numbered?key={answer_key}")
    wait_answer(chat, 1, f"Answer 1 to {answer_key}.")
    chat.ask("count?n=2")
    wait_answer(chat, 2, "0 1")
    button(chat, 2, "Edit message").click()
    editor(chat).fill("a better question")
    refused = "Save or cancel your edit first."
    notice, again = chat.page.locator("#notice"), button(chat, 1, "Write again")
    for by in ("pointer", "key"):
        if by == "pointer":
            again.click()
        else:
            chat.page.keyboard.press("Alt+Shift+W")
        expect(notice).to_have_text(refused)
        expect(editor(chat)).to_be_focused()
        expect(editor(chat)).to_have_value("a better question")
        notice.evaluate("notice => notice.replaceChildren()")
        chat.prompt.focus()
    chat.prompt.press("ArrowUp")
    expect(editor(chat)).to_be_focused()
    expect(editor(chat)).to_have_value("a better question")
    editor(chat).press("Escape")
    button(chat, 2, "Edit message").click()  # without changes
    again.click()
    wait_answer(chat, 1, f"Answer 2 to {answer_key}.")
    expect(editor(chat)).to_have_count(0)
    button(chat, 1, "Edit answer").click()
    chat.page.keyboard.press("Alt+Shift+W")  # its button is hidden
    expect(notice).to_have_text(refused)
    expect(chat.page.get_by_label("Edit the answer")).to_be_focused()


def test_escape_in_the_editor_does_not_stop_the_answer(chat: Chat) -> None:
    """Esc in the editor closes it alone; its Enter during an answer shows a notice."""
    chat.ask("count?n=3")
    wait_answer(chat, 1, "0 1 2")
    button(chat, 1, "Edit message").click()
    chat.ask("stall?n=3&rest=2")
    chat.wait_text("0 1 2")
    editor(chat).press("Enter")
    expect(chat.page.locator("#notice")).to_contain_text("An answer is still being written")
    editor(chat).press("Escape")
    expect(editor(chat)).to_have_count(0)
    chat.record().release()
    chat.wait_state("done")
    assert chat.answer_text() == "0 1 2 3 4"


def test_edit_stopped_before_any_text_keeps_its_words_alone(chat: Chat, answer_key: str) -> None:
    """A stopped edit without text restores the earlier branch and keeps its text in the editor."""
    first = chat.ask(f"numbered?key={answer_key}")
    wait_answer(chat, 1, f"Answer 1 to {answer_key}.")
    chat.ask("count?n=2")
    wait_answer(chat, 2, "0 1")
    button(chat, 1, "Edit message").click()
    edited = f"/fake silent_headers {new_id()}"
    editor(chat).fill(edited)
    editor(chat).press("Enter")
    request_record(chat.fake, edited)
    chat.wait_state("running")
    chat.stop.click()
    expect(editor(chat)).to_have_value(edited)
    expect(editor(chat)).to_be_focused()
    wait_answer(chat, 1, f"Answer 1 to {answer_key}.")
    wait_answer(chat, 2, "0 1")
    expect(chat.prompt).to_have_value("")
    chat.reload()
    expect(chat.page.locator(".prompt .text")).to_have_text([first, chat.last_prompt])
    expect(chat.page.locator(".versions")).to_have_count(0)


def test_regenerate_stopped_before_any_text_restores_the_branch(
    chat: Chat, answer_key: str
) -> None:
    """A regeneration in the middle, stopped without text, restores the answer and its branch."""
    chat.ask(f"numbered?key={answer_key}&silent=2")
    wait_answer(chat, 1, f"Answer 1 to {answer_key}.")
    chat.ask("count?n=2")
    wait_answer(chat, 2, "0 1")
    button(chat, 1, "Write again").click()
    expect(chat.page.locator(".exchange")).to_have_count(1)
    chat.wait_state("running")
    chat.page.keyboard.press("Escape")
    for _ in range(2):
        wait_answer(chat, 2, "0 1")
        wait_answer(chat, 1, f"Answer 1 to {answer_key}.")
        expect(chat.page.locator(".versions")).to_have_count(0)
        expect(chat.prompt).to_have_value("")
        chat.reload()


def test_discard_of_a_version_shows_the_earlier_one(chat: Chat, answer_key: str) -> None:
    """Discard of a version shows the one before it, and the message field stays empty."""
    chat.ask(f"numbered?key={answer_key}")
    wait_answer(chat, 1, f"Answer 1 to {answer_key}.")
    choose(chat, "stall")
    button(chat, 1, "Edit message").click()
    editor(chat).fill("Tell me")
    editor(chat).press("Enter")
    chat.wait_text("3 4")
    chat.stop.click()
    chat.wait_state("stopped")
    wait_version(chat, 1, "message", "2/2")
    button(chat, 1, "Discard").click()
    wait_answer(chat, 1, f"Answer 1 to {answer_key}.")
    expect(chat.page.locator(".versions")).to_have_count(0)
    expect(chat.prompt).to_have_value("")
    chat.reload()
    wait_answer(chat, 1, f"Answer 1 to {answer_key}.")


def test_stopped_version_keeps_the_switcher(chat: Chat) -> None:
    """The end of an answer comes from its stream alone, and has the versions nevertheless."""
    chat.ask("stall?n=3&rest=0")
    for nth in (1, 2):
        chat.wait_state("running")
        chat.wait_text("0 1 2")
        expect(versions(chat, 1, "answer")).to_be_hidden()
        chat.stop.click()
        chat.wait_state("stopped")
        if nth == 1:
            button(chat, 1, "Write again").click()
    wait_version(chat, 1, "answer", "2/2")
    button(chat, 1, "Continue").click()
    chat.wait_state("done")
    wait_version(chat, 1, "answer", "2/2")


def test_edited_answer_is_a_version_and_the_model_is_told(chat: Chat) -> None:
    """An answer is edited in place by keyboard; the edit is a marked version, also in the request."""
    chat.ask("count?n=3")
    wait_answer(chat, 1, "0 1 2")
    edit, field = button(chat, 1, "Edit answer"), chat.page.get_by_label("Edit the answer")
    edit.click()
    expect(field).to_be_focused()
    expect(field).to_have_value("0 1 2 ")
    field.fill("Never mind")
    field.press("Escape")
    expect(edit).to_be_focused()
    assert chat.answer_text() == "0 1 2"
    edit.press("Enter")
    field.fill("0 1")
    field.press("Enter")  # a new line
    field.press_sequentially("two")
    field.press("Control+Enter")
    expect(chat.answer.locator("> footer")).to_contain_text("Edited by you")
    assert chat.answer_text().split() == ["0", "1", "two"]
    wait_version(chat, 1, "answer", "2/2")
    expect(edit).to_be_focused()
    chat.reload()
    expect(chat.answer).to_contain_text("Edited by you")
    expect(button(chat, 1, "Continue")).to_have_count(0)
    chat.ask("count?n=1")
    wait_answer(chat, 2, "0")
    messages = [message["content"] for message in chat.record().body["messages"]]
    assert messages[1:] == ["0 1\ntwo", f"{EDITED}\n\n{chat.last_prompt}"]
    versions(chat, 1, "answer").get_by_role("button", name="Previous version").click()
    wait_answer(chat, 1, "0 1 2")
    expect(chat.answer).not_to_contain_text("Edited by you")


def test_buttons_of_an_earlier_exchange_appear_on_focus(chat: Chat, answer_key: str) -> None:
    """The focus shows the buttons of an earlier exchange, as the pointer does."""
    chat.ask(f"numbered?key={answer_key}")
    wait_answer(chat, 1, f"Answer 1 to {answer_key}.")
    chat.ask("count?n=2")
    wait_answer(chat, 2, "0 1")
    chat.page.mouse.move(5, 5)
    edit = exchange(chat, 1).get_by_role("button", name="Edit message")
    tools, footer = (
        exchange(chat, 1).locator(".tools"),
        exchange(chat, 1).locator(".answer > footer"),
    )
    for line in (tools, footer):
        expect(line).to_have_css("opacity", "0")
    edit.focus()
    expect(tools).to_have_css("opacity", "1")
    regenerate_button = exchange(chat, 1).get_by_role("button", name="Write again")
    for _ in range(5):
        if regenerate_button.evaluate("e => e === document.activeElement"):
            break
        chat.page.keyboard.press("Tab")
    expect(regenerate_button).to_be_focused()
    expect(footer).to_have_css("opacity", "1")


def test_message_id_of_another_session_or_none_is_refused(
    chat: Chat, open_chat: Callable[..., Chat]
) -> None:
    """A made-up message ID and another session's conversation give an error and change nothing."""
    chat.ask("count?n=2")
    wait_answer(chat, 1, "0 1")
    chat.allowed_problems = "404|422|400"
    path = chat.page.url + "/show"
    for number_ in ("999999", "x", "-1"):
        status = chat.page.evaluate(
            """async ([path, number]) => (await fetch(path, { method: 'POST',
              headers: { 'HX-Request': 'true' }, body: new URLSearchParams({ message_id: number }) })).status""",
            [path, number_],
        )
        assert status in {400, 404, 422}
    other = open_chat(chat.server, chat.fake)
    other.allowed_problems = "404"
    status = other.page.evaluate(
        """async path => (await fetch(path, { method: 'POST',
          headers: { 'HX-Request': 'true' }, body: new URLSearchParams({ message_id: '1' }) })).status""",
        path,
    )
    assert status == 404
