"""After a Stop: why an answer ended, going on from its last word, throwing it away, what it took."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from halt.testing.fake_openai import FakeOpenAI
from halt.testing.scenarios import SCENARIOS
from halt.testing.wire import Reply
from tests.browser.chat import AWAY, Chat, numbers
from tests.browser.conftest import OpenChat
from tests.browser.test_compare import add
from tests.browser.test_models import choose
from tests.browser.test_stop import Held
from tests.support.halt_server import SEEN_WITHIN, StartHalt, eventually, new_id

BROKEN = AWAY + "|Failed to fetch|network error"  # what the console may say of a lost server

#: A text in which a seam would be seen: within a word, a list, a block of code.
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

#: Watches what an answer shows from frame to frame: it may grow, and nothing else.
WATCH = """() => {
  window.watched = { faults: [], text: '', exchanges: document.querySelectorAll('.exchange').length };
  const look = () => {
    const answer = document.querySelector('.exchange:last-child .answer');
    const text = (answer?.querySelector('.text').textContent ?? '').replace(/[^A-Za-z0-9]+|pythonCopy|python|Copy/g, '');
    if (!text.startsWith(watched.text)) watched.faults.push([watched.text, text]);
    watched.text = text;
    requestAnimationFrame(look);
  };
  look();
}"""


def begin(chat: Chat, whole: str, first: int, **more: Any) -> str:
    """Let the model say the first characters of a text, and the rest when it is to go on."""
    key = new_id()
    chat.fake.texts[key] = whole
    arguments = "&".join(f"{k}={v}" for k, v in {"key": key, "first": first, **more}.items())
    return tell(chat, f"go_on?{arguments}")


def tell(chat: Chat, model: str) -> str:
    """Ask this model: a continuation has other last words than the prompt's."""
    add(chat, model)
    choose(chat, model)
    chat.said = f"Tell me. {new_id()}"
    chat.say(chat.said)
    return chat.said


def letters(text: str) -> str:
    """A text without what markdown and the page make of its blanks and signs."""
    return re.sub(r"[^A-Za-z0-9]+|pythonCopy|python|Copy", "", text)


@pytest.fixture
def breaking(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """A model that says 0 to 9 and ends in some way, and 10 to 19 when it is to go on."""

    def breaks(reply: Reply, end: str = "length") -> None:
        messages = reply.request["messages"]
        if len(messages) > 1 and "9" in str(messages[-1]["content"] + messages[-2]["content"]):
            told = "which are:" in messages[-1]["content"]
            reply.tokens(f"{i} " for i in range(9 if told else 10, 20))
            reply.finish()
            return
        reply.tokens(f"{i} " for i in range(10))
        if end == "drop":
            reply.drop()
        else:
            reply.finish(end)

    monkeypatch.setitem(SCENARIOS, "breaks", breaks)
    return lambda end: f"breaks?end={end}"


@pytest.mark.parametrize("first", [84, 172])
def test_a_stopped_answer_goes_on_in_the_same_message_without_a_seam(
    chat: Chat, first: int
) -> None:
    """Wherever it broke off; what was there stays on the screen, and the text only grows."""
    begin(chat, WHOLE, first)
    eventually(lambda: letters(chat.shown()) == letters(WHOLE[:first]))
    chat.stop.click()
    chat.wait_state("stopped")
    chat.page.evaluate(WATCH)
    chat.button("Continue").click()
    chat.wait_state("done")
    chat.frames()
    assert chat.page.evaluate("watched.faults") == []
    assert chat.page.locator(".exchange").count() == 1
    for _ in range(2):
        assert letters(chat.shown()) == letters(WHOLE)
        expect(chat.text.locator("li")).to_have_count(2)
        expect(chat.text.locator(".code")).to_have_count(1)
        expect(chat.answer.locator(".badge")).to_have_count(0)
        expect(chat.button("Continue")).to_have_count(0)
        chat.reload()
    chat.ask("count?n=1")
    expect(chat.page.locator(".exchange")).to_have_count(2)
    chat.wait_state("done")
    told = chat.record().body["messages"]
    assert [each["role"] for each in told] == ["user", "assistant", "user"]
    assert told[1]["content"] == WHOLE, "the model is told one text, and of no stop"


@pytest.mark.parametrize(
    ("end", "label"),
    [("length", "Cut off at the token limit"), ("drop", "connection to the model's server")],
)
def test_an_answer_that_was_cut_off_or_failed_can_be_gone_on_with(
    chat: Chat, breaking: Callable[[str], str], end: str, label: str
) -> None:
    """Also after a reload: the label goes, and the text goes on."""
    tell(chat, breaking(end))
    expect(chat.answer).to_contain_text(label)
    assert chat.shown() == numbers(10)
    chat.reload()
    chat.button("Continue").click()
    chat.wait_text("18 19")
    chat.wait_state("done")
    assert chat.shown() == numbers(20)
    expect(chat.answer).not_to_contain_text(label)


@pytest.mark.parametrize("reason", ["insufficient_system_resource", "abort", "MAX_TOKENS"])
def test_an_answer_that_its_server_broke_off_can_be_gone_on_with(chat: Chat, reason: str) -> None:
    """For whatever reason, which is said in the server's own word where it is not known here."""
    chat.ask(f"length?n=3&reason={reason}")
    known = reason == "MAX_TOKENS"
    chat.wait_state("done" if known else "error")
    ended = f"The model's server ended the answer: {reason}."
    for _ in range(2):
        expect(chat.answer).to_contain_text("Cut off at the token limit" if known else ended)
        assert chat.shown() == numbers(3)
        expect(chat.button("Continue")).to_be_visible()
        chat.reload()


def test_an_answer_that_brought_nothing_says_so(chat: Chat) -> None:
    """It can be asked for again; so can one after a reload."""
    chat.ask("empty")
    for _ in range(2):
        chat.wait_state("error")
        expect(chat.answer).to_contain_text("The model ended its answer without a text.")
        expect(chat.button("Retry")).to_be_visible()
        expect(chat.button("Continue")).to_have_count(0)
        chat.reload()


def test_an_answer_that_is_all_thought_is_an_answer(chat: Chat) -> None:
    """It is shown below its fold, can be copied, and the model is told that it said it."""
    first = chat.ask("reasoning?thoughts=3&n=0")
    for _ in range(2):
        chat.wait_state("done")
        assert chat.shown() == "thought0 thought1 thought2"
        expect(chat.button("Copy")).to_be_visible()
        chat.reload()
    second = chat.ask("count?n=1")
    chat.wait_state("done")
    told = [(each["role"], each["content"]) for each in chat.record().body["messages"]]
    assert told == [
        ("user", first),
        ("assistant", "thought0 thought1 thought2"),
        ("user", second),
    ]


@pytest.mark.slow
def test_an_answer_of_a_server_that_went_away_can_be_gone_on_with(
    open_chat: OpenChat, start_halt: StartHalt, fake: FakeOpenAI, tmp_path: Path
) -> None:
    """It is there after the restart, says that it was interrupted, and goes on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        settings = {
            "PORT": probe.getsockname()[1],
            "HALT_DATA": tmp_path / "data",
            "HALT_SECRET_KEY": "k" * 32,
        }
    server = start_halt(fake, **settings)
    chat = open_chat(server, fake)
    chat.forgives = BROKEN
    begin(chat, WHOLE, 60)
    eventually(lambda: letters(chat.shown()) == letters(WHOLE[:60]))
    server.terminate()
    chat.wait_state("interrupted")
    assert server.wait() == 0
    start_halt(fake, **settings)
    for _ in range(2):
        expect(chat.answer.locator(".badge")).to_contain_text("Interrupted")
        assert letters(chat.shown()) == letters(WHOLE[:60])
        chat.reload()
    chat.button("Continue").click()
    chat.wait_state("done")
    assert letters(chat.shown()) == letters(WHOLE)


def test_a_continuation_can_be_stopped_at_any_time(chat: Chat) -> None:
    """Before it brings anything, the text stays as it was, and can be gone on with again."""
    begin(chat, WHOLE, 84)
    eventually(lambda: letters(chat.shown()) == letters(WHOLE[:84]))
    chat.stop.click()
    chat.wait_state("stopped")
    held = Held(chat, "**/continue")
    chat.button("Continue").click()
    held.wait()
    with chat.page.expect_response("**/stop") as pressed:
        chat.stop.click()
    assert pressed.value.ok
    held.let_go()
    chat.wait_state("stopped")
    for _ in range(2):
        expect(chat.answer.locator(".badge")).to_have_text("Stopped by you")
        assert letters(chat.shown()) == letters(WHOLE[:84])
        chat.reload()
    chat.button("Continue").click()
    chat.wait_state("done")
    assert letters(chat.shown()) == letters(WHOLE)


def test_thoughts_of_both_parts_stay(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the first part are there while the second is written, at its end, and later."""

    def thinks(reply: Reply) -> None:
        first = len(reply.request["messages"]) == 1
        reply.tokens(["early " if first else "late "], kind="reasoning_content")
        reply.tokens(["one ", "two "] if first else ["one ", "two ", "three "])
        reply.hold()
        reply.finish()

    monkeypatch.setitem(SCENARIOS, "thinks", thinks)
    said = tell(chat, "thinks?gap_ms=1")
    chat.wait_text("one two")
    chat.stop.click()
    chat.wait_state("stopped")
    chat.button("Continue").click()
    chat.wait_text("one two three")
    folds = chat.answer.locator(".fold")
    expect(folds.locator(".folded")).to_have_text(["early ", "late "])
    for each in chat.fake.requests:
        if said in str(each.body):
            each.release()
    chat.wait_state("done")
    for _ in range(2):
        expect(folds.locator(".folded")).to_have_text(["early ", "late "])
        expect(folds.locator("summary")).to_have_text([re.compile("^Thought for")] * 2)
        assert chat.shown() == "one two three"
        chat.reload()


def test_without_room_for_it_an_answer_stays_as_it_was(
    open_chat: OpenChat, start_halt: StartHalt, fake: FakeOpenAI
) -> None:
    """The page says so; Continue and Regenerate can be pressed again when there is room."""
    server = start_halt(fake, HALT_MAX_STREAMS=1)
    chat = open_chat(server, fake)
    chat.forgives = "503"
    begin(chat, WHOLE, 84)
    eventually(lambda: letters(chat.shown()) == letters(WHOLE[:84]))
    chat.stop.click()
    chat.wait_state("stopped")
    with server.client().chat("stall?n=1") as events:
        events.until_text("0 ")
        for name in ("Continue", "Regenerate"):
            chat.button(name).click()
            expect(chat.page.locator("#notice")).to_contain_text("places for streams are taken")
            expect(chat.button(name)).to_be_visible()
        chat.reload()
        expect(chat.answer.locator(".badge")).to_have_text("Stopped by you")
        assert letters(chat.shown()) == letters(WHOLE[:84])
        server.client().stop(events.id)
        events.to_end()
    chat.button("Continue").click()
    chat.wait_state("done")
    assert letters(chat.shown()) == letters(WHOLE)


def test_what_arrived_after_the_last_word_shown_is_kept_nowhere_but_counted(chat: Chat) -> None:
    """Not shown again, not told, not gone on from; the figures count what was received."""
    chat.ask("count?n=100000&gap_ms=3")
    chat.wait_text("20 21 22")
    held = Held(chat, "**/stop")
    chat.stop.click()
    still = chat.shown()
    held.wait()
    sent = chat.record().wait_tokens(0)
    chat.record().wait_tokens(sent + 200)
    held.let_go()
    chat.wait_state("stopped")
    for _ in range(2):
        assert chat.shown() == still
        figures = chat.answer.locator(".figures").inner_text()
        counted = re.search(r"about ([\d,]+) tokens \(estimated\)", figures)
        assert counted is not None
        assert int(counted[1].replace(",", "")) >= len(still.split()) + 200
        chat.reload()
    chat.ask("count?n=1")
    chat.wait_state("done")
    told = chat.record().body["messages"][1]["content"]
    assert told.partition("\n\n")[0].strip() == still


def test_an_answer_says_why_it_was_stopped(
    open_chat: OpenChat, start_halt: StartHalt, fake: FakeOpenAI
) -> None:
    """Nobody was watching, or a limit was reached; it is not called a fault."""
    server = start_halt(fake, HALT_ORPHAN_GRACE=1, HALT_MAX_ANSWER_CHARS=6000, HALT_RUN_TIMEOUT=4)
    for model, label in [
        ("stall?n=13", "Stopped: no page was open for 1 second (HALT_ORPHAN_GRACE)."),
        ("count?n=100000", "Stopped at a limit. The answer grew"),
        ("stall?n=13", "Stopped at a limit. The answer took"),
    ]:
        chat = open_chat(server, fake)
        chat.ask(model)
        chat.wait_text("10 11 12")
        if "no page" in label:
            address = chat.page.url
            chat.page.goto("about:blank")
            assert chat.record().closed.wait(SEEN_WITHIN)
            chat.page.goto(address)
        chat.wait_state("stopped")
        for _ in range(2):
            expect(chat.answer.locator(".badge")).to_contain_text(label)
            for name in ("Continue", "Regenerate", "Discard"):
                expect(chat.button(name)).to_be_visible()
            chat.reload()


def test_a_prompt_whose_answer_nobody_waited_for_is_still_there(
    open_chat: OpenChat, start_halt: StartHalt, fake: FakeOpenAI
) -> None:
    """Also when the model had said nothing: it can be asked again, and taken back."""
    chat = open_chat(start_halt(fake, HALT_ORPHAN_GRACE=1), fake)
    said = chat.ask("silent_headers")
    record = chat.record()
    chat.page.wait_for_url("**/c/*")
    address = chat.page.url
    chat.page.goto("about:blank")
    assert record.closed.wait(SEEN_WITHIN)
    chat.page.goto(address)
    chat.wait_state("stopped")
    expect(chat.page.locator(".prompt .text")).to_have_text(said)
    expect(chat.answer.locator(".badge")).to_have_text(
        re.compile(r"^Stopped: no page was open for \d+ seconds? \(HALT_ORPHAN_GRACE\)\.$")
    )
    expect(chat.button("Regenerate")).to_be_visible()
    expect(chat.button("Continue")).to_have_count(0)
    chat.button("Discard").click()
    expect(chat.prompt).to_have_value(said)
    expect(chat.page.locator(".exchange")).to_have_count(0)


def test_a_discarded_answer_goes_and_gives_its_prompt_back(chat: Chat) -> None:
    """The conversation is as if it had not been asked; the words are in the message field."""
    chat.ask("count?n=3")
    chat.wait_state("done")
    said = chat.ask("stall?n=5")
    chat.wait_text("3 4")
    chat.stop.click()
    chat.wait_state("stopped")
    chat.button("Discard").click()
    expect(chat.page.locator(".exchange")).to_have_count(1)
    expect(chat.prompt).to_have_value(said)
    expect(chat.prompt).to_be_focused()
    chat.reload()
    assert (chat.exchanges(), chat.shown()) == (1, numbers(3))
    chat.ask("count?n=1")
    chat.wait_state("done")
    assert said not in str(chat.record().body)


def test_the_only_answer_can_be_discarded(chat: Chat) -> None:
    """The page is empty again, and can be used as it is."""
    said = chat.ask("stall?n=5")
    chat.wait_text("3 4")
    chat.stop.click()
    chat.wait_state("stopped")
    chat.button("Discard").click()
    expect(chat.page.locator(".exchange")).to_have_count(0)
    expect(chat.prompt).to_have_value(said)
    chat.ask("count?n=3")
    chat.wait_state("done")
    assert (chat.exchanges(), chat.shown()) == (1, numbers(3))


def test_a_whole_answer_offers_neither_continue_nor_discard(chat: Chat) -> None:
    """There is nothing to go on with; an earlier one that was stopped is history by then."""
    chat.ask("stall?n=5")
    chat.wait_text("3 4")
    chat.stop.click()
    chat.wait_state("stopped")
    chat.ask("count?n=2")
    expect(chat.page.locator(".exchange")).to_have_count(2)
    chat.wait_state("done")
    for name in ("Continue", "Discard"):
        expect(chat.page.get_by_role("button", name=name)).to_have_count(0)


def test_a_conversation_shows_what_it_took(chat: Chat) -> None:
    """What the provider reported; with what was stopped, an estimate that says so."""
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


def test_the_providers_count_of_a_stopped_answer_replaces_the_estimate(
    open_chat: OpenChat, start_halt: StartHalt, fake: FakeOpenAI
) -> None:
    """Where that is asked for: the upstream is read on, and nothing of its text is shown."""
    chat = open_chat(start_halt(fake, HALT_EXACT_USAGE=1), fake)
    chat.ask("stall?n=5&rest=3")
    chat.wait_text("3 4")
    chat.stop.click()
    chat.wait_state("stopped")
    figures = chat.answer.locator(".figures")
    expect(figures).to_contain_text("about 5 tokens (estimated)")
    chat.record().release()

    def is_counted() -> bool:
        chat.reload()
        return "8 tokens" in figures.inner_text()

    eventually(is_counted)
    expect(figures).not_to_contain_text("estimated")
    assert chat.shown() == numbers(5)
    expect(chat.page.locator("#usage")).to_contain_text(re.compile(r"\d+ read, 8 written$"))
