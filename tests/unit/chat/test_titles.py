"""Titles: made by the model in the background, taking nothing from anybody, else the first words."""

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


class Saved:
    """What was saved, in order."""

    def __init__(self) -> None:
        self._saved: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()

    def __call__(self, conversation_id: str, title: str) -> None:
        if title == "Answer":
            raise RuntimeError("the store is full")
        self._saved.put((conversation_id, title))

    def next(self) -> tuple[str, str]:
        return self._saved.get(timeout=WAIT_TIMEOUT)

    def nothing(self) -> bool:
        return self._saved.empty()


@pytest.fixture
def saved() -> Saved:
    return Saved()


@pytest.fixture
def upstream() -> Iterator[ScriptedUpstream]:
    made = ScriptedUpstream()
    yield made
    made.dispose()


@pytest.fixture
def make(upstream: ScriptedUpstream, saved: Saved) -> Iterator[Make]:
    """Makers of titles that ask the scripted upstream; closed at the end."""
    made: list[Titles] = []

    def make(is_idle: Callable[[], bool] = lambda: True, **settings: Any) -> Titles:
        made.append(Titles(upstream, Config(**settings), saved, is_idle))
        return made[-1]

    yield make
    for each in made:
        each.close()


FORM = "application/x-www-form-urlencoded"


def form(prompt: str) -> bytes:
    return urlencode({"prompt": prompt}).encode()


def said(record: Record) -> str:
    """The last message of a request."""
    return str(record.body["messages"][-1]["content"])


def is_title(record: Record) -> bool:
    return said(record).endswith("Title:")


def idle() -> None:
    """Wait until no thread makes titles."""
    wait_until(lambda: all(thread.name != "halt-titles" for thread in threading.enumerate()))


# --- from the model -------------------------------------------------------------------------------


def test_the_model_titles_the_first_exchange(
    make: Make, upstream: ScriptedUpstream, saved: Saved
) -> None:
    """It is told both messages, briefly; its first line is the title; its thread then ends."""
    assert make().request("c1", "Why is the sky blue?" * 500, "Because " * 500, "small-1")
    reply = upstream.reply()
    reply.feed(Part((Reasoning("hm\nhm"),), 1), '"Blue ', "skies\n", "and so on")
    assert saved.next() == ("c1", "Blue skies")
    assert reply.over.wait(WAIT_TIMEOUT)
    (request,) = upstream.requests
    assert request.model == "small-1"
    assert request.max_tokens is not None
    assert request.size() < 3000
    idle()


def test_titles_are_made_one_after_the_other(
    make: Make, upstream: ScriptedUpstream, saved: Saved
) -> None:
    """One thread and one connection, however many conversations begin at once."""
    titles = make()
    for number in range(3):
        assert titles.request(f"c{number}", "a question", "an answer")
    for number in range(3):
        reply = upstream.reply(number)
        assert len(upstream.opened) == number + 1
        reply.feed(f"Question {number}")
        reply.end()
        assert saved.next() == (f"c{number}", f"Question {number}")


def test_the_queue_is_short(make: Make, upstream: ScriptedUpstream) -> None:
    """Beyond it conversations keep their first words; nobody waits."""
    titles = make()
    titles.request("first", "a question", "an answer")
    upstream.wait_requests()
    assert all(titles.request("more", "a question", "an answer") for _ in range(QUEUE_MAX))
    assert not titles.request("too many", "a question", "an answer")


@pytest.mark.parametrize(
    "said",
    ["", "   \n", "***", "The sky is blue because air scatters blue light more", "A placeholder"],
)
def test_what_is_no_title_is_not_saved(
    make: Make, upstream: ScriptedUpstream, saved: Saved, said: str
) -> None:
    """An empty answer, or an essay, leaves the first words; the next title is made all the same."""
    titles = make()
    titles.request("c1", "a question", "an answer")
    titles.request("c2", "a question", "an answer")
    upstream.reply(0).feed(said)
    upstream.reply(0).end("length")
    upstream.reply(1).feed("Questions")
    upstream.reply(1).end()
    assert saved.next() == ("c2", "Questions")


def test_an_endless_line_is_left(make: Make, upstream: ScriptedUpstream, saved: Saved) -> None:
    """A model that tells a tale instead is not listened to."""
    make().request("c1", "a question", "an answer")
    reply = upstream.reply()
    reply.feed("word " * 100)
    assert reply.over.wait(WAIT_TIMEOUT)
    idle()
    assert saved.nothing()


def test_a_fault_is_not_tried_again(saved: Saved, caplog: pytest.LogCaptureFixture) -> None:
    """One line in the log, and no more than one request."""
    caplog.set_level(logging.INFO)
    upstream = ScriptedUpstream(UpstreamError("rate_limited", retry_after=0))
    titles = Titles(upstream, Config(), saved)
    titles.request("c1", "a question", "an answer")
    idle()
    titles.close()
    assert len(upstream.requests) == 1
    assert "no title for conversation c1" in caplog.text
    assert saved.nothing()


def test_a_store_that_fails_ends_no_thread(
    make: Make, upstream: ScriptedUpstream, saved: Saved, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged, and the next title is made."""
    titles = make()
    for number, title in enumerate(["Answer", "Questions"]):
        titles.request(f"c{number}", "a question", "an answer")
        upstream.reply(number).feed(title)
        upstream.reply(number).end()
    assert saved.next() == ("c1", "Questions")
    assert "the store is full" in caplog.text


def test_a_generation_comes_first(make: Make, upstream: ScriptedUpstream, saved: Saved) -> None:
    """No title is asked for while one is under way; its start drops the title that is being made,
    and its end brings that title back."""
    free = threading.Event()
    titles = make(free.is_set)
    titles.request("c1", "a question", "an answer")
    assert upstream.requests == []
    free.set()
    titles.wake()
    upstream.reply(0).wait_reads()
    free.clear()
    titles.interrupt()
    assert upstream.reply(0).over.wait(WAIT_TIMEOUT)  # without a word of the model's
    assert len(upstream.requests) == 1
    free.set()
    titles.wake()
    upstream.reply(1).feed("Questions")
    upstream.reply(1).end()
    assert saved.next() == ("c1", "Questions")
    idle()


def test_a_title_that_is_always_dropped_is_given_up(make: Make, upstream: ScriptedUpstream) -> None:
    """Each request is paid for, so there are three."""
    titles = make()
    titles.request("c1", "a question", "an answer")
    for number in range(module.TRIES):
        upstream.reply(number).wait_reads()
        titles.interrupt()
        assert upstream.reply(number).over.wait(WAIT_TIMEOUT)
    idle()
    assert len(upstream.requests) == module.TRIES


def test_generations_of_other_processes_are_seen(
    make: Make, upstream: ScriptedUpstream, saved: Saved, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They call nothing here: they are looked for while a title waits, and while it is read."""
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
    assert saved.next() == ("c1", "Questions")


def test_a_title_that_is_too_late_is_not_made(
    make: Make, upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a server that is never idle conversations keep their first words."""
    monkeypatch.setattr(module, "REQUEST_LIFETIME", 0.0)
    make(lambda: False).request("c1", "a question", "an answer")
    idle()
    assert upstream.requests == []


def test_a_message_never_waits_for_a_title(start_halt: StartHalt) -> None:
    """A server with one place makes a title when the next message is sent, by the page or by a
    program: the title's connection is closed, the answer comes at once, and the title later."""
    with FakeOpenAI(places=1) as fake:
        halt = start_halt(fake, HALT_TITLES="model", HALT_MODEL="slow_titles")
        client, talk = halt.client(), f"/c/{new_id()}/messages"
        assert client.post(talk, form("first"), Content_Type=FORM).status == 200
        title = fake.wait_request(is_title)
        for path in (talk, "/chat/stream", "/v1/chat/completions"):
            fake.clear()
            if path == talk:
                answer = client.post(talk, form("second"), Content_Type=FORM)
            else:
                answer = client.post(path, {"messages": [{"role": "user", "content": "second"}]})
            assert answer.status == 200
            assert title.closed.wait(WAIT_TIMEOUT)
            second = fake.wait_request(lambda record: said(record) == "second")
            assert second.finished.wait(WAIT_TIMEOUT)
            if path != "/v1/chat/completions":  # the third try was the last one
                title = fake.wait_request(is_title)
                assert title.received_at > second.received_at


@pytest.mark.parametrize("silent", [False, True], ids=["reading", "opening"])
def test_a_shutdown_waits_for_no_title(saved: Saved, silent: bool) -> None:
    """The connection is interrupted in whatever phase it is, and the queue forgotten."""
    upstream = ScriptedUpstream(silent=silent)
    titles = Titles(upstream, Config(), saved)
    for _ in range(3):
        titles.request("c1", "a question", "an answer")
    if silent:
        assert upstream.waiting.wait(WAIT_TIMEOUT)
    else:
        upstream.reply().wait_reads()
    titles.close()
    titles.close()
    idle()
    assert len(upstream.requests) == 1
    assert not titles.request("c2", "a question", "an answer")
    upstream.dispose()


def test_a_title_has_a_time_limit(
    make: Make, upstream: ScriptedUpstream, saved: Saved, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A silent model is given up."""
    monkeypatch.setattr(module, "SECONDS", 0.05)
    make().request("c1", "a question", "an answer")
    assert upstream.reply().over.wait(WAIT_TIMEOUT)
    idle()
    assert saved.nothing()


def test_a_system_without_threads_keeps_the_first_words(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no error."""

    def none(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", none)
    assert not make().request("c1", "a question", "an answer")


@pytest.mark.parametrize(
    ("prompt", "answer"), [("", "an answer"), (" \n", "a"), ("a question", "")]
)
def test_half_an_exchange_is_not_titled(make: Make, prompt: str, answer: str) -> None:
    """There is nothing yet to make it from."""
    assert not make().request("c1", prompt, answer)


def test_titles_can_be_the_first_words(make: Make) -> None:
    """Then no model is asked."""
    assert not make(titles="words").request("c1", "a question", "an answer")
    assert load({"HALT_TITLES": "words"}).titles == "words"
    with pytest.raises(ConfigError, match="HALT_TITLES='both' is not allowed: use model or words"):
        load({"HALT_TITLES": "both"})


def test_a_real_server_is_asked_once(fake: FakeOpenAI, saved: Saved) -> None:
    """Over the wire, thoughts in tags and all."""
    config = Config(base_url=fake.base_url, api_key="fake", model="text?key=title")
    fake.texts["title"] = "<think>\nA title?\n</think>\n\n**Title:** Blue skies."
    upstream = make_upstream(config)
    titles = Titles(upstream, config, saved)
    titles.request("c1", "Why is the sky blue?", "Because of the air.")
    assert saved.next() == ("c1", "Blue skies")
    titles.close()
    upstream.close()
    assert len(fake.requests) == 1


@pytest.mark.parametrize(
    ("title", "exchange", "about"),
    [
        ("Sorting lists in Python", "how to sort a list?", True),
        ("A placeholder for a response", "how to sort a list?", False),
        ("青い空", "空はなぜ青いの?", True),
        ("五国", "空はなぜ青いの?", False),
        ("Egg", "boil an egg", True),
    ],
)
def test_a_title_is_about_the_exchange(title: str, exchange: str, about: bool) -> None:
    """What a small model has made up shares no word with it."""
    assert is_about(title, exchange) is about


# --- the words ------------------------------------------------------------------------------------


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
def test_first_words(prompt: str, title: str) -> None:
    """One line of plain text, cut at a word."""
    assert first_words(prompt) == title


@given(st.text(max_size=200))
def test_a_title_is_short_plain_and_one_line(text: str) -> None:
    """Whatever anybody writes."""
    for title in (first_words(text), cleaned(text)):
        assert len(title) <= TITLE_MOST
        assert title.isprintable()
        assert title == title.strip()


@pytest.mark.parametrize(
    ("said", "title"),
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
def test_what_a_model_says_is_cleaned(said: str, title: str) -> None:
    """Quotes, labels, marks and full stops are no part of a title."""
    assert cleaned(said) == title


def test_a_deleted_conversation_gets_no_title(upstream: ScriptedUpstream, saved: Saved) -> None:
    """The model is not asked, and so not paid, for a conversation that was deleted meanwhile."""
    asked: list[str] = []

    def is_listed(conversation_id: str) -> bool:
        asked.append(conversation_id)
        return False

    titles = Titles(upstream, Config(), saved, is_listed=is_listed)
    assert titles.request("c-1", "Question", "Answer")
    wait_until(lambda: asked == ["c-1"])
    titles.close()
    assert upstream.requests == []
    assert saved.nothing()


def test_a_generation_tells_before_its_request_is_sent(upstream: ScriptedUpstream) -> None:
    """So a title's connection is closed first; and it tells when its place is free again."""
    generations = GenerationService(Config(), upstream, StopRegistry())
    seen: list[tuple[str, bool, int]] = []
    over = threading.Event()

    def on_release() -> None:
        seen.append(("over", generations.idle, len(upstream.requests)))
        over.set()

    generations.on_begin = lambda: seen.append(("begin", generations.idle, len(upstream.requests)))
    generations.on_release = on_release
    assert generations.idle
    run = generations.start(ChatRequest([Message("user", "hi")]))
    upstream.reply().end()
    assert run.switch.event.wait(WAIT_TIMEOUT)
    assert over.wait(WAIT_TIMEOUT)
    assert seen == [("begin", False, 0), ("over", True, 1)]
    generations.close()


def test_the_application_connects_both(tmp_path: Path) -> None:
    """Each generation of the server, whoever starts it, goes before titles."""
    app = create_app(Config(data=str(tmp_path), base_url="http://127.0.0.1:9/v1"))
    service, titles = services(app).generations, services(app).titles
    assert (service.on_begin, service.on_release) == (titles.interrupt, titles.wake)
    service.close()


@pytest.mark.parametrize("unit", ["[", "[a](", "`", "*a", " ", "1. ", "~~"])
def test_what_a_model_says_is_read_in_bounded_time(unit: str) -> None:
    """However much comes in one piece: marks that are never closed took 49 s."""
    said = unit * (100_000 // len(unit))
    start = time.process_time()
    assert len(cleaned(said)) <= TITLE_MOST
    assert len(first_words(said)) <= TITLE_MOST
    assert time.process_time() - start < 3
