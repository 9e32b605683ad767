"""Page view models: what `answer.html`, `exchange.html` and `parts.html` show, in every state."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from markupsafe import Markup

from halt.chat.figures import answer_figures, unwatched_text
from halt.chat.progress import AnswerProgress
from halt.clock import now
from halt.core import steps
from halt.core.events import Cancelled, Done, Failed, Terminal
from halt.core.finish_reasons import CUT_OFF, EMPTY, broken_off, is_good
from halt.core.generation import Generation
from halt.core.steps import BELOW, Step
from halt.rendering import data_urls
from halt.rendering.blocks import BlockStream, Patch
from halt.rendering.open_text import OpenText, breakable, normalized
from halt.rendering.renderer import PageRenderer
from halt.store.models import Exchange, Versions, state_of

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


def fold_view(fold: Step, key: str = "") -> FoldView:
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
        text = Markup(OpenText().feed(html.escape(fold.text)))  # noqa: S704 - escaped
    result = _shown_text(fold.result)
    return FoldView(key, fold.kind, fold.state, label, took, age, text, result)


def _shown_text(text: str) -> Markup:
    """Text as it is, however long its words are."""
    return Markup(breakable(html.escape(normalized(text), quote=False)))  # noqa: S704 - escaped


def fold_views(folds: Sequence[Step]) -> tuple[FoldView, ...]:
    """The folds of all parts of an answer; each part numbers its own."""
    parts, last = 0, 0
    out = []
    for fold in folds:
        if fold.kind in BELOW:
            continue
        parts += fold.number <= last
        last = fold.number
        out.append(fold_view(fold, f"{parts}-{fold.number}" if parts else str(fold.number)))
    return tuple(out)


def below_view(folds: Sequence[Step]) -> BelowView:
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
    return Patch(finished=html, replaces_tail=True, tail="", form="text")


def _ended_view(exchange: Exchange, ended: Terminal, rendering: PageRenderer) -> AnswerView:
    best = exchange.shown_version()  # a failed attempt hides nothing that was there before
    shown = AnswerView(
        id=exchange.stream_id,
        state="done",
        patch=_whole(rendering.text_html(best.answer)),
        source=data_urls.replace(best.answer),
        asked=exchange.requested_model,
        model=exchange.model,
        figures=answer_figures(ended, exchange.model, exchange.usage),
        folds=fold_views(best.steps),
        whole=_is_whole(ended),
        below=below_view(best.steps),
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
        note = "Stopped by you" if ended.reason == "stop" else unwatched_text(ended)
        return replace(shown, state=state_of(ended, exchange.answer, exchange.steps), note=note)
    reason = ended.finish_reason
    if state_of(ended, exchange.answer, exchange.steps) == "error":
        return replace(shown, state="error", note=broken_off(reason) or EMPTY, retryable=True)
    return replace(shown, note=CUT_OFF.get(reason or "", ""))


def _is_whole(ended: Terminal) -> bool:
    return isinstance(ended, Done) and is_good(ended.finish_reason)


def exchange_view(
    exchange: Exchange,
    find_generation: Callable[[str], Generation | None],
    answer_progress: AnswerProgress,
    rendering: PageRenderer,
    *,
    last: bool,
) -> ExchangeView:
    """A prompt and its answers as they are now; `last`: the conversation ends with it."""
    shown = [
        view(
            each,
            find_generation(each.stream_id) if each.ended is None else None,
            answer_progress,
            rendering,
        )
        for each in exchange.candidates
    ]
    if exchange.alternatives and not exchange.selected and not last:
        first = exchange.candidates.index(exchange.answer_for_model())
        shown.insert(0, shown.pop(first))
    return ExchangeView(
        _shown_text(exchange.prompt),
        tuple(shown),
        settled=exchange.selected or not last,
        again=exchange.previous is not None,
        prompt_id=exchange.prompt_id,
        prompts=exchange.prompts,
        versions=exchange.versions,
        answer_ids=tuple(each.answer_id for each in exchange.candidates),
    )


def view(
    exchange: Exchange,
    run: Generation | None,
    answer_progress: AnswerProgress,
    rendering: PageRenderer,
) -> AnswerView:
    """An answer as it is now: from its run as long as that is known, else as it was saved."""
    if exchange.ended is not None:
        return _ended_view(exchange, exchange.ended, rendering)
    if run is None:
        return AnswerView(
            id=exchange.stream_id,
            state="error",
            patch=_whole(rendering.text_html(exchange.answer)),
            asked=exchange.requested_model,
            model=exchange.model,
            note="This answer was lost.",
            retryable=True,
            broken=bool(exchange.answer),
        )
    ended = run.log.ended
    after, text = run.answer()
    if ended is not None:
        folds = (*exchange.steps, *steps.steps_of(run))
        saved = replace(exchange, answer=text, model=run.model, ended=ended, steps=folds)
        return _ended_view(saved, ended, rendering)
    patch = rendering.patch(BlockStream().feed(text))
    folds = steps.stream_of(run, after).steps()
    return AnswerView(
        id=run.id,
        state="running",
        patch=replace(patch, tail=OpenText().feed(patch.tail)),
        after=after,
        age=now() - run.started_at,
        silent=now() - (run.arrival_time(after) if after else run.started_at),
        asked=exchange.requested_model,
        model=run.model,
        progress=answer_progress.percent(run.id, run.chunks, run.expected_tokens),
        folds=fold_views(folds),
        earlier=fold_views(exchange.steps),
        below=below_view(folds),
        earlier_below=below_view(exchange.steps),
    )
