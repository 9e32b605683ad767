"""The queue: messages that are sent while an answer runs, and go out after it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import Locator, Route, expect

from halt.testing.fake_openai import FakeOpenAI
from tests.browser.chat import LOAD_ERRORS, Chat, numbers
from tests.browser.conftest import OpenChat
from tests.support.halt_server import HaltServer, new_id, request_record
from tests.support.waiting import SERVER_TIMEOUT, wait_until


def queue(chat: Chat) -> Locator:
    """The queue on the page."""
    return chat.page.locator("#queue")


def queued_texts(chat: Chat) -> Locator:
    """The texts of the queued messages, the next one first."""
    return queue(chat).locator("li .text")


def queue_state(chat: Chat) -> Locator:
    """The line above the queue that shows its state."""
    return chat.page.locator("#queue-state")


def resume_button(chat: Chat) -> Locator:
    """The button that resumes a paused queue."""
    return queue(chat).get_by_role("button", name="Send")


def prompt(n: int) -> str:
    """A message whose answer is `n` numbers."""
    return f"/fake count?n={n} {new_id()}"


def start_answer(chat: Chat) -> None:
    """Start an answer that runs until its record is released."""
    chat.ask("stall?n=3&rest=2")
    chat.wait_text("0 1 2")


def prompts(chat: Chat) -> list[str]:
    """The prompts of the conversation on the page."""
    return chat.page.locator(".prompt .text").all_inner_texts()


def test_messages_sent_during_an_answer_are_sent_after_it_in_order(chat: Chat) -> None:
    """Enter during an answer queues a message; each is sent when the answer before it is done."""
    expect(queue(chat)).to_be_hidden()
    hint = chat.page.locator(".keys")
    expect(hint).to_contain_text("Enter sends", use_inner_text=True)
    start_answer(chat)
    expect(hint).to_contain_text("Enter queues", use_inner_text=True)
    first, record = chat.last_prompt, chat.record()
    second, third = prompt(4), prompt(5)
    chat.submit(second)
    expect(chat.prompt).to_have_value("")
    expect(queue_state(chat)).to_have_text("1 message queued until the answer is done")
    expect(chat.page.locator("#announcer")).to_have_text("Message queued.")
    chat.submit(third)
    expect(queued_texts(chat)).to_have_text([second, third])
    expect(queue_state(chat)).to_have_text("2 messages queued until the answer is done")
    assert chat.exchange_count() == 1
    record.release()
    expect(chat.page.locator(".exchange")).to_have_count(3)
    chat.wait_state("done")
    assert chat.answer_text() == numbers(5)
    expect(queue(chat)).to_be_hidden()
    assert prompts(chat) == [first, second, third]
    sent_messages = [
        message["content"].strip() for message in request_record(chat.fake, third).body["messages"]
    ]
    assert sent_messages == [first, numbers(5), second, numbers(4), third]
    chat.reload()
    assert prompts(chat) == [first, second, third]


def test_queue_button_queues_and_stop_keeps_its_place(chat: Chat) -> None:
    """The Queue button appears with a text and queues it; Stop keeps its place on the screen."""
    start_answer(chat)
    place = chat.stop.bounding_box()
    button = chat.page.get_by_role("button", name="Queue", exact=True)
    expect(button).to_be_hidden()
    prompt_text = prompt(1)
    chat.prompt.fill(prompt_text)
    expect(button).to_be_visible()
    assert chat.stop.bounding_box() == place
    button.click()
    expect(queued_texts(chat)).to_have_text([prompt_text])
    expect(button).to_be_hidden()
    assert chat.stop.bounding_box() == place
    chat.record().release()
    expect(chat.page.locator(".exchange")).to_have_count(2)
    chat.wait_state("done")


def test_answer_end_stays_in_view_as_the_queue_grows(
    open_chat: OpenChat, halt: HaltServer, shared_fake: FakeOpenAI
) -> None:
    """A growing queue keeps the answer's end in view, and does not move a page scrolled up."""
    chat = open_chat(halt, shared_fake, viewport={"width": 390, "height": 640})
    chat.ask_for("\n\n".join(f"Paragraph {n} of the text." for n in range(40)))
    chat.wait_state("done")
    start_answer(chat)
    for n in range(3):
        chat.submit(prompt(n))
        expect(chat.text).to_be_in_viewport(ratio=1)
    chat.page.mouse.move(200, 200)
    chat.page.mouse.wheel(0, -300)
    wait_until(lambda: chat.pixels_below() > 200, SERVER_TIMEOUT)
    position = chat.pixels_above()
    chat.submit(prompt(3))
    chat.frames()
    assert chat.pixels_above() == position
    chat.stop.click()
    chat.wait_state("stopped")


def test_queued_messages_are_edited_and_removed_by_keyboard(chat: Chat) -> None:
    """Esc ends an edit without stopping the answer; an emptied message is removed."""
    start_answer(chat)
    record, texts = chat.record(), [prompt(n) for n in (4, 5, 6)]
    for text in texts:
        chat.submit(text)
    expect(queued_texts(chat)).to_have_text(texts)
    lines = queue(chat).locator("li")
    lines.nth(0).get_by_role("button", name="Edit").press("Enter")
    field = queue(chat).get_by_role("textbox", name="Edit the queued message")
    expect(field).to_be_focused()
    expect(field).to_have_value(texts[0])
    field.fill("given up")
    field.press("Escape")
    expect(queued_texts(chat)).to_have_text(texts)
    expect(lines.nth(0).get_by_role("button", name="Edit")).to_be_focused()
    lines.nth(0).get_by_role("button", name="Edit").press("Enter")
    changed = texts[0].replace("n=4", "n=7")
    field.fill(changed)
    field.press("Enter")
    expect(queued_texts(chat)).to_have_text([changed, *texts[1:]])
    lines.nth(1).get_by_role("button", name="Remove").press("Enter")
    expect(queued_texts(chat)).to_have_text([changed, texts[2]])
    expect(lines.nth(1).get_by_role("button", name="Remove")).to_be_focused()
    lines.nth(1).get_by_role("button", name="Edit").click()
    field.fill("")
    field.press("Enter")
    expect(queued_texts(chat)).to_have_text([changed])
    expect(chat.answer).to_have_attribute("data-state", "running")
    record.release()
    expect(chat.page.locator(".exchange")).to_have_count(2)
    chat.wait_state("done")
    assert chat.answer_text() == numbers(7)
    assert not [record for record in chat.fake.requests if texts[1] in str(record.body)]


def test_queued_message_in_an_edit_is_sent_after_the_edit(chat: Chat) -> None:
    """A queued message that is edited when the answer ends is sent when the edit is saved."""
    start_answer(chat)
    chat.submit(prompt(4))
    queue(chat).get_by_role("button", name="Edit").click()
    chat.record().release()
    chat.wait_state("done")
    chat.frames()
    assert chat.exchange_count() == 1
    field = queue(chat).get_by_role("textbox", name="Edit the queued message")
    field.fill(prompt(6))
    field.press("Enter")
    expect(chat.page.locator(".exchange")).to_have_count(2)
    chat.wait_state("done")
    assert chat.answer_text() == numbers(6)


@pytest.mark.parametrize("action", ["click", "Escape"])
def test_stop_pauses_the_queue(chat: Chat, action: str) -> None:
    """Stop neither sends nor drops queued messages; a button sends them one by one."""
    start_answer(chat)
    texts = [prompt(4), prompt(5)]
    for text in texts:
        chat.submit(text)
    if action == "click":
        chat.stop.click()
    else:
        chat.page.keyboard.press(action)
    chat.wait_state("stopped")
    for _ in range(2):
        expect(queue_state(chat)).to_have_text("Paused, because you stopped.")
        expect(queued_texts(chat)).to_have_text(texts)
        expect(resume_button(chat)).to_have_text("Send both now")
        assert chat.exchange_count() == 1
        chat.reload()
    requests = [record for record in chat.fake.requests if texts[0] in str(record.body)]
    assert requests == []
    resume_button(chat).click()
    expect(chat.page.locator(".exchange")).to_have_count(3)
    chat.wait_state("done")
    assert prompts(chat)[1:] == texts
    expect(queue(chat)).to_be_hidden()


def test_stop_before_any_text_pauses_and_returns_the_prompt(chat: Chat) -> None:
    """Stop before any text returns the prompt to the empty field, else to the queue's head."""
    prompt_text = chat.ask("silent_first_token")
    chat.record()
    second = prompt(4)
    chat.submit(second)
    chat.page.keyboard.press("Escape")
    expect(chat.prompt).to_have_value(prompt_text)
    expect(queued_texts(chat)).to_have_text([second])
    expect(queue_state(chat)).to_contain_text("Paused")
    chat.prompt.press("Enter")
    chat.record(1)
    chat.prompt.fill("half a thought")
    expect(resume_button(chat)).to_have_text("Send after the answer")
    chat.page.keyboard.press("Escape")
    expect(queued_texts(chat)).to_have_text([prompt_text, second])
    expect(chat.prompt).to_have_value("half a thought")
    assert chat.exchange_count() == 0


def test_failed_answer_pauses_the_queue(chat: Chat) -> None:
    """A failed answer pauses the queue; a new message can be sent before it."""
    chat.ask("error_in_stream?n=3&seconds=inf")
    second = prompt(4)
    chat.submit(second)
    expect(queued_texts(chat)).to_have_text([second])
    chat.record().release()
    chat.wait_state("error")
    expect(queue_state(chat)).to_have_text("Paused, because the answer failed.")
    other_prompt = chat.ask("count?n=2")
    expect(chat.page.locator(".exchange")).to_have_count(2)
    chat.wait_state("done")
    assert prompts(chat)[1] == other_prompt
    expect(queued_texts(chat)).to_have_text([second])
    resume_button(chat).click()
    expect(chat.page.locator(".exchange")).to_have_count(3)
    chat.wait_state("done")
    assert chat.answer_text() == numbers(4)


@pytest.mark.parametrize("reason", ["length", "insufficient_system_resource"])
def test_incomplete_answer_pauses_the_queue(chat: Chat, reason: str) -> None:
    """An answer that its model did not complete pauses the queue, also after a reload."""
    chat.ask(f"stall?n=3&rest=2&reason={reason}")
    chat.wait_text("0 1 2")
    record = chat.record()
    chat.submit(prompt(2))
    record.release()
    reason_text = "the answer was cut off" if reason == "length" else "the answer failed"
    expect(queue_state(chat)).to_have_text(f"Paused, because {reason_text}.")
    chat.reload()
    expect(queue_state(chat)).to_have_text(f"Paused, because {reason_text}.")
    expect(chat.button("Continue")).to_be_visible()
    assert chat.exchange_count() == 1
    resume_button(chat).click()
    expect(chat.page.locator(".exchange")).to_have_count(2)
    chat.wait_state("done")
    assert chat.answer_text() == numbers(2)


def test_paused_queue_resumed_during_an_answer_waits_for_it(chat: Chat) -> None:
    """A paused queue that is resumed during another answer is sent after that answer."""
    start_answer(chat)
    second = prompt(4)
    chat.submit(second)
    chat.stop.click()
    chat.wait_state("stopped")
    chat.ask("stall?n=3&rest=2")
    expect(chat.page.locator(".exchange")).to_have_count(2)
    chat.wait_text("0 1 2")
    resume_button(chat).click()
    expect(queue_state(chat)).to_have_text("1 message queued until the answer is done")
    assert chat.exchange_count() == 2
    chat.record().release()
    expect(chat.page.locator(".exchange")).to_have_count(3)
    chat.wait_state("done")
    assert prompts(chat)[2] == second


def test_queue_survives_a_reload_and_is_sent_once(chat: Chat) -> None:
    """A queue survives a reload and is sent once, also if the answer ended with no page open."""
    start_answer(chat)
    record, texts = chat.record(), [prompt(4), prompt(5)]
    for text in texts:
        chat.submit(text)
    chat.reload()
    expect(queued_texts(chat)).to_have_text(texts)
    chat.wait_text("0 1 2")
    address = chat.page.url
    chat.page.goto("about:blank")
    record.release()
    chat.page.goto(address)
    expect(chat.page.locator(".exchange")).to_have_count(3)
    chat.wait_state("done")
    chat.reload()
    assert prompts(chat)[1:] == texts
    for text in texts:
        request_record(chat.fake, text)
        matching_requests = [r for r in chat.fake.requests if (r.body or {}).get("messages", [{}])[-1].get("content") == text]  # fmt: skip
        assert len(matching_requests) == 1


def take_and_abort(route: Route) -> None:
    """The server receives the request, but the page does not receive the response."""
    route.fetch(headers=route.request.headers | {"accept": "text/html"})  # without the stream
    route.abort()


def test_queued_message_with_a_lost_response_is_sent_once(chat: Chat) -> None:
    """A queued message whose response was lost is known by its stream ID and not sent twice."""
    start_answer(chat)
    second = prompt(4)
    chat.submit(second)
    chat.page.route("**/messages", take_and_abort)
    chat.allowed_problems = LOAD_ERRORS + "|Failed to fetch"
    chat.record().release()
    expect(queue_state(chat)).to_have_text("Paused, because the first message could not be sent.")
    request_record(chat.fake, second)
    chat.page.unroute("**/messages")
    resume_button(chat).click()
    expect(chat.page.locator(".exchange")).to_have_count(2)
    chat.wait_state("done")
    expect(queue(chat)).to_be_hidden()
    assert prompts(chat)[1] == second
    matching_requests = [r for r in chat.fake.requests if (r.body or {}).get("messages", [{}])[-1].get("content") == second]  # fmt: skip
    assert len(matching_requests) == 1


def test_queue_without_a_network_pauses(chat: Chat) -> None:
    """Without a network the queue pauses, and its button sends it later."""
    chat.allowed_problems = LOAD_ERRORS + "|Failed to fetch"
    start_answer(chat)
    second = prompt(4)
    chat.submit(second)
    chat.page.route("**/messages", lambda route: route.abort())
    chat.record().release()
    expect(queue_state(chat)).to_have_text("Paused, because the first message could not be sent.")
    expect(queued_texts(chat)).to_have_text([second])
    chat.page.unroute("**/messages")
    resume_button(chat).click()
    expect(chat.page.locator(".exchange")).to_have_count(2)
    chat.wait_state("done")
    assert chat.answer_text() == numbers(4)


def test_queue_belongs_to_one_conversation(chat: Chat) -> None:
    """Each conversation has its own queue, also within one tab."""
    start_answer(chat)
    record, second = chat.record(), prompt(4)
    chat.submit(second)
    address = chat.page.url
    chat.page.get_by_role("link", name="New chat").click()
    expect(queue(chat)).to_be_hidden()
    chat.ask("count?n=2")
    chat.wait_state("done")
    assert chat.exchange_count() == 1
    chat.page.goto(address)
    expect(queued_texts(chat)).to_have_text([second])
    record.release()
    expect(chat.page.locator(".exchange")).to_have_count(2)
    chat.wait_state("done")


def test_queue_takes_at_most_20_messages(chat: Chat) -> None:
    """A full queue shows a notice, and the message stays in its field."""
    start_answer(chat)
    for n in range(20):
        chat.submit(f"message {n}")
    expect(queued_texts(chat)).to_have_count(20)
    chat.submit("one too many")
    expect(chat.page.locator("#notice")).to_have_text(
        "The queue is full: at most 20 messages can wait."
    )
    expect(chat.prompt).to_have_value("one too many")
    expect(chat.stop).to_be_in_viewport(ratio=1)
    chat.stop.click()
    chat.wait_state("stopped")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_queue_fits_a_narrow_screen(
    open_chat: OpenChat, halt: HaltServer, shared_fake: FakeOpenAI, scheme: str
) -> None:
    """At 360 pixels the queue does not overflow, is legible and has large enough buttons."""
    size = {"width": 360, "height": 640}
    chat = open_chat(halt, shared_fake, viewport=size, has_touch=True, is_mobile=True, color_scheme=scheme)  # fmt: skip
    start_answer(chat)
    chat.submit("a message " * 30)
    chat.submit("w" * 300)
    chat.prompt.fill("another")
    contrasts = chat.contrasts()
    queue(chat).get_by_role("button", name="Edit").first.click()
    chat.frames()
    wide = "(p => p.scrollWidth - p.offsetWidth)(document.scrollingElement)"
    assert chat.page.evaluate(wide) == 0
    chat.stop.click()
    chat.wait_state("stopped")
    contrasts |= chat.contrasts()
    assert {name: round(c, 2) for name, c in contrasts.items() if c < 4.5} == {}
    assert chat.page.evaluate(wide) == 0
    for control in (chat.prompt, chat.send, resume_button(chat)):
        expect(control).to_be_in_viewport(ratio=1)
    for button in chat.page.locator("button:visible").all():
        box = button.bounding_box()
        assert box is not None
        assert min(box["height"], box["width"]) >= 24, button.inner_text()


@pytest.mark.parametrize("running", [False, True], ids=["over", "running"])
def test_message_after_a_change_in_another_tab_is_queued(
    chat: Chat, tab: Callable[[], Chat], running: bool
) -> None:
    """A message to a conversation that another tab changed is queued until it is shown."""
    chat.allowed_problems = LOAD_ERRORS
    chat.ask("count?n=2")
    chat.wait_state("done")
    other_tab = tab()
    other_tab.page.goto(chat.page.url)
    other_prompt = other_tab.ask("stall?n=3&rest=2" if running else "count?n=3")
    other_tab.wait_text("0 1 2")
    if not running:
        other_tab.wait_state("done")
    own_prompt = prompt(4)
    chat.submit(own_prompt)
    expect(queue_state(chat)).to_have_text(
        "Paused, because the conversation changed in another tab or device."
    )
    expect(chat.prompt).to_have_value("")
    expect(queued_texts(chat)).to_have_text([own_prompt])
    assert prompts(chat)[1:] == [other_prompt]
    expect(chat.prompt).to_have_value("")
    if running:
        other_tab.record().release()
        chat.wait_state("done")
    resume_button(chat).click()
    expect(chat.page.locator(".exchange")).to_have_count(3)
    chat.wait_state("done")
    assert prompts(chat)[1:] == [other_prompt, own_prompt]
    sent_messages = [
        message["content"] for message in request_record(chat.fake, own_prompt).body["messages"]
    ]
    assert sent_messages[-3:] == [other_prompt, numbers(5 if running else 3) + " ", own_prompt]
