"""Appends a provider's events to the log of a run, within length limits.

Notes that the model copied (`halt.core.notes`) are left out. The data of pictures in the text is no
text: it counts as other fields do. It is counted when the limit of the text is reached, so that a
token of plain text costs nothing more.
"""

from __future__ import annotations

from collections.abc import Callable

from halt.clock import now
from halt.core.attachments import Media, attachments_of
from halt.core.events import (
    Content,
    Delta,
    Extra,
    Reasoning,
    ReasoningEnd,
    ToolCall,
    ToolResult,
    approximate_size,
    text_of,
)
from halt.core.live import LiveGeneration
from halt.core.notes import LINE_END, NoteFilter, are_discussed
from halt.core.relay import Relay, Timer, contained
from halt.core.request import Part
from halt.errors import UpstreamError
from halt.rendering.data_urls import DataUrlFilter

#: Seconds of silence after which held text is shown. Shorter than every limit of silence.
HOLD_MAX = 2.0
PARTS_MOST = 1000  # events that are searched for the answer's last line
EXTRA_MAX = 32_000_000  # characters of pictures and other fields beside one answer's text


class Intake:
    """Appends to the log of one run. Used by the thread that has the run, one at a time."""

    def __init__(
        self,
        live: LiveGeneration,
        relay: Relay,
        on_fault: Callable[[Exception], None],
        most: int,
        *,
        keeps_calls: bool,
    ) -> None:
        """`on_fault` ends the run after an exception in Halt's own code.

        `most`: the limit of an answer in characters. `keeps_calls`: Halt runs the tools, not the
        client.
        """
        self._live = live
        self._relay = relay
        self.on_fault = on_fault
        self._meter = live.meter
        self._record_text = live.record_text
        self._append = live.log.append
        self._most = most
        self._keeps_calls = keeps_calls
        self._notes = NoteFilter(self._discusses_notes, self._last_line)
        self._held: Timer | None = None  # due when held text must be shown
        self.answering = False  # the reply of this round has brought an event
        self.calls: list[ToolCall] = []  # the model's calls in this round
        self._called = False  # the model has called tools, its own or the client's
        self._thoughts: list[str] = []  # reasoning, for `show_thoughts`
        self._round_from = 0  # events before this round
        self._new_paragraph = False  # the next text is the first after a round of tools
        self._size = 0  # characters of all events: text, reasoning, calls, results
        self._received = 0  # characters that arrived, shown or not, and characters of results
        #: Characters of other fields (pictures, sources), and of data in the text.
        self._extra_size = 0
        #: From the first time that the limit was reached: what finds the data of pictures, the
        #: events that it has, and the characters of data so far.
        self._data_filter: DataUrlFilter | None = None
        self._filtered = 0
        self._data_size = 0

    # --- one read ---------------------------------------------------------------------------------

    def take(self, part: Part) -> bool:
        """Append one read's events. False: the log has ended. Raises UpstreamError at a limit."""
        self._received += part.arrived
        if not part.events:
            self._meter.received(0, 0)
        else:
            self.answering = True
            if not self._add(part):
                return False
        if self._size > self._most or self._received > self._most:
            self._check_text()
        if self._extra_size > EXTRA_MAX:
            hint = f"Its pictures and other fields have over {EXTRA_MAX:,} characters."
            raise UpstreamError("answer_too_long", hint=hint)
        if part.ended:
            self.flush()
        elif self._notes.held and self._held is None:
            self._held = self._relay.at(self._meter.last_at + HOLD_MAX, self._show_held)
        return True

    def _add(self, part: Part) -> bool:
        """Append the events of a part. False: the log has ended."""
        events = part.events
        first = events[0]
        if (  # the usual part, once for each token
            len(events) == 1
            and isinstance(first, Content)
            and "[" not in first.content
            and not (self._notes.held or self._new_paragraph)
        ):
            text = first.content
            self._size += len(text)
            self._meter.received(len(text), part.chunks)
            # Before the append, so that `answer` has the texts of all events of the log.
            self._record_text(text, self._meter.last_at)
            return self._append(first)
        live, meter = self._live, self._meter
        prepared = [self._prepared(event) for event in self._notes.filtered(events)]
        meter.received(sum(len(text_of(event)) for event in prepared), part.chunks)
        for event in prepared:
            if isinstance(event, Extra):
                self._extra_size += approximate_size(event)
            else:
                self._size += approximate_size(event)
            live.record_event(event, meter.last_at)
            if isinstance(event, ReasoningEnd):
                thought = live.reasoning(event)
                self._thoughts.append(thought)
                meter.reclassified(len(thought), all_text=not self._earlier_rounds)
            elif meter.answer_at is None and text_of(event):
                meter.answer_at = meter.last_at  # of the same read
            if not self._append(event):
                return False
        return True

    def _prepared(self, event: Delta) -> Delta:
        """The event in the form that the log gets."""
        if isinstance(event, Content):
            if self._new_paragraph:
                self._new_paragraph = False
                return Content("\n\n" + event.content)
        elif isinstance(event, Reasoning):
            self._meter.reasoned = True
            self._thoughts.append(event.text)
        elif isinstance(event, ReasoningEnd):
            self._new_paragraph = bool(self._earlier_rounds)
            return ReasoningEnd(self._round_from)
        elif isinstance(event, ToolCall):
            self._called = True
            if self._keeps_calls:
                self.calls.append(event)
        return event

    def _check_text(self) -> None:
        """Raise UpstreamError if the text is over its limit without the data of its pictures."""
        if self._data_filter is None:
            self._data_filter = DataUrlFilter()
        texts = self._live.texts_after(self._filtered)
        self._filtered += len(texts)
        text = "".join(texts)
        data_size = len(text) - len(self._data_filter.feed(text))
        self._data_size += data_size
        self._extra_size += data_size
        if max(self._size, self._received) - self._data_size > self._most:
            raise self._too_long()

    def _too_long(self) -> UpstreamError:
        """The fault of an answer over its limit. Held and dropped text counts too.

        Otherwise a model that writes only blanks, after a thought or in a call's arguments, would
        never end.
        """
        hint = f"The limit is {self._most} characters: HALT_MAX_ANSWER_CHARS."
        return UpstreamError("answer_too_long", hint=hint)

    # --- held text --------------------------------------------------------------------------------

    def flush(self) -> None:
        """Append the held text at the end of a reply, unless it is a note."""
        self._append_held(self._notes.end())

    @contained
    def _show_held(self) -> None:
        """In the relay: append held text after HOLD_MAX of silence, unless it is a whole note."""
        self._held = None
        if self._live.log.ended is not None or not self._notes.held:
            return
        due = self._meter.last_at + HOLD_MAX
        if now() < due:
            self._held = self._relay.at(due, self._show_held)
        else:
            self._append_held(self._notes.waited())

    def _append_held(self, text: str) -> None:
        """Append text that arrived earlier and was held."""
        if text:
            text = text_of(self._prepared(Content(text)))
            self._meter.characters += len(text)
            self._record_text(text, self._meter.last_at)
            self._append(Content(text))

    def _last_line(self) -> str:
        """The last line of the answer so far, or its end if the line is long."""
        line = "\n" if self._new_paragraph else ""
        for text in self._live.newest_texts(PARTS_MOST):
            if len(line) > LINE_END or "\n" in line:
                break
            line = text[-LINE_END:] + line
        return line.rpartition("\n")[2]

    def _discusses_notes(self) -> bool:
        """Whether the prompt speaks of the notes of `halt.core.notes`."""
        return are_discussed(
            message.content
            for message in self._live.question
            if message.role != "assistant" and isinstance(message.content, str)
        )

    # --- rounds, and the end ----------------------------------------------------------------------

    @property
    def _earlier_rounds(self) -> str:
        """The answer's text of the rounds before this one."""
        return "".join(self._live.texts(self._round_from)).strip()

    def take_result(self, result: ToolResult) -> bool:
        """Append a tool's result. False: the log has ended. Raises UpstreamError at a limit."""
        self._size += len(result.result)
        self._received += len(result.result)
        if self._size > self._most or self._received > self._most:
            self._check_text()
        self._meter.note_tool_activity()
        self._record_text("", self._meter.last_at)
        return self._append(result)

    def begin_round(self) -> str:
        """Begin the next round after the results. Returns the text of the previous round."""
        texts = self._live.texts()
        round_text = "".join(texts[self._round_from :]).strip()
        self._new_paragraph = self._new_paragraph or bool(round_text)
        self._round_from = len(texts)
        return round_text

    def show_thoughts(self) -> None:
        """Append the reasoning as the answer, if the model sent no text, call or picture.

        Some servers send the answer as reasoning. Call only if the model ended the answer itself.
        """
        live = self._live
        texts = (live.prefix, *live.texts())
        if not self._thoughts or self._called or any(t and not t.isspace() for t in texts):
            return
        extras = [event for _, event in live.events(live.log.last) if isinstance(event, Extra)]
        attached = (attachment for event in extras for attachment in attachments_of(event))
        if not any(isinstance(attachment, Media) for attachment in attached):
            self._append_held("".join(self._thoughts).strip())

    def forget(self) -> None:
        """Drop the data that only a running run needs, and cancel its timer."""
        self.calls, self._thoughts = [], []
        if self._held is not None:
            self._held.cancel()
