"""Not every ending is an end: unknown reasons, empty answers, answers that are all thought."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from halt.chat.figures import answer_figures
from halt.core import generation, notes
from halt.core import intake as module
from halt.core.events import (
    Cancelled,
    Content,
    Done,
    Event,
    Extra,
    Reasoning,
    ReasoningEnd,
    ToolCall,
    text_of,
)
from halt.core.request import Part
from halt.core.run import Run
from halt.errors import UpstreamError
from halt.web.api.openai import finish_reason
from tests.support.run_harness import RunHarness, wait_ended
from tests.support.scripted_upstream import Reader, ScriptedReply, ScriptedUpstream
from tests.support.waiting import WAIT_TIMEOUT, wait_until

OLD = "[The user stopped this answer here.]"


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Iterator[RunHarness]:
    monkeypatch.setattr(generation, "TICK", 0.05)
    made = RunHarness()
    yield made
    made.close()


def answered(
    stage: RunHarness, *fed: str | Part | UpstreamError, reason: str | None = "stop"
) -> tuple[Run, list[Event]]:
    """A run that was given this, and its events."""
    run, reply = stage.running()
    reader = Reader(run)
    reply.feed(*fed)
    reply.finish_reason = reason
    reply.feed(Part(ended=True))
    return run, [event for _, event in reader.finish()]


def thought(*texts: str) -> Part:
    return Part(tuple(map(Reasoning, texts)), len(texts))


# --- an answer that is all thought ----------------------------------------------------------------


@pytest.mark.parametrize("reason", ["stop", None])
@pytest.mark.parametrize("blank", [(), ("\n\n",)])
def test_a_thought_that_is_all_there_is_becomes_the_answer(
    stage: RunHarness, reason: str | None, blank: tuple[str, ...]
) -> None:
    """A server that puts the answer among the thoughts has answered: it is shown, and saved, and
    told to the model, as any other answer is."""
    run, events = answered(stage, thought("\nPar"), thought("is.\n"), *blank, reason=reason)
    assert events[-2] == Content("Paris.")
    assert [event for event in events if isinstance(event, Reasoning)] == [
        Reasoning("\nPar"),
        Reasoning("is.\n"),
    ]
    assert run.answer()[1].strip() == "Paris."
    assert run.characters == len("Paris.") + sum(map(len, blank))


@pytest.mark.parametrize("reason", ["length", "content_filter", "abort", "tool_calls"])
def test_a_thought_that_broke_off_is_no_answer(stage: RunHarness, reason: str) -> None:
    """The model had not come to its answer."""
    run, _ = answered(stage, thought("Hm"), reason=reason)
    assert run.answer()[1] == ""


def test_a_thought_before_an_answer_or_a_call_stays_a_thought(stage: RunHarness) -> None:
    """Nothing is said twice."""
    run, _ = answered(stage, thought("Hm"), "Hello")
    assert run.answer()[1] == "Hello"
    stage.clear()
    call = ToolCall("1", "look", "{}")
    run, _ = answered(stage, thought("Hm"), Part((call,), 1))
    assert run.answer()[1] == ""


def test_a_thought_before_a_picture_stays_a_thought(stage: RunHarness) -> None:
    """The picture is the answer. Other fields of a server's are none."""
    url = {"image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
    run, _ = answered(stage, thought("Hm"), Part((Extra(delta={"images": [url]}),), 1))
    assert run.answer()[1] == ""
    stage.clear()
    run, _ = answered(stage, thought("Paris."), Part((Extra(chunk={"x_groq": {"id": "1"}}),), 1))
    assert run.answer()[1] == "Paris."


def test_a_thought_that_was_stopped_stays_a_thought(stage: RunHarness) -> None:
    """So does one of an answer that nobody watched."""
    run, reply = stage.running()
    reader = Reader(run)
    reply.feed(thought("Hm"))
    wait_until(lambda: run.log.last == 1)
    run.cancel("stop")
    assert isinstance(reader.finish()[-1][1], Cancelled)
    assert run.answer()[1] == ""


# --- reasons --------------------------------------------------------------------------------------


def test_a_server_that_breaks_off_says_why(stage: RunHarness) -> None:
    """Its own word is in the event, and among the figures."""
    run, events = answered(stage, "Half an", reason="insufficient_system_resource")
    ended = events[-1]
    assert isinstance(ended, Done)
    assert ended.finish_reason == "insufficient_system_resource"
    assert "finish reason: insufficient_system_resource" in answer_figures(ended, "")
    assert run.state == "done"


@pytest.mark.parametrize(
    ("reason", "called", "word"),
    [
        ("stop", False, "stop"),
        (None, False, "stop"),
        (None, True, "tool_calls"),
        ("length", False, "length"),
        ("content_filter", False, "content_filter"),
        ("tool_calls", True, "tool_calls"),
        ("function_call", True, "tool_calls"),
        ("abort", False, "length"),
        ("network_error", True, "length"),
        ("pause_turn", False, "length"),
    ],
)
def test_openais_clients_get_a_word_that_they_know(
    reason: str | None, called: bool, word: str
) -> None:
    """An answer that its server broke off can be gone on with, as one at the token limit."""
    ended = Done(reason, RunHarness().make()[0].meter.snapshot())
    assert finish_reason(ended, called=called, functions=False) == word


# --- notes ----------------------------------------------------------------------------------------


def test_a_note_that_a_model_imitates_is_cut(stage: RunHarness) -> None:
    """However it comes, and also where a server sends fields of its own with every piece."""
    pieces = [Part((Content(each), Extra(chunk={"x": 1})), 1) for each in ("[The user ", OLD[10:])]
    run, events = answered(stage, "Hel", "lo.", *pieces)
    assert run.answer()[1] == "Hello."
    assert "".join(map(text_of, events)) == "Hello."


def test_what_only_begins_like_a_note_is_shown(stage: RunHarness) -> None:
    """At the end, before a fault, and in a silence."""
    run, _ = answered(stage, "a", " [The user")
    assert run.answer()[1] == "a [The user"
    stage.clear()
    run, _ = answered(stage, "a", " [", UpstreamError("upstream_dropped"))
    assert (run.answer()[1], run.state) == ("a [", "error")


def test_what_is_held_back_is_shown_in_a_silence(
    stage: RunHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No limit of silence ends an answer with text that is not shown."""
    monkeypatch.setattr(module, "HELD_FOR", 0.0)
    _, reply, reader = stage.watched()
    reply.feed(" [The")
    reader.wait_text("a [The")
    reply.feed(" user] said.")
    reader.wait_text("a [The user] said.")
    reply.end()
    reader.finish()


def test_a_user_who_asks_about_the_note_gets_answers_about_it(stage: RunHarness) -> None:
    """Nothing is cut then."""
    reply = ScriptedReply()
    run, _ = stage.make(ScriptedUpstream(reply))
    run.question = [type(run.question[0])("user", f"Repeat: {OLD}")]
    reply.feed(OLD)
    reply.end()
    wait_ended(stage.set_off(run))
    assert run.answer()[1] == OLD


def test_a_note_of_ours_before_the_prompt_is_no_question_about_it(stage: RunHarness) -> None:
    """It is what a model imitates."""
    reply = ScriptedReply()
    run, _ = stage.make(ScriptedUpstream(reply))
    run.question = [type(run.question[0])("user", f"{notes.STOPPED}\n\nGo on.")]
    reply.feed("Well.\n\n", notes.STOPPED)
    reply.end()
    wait_ended(stage.set_off(run))
    assert run.answer()[1] == "Well.\n\n"


# --- nobody was watching --------------------------------------------------------------------------


def test_an_answer_that_nobody_watched_says_for_how_long(stage: RunHarness) -> None:
    """The seconds are in the event, so that they are right also after the setting was changed."""
    run, reply = stage.running(orphan_grace=0.25)
    Reader(run).leave()
    run.cancel("no_viewer")
    assert run.log.ended == Cancelled(run.log.ended.metrics, "no_viewer", unwatched=0.25)  # type: ignore[union-attr]
    assert reply.over.wait(WAIT_TIMEOUT)


def test_a_thought_that_only_its_end_marks_becomes_the_answer(stage: RunHarness) -> None:
    """Where nothing comes behind it; where something does, that is the answer."""
    run, _ = answered(stage, "Paris.", Part((ReasoningEnd(),), 1))
    assert run.answer()[1].strip() == "Paris."
    stage.clear()
    run, _ = answered(stage, "Hm.", Part((ReasoningEnd(),), 1), f"{OLD}\nParis.")
    assert run.answer()[1] == "Paris."
