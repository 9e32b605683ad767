"""One prompt to several models: columns, their Stops, and the selection of one answer."""

from __future__ import annotations

import pytest
from playwright.sync_api import Locator, expect

from halt.testing.fake_openai import FakeOpenAI, Record
from tests.browser.chat import STOPPED_BY_USER, Chat, numbers, wait_no_open_streams
from tests.browser.conftest import OpenChat
from tests.browser.held_requests import HeldRequests
from tests.browser.model_picker import add_models, choose, choose_one, choose_several
from tests.support.halt_server import RECORD_TIMEOUT, HaltServer, StartHalt, new_id


def compare(chat: Chat, *models: str) -> str:
    """Send a prompt to these models at the same time; returns the prompt."""
    choose_several(chat, *models)
    chat.last_prompt = f"Compare {new_id()}"
    chat.submit(chat.last_prompt)
    return chat.last_prompt


def columns(chat: Chat) -> Locator:
    """The columns of the last exchange."""
    return chat.answer.and_(chat.page.locator(".columns .answer"))


def column(chat: Chat, model: str) -> Locator:
    """The column of one model."""
    return columns(chat).and_(chat.page.locator(f'[data-model="{model}"]'))


def request_of(chat: Chat, model: str) -> Record:
    """The request for the last prompt to this model, awaited."""

    def is_request(record: Record) -> bool:
        return (
            isinstance(record.body, dict)
            and record.body.get("model") == model
            and chat.last_prompt in str(record.body)
        )

    return chat.fake.wait_request(is_request, RECORD_TIMEOUT)


def test_columns_show_each_models_answer_and_figures_in_order(chat: Chat) -> None:
    """Each model has a column in the chosen order with its figures, also after a reload."""
    models = [f"stall?n=1&rest={n}" for n in (1, 2, 3)]  # all run until they are released
    add_models(chat, *models)
    stream_urls: list[str] = []
    chat.page.on("request", lambda r: stream_urls.append(r.url) if "/streams/" in r.url else None)
    compare(chat, *models)
    for model in models:
        expect(column(chat, model)).to_contain_text("0")
        request_of(chat, model).release()
    for _ in range(2):
        expect(columns(chat)).to_have_count(3)
        for model in models:
            expect(column(chat, model)).to_have_attribute("data-state", "done")
            expect(column(chat, model).locator(".figures")).to_contain_text(model)
            expect(column(chat, model).locator(".name")).to_have_text(model)
        expect(columns(chat).locator(".name")).to_have_text(models)
        boxes = [answer.bounding_box() for answer in columns(chat).all()]
        tops = {box["y"] for box in boxes if box}
        assert len(tops) == 1, "not beside each other"
        assert len(stream_urls) == len(set(stream_urls)) >= 3, "a stream was requested twice"
        chat.reload()


def test_escape_stops_four_running_columns(chat: Chat) -> None:
    """With four streams open, one Stop ends all of them; each keeps the text that it had shown."""
    models = [f"count?n={100_000 + n}&gap_ms=15" for n in range(4)]
    add_models(chat, *models)
    compare(chat, *models)
    for model in models:
        expect(column(chat, model).locator("> .text")).to_contain_text("20 21 22")
    chat.page.keyboard.press("Escape")
    texts = []
    for model in models:
        expect(column(chat, model)).to_have_attribute("data-state", "stopped")
        assert request_of(chat, model).closed.wait(RECORD_TIMEOUT)
        texts.append((column(chat, model).locator("> .text").text_content() or "").strip())
    expect(chat.send).to_be_visible()
    chat.reload()
    for model, text in zip(models, texts, strict=True):
        assert (column(chat, model).locator("> .text").text_content() or "").strip() == text
        assert text == numbers(len(text.split()))


def test_stop_of_a_column_ends_that_answer_alone(chat: Chat) -> None:
    """The Stop of a column ends its answer alone; the others continue, also after a reload."""
    add_models(chat, "count?n=1000000&gap_ms=15", "stall?n=20&rest=20")
    compare(chat, "count?n=1000000&gap_ms=15", "stall?n=20&rest=20")
    endless, other_column = (
        column(chat, "count?n=1000000&gap_ms=15"),
        column(chat, "stall?n=20&rest=20"),
    )
    expect(endless.locator("> .text")).to_contain_text("20 21")
    expect(other_column.locator("> .text")).to_contain_text("18 19")
    chat.reload()
    expect(endless.locator("> .text")).to_contain_text("60 61")
    endless.get_by_role("button", name="Stop").click()
    expect(endless).to_have_attribute("data-state", "stopped")
    assert request_of(chat, "count?n=1000000&gap_ms=15").closed.wait(RECORD_TIMEOUT)
    expect(other_column).to_have_attribute("data-state", "running")
    expect(endless.locator("footer button:focus")).to_have_count(1)
    expect(chat.stop).to_be_visible()
    request_of(chat, "stall?n=20&rest=20").release()
    expect(other_column).to_have_attribute("data-state", "done")
    expect(other_column.locator("> .text")).to_have_text(numbers(40) + " ")
    expect(chat.send).to_be_visible()


def test_use_this_answer_selects_its_model_for_the_next_request(chat: Chat) -> None:
    """The selected answer alone is in the next request, and its model is the next model."""
    first = compare(chat, "length", "count")
    expect(column(chat, "count").locator(".pick")).to_be_visible()
    for model in ("length", "count"):
        expect(column(chat, model)).to_have_attribute("data-state", "done")
    column(chat, "count").get_by_role("button", name="Use this answer").click()
    expect(columns(chat)).to_have_count(1)
    expect(columns(chat)).to_be_hidden()
    expect(chat.page.locator(".exchange > .answer footer button:focus")).to_have_count(1)
    for _ in range(2):
        answer = chat.page.locator(".exchange > .answer")
        expect(answer).to_have_count(1)
        expect(answer).to_have_attribute("data-model", "count")
        expect(chat.page.locator(".others > summary")).to_have_text("The other answer")
        expect(chat.page.locator(".choices [name=model]")).to_have_count(1)
        expect(chat.page.locator("#model")).to_have_value("count")
        expect(chat.page.locator("#model option[value=length]")).to_have_count(1)
        chat.reload()
    chat.last_prompt = f"And then? {new_id()}"
    chat.submit(chat.last_prompt)
    expect(chat.page.locator(".exchange")).to_have_count(2)
    chat.wait_state("done")
    body = chat.record().body
    assert body["model"] == "count"
    sent_messages = [(m["role"], m["content"].strip()) for m in body["messages"]]
    assert sent_messages == [
        ("user", first),
        ("assistant", numbers(100)),
        ("user", chat.last_prompt),
    ]


def test_prompt_without_a_selection_continues_the_first_answer(chat: Chat) -> None:
    """Without a selection the next request holds the first answer, as the hint says."""
    first = compare(chat, "length", "count")
    for model in ("length", "count"):
        expect(column(chat, model)).to_have_attribute("data-state", "done")
    expect(chat.page.locator(".hint")).to_contain_text("follows the first answer")
    choose_one(chat)
    chat.last_prompt = f"And then? {new_id()}"
    chat.submit(chat.last_prompt)
    expect(chat.page.locator(".exchange")).to_have_count(2)
    chat.wait_state("done")
    sent_messages = [(m["role"], m["content"].strip()) for m in chat.record().body["messages"]]
    assert sent_messages == [
        ("user", first),
        ("assistant", numbers(20)),
        ("user", chat.last_prompt),
    ]
    chat.reload()
    expect(chat.page.locator(".exchange:first-child > .answer")).to_have_attribute("data-model", "length")  # fmt: skip
    expect(chat.page.locator(".others .answer")).to_have_attribute("data-model", "count")


def test_use_this_answer_stops_the_other_running_answers(chat: Chat) -> None:
    """Selecting an answer stops the others that still run."""
    add_models(chat, "count?n=1000000&gap_ms=15")
    compare(chat, "length", "count?n=1000000&gap_ms=15")
    expect(columns(chat).nth(1).locator("> .text")).to_contain_text("10 11")
    column(chat, "length").get_by_role("button", name="Use this answer").click()
    expect(chat.page.locator(".exchange > .answer")).to_have_attribute("data-model", "length")
    assert request_of(chat, "count?n=1000000&gap_ms=15").closed.wait(RECORD_TIMEOUT)
    expect(chat.send).to_be_visible()


def test_stop_before_any_text_returns_the_prompt_once(chat: Chat) -> None:
    """Stop with all models silent returns the prompt; with one answer done, both columns stay."""
    prompt_text = compare(chat, "silent_first_token", "silent_headers")
    for model in ("silent_first_token", "silent_headers"):
        request_of(chat, model)
    expect(columns(chat)).to_have_count(2)
    chat.page.keyboard.press("Escape")
    expect(chat.prompt).to_have_value(prompt_text)
    assert chat.exchange_count() == 0
    choose_several(chat, "count", "silent_headers")
    chat.last_prompt = f"Compare {new_id()}"
    chat.submit(chat.last_prompt)
    expect(column(chat, "count")).to_have_attribute("data-state", "done")
    request_of(chat, "silent_headers")
    chat.stop.click()
    expect(column(chat, "silent_headers")).to_have_attribute("data-state", "withdrawn")
    for _ in range(2):
        expect(column(chat, "silent_headers").locator(".note-title")).to_have_text(STOPPED_BY_USER)
        expect(column(chat, "count").locator("> .text")).to_contain_text("98 99")
        chat.reload()


def test_column_of_a_failed_model_leaves_the_others_alone(chat: Chat) -> None:
    """A failed column shows its error, and the conversation continues from one with an answer."""
    compare(chat, "401", "count")
    expect(column(chat, "401").locator(".fault")).to_contain_text("did not accept the API key")
    expect(column(chat, "count")).to_have_attribute("data-state", "done")
    choose_one(chat)
    choose(chat, "echo")
    chat.last_prompt = f"And then? {new_id()}"
    chat.submit(chat.last_prompt)
    expect(chat.page.locator(".exchange")).to_have_count(2)
    chat.wait_state("done")
    assert [m["role"] for m in chat.record().body["messages"]] == ["user", "assistant", "user"]
    assert chat.record().body["messages"][1]["content"].strip() == numbers(100)


def test_compare_without_room_for_all_sends_none(
    open_chat: OpenChat, start_halt: StartHalt, fake: FakeOpenAI
) -> None:
    """Without room for every model the prompt stays in its field, and no stream stays open."""
    chat = open_chat(start_halt(fake, HALT_MAX_STREAMS=1), fake)
    chat.allowed_problems = "503"
    prompt_text = compare(chat, "silent_headers", "count")
    expect(chat.page.locator("#notice")).to_contain_text("limit of open streams")
    expect(chat.prompt).to_have_value(prompt_text)
    assert chat.exchange_count() == 0
    expect(chat.send).to_be_visible()
    wait_no_open_streams(chat.server)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_columns_fit_a_narrow_screen(
    open_chat: OpenChat, halt: HaltServer, shared_fake: FakeOpenAI, scheme: str
) -> None:
    """At 360 pixels columns scroll within their row, and the page is as wide as the screen."""
    size = {"width": 360, "height": 640}
    chat = open_chat(halt, shared_fake, viewport=size, has_touch=True, color_scheme=scheme)
    compare(chat, "markdown", "count", "think")
    expect(column(chat, "markdown")).to_have_attribute("data-state", "done")
    expect(column(chat, "think").locator(".step")).to_be_attached()
    expect(columns(chat)).to_have_count(3)
    wide = "(p => p.scrollWidth - p.offsetWidth)(document.scrollingElement)"
    assert chat.page.evaluate(wide) == 0
    row = chat.page.locator(".exchange:last-child .columns")
    assert row.evaluate("e => e.scrollWidth > 2 * e.clientWidth")
    for control in (chat.prompt, chat.stop):
        expect(control).to_be_in_viewport(ratio=1)
    low = {name: round(c, 2) for name, c in chat.contrasts().items() if c < 4.5}
    assert low == {}
    assert row.evaluate("e => e.scrollLeft") == 0
    chat.stop.click()
    expect(chat.send).to_be_visible()
    chat.frames()
    assert row.evaluate("e => e.scrollLeft") == 0, "the visible column has moved away"


def test_stop_before_the_compare_request_arrives_sends_none(chat: Chat) -> None:
    """A Stop that is faster than the request returns the prompt, and no model gets a request."""
    held = HeldRequests(chat, "**/messages")
    prompt_text = compare(chat, "count", "markdown", "echo")
    held.wait()
    with chat.page.expect_response("**/stop") as pressed:
        chat.page.keyboard.press("Escape")
    assert pressed.value.ok
    held.release()
    expect(chat.prompt).to_have_value(prompt_text)
    expect(chat.send).to_be_visible()
    assert chat.exchange_count() == 0
    chat.reload()
    assert chat.exchange_count() == 0
    assert not [r for r in chat.fake.requests if prompt_text in str(r.body)]


def test_columns_are_announced_once(chat: Chat) -> None:
    """A screen reader hears one start, and one end when the last column has ended."""
    chat.page.evaluate(
        """() => {
          const announcer = document.querySelector('#announcer');
          window.announcements = [];
          new MutationObserver(() => announcements.push(announcer.textContent)).observe(announcer, { childList: true });
        }"""
    )
    compare(chat, "count", "stall", "length")
    for model in ("count", "length"):
        expect(column(chat, model)).to_have_attribute("data-state", "done")
    request_of(chat, "stall").release()
    expect(column(chat, "stall")).to_have_attribute("data-state", "done")
    chat.frames()
    assert chat.page.evaluate("announcements") == [
        "The answer has started.",
        "The answer is complete.",
    ]
