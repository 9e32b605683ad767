"""Turns a running answer's events into messages of `<hx-partial>` elements for the page.

Each message appends new content, and no content is sent twice; the last message replaces the whole
answer. No request context is needed, because a stream outlives it.
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
    approximate_size,
    is_terminal,
    sse_html,
    text_of,
)
from halt.core.generation import Generation
from halt.core.steps import KINDS_BELOW, StepPatch
from halt.rendering.open_text import OpenText
from halt.rendering.protocol import Rendered
from halt.rendering.renderer import PageRenderer, Prerendered, Renderer
from halt.rendering.streaming.blocks import BlockStep, Patch
from halt.rendering.streaming.stream import BlockStream
from halt.store.models import Exchange
from halt.store.writer import Saving
from halt.web.page.end_notes import LOST
from halt.web.page.icons import icon
from halt.web.page.sources import below_html, below_view
from halt.web.page.tail import tail_box, tail_selector
from halt.web.page.views import step_view, step_views, view
from halt.web.sink import FrameResult, PendingFrame

T = TypeVar("T")

_SAVED = Saving()

#: Maximum of characters, and of events, of a message that `PageWriter.present` makes itself.
SHORT = 2_000
FEW = 64

#: Events that usually only add text to an open block or step.
_TEXTS = (Content, Reasoning, ToolCallDelta)

_END = "</hx-partial>"


def _begin(target: str, swap: str) -> str:
    return f'<hx-partial hx-target="{target}" hx-swap="{swap}">'


def _partial(target: str, swap: str, content: str) -> str:
    return f"{_begin(f'#{target}', swap)}{content}{_END}"


def answer_replacement(stream_id: str, rendered: str) -> str:
    """A message part that replaces the whole answer on the page."""
    # settle:0, because htmx would set the attributes of elements with an ID again a moment later,
    # and so close the steps that the user has opened.
    return _partial(f"a-{stream_id}", "outerHTML settle:0", rendered)


class PageWriter:
    """Makes the messages of one reader's page stream. The log contains no HTML."""

    def __init__(
        self,
        run: Generation,
        after: int,
        template: Template,
        answer_progress: AnswerProgress,
        renderer: Renderer,
        saving: Callable[[], Saving] = Saving,
    ) -> None:
        """`after`: the number of the last event that the page has. `saving` returns its state.

        It takes time in proportion to the text up to `after`.
        """
        self._run = run
        self._shown = after
        self._saving = saving
        self._shown_saving = _SAVED  # the state of saving that the page shows
        self._answer_progress = answer_progress
        self._renderer = renderer
        #: Kinds of blocks whose rendering is not awaited, after one timed out. See `Renderer`.
        self._skipped_kinds: frozenset[bool] = frozenset()
        self._progress: int | None = None
        self._template = template
        self._blocks = BlockStream()
        self._tail = OpenText()
        block_step = self._blocks.feed(run.text(after))
        self._tail.feed(block_step.tail)
        self._append_to_tail = _begin(tail_selector(run.id, block_step), "beforeend")
        self._steps = steps.stream_of(run, after)
        self._step_texts: defaultdict[int, OpenText] = defaultdict(OpenText)  # by step number
        for step in self._steps.steps():
            self._step_texts[step.number].feed(html.escape(step.text))
        environment = template.environment
        self._draw: Any = environment.get_template("parts.html").module
        self._draw_saving = environment.get_template("saving.html")

    def present(self, events: list[tuple[int, Event]]) -> FrameResult:
        """Return the events as one message, or a function without arguments that makes it.

        `present` takes tens of microseconds, for any length of the answer, so a thread that serves
        many readers can call it. The function may take many milliseconds: it renders short Markdown
        and templates. For longer text it does not wait and returns a PendingFrame. It must be
        called once, in any thread, before the next call of `present`. Every message must be sent.
        """
        self._shown = seq = events[-1][0]
        if not _is_short(events):
            return partial(self._long_message, events)
        for number, event in events:
            steps.feed_event(self._steps, self._run, number, event)
        step = self._blocks.feed("".join([text_of(event) for _, event in events]))
        saving = self._saving()
        new_saving = saving is not self._shown_saving and saving != self._shown_saving
        if step.blocks or new_saving or self._steps.has_changed:
            return partial(self._block_message, seq, step)
        steps_html = self._step_partials(self._steps.patch()) if self._steps.has_grown else ""
        return sse_html(seq, steps_html + self._tail_partial(step) + self._progress_partial())

    def _long_message(self, events: list[tuple[int, Event]]) -> bytes | PendingFrame:
        seq, last = events[-1]
        if is_terminal(last):
            _, text = self._run.answer()

            def ended(rendered: Rendered) -> bytes:
                return sse_html(
                    seq,
                    self.answer_partial(Prerendered(text, rendered.html)) + self._saving_partial(),
                )

            return _when_rendered(self._renderer.submit_text(text), ended)
        thought = False
        for number, event in events:
            steps.feed_event(self._steps, self._run, number, event)
            thought = thought or isinstance(event, ReasoningEnd)
        if not thought:
            text = "".join([text_of(event) for _, event in events])
            return self._block_message(seq, self._blocks.feed(text))
        self._blocks = BlockStream()
        return self._block_message(seq, self._blocks.feed(self._run.text(seq)), anew=True)

    def _block_message(
        self, seq: int, step: BlockStep, *, anew: bool = False
    ) -> bytes | PendingFrame:
        """The message for the blocks of a step. `anew`: they are the whole text so far."""

        def message(rendered: list[Rendered]) -> bytes:
            kinds = {b.is_fence for b, d in zip(step.blocks, rendered, strict=True) if d.timed_out}
            self._skipped_kinds |= kinds
            steps_html = self._step_partials(self._steps.patch())
            patch = step.patch(block.html for block in rendered)
            box, done = f"done-{self._run.id}", ""
            if anew:
                done = _partial(box, "outerHTML", f'<div id="{box}">{patch.finished}</div>')
            else:
                if patch.parts:
                    last = f"{box} > :last-child{' tbody' if patch.are_rows else ''}"
                    done = _partial(last, "beforeend", patch.parts)
                if patch.finished:
                    done += _partial(box, "beforeend", patch.finished)
            text = done + self._tail_partial(patch)
            return sse_html(
                seq, steps_html + text + self._progress_partial() + self._saving_partial()
            )

        return _when_rendered(
            self._renderer.submit_blocks(step.blocks, self._skipped_kinds), message
        )

    def idle_message(self) -> bytes:
        """A message to send while there are no events, b"" for none."""
        saving_html = self._saving_partial()
        return sse_html(self._shown, saving_html) if saving_html else b""

    def _saving_partial(self) -> str:
        """The state of saving, "" where the page already shows it."""
        saving = self._saving()
        if saving == self._shown_saving:
            return ""
        self._shown_saving = saving
        return _partial("saving", "outerHTML", self._draw_saving.render(saving=saving))

    def answer_partial(self, rendering: PageRenderer) -> str:
        """A message part that replaces the answer on the page by its current state."""
        exchange = Exchange("", self._run.id, requested_model=self._run.requested_model)
        answer = view(exchange, self._run, self._answer_progress, rendering)
        return answer_replacement(self._run.id, self._template.render(a=answer))

    def _step_partials(self, patch: StepPatch) -> str:
        stream_id, draw = self._run.id, self._draw
        partials = [
            _partial(f"steps-{stream_id}", "beforeend", draw.step(stream_id, step_view(step)))
            for step in patch.fresh
            if step.kind not in KINDS_BELOW
        ]
        for step in patch.fresh:  # later text is appended to it
            self._step_texts[step.number].feed(html.escape(step.text))
        for number, text in patch.added:
            box = f"step-{stream_id}-{number}-text"
            rendered = self._step_texts[number].feed(html.escape(text))
            partials.append(_partial(box, "beforeend", rendered))
        for changed in step_views([replace(step, text="") for step in patch.changed]):
            at = f"step-{stream_id}-{changed.key}"
            partials.append(_partial(f"{at}-summary", "innerHTML", draw.summary(changed)))
            if changed.result:
                partials.append(
                    _partial(f"{at}-result", "outerHTML", draw.result(stream_id, changed))
                )
        if any(step.kind in KINDS_BELOW for step in (*patch.fresh, *patch.changed)):
            below = below_html(below_view(self._steps.steps()))
            partials.append(_partial(f"below-{stream_id}", "innerHTML", below))
        return "".join(partials)

    def _progress_partial(self) -> str:
        """The progress, "" where the page already shows it."""
        progress = self._answer_progress.percent(
            self._run.key, self._run.chunks, self._run.expected_tokens
        )
        if progress == self._progress:
            return ""
        self._progress = progress
        return _partial(f"progress-{self._run.id}", "innerHTML", self._draw.progress(progress))

    def _tail_partial(self, patch: Patch | BlockStep) -> str:
        """The change of the open block."""
        if patch.replaces_tail:
            self._tail = OpenText()
            self._append_to_tail = _begin(tail_selector(self._run.id, patch), "beforeend")
            tail = tail_box(self._run.id, patch, self._tail.feed(patch.tail))
            return _partial(f"tail-{self._run.id}", "outerHTML", tail)
        if not patch.tail:
            return ""
        return self._append_to_tail + self._tail.feed(patch.tail) + _END


def _when_rendered(future: Future[T], make: Callable[[T], bytes]) -> bytes | PendingFrame:
    """`make` of the future's result: called now if it is done, else a PendingFrame."""
    if future.done():
        return make(future.result())
    return PendingFrame(future, lambda: make(future.result()))


def _is_short(events: list[tuple[int, Event]]) -> bool:
    """Whether these events only add a short text to open blocks and steps."""
    if len(events) > FEW:
        return False
    size = 0
    for _, event in events:
        if not isinstance(event, _TEXTS):
            return False
        size += approximate_size(event)
    return size <= SHORT


def lost_message(stream_id: str) -> str:
    """A message for a stream that is unknown or no longer kept. The page then does not reconnect.

    It replaces only the element that follows the stream; the text on the page stays.
    """
    note = (
        f'<div class="note lost" role="status">{icon("info")}<div class="note-text">'
        f'<p class="note-title">{LOST.title}</p>'
        '<p class="note-more">Reload the page, then write it again.</p></div></div>'
    )
    return _partial(f"feed-{html.escape(stream_id)}", "outerHTML", note)
