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
    Done,
    ErrorInfo,
    Event,
    Extra,
    Failed,
    Reasoning,
    ReasoningEnd,
    Terminal,
    ToolCall,
    ToolCallDelta,
    is_terminal,
)
from halt.core.generation import Generation
from halt.core.log import EventLog
from halt.core.metrics import NO_FIGURES
from halt.core.request import Part
from halt.core.run import Run
from halt.core.stream_key import StreamKey
from halt.core.tools import Toolbox
from halt.errors import UpstreamError
from halt.rendering.open_text import SEAM
from halt.rendering.renderer import Renderer
from halt.store.models import Exchange
from halt.web.event_stream import frame_bytes
from halt.web.page import endings
from halt.web.page.views import AnswerView, exchange_view, view
from halt.web.page.writer import PageWriter
from tests.support.run_harness import RunHarness, wait_ended
from tests.support.scripted_upstream import ScriptedReply, ScriptedUpstream

TEMPLATES = Path(__file__).parents[3] / "templates"
RENDERER = Renderer()
A, B = "https://a.example/one", "https://b.example/two"
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
    endings.install(environment)
    return environment.get_template("answer.html")


PlayRun = Callable[..., Run]


@pytest.fixture
def play_run() -> Iterator[PlayRun]:
    """Make runs that have ended; each list of events is one round of the model."""
    harness = RunHarness()
    harness.tools = Toolbox([ask])

    def run_rounds(*rounds: list[Delta], stop_at: int | None = None, **settings: Any) -> Run:
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

    yield run_rounds
    harness.close()


def message(writer: PageWriter, events: list[tuple[int, Event]]) -> str:
    """The message to a page for these events."""
    return frame_bytes(writer.present(events)).decode()


def messages(run: Run, template: Template, last_seen: int = 0) -> list[str]:
    """The messages to a page that has the events up to `last_seen`, one for each later event."""
    writer = PageWriter(run, last_seen, template, AnswerProgress(), RENDERER)
    return [
        message(writer, [event]) for event in run.log.read(last_seen) if not is_terminal(event[1])
    ]


def text_in(message: str) -> str:
    """The visible text of a message."""
    data = "\n".join(re.findall(r"^data: (.*)$", message, re.MULTILINE))
    return html.unescape(re.sub(r"<[^>]*>", "", data))


def view_of(run: Run) -> AnswerView:
    return view(Exchange("Hi", run.id), run, AnswerProgress(), RENDERER.with_deadline(60))


def test_thought_is_sent_in_pieces_and_its_duration_at_its_end(
    play_run: PlayRun, template: Template
) -> None:
    """A new step is sent, then its text, then its summary with the answer's first text."""
    run = play_run([Reasoning("so "), Reasoning(HOSTILE), Content("Yes.")])
    first, second, answer = messages(run, template)
    assert 'hx-target="#steps-a-stream" hx-swap="beforeend"' in first
    assert "<details" in first
    assert "Thinking…" in first
    assert 'hx-target="#step-a-stream-1-text" hx-swap="beforeend"' in second
    assert text_in(second) == HOSTILE
    assert "<img" not in second
    assert 'hx-target="#step-a-stream-1-summary"' in answer
    assert re.search(r"Thought( for \d+ ms)?<", answer)
    assert "Yes." in answer


LONG_TEXT = ["".join(f"word {n} &c. " for n in range(at, at + 12)) for at in range(0, 600, 12)]


def test_long_text_is_sent_in_parts(play_run: PlayRun, template: Template) -> None:
    """An open paragraph and an open thought are sent in parts; an ended answer has no seams."""
    run = play_run([*map(Reasoning, LONG_TEXT), *map(Content, LONG_TEXT)])
    parts = messages(run, template)
    thought, answer = "".join(parts[: len(LONG_TEXT)]), "".join(parts[len(LONG_TEXT) :])
    assert thought.count(SEAM) >= 2
    assert answer.count(SEAM) >= 2
    assert text_in(answer).endswith("word 599 &c. ")
    assert "seam" not in template.render(a=view_of(run))


@pytest.mark.parametrize("kind", [Reasoning, Content], ids=["thought", "answer"])
def test_page_that_reconnects_for_each_message_receives_parts(
    play_run: PlayRun, template: Template, kind: Callable[[str], Delta]
) -> None:
    """A new writer knows the length of the last part that the page has."""
    run = play_run([kind(character) for character in LONG_TEXT])
    received = ""
    for last_seen in range(len(LONG_TEXT)):
        writer = PageWriter(run, last_seen, template, AnswerProgress(), RENDERER)
        received += message(writer, run.log.read(last_seen)[:1])
    assert received.count(SEAM) >= 2


@pytest.mark.parametrize("newline", ["\r\n", "\r", "\n"], ids=["crlf", "cr", "lf"])
def test_thought_is_the_same_for_every_split_of_its_text(
    play_run: PlayRun, template: Template, newline: str
) -> None:
    """A thought is the same where its pieces split a newline or its beginning."""
    text = f"so{newline}{newline}what\0"
    run = play_run([*map(Reasoning, text), Content("Yes.")])
    parts = messages(run, template)
    first = text_in(parts[0]).replace("Thinking…", "").strip()
    assert first + "".join(map(text_in, parts[1 : len(text)])) == "so\n\nwhat\ufffd"
    (step,) = view_of(run).steps
    assert step.text == "so\n\nwhat\ufffd"


def test_tool_call_is_sent_in_pieces_and_then_its_result(
    play_run: PlayRun, template: Template
) -> None:
    """The arguments are sent once, then the escaped result and the tool's duration, then the
    answer."""
    run = play_run(call("Oslo"), [Content("Cold.")])
    parts = messages(run, template)
    assert "Calling ask…" in parts[0]
    assert [text_in(piece) for piece in parts[1:4]] == ['{"city', '": "Oslo"}', ""]
    assert "Called ask" in parts[4]
    assert "12 degrees in Oslo &lt;img" in parts[4]
    assert "<img" not in "".join(parts)
    (step,) = view_of(run).steps
    assert (step.label, step.text) == ("Called ask", '{"city": "Oslo"}')
    assert step.result.unescape() == f"12 degrees in Oslo {HOSTILE}"


def test_failed_tool_is_shown_as_failed(play_run: PlayRun, template: Template) -> None:
    """A failed tool is shown as failed while the answer runs and in the whole answer."""
    run = play_run(call("Atlantis"), [Content("No idea.")])
    assert re.search('data-state="failed">.*ask failed', messages(run, template)[4])
    rendered = template.render(a=view_of(run))
    assert re.search('data-state="failed">.*ask failed', rendered)
    assert "<img" not in rendered


@pytest.mark.parametrize("last_seen", range(1, 9))
def test_page_that_reconnects_receives_the_remaining_messages(
    play_run: PlayRun, template: Template, last_seen: int
) -> None:
    """A page that reconnects at any event receives the same messages as without the break."""
    rounds = [Reasoning("a"), Reasoning("b"), *call("Oslo")], [Reasoning("c"), Content("d")]
    run = play_run(*rounds)
    ages = re.compile(r'data-age="[\d.]+"')
    all_messages, later_messages = messages(run, template), messages(run, template, last_seen)
    assert [ages.sub("", event) for event in later_messages] == [
        ages.sub("", event) for event in all_messages[last_seen:]
    ]


def test_thought_without_a_duration_has_a_plain_label() -> None:
    """A thought of unknown duration, for example an imported one, is labelled "Thought"."""
    thought = steps.Step(1, "thought", "done", text="Hm")
    exchange = Exchange("Hi", "a", "Ho", ended=Cancelled(NO_FIGURES), steps=(thought,))
    assert [
        step.label
        for step in view(exchange, None, AnswerProgress(), RENDERER.with_deadline(60)).steps
    ] == ["Thought"]


@pytest.mark.parametrize(
    ("arguments", "code", "label"),
    [
        ('{"city": "Os', "", "Did not call ask"),
        ("", "", "Did not call ask"),
        ('{"city": "Oslo"}', "", "Called ask"),
        ('{"city": "Os' + steps.CUT, "", "Called ask"),
        ('{"city": "Oslo"}', "too_many_tool_rounds", "Did not call ask"),
        ('{"city": "Oslo"}', "upstream_dropped", "Called ask"),
    ],
)
def test_call_that_never_ran_is_labelled_so(arguments: str, code: str, label: str) -> None:
    """A call whose arguments are incomplete, or beyond HALT_TOOL_ROUNDS, did not run."""
    step = steps.Step(1, "tool", "called", "ask", arguments)
    ended: Terminal = Cancelled(NO_FIGURES)
    if code:
        ended = Failed(ErrorInfo(code, "", retryable=False), NO_FIGURES)
    exchange = Exchange("Hi", "a", "Ho", ended=ended, steps=(step,))
    answer = view(exchange, None, AnswerProgress(), RENDERER.with_deadline(60))
    assert [step.label for step in answer.steps] == [label]


def test_calls_before_the_refused_round_may_have_run() -> None:
    """HALT_TOOL_ROUNDS refuses the calls of the last part of this answer, and no other calls.

    Where a part of the texts is not kept, arguments do not show that a call never ran.
    """
    first = steps.Step(1, "tool", "called", "first", "{}")
    second = steps.Step(1, "tool", "called", "second", "{}")
    refused = Failed(ErrorInfo("too_many_tool_rounds", "", retryable=False), NO_FIGURES)
    both = Exchange("Hi", "a", "Ho", ended=refused, steps=(first, second))
    earlier = Exchange("Hi", "b", "Ho", ended=Cancelled(NO_FIGURES), steps=(first,))
    failed = Exchange("Hi", "c", "", ended=refused, previous=earlier)
    cut = steps.Step(2, "tool", "failed", "third", "{}", "long" + steps.CUT)
    unkept = replace(earlier, steps=(replace(first, text=""), cut))
    for exchange, labels in [
        (both, ["Called first", "Did not call second"]),
        (failed, ["Called first"]),
        (unkept, ["Called first", "third failed"]),
    ]:
        answer = view(exchange, None, AnswerProgress(), RENDERER.with_deadline(60))
        assert [step.label for step in answer.steps] == labels


def test_text_that_becomes_a_thought_moves_into_a_step(
    play_run: PlayRun, template: Template
) -> None:
    """After a late ReasoningEnd the text moves into a step and the answer's text begins anew."""
    run = play_run([Content("Okay.\n\n"), Content("<b>"), ReasoningEnd(), Content("*Hello*")])
    parts = messages(run, template)
    assert "Okay." in parts[0]
    assert (
        'hx-target="#done-a-stream" hx-swap="outerHTML"><div id="done-a-stream"></div>' in parts[2]
    )
    assert 'hx-target="#tail-a-stream" hx-swap="outerHTML"' in parts[2]
    assert 'hx-target="#steps-a-stream"' in parts[2]
    assert "Okay.\n\n<b>" in text_in(parts[2])
    assert "&lt;b&gt;" in parts[2]
    assert "Hello" in text_in(parts[3])
    ages = re.compile(r'data-age="[\d.]+"')
    for last_seen in (1, 2, 3):
        later_parts = messages(run, template, last_seen)
        assert [ages.sub("", m) for m in later_parts] == [
            ages.sub("", m) for m in parts[last_seen:]
        ]
    joint_part = message(
        PageWriter(run, 0, template, AnswerProgress(), RENDERER), run.log.read(0)[:-1]
    )
    assert text_in(joint_part).endswith("Hello")
    assert "Okay." not in joint_part.partition('hx-target="#done-a-stream"')[2]
    assert view_of(run).source == "*Hello*"
    assert [step.text.unescape() for step in view_of(run).steps] == ["Okay.\n\n<b>"]


def test_stopped_answer_has_the_steps_that_were_seen(play_run: PlayRun) -> None:
    """A stopped answer has the steps up to the last event that was seen, and no later ones."""
    run = play_run([Reasoning("a"), Content("b"), *call("Oslo")], stop_at=2)
    assert [step.kind for step in steps.steps_of(run)] == ["thought"]
    run = play_run([Reasoning("a"), Reasoning("b")], stop_at=1)
    (step,) = steps.steps_of(run)
    assert (step.text, step.state) == ("a", "done")


@pytest.mark.parametrize(
    ("last_seen", "state", "kinds"),
    [(0, "withdrawn", []), (1, "stopped", ["thought"]), (3, "stopped", ["thought", "tool"])],
)
def test_stopped_answer_with_seen_steps_is_not_withdrawn(
    play_run: PlayRun, last_seen: int, state: str, kinds: list[str]
) -> None:
    """Only an answer without any seen event is withdrawn; seen steps stay, also beside an old
    answer."""
    run = play_run([Reasoning("a"), *call("Oslo")], stop_at=last_seen)
    first = Exchange("Hi", run.id, ended=Cancelled(NO_FIGURES), steps=steps.steps_of(run))
    regenerated = replace(first, previous=Exchange("Hi", "before", "What there was."))
    for exchange in (first, regenerated) if kinds else (first,):
        answer = view(exchange, None, AnswerProgress(), RENDERER.with_deadline(60))
        assert (answer.state, [step.kind for step in answer.steps]) == (state, kinds)
        assert answer.source == ""


def test_thought_with_a_dropped_beginning_shows_its_rest(
    play_run: PlayRun,
) -> None:
    """A thought whose first events the log has dropped is shown with its rest."""
    run = play_run([*(Reasoning(f"{n} " * 50) for n in range(200)), Content("x")], log_bytes=4096)
    assert run.log.first > 1
    (step,) = view_of(run).steps
    assert step.text.endswith("199 " * 50)
    assert "0 0 0 0 0" not in step.text


def test_step_text_is_limited(play_run: PlayRun) -> None:
    """The text of a step has STEP_CHARS_MAX characters at most and a note that it was cut."""
    run = play_run([Reasoning("t" * (steps.STEP_CHARS_MAX + 5)), Content("x")])
    (step,) = steps.steps_of(run)
    assert step.size() == steps.STEP_CHARS_MAX + len(steps.CUT)


def test_open_code_names_its_language(play_run: PlayRun, template: Template) -> None:
    """The box of code that is being written has the fence's language from its first line on."""
    run = play_run([Content('Look:\n\n```py"><b> x\n'), Content("n = 1\n")])
    assert 'data-language="py&quot;&gt;&lt;b&gt;"' in "".join(messages(run, template))


def test_progress_is_sent_when_it_changes(play_run: PlayRun, template: Template) -> None:
    """The progress is sent when its value changes, and none where no length is expected."""
    run = play_run([Content(f"{n} ") for n in range(10)])
    progress = AnswerProgress()
    for _ in range(ANSWERS_MIN):
        progress.end(StreamKey("", "earlier"), "m", 20)
    progress.begin(run.key, "m")
    writer = PageWriter(run, 0, template, progress, RENDERER)
    parts = [message(writer, [event]) for event in run.log.read(0)[:3]]
    # The run has ended: the value is constant.
    assert [piece.count("about 50 % written") for piece in parts] == [1, 0, 0]
    assert "% written" not in "".join(messages(run, template))


def test_earlier_comparison_is_shown_with_its_first_answer() -> None:
    """The last prompt's answers are shown side by side; an earlier prompt's first answer with
    text."""
    alternatives = (Exchange("Hi", "b", "B"), Exchange("Hi", "c", "C"))
    exchange = Exchange("Hi", "a", "", alternatives=alternatives)
    last_view = exchange_view(
        exchange, lambda _: None, AnswerProgress(), RENDERER.with_deadline(60), last=True
    )
    assert ([a.id for a in last_view.answers], last_view.is_selected) == (["a", "b", "c"], False)
    earlier_view = exchange_view(
        exchange, lambda _: None, AnswerProgress(), RENDERER.with_deadline(60), last=False
    )
    assert ([a.id for a in earlier_view.answers], earlier_view.is_selected) == (
        ["b", "a", "c"],
        True,
    )


def html_below(markup: str) -> str:
    """The markup below the text of an answer."""
    match = re.search('<div class="below" id="below-a-stream">(.*?)</div>', markup, re.DOTALL)
    assert match, markup
    return match[1]


def test_pictures_and_sources_are_shown_below_the_text(
    play_run: PlayRun, template: Template
) -> None:
    """Pictures are a line and sources are links below the text; the picture's data is not sent."""
    run = play_run(
        [
            Content("Paris[1]"),
            Extra(chunk={"citations": ["https://a.example/one", "https://b.example/?a=1&b=2"]}),
            Extra(delta={"images": [{"image_url": {"url": "data:image/png;base64,iVBORw0KGgoA"}}]}),
            Extra(chunk={"search_results": [{"url": "https://a.example/one", "title": HOSTILE}]}),
        ]
    )
    link = '<a href="{}" target="_blank" rel="noopener noreferrer nofollow">{}</a>'
    title = html.escape(HOSTILE.strip())
    parts = messages(run, template)
    assert link.format("https://a.example/one", "a.example/one") in parts[1]
    assert "[Picture (PNG, 9 B)]" in parts[2]
    assert 'hx-target="#below-a-stream" hx-swap="innerHTML"' in parts[2]
    ended_html = html_below(
        PageWriter(run, 4, template, AnswerProgress(), RENDERER).answer_partial(
            RENDERER.with_deadline(60)
        )
    )
    assert "[Picture (PNG, 9 B)]" in ended_html
    assert link.format("https://a.example/one", title) in ended_html.replace("&#34;", "&quot;")
    assert 'href="https://b.example/?a=1&amp;b=2"' in ended_html
    assert not any("iVBOR" in piece for piece in parts)
    assert '<details class="step' not in "".join(parts)


def test_running_answer_is_rendered_with_pictures_and_sources(template: Template) -> None:
    """A page loaded during an answer has its pictures and sources, also of the part before a
    Continue."""
    exchange = Exchange(
        "q", "a-stream", answer="text", steps=(steps.Step(1, "picture", "done", text="Picture"),)
    )
    run = Generation(StreamKey("", "a-stream"), EventLog(10_000), started_at=now())
    run.record_text("", now())
    run.log.append(Extra(chunk={"citations": ["https://a.example/one"]}))
    rendered = template.render(a=view(exchange, run, AnswerProgress(), RENDERER.with_deadline(60)))
    assert "https://a.example/one" in html_below(rendered)
    assert 'id="earlier-below-a-stream" hx-preserve><p class="picture">[Picture]</p>' in rendered


@pytest.mark.parametrize(
    ("prefix", "earlier", "is_linked"),
    [("", (), True), ("a[1] ", (), False), ("a[1] ", (A,), True), ("a[1] ", (B,), False)],
    ids=["one part", "earlier part unknown", "the same list", "another list"],
)
def test_ended_answer_links_numbers_to_sources_where_they_are_certain(
    prefix: str, earlier: tuple[str, ...], is_linked: bool
) -> None:
    """A number in a continued answer is a link only if all of its parts have the same sources."""
    exchange = Exchange(
        "q", "a-stream", steps=tuple(steps.Step(1, "sources", "done", text=u) for u in earlier)
    )
    run = Generation(StreamKey("", "a-stream"), EventLog(10_000), started_at=now(), prefix=prefix)
    run.record_text("b[1]", now())
    run.log.append(Content("b[1]"))
    run.record_text("", now())
    run.log.append(Extra(chunk={"citations": [A]}))
    run.log.end(lambda: Done("stop", NO_FIGURES))
    ended = view(exchange, run, AnswerProgress(), RENDERER.with_deadline(60))
    assert ended.patch.finished.count(f'<a class="cite" href="{A}"') == (
        f"{prefix}b[1]".count("[1]") if is_linked else 0
    )


def test_answer_without_pictures_and_sources_has_an_empty_element(
    play_run: PlayRun, template: Template
) -> None:
    """Without pictures and sources the element below the text is empty, also of blanks."""
    run = play_run([Content("a")])
    assert (
        html_below(
            PageWriter(run, 1, template, AnswerProgress(), RENDERER).answer_partial(
                RENDERER.with_deadline(60)
            )
        )
        == ""
    )


def test_present_returns_functions_for_expensive_messages(
    play_run: PlayRun, template: Template
) -> None:
    """Text for open elements is bytes; a finished block, long text and the end are functions.

    A thread that serves many readers makes the bytes itself, so they must be cheap.
    """
    run = play_run(
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


def test_present_of_any_grouping_leads_to_the_same_page(
    play_run: PlayRun, template: Template
) -> None:
    """For every grouping of the events the page has the same text and blocks at the end."""
    text = "".join(f"Line {n} &c.\n\n```c\nint x{n};\n```\n" for n in range(40))
    run = play_run([Content(text[start : start + 7]) for start in range(0, len(text), 7)])
    events = [event for event in run.log.read(0) if not is_terminal(event[1])]
    pages = []
    for size in (1, 3, 70, len(events)):
        writer = PageWriter(run, 0, template, AnswerProgress(), RENDERER)
        groups = [events[start : start + size] for start in range(0, len(events), size)]
        received = "".join(message(writer, group) for group in groups)
        pages.append((re.findall(r"x\d+", text_in(received))[-1], received.count("<pre")))
    assert pages == [("x39", 40)] * 4
