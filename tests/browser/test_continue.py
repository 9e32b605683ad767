"""Answers that ended early: their labels, Continue, Discard and token usage."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from halt.testing.fake_openai import FakeOpenAI
from halt.testing.scenarios import SCENARIOS
from halt.testing.wire import Reply
from tests.browser.chat import LOAD_ERRORS, STOPPED_BY_USER, Chat, numbers, wait_no_open_streams
from tests.browser.conftest import OpenChat
from tests.browser.held_requests import HeldRequests
from tests.browser.model_picker import add_models, choose
from tests.support.halt_server import RECORD_TIMEOUT, StartHalt, new_id
from tests.support.ports import free_port
from tests.support.waiting import SERVER_TIMEOUT, wait_until

NETWORK_ERRORS = LOAD_ERRORS + "|Failed to fetch|network error"  # in the console

#: A text in which a wrong seam is visible: within a word, a list, a block of code.
WHOLE = """# A report

The first paragraph has a few plain words, and **some bold ones**, so that it is long enough.

- one thing
- another thing, which is longer

```python
def answer() -> int:
    return 42
```

And the last paragraph ends it.
"""

#: Records in each frame a change of the answer's text other than growth.
WATCH = """() => {
  window.watched = { faults: [], text: '', exchanges: document.querySelectorAll('.exchange').length };
  const look = () => {
    const answer = document.querySelector('.exchange:last-child .answer');
    const text = (answer?.querySelector('.text').textContent ?? '').replace(/[^A-Za-z0-9]+|python|Wrap|Copy/g, '');
    if (!text.startsWith(watched.text)) watched.faults.push([watched.text, text]);
    watched.text = text;
    requestAnimationFrame(look);
  };
  look();
}"""


def start_answer(chat: Chat, full_text: str, first: int, **options: Any) -> str:
    """Send a prompt that the model answers up to character `first`; Continue brings the rest."""
    key = new_id()
    chat.fake.texts[key] = full_text
    arguments = "&".join(f"{k}={v}" for k, v in {"key": key, "first": first, **options}.items())
    return ask_model(chat, f"go_on?{arguments}")


def ask_model(chat: Chat, model: str) -> str:
    """Send a prompt to this model, which sees it also in the request of a continuation."""
    add_models(chat, model)
    choose(chat, model)
    chat.last_prompt = f"Tell me. {new_id()}"
    chat.submit(chat.last_prompt)
    return chat.last_prompt


def letters(text: str) -> str:
    """The letters and digits of a text, without those that the page adds to code."""
    return re.sub(r"[^A-Za-z0-9]+|python|Wrap|Copy", "", text)


@pytest.fixture
def breaking_model(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """A model that ends after 0 to 9 in a given way, and continues with 10 to 19."""

    def breaks(reply: Reply, end: str = "length") -> None:
        messages = reply.request["messages"]
        if len(messages) > 1 and "9" in str(messages[-1]["content"] + messages[-2]["content"]):
            is_instruction = "which are:" in messages[-1]["content"]
            reply.tokens(f"{i} " for i in range(9 if is_instruction else 10, 20))
            reply.finish()
            return
        reply.tokens(f"{i} " for i in range(10))
        if end == "drop":
            reply.drop()
        else:
            reply.finish(end)

    monkeypatch.setitem(SCENARIOS, "breaks", breaks)
    return lambda end: f"breaks?end={end}"


@pytest.mark.parametrize("first", [84, 172], ids=["within a paragraph", "within code"])
def test_continue_after_stop_extends_the_answer_without_a_seam(chat: Chat, first: int) -> None:
    """Continue extends a stopped answer in its place; the model later gets it as one text."""
    start_answer(chat, WHOLE, first)
    wait_until(lambda: letters(chat.answer_text()) == letters(WHOLE[:first]), SERVER_TIMEOUT)
    chat.stop.click()
    chat.wait_state("stopped")
    chat.page.evaluate(WATCH)
    chat.button("Continue").click()
    chat.wait_state("done")
    chat.frames()
    assert chat.page.evaluate("watched.faults") == []
    assert chat.page.locator(".exchange").count() == 1
    for _ in range(2):
        assert letters(chat.answer_text()) == letters(WHOLE)
        expect(chat.text.locator("li")).to_have_count(2)
        expect(chat.text.locator(".code")).to_have_count(1)
        expect(chat.answer.locator(".note")).to_have_count(0)
        expect(chat.button("Continue")).to_have_count(0)
        chat.reload()
    chat.ask("count?n=1")
    expect(chat.page.locator(".exchange")).to_have_count(2)
    chat.wait_state("done")
    sent_messages = chat.record().body["messages"]
    assert [message["role"] for message in sent_messages] == ["user", "assistant", "user"]
    assert sent_messages[1]["content"] == WHOLE, "one text, without a note of the stop"


@pytest.mark.parametrize(
    ("end", "label"),
    [("length", "Cut off at the token limit"), ("drop", "connection to the model's server")],
    ids=["cut off", "failed"],
)
def test_continue_extends_a_cut_off_or_failed_answer(
    chat: Chat, breaking_model: Callable[[str], str], end: str, label: str
) -> None:
    """Continue extends an answer that was cut off or failed, and its label disappears."""
    ask_model(chat, breaking_model(end))
    expect(chat.answer).to_contain_text(label)
    assert chat.answer_text() == numbers(10)
    chat.reload()
    chat.button("Continue").click()
    chat.wait_text("18 19")
    chat.wait_state("done")
    assert chat.answer_text() == numbers(20)
    expect(chat.answer).not_to_contain_text(label)


@pytest.mark.parametrize("reason", ["insufficient_system_resource", "abort", "MAX_TOKENS"])
def test_answer_with_an_odd_finish_reason_offers_continue(chat: Chat, reason: str) -> None:
    """An answer that its server ended shows the server's reason and offers Continue."""
    chat.ask(f"length?n=3&reason={reason}")
    is_cut_off = reason == "MAX_TOKENS"
    chat.wait_state("done" if is_cut_off else "error")
    ended = f"The model's server ended the answer: {reason}."
    for _ in range(2):
        expect(chat.answer).to_contain_text("Cut off at the token limit" if is_cut_off else ended)
        assert chat.answer_text() == numbers(3)
        expect(chat.button("Continue")).to_be_visible()
        chat.reload()


def test_empty_answer_shows_an_error_and_offers_retry(chat: Chat) -> None:
    """An answer without text shows an error and offers "Try again" alone, also after a reload."""
    chat.ask("empty")
    for _ in range(2):
        chat.wait_state("error")
        expect(chat.answer).to_contain_text("The model ended its answer without a text.")
        expect(chat.button("Try again")).to_be_visible()
        expect(chat.button("Continue")).to_have_count(0)
        chat.reload()


def test_answer_of_reasoning_alone_is_shown_copied_and_sent(chat: Chat) -> None:
    """An answer of reasoning alone is shown as text, can be copied, and is in the next request."""
    first = chat.ask("reasoning?thoughts=3&n=0")
    for _ in range(2):
        chat.wait_state("done")
        assert chat.answer_text() == "thought0 thought1 thought2"
        expect(chat.button("Copy")).to_be_visible()
        chat.reload()
    second = chat.ask("count?n=1")
    chat.wait_state("done")
    sent_messages = [
        (message["role"], message["content"]) for message in chat.record().body["messages"]
    ]
    assert sent_messages == [
        ("user", first),
        ("assistant", "thought0 thought1 thought2"),
        ("user", second),
    ]


@pytest.mark.slow
def test_continue_extends_an_answer_after_a_server_restart(
    open_chat: OpenChat, start_halt: StartHalt, fake: FakeOpenAI, tmp_path: Path
) -> None:
    """After a restart an interrupted answer is labelled, and Continue completes it."""
    settings = {
        "PORT": free_port(),
        "HALT_DATA": tmp_path / "data",
        "HALT_SECRET_KEY": "k" * 32,
    }
    server = start_halt(fake, **settings)
    chat = open_chat(server, fake)
    chat.allowed_problems = NETWORK_ERRORS
    start_answer(chat, WHOLE, 60)
    wait_until(lambda: letters(chat.answer_text()) == letters(WHOLE[:60]), SERVER_TIMEOUT)
    server.terminate()
    chat.wait_state("interrupted")
    assert server.wait() == 0
    start_halt(fake, **settings)
    for _ in range(2):
        expect(chat.answer.locator(".note-title")).to_contain_text("Interrupted")
        assert letters(chat.answer_text()) == letters(WHOLE[:60])
        chat.reload()
    chat.button("Continue").click()
    chat.wait_state("done")
    assert letters(chat.answer_text()) == letters(WHOLE)


def test_continue_stopped_before_any_text_leaves_the_answer(chat: Chat) -> None:
    """A Continue that is stopped before any text leaves the answer, and works again later."""
    start_answer(chat, WHOLE, 84)
    wait_until(lambda: letters(chat.answer_text()) == letters(WHOLE[:84]), SERVER_TIMEOUT)
    chat.stop.click()
    chat.wait_state("stopped")
    held = HeldRequests(chat, "**/continue")
    chat.button("Continue").click()
    held.wait()
    with chat.page.expect_response("**/stop") as pressed:
        chat.stop.click()
    assert pressed.value.ok
    held.release()
    chat.wait_state("stopped")
    for _ in range(2):
        expect(chat.answer.locator(".note-title")).to_have_text(STOPPED_BY_USER)
        assert letters(chat.answer_text()) == letters(WHOLE[:84])
        chat.reload()
    chat.button("Continue").click()
    chat.wait_state("done")
    assert letters(chat.answer_text()) == letters(WHOLE)


def test_continue_keeps_the_reasoning_of_both_parts(
    chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reasoning of the first part is shown while the second is written, and later."""

    def thinks(reply: Reply) -> None:
        first = len(reply.request["messages"]) == 1
        reply.tokens(["early " if first else "late "], kind="reasoning_content")
        reply.tokens(["one ", "two "] if first else ["one ", "two ", "three "])
        reply.hold()
        reply.finish()

    monkeypatch.setitem(SCENARIOS, "thinks", thinks)
    prompt_text = ask_model(chat, "thinks?gap_ms=1")
    chat.wait_text("one two")
    chat.stop.click()
    chat.wait_state("stopped")
    chat.button("Continue").click()
    chat.wait_text("one two three")
    steps = chat.answer.locator(".step")
    expect(steps.locator(".step-text")).to_have_text(["early ", "late "])
    for record in chat.fake.requests:
        if prompt_text in str(record.body):
            record.release()
    chat.wait_state("done")
    for _ in range(2):
        expect(steps.locator(".step-text")).to_have_text(["early ", "late "])
        expect(steps.locator("summary")).to_have_text([re.compile("^Thought( for .+)?$")] * 2)
        assert chat.answer_text() == "one two three"
        chat.reload()


def test_continue_without_room_leaves_the_answer(
    open_chat: OpenChat, start_halt: StartHalt, fake: FakeOpenAI
) -> None:
    """Continue and "Write again" on a full server show a notice; both work when there is room."""
    server = start_halt(fake, HALT_MAX_STREAMS=1)
    chat = open_chat(server, fake)
    chat.allowed_problems = "503"
    start_answer(chat, WHOLE, 84)
    wait_until(lambda: letters(chat.answer_text()) == letters(WHOLE[:84]), SERVER_TIMEOUT)
    chat.stop.click()
    chat.wait_state("stopped")
    wait_no_open_streams(server)
    with server.client().chat("stall?n=1") as events:
        events.until_text("0 ")
        for name in ("Continue", "Write again"):
            chat.button(name).click()
            expect(chat.page.locator("#notice")).to_contain_text("limit of open streams")
            expect(chat.button(name)).to_be_visible()
        chat.reload()
        expect(chat.answer.locator(".note-title")).to_have_text(STOPPED_BY_USER)
        assert letters(chat.answer_text()) == letters(WHOLE[:84])
        server.client().stop(events.id)
        events.to_end()
    wait_no_open_streams(server)
    chat.button("Continue").click()
    chat.wait_state("done")
    assert letters(chat.answer_text()) == letters(WHOLE)


def test_text_after_the_last_shown_word_is_counted_but_not_kept(
    chat: Chat, tab: Callable[[], Chat]
) -> None:
    """Text that arrives after Stop is in no page or request; the figures count its tokens."""
    chat.ask("count?n=1000000&gap_ms=3")
    chat.wait_text("20 21 22")
    held = HeldRequests(chat, "**/stop")
    chat.stop.click()
    frozen_text = chat.answer_text()
    held.wait()
    other_tab = tab()  # it shows what Halt has received
    other_tab.page.goto(chat.page.url)
    other_tab.wait_text(f" {len(frozen_text.split()) + 250} ")
    held.release()
    chat.wait_state("stopped")
    for _ in range(2):
        assert chat.answer_text() == frozen_text
        figures = chat.answer.locator(".figures").inner_text()
        token_match = re.search(r"([\d,]+) tokens", figures)
        assert token_match is not None
        assert int(token_match[1].replace(",", "")) >= len(frozen_text.split()) + 200
        chat.reload()
    chat.ask("count?n=1")
    chat.wait_state("done")
    sent_text = chat.record().body["messages"][1]["content"]
    assert sent_text.partition("\n\n")[0].strip() == frozen_text


@pytest.mark.parametrize(
    ("model", "label", "limit"),
    [
        pytest.param(
            "stall?n=13",
            "Stopped: no page was open for 1 second (HALT_ORPHAN_GRACE).",
            {"HALT_ORPHAN_GRACE": 1},
            id="no page",
        ),
        pytest.param(
            "count?n=100000",
            re.compile(r"Stopped at a limit after .* tokens\. *The answer is too long"),
            {"HALT_MAX_ANSWER_CHARS": 6000},
            id="length",
        ),
        pytest.param(
            "stall?n=13",
            re.compile(r"Stopped at a limit after .* tokens\. *The answer took"),
            {"HALT_RUN_TIMEOUT": 4},
            id="time",
        ),
    ],
)
def test_answer_stopped_by_halt_shows_the_reason(
    open_chat: OpenChat,
    start_halt: StartHalt,
    fake: FakeOpenAI,
    model: str,
    label: str | re.Pattern[str],
    limit: dict[str, int],
) -> None:
    """An answer that Halt stopped names the limit, is no error, and offers all its buttons."""
    chat = open_chat(start_halt(fake, **limit), fake)
    chat.ask(model)
    chat.wait_text("10 11 12")
    if "HALT_ORPHAN_GRACE" in limit:
        address = chat.page.url
        chat.page.goto("about:blank")
        assert chat.record().closed.wait(RECORD_TIMEOUT)
        chat.page.goto(address)
    chat.wait_state("stopped")
    for _ in range(2):
        expect(chat.answer.locator(".note")).to_contain_text(label)
        for name in ("Continue", "Write again", "Discard"):
            expect(chat.button(name)).to_be_visible()
        chat.reload()


def test_abandoned_answer_without_text_keeps_its_prompt(
    open_chat: OpenChat, start_halt: StartHalt, fake: FakeOpenAI
) -> None:
    """A silent answer that no page waited for keeps its prompt; Discard returns the prompt."""
    chat = open_chat(start_halt(fake, HALT_ORPHAN_GRACE=1), fake)
    prompt_text = chat.ask("silent_headers")
    record = chat.record()
    chat.page.wait_for_url("**/c/*")
    address = chat.page.url
    chat.page.goto("about:blank")
    assert record.closed.wait(RECORD_TIMEOUT)
    chat.page.goto(address)
    chat.wait_state("stopped")
    expect(chat.page.locator(".prompt .text")).to_have_text(prompt_text)
    expect(chat.answer.locator(".note-title")).to_have_text(
        re.compile(r"^Stopped: no page was open for \d+ seconds? \(HALT_ORPHAN_GRACE\)\.$")
    )
    expect(chat.button("Write again")).to_be_visible()
    expect(chat.button("Continue")).to_have_count(0)
    chat.button("Discard").click()
    expect(chat.prompt).to_have_value(prompt_text)
    expect(chat.page.locator(".exchange")).to_have_count(0)


def test_discard_removes_the_exchange_and_returns_its_prompt(chat: Chat) -> None:
    """Discard removes the exchange from page and requests, and puts its prompt into the field."""
    chat.ask("count?n=3")
    chat.wait_state("done")
    prompt_text = chat.ask("stall?n=5")
    chat.wait_text("3 4")
    chat.stop.click()
    chat.wait_state("stopped")
    chat.button("Discard").click()
    expect(chat.page.locator(".exchange")).to_have_count(1)
    expect(chat.prompt).to_have_value(prompt_text)
    expect(chat.prompt).to_be_focused()
    chat.reload()
    assert (chat.exchange_count(), chat.answer_text()) == (1, numbers(3))
    chat.ask("count?n=1")
    chat.wait_state("done")
    assert prompt_text not in str(chat.record().body)


def test_discard_of_the_only_answer_leaves_a_usable_page(chat: Chat) -> None:
    """Discard of the only answer leaves an empty page that can be used."""
    prompt_text = chat.ask("stall?n=5")
    chat.wait_text("3 4")
    chat.stop.click()
    chat.wait_state("stopped")
    chat.button("Discard").click()
    expect(chat.page.locator(".exchange")).to_have_count(0)
    expect(chat.prompt).to_have_value(prompt_text)
    chat.ask("count?n=3")
    chat.wait_state("done")
    assert (chat.exchange_count(), chat.answer_text()) == (1, numbers(3))


def test_complete_answer_offers_neither_continue_nor_discard(chat: Chat) -> None:
    """A complete answer offers neither Continue nor Discard, nor does an earlier stopped one."""
    chat.ask("stall?n=5")
    chat.wait_text("3 4")
    chat.stop.click()
    chat.wait_state("stopped")
    chat.ask("count?n=2")
    expect(chat.page.locator(".exchange")).to_have_count(2)
    chat.wait_state("done")
    for name in ("Continue", "Discard"):
        expect(chat.page.get_by_role("button", name=name)).to_have_count(0)


def test_usage_line_adds_reported_and_estimated_tokens(chat: Chat) -> None:
    """The usage line adds reported tokens to those estimated of a stopped answer, and says so."""
    total = chat.page.locator("#usage")
    expect(total).to_be_hidden()
    chat.ask("count?n=30")
    chat.wait_state("done")
    expect(total).to_contain_text(re.compile(r"Tokens of this conversation: \d+ read, 30 written$"))
    chat.ask("stall?n=12")
    expect(chat.page.locator(".exchange")).to_have_count(2)
    chat.wait_text("10 11")
    chat.stop.click()
    chat.wait_state("stopped")
    for _ in range(2):
        expect(total).to_contain_text(re.compile(r"about 42 written \(in part estimated\)$"))
        chat.reload()


def test_exact_usage_replaces_the_estimate_of_a_stopped_answer(
    open_chat: OpenChat, start_halt: StartHalt, fake: FakeOpenAI
) -> None:
    """With HALT_EXACT_USAGE the provider's count replaces the estimate; no late text is shown."""
    chat = open_chat(start_halt(fake, HALT_EXACT_USAGE=1), fake)
    chat.ask("stall?n=5&rest=3")
    chat.wait_text("3 4")
    chat.stop.click()
    chat.wait_state("stopped")
    figures = chat.answer.locator(".figures")
    expect(figures).to_contain_text("about 5 tokens, estimated")
    chat.record().release()

    def is_counted() -> bool:
        chat.reload()
        return "8 tokens" in figures.inner_text()

    wait_until(is_counted, SERVER_TIMEOUT)
    expect(figures).not_to_contain_text("estimated")
    assert chat.answer_text() == numbers(5)
    expect(chat.page.locator("#usage")).to_contain_text(re.compile(r"\d+ read, 8 written$"))
