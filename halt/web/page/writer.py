"""An answer's events as messages of `<hx-partial>` elements to the page, while it is written.

Each message appends what is new and nothing is sent twice; the last one replaces the whole answer.
Needs no request: streams outlive theirs.
"""

from __future__ import annotations

import html
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from jinja2 import Template

from halt.chat.progress import AnswerProgress
from halt.core import steps
from halt.core.events import (
    Content,
    Event,
    Reasoning,
    ReasoningEnd,
    ToolCallDelta,
    is_terminal,
    size_of,
    sse_html,
    text_of,
)
from halt.core.generation import Generation
from halt.core.steps import BELOW, StepPatch
from halt.rendering.blocks import BlockStep, BlockStream, Patch
from halt.rendering.open_text import OpenText
from halt.rendering.protocol import Rendered
from halt.rendering.renderer import PageRenderer, Prerendered, Renderer
from halt.store.models import Exchange
from halt.store.writer import Saving
from halt.web.page.views import below_view, fold_view, fold_views, view
from halt.web.sink import FrameResult, PendingFrame

T = TypeVar("T")

_SAVED = Saving()

#: Characters and events of one message beyond which it is made by a function, see
#: `PageWriter.present`.
SHORT = 2_000
FEW = 64

#: Events that as a rule add text to what is open, and nothing else.
_TEXTS = (Content, Reasoning, ToolCallDelta)

_END = "</hx-partial>"


def _begin(target: str, swap: str) -> str:
    return f'<hx-partial hx-target="#{target}" hx-swap="{swap}">'


def _partial(target: str, swap: str, content: str) -> str:
    return f"{_begin(target, swap)}{content}{_END}"


def in_place_of_answer(stream_id: str, drawn: str) -> str:
    """The whole answer, in place of what the page shows of it."""
    # settle:0: htmx would set the attributes of elements with an ID once more, a moment later,
    # and so close the folds that the reader has open.
    return _partial(f"a-{stream_id}", "outerHTML settle:0", drawn)


class PageWriter:
    """A run's events as messages to the page. Each reader has one; the log holds no HTML."""

    def __init__(
        self,
        run: Generation,
        after: int,
        template: Template,
        answer_progress: AnswerProgress,
        renderer: Renderer,
        saving: Callable[[], Saving] = Saving,
    ) -> None:
        """For a page that has the events up to `after`. `saving` says how saving goes.

        Takes time for the text up to there.
        """
        self._run = run
        self._shown = after
        self._saving = saving
        self._said = _SAVED  # what the page shows of it
        self._answer_progress = answer_progress
        self._renderer = renderer
        #: Kinds of blocks that are not waited for any more: one has taken too long. See `Renderer`.
        self._given_up: frozenset[bool] = frozenset()
        self._progress: int | None = None
        self._template = template
        self._blocks = BlockStream()
        self._tail = OpenText()
        self._tail.feed(self._blocks.feed(run.text(after)).tail)
        self._folds = steps.stream_of(run, after)
        self._folded_texts: defaultdict[int, OpenText] = defaultdict(OpenText)  # by fold number
        for fold in self._folds.steps():
            self._folded_texts[fold.number].feed(html.escape(fold.text))
        environment = template.environment
        self._draw: Any = environment.get_template("parts.html").module
        self._draw_saving = environment.get_template("saving.html")
        self._append_to_tail = _begin(f"tail-{run.id}", "beforeend")

    def present(self, events: list[tuple[int, Event]]) -> FrameResult:
        """The events as one message to the page, or a function without arguments that makes it.

        `present` itself takes tens of microseconds, whatever the page shows already, so that a
        thread that serves many readers can call it. The function may take many milliseconds: it
        renders short Markdown and templates; where more is to be rendered, it waits for nothing
        and returns what is awaited. It is to be called once, in any thread, before `present` is
        called again. Every message has to be sent.
        """
        self._shown = seq = events[-1][0]
        if not _is_short(events):
            return partial(self._long, events)
        for number, event in events:
            steps.feed_event(self._folds, self._run, number, event)
        step = self._blocks.feed("".join([text_of(event) for _, event in events]))
        saving = self._saving()
        new_saving = saving is not self._said and saving != self._said
        if step.blocks or new_saving or self._folds.has_changed:
            return partial(self._drawing, seq, step)
        folded = self._folded(self._folds.patch()) if self._folds.has_grown else ""
        return sse_html(seq, folded + self._open(step) + self._moved())

    def _long(self, events: list[tuple[int, Event]]) -> bytes | PendingFrame:
        seq, last = events[-1]
        if is_terminal(last):
            _, text = self._run.answer()

            def ended(drawn: Rendered) -> bytes:
                return sse_html(seq, self.whole(Prerendered(text, drawn.html)) + self._saved())

            return _when_drawn(self._renderer.submit_text(text), ended)
        thought = False
        for number, event in events:
            steps.feed_event(self._folds, self._run, number, event)
            thought = thought or isinstance(event, ReasoningEnd)
        if not thought:
            text = "".join([text_of(event) for _, event in events])
            return self._drawing(seq, self._blocks.feed(text))
        self._blocks = BlockStream()
        return self._drawing(seq, self._blocks.feed(self._run.text(seq)), anew=True)

    def _drawing(self, seq: int, step: BlockStep, *, anew: bool = False) -> bytes | PendingFrame:
        """The message that is made of the step's blocks; `anew`: they are the whole text so far."""

        def drawn_message(drawn: list[Rendered]) -> bytes:
            kinds = {b.is_fence for b, d in zip(step.blocks, drawn, strict=True) if d.timed_out}
            self._given_up |= kinds
            folded = self._folded(self._folds.patch())
            patch = step.patch(each.html for each in drawn)
            box, done = f"done-{self._run.id}", ""
            if anew:
                done = _partial(box, "outerHTML", f'<div id="{box}">{patch.finished}</div>')
            elif patch.finished:
                done = _partial(box, "beforeend", patch.finished)
            text = done + self._open(patch)
            return sse_html(seq, folded + text + self._moved() + self._saved())

        return _when_drawn(self._renderer.submit_blocks(step.blocks, self._given_up), drawn_message)

    def idle_message(self) -> bytes:
        """What there is to be said while the answer is silent."""
        said = self._saved()
        return sse_html(self._shown, said) if said else b""

    def _saved(self) -> str:
        """How saving goes, where that is another than before."""
        saving = self._saving()
        if saving == self._said:
            return ""
        self._said = saving
        return _partial("saving", "outerHTML", self._draw_saving.render(saving=saving))

    def whole(self, rendering: PageRenderer) -> str:
        """The answer as it is now, in place of what the page shows of it."""
        asked = Exchange("", self._run.id, requested_model=self._run.requested_model)
        shown = view(asked, self._run, self._answer_progress, rendering)
        return in_place_of_answer(self._run.id, self._template.render(a=shown))

    def _folded(self, patch: StepPatch) -> str:
        stream_id, draw = self._run.id, self._draw
        out = [
            _partial(f"folds-{stream_id}", "beforeend", draw.fold(stream_id, fold_view(fold)))
            for fold in patch.fresh
            if fold.kind not in BELOW
        ]
        for fold in patch.fresh:  # so that what is added later goes on from there
            self._folded_texts[fold.number].feed(html.escape(fold.text))
        for number, text in patch.added:
            box = f"fold-{stream_id}-{number}-text"
            drawn = self._folded_texts[number].feed(html.escape(text))
            out.append(_partial(box, "beforeend", drawn))
        for shown in fold_views([replace(each, text="") for each in patch.changed]):
            at = f"fold-{stream_id}-{shown.key}"
            out.append(_partial(f"{at}-summary", "innerHTML", draw.summary(shown)))
            if shown.result:
                out.append(_partial(f"{at}-result", "outerHTML", draw.result(stream_id, shown)))
        if any(fold.kind in BELOW for fold in (*patch.fresh, *patch.changed)):
            below = draw.below(below_view(self._folds.steps()))
            out.append(_partial(f"below-{stream_id}", "innerHTML", below))
        return "".join(out)

    def _moved(self) -> str:
        """The progress, where it is another than before."""
        progress = self._answer_progress.percent(
            self._run.id, self._run.chunks, self._run.expected_tokens
        )
        if progress == self._progress:
            return ""
        self._progress = progress
        return _partial(f"progress-{self._run.id}", "innerHTML", self._draw.progress(progress))

    def _open(self, patch: Patch | BlockStep) -> str:
        """What changes in the open block."""
        if patch.replaces_tail:
            self._tail = OpenText()
            text, box = self._tail.feed(patch.tail), f"tail-{self._run.id}"
            tail = f'<div class="tail {patch.form}" id="{box}">{text}</div>'
            return _partial(box, "outerHTML", tail)
        if not patch.tail:
            return ""
        return self._append_to_tail + self._tail.feed(patch.tail) + _END


def _when_drawn(future: Future[T], make: Callable[[T], bytes]) -> bytes | PendingFrame:
    """What is made of the future's result: now, if it is there."""
    if future.done():
        return make(future.result())
    return PendingFrame(future, lambda: make(future.result()))


def _is_short(events: list[tuple[int, Event]]) -> bool:
    """Whether these events are a little text for what is open."""
    if len(events) > FEW:
        return False
    size = 0
    for _, event in events:
        if not isinstance(event, _TEXTS):
            return False
        size += size_of(event)
    return size <= SHORT


def lost_message(stream_id: str) -> str:
    """The page follows a stream that is not known (any more): say so, keep the text, ask no more.

    Only the element that follows is replaced, and what is on the screen stays.
    """
    note = (
        '<p class="note" role="status">The server no longer has this answer: it was restarted, '
        "or too much time has passed. What is shown above is all there is.</p>"
    )
    return _partial(f"feed-{html.escape(stream_id)}", "outerHTML", note)
