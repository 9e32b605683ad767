"""What the page is sent of an answer: pieces once each, whole at the end, hostile text as text."""

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
    found = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return found.get_template("answer.html")


Played = Callable[..., Run]


@pytest.fixture
def played() -> Iterator[Played]:
    """Runs that are over: each list of events is one round of the model's."""
    stage = RunHarness()
    stage.tools = Toolbox([ask])

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
        run, _ = stage.begin(ScriptedUpstream(*replies), retries=0, **settings)
        wait_ended(run)
        if stop_at is not None:
            run._seen_events = stop_at
        return run

    yield play
    stage.close()


def message(writer: PageWriter, events: list[tuple[int, Event]]) -> str:
    """What a page is sent of these events."""
    return frame_bytes(writer.present(events)).decode()


def messages(run: Run, template: Template, after: int = 0) -> list[str]:
    """What a page that follows from there is sent, each event in a message of its own."""
    writer = PageWriter(run, after, template, AnswerProgress(), RENDERER)
    return [message(writer, [each]) for each in run.log.read(after) if not is_terminal(each[1])]


def text_in(message: str) -> str:
    """What a reader would see of it."""
    data = "\n".join(re.findall(r"^data: (.*)$", message, re.MULTILINE))
    return html.unescape(re.sub(r"<[^>]*>", "", data))


def of(run: Run) -> AnswerView:
    return view(Exchange("Hi", run.id), run, AnswerProgress(), RENDERER.within(60))


def test_a_thought_is_sent_as_it_comes_and_its_time_at_its_end(
    played: Played, template: Template
) -> None:
    """A new fold, text for it, then its new summary together with the answer's first text."""
    run = played([Reasoning("so "), Reasoning(HOSTILE), Content("Yes.")])
    first, more, answer = messages(run, template)
    assert 'hx-target="#folds-a-stream" hx-swap="beforeend"' in first
    assert "<details" in first
    assert "Thinking…" in first
    assert 'hx-target="#fold-a-stream-1-text" hx-swap="beforeend"' in more
    assert text_in(more) == HOSTILE
    assert "<img" not in more
    assert 'hx-target="#fold-a-stream-1-summary"' in answer
    assert re.search(r"Thought for \d+ ms", answer)
    assert "Yes." in answer


SAID = ["".join(f"word {n} &c. " for n in range(at, at + 12)) for at in range(0, 600, 12)]


def test_long_text_is_sent_in_parts(played: Played, template: Template) -> None:
    """An open paragraph and an open thought get seams; an answer that has ended has none."""
    run = played([*map(Reasoning, SAID), *map(Content, SAID)])
    sent = messages(run, template)
    thought, answer = "".join(sent[: len(SAID)]), "".join(sent[len(SAID) :])
    assert thought.count(SEAM) >= 2
    assert answer.count(SEAM) >= 2
    assert text_in(answer).endswith("word 599 &c. ")
    assert "seam" not in template.render(a=of(run))


@pytest.mark.parametrize("kind", [Reasoning, Content])
def test_a_page_that_comes_back_for_each_message_is_sent_parts_as_well(
    played: Played, template: Template, kind: Callable[[str], Delta]
) -> None:
    """A new writer knows how long the last part is that the page has."""
    run = played([kind(each) for each in SAID])
    sent = ""
    for after in range(len(SAID)):
        writer = PageWriter(run, after, template, AnswerProgress(), RENDERER)
        sent += message(writer, run.log.read(after)[:1])
    assert sent.count(SEAM) >= 2


@pytest.mark.parametrize("newline", ["\r\n", "\r", "\n"])
def test_a_thought_is_the_same_however_it_was_cut(
    played: Played, template: Template, newline: str
) -> None:
    """Also where a cut goes through a newline, or through the first piece of a thought."""
    text = f"so{newline}{newline}what\0"
    run = played([*map(Reasoning, text), Content("Yes.")])
    sent = messages(run, template)
    first = text_in(sent[0]).replace("Thinking…", "").strip()
    assert first + "".join(map(text_in, sent[1 : len(text)])) == "so\n\nwhat\ufffd"
    (fold,) = of(run).steps
    assert fold.text == "so\n\nwhat\ufffd"


def test_a_tool_call_is_sent_as_it_forms_and_then_its_result(
    played: Played, template: Template
) -> None:
    """The arguments once, the result escaped, the time of the tool's own; then the answer."""
    run = played(call("Oslo"), [Content("Cold.")])
    sent = messages(run, template)
    assert "Calling ask…" in sent[0]
    assert [text_in(each) for each in sent[1:4]] == ['{"city', '": "Oslo"}', ""]
    assert "Called ask" in sent[4]
    assert "12 degrees in Oslo &lt;img" in sent[4]
    assert "<img" not in "".join(sent)
    assert re.search(r"\d+ ms", sent[4])
    (fold,) = of(run).steps
    assert (fold.label, fold.text) == ("Called ask", '{"city": "Oslo"}')
    assert fold.result.unescape() == f"12 degrees in Oslo {HOSTILE}"


def test_a_tool_that_failed_says_so(played: Played, template: Template) -> None:
    """While it streams and when it is drawn whole."""
    run = played(call("Atlantis"), [Content("No idea.")])
    assert 'data-state="failed">ask failed' in messages(run, template)[4]
    drawn = template.render(a=of(run))
    assert 'data-state="failed">ask failed' in drawn
    assert "<img" not in drawn


@pytest.mark.parametrize("after", range(1, 9))
def test_a_page_that_comes_back_is_sent_the_rest_for_the_same_folds(
    played: Played, template: Template, after: int
) -> None:
    """Whatever it had: from there on the messages are those it would have got anyway."""
    rounds = [Reasoning("a"), Reasoning("b"), *call("Oslo")], [Reasoning("c"), Content("d")]
    run = played(*rounds)
    ages = re.compile(r'data-age="[\d.]+"')
    whole, rest = messages(run, template), messages(run, template, after)
    assert [ages.sub("", each) for each in rest] == [ages.sub("", each) for each in whole[after:]]


def test_a_thought_whose_time_is_not_known_is_said_without_it() -> None:
    """As one from a file may be."""
    fold = steps.Step(1, "thought", "done", text="Hm")
    exchange = Exchange("Hi", "a", "Ho", ended=Cancelled(NO_FIGURES), steps=(fold,))
    assert [
        each.label for each in view(exchange, None, AnswerProgress(), RENDERER.within(60)).steps
    ] == ["Thought"]


def test_text_that_was_a_thought_moves_into_a_fold(played: Played, template: Template) -> None:
    """At once, and for a page that comes back at any place; the text begins anew."""
    run = played([Content("Okay.\n\n"), Content("<b>"), ReasoningEnd(), Content("*Hello*")])
    sent = messages(run, template)
    assert "Okay." in sent[0]
    assert (
        'hx-target="#done-a-stream" hx-swap="outerHTML"><div id="done-a-stream"></div>' in sent[2]
    )
    assert 'hx-target="#tail-a-stream" hx-swap="outerHTML"' in sent[2]
    assert 'hx-target="#folds-a-stream"' in sent[2]
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


def test_a_stopped_answer_has_the_folds_that_were_seen(played: Played) -> None:
    """What came after the last event that was shown is not there either."""
    run = played([Reasoning("a"), Content("b"), *call("Oslo")], stop_at=2)
    assert [fold.kind for fold in steps.steps_of(run)] == ["thought"]
    run = played([Reasoning("a"), Reasoning("b")], stop_at=1)
    (fold,) = steps.steps_of(run)
    assert (fold.text, fold.state) == ("a", "done")


@pytest.mark.parametrize(
    ("seen", "state", "kinds"),
    [(0, "withdrawn", []), (1, "stopped", ["thought"]), (3, "stopped", ["thought", "tool"])],
)
def test_only_an_answer_of_which_nothing_was_seen_is_withdrawn(
    played: Played, seen: int, state: str, kinds: list[str]
) -> None:
    """A thought or a tool call that was on the screen stays there, also beside an older answer."""
    run = played([Reasoning("a"), *call("Oslo")], stop_at=seen)
    first = Exchange("Hi", run.id, ended=Cancelled(NO_FIGURES), steps=steps.steps_of(run))
    again = replace(first, previous=Exchange("Hi", "before", "What there was."))
    for exchange in (first, again) if kinds else (first,):
        shown = view(exchange, None, AnswerProgress(), RENDERER.within(60))
        assert (shown.state, [fold.kind for fold in shown.steps]) == (state, kinds)
        assert shown.source == ""


def test_folds_of_a_log_that_let_go_of_its_beginning_are_shown_as_far_as_they_are_there(
    played: Played,
) -> None:
    """A long thought: its end is there, and nothing breaks."""
    run = played([*(Reasoning(f"{n} " * 50) for n in range(200)), Content("x")], log_bytes=4096)
    assert run.log.first > 1
    (fold,) = of(run).steps
    assert fold.text.endswith("199 " * 50)
    assert "0 0 0 0 0" not in fold.text


def test_folds_are_saved_bounded(played: Played) -> None:
    """A thought without measure does not fill the store."""
    run = played([Reasoning("t" * (steps.STEP_CHARS_MAX + 5)), Content("x")])
    (fold,) = steps.steps_of(run)
    assert fold.size() == steps.STEP_CHARS_MAX + len(steps.CUT)


def test_progress_is_sent_when_it_changes(played: Played, template: Template) -> None:
    """A bar that is told of 5 percent at a time, and nothing where nothing is expected."""
    run = played([Content(f"{n} ") for n in range(10)])
    progress = AnswerProgress()
    for _ in range(ANSWERS_MIN):
        progress.end("earlier", "m", 20)
    progress.begin(run.id, "m")
    writer = PageWriter(run, 0, template, progress, RENDERER)
    sent = [message(writer, [each]) for each in run.log.read(0)[:3]]
    assert [each.count("<progress") for each in sent] == [1, 0, 0]  # it is as far as the run is
    assert 'value="50"' in sent[0]
    assert "about 50 %" in sent[0]
    assert "<progress" not in "".join(messages(run, template))


def test_what_is_compared_is_put_away_when_the_conversation_has_gone_on() -> None:
    """The last prompt's answers stand side by side; of an earlier one, the answer that was told."""
    rivals = (Exchange("Hi", "b", "B"), Exchange("Hi", "c", "C"))
    asked = Exchange("Hi", "a", "", alternatives=rivals)
    last = exchange_view(asked, lambda _: None, AnswerProgress(), RENDERER.within(60), last=True)
    assert ([a.id for a in last.answers], last.is_selected) == (["a", "b", "c"], False)
    earlier = exchange_view(
        asked, lambda _: None, AnswerProgress(), RENDERER.within(60), last=False
    )
    assert ([a.id for a in earlier.answers], earlier.is_selected) == (["b", "a", "c"], True)


def below(markup: str) -> str:
    """What stands below the text of an answer."""
    found = re.search('<div class="below" id="below-a-stream">(.*?)</div>', markup, re.DOTALL)
    assert found, markup
    return found[1]


def test_pictures_and_sources_stand_below_the_text(played: Played, template: Template) -> None:
    """As a line and as links, while the answer comes and after its end; never the data itself."""
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
        PageWriter(run, 4, template, AnswerProgress(), RENDERER).whole(RENDERER.within(60))
    )
    assert "[Picture (PNG, 9 B)]" in ended
    assert link.format("https://a.example/one", title) in ended.replace("&#34;", "&quot;")
    assert 'href="https://b.example/?a=1&amp;b=2"' in ended
    assert not any("iVBOR" in each for each in sent)
    assert '<details class="fold' not in "".join(sent)


def test_a_running_answer_is_drawn_with_its_pictures_and_sources(template: Template) -> None:
    """A page that is loaded then has them at once, also those of the part before a Continue."""
    exchange = Exchange(
        "q", "a-stream", answer="text", steps=(steps.Step(1, "picture", "done", text="Picture"),)
    )
    run = Generation("a-stream", None, EventLog(10_000), started_at=now())
    run.record_text("", now())
    run.log.append(Extra(chunk={"citations": ["https://a.example/one"]}))
    drawn = template.render(a=view(exchange, run, AnswerProgress(), RENDERER.within(60)))
    assert "https://a.example/one" in below(drawn)
    assert 'id="earlier-below-a-stream" hx-preserve><p class="picture">[Picture]</p>' in drawn


def test_an_answer_without_them_has_nothing_below(played: Played, template: Template) -> None:
    """Not even a blank, by which the page tells."""
    run = played([Content("a")])
    assert (
        below(PageWriter(run, 1, template, AnswerProgress(), RENDERER).whole(RENDERER.within(60)))
        == ""
    )


def test_what_takes_long_is_made_by_a_function(played: Played, template: Template) -> None:
    """Text for what is open comes as bytes; a finished block, much text and the end do not.

    A thread that serves many readers makes the bytes itself, so they must be cheap.
    """
    run = played(
        [
            Reasoning("so "),  # a new fold
            Reasoning("then "),
            Content("Yes"),  # the thought is over
            Content(", it is"),
            Content(".\n\nAnd"),  # a paragraph is over
            Content(" more"),
            Content("x" * 3_000),
            Content("y"),
            ReasoningEnd(),
            Content("z"),
        ]
    )
    writer = PageWriter(run, 0, template, AnswerProgress(), RENDERER)
    is_bytes = []
    for each in run.log.read(0):
        made = writer.present([each])
        is_bytes.append(isinstance(made, bytes))
        if not isinstance(made, bytes):
            made()
    assert is_bytes == [False, True, False, True, False, True, False, True, False, True, False]


def test_functions_and_bytes_lead_to_the_same_page(played: Played, template: Template) -> None:
    """However the events are grouped, a browser that takes each message has the same text."""
    text = "".join(f"Line {n} &c.\n\n```c\nint x{n};\n```\n" for n in range(40))
    run = played([Content(text[at : at + 7]) for at in range(0, len(text), 7)])
    events = [each for each in run.log.read(0) if not is_terminal(each[1])]
    shown = []
    for size in (1, 3, 70, len(events)):
        writer = PageWriter(run, 0, template, AnswerProgress(), RENDERER)
        groups = [events[at : at + size] for at in range(0, len(events), size)]
        sent = "".join(message(writer, group) for group in groups)
        shown.append((re.findall(r"x\d+", text_in(sent))[-1], sent.count("<pre")))
    assert shown == [("x39", 40)] * 4
