"""View models of the page: the data that `answer.html`, `exchange.html` and `parts.html` render."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import msgspec
from markupsafe import Markup

from halt.chat.answer_pictures import is_unkept
from halt.chat.figures import Figures, counted, duration_text, page_figures
from halt.chat.progress import AnswerProgress
from halt.clock import now
from halt.core import steps
from halt.core.events import Done, Failed, Terminal
from halt.core.finish_reasons import is_good
from halt.core.generation import Generation
from halt.core.receipts import Receipt
from halt.core.steps import KINDS_BELOW, Step
from halt.rendering import data_urls
from halt.rendering.direction import has_right_to_left
from halt.rendering.grammar.footnotes import with_notes_of
from halt.rendering.open_text import OpenText, breakable, normalized
from halt.rendering.renderer import PageRenderer
from halt.rendering.streaming.blocks import Patch
from halt.rendering.streaming.stream import BlockStream
from halt.store.models import Exchange, Versions, state_of
from halt.web.page.answer_pictures import height, with_pictures
from halt.web.page.end_notes import LOST, NoteView, empty_note, end_note
from halt.web.page.file_views import FILES_HEIGHT, FileView, file_view
from halt.web.page.sources import BelowView, below_view, with_links
from halt.web.page.tail import tail_box

HEIGHT_CHARS_MAX = 20_000  # characters of a text from which its height is estimated
LONG = 50_000  # characters of an answer's HTML
ROWS_MAX = 18  # rows of a prompt, of 80 characters, beyond which 12 are shown


@dataclass(frozen=True)
class AnswerView:
    """The data of `answer.html`: an answer in any state."""

    id: str
    state: str  # running, done, stopped, withdrawn, interrupted, error
    patch: Patch  # the HTML so far: finished blocks and the open tail
    source: str = ""  # the answer's Markdown, to copy
    after: int = 0  # number of the last event that `patch` includes
    silence: float = 0.0  # seconds since the event `after`, or since the run began
    requested_model: str = ""  # "" for the default model
    model: str = ""  # the model that responds
    progress: int | None = None  # percent, estimated; None: unknown
    note: NoteView | None = None
    is_complete: bool = True  # or running; queued messages are sent after complete answers only
    has_partial_text: bool = False  # not complete, with text: it can be continued
    is_edited: bool = False  # the user wrote this version
    figures: Figures = field(default_factory=Figures)
    steps: tuple[StepView, ...] = ()
    earlier_steps: tuple[StepView, ...] = ()  # steps before a Continue
    below: BelowView = field(default_factory=BelowView)
    earlier_below: BelowView = field(default_factory=BelowView)
    pictures_height: int = 0  # pixels on a wide page
    #: Where its pictures are requested until they are kept; "": there are none to wait for.
    pictures_address: str = ""
    #: For the switcher. None: unknown, so the page keeps the one that it has.
    versions: Versions | None = None

    @property
    def text_class(self) -> str:
        """Classes of the text; `long`: code and tables are laid out only near the visible part."""
        return "text long" if len(self.patch.finished) > LONG else "text"

    @property
    def tail_html(self) -> Markup:
        """The element of the open block."""
        return Markup(tail_box(self.id, self.patch, self.patch.tail))  # noqa: S704 - escaped


@dataclass(frozen=True)
class ExchangeView:
    """The data of `exchange.html`: a prompt and its answer, or several answers side by side."""

    prompt: Markup
    answers: tuple[AnswerView, ...]  # the conversation continues with the first
    is_selected: bool = True  # one answer is selected; the others are collapsed
    has_previous: bool = False  # there is an earlier version of the answer
    prompt_id: int = 0
    prompts: Versions = field(default_factory=Versions)  # the versions of the prompt
    answer_ids: tuple[int, ...] = ()  # of the answer and its alternatives
    files: tuple[FileView, ...] = ()  # of the prompt

    @property
    def withdrawn(self) -> bool:
        """Whether every answer was stopped before any of it was shown."""
        return all(answer.state == "withdrawn" for answer in self.answers)

    @property
    def is_bidi(self) -> bool:
        """Whether parts of the prompt run from right to left."""
        return has_right_to_left(self.prompt)

    @property
    def is_long(self) -> bool:
        """Whether the page shows only the beginning of the prompt until it is asked for all."""
        return _row_count(self.prompt, 80) > ROWS_MAX

    @property
    def height(self) -> int:
        """Pixels on a wide page, estimated; used until the exchange is near the visible part."""
        rows = min(ROWS_MAX, _row_count(self.prompt, 80))
        files = FILES_HEIGHT if self.files else 0
        answer = self.answers[0]
        return 98 + 26 * rows + files + _text_height(answer.source) + answer.pictures_height


def _row_count(text: str, width: int) -> int:
    return sum(len(line) // width + 1 for line in text[:HEIGHT_CHARS_MAX].split("\n"))


def _text_height(text: str) -> int:
    """The height of rendered Markdown in pixels, estimated from its first characters."""
    height, is_code = 0, False
    for line in text[:HEIGHT_CHARS_MAX].split("\n"):
        if line.startswith("```"):
            is_code = not is_code
            height += 31  # half of the bar and the padding
        elif is_code:
            height += 22
        elif line.startswith("|"):
            height += 37
        else:
            height += len(line) // 92 * 26 + 26 if line else 12
    return height * max(1, len(text) // HEIGHT_CHARS_MAX)


@dataclass(frozen=True)
class StepView:
    """The data of `parts.html` for a thought or a tool call."""

    key: str  # unique within its answer
    kind: str  # thought, tool
    state: str  # running, done, failed, called
    icon: str  # "" for none
    label: str
    took: str  # its duration, "" where it is unknown
    age: float  # seconds since it began
    text: Markup
    result: Markup


def step_view(step: Step, key: str = "", *, may_have_run: bool = True) -> StepView:
    """The view of a thought or a tool call as it is now. `key`: by default its number.

    `may_have_run`: whether a call without a result may have run.
    """
    duration = "" if step.ms is None or step.ms < 50 else duration_text(step.ms)
    name = step.name or "a tool"
    icon = {"done": "check", "failed": "triangle-alert"}.get(step.state, "")
    if step.kind == "thought":
        icon = ""
        thought = f"Thought for {duration}" if duration else "Thought"
        label = "Thinking…" if step.state == "running" else thought
        duration = ""
    elif step.state == "running":
        label = f"Calling {name}…"
    elif step.state == "failed":
        label = f"{name} failed"
    elif step.state == "called" and not may_have_run:
        label = f"Did not call {name}"
    else:
        label = f"Called {name}"
    age = now() - step.began
    key = key or str(step.number)
    text = _shown_text(step.text)
    if step.state == "running":  # it may grow
        text = Markup(OpenText().feed(html.escape(step.text)))  # noqa: S704 - escaped
    result = _shown_text(step.result)
    return StepView(key, step.kind, step.state, icon, label, duration, age, text, result)


def _shown_text(text: str) -> Markup:
    """Plain text as escaped HTML, in which long words can break."""
    return Markup(breakable(html.escape(normalized(text), quote=False)))  # noqa: S704 - escaped


def step_views(answer_steps: Sequence[Step], *, over_limit: bool = False) -> tuple[StepView, ...]:
    """The thoughts and calls of all parts of an answer. Step numbers start anew in each part.

    `over_limit`: the last part ended with calls that Halt refused (HALT_TOOL_ROUNDS).
    """
    # Arguments are no sign if a part of the texts is not kept.
    is_cut = any((step.text + step.result).endswith(steps.CUT) for step in answer_steps)
    parts, last = 0, 0
    shown: list[tuple[int, Step]] = []  # each with the index of its part
    for step in answer_steps:
        if step.kind in KINDS_BELOW:
            continue
        parts += step.number <= last
        last = step.number
        shown.append((parts, step))
    views = []
    for part, step in shown:
        is_refused = over_limit and part == parts
        views.append(
            step_view(
                step,
                f"{part}-{step.number}" if part else str(step.number),
                may_have_run=not is_refused and (is_cut or _is_json(step.text)),
            )
        )
    return tuple(views)


def _is_json(arguments: str) -> bool:
    """Whether a call's arguments are complete, so that the call could run."""
    try:
        msgspec.json.decode(arguments)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return False
    return True


def _complete_patch(html: str) -> Patch:
    return Patch(finished=html, replaces_tail=True, tail="", form="text")


def _ended_view(
    exchange: Exchange,
    ended: Terminal,
    rendering: PageRenderer,
    receipt: Receipt | None,
    *,
    links_sources: bool = True,
    is_stored: bool = True,
) -> AnswerView:
    best = exchange.shown_version()  # a failed regeneration does not hide the earlier answer
    over_limit = isinstance(ended, Failed) and ended.error.code == "too_many_tool_rounds"
    state: str = state_of(ended, exchange.answer, exchange.steps)
    figures = page_figures(ended, exchange.model, exchange.usage, receipt, exchange.requested_model)
    tokens = counted(ended.metrics, exchange.usage).tokens
    note = end_note(ended, tokens, has_text=bool(exchange.answer), receipt=receipt)
    if note is None and state == "error":
        note = empty_note()
    elif note is not None and note.kind == "limit":
        state = "stopped"
    below = below_view(best.steps, best.images)
    text_html = with_pictures(rendering.text_html(best.answer), best.images)
    text_html = with_notes_of(text_html, exchange.stream_id)
    return AnswerView(
        id=exchange.stream_id,
        state=state,
        patch=_complete_patch(with_links(text_html, below) if links_sources else text_html),
        source=data_urls.labelled(best.answer),
        requested_model=exchange.requested_model,
        model=exchange.model,
        note=note,
        is_edited=best.is_edited,
        figures=Figures() if exchange.is_edited else figures,
        steps=step_views(best.steps, over_limit=over_limit and best is exchange),
        is_complete=_is_complete(ended),
        below=below,
        has_partial_text=bool(exchange.answer) and not _is_complete(ended),
        pictures_height=height(best.images),
        pictures_address=_pictures_address(exchange, is_stored=is_stored),
    )


def _pictures_address(exchange: Exchange, *, is_stored: bool) -> str:
    """Where the pictures of an answer are requested, "" where all are known.

    `is_stored`: it comes from the store, so those that are kept are known.
    """
    answer = exchange.shown_version()
    is_kept_one = data_urls.STORED.search(answer.answer) or any(
        step.result.startswith("/files/") for step in answer.steps
    )
    if not is_unkept(answer.answer, answer.steps) and (is_stored or not is_kept_one):
        return ""
    address = f"/streams/{exchange.stream_id}/pictures"
    return f"{address}?message_id={exchange.answer_id}" if exchange.answer_id else address


def _is_complete(ended: Terminal) -> bool:
    return isinstance(ended, Done) and is_good(ended.finish_reason)


def exchange_view(
    exchange: Exchange,
    find_generation: Callable[[str], Generation | None],
    answer_progress: AnswerProgress,
    rendering: PageRenderer,
    *,
    last: bool,
) -> ExchangeView:
    """A prompt and its answers as they are now. `last`: whether it is the last exchange."""
    is_selected = exchange.selected or not last
    answers = [
        replace(
            view(
                answer,
                find_generation(answer.stream_id) if answer.ended is None else None,
                answer_progress,
                rendering,
            ),
            versions=Versions(),
        )
        for answer in exchange.candidates
    ]
    if exchange.alternatives and not exchange.selected and not last:
        first = exchange.candidates.index(exchange.answer_for_model())
        answers.insert(0, answers.pop(first))
    if is_selected or not exchange.alternatives:  # else they are side by side
        answers[0] = replace(answers[0], versions=exchange.versions)
    return ExchangeView(
        _shown_text(exchange.prompt),
        tuple(answers),
        is_selected=is_selected,
        has_previous=exchange.previous is not None,
        prompt_id=exchange.prompt_id,
        prompts=exchange.prompts,
        answer_ids=tuple(answer.answer_id for answer in exchange.candidates),
        files=tuple(map(file_view, exchange.files)),
    )


def view(
    exchange: Exchange,
    run: Generation | None,
    answer_progress: AnswerProgress,
    rendering: PageRenderer,
    receipt: Receipt | None = None,
) -> AnswerView:
    """An answer as it is now: from its run while that is known, else as it was saved.

    `receipt`: of the Stop that has just ended it.
    """
    if exchange.ended is not None:
        return _ended_view(exchange, exchange.ended, rendering, receipt)
    if run is None:
        return AnswerView(
            id=exchange.stream_id,
            state="error",
            patch=_complete_patch(
                with_notes_of(
                    with_pictures(rendering.text_html(exchange.answer), exchange.images),
                    exchange.stream_id,
                )
            ),
            requested_model=exchange.requested_model,
            model=exchange.model,
            note=LOST,
            has_partial_text=bool(exchange.answer),
        )
    ended = run.log.ended
    after, text = run.answer()
    if ended is not None:
        answer_steps = (*exchange.steps, *steps.steps_of(run))
        saved = replace(exchange, answer=text, model=run.model, ended=ended, steps=answer_steps)
        # The marks of an earlier part, whose sources are not known here, would lead to others.
        links_sources = bool(exchange.steps or not run.prefix)
        return _ended_view(
            saved, ended, rendering, receipt, links_sources=links_sources, is_stored=False
        )
    patch = rendering.patch(BlockStream().feed(text))
    patch = replace(patch, finished=with_pictures(patch.finished, exchange.images))
    answer_steps = steps.stream_of(run, after).steps()
    return AnswerView(
        id=run.id,
        state="running",
        patch=replace(patch, tail=OpenText().feed(patch.tail)),
        after=after,
        silence=now() - (run.arrival_time(after) if after else run.started_at),
        requested_model=exchange.requested_model,
        model=run.model,
        progress=answer_progress.percent(run.key, run.chunks, run.expected_tokens),
        steps=step_views(answer_steps),
        earlier_steps=step_views(exchange.steps),
        below=below_view(answer_steps),
        earlier_below=below_view(exchange.steps, exchange.images),
    )
