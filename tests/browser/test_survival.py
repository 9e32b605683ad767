"""Conversations over reloads, tabs, lost networks, dead servers and failing models."""

from __future__ import annotations

import contextlib
import random
import re
import secrets
import sqlite3
from collections.abc import Callable
from math import inf
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Route, expect

from halt.testing.fake_openai import FakeOpenAI
from halt.testing.scenarios import MARKDOWN, SCENARIOS, pieces
from halt.testing.wire import Reply
from tests.browser.chat import LOAD_ERRORS, Chat, numbers, wait_no_open_streams
from tests.browser.conftest import OpenChat
from tests.browser.network import Network
from tests.support.halt_server import RECORD_TIMEOUT, StartHalt, request_record
from tests.support.ports import free_port
from tests.support.waiting import SERVER_TIMEOUT, wait_until

LOST = "Connection lost"
NETWORK_ERRORS = LOAD_ERRORS + "|Failed to fetch|network error"  # in the console


# --- reloads and tabs -----------------------------------------------------------------------------


def test_reload_at_random_moments_loses_and_repeats_no_token(chat: Chat) -> None:
    """At twenty random reloads the text so far is there at once, and the stream continues."""
    seed = secrets.randbits(32)
    chance = random.Random(seed)
    chat.ask("stall?n=1000&rest=50&gap_ms=8")
    chat.wait_text("0 ")
    for _ in range(20):
        count = len(chat.answer_text().split())
        chat.wait_text(f"{min(count + chance.randrange(40), 999)} ")
        text_before = chat.answer_text()
        chat.reload()
        assert chat.answer_text().startswith(text_before), f"seed {seed}"
        chat.wait_state("running")
    chat.record().release()
    chat.wait_state("done")
    assert chat.answer_text() == numbers(1050), f"seed {seed}"
    chat.reload()
    assert chat.answer_text() == numbers(1050), f"seed {seed}"


def test_reload_before_the_first_text_keeps_waiting(chat: Chat) -> None:
    """After a reload before the first text the prompt is shown, and the answer still comes."""
    prompt_text = chat.ask("silent_first_token?n=5")
    chat.wait_state("running")
    chat.reload()
    chat.wait_state("running")
    expect(chat.page.locator(".prompt .text")).to_have_text(prompt_text)
    expect(chat.stop).to_be_visible()
    chat.record().release()
    chat.wait_state("done")
    assert chat.answer_text() == numbers(5)


@pytest.mark.parametrize(
    ("cut_text", "visible_text"),
    [("two and a", "two and a"), ("| left ", "left"), ('    return f"<b>', 'return f"<b>')],
    ids=["list", "table", "code"],
)
def test_reload_within_a_markdown_block_continues_the_block(
    chat: Chat, monkeypatch: pytest.MonkeyPatch, cut_text: str, visible_text: str
) -> None:
    """A list, table or code block continues after a reload in its middle as without one."""
    half = MARKDOWN.index(cut_text) + len(cut_text)

    def halves(reply: Reply) -> None:
        reply.tokens(pieces(MARKDOWN[:half], 4))
        reply.hold(inf)
        reply.tokens(pieces(MARKDOWN[half:], 4))
        reply.finish()

    monkeypatch.setitem(SCENARIOS, "halves", halves)
    chat.ask("halves")
    for _ in range(2):
        chat.wait_text(visible_text)
        chat.reload()
        chat.wait_state("running")
    chat.wait_text(visible_text)
    chat.record().release()
    chat.wait_state("done")
    expect(chat.text.locator("table td")).to_have_text(["left", "1", "right", "22"])
    expect(chat.text.locator(".code-bar .copy")).to_have_count(1)  # which comes by a script
    after_reloads = chat.text.inner_html()
    chat.ask("markdown")
    expect(chat.page.locator(".exchange")).to_have_count(2)
    chat.wait_state("done")
    expect(chat.text.locator(".code-bar .copy")).to_have_count(1)
    assert chat.text.inner_html() == after_reloads.replace(
        chat.page.locator(".answer").first.get_attribute("data-stream") or "",
        chat.answer.get_attribute("data-stream") or "",
    )


def test_stop_in_one_tab_stops_the_answer_in_the_other(chat: Chat, tab: Callable[[], Chat]) -> None:
    """Two tabs show the same running answer, and a Stop in one ends it in both."""
    chat.ask("count?n=1000000&gap_ms=8")
    chat.wait_text("20 21 22")
    other_tab = tab()
    other_tab.page.goto(chat.page.url)
    assert other_tab.answer_text().startswith(numbers(20))
    for page_tab in (chat, other_tab):
        page_tab.wait_text("60 61 62")
    other_tab.stop.click()
    for page_tab in (chat, other_tab):
        page_tab.wait_state("stopped")
        expect(page_tab.send).to_be_visible()
    assert chat.record().closed.wait(RECORD_TIMEOUT)
    # Each tab keeps its text. The conversation has the text of the tab that stopped the answer.
    stopped_text = other_tab.answer_text()
    for page_tab in (chat, other_tab):
        page_tab.reload()
        assert page_tab.answer_text() == stopped_text


def focus(chat: Chat) -> None:
    """Dispatch the event of a tab that gets the focus."""
    chat.page.evaluate("dispatchEvent(new Event('focus'))")


def is_update_request(url: str) -> bool:
    """Whether this is the request for messages that other tabs have added."""
    return "/from?" in url


def test_focus_shows_and_follows_the_messages_of_another_tab(
    chat: Chat, tab: Callable[[], Chat]
) -> None:
    """A tab that gets the focus shows another tab's exchanges and follows the running one."""
    chat.ask("count?n=2")
    chat.wait_state("done")
    other_tab = tab()
    other_tab.page.goto(chat.page.url)
    other_tab.ask("count?n=3")
    other_tab.wait_text("0 1 2")
    other_tab.wait_state("done")
    other_tab.ask("stall?n=3&rest=2")
    expect(other_tab.page.locator(".exchange")).to_have_count(3)
    other_tab.wait_text("0 1 2")
    assert chat.exchange_count() == 1
    focus(chat)
    chat.wait_state("running")
    chat.wait_text("0 1 2")
    assert chat.exchange_count() == 3
    urls: list[str] = []
    chat.page.on("request", lambda request: urls.append(request.url))
    focus(chat)
    other_tab.record().release()
    for page_tab in (chat, other_tab):
        page_tab.wait_state("done")
        assert page_tab.answer_text() == numbers(5)
    assert not any(map(is_update_request, urls))
    with chat.page.expect_response(lambda response: is_update_request(response.url)):
        focus(chat)
    chat.ask("count?n=4")  # no message of the other tab is unseen here
    expect(chat.page.locator(".exchange")).to_have_count(4)
    chat.wait_state("done")
    assert chat.answer_text() == numbers(4)


def test_focus_shows_a_regeneration_and_removal_of_another_tab(
    chat: Chat, tab: Callable[[], Chat]
) -> None:
    """A tab that gets the focus shows another tab's new version and removed exchange."""
    chat.ask("count?n=2")
    chat.wait_state("done")
    chat.ask("count?n=3")
    expect(chat.page.locator(".exchange")).to_have_count(2)
    chat.wait_state("done")
    other_tab = tab()
    other_tab.page.goto(chat.page.url)
    other_tab.button("Write again").click()
    expect(other_tab.page.locator(".number")).to_contain_text("2 of")
    other_tab.wait_state("done")
    focus(chat)
    expect(chat.page.locator(".number")).to_contain_text("2 of")
    expect(chat.page.locator(".exchange")).to_have_count(2)
    other_tab.page.locator(".exchange").first.get_by_role("button", name="Write again").click()
    expect(other_tab.page.locator(".exchange")).to_have_count(1)
    other_tab.wait_state("done")
    focus(chat)
    expect(chat.page.locator(".exchange")).to_have_count(1)
    expect(chat.page.locator(".number")).to_contain_text("2 of")


def test_focus_adds_another_tabs_messages_without_a_jump(
    chat: Chat, tab: Callable[[], Chat]
) -> None:
    """Another tab's messages are added below; a page at its end follows them."""
    chat.ask("count?n=3000")
    chat.wait_state("done")
    other_tab = tab()
    other_tab.page.goto(chat.page.url)
    for position in (300, None):
        if position is None:
            chat.page.evaluate("scrollTo(0, document.scrollingElement.scrollHeight)")
        else:
            chat.page.evaluate(f"scrollTo(0, {position})")
        chat.frames()
        exchanges = other_tab.exchange_count()
        other_tab.ask("count?n=500")
        expect(other_tab.page.locator(".exchange")).to_have_count(exchanges + 1)
        other_tab.wait_state("done")
        focus(chat)
        expect(chat.page.locator(".exchange")).to_have_count(exchanges + 1)
        chat.frames()
        assert chat.pixels_above() == position if position else chat.pixels_below() < 40


def test_second_tab_follows_an_answer_to_its_end(chat: Chat, tab: Callable[[], Chat]) -> None:
    """Both tabs get every token, also if the second is reloaded on the way."""
    chat.ask("stall?n=200&rest=50&gap_ms=8")
    chat.wait_text("10 11 12")
    other = tab()
    other.page.goto(chat.page.url)
    for moment in ("40 41", "100 101"):
        other.wait_text(moment)
        before = other.answer_text()
        other.reload()
        assert other.answer_text().startswith(before)
    chat.record().release()
    for page_tab in (chat, other):
        page_tab.wait_state("done")
        assert page_tab.answer_text() == numbers(250)


@pytest.mark.slow
def test_eight_tabs_with_answers_all_get_every_token(chat: Chat, tab: Callable[[], Chat]) -> None:
    """Eight tabs with answers share a browser's six connections, and all get every token."""
    tabs = [chat, *(tab() for _ in range(7))]
    for page_tab in tabs:
        page_tab.ask("stall?n=100&rest=50&gap_ms=5")
    for page_tab in tabs:
        page_tab.wait_text("98 99")
        page_tab.wait_state("running")
    for page_tab in tabs:
        page_tab.record().release()
    for page_tab in tabs:
        page_tab.wait_state("done")
        assert page_tab.answer_text() == numbers(150)


def test_closed_tab_leaves_its_answer_running(chat: Chat, tab: Callable[[], Chat]) -> None:
    """An answer continues after its tab is closed, and a new tab shows all of it."""
    chat.ask("count?n=200&hold=20")
    chat.wait_text("18 19")
    record, address = chat.record(), chat.page.url
    other = tab()
    chat.page.close()
    other.page.goto(address)
    other.wait_state("running")
    record.release()
    other.wait_state("done")
    assert other.answer_text() == numbers(200)


def test_back_and_forward_show_the_conversation(chat: Chat) -> None:
    """Back from a new chat shows the conversation, Forward the empty page."""
    chat.ask("count?n=3")
    chat.wait_state("done")
    chat.page.get_by_role("link", name="New chat").click()
    expect(chat.page.locator(".exchange")).to_have_count(0)
    chat.page.go_back()
    chat.wait_text("0 1 2")
    chat.page.go_forward()
    expect(chat.page.locator(".exchange")).to_have_count(0)


def test_page_works_after_back_to_the_empty_chat(chat: Chat) -> None:
    """After Back to the page where a conversation started, typing, Enter and Stop work."""
    chat.ask("count?n=3")
    chat.wait_state("done")
    chat.page.go_back()
    expect(chat.page.locator(".exchange")).to_have_count(0)
    chat.ask("stall?n=3")
    chat.wait_text("0 1 2")
    expect(chat.prompt).to_have_value("")
    chat.stop.click()
    chat.wait_state("stopped")


def test_stop_without_the_session_shows_the_answer_as_lost(chat: Chat) -> None:
    """A Stop from a lost session shows the answer as lost, and Send is visible again."""
    chat.allowed_problems = LOAD_ERRORS

    def send_without_session(route: Route) -> None:
        """Send the request without a session; a response would renew a deleted cookie."""
        request, url = route.request, urlsplit(route.request.url)
        headers = {k: v for k, v in request.headers.items() if k in {"content-type", "hx-request"}}
        path = url.path + (f"?{url.query}" if url.query else "")
        answer = chat.server.client().request(
            request.method, path, request.post_data_buffer, headers
        )
        html = {"Content-Type": answer.headers["content-type"]}
        route.fulfill(status=answer.status, headers=html, body=answer.body)

    chat.ask("stall?n=3")
    chat.wait_text("0 1 2")
    chat.page.route(re.compile(r"/stop$|/streams/"), send_without_session)
    chat.stop.click()
    chat.wait_state("lost")
    expect(chat.answer.locator(".note")).to_contain_text("This answer was lost")
    expect(chat.send).to_be_visible()
    chat.record().release()


def test_back_to_a_running_answer_follows_it(chat: Chat) -> None:
    """Back to a running answer shows all of its text and follows it."""
    chat.ask("stall?n=60&rest=60&gap_ms=8")
    chat.wait_text("10 11 12")
    chat.page.get_by_role("link", name="New chat").click()
    expect(chat.page.locator(".exchange")).to_have_count(0)
    chat.page.go_back()
    chat.wait_text("58 59")
    chat.record().release()
    chat.wait_state("done")
    assert chat.answer_text() == numbers(120)


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "words", "text"),
    [
        ("drop?n=5&gap_ms=5", "connection to the model's server broke off", "0 1 2 3 4"),
        ("error_in_stream?n=3", "reported an error", "0 1 2"),
        ("no_finish?n=5", "ended the answer before it was finished", "0 1 2 3 4"),
        ("garbage?n=2", "not a valid stream", "0 1"),
        ("429?retry_after=20", "limiting requests", ""),
        ("500", "had an internal error", ""),
    ],
    ids=[
        "dropped connection",
        "error in the stream",
        "no finish reason",
        "invalid stream",
        "rate limit",
        "internal error",
    ],
)
def test_temporary_error_is_explained_and_offers_retry(
    chat: Chat, model: str, words: str, text: str
) -> None:
    """A temporary error is explained, keeps the text before it and offers a retry."""
    chat.ask(model)
    chat.wait_state("error")
    for _ in range(2):
        expect(chat.answer.locator(".fault")).to_contain_text(words)
        expect(chat.button("Continue" if text else "Try again")).to_be_visible()
        assert chat.answer_text() == text
        expect(chat.send).to_be_visible()
        chat.reload()


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("401", "did not accept the API key"),
        ("403", "Country, region, or territory not supported"),
        ("404", "does not have this model"),
        ("400", "Change the message or the settings"),
        ("context", "too long for this model"),
    ],
    ids=["wrong key", "forbidden", "unknown model", "bad request", "too long"],
)
def test_permanent_error_is_explained_with_its_code_and_status(
    chat: Chat, model: str, words: str
) -> None:
    """A permanent error has the server's words, code, status and request ID, and a way out."""
    chat.ask(model)
    chat.wait_state("error")
    fault = chat.answer.locator(".fault")
    expect(fault).to_contain_text(words)
    assert not re.search(r"Traceback|Error\(|\{", fault.text_content() or "")
    expect(fault).to_contain_text(re.compile(r"Code: \w+ · HTTP 4\d\dRequest ID: \w+"))
    expect(chat.button("Try again")).to_be_visible()
    expect(chat.send).to_be_visible()
    chat.button("Choose a model").click()
    expect(chat.page.get_by_role("dialog", name="Models", exact=True)).to_be_visible()


def test_retry_replaces_the_failed_answer(
    open_chat: OpenChat, start_halt: StartHalt, fake: FakeOpenAI
) -> None:
    """Try again replaces a failed answer with the new one in the same place."""
    chat = open_chat(start_halt(fake, HALT_RETRIES=0), fake)
    chat.ask("flaky?n=4")
    chat.wait_state("error")
    chat.button("Try again").click()
    chat.wait_state("done")
    assert (chat.exchange_count(), chat.answer_text()) == (1, numbers(4))
    expect(chat.answer.locator(".fault")).to_have_count(0)
    chat.reload()
    assert (chat.exchange_count(), chat.answer_text()) == (1, numbers(4))


def test_full_server_shows_a_notice_and_the_prompt_stays(
    open_chat: OpenChat, start_halt: StartHalt, fake: FakeOpenAI
) -> None:
    """A full server shows a notice; the prompt stays and can be sent when there is room."""
    server = start_halt(fake, HALT_MAX_STREAMS=1)
    chat = open_chat(server, fake)
    chat.allowed_problems = "503"
    with server.client().chat("stall?n=1") as events:
        events.until_text("0 ")
        prompt_text = chat.ask("count?n=3")
        expect(chat.page.locator("#notice")).to_contain_text("limit of open streams")
        expect(chat.prompt).to_have_value(prompt_text)
        assert chat.exchange_count() == 0
        expect(chat.send).to_be_visible()
        server.client().stop(events.id)
        events.to_end()
    wait_no_open_streams(server)
    chat.prompt.press("Enter")
    chat.wait_state("done")
    assert chat.answer_text() == numbers(3)
    expect(chat.page.locator("#notice")).to_be_empty()


# --- lost networks and servers --------------------------------------------------------------------


def test_lost_network_is_shown_and_the_stream_resumes(
    open_chat: OpenChat, network: Network, shared_fake: FakeOpenAI
) -> None:
    """A lost network is shown, and the stream resumes without losing or repeating a token."""
    chat = open_chat(network, shared_fake)
    chat.allowed_problems = NETWORK_ERRORS
    chat.ask("stall?n=800&rest=50&gap_ms=8")
    chat.wait_text("30 31 32")
    for _ in range(2):
        network.disconnect()
        expect(chat.page.get_by_text(LOST)).to_be_visible()
        before = chat.answer_text()
        network.reconnect()
        expect(chat.page.get_by_text(LOST)).to_be_hidden()
        assert chat.answer_text().startswith(before)
        chat.wait_text(f"{min(len(before.split()), 799)} ")
    chat.record().release()
    chat.wait_state("done")
    assert chat.answer_text() == numbers(850)


def times_asked(fake: FakeOpenAI, words: str) -> int:
    """The number of requests to the model that contain these words."""
    return sum(words in str(record.body) for record in fake.requests)


@pytest.mark.parametrize("action", ["Send", "Edit", "Write again"])
def test_stream_of_a_post_that_is_cut_resumes_by_a_get(
    open_chat: OpenChat, network: Network, shared_fake: FakeOpenAI, action: str
) -> None:
    """A cut stream of a POST resumes by a GET after its last event; the model gets one request."""
    chat = open_chat(network, shared_fake)
    chat.allowed_problems = NETWORK_ERRORS
    prompt_text = chat.ask("stall?n=40&rest=60&gap_ms=3")
    chat.wait_text("38 39")
    if action != "Send":
        chat.stop.click()
        chat.wait_state("stopped")
        chat.button(action).click() if action == "Write again" else edit(chat)
        chat.wait_state("running")
        chat.wait_text("38 39")
    times = 1 if action == "Send" else 2
    record = request_record(shared_fake, prompt_text, times - 1)
    record.wait_tokens(40)
    network.requests.clear()
    network.disconnect()
    expect(chat.page.get_by_text(LOST)).to_be_visible()
    network.reconnect()
    expect(chat.page.get_by_text(LOST)).to_be_hidden()
    chat.frames()
    assert chat.answer_text() == numbers(40)
    record.release()
    chat.wait_state("done")
    assert chat.answer_text() == numbers(100)
    feeds = [line for line in network.requests if "/page?" in line]
    assert feeds
    assert all(int(line.partition("after=")[2]) > 0 for line in feeds), feeds
    assert not [line for line in network.requests if line.startswith("POST")]
    assert times_asked(shared_fake, prompt_text) == times
    chat.reload()
    assert chat.answer_text() == numbers(100)
    assert times_asked(shared_fake, prompt_text) == times


def edit(chat: Chat) -> None:
    """Send the last prompt again, unchanged, from its editor."""
    chat.page.get_by_role("button", name="Edit message").last.click()
    chat.page.get_by_role("textbox", name="Edit your message").press("Enter")


def test_answer_needs_no_request_but_its_post(
    open_chat: OpenChat, network: Network, shared_fake: FakeOpenAI
) -> None:
    """The stream of a POST brings the whole answer; no other stream is opened."""
    chat = open_chat(network, shared_fake)
    for n in range(2):
        chat.ask("count?n=30&gap_ms=2")
        expect(chat.page.locator(".exchange")).to_have_count(n + 1)
        chat.wait_state("done")
        assert chat.answer_text() == numbers(30)
    chat.button("Write again").click()
    expect(chat.page.locator(".number")).to_contain_text("2 of")
    chat.wait_state("done")
    chat.ask("stall?n=3&rest=2")
    expect(chat.page.locator(".exchange")).to_have_count(3)
    chat.wait_text("0 1 2")
    chat.stop.click()
    chat.wait_state("stopped")
    chat.button("Continue").click()
    chat.wait_state("done")
    assert not [line for line in network.requests if "/streams/" in line]


def test_reload_within_the_stream_of_a_post_sends_no_message(
    open_chat: OpenChat, network: Network, shared_fake: FakeOpenAI
) -> None:
    """A reload within the stream of a POST resumes by a GET and sends no message again."""
    chat = open_chat(network, shared_fake)
    prompt_text = chat.ask("stall?n=40&rest=60&gap_ms=3")
    chat.wait_text("20 21")
    network.requests.clear()
    chat.reload()
    chat.wait_text("38 39")
    chat.record().release()
    chat.wait_state("done")
    assert chat.answer_text() == numbers(100)
    assert times_asked(shared_fake, prompt_text) == 1
    assert not [line for line in network.requests if "/messages" in line]


def cut_off(chat: Chat, network: Network) -> None:
    """Break all connections; then only the page's streams stay impossible."""
    chat.allowed_problems = NETWORK_ERRORS
    chat.context.route("**/streams/*/page*", lambda route: route.abort())
    network.disconnect()
    expect(chat.page.get_by_text(LOST)).to_be_visible()
    network.reconnect()


def test_stream_that_cannot_be_opened_is_requested_again(
    open_chat: OpenChat, network: Network, shared_fake: FakeOpenAI
) -> None:
    """If the GET after a cut stream fails, the page repeats it until it succeeds."""
    chat = open_chat(network, shared_fake)
    chat.ask("count?n=50&hold=0")
    chat.wait_state("running")
    cut_off(chat, network)
    chat.release()
    expect(chat.page.get_by_text(LOST)).to_be_visible()
    chat.context.unroute_all()
    chat.wait_state("done")
    assert chat.answer_text() == numbers(50)
    expect(chat.page.get_by_text(LOST)).to_be_hidden()


def test_stop_works_while_the_stream_cannot_be_opened(
    open_chat: OpenChat, network: Network, shared_fake: FakeOpenAI
) -> None:
    """Stop without any text returns the prompt, and the notice of the lost connection goes."""
    chat = open_chat(network, shared_fake)
    prompt_text = chat.ask("silent_first_token")
    chat.wait_state("running")
    cut_off(chat, network)
    chat.stop.click()
    expect(chat.prompt).to_have_value(prompt_text)
    expect(chat.page.get_by_text(LOST)).to_be_hidden()
    assert chat.record().closed.wait(RECORD_TIMEOUT)


def test_prompt_without_a_network_stays_in_its_field(chat: Chat) -> None:
    """Without a network a notice is shown, and the prompt can be sent later."""
    chat.allowed_problems = NETWORK_ERRORS
    chat.context.set_offline(True)
    prompt_text = chat.ask("count?n=3")
    expect(chat.page.locator("#notice")).to_contain_text("could not be reached")
    expect(chat.prompt).to_have_value(prompt_text)
    expect(chat.send).to_be_visible()
    chat.context.set_offline(False)
    chat.prompt.press("Enter")
    chat.wait_state("done")
    assert chat.answer_text() == numbers(3)


def shared_settings(folder: Path) -> dict[str, str]:
    """Settings that a restarted server shares: port, data folder and key of the sessions."""
    return {
        "PORT": str(free_port()),
        "HALT_DATA": str(folder),
        "HALT_SECRET_KEY": "a key that outlives a server",
    }


def saved_events(path: Path) -> int:
    """The number of saved events of a running answer, at least."""
    with contextlib.closing(sqlite3.connect(path)) as database:
        (last,) = database.execute("SELECT max(first_seq) FROM chunks").fetchone()
    return last or 0


@pytest.mark.slow
def test_killed_server_is_noticed_and_its_return_too(
    open_chat: OpenChat, start_halt: StartHalt, fake: FakeOpenAI, tmp_path: Path
) -> None:
    """The text stays while the server is gone; then the page shows what was saved, and works."""
    settings = shared_settings(tmp_path)
    server = start_halt(fake, **settings)
    chat = open_chat(server, fake)
    chat.allowed_problems = NETWORK_ERRORS
    chat.ask("count?n=1000000&gap_ms=8")
    chat.wait_text("60 61 62")
    wait_until(lambda: saved_events(tmp_path / "halt.db") > 60, SERVER_TIMEOUT)
    server.kill()
    expect(chat.page.get_by_text(LOST)).to_be_visible()
    assert chat.answer_text().startswith(numbers(30))
    start_halt(fake, **settings)
    chat.wait_state("interrupted")
    expect(chat.page.get_by_text(LOST)).to_be_hidden()
    assert chat.answer_text().startswith(numbers(30))
    shown_numbers = [int(word) for word in chat.answer_text().split()]
    assert shown_numbers == list(range(len(shown_numbers)))
    chat.reload()
    chat.wait_state("interrupted")
    assert [int(word) for word in chat.answer_text().split()] == shown_numbers
    expect(chat.send).to_be_visible()
    chat.ask("count?n=3")
    expect(chat.page.locator(".exchange")).to_have_count(2)
    chat.wait_state("done")
    assert chat.answer_text() == numbers(3)


@pytest.mark.slow
def test_orderly_restart_keeps_the_answer_for_continue(
    open_chat: OpenChat, start_halt: StartHalt, fake: FakeOpenAI, tmp_path: Path
) -> None:
    """After an orderly restart the answer is labelled, has its text and offers Continue."""
    settings = shared_settings(tmp_path)
    server = start_halt(fake, **settings)
    chat = open_chat(server, fake)
    chat.allowed_problems = NETWORK_ERRORS
    chat.ask("count?n=1000000&gap_ms=8")
    chat.wait_text("30 31 32")
    server.terminate()
    chat.wait_state("interrupted")
    expect(chat.answer.locator(".note-title")).to_contain_text("shut down or crashed")
    text = chat.answer_text()
    assert text.startswith(numbers(30))
    assert server.wait() == 0
    start_halt(fake, **settings)
    chat.reload()
    assert chat.answer_text() == text
    expect(chat.button("Continue")).to_be_visible()
    chat.button("Write again").click()
    chat.wait_state("running")
    chat.stop.click()


@pytest.mark.slow
def test_failed_saving_is_shown_until_it_works_again(
    open_chat: OpenChat, start_halt: StartHalt, fake: FakeOpenAI, tmp_path: Path
) -> None:
    """A notice, legible in the dark, shows failed saving until it works; the answer continues."""
    server = start_halt(fake, **shared_settings(tmp_path))
    chat = open_chat(server, fake, color_scheme="dark", viewport={"width": 375, "height": 700})
    chat.ask("count?n=1000000&gap_ms=20")
    chat.wait_text("3 4")
    notice = chat.page.locator("#saving")
    expect(notice).to_be_hidden()
    with contextlib.closing(sqlite3.connect(tmp_path / "halt.db", timeout=30)) as other:
        other.execute("BEGIN IMMEDIATE")
        expect(notice).to_contain_text("the database is locked by another program")
        assert {name: c for name, c in chat.contrasts().items() if c < 4.5} == {}
        other_tab = open_chat(server, fake, same=chat)
        expect(other_tab.page.locator("#saving")).to_be_visible()
        other.execute("ROLLBACK")
    expect(notice).to_be_hidden()
    expect(other_tab.page.locator("#saving")).to_be_hidden()
    chat.stop.click()
    chat.wait_state("stopped")
