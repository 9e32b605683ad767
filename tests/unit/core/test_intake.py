"""Intake: how the end of an answer changes its text (reasoning alone, held-back notes, silence)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from halt.core import generation, intake, notes
from halt.core.events import (
    Cancelled,
    Content,
    Event,
    Extra,
    Failed,
    Reasoning,
    ReasoningEnd,
    ToolCall,
    text_of,
)
from halt.core.request import Part
from halt.core.run import Run
from halt.errors import UpstreamError
from tests.support.run_harness import RunHarness, wait_ended
from tests.support.scripted_upstream import Reader, ScriptedReply, ScriptedUpstream
from tests.support.waiting import wait_until

OLD = "[The user stopped this answer here.]"


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> Iterator[RunHarness]:
    monkeypatch.setattr(generation, "TICK", 0.05)
    run_harness = RunHarness()
    yield run_harness
    run_harness.close()


def ended_run(
    harness: RunHarness, *inputs: str | Part | UpstreamError, reason: str | None = "stop"
) -> tuple[Run, list[Event]]:
    """A run whose reply consists of these parts, and its events."""
    run, reply = harness.opened_run()
    reader = Reader(run)
    reply.feed(*inputs)
    reply.finish_reason = reason
    reply.feed(Part(ended=True))
    return run, [event for _, event in reader.finish()]


def thought_part(*texts: str) -> Part:
    return Part(tuple(map(Reasoning, texts)), len(texts))


# --- an answer of thoughts alone ------------------------------------------------------------------


@pytest.mark.parametrize("reason", ["stop", None])
@pytest.mark.parametrize("blank", [(), ("\n\n",)])
def test_thought_without_an_answer_becomes_the_answer(
    harness: RunHarness, reason: str | None, blank: tuple[str, ...]
) -> None:
    """An answer that a server sends as reasoning alone is shown and saved, and later prompts hold
    it, as any other answer."""
    run, events = ended_run(
        harness, thought_part("\nPar"), thought_part("is.\n"), *blank, reason=reason
    )
    assert events[-2] == Content("Paris.")
    assert [event for event in events if isinstance(event, Reasoning)] == [
        Reasoning("\nPar"),
        Reasoning("is.\n"),
    ]
    assert run.answer()[1].strip() == "Paris."
    assert run.characters == len("Paris.") + sum(map(len, blank))


@pytest.mark.parametrize("reason", ["length", "content_filter", "abort", "tool_calls"])
def test_thought_cut_off_is_no_answer(harness: RunHarness, reason: str) -> None:
    """A thought that ends for another reason than stop does not become the answer."""
    run, _ = ended_run(harness, thought_part("Hm"), reason=reason)
    assert run.answer()[1] == ""


def test_thought_before_an_answer_or_a_call_stays_a_thought(harness: RunHarness) -> None:
    """A thought with text or a call behind it is not repeated as the answer."""
    run, _ = ended_run(harness, thought_part("Hm"), "Hello")
    assert run.answer()[1] == "Hello"
    harness.clear()
    call = ToolCall("1", "look", "{}")
    run, _ = ended_run(harness, thought_part("Hm"), Part((call,), 1))
    assert run.answer()[1] == ""


def test_thought_before_a_picture_stays_a_thought(harness: RunHarness) -> None:
    """A picture is an answer; a server's other fields are not."""
    url = {"image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
    run, _ = ended_run(harness, thought_part("Hm"), Part((Extra(delta={"images": [url]}),), 1))
    assert run.answer()[1] == ""
    harness.clear()
    run, _ = ended_run(
        harness, thought_part("Paris."), Part((Extra(chunk={"x_groq": {"id": "1"}}),), 1)
    )
    assert run.answer()[1] == "Paris."


def test_thought_stopped_stays_a_thought(harness: RunHarness) -> None:
    """A Stop during a thought leaves the answer empty."""
    run, reply = harness.opened_run()
    reader = Reader(run)
    reply.feed(thought_part("Hm"))
    wait_until(lambda: run.log.last == 1)
    run.cancel("stop")
    assert isinstance(reader.finish()[-1][1], Cancelled)
    assert run.answer()[1] == ""


def test_late_end_of_thought_without_later_text_keeps_the_answer(
    harness: RunHarness,
) -> None:
    """Text that a late end mark declares a thought is the answer, unless text follows the mark."""
    run, _ = ended_run(harness, "Paris.", Part((ReasoningEnd(),), 1))
    assert run.answer()[1].strip() == "Paris."
    harness.clear()
    run, _ = ended_run(harness, "Hm.", Part((ReasoningEnd(),), 1), f"{OLD}\nParis.")
    assert run.answer()[1] == "Paris."


# --- notes ----------------------------------------------------------------------------------------


def test_note_imitated_by_the_model_is_removed(harness: RunHarness) -> None:
    """A note is removed also where it arrives in pieces with other fields beside each."""
    pieces = [Part((Content(text), Extra(chunk={"x": 1})), 1) for text in ("[The user ", OLD[10:])]
    run, events = ended_run(harness, "Hel", "lo.", *pieces)
    assert run.answer()[1] == "Hello."
    assert "".join(map(text_of, events)) == "Hello."


def test_text_that_begins_like_a_note_is_shown_at_the_end(harness: RunHarness) -> None:
    """Text held back as a possible note is shown at the end of the answer and before a fault."""
    run, _ = ended_run(harness, "a", " [The user")
    assert run.answer()[1] == "a [The user"
    harness.clear()
    run, _ = ended_run(harness, "a", " [", UpstreamError("upstream_dropped"))
    assert (run.answer()[1], run.state) == ("a [", "error")


def test_text_that_begins_like_a_note_is_shown_in_a_silence(
    harness: RunHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Held-back text is shown after HOLD_MAX, so no limit ends an answer with hidden text."""
    monkeypatch.setattr(intake, "HOLD_MAX", 0.0)
    _, reply, reader = harness.watched_run()
    reply.feed(" [The")
    reader.wait_text("a [The")
    reply.feed(" user] said.")
    reader.wait_text("a [The user] said.")
    reply.end()
    reader.finish()


def test_note_in_the_answer_to_a_prompt_with_a_note_stays(harness: RunHarness) -> None:
    """If the user's prompt has a note, nothing is removed from the answer."""
    reply = ScriptedReply()
    run, _ = harness.new_run(ScriptedUpstream(reply))
    run.question = [type(run.question[0])("user", f"Repeat: {OLD}")]
    reply.feed(OLD)
    reply.end()
    wait_ended(harness.start_run(run))
    assert run.answer()[1] == OLD


def test_note_put_before_the_prompt_by_halt_does_not_count_as_the_users(
    harness: RunHarness,
) -> None:
    """A note that Halt itself put before the prompt does not keep notes in the answer."""
    reply = ScriptedReply()
    run, _ = harness.new_run(ScriptedUpstream(reply))
    run.question = [type(run.question[0])("user", f"{notes.STOPPED}\n\nGo on.")]
    reply.feed("Well.\n\n", notes.STOPPED)
    reply.end()
    wait_ended(harness.start_run(run))
    assert run.answer()[1] == "Well.\n\n"


# --- pictures in the text -------------------------------------------------------------------------

HEAD = "See ![a](data:image/png;base64,"


@pytest.mark.parametrize("size", [4, 300])
def test_data_of_a_picture_is_no_text(harness: RunHarness, size: int) -> None:
    """The limit of the text counts the text around a picture alone, before it and after it."""
    data = "A" * 3_000
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    run, reply = harness.opened_run(max_answer_chars=200)
    reader = Reader(run)
    reply.feed(HEAD, *pieces, ") and more", Part(ended=True))
    reader.finish()
    assert run.state == "done"
    assert run.answer()[1] == f"{HEAD}{data}) and more"

    run, reply = harness.opened_run(max_answer_chars=200)
    reader = Reader(run)
    reply.feed(HEAD, *pieces, ")", *["ten chars "] * 20)
    reader.finish()
    assert isinstance(run.log.ended, Failed)
    assert run.log.ended.error.hint == "The limit is 200 characters: HALT_MAX_ANSWER_CHARS."


def test_data_of_pictures_has_a_limit_of_its_own(
    harness: RunHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pictures in the text and beside it share one limit; the answer so far is kept."""
    monkeypatch.setattr(intake, "EXTRA_MAX", 5_000)
    run, reply = harness.opened_run(max_answer_chars=200)
    reader = Reader(run)
    extra = Extra(delta={"images": [{"image_url": {"url": f"data:image/png;base64,{'B' * 3000}"}}]})
    reply.feed(Part((extra,), 1), HEAD, *["A" * 500] * 6)
    reader.finish()
    assert isinstance(run.log.ended, Failed)
    assert run.log.ended.error.hint == "Its pictures and other fields have over 5,000 characters."
    assert run.answer()[1].startswith(f"{HEAD}AAA")
