"""Messages of an answer to the page: each piece once, hostile text escaped, the whole at the end."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jinja2 import Environment, FileSystemLoader, Template

from halt.chat.progress import ANSWERS_MIN, AnswerProgress
from halt.clock import now
from halt.core import steps
from halt.core.events import (
    Cancelled,
    Content,
    Delta,
    Event,
    Extra,
    Reasoning,
    ReasoningEnd,
    ToolCall,
    ToolCallDelta,
    is_terminal,
)
from halt.core.generation import Generation
from halt.core.log import EventLog
from halt.core.metrics import NO_FIGURES
from halt.core.request import Part
from halt.core.run import Run
from halt.core.tools import Toolbox
from halt.errors import UpstreamError
from halt.rendering.open_text import SEAM
from halt.rendering.renderer import Renderer
from halt.store.models import Exchange
from halt.web.event_stream import frame_bytes
from halt.web.page.views import AnswerView, exchange_view, view
from halt.web.page.writer import PageWriter
from tests.support.run_harness import RunHarness, wait_ended
from tests.support.scripted_upstream import ScriptedReply, ScriptedUpstream

TEMPLATES = Path(__file__).parents[3] / "templates"
RENDERER = Renderer()
HOSTILE = "<img src=x onerror=alert(1)> </div><hx-partial>"


def ask(city: str) -> str:
    """How warm it is."""
    if city == "Atlantis":
        raise ValueError(HOSTILE)
    return f"12 degrees in {city} {HOSTILE}"


def call(city: str, id_: str = "c1") -> list[Delta]:
    """A tool call as a provider sends it: in pieces, then whole."""
    arguments = f'{{"city": "{city}"}}'
    return [
        ToolCallDelta(0, id_, "ask", ""),
        ToolCallDelta(0, id_, "ask", arguments[:6]),
        ToolCallDelta(0, id_, "ask", arguments[6:]),
        ToolCall(id_, "ask", arguments),
    ]


@pytest.fixture
def template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("answer.html")


Played = Callable[..., Run]


@pytest.fixture
def played() -> Iterator[Played]:
    """Make runs that have ended; each list of events is one round of the model."""
    harness = RunHarness()
    harness.tools = Toolbox([ask])

    def play(*rounds: list[Delta], stop_at: int | None = None, **settings: Any) -> Run:
        replies = []
        for number, events in enumerate(rounds, 1):
            reply = ScriptedReply()
            for event in events:
                reply.feed(Part((event,), 1))
            if stop_at is None:
                reply.end("stop" if number == len(rounds) else "tool_calls")
            else:
                reply.feed(UpstreamError("upstream_dropped"))
            replies.append(reply)
        run, _ = harness.started_run(ScriptedUpstream(*replies), retries=0, **settings)
        wait_ended(run)
        if stop_at is not None:
            run._seen_events = stop_at
        return run

    yield play
    harness.close()


def message(writer: PageWriter, events: list[tuple[int, Event]]) -> str:
    """The message to a page for these events."""
    return frame_bytes(writer.present(events)).decode()


def messages(run: Run, template: Template, after: int = 0) -> list[str]:
    """The messages to a page that follows from there, one for each event."""
    writer = PageWriter(run, after, template, AnswerProgress(), RENDERER)
    return [message(writer, [event]) for event in run.log.read(after) if not is_terminal(event[1])]


def text_in(message: str) -> str:
    """The visible text of a message."""
    data = "\n".join(re.findall(r"^data: (.*)$", message, re.MULTILINE))
    return html.unescape(re.sub(r"<[^>]*>", "", data))


def of(run: Run) -> AnswerView:
    return view(Exchange("Hi", run.id), run, AnswerProgress(), RENDERER.with_deadline(60))


def test_thought_is_sent_in_pieces_and_its_duration_at_its_end(
    played: Played, template: Template
) -> None:
    """A new step is sent, then its text, then its summary with the answer's first text."""
    run = played([Reasoning("so "), Reasoning(HOSTILE), Content("Yes.")])
    first, more, answer = messages(run, template)
    assert 'hx-target="#steps-a-stream" hx-swap="beforeend"' in first
    assert "<details" in first
    assert "Thinking…" in first
    assert 'hx-target="#step-a-stream-1-text" hx-swap="beforeend"' in more
    assert text_in(more) == HOSTILE
    assert "<img" not in more
    assert 'hx-target="#step-a-stream-1-summary"' in answer
    assert re.search(r"Thought for \d+ ms", answer)
    assert "Yes." in answer


LONG_TEXT = ["".join(f"word {n} &c. " for n in range(at, at + 12)) for at in range(0, 600, 12)]


def test_long_text_is_sent_in_parts(played: Played, template: Template) -> None:
    """An open paragraph and an open thought are sent in parts; an ended answer has no seams."""
    run = played([*map(Reasoning, LONG_TEXT), *map(Content, LONG_TEXT)])
    sent = messages(run, template)
    thought, answer = "".join(sent[: len(LONG_TEXT)]), "".join(sent[len(LONG_TEXT) :])
    assert thought.count(SEAM) >= 2
    assert answer.count(SEAM) >= 2
    assert text_in(answer).endswith("word 599 &c. ")
    assert "seam" not in template.render(a=of(run))


@pytest.mark.parametrize("kind", [Reasoning, Content], ids=["thought", "answer"])
def test_page_that_reconnects_for_each_message_receives_parts(
    played: Played, template: Template, kind: Callable[[str], Delta]
) -> None:
    """A new writer knows the length of the last part that the page has."""
    run = played([kind(character) for character in LONG_TEXT])
    sent = ""
    for after in range(len(LONG_TEXT)):
        writer = PageWriter(run, after, template, AnswerProgress(), RENDERER)
        sent += message(writer, run.log.read(after)[:1])
    assert sent.count(SEAM) >= 2


@pytest.mark.parametrize("newline", ["\r\n", "\r", "\n"], ids=["crlf", "cr", "lf"])
def test_thought_is_the_same_for_every_split_of_its_text(
    played: Played, template: Template, newline: str
) -> None:
    """A thought is the same where its pieces split a newline or its beginning."""
    text = f"so{newline}{newline}what\0"
    run = played([*map(Reasoning, text), Content("Yes.")])
    sent = messages(run, template)
    first = text_in(sent[0]).replace("Thinking…", "").strip()
    assert first + "".join(map(text_in, sent[1 : len(text)])) == "so\n\nwhat\ufffd"
    (fold,) = of(run).steps
    assert fold.text == "so\n\nwhat\ufffd"


def test_tool_call_is_sent_in_pieces_and_then_its_result(
    played: Played, template: Template
) -> None:
    """The arguments are sent once, then the escaped result and the tool's duration, then the
    answer."""
    run = played(call("Oslo"), [Content("Cold.")])
    sent = messages(run, template)
    assert "Calling ask…" in sent[0]
    assert [text_in(piece) for piece in sent[1:4]] == ['{"city', '": "Oslo"}', ""]
    assert "Called ask" in sent[4]
    assert "12 degrees in Oslo &lt;img" in sent[4]
    assert "<img" not in "".join(sent)
    assert re.search(r"\d+ ms", sent[4])
    (fold,) = of(run).steps
    assert (fold.label, fold.text) == ("Called ask", '{"city": "Oslo"}')
    assert fold.result.unescape() == f"12 degrees in Oslo {HOSTILE}"


def test_failed_tool_is_shown_as_failed(played: Played, template: Template) -> None:
    """A failed tool is shown as failed while the answer runs and in the whole answer."""
    run = played(call("Atlantis"), [Content("No idea.")])
    assert 'data-state="failed">ask failed' in messages(run, template)[4]
    drawn = template.render(a=of(run))
    assert 'data-state="failed">ask failed' in drawn
    assert "<img" not in drawn


@pytest.mark.parametrize("after", range(1, 9))
def test_page_that_reconnects_receives_the_remaining_messages(
    played: Played, template: Template, after: int
) -> None:
    """A page that reconnects at any event receives the same messages as without the break."""
    rounds = [Reasoning("a"), Reasoning("b"), *call("Oslo")], [Reasoning("c"), Content("d")]
    run = played(*rounds)
    ages = re.compile(r'data-age="[\d.]+"')
    whole, rest = messages(run, template), messages(run, template, after)
    assert [ages.sub("", event) for event in rest] == [
        ages.sub("", event) for event in whole[after:]
    ]


def test_thought_without_a_duration_has_a_plain_label() -> None:
    """A thought of unknown duration, for example an imported one, is labelled "Thought"."""
    fold = steps.Step(1, "thought", "done", text="Hm")
    exchange = Exchange("Hi", "a", "Ho", ended=Cancelled(NO_FIGURES), steps=(fold,))
    assert [
        step.label
        for step in view(exchange, None, AnswerProgress(), RENDERER.with_deadline(60)).steps
    ] == ["Thought"]


def test_text_that_becomes_a_thought_moves_into_a_step(played: Played, template: Template) -> None:
    """After a late ReasoningEnd the text moves into a step and the answer's text begins anew."""
    run = played([Content("Okay.\n\n"), Content("<b>"), ReasoningEnd(), Content("*Hello*")])
    sent = messages(run, template)
    assert "Okay." in sent[0]
    assert (
        'hx-target="#done-a-stream" hx-swap="outerHTML"><div id="done-a-stream"></div>' in sent[2]
    )
    assert 'hx-target="#tail-a-stream" hx-swap="outerHTML"' in sent[2]
    assert 'hx-target="#steps-a-stream"' in sent[2]
    assert "Okay.\n\n<b>" in text_in(sent[2])
    assert "&lt;b&gt;" in sent[2]
    assert "*Hello*" in text_in(sent[3])
    ages = re.compile(r'data-age="[\d.]+"')
    for after in (1, 2, 3):
        rest = messages(run, template, after)
        assert [ages.sub("", m) for m in rest] == [ages.sub("", m) for m in sent[after:]]
    together = message(
        PageWriter(run, 0, template, AnswerProgress(), RENDERER), run.log.read(0)[:-1]
    )
    assert text_in(together).endswith("*Hello*")
    assert "Okay." not in together.partition('hx-target="#done-a-stream"')[2]
    assert of(run).source == "*Hello*"
    assert [fold.text.unescape() for fold in of(run).steps] == ["Okay.\n\n<b>"]


def test_stopped_answer_has_the_steps_that_were_seen(played: Played) -> None:
    """A stopped answer has the steps up to the last event that was seen, and no later ones."""
    run = played([Reasoning("a"), Content("b"), *call("Oslo")], stop_at=2)
    assert [fold.kind for fold in steps.steps_of(run)] == ["thought"]
    run = played([Reasoning("a"), Reasoning("b")], stop_at=1)
    (fold,) = steps.steps_of(run)
    assert (fold.text, fold.state) == ("a", "done")


@pytest.mark.parametrize(
    ("last_seen", "state", "kinds"),
    [(0, "withdrawn", []), (1, "stopped", ["thought"]), (3, "stopped", ["thought", "tool"])],
)
def test_stopped_answer_with_seen_steps_is_not_withdrawn(
    played: Played, last_seen: int, state: str, kinds: list[str]
) -> None:
    """Only an answer without any seen event is withdrawn; seen steps stay, also beside an old
    answer."""
    run = played([Reasoning("a"), *call("Oslo")], stop_at=last_seen)
    first = Exchange("Hi", run.id, ended=Cancelled(NO_FIGURES), steps=steps.steps_of(run))
    again = replace(first, previous=Exchange("Hi", "before", "What there was."))
    for exchange in (first, again) if kinds else (first,):
        answer = view(exchange, None, AnswerProgress(), RENDERER.with_deadline(60))
        assert (answer.state, [fold.kind for fold in answer.steps]) == (state, kinds)
        assert answer.source == ""


def test_thought_with_a_dropped_beginning_shows_its_rest(
    played: Played,
) -> None:
    """Of a thought whose first events the log has dropped, the rest is shown."""
    run = played([*(Reasoning(f"{n} " * 50) for n in range(200)), Content("x")], log_bytes=4096)
    assert run.log.first > 1
    (fold,) = of(run).steps
    assert fold.text.endswith("199 " * 50)
    assert "0 0 0 0 0" not in fold.text


def test_step_text_is_limited(played: Played) -> None:
    """The text of a step has STEP_CHARS_MAX characters at most and a note that it was cut."""
    run = played([Reasoning("t" * (steps.STEP_CHARS_MAX + 5)), Content("x")])
    (fold,) = steps.steps_of(run)
    assert fold.size() == steps.STEP_CHARS_MAX + len(steps.CUT)


def test_progress_is_sent_when_it_changes(played: Played, template: Template) -> None:
    """A progress bar is sent when its value changes, and none where no length is expected."""
    run = played([Content(f"{n} ") for n in range(10)])
    progress = AnswerProgress()
    for _ in range(ANSWERS_MIN):
        progress.end("earlier", "m", 20)
    progress.begin(run.id, "m")
    writer = PageWriter(run, 0, template, progress, RENDERER)
    sent = [message(writer, [event]) for event in run.log.read(0)[:3]]
    assert [piece.count("<progress") for piece in sent] == [
        1,
        0,
        0,
    ]  # the run has ended: the value is constant
    assert 'value="50"' in sent[0]
    assert "about 50 %" in sent[0]
    assert "<progress" not in "".join(messages(run, template))


def test_earlier_comparison_is_shown_with_its_first_answer() -> None:
    """The last prompt's answers are shown side by side; an earlier prompt's first answer with
    text."""
    rivals = (Exchange("Hi", "b", "B"), Exchange("Hi", "c", "C"))
    exchange = Exchange("Hi", "a", "", alternatives=rivals)
    last = exchange_view(
        exchange, lambda _: None, AnswerProgress(), RENDERER.with_deadline(60), last=True
    )
    assert ([a.id for a in last.answers], last.is_selected) == (["a", "b", "c"], False)
    earlier = exchange_view(
        exchange, lambda _: None, AnswerProgress(), RENDERER.with_deadline(60), last=False
    )
    assert ([a.id for a in earlier.answers], earlier.is_selected) == (["b", "a", "c"], True)


def below(markup: str) -> str:
    """The markup below the text of an answer."""
    match = re.search('<div class="below" id="below-a-stream">(.*?)</div>', markup, re.DOTALL)
    assert match, markup
    return match[1]


def test_pictures_and_sources_are_shown_below_the_text(played: Played, template: Template) -> None:
    """Pictures are a line and sources are links below the text; the picture's data is not sent."""
    run = played(
        [
            Content("Paris[1]"),
            Extra(chunk={"citations": ["https://a.example/one", "https://b.example/?a=1&b=2"]}),
            Extra(delta={"images": [{"image_url": {"url": "data:image/png;base64,iVBORw0KGgoA"}}]}),
            Extra(chunk={"search_results": [{"url": "https://a.example/one", "title": HOSTILE}]}),
        ]
    )
    link = '<a href="{}" target="_blank" rel="noopener noreferrer nofollow">{}</a>'
    title = html.escape(HOSTILE.strip())
    sent = messages(run, template)
    assert link.format("https://a.example/one", "https://a.example/one") in sent[1]
    assert "[Picture (PNG, 9 B)]" in sent[2]
    assert 'hx-target="#below-a-stream" hx-swap="innerHTML"' in sent[2]
    ended = below(
        PageWriter(run, 4, template, AnswerProgress(), RENDERER).answer_partial(
            RENDERER.with_deadline(60)
        )
    )
    assert "[Picture (PNG, 9 B)]" in ended
    assert link.format("https://a.example/one", title) in ended.replace("&#34;", "&quot;")
    assert 'href="https://b.example/?a=1&amp;b=2"' in ended
    assert not any("iVBOR" in piece for piece in sent)
    assert '<details class="fold' not in "".join(sent)


def test_running_answer_is_rendered_with_pictures_and_sources(template: Template) -> None:
    """A page loaded during an answer has its pictures and sources, also of the part before a
    Continue."""
    exchange = Exchange(
        "q", "a-stream", answer="text", steps=(steps.Step(1, "picture", "done", text="Picture"),)
    )
    run = Generation("a-stream", None, EventLog(10_000), started_at=now())
    run.record_text("", now())
    run.log.append(Extra(chunk={"citations": ["https://a.example/one"]}))
    drawn = template.render(a=view(exchange, run, AnswerProgress(), RENDERER.with_deadline(60)))
    assert "https://a.example/one" in below(drawn)
    assert 'id="earlier-below-a-stream" hx-preserve><p class="picture">[Picture]</p>' in drawn


def test_answer_without_pictures_and_sources_has_an_empty_element(
    played: Played, template: Template
) -> None:
    """Without pictures and sources the element below the text is empty, also of blanks."""
    run = played([Content("a")])
    assert (
        below(
            PageWriter(run, 1, template, AnswerProgress(), RENDERER).answer_partial(
                RENDERER.with_deadline(60)
            )
        )
        == ""
    )


def test_present_returns_functions_for_expensive_messages(
    played: Played, template: Template
) -> None:
    """Text for open elements is bytes; a finished block, long text and the end are functions.

    A thread that serves many readers makes the bytes itself, so they must be cheap.
    """
    run = played(
        [
            Reasoning("so "),  # a new step
            Reasoning("then "),
            Content("Yes"),  # the thought ends
            Content(", it is"),
            Content(".\n\nAnd"),  # a paragraph ends
            Content(" more"),
            Content("x" * 3_000),
            Content("y"),
            ReasoningEnd(),
            Content("z"),
        ]
    )
    writer = PageWriter(run, 0, template, AnswerProgress(), RENDERER)
    is_bytes = []
    for event in run.log.read(0):
        payload = writer.present([event])
        is_bytes.append(isinstance(payload, bytes))
        if not isinstance(payload, bytes):
            payload()
    assert is_bytes == [False, True, False, True, False, True, False, True, False, True, False]


def test_present_of_any_grouping_leads_to_the_same_page(played: Played, template: Template) -> None:
    """For every grouping of the events the page has the same text and blocks at the end."""
    text = "".join(f"Line {n} &c.\n\n```c\nint x{n};\n```\n" for n in range(40))
    run = played([Content(text[at : at + 7]) for at in range(0, len(text), 7)])
    events = [event for event in run.log.read(0) if not is_terminal(event[1])]
    pages = []
    for size in (1, 3, 70, len(events)):
        writer = PageWriter(run, 0, template, AnswerProgress(), RENDERER)
        groups = [events[at : at + size] for at in range(0, len(events), size)]
        sent = "".join(message(writer, group) for group in groups)
        pages.append((re.findall(r"x\d+", text_in(sent))[-1], sent.count("<pre")))
    assert pages == [("x39", 40)] * 4
