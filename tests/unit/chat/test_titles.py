"""Titles: requested from the model in the background without delaying answers; else first words."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halt.app import create_app
from halt.chat import titles as module
from halt.chat.titles import QUEUE_MAX, Titles
from halt.config.environment import load
from halt.config.settings import Config, ConfigError
from halt.core.events import Reasoning
from halt.core.request import ChatRequest, Message, Part
from halt.core.service import GenerationService
from halt.core.stop import StopRegistry
from halt.errors import UpstreamError
from halt.providers.factory import make_upstream
from halt.store.title_text import TITLE_MOST, cleaned, first_words, is_about
from halt.testing.fake_openai import FakeOpenAI
from halt.testing.wire import Record
from halt.web.services import services
from tests.support.halt_server import StartHalt, new_id
from tests.support.scripted_upstream import ScriptedUpstream
from tests.support.waiting import WAIT_TIMEOUT, wait_until

Make = Callable[..., Titles]


class SavedTitles:
    """A `save` function that keeps the titles in order; the title "Answer" raises an error."""

    def __init__(self) -> None:
        self._saved: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()

    def __call__(self, conversation_id: str, title: str) -> None:
        if title == "Answer":
            raise RuntimeError("the store is full")
        self._saved.put((conversation_id, title))

    def next(self) -> tuple[str, str]:
        return self._saved.get(timeout=WAIT_TIMEOUT)

    def is_empty(self) -> bool:
        return self._saved.empty()


@pytest.fixture
def saved_titles() -> SavedTitles:
    return SavedTitles()


@pytest.fixture
def upstream() -> Iterator[ScriptedUpstream]:
    scripted = ScriptedUpstream()
    yield scripted
    scripted.dispose()


@pytest.fixture
def make(upstream: ScriptedUpstream, saved_titles: SavedTitles) -> Iterator[Make]:
    """Make `Titles` on the scripted upstream; all are closed at the end."""
    made_titles: list[Titles] = []

    def make(is_idle: Callable[[], bool] = lambda: True, **settings: Any) -> Titles:
        made_titles.append(Titles(upstream, Config(**settings), saved_titles, is_idle))
        return made_titles[-1]

    yield make
    for title in made_titles:
        title.close()


FORM = "application/x-www-form-urlencoded"


def form(prompt: str) -> bytes:
    return urlencode({"prompt": prompt}).encode()


def last_message(record: Record) -> str:
    """The last message of a request."""
    return str(record.body["messages"][-1]["content"])


def is_title(record: Record) -> bool:
    return last_message(record).endswith("Title:")


def wait_titles_end() -> None:
    """Wait until no thread requests titles."""
    wait_until(lambda: all(thread.name != "halt-titles" for thread in threading.enumerate()))


# --- titles from the model ------------------------------------------------------------------------


def test_title_is_the_first_line_of_the_models_reply(
    make: Make, upstream: ScriptedUpstream, saved_titles: SavedTitles
) -> None:
    """The request holds excerpts of both messages; the first line is saved and the thread ends."""
    assert make().request("c1", "Why is the sky blue?" * 500, "Because " * 500, "small-1")
    reply = upstream.reply()
    reply.feed(Part((Reasoning("hm\nhm"),), 1), '"Blue ', "skies\n", "and so on")
    assert saved_titles.next() == ("c1", "Blue skies")
    assert reply.over.wait(WAIT_TIMEOUT)
    (request,) = upstream.requests
    assert request.model == "small-1"
    assert request.max_tokens is not None
    assert request.size() < 3000
    wait_titles_end()


def test_titles_are_requested_one_at_a_time(
    make: Make, upstream: ScriptedUpstream, saved_titles: SavedTitles
) -> None:
    """One thread requests the titles of several conversations one after the other."""
    titles = make()
    for number in range(3):
        assert titles.request(f"c{number}", "a question", "an answer")
    for number in range(3):
        reply = upstream.reply(number)
        assert len(upstream.opened) == number + 1
        reply.feed(f"Question {number}")
        reply.end()
        assert saved_titles.next() == (f"c{number}", f"Question {number}")


def test_title_request_with_a_full_queue_is_refused(make: Make, upstream: ScriptedUpstream) -> None:
    """With QUEUE_MAX waiting conversations a further title is refused without waiting."""
    titles = make()
    titles.request("first", "a question", "an answer")
    upstream.wait_requests()
    assert all(titles.request("more", "a question", "an answer") for _ in range(QUEUE_MAX))
    assert not titles.request("too many", "a question", "an answer")


@pytest.mark.parametrize(
    "reply_text",
    ["", "   \n", "***", "The sky is blue because air scatters blue light more", "A placeholder"],
)
def test_reply_that_is_no_title_is_not_saved(
    make: Make, upstream: ScriptedUpstream, saved_titles: SavedTitles, reply_text: str
) -> None:
    """An empty, long or unrelated reply is not saved, and the next title is requested."""
    titles = make()
    titles.request("c1", "a question", "an answer")
    titles.request("c2", "a question", "an answer")
    upstream.reply(0).feed(reply_text)
    upstream.reply(0).end("length")
    upstream.reply(1).feed("Questions")
    upstream.reply(1).end()
    assert saved_titles.next() == ("c2", "Questions")


def test_endless_reply_closes_the_connection(
    make: Make, upstream: ScriptedUpstream, saved_titles: SavedTitles
) -> None:
    """A reply that exceeds REPLY_MAX characters is closed and not saved."""
    make().request("c1", "a question", "an answer")
    reply = upstream.reply()
    reply.feed("word " * 100)
    assert reply.over.wait(WAIT_TIMEOUT)
    wait_titles_end()
    assert saved_titles.is_empty()


def test_upstream_error_is_logged_and_not_retried(
    saved_titles: SavedTitles, caplog: pytest.LogCaptureFixture
) -> None:
    """An error of the upstream is logged, and no second request follows."""
    caplog.set_level(logging.INFO)
    upstream = ScriptedUpstream(UpstreamError("rate_limited", retry_after=0))
    titles = Titles(upstream, Config(), saved_titles)
    titles.request("c1", "a question", "an answer")
    wait_titles_end()
    titles.close()
    assert len(upstream.requests) == 1
    assert "no title for conversation c1" in caplog.text
    assert saved_titles.is_empty()


def test_failed_save_is_logged_and_the_next_title_is_saved(
    make: Make,
    upstream: ScriptedUpstream,
    saved_titles: SavedTitles,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An exception of `save` is logged, and the next title is saved."""
    titles = make()
    for number, title in enumerate(["Answer", "Questions"]):
        titles.request(f"c{number}", "a question", "an answer")
        upstream.reply(number).feed(title)
        upstream.reply(number).end()
    assert saved_titles.next() == ("c1", "Questions")
    assert "the store is full" in caplog.text


def test_generation_interrupts_a_title_and_its_end_resumes_it(
    make: Make, upstream: ScriptedUpstream, saved_titles: SavedTitles
) -> None:
    """No title is requested during a generation; its start interrupts one, its end repeats it."""
    free = threading.Event()
    titles = make(free.is_set)
    titles.request("c1", "a question", "an answer")
    assert upstream.requests == []
    free.set()
    titles.wake()
    upstream.reply(0).wait_reads()
    free.clear()
    titles.interrupt()
    assert upstream.reply(0).over.wait(WAIT_TIMEOUT)  # before any text
    assert len(upstream.requests) == 1
    free.set()
    titles.wake()
    upstream.reply(1).feed("Questions")
    upstream.reply(1).end()
    assert saved_titles.next() == ("c1", "Questions")
    wait_titles_end()


def test_title_is_requested_three_times_at_most(make: Make, upstream: ScriptedUpstream) -> None:
    """A title that is always interrupted is requested TRIES times."""
    titles = make()
    titles.request("c1", "a question", "an answer")
    for number in range(module.TRIES):
        upstream.reply(number).wait_reads()
        titles.interrupt()
        assert upstream.reply(number).over.wait(WAIT_TIMEOUT)
    wait_titles_end()
    assert len(upstream.requests) == module.TRIES


def test_generation_of_another_process_interrupts_a_title(
    make: Make,
    upstream: ScriptedUpstream,
    saved_titles: SavedTitles,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A generation of another process delays a waiting title and interrupts a running request."""
    monkeypatch.setattr(module, "IDLE_CHECK_INTERVAL", 0.01)
    free = threading.Event()
    titles = make(free.is_set)
    titles.request("c1", "a question", "an answer")
    free.set()
    reply = upstream.reply(0)
    reply.wait_reads()
    free.clear()
    reply.feed("Late")
    assert reply.over.wait(WAIT_TIMEOUT)
    free.set()
    upstream.reply(1).feed("Questions")
    upstream.reply(1).end()
    assert saved_titles.next() == ("c1", "Questions")


def test_title_after_its_lifetime_is_not_requested(
    make: Make, upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A title that has waited longer than REQUEST_LIFETIME is not requested."""
    monkeypatch.setattr(module, "REQUEST_LIFETIME", 0.0)
    make(lambda: False).request("c1", "a question", "an answer")
    wait_titles_end()
    assert upstream.requests == []


def test_message_closes_the_title_request_and_is_answered_first(start_halt: StartHalt) -> None:
    """On every route a new message closes the title's connection, and the title follows later."""
    with FakeOpenAI(places=1) as fake:
        halt = start_halt(fake, HALT_TITLES="model", HALT_MODEL="slow_titles")
        client, messages_path = halt.client(), f"/c/{new_id()}/messages"
        assert client.post(messages_path, form("first"), Content_Type=FORM).status == 200
        title = fake.wait_request(is_title)
        for path in (messages_path, "/chat/stream", "/v1/chat/completions"):
            fake.clear()
            if path == messages_path:
                answer = client.post(messages_path, form("second"), Content_Type=FORM)
            else:
                answer = client.post(path, {"messages": [{"role": "user", "content": "second"}]})
            assert answer.status == 200
            assert title.closed.wait(WAIT_TIMEOUT)
            second = fake.wait_request(lambda record: last_message(record) == "second")
            assert second.finished.wait(WAIT_TIMEOUT)
            if path != "/v1/chat/completions":  # the third request was the last one
                title = fake.wait_request(is_title)
                assert title.received_at > second.received_at


@pytest.mark.parametrize("is_silent", [False, True], ids=["reading", "opening"])
def test_close_interrupts_the_title_and_drops_the_queue(
    saved_titles: SavedTitles, is_silent: bool
) -> None:
    """Closing interrupts the request, whether it opens or reads, and drops the waiting titles."""
    upstream = ScriptedUpstream(silent=is_silent)
    titles = Titles(upstream, Config(), saved_titles)
    for _ in range(3):
        titles.request("c1", "a question", "an answer")
    if is_silent:
        assert upstream.waiting.wait(WAIT_TIMEOUT)
    else:
        upstream.reply().wait_reads()
    titles.close()
    titles.close()
    wait_titles_end()
    assert len(upstream.requests) == 1
    assert not titles.request("c2", "a question", "an answer")
    upstream.dispose()


def test_title_request_ends_after_its_time_limit(
    make: Make,
    upstream: ScriptedUpstream,
    saved_titles: SavedTitles,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A request to a silent model ends after its time limit, and no title is saved."""
    monkeypatch.setattr(module, "SECONDS", 0.05)
    make().request("c1", "a question", "an answer")
    wait_titles_end()
    assert len(upstream.requests) == 1
    # No connection is open if the limit has passed before `open` returned.
    assert all(reply.over.is_set() for reply in upstream.opened)
    assert saved_titles.is_empty()


def test_title_request_without_a_thread_is_refused(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A title is refused without an error if the system has no thread left."""

    def refuse_thread(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse_thread)
    assert not make().request("c1", "a question", "an answer")


@pytest.mark.parametrize(
    ("prompt", "answer"), [("", "an answer"), (" \n", "a"), ("a question", "")]
)
def test_title_of_an_incomplete_exchange_is_refused(make: Make, prompt: str, answer: str) -> None:
    """No title is requested without a prompt or without an answer."""
    assert not make().request("c1", prompt, answer)


def test_titles_setting_words_requests_no_title(make: Make) -> None:
    """With HALT_TITLES=words no title is requested; a wrong value is refused."""
    assert not make(titles="words").request("c1", "a question", "an answer")
    assert load({"HALT_TITLES": "words"}).titles == "words"
    with pytest.raises(ConfigError, match="HALT_TITLES='both' is not allowed: use model or words"):
        load({"HALT_TITLES": "both"})


def test_title_from_a_server_takes_one_request(fake: FakeOpenAI, saved_titles: SavedTitles) -> None:
    """A title over HTTP takes one request; thoughts and marks of the reply are removed."""
    config = Config(base_url=fake.base_url, api_key="fake", model="text?key=title")
    fake.texts["title"] = "<think>\nA title?\n</think>\n\n**Title:** Blue skies."
    upstream = make_upstream(config)
    titles = Titles(upstream, config, saved_titles)
    titles.request("c1", "Why is the sky blue?", "Because of the air.")
    assert saved_titles.next() == ("c1", "Blue skies")
    titles.close()
    upstream.close()
    assert len(fake.requests) == 1


@pytest.mark.parametrize(
    ("title", "exchange", "is_about_exchange"),
    [
        ("Sorting lists in Python", "how to sort a list?", True),
        ("A placeholder for a response", "how to sort a list?", False),
        ("青い空", "空はなぜ青いの?", True),
        ("五国", "空はなぜ青いの?", False),
        ("Egg", "boil an egg", True),
    ],
)
def test_is_about_requires_a_word_of_the_exchange(
    title: str, exchange: str, is_about_exchange: bool
) -> None:
    """A title that shares no word with the exchange is not about it."""
    assert is_about(title, exchange) is is_about_exchange


# --- text of titles -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "title"),
    [
        ("Why is the sky blue?", "Why is the sky blue?"),
        ("\n\n  # Why  is\tit *so* `blue`?\nSecond line", "Why is it so blue?"),
        ("- [a link](https://example.org) to ![a picture](x.png)", "a link to a picture"),
        ("```python\nprint(snake_case)\n```", "print(snake_case)"),
        ("Explain __init__ and snake_case_names to me", "Explain init and snake_case_names to me"),
        ("> 1. quoted", "quoted"),
        ("Is 2*3 ~ 2 * 3?", "Is 2*3 ~ 2 * 3?"),
        ("", ""),
        ("*** \n ---", ""),
        ("word " * 40, "word word word word word word word word word word…"[:50]),
        ("x" * 80, "x" * 49 + "…"),
        ("中文字符" * 20, "中文字符" * 12 + "中…"),
        ("\n" * 2000 + "After blanks", "After blanks"),
        ("Line\u2028separated \u202eand\x07 odd", "Line"),
    ],
)  # fmt: skip
def test_first_words_are_one_plain_line_cut_at_a_word(prompt: str, title: str) -> None:
    """The first words are one line of plain text, cut at a word."""
    assert first_words(prompt) == title


@given(st.text(max_size=200))
def test_titles_of_any_text_are_short_printable_lines(text: str) -> None:
    """Titles of any text are one printable line of TITLE_MOST characters at most."""
    for title in (first_words(text), cleaned(text)):
        assert len(title) <= TITLE_MOST
        assert title.isprintable()
        assert title == title.strip()


@pytest.mark.parametrize(
    ("reply_text", "title"),
    [
        ("Blue skies", "Blue skies"),
        ('"Blue skies."', "Blue skies"),
        ("Title: Blue skies", "Blue skies"),
        ("**Title:** “Blue skies”", "Blue skies"),
        ("The title is: Blue skies", "Blue skies"),
        ("# Blue skies\n\nIt is about …", "Blue skies"),
        ("«Ciels bleus»", "Ciels bleus"),
        ("「青い空」。", "青い空"),
        ("What's up?", "What's up?"),
        ("Titles of books", "Titles of books"),
        ("\n\n", ""),
    ],
)
def test_cleaned_removes_quotes_labels_and_marks(reply_text: str, title: str) -> None:
    """Quotes, labels, marks and full stops are removed from a model's title."""
    assert cleaned(reply_text) == title


def test_deleted_conversation_requests_no_title(
    upstream: ScriptedUpstream, saved_titles: SavedTitles
) -> None:
    """No title is requested for a conversation that was deleted in the meantime."""
    checked_ids: list[str] = []

    def is_listed(conversation_id: str) -> bool:
        checked_ids.append(conversation_id)
        return False

    titles = Titles(upstream, Config(), saved_titles, is_listed=is_listed)
    assert titles.request("c-1", "Question", "Answer")
    wait_until(lambda: checked_ids == ["c-1"])
    titles.close()
    assert upstream.requests == []
    assert saved_titles.is_empty()


def test_generation_calls_on_begin_before_its_request(upstream: ScriptedUpstream) -> None:
    """`on_begin` is called before the request is sent, `on_release` when the place is free
    again."""
    generations = GenerationService(Config(), upstream, StopRegistry())
    calls: list[tuple[str, bool, int]] = []
    has_ended = threading.Event()

    def on_release() -> None:
        calls.append(("over", generations.idle, len(upstream.requests)))
        has_ended.set()

    generations.on_begin = lambda: calls.append(("begin", generations.idle, len(upstream.requests)))
    generations.on_release = on_release
    assert generations.idle
    run = generations.start(ChatRequest([Message("user", "hi")]))
    upstream.reply().end()
    assert run.switch.event.wait(WAIT_TIMEOUT)
    assert has_ended.wait(WAIT_TIMEOUT)
    assert calls == [("begin", False, 0), ("over", True, 1)]
    generations.close()


def test_application_connects_generations_to_titles(tmp_path: Path) -> None:
    """In the application a generation interrupts titles, and its release wakes them."""
    app = create_app(Config(data=str(tmp_path), base_url="http://127.0.0.1:9/v1"))
    service, titles = services(app).generations, services(app).titles
    assert (service.on_begin, service.on_release) == (titles.interrupt, titles.wake)
    service.close()


@pytest.mark.parametrize("unit", ["[", "[a](", "`", "*a", " ", "1. ", "~~"])
def test_title_functions_take_bounded_time_for_unclosed_marks(unit: str) -> None:
    """100 kB of unclosed marks take less than 3 s of processor time; once they took 49 s."""
    reply_text = unit * (100_000 // len(unit))
    start = time.process_time()
    assert len(cleaned(reply_text)) <= TITLE_MOST
    assert len(first_words(reply_text)) <= TITLE_MOST
    assert time.process_time() - start < 3
