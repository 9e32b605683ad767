"""Stop: by button or Escape, before, during and after text, and with lost requests."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import Locator, Route, expect

from halt.testing.fake_openai import FakeOpenAI
from tests.browser.chat import LOAD_ERRORS, STOPPED_BY_USER, Chat, numbers
from tests.browser.conftest import OpenChat
from tests.browser.held_requests import HeldRequests
from tests.browser.network import Network
from tests.support.halt_server import RECORD_TIMEOUT, HaltServer

#: The response of a proxy whose server does not answer.
BAD_GATEWAY = (
    "<html><head><title>502 Bad Gateway</title></head><body><h1>502 Bad Gateway</h1></body></html>"
)


def press(chat: Chat, action: str) -> None:
    """Stop by button or by key."""
    if action == "click":
        chat.stop.click()
    else:
        chat.page.keyboard.press("Escape")


def test_stop_replaces_send_until_the_answer_is_done(chat: Chat) -> None:
    """Stop replaces Send before the first byte comes back, until the answer is done."""
    expect(chat.send).to_be_visible()
    expect(chat.stop).to_be_hidden()
    held = HeldRequests(chat, "**/messages")
    chat.ask("count?n=3")
    held.wait()
    assert chat.stop.is_visible()
    assert chat.send.is_hidden()
    held.release()
    chat.wait_state("done")
    expect(chat.send).to_be_visible()
    expect(chat.stop).to_be_hidden()


@pytest.mark.parametrize("action", ["click", "Esc"])
def test_stop_freezes_the_text_within_a_frame(chat: Chat, action: str) -> None:
    """The text of the frame after Stop is what stays, also after a reload."""
    chat.ask("count?n=1000000&gap_ms=3")
    chat.wait_text("20 21 22")
    chat.page.evaluate(
        """how => {
          const text = () => document.querySelector('.answer > .text').textContent.trim();
          const nextFrame = () => requestAnimationFrame(() => { window.still ??= text(); });
          if (how === 'click') document.querySelector('#stop').addEventListener('click', nextFrame);
          else document.addEventListener('keydown', nextFrame);
        }""",
        action,
    )
    press(chat, action)
    chat.wait_state("stopped")
    assert chat.record().closed.wait(RECORD_TIMEOUT), "the upstream is still open"
    chat.frames()
    stopped_text = chat.answer_text()
    assert chat.page.evaluate("still") == stopped_text
    assert stopped_text == numbers(len(stopped_text.split()))
    chat.reload()
    chat.wait_state("stopped")
    assert chat.answer_text() == stopped_text


def test_stop_freezes_the_text_before_the_server_has_it(chat: Chat) -> None:
    """Text that arrives after Stop is not shown or kept, even if the server has no Stop yet."""
    chat.ask("count?n=1000000&gap_ms=3")
    chat.wait_text("20 21 22")
    held = HeldRequests(chat, "**/stop")
    chat.stop.click()
    frozen_text = chat.answer_text()
    held.wait()
    token_count = chat.record().wait_tokens(0)
    chat.record().wait_tokens(token_count + 100, RECORD_TIMEOUT)
    chat.frames()
    assert chat.answer_text() == frozen_text
    held.release()
    chat.wait_state("stopped")
    assert chat.answer_text() == frozen_text
    chat.reload()
    chat.wait_state("stopped")
    assert chat.answer_text() == frozen_text


@pytest.mark.parametrize(
    "model",
    [
        "stall?n=5",
        "count?n=1000000&gap_ms=3",
        "count?n=1000000&rate=2000&burst=20",
        "markdown?n=5000&gap_ms=1",
    ],
    ids=["silent", "slow", "fast", "markdown"],
)
def test_stopped_answer_shows_its_note_and_figures(chat: Chat, model: str) -> None:
    """A stopped answer shows its reason and figures, and the conversation can continue."""
    chat.ask(model)
    chat.wait_text("4" if "markdown" not in model else "A fixed answer")
    chat.stop.click()
    chat.wait_state("stopped")
    expect(chat.answer.locator(".note-title")).to_have_text(STOPPED_BY_USER)
    figures = chat.answer.locator(".figures")
    expect(figures).to_contain_text(re.compile(r"First token after \d"))
    expect(figures).to_contain_text(re.compile(r"\d tokens?, estimated"))
    expect(figures).to_contain_text(re.compile(r"In all \d"))
    assert chat.record().closed.wait(RECORD_TIMEOUT)
    chat.ask("count?n=2")
    chat.wait_state("done")
    assert (chat.exchange_count(), chat.answer_text()) == (2, "0 1")


def test_silence_before_the_first_text_counts_seconds(chat: Chat) -> None:
    """Until the first text the page counts the seconds of silence, also over a reload."""
    chat.ask("silent_first_token?n=3")
    silence = chat.answer.locator(".silence")
    expect(silence).to_have_text(re.compile(r"^Waiting for the model, \d+ s$"))
    expect(silence).to_have_text(re.compile(r"^Waiting for the model, ([2-9]|\d\d) s$"))
    chat.reload()
    expect(silence).to_have_text(re.compile(r"^Waiting for the model, ([2-9]|\d\d) s$"))
    expect(silence).to_be_visible()
    chat.record().release()
    chat.wait_text("0 1 2")
    expect(silence).to_be_hidden()


def test_silence_within_an_answer_counts_seconds(chat: Chat) -> None:
    """The page counts the seconds of silence within an answer, also over a reload."""
    chat.ask("stall?n=3&rest=2")
    chat.wait_text("0 1 2")
    silence = chat.answer.locator(".silence")
    expect(silence).to_have_text(re.compile(r"^No text for ([2-9]|\d\d) s$"))
    expect(silence).to_be_visible()
    chat.reload()
    expect(silence).to_have_text(re.compile(r"^No text for ([2-9]|\d\d) s$"))
    expect(silence).to_be_visible()
    chat.record().release()
    chat.wait_text("0 1 2 3 4")
    expect(silence).to_be_hidden()


def test_long_silence_has_a_stop_beside_it(chat: Chat) -> None:
    """A long silence is counted in minutes, also in reasoning, with a Stop beside it."""
    chat.ask("think?thoughts=2&n=2")
    silence = chat.answer.locator(".silence")
    stop = chat.answer.get_by_role("button", name="Stop")
    expect(chat.answer.locator(".step .label")).to_have_text("Thinking…")
    expect(chat.answer.locator(".step-text")).to_have_text("thought0 thought1 ")
    expect(stop).to_be_hidden()
    # The silence lasts until the end; set its start to 95 seconds ago.
    silence.evaluate("p => { p.lastElementChild.since = performance.now() - 95_000; }")
    expect(silence).to_have_text(re.compile(r"^No text for 1:(3[5-9]|[45]\d)$"))
    expect(silence).to_be_visible()
    middles = [
        box["y"] + box["height"] / 2 for box in map(Locator.bounding_box, (silence, stop)) if box
    ]
    assert abs(middles[0] - middles[1]) < 2
    stop.click()
    chat.wait_state("stopped")
    assert chat.record().closed.wait(RECORD_TIMEOUT)


@pytest.mark.parametrize("action", ["click", "Esc"])
@pytest.mark.parametrize("model", ["silent_headers", "silent_first_token"])
def test_stop_before_any_text_returns_the_prompt(chat: Chat, model: str, action: str) -> None:
    """Stop before any text puts the prompt back into its field and leaves no exchange."""
    prompt_text = chat.ask(model)
    chat.wait_state("running")
    expect(chat.prompt).to_have_value("")
    chat.record()
    press(chat, action)
    expect(chat.prompt).to_have_value(prompt_text)
    expect(chat.prompt).to_be_focused()
    expect(chat.send).to_be_visible()
    assert chat.exchange_count() == 0
    assert chat.record().closed.wait(RECORD_TIMEOUT)
    chat.reload()
    assert chat.exchange_count() == 0


def test_stop_before_any_text_opens_no_keyboard_on_a_touch_screen(
    open_chat: OpenChat, halt: HaltServer, shared_fake: FakeOpenAI
) -> None:
    """On a touch screen the returned prompt is in its field, and the focus on Send."""
    size = {"width": 360, "height": 640}
    chat = open_chat(halt, shared_fake, viewport=size, has_touch=True, is_mobile=True)
    prompt_text = chat.ask("silent_headers")
    chat.wait_state("running")
    chat.record()
    chat.stop.tap()
    expect(chat.prompt).to_have_value(prompt_text)
    expect(chat.send).to_be_focused()


@pytest.mark.parametrize("action", ["click", "Esc"])
def test_stop_before_the_request_arrives_sends_none_upstream(chat: Chat, action: str) -> None:
    """A Stop that is faster than its request returns the prompt; the model gets no request."""
    held = HeldRequests(chat, "**/messages")
    prompt_text = chat.ask("count?n=5")
    held.wait()
    with chat.page.expect_response("**/stop") as pressed:
        press(chat, action)
    assert pressed.value.ok
    held.release()
    expect(chat.prompt).to_have_value(prompt_text)
    expect(chat.send).to_be_visible()
    assert chat.exchange_count() == 0
    chat.reload()
    assert chat.exchange_count() == 0
    chat.ask("count?n=1")
    chat.wait_state("done")
    assert not [r for r in chat.fake.requests if prompt_text in str(r.body)]


@pytest.mark.parametrize(
    "model", ["silent_first_token", "count?n=1000000&gap_ms=3"], ids=["silent", "with text"]
)
def test_stop_before_the_first_response_byte_returns_the_prompt(
    open_chat: OpenChat, network: Network, shared_fake: FakeOpenAI, model: str
) -> None:
    """Stop before the page has shown a started answer returns the prompt."""
    chat = open_chat(network, shared_fake)
    network.hold("POST .*/messages")
    prompt_text = chat.ask(model)
    network.wait_held()
    if "count" in model:
        chat.record().wait_tokens(20, RECORD_TIMEOUT)
    with chat.page.expect_response("**/stop") as pressed:
        chat.stop.click()
    assert pressed.value.ok
    assert chat.record().closed.wait(RECORD_TIMEOUT)
    network.release()
    expect(chat.prompt).to_have_value(prompt_text)
    expect(chat.send).to_be_visible()
    assert chat.exchange_count() == 0
    chat.reload()
    assert chat.exchange_count() == 0


def test_stop_before_regenerate_arrives_keeps_the_answer(chat: Chat) -> None:
    """A "Write again" that is stopped before the server has it changes nothing."""
    chat.ask("count?n=3")
    chat.wait_state("done")
    held = HeldRequests(chat, "**/regenerate")
    chat.button("Write again").click()
    held.wait()
    with chat.page.expect_response("**/stop"):
        chat.stop.click()
    held.release()
    expect(chat.send).to_be_visible()
    chat.wait_state("done")
    assert (chat.exchange_count(), chat.answer_text()) == (1, "0 1 2")
    chat.reload()
    assert (chat.exchange_count(), chat.answer_text()) == (1, "0 1 2")


def test_stop_that_fails_shows_a_notice_and_can_be_repeated(chat: Chat) -> None:
    """A Stop that does not reach the server shows a notice and can be pressed again."""
    chat.allowed_problems = LOAD_ERRORS + "|Failed to fetch"
    chat.ask("count?n=1000000&gap_ms=5")
    chat.wait_text("5 6 7")
    chat.page.route("**/stop", lambda route: route.abort())
    chat.stop.click()
    notice = chat.page.locator("#notice")
    expect(notice).to_have_text("Stop did not reach the server. Press Stop again.")
    frozen_text = chat.answer_text()
    chat.page.unroute("**/stop")
    chat.stop.click()
    chat.wait_state("stopped")
    expect(notice).to_be_empty()
    assert chat.answer_text() == frozen_text
    assert chat.record().closed.wait(RECORD_TIMEOUT)
    chat.reload()
    chat.wait_state("stopped")
    assert chat.answer_text() == frozen_text


@pytest.mark.parametrize("failure", ["the network", "a proxy"])
def test_stop_that_fails_is_repeated_by_the_page(chat: Chat, failure: str) -> None:
    """The page repeats a Stop that did not reach the server."""
    chat.allowed_problems = LOAD_ERRORS + "|Failed to fetch"
    chat.ask("count?n=1000000&gap_ms=5")
    chat.wait_text("5 6 7")

    def fail_first(route: Route) -> None:
        if failure == "the network":
            route.abort()
        else:
            route.fulfill(status=502, content_type="text/html", body=BAD_GATEWAY)

    chat.page.route("**/stop", fail_first)
    chat.stop.click()
    notice = chat.page.locator("#notice")
    expect(notice).to_have_text("Stop did not reach the server. Press Stop again.")
    frozen_text = chat.answer_text()
    chat.page.unroute("**/stop")
    chat.wait_state("stopped")
    expect(notice).to_be_empty()
    assert chat.answer_text() == frozen_text
    assert chat.record().closed.wait(RECORD_TIMEOUT)


def test_error_page_of_a_proxy_is_not_shown_in_the_conversation(chat: Chat) -> None:
    """A proxy's error page changes no message; a notice shows its status and the prompt stays."""
    chat.allowed_problems = LOAD_ERRORS
    chat.ask("count?n=3")
    chat.wait_state("done")
    notice, messages = chat.page.locator("#notice"), chat.page.locator("#messages")
    text_before = messages.inner_text()

    def bad_gateway(route: Route) -> None:
        route.fulfill(status=502, content_type="text/html", body=BAD_GATEWAY)

    ways: list[tuple[str, Callable[[], None]]] = [
        ("**/messages", lambda: chat.submit("Still here")),
        ("**/regenerate", lambda: chat.button("Write again").click()),
    ]
    for path, act in ways:
        chat.page.route(path, bad_gateway)
        act()
        expect(notice).to_contain_text("The server could not be reached (502).")
        expect(chat.send).to_be_visible()
        chat.page.unroute(path)
        assert messages.inner_text() == text_before
        assert "502" not in chat.page.title()
        expect(chat.prompt).to_have_value("Still here")
    chat.prompt.press("Enter")
    expect(chat.page.locator(".exchange")).to_have_count(2)
    expect(notice).to_be_empty()


def test_failed_discard_is_not_announced_as_done(chat: Chat) -> None:
    """A screen reader does not hear "Discarded" of an answer that is still there."""
    chat.allowed_problems = LOAD_ERRORS
    chat.ask("stall")
    chat.wait_text("3 4")
    chat.stop.click()
    chat.wait_state("stopped")
    chat.page.route("**/discard", lambda route: route.fulfill(status=502, body=BAD_GATEWAY))
    chat.button("Discard").click()
    expect(chat.page.locator("#notice")).to_contain_text("could not be reached (502).")
    chat.frames()
    assert "Discarded" not in chat.page.locator("#announcer").inner_text()


def test_stop_pressed_many_times_acts_once(chat: Chat) -> None:
    """Stop, pressed many times, stops the answer once and changes nothing else."""
    chat.ask("count?n=1000000&gap_ms=3")
    chat.wait_text("5 6 7")
    chat.page.evaluate("for (let i = 0; i < 5; i++) document.querySelector('#stop').click()")
    chat.wait_state("stopped")
    for _ in range(3):
        chat.page.keyboard.press("Escape")
    assert chat.exchange_count() == 1
    expect(chat.send).to_be_visible()
    expect(chat.prompt).to_have_value("")


def test_escape_without_a_running_answer_keeps_the_text(chat: Chat) -> None:
    """Escape without a running answer leaves the text in the field."""
    chat.prompt.fill("half a thought")
    chat.page.keyboard.press("Escape")
    expect(chat.prompt).to_have_value("half a thought")
    expect(chat.send).to_be_visible()


def test_escape_held_down_closes_one_thing_alone(chat: Chat) -> None:
    """Esc that is held down closes what is open, and does not stop the answer afterwards."""
    chat.ask("count?n=6&hold=3")
    chat.wait_text("0 1 2")
    settings = chat.open_settings()
    for _ in range(3):
        chat.page.keyboard.down("Escape")
    chat.page.keyboard.up("Escape")
    expect(settings).to_be_hidden()
    chat.release()
    chat.wait_state("done")


def test_stop_works_in_each_of_seven_streaming_tabs(chat: Chat, tab: Callable[[], Chat]) -> None:
    """With seven streaming tabs, each Stop gets one of the browser's six connections."""
    tabs = [chat, *(tab() for _ in range(6))]
    for page_tab in tabs:
        page_tab.ask("count?n=1000000&gap_ms=50")
    for page_tab in tabs:
        page_tab.wait_text("20 21 22")
    for page_tab in tabs:
        page_tab.stop.click()
        page_tab.wait_state("stopped")
        expect(page_tab.answer.locator(".note-title")).to_have_text(STOPPED_BY_USER)
        assert page_tab.record().closed.wait(RECORD_TIMEOUT)
    for page_tab in tabs:
        stopped_text = page_tab.answer_text()
        page_tab.reload()
        assert page_tab.answer_text() == stopped_text


def test_stop_works_in_each_of_seven_tabs_before_any_text(
    chat: Chat, tab: Callable[[], Chat]
) -> None:
    """Stop works in each of seven tabs whose requests have no text yet."""
    tabs = [chat, *(tab() for _ in range(6))]
    prompts = [page_tab.ask("silent_headers") for page_tab in tabs]
    for page_tab in tabs:
        page_tab.wait_state("running")
        page_tab.record()
    for page_tab, prompt in zip(tabs, prompts, strict=True):
        page_tab.page.keyboard.press("Escape")
        expect(page_tab.prompt).to_have_value(prompt)
        assert page_tab.record().closed.wait(RECORD_TIMEOUT)
