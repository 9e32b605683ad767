"""What an answer looks like on the page, in every state, and how it changes while it is written.

`view` gathers what the template `answer.html` shows. `PageWriter` turns a run's events into
messages of `<hx-partial>` elements: each appends what is new and nothing is sent twice; the last
one replaces the whole answer. Needs no request: streams outlive theirs.
"""

from __future__ import annotations

import html
from dataclasses import dataclass, replace

from jinja2 import Template

from halt.events import Cancelled, Done, Event, Failed, Terminal, is_terminal, sse_html, text_of
from halt.metrics import now
from halt.rendering import BlockStream, Patch, render
from halt.run import Run
from halt.store import Exchange


@dataclass(frozen=True)
class AnswerView:
    """Everything that `answer.html` shows of an answer."""

    id: str
    state: str  # running, done, stopped, withdrawn, error
    patch: Patch  # what there is: finished blocks and the open tail
    source: str = ""
    after: int = 0  # the event up to which `patch` shows the answer
    age: float = 0.0  # seconds since the run began
    prompt: str = ""
    again: bool = False  # it is to replace an earlier answer
    note: str = ""
    retryable: bool = False
    figures: tuple[str, ...] = ()


def _seconds(milliseconds: float) -> str:
    return (
        f"{milliseconds / 1000:.2f} s" if milliseconds < 10_000 else f"{milliseconds / 1000:.0f} s"
    )


def figures(ended: Terminal, model: str) -> tuple[str, ...]:
    """What one answer took, in words."""
    m = ended.metrics
    out = []
    if m.ttft_ms is not None:
        out.append(f"first token after {_seconds(m.ttft_ms)}")
    if m.tokens_per_second is not None:
        out.append(f"{m.tokens_per_second:.0f} tokens/s")
    if m.tokens:
        count = f"{m.tokens:,} token{'' if m.tokens == 1 else 's'}"
        out.append(f"about {count} (estimated)" if m.tokens_estimated else count)
    out.append(f"{_seconds(m.duration_ms)} in all")
    if isinstance(ended, Done):
        out.append(f"finish reason: {ended.finish_reason or 'none given'}")
    if model:
        out.append(model)
    return tuple(out)


def _whole(text: str) -> Patch:
    return Patch(finished=render(text), fresh=True, tail="", form="text")


def _ended_view(exchange: Exchange, ended: Terminal) -> AnswerView:
    best = exchange.best()  # a failed attempt hides nothing that was there before
    shown = AnswerView(
        id=exchange.stream_id,
        state="done",
        patch=_whole(best.answer),
        source=best.answer,
        prompt=exchange.prompt,
        figures=figures(ended, exchange.model),
    )
    if isinstance(ended, Failed):
        return replace(
            shown, state="error", note=ended.error.message, retryable=ended.error.retryable
        )
    if isinstance(ended, Cancelled):
        note = "Stopped" if ended.reason == "stop" else "Stopped, as nobody was watching"
        return replace(shown, state="stopped" if exchange.answer else "withdrawn", note=note)
    if ended.finish_reason == "length":
        return replace(shown, note="Cut off at the token limit")
    return shown


def view(exchange: Exchange, run: Run | None) -> AnswerView:
    """An answer as it is now: from its run as long as that is known, else as it was saved."""
    if exchange.ended is not None:
        return _ended_view(exchange, exchange.ended)
    if run is None:
        return AnswerView(
            id=exchange.stream_id,
            state="error",
            patch=_whole(exchange.answer),
            prompt=exchange.prompt,
            note="This answer was lost.",
            retryable=True,
        )
    ended = run.log.ended
    after, text = run.answer()
    if ended is not None:
        saved = Exchange(exchange.prompt, run.id, text, run.model, ended)
        return _ended_view(saved, ended)
    return AnswerView(
        id=run.id,
        state="running",
        patch=BlockStream().feed(text),
        after=after,
        age=now() - run.meter.started_at,
        prompt=exchange.prompt,
        again=exchange.previous is not None,
    )


def _partial(target: str, swap: str, content: str) -> str:
    return f'<hx-partial hx-target="#{target}" hx-swap="{swap}">{content}</hx-partial>'


class PageWriter:
    """A run's events as messages to the page. Each reader has one; the log holds no HTML."""

    def __init__(self, run: Run, after: int, template: Template) -> None:
        self._run = run
        self._template = template
        self._blocks = BlockStream()
        self._blocks.feed(run.text(after), render=False)

    def present(self, events: list[tuple[int, Event]]) -> bytes:
        seq, last = events[-1]
        if is_terminal(last):
            return sse_html(seq, self.whole())
        patch = self._blocks.feed("".join(text_of(e) for _, e in events))
        return sse_html(seq, self._changes(patch))

    def whole(self) -> str:
        """The answer as it is now, in place of what the page shows of it."""
        shown = view(Exchange("", self._run.id), self._run)
        return _partial(f"a-{self._run.id}", "outerHTML", self._template.render(a=shown))

    def _changes(self, patch: Patch) -> str:
        stream_id = self._run.id
        out = []
        if patch.finished:
            out.append(_partial(f"done-{stream_id}", "beforeend", patch.finished))
        if patch.fresh:
            tail = f'<div class="tail {patch.form}" id="tail-{stream_id}">{patch.tail}</div>'
            out.append(_partial(f"tail-{stream_id}", "outerHTML", tail))
        elif patch.tail:
            out.append(_partial(f"tail-{stream_id}", "beforeend", patch.tail))
        return "".join(out)


def lost(stream_id: str) -> str:
    """The page follows a stream that is not known (any more): say so, keep the text, ask no more.

    Only the element that follows is replaced, and what is on the screen stays.
    """
    note = (
        '<p class="note" role="status">The server no longer has this answer: it was restarted, '
        "or too much time has passed. What is shown above is all there is.</p>"
    )
    return _partial(f"feed-{html.escape(stream_id)}", "outerHTML", note)
