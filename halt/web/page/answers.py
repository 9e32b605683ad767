"""What an answer looks like on the page, in every state, and how it changes while it is written.

`view` gathers what the template `answer.html` shows. `PageWriter` turns a run's events into
messages of `<hx-partial>` elements: each appends what is new and nothing is sent twice; the last
one replaces the whole answer. Needs no request: streams outlive theirs.
"""

from __future__ import annotations

import html
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

from jinja2 import Template
from markupsafe import Markup

from halt.chat.figures import figures, unwatched
from halt.chat.progress import Lengths
from halt.clock import now
from halt.core.events import (
    Cancelled,
    Content,
    Done,
    Event,
    Failed,
    Reasoning,
    ReasoningEnd,
    Terminal,
    ToolCallDelta,
    is_terminal,
    size_of,
    sse_html,
    text_of,
)
from halt.core.finish_reasons import CUT_OFF, EMPTY, broken_off, is_good
from halt.core.generation import Recording
from halt.core.steps import BELOW, Fold, FoldPatch
from halt.rendering import data_urls
from halt.rendering.markdown import BlockStream, Patch, Step
from halt.rendering.open_text import OpenText, breakable, normal
from halt.rendering.protocol import Drawn
from halt.rendering.renderer import Ready, Renderer, Rendering
from halt.store.conversation import Exchange, Versions, state_of
from halt.store.writer import Saving
from halt.web.sink import Awaited, Made

T = TypeVar("T")

_SAVED = Saving()

#: Errors of ours that say "so far and no further": what came before is an answer, cut short.
LIMITS = frozenset({"run_too_long", "answer_too_long"})


@dataclass(frozen=True)
class BelowView:
    """What `parts.html` shows below the text: lines with an address, which may be empty."""

    pictures: tuple[tuple[str, str], ...] = ()
    sources: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class AnswerView:
    """Everything that `answer.html` shows of an answer."""

    id: str
    state: str  # running, done, stopped, withdrawn, interrupted, error
    patch: Patch  # what there is: finished blocks and the open tail
    source: str = ""
    after: int = 0  # the event up to which `patch` shows the answer
    age: float = 0.0  # seconds since the run began
    silent: float = 0.0  # seconds since the event `after`, or since the run began
    asked: str = ""  # the model that was chosen, "" for the default one
    model: str = ""  # the model that answers
    progress: int | None = None  # percent, roughly; None: nothing is known of it
    note: str = ""
    retryable: bool = False
    whole: bool = True  # or it is not over; messages that wait go out behind a whole one alone
    broken: bool = False  # it is not whole: it can be gone on with, and thrown away
    figures: tuple[str, ...] = ()
    folds: tuple[FoldView, ...] = ()
    earlier: tuple[FoldView, ...] = ()  # folds of a part from which this one goes on
    below: BelowView = BelowView()
    earlier_below: BelowView = BelowView()


@dataclass(frozen=True)
class ExchangeView:
    """Everything that `exchange.html` shows: a prompt and its answer, or several side by side."""

    prompt: Markup
    answers: tuple[AnswerView, ...]  # the first is the one that the conversation goes on with
    settled: bool = True  # the others are put away
    again: bool = False  # there is an earlier answer to come back to
    prompt_id: int = 0
    prompts: Versions = field(default_factory=Versions)  # what it was edited from and to
    versions: Versions = field(default_factory=Versions)  # of the answer
    answer_ids: tuple[int, ...] = ()  # of the answer and its rivals

    @property
    def withdrawn(self) -> bool:
        """It was stopped before any of the answer was shown."""
        return all(each.state == "withdrawn" for each in self.answers)


@dataclass(frozen=True)
class FoldView:
    """Everything that `parts.html` shows of a thought or a tool call."""

    key: str  # tells it from the others of its answer
    kind: str  # thought, tool
    state: str  # running, done, failed, called
    label: str
    took: str  # how long, where that is known
    age: float  # seconds since it began
    text: Markup
    result: Markup


def _took(milliseconds: float | None) -> str:
    if milliseconds is None:
        return ""
    if milliseconds < 995:
        return f"{milliseconds:.0f} ms"
    return (
        f"{milliseconds / 1000:.1f} s" if milliseconds < 9_950 else f"{milliseconds / 1000:.0f} s"
    )


def _fold_view(fold: Fold, key: str = "") -> FoldView:
    took = _took(fold.ms)
    name = fold.name or "a tool"
    if fold.kind == "thought":
        thought = f"Thought for {took}" if took else "Thought"
        label = "Thinking…" if fold.state == "running" else thought
        took = ""
    elif fold.state == "running":
        label = f"Calling {name}…"
    else:
        label = f"{name} failed" if fold.state == "failed" else f"Called {name}"
    age = now() - fold.began
    key = key or str(fold.number)
    text = _shown_text(fold.text)
    if fold.state == "running":  # it may grow
        text = Markup(OpenText().draw(html.escape(fold.text)))  # noqa: S704 - escaped
    result = _shown_text(fold.result)
    return FoldView(key, fold.kind, fold.state, label, took, age, text, result)


def _shown_text(text: str) -> Markup:
    """Text as it is, however long its words are."""
    return Markup(breakable(html.escape(normal(text), quote=False)))  # noqa: S704 - escaped


def _fold_views(folds: Sequence[Fold]) -> tuple[FoldView, ...]:
    """The folds of all parts of an answer; each part numbers its own."""
    parts, last = 0, 0
    out = []
    for fold in folds:
        if fold.kind in BELOW:
            continue
        parts += fold.number <= last
        last = fold.number
        out.append(_fold_view(fold, f"{parts}-{fold.number}" if parts else str(fold.number)))
    return tuple(out)


def _below(folds: Sequence[Fold]) -> BelowView:
    """The pictures and sources of all parts of an answer."""
    pictures: list[tuple[str, str]] = []
    sources: dict[str, str] = {}
    for fold in folds:
        if fold.kind == "picture":
            pictures.append((fold.text, "" if fold.result.startswith("data:") else fold.result))
        elif fold.kind == "sources":
            for line in fold.text.split("\n"):
                url, _, title = line.partition(" ")
                sources[url] = sources.get(url) or title
    return BelowView(tuple(pictures), tuple((title or url, url) for url, title in sources.items()))


def _whole(html: str) -> Patch:
    return Patch(finished=html, fresh=True, tail="", form="text")


def _ended_view(exchange: Exchange, ended: Terminal, rendering: Rendering) -> AnswerView:
    best = exchange.best()  # a failed attempt hides nothing that was there before
    shown = AnswerView(
        id=exchange.stream_id,
        state="done",
        patch=_whole(rendering.whole(best.answer)),
        source=data_urls.shown(best.answer),
        asked=exchange.asked,
        model=exchange.model,
        figures=figures(ended, exchange.model, exchange.usage),
        folds=_fold_views(best.folds),
        whole=_is_whole(ended),
        below=_below(best.folds),
        broken=bool(exchange.answer) and not _is_whole(ended),
    )
    if isinstance(ended, Failed):
        error = ended.error
        if error.code == "interrupted":
            note = "Interrupted: the server was restarted"
            return replace(shown, state="interrupted", note=note)
        if error.code in LIMITS and exchange.answer:
            return replace(shown, state="stopped", note=f"Stopped at a limit. {error.message}")
        return replace(shown, state="error", note=error.message, retryable=error.retryable)
    if isinstance(ended, Cancelled):
        note = "Stopped by you" if ended.reason == "stop" else unwatched(ended)
        return replace(shown, state=state_of(ended, exchange.answer, exchange.folds), note=note)
    reason = ended.finish_reason
    if state_of(ended, exchange.answer, exchange.folds) == "error":
        return replace(shown, state="error", note=broken_off(reason) or EMPTY, retryable=True)
    return replace(shown, note=CUT_OFF.get(reason or "", ""))


def _is_whole(ended: Terminal) -> bool:
    return isinstance(ended, Done) and is_good(ended.finish_reason)


def exchange_view(
    exchange: Exchange,
    run_of: Callable[[str], Recording | None],
    lengths: Lengths,
    rendering: Rendering,
    *,
    last: bool,
) -> ExchangeView:
    """A prompt and its answers as they are now; `last`: the conversation ends with it."""
    shown = [
        view(each, run_of(each.stream_id) if each.ended is None else None, lengths, rendering)
        for each in exchange.candidates
    ]
    if exchange.rivals and not exchange.picked and not last:
        first = exchange.candidates.index(exchange.told())
        shown.insert(0, shown.pop(first))
    return ExchangeView(
        _shown_text(exchange.prompt),
        tuple(shown),
        settled=exchange.picked or not last,
        again=exchange.previous is not None,
        prompt_id=exchange.prompt_id,
        prompts=exchange.prompts,
        versions=exchange.versions,
        answer_ids=tuple(each.answer_id for each in exchange.candidates),
    )


def view(
    exchange: Exchange, run: Recording | None, lengths: Lengths, rendering: Rendering
) -> AnswerView:
    """An answer as it is now: from its run as long as that is known, else as it was saved."""
    if exchange.ended is not None:
        return _ended_view(exchange, exchange.ended, rendering)
    if run is None:
        return AnswerView(
            id=exchange.stream_id,
            state="error",
            patch=_whole(rendering.whole(exchange.answer)),
            asked=exchange.asked,
            model=exchange.model,
            note="This answer was lost.",
            retryable=True,
            broken=bool(exchange.answer),
        )
    ended = run.log.ended
    after, text = run.answer()
    if ended is not None:
        folds = (*exchange.folds, *run.folds())
        saved = replace(exchange, answer=text, model=run.model, ended=ended, folds=folds)
        return _ended_view(saved, ended, rendering)
    patch = rendering.patch(BlockStream().feed(text))
    folds = run.folding(after).folds()
    return AnswerView(
        id=run.id,
        state="running",
        patch=replace(patch, tail=OpenText().draw(patch.tail)),
        after=after,
        age=now() - run.started_at,
        silent=now() - (run.came_at(after) if after else run.started_at),
        asked=exchange.asked,
        model=run.model,
        progress=lengths.percent(run.id, run.chunks, run.expected),
        folds=_fold_views(folds),
        earlier=_fold_views(exchange.folds),
        below=_below(folds),
        earlier_below=_below(exchange.folds),
    )


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


class PageWriter:
    """A run's events as messages to the page. Each reader has one; the log holds no HTML."""

    def __init__(
        self,
        run: Recording,
        after: int,
        template: Template,
        lengths: Lengths,
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
        self._lengths = lengths
        self._renderer = renderer
        #: Kinds of blocks that are not waited for any more: one has taken too long. See `Renderer`.
        self._given_up: frozenset[bool] = frozenset()
        self._progress: int | None = None
        self._template = template
        self._blocks = BlockStream()
        self._tail = OpenText()
        self._tail.draw(self._blocks.feed(run.text(after)).tail)
        self._folds = run.folding(after)
        self._folded_texts: defaultdict[int, OpenText] = defaultdict(OpenText)  # by fold number
        for fold in self._folds.folds():
            self._folded_texts[fold.number].draw(html.escape(fold.text))
        environment = template.environment
        self._draw: Any = environment.get_template("parts.html").module
        self._draw_saving = environment.get_template("saving.html")
        self._append_to_tail = _begin(f"tail-{run.id}", "beforeend")

    def present(self, events: list[tuple[int, Event]]) -> Made:
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
            self._run.fold(self._folds, number, event)
        step = self._blocks.feed("".join([text_of(event) for _, event in events]))
        saving = self._saving()
        new_saving = saving is not self._said and saving != self._said
        if step.blocks or new_saving or self._folds.has_changed:
            return partial(self._short, seq, step)
        folded = self._folded(self._folds.patch()) if self._folds.has_grown else ""
        return sse_html(seq, folded + self._open(step) + self._moved())

    def _long(self, events: list[tuple[int, Event]]) -> bytes | Awaited:
        seq, last = events[-1]
        if is_terminal(last):
            _, text = self._run.answer()
            return _when_drawn(self._renderer.whole(text), partial(self._ended, seq, text))
        thought = False
        for number, event in events:
            self._run.fold(self._folds, number, event)
            thought = thought or isinstance(event, ReasoningEnd)
        if not thought:
            text = "".join([text_of(event) for _, event in events])
            return self._short(seq, self._blocks.feed(text))
        self._blocks = BlockStream()
        step = self._blocks.feed(self._run.text(seq))
        return self._drawing(step, partial(self._anew, seq, step))

    def _short(self, seq: int, step: Step) -> bytes | Awaited:
        return self._drawing(step, partial(self._more, seq, step))

    def _drawing(self, step: Step, make: Callable[[list[Drawn]], bytes]) -> bytes | Awaited:
        """The frame that is made of the step's blocks."""

        def go_on(drawn: list[Drawn]) -> bytes:
            kinds = {b.is_fence for b, d in zip(step.blocks, drawn, strict=True) if d.over}
            self._given_up |= kinds
            return make(drawn)

        return _when_drawn(self._renderer.blocks(step.blocks, self._given_up), go_on)

    def _ended(self, seq: int, text: str, drawn: Drawn) -> bytes:
        return sse_html(seq, self.whole(Ready(text, drawn.html)) + self._saved())

    def _more(self, seq: int, step: Step, drawn: list[Drawn]) -> bytes:
        folded = self._folded(self._folds.patch())
        changes = self._changes(step.patch(each.html for each in drawn))
        return sse_html(seq, folded + changes + self._moved() + self._saved())

    def _anew(self, seq: int, step: Step, drawn: list[Drawn]) -> bytes:
        """The whole text so far, in place of what the page shows of it."""
        folded = self._folded(self._folds.patch())
        patch = step.patch(each.html for each in drawn)
        box = f"done-{self._run.id}"
        done = f'<div id="{box}">{patch.finished}</div>'
        text = _partial(box, "outerHTML", done) + self._open(patch)
        return sse_html(seq, folded + text + self._moved() + self._saved())

    def aside(self) -> bytes:
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

    def whole(self, rendering: Rendering) -> str:
        """The answer as it is now, in place of what the page shows of it."""
        asked = Exchange("", self._run.id, asked=self._run.asked)
        shown = view(asked, self._run, self._lengths, rendering)
        # settle:0: htmx would set the attributes of elements with an ID once more, a moment later,
        # and so close the folds that the reader has open.
        drawn = self._template.render(a=shown)
        return _partial(f"a-{self._run.id}", "outerHTML settle:0", drawn)

    def _folded(self, patch: FoldPatch) -> str:
        stream_id, draw = self._run.id, self._draw
        out = [
            _partial(f"folds-{stream_id}", "beforeend", draw.fold(stream_id, _fold_view(fold)))
            for fold in patch.fresh
            if fold.kind not in BELOW
        ]
        for fold in patch.fresh:  # so that what is added later goes on from there
            self._folded_texts[fold.number].draw(html.escape(fold.text))
        for number, text in patch.added:
            box = f"fold-{stream_id}-{number}-text"
            drawn = self._folded_texts[number].draw(html.escape(text))
            out.append(_partial(box, "beforeend", drawn))
        for shown in _fold_views([replace(each, text="") for each in patch.changed]):
            at = f"fold-{stream_id}-{shown.key}"
            out.append(_partial(f"{at}-summary", "innerHTML", draw.summary(shown)))
            if shown.result:
                out.append(_partial(f"{at}-result", "outerHTML", draw.result(stream_id, shown)))
        if any(fold.kind in BELOW for fold in (*patch.fresh, *patch.changed)):
            below = draw.below(_below(self._folds.folds()))
            out.append(_partial(f"below-{stream_id}", "innerHTML", below))
        return "".join(out)

    def _moved(self) -> str:
        """The progress, where it is another than before."""
        progress = self._lengths.percent(self._run.id, self._run.chunks, self._run.expected)
        if progress == self._progress:
            return ""
        self._progress = progress
        return _partial(f"progress-{self._run.id}", "innerHTML", self._draw.progress(progress))

    def _changes(self, patch: Patch) -> str:
        done = _partial(f"done-{self._run.id}", "beforeend", patch.finished)
        return (done if patch.finished else "") + self._open(patch)

    def _open(self, patch: Patch | Step) -> str:
        """What changes in the open block."""
        if patch.fresh:
            self._tail = OpenText()
            text, box = self._tail.draw(patch.tail), f"tail-{self._run.id}"
            tail = f'<div class="tail {patch.form}" id="{box}">{text}</div>'
            return _partial(box, "outerHTML", tail)
        if not patch.tail:
            return ""
        return self._append_to_tail + self._tail.draw(patch.tail) + _END


def _when_drawn(future: Future[T], make: Callable[[T], bytes]) -> bytes | Awaited:
    """What is made of the future's result: now, if it is there."""
    if future.done():
        return make(future.result())
    return Awaited(future, lambda: make(future.result()))


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


def lost(stream_id: str) -> str:
    """The page follows a stream that is not known (any more): say so, keep the text, ask no more.

    Only the element that follows is replaced, and what is on the screen stays.
    """
    note = (
        '<p class="note" role="status">The server no longer has this answer: it was restarted, '
        "or too much time has passed. What is shown above is all there is.</p>"
    )
    return _partial(f"feed-{html.escape(stream_id)}", "outerHTML", note)
