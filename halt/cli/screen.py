"""Shows answers in a terminal: the base class of screens, the plain screen, the typewriter.

`shown_text` is the text that the user has seen; of a stopped answer it is kept. All text of a model
or a server goes through `clean` first, because a terminal executes control characters.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TextIO

from halt.clock import now
from halt.core.events import Content, Event, Extra, Reasoning, ReasoningEnd, ToolCall, ToolResult
from halt.core.steps import StepStream
from halt.rendering.data_urls import DataUrlFilter
from halt.rendering.plain_lines import clean, one_line

LAG = 0.25  # seconds within which the typewriter has shown a received text
PACE = 0.03  # seconds between two steps of the typewriter
SILENT = 2.0  # seconds without a new event after which the screen shows that the model is silent
#: Seconds of silence before the plain screen prints a line about it; the next one at twice that.
ASIDE_AFTER = 30.0
LINE_MAX = 100  # characters of a tool's arguments or result that are shown

WAS_THOUGHT = "the text above was a thought"


def _short(text: str) -> str:
    """The text as one line of at most LINE_MAX characters."""
    return one_line(text, LINE_MAX)


def seconds(spent: float) -> str:
    """A duration in words: 1.5 s, 12 s."""
    return f"{spent:.1f} s" if spent < 10 else f"{spent:.0f} s"


def clock(spent: float) -> str:
    """An elapsed time: 45 s, 1:35, 1:02:03."""
    minutes, remainder = divmod(int(spent), 60)
    if minutes < 60:
        return f"{minutes}:{remainder:02}" if minutes else f"{remainder} s"
    return f"{minutes // 60}:{minutes % 60:02}:{remainder:02}"


class Typewriter:
    """Releases text that arrives in bursts at a steady pace, each piece within LAG seconds."""

    def __init__(self) -> None:
        self._text = ""
        self._at = 0.0  # time of the last take
        self._due: deque[tuple[float, int]] = deque()  # deadline, end of the piece in `_text`

    def feed(self, text: str, at: float) -> None:
        """Add a text that arrived at this time."""
        if not self._text:
            self._at = at
        self._text += text
        due = at + LAG
        if self._due and due - self._due[-1][0] < PACE / 2:
            due, _ = self._due.pop()  # both pieces keep the earlier deadline
        self._due.append((due, len(self._text)))

    def take(self, at: float) -> str:
        """Remove and return the text to show at this time; may be empty."""
        if not self._text:
            return ""
        spent = at - self._at
        # The most urgent piece sets the pace.
        count = 0
        for due, end in self._due:
            seconds_left = due - self._at - PACE  # the last step is before `due - PACE`
            count = max(
                count, end if seconds_left <= spent else math.ceil(end * spent / seconds_left)
            )
        self._at = at
        piece, self._text = self._text[:count], self._text[count:]
        due_after = [(due, end - count) for due, end in self._due if end > count]
        self._due = deque(due_after)
        return piece

    @property
    def has_text(self) -> bool:
        """Whether there is text that has not been taken."""
        return bool(self._text)

    def drop(self) -> None:
        """Discard the text that has not been taken."""
        self._text = ""
        self._due.clear()


class Screen:
    """Base of screens: shows one answer after another. Used by one thread.

    Keeps the shown text, the pace, and the time that the model thinks.
    """

    def __init__(self, *, typewriter: bool) -> None:
        self._typewriter = Typewriter() if typewriter else None
        self._renew()

    def _renew(self) -> None:
        """Reset the state for a new answer."""
        self._parts: list[str] = []
        self._round_start = 0  # parts before the last tool's result
        self._frozen = False
        self._thinking_since: float | None = None
        self._calls: dict[str, ToolCall] = {}
        self._last_event_at = now()
        self._has_event = False  # an event of this answer has arrived
        self._attachments = StepStream()  # of pictures and sources alone

    @property
    def shown_text(self) -> str:
        """The answer's text that has been shown."""
        return "".join(self._parts)

    @property
    def has_unshown_text(self) -> bool:
        """Whether text has arrived that is not shown yet."""
        return self._typewriter is not None and self._typewriter.has_text

    def begin(self) -> None:
        """Prepare for an answer."""
        self._renew()

    @property
    def _silent_seconds(self) -> float:
        """Seconds for which the model has been silent; 0 where it is not, or a tool runs."""
        spent = now() - self._last_event_at
        return (
            0.0 if spent < SILENT or self._calls or self._frozen or self.has_unshown_text else spent
        )

    def _silence_text(self) -> str:
        """The text about a silent model; empty if it is not silent."""
        spent = self._silent_seconds
        if not spent:
            return ""
        return f"{'no text for' if self._has_event else 'waiting for the model,'} {clock(spent)}"

    def show(self, event: Event) -> None:
        """Show an event; ignored after `freeze`."""
        if self._frozen:
            return
        self._last_event_at, self._has_event = now(), True
        if isinstance(event, Reasoning):
            if self._thinking_since is None:
                self._thinking_since = now()
            self._show_thought_text(clean(event.text))
            return
        if isinstance(event, Extra):
            self._attachments.feed(0, event, 0.0)
            return
        if isinstance(event, ReasoningEnd):
            self._flush()
            del self._parts[self._round_start :]
            self._mark_as_thought()
            return
        if not isinstance(event, (Content, ToolCall, ToolResult)):
            return
        if self._thinking_since is not None:
            self._show_thought_end(now() - self._thinking_since)
            self._thinking_since = None
        if isinstance(event, Content):
            text = clean(event.content)
            if self._typewriter is not None:
                self._typewriter.feed(text, now())
            else:
                self._add_shown_text(text)
            return
        self._flush()
        if isinstance(event, ToolCall):
            self._calls[event.id] = event
            self._show_call(f"{_short(event.name)} {_short(event.arguments)}")
        else:
            self._round_start = len(self._parts)
            call = self._calls.pop(event.id, None)
            arguments = _short(call.arguments) if call else ""
            outcome = _short(event.result) if event.ok else f"failed: {_short(event.result)}"
            duration = seconds(event.duration_ms / 1000)
            self._show_call_result(f"{_short(event.name)} {arguments} → {outcome} ({duration})")

    def tick(self) -> float | None:
        """Show the text that is due; return the seconds until the next call, or None."""
        writer = self._typewriter
        if writer is None or not writer.has_text:
            return None
        piece = writer.take(now())
        if piece:
            self._add_shown_text(piece)
        return PACE if writer.has_text else None

    def freeze(self) -> None:
        """After a Stop: show nothing more, and drop text that is not shown yet."""
        self._frozen = True
        if self._typewriter is not None:
            self._typewriter.drop()

    def end(self) -> None:
        """The answer has ended: show the rest of it."""
        self._flush()
        if self._thinking_since is not None:
            self._show_thought_end(now() - self._thinking_since)
            self._thinking_since = None

    def _lines_below(self) -> list[str]:
        """One line for each picture and source of the answer."""
        out: list[str] = []
        for step in self._attachments.steps():
            if step.kind == "picture":
                address = "" if step.result.startswith("data:") else f" {step.result}"
                out.append(f"[{step.text}]{address}")
            else:
                out += [f"[{n}] {line.strip()}" for n, line in enumerate(step.text.split("\n"), 1)]
        return out

    def _flush(self) -> None:
        """Show all text that the typewriter still holds."""
        if self._typewriter is not None and self._typewriter.has_text:
            self._add_shown_text(self._typewriter.take(math.inf))

    def _add_shown_text(self, text: str) -> None:
        self._parts.append(text)
        self._show_text(text)

    def note(self, text: str, *, bad: bool = False) -> None:
        """Show a line of Halt's own; `bad`: it is about a fault."""
        raise NotImplementedError

    def _show_text(self, text: str) -> None:
        """Show more text of the answer."""
        raise NotImplementedError

    def _show_thought_text(self, text: str) -> None:
        """Show more text of a thought."""

    def _show_thought_end(self, spent: float) -> None:
        """A thought of this many seconds has ended."""

    def _mark_as_thought(self) -> None:
        """All text of this answer so far was a thought."""

    def _show_call(self, line: str) -> None:
        """A tool call has started."""

    def _show_call_result(self, line: str) -> None:
        """A tool call has ended."""


class PlainScreen(Screen):
    """Plain text without control characters, as it arrives.

    `quiet`: only the text of the answer, unchanged, because a program may read it. Otherwise a
    short line replaces each embedded picture.
    """

    def __init__(
        self, out: TextIO, err: TextIO, *, quiet: bool = False, typewriter: bool = False
    ) -> None:
        super().__init__(typewriter=typewriter)
        self._out, self._err, self._quiet = out, err, quiet
        self._in_line = False

    def _renew(self) -> None:
        super()._renew()
        self._pictures = DataUrlFilter()
        self._noted_silence = 0.0  # seconds of silence at the last line about it

    def tick(self) -> float | None:
        silent_seconds = self._silent_seconds
        if not silent_seconds:
            self._noted_silence = 0.0
        elif silent_seconds >= max(ASIDE_AFTER, 2 * self._noted_silence):
            self._noted_silence = silent_seconds
            self._aside(f"({self._silence_text()}; Ctrl-C stops it)")
        return super().tick()

    def end(self) -> None:
        super().end()
        self._end_line()
        for line in self._lines_below():
            self._aside(line)

    def note(self, text: str, *, bad: bool = False) -> None:
        self._end_line()
        print(clean(text), file=self._err if bad or self._quiet else self._out, flush=True)

    def _show_text(self, text: str) -> None:
        self._write(text if self._quiet else self._pictures.feed(text))

    def _write(self, text: str) -> None:
        if text:
            self._out.write(text)
            self._out.flush()
            self._in_line = not text.endswith("\n")

    def _mark_as_thought(self) -> None:
        self._end_line()
        self._aside(f"({WAS_THOUGHT})")

    def _show_thought_end(self, spent: float) -> None:
        self._aside(f"(thought for {seconds(spent)})")

    def _show_call_result(self, line: str) -> None:
        self._aside(f"({line})")

    def _aside(self, line: str) -> None:
        if not self._quiet:
            self.note(line)

    def _end_line(self) -> None:
        held_text, self._pictures = self._pictures.rest(), DataUrlFilter()
        self._write(held_text)
        if self._in_line:
            self._out.write("\n")
            self._out.flush()
            self._in_line = False
