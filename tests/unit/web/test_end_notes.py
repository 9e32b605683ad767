"""The notes and figures at the end of an answer: what happened, whose words, what to do next."""

from __future__ import annotations

import msgspec
import pytest

from halt.chat.figures import duration_text, page_figures
from halt.core.events import Cancelled, Done, ErrorInfo, Failed, Terminal
from halt.core.metrics import NO_FIGURES, Metrics
from halt.core.receipts import Receipt
from halt.errors import QUOTE_MAX, UpstreamError
from halt.store.models import Usage
from halt.web.page.end_notes import NoteView, end_note

METRICS = Metrics(210.0, 2_100.0, 378, False, 200.4, 1_500, reasoning_ms=1_000.0)
ESTIMATED = msgspec.structs.replace(METRICS, tokens_estimated=True)
CLOSED = Receipt("stream-1", "stopped", "closed", 4.2)
CLOSING = Receipt("stream-1", "stopped", "closing", 250.0)


def note_of(
    ended: Terminal, tokens: int = 0, *, has_text: bool = True, receipt: Receipt | None = None
) -> NoteView:
    """The note for this end; there must be one."""
    note = end_note(ended, tokens, has_text=has_text, receipt=receipt)
    assert note is not None
    return note


def failed(fault: UpstreamError, request_id: str = "req_1") -> Failed:
    """The event of a run that failed so."""
    return Failed(
        ErrorInfo(
            fault.code,
            fault.message,
            fault.retryable,
            detail=fault.quote,
            hint=fault.hint,
            upstream_status=fault.upstream_status,
            request_id=request_id,
        ),
        NO_FIGURES,
    )


def test_plain_end_has_no_note() -> None:
    """An answer that the model itself ended has no note."""
    assert end_note(Done("stop", METRICS), 378, has_text=True) is None


@pytest.mark.parametrize(
    ("tokens", "receipt", "title", "text"),
    [
        (106, None, "Stopped by you after 106 tokens.", "Everything above is saved."),
        (
            1,
            CLOSED,
            "Stopped by you after 1 token.",
            "The connection to the model was closed in 4\u00a0ms.",
        ),
        (0, CLOSING, "Stopped by you.", "The connection to the model is not closed yet."),
    ],
)
def test_note_of_a_stop_says_what_was_seen_of_the_connection(
    tokens: int, receipt: Receipt | None, title: str, text: str
) -> None:
    """The note counts the tokens. It tells of the connection only what the Stop's receipt tells."""
    note = note_of(Cancelled(ESTIMATED), tokens, receipt=receipt)
    assert (note.kind, note.title) == ("stopped", title)
    assert note.text.startswith(text)
    assert note.text.endswith("Everything above is saved.")


def test_note_of_a_stop_before_any_text_says_so() -> None:
    """Nothing is said to be saved where there is nothing."""
    note = note_of(Cancelled(ESTIMATED), 0, has_text=False, receipt=CLOSED)
    assert note.title == "Stopped by you before any text."
    assert note.text == "The connection to the model was closed in 4\u00a0ms."


def test_note_of_a_refusal_has_the_servers_words_first() -> None:
    """Words, what to do, code, status and request ID each have their place, once."""
    fault = UpstreamError("quota_exceeded", "No credit left.", upstream_status=400)
    note = note_of(failed(fault), has_text=False)
    assert (note.title, note.words) == ("The model's server refused:", "No credit left.")
    assert note.text == (
        "The account at the model's server has no credit left, or its quota is used up. "
        "Add credit at the provider, or choose another model. Nothing was generated."
    )
    assert note.facts == ("Code: quota_exceeded", "HTTP 400")
    assert (note.request_id, note.opens) == ("req_1", "models")


def test_note_of_a_long_refusal_is_cut_and_has_all_words() -> None:
    """Long words are cut; the whole is there too. Saved errors have no parts, and the same words."""
    words = "no " * QUOTE_MAX
    fault = UpstreamError("bad_request", words, upstream_status=422)
    note = note_of(failed(fault))
    assert (len(note.words) <= QUOTE_MAX, note.words[-1], note.all_words) == (True, "…", words)
    saved = Failed(ErrorInfo(fault.code, fault.message, False), NO_FIGURES)
    assert note_of(saved).words == note.words
    assert note_of(saved).facts == ("Code: bad_request",)


@pytest.mark.parametrize(
    ("fault", "has_text", "kind", "title", "text"),
    [
        (
            UpstreamError("rate_limited", retry_after=7.0),
            False,
            "fault",
            "The model's server is limiting requests. Try again in 7 s.",
            "Nothing was generated.",
        ),
        (
            UpstreamError("stalled", hint="Halt waited 9 s: HALT_GAP_TIMEOUT."),
            True,
            "fault",
            "The model stopped sending in the middle of its answer.",
            "Halt waited 9 s: HALT_GAP_TIMEOUT. Everything above is saved.",
        ),
        (
            UpstreamError("answer_too_long", hint="The limit is 9 characters."),
            True,
            "limit",
            "Stopped at a limit after 3 tokens.",
            "The answer is too long. The limit is 9 characters. Everything above is saved.",
        ),
        (
            UpstreamError("interrupted"),
            True,
            "interrupted",
            "Interrupted: Halt shut down or crashed.",
            "Everything above is saved.",
        ),
    ],
    ids=["wait", "hint", "limit", "interrupted"],
)
def test_note_of_an_error_says_what_to_do(
    fault: UpstreamError, has_text: bool, kind: str, title: str, text: str
) -> None:
    """The title says what happened, the text what is known and kept; nothing is said twice."""
    note = note_of(failed(fault), 3, has_text=has_text)
    assert (note.kind, note.title, note.words, note.text) == (kind, title, "", text)


def test_note_of_a_cut_answer_names_the_reason() -> None:
    """A token limit, a filter and an odd finish reason have notes."""
    assert note_of(Done("length", METRICS)).title == "Cut off at the token limit."
    assert note_of(Done("content_filter", METRICS)).title == "Cut off by the provider's filter."
    odd = note_of(Done("abort", METRICS))
    assert (odd.kind, odd.title) == ("fault", "The model's server ended the answer: abort.")


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [
        (42.4, "42 ms"),
        (99.6, "0.10 s"),
        (994, "0.99 s"),
        (996, "1.0 s"),
        (3_210, "3.2 s"),
        (9_960, "10 s"),
        (125_000, "125 s"),
    ],
)
def test_duration_has_two_digits_at_each_size(milliseconds: float, text: str) -> None:
    """A duration is rounded once and alike in steps and figures: no size shows "1.00 s"."""
    assert duration_text(milliseconds).replace("\u00a0", " ") == text


def test_figures_have_a_short_line_and_all_by_name() -> None:
    """The short line has tokens, time and speed; the rows have all that is known."""
    usage = {
        "prompt_tokens": 1_234,
        "completion_tokens_details": {"reasoning_tokens": 100, "other": None},
    }
    figures = page_figures(Done("stop", METRICS, usage), "m-1")
    assert (figures.short, figures.more) == ("378 tokens", "0.21\u00a0s to the first · 200/s")
    assert figures.rows == (
        ("Model", "m-1"),
        ("Read", "1,234 tokens"),
        ("Written", "378 tokens"),
        ("Of these for thoughts", "100 tokens"),
        ("First token after", "0.21\u00a0s"),
        ("Thinking", "1.0\u00a0s"),
        ("In all", "2.1\u00a0s"),
        ("Speed", "200 tokens/s"),
        ("Ended", "by the model"),
    )


def test_figures_of_a_stop_are_marked_estimated_until_they_are_counted() -> None:
    """The line has the count of the note; its rows say that it is an estimate until the provider
    has counted; the connection is named."""
    figures = page_figures(Cancelled(ESTIMATED), "", receipt=CLOSED)
    assert figures.short == "378 tokens"
    assert ("Written", "about 378 tokens, estimated") in figures.rows
    assert figures.rows[-1] == ("Connection", "closed in 4\u00a0ms")
    counted = page_figures(Cancelled(ESTIMATED), "", Usage(20, 400))
    assert (counted.short, counted.rows[0]) == ("400 tokens", ("Read", "20 tokens"))


def test_figures_of_a_refusal_are_none() -> None:
    """Where no token came, the note says all."""
    assert page_figures(failed(UpstreamError("bad_request")), "m-1").rows == ()


def test_figures_of_an_imported_answer_are_its_model_alone() -> None:
    """What was not measured has no figures."""
    figures = page_figures(Done("stop", NO_FIGURES), "m-1", requested_model="m-1")
    assert (figures.short, figures.more, figures.rows) == ("m-1", "", (("Model", "m-1"),))
    assert page_figures(Done("stop", NO_FIGURES), "").rows == ()


def test_figures_name_the_provider_of_a_model_that_several_may_have() -> None:
    """Where the request's name of the model is another one, both are in the figures."""
    rows = page_figures(Done("stop", METRICS), "qwen3", requested_model="ollama/qwen3").rows
    assert rows[:2] == (("Model", "qwen3"), ("Requested as", "ollama/qwen3"))
