"""Splits the text of an answer into reasoning and content by the model's think tags.

A think tag is a name in brackets of one of the forms below, in any case, whose name contains a word
for thinking. Servers pass such output of models through unchanged:

    <think>...</think>                      also <thinking>, <seed:think>, <longcat_think>, ...
    [THINK]...[/THINK]                      Magistral
    <|START_THINKING|>...<|END_THINKING|>   Command A; <|begin_of_thought|>...<|end_of_thought|>
    <|channel>thought\n...<channel|>        Gemma
    ...</think>                             if the prompt's template has opened the tag
    <|channel|>analysis<|message|>...       gpt-oss: each message has a channel
"""

from __future__ import annotations

import re

from halt.core.events import Content, Reasoning, ReasoningEnd
from halt.providers.part_builder import PartBuilder
from halt.providers.think_tag_rules import (
    AHEAD,
    CHANNEL,
    CHANNEL_ENDS,
    CLOSING_MAYBE,
    TAG,
    WORDS,
    CodeScanner,
    closes_reasoning,
    closing_tags,
    is_standalone,
    may_be_tag,
    may_hold_tag,
    name_words,
    opens_answer,
    opens_reasoning,
    overlap,
)

SPLIT_MAX = 4_096  # characters that are split at once: each tag copies the text after it
BLANK_MAX = 1_000  # characters of white space after which no tag is searched

# Harmony, the form of gpt-oss: <|start|>ROLE<|channel|>CHANNEL<|message|>TEXT<|end|>, repeated.
_HEADER = re.compile(r"<\|(?:start|channel)\|>")
_HEADER_MAYBE = re.compile(
    r"(?:<\|(?:start|channel|constrain)\|>\s*+(?:(?!to=)\w++)?+(?:\s*+to=[\w.]*+)?\s*+)+"
)
_MESSAGE = "<|message|>"
_MESSAGE_ENDS = re.compile(r"<\|(?:end|return|call)\|>")
_MESSAGE_OVER = re.compile(r"<\|(?:end|return|call|start|channel)\|>")
_HARMONY_TAGS = ("<|end|>", "<|return|>", "<|call|>", "<|start|>", "<|channel|>")
_LATE = ("<|end|><|start|>", "<|channel|>final<|message|>", CHANNEL_ENDS)  # after reasoning
_CHANNEL_OF = re.compile(r"<\|channel\|>\s*(\w+)")
HEADER_MAX = 200  # characters of a message's header

# A tag that ends reasoning without an opening tag.
_ENDS = re.compile(rf"<\|end\|>(?=<\|start\|>)|<\|channel\|>(?=final<\|message\|>)|{TAG.pattern}")


class ThinkSplitter:
    """Splits a model's reasoning from its answer if both arrive as one text.

    Tagged reasoning is at the beginning of the answer, or directly after other reasoning. A closing
    tag without an opening one turns all text before it into reasoning; that text was already
    emitted as Content, so a `ReasoningEnd` is emitted. Tags may be cut anywhere; text that may be
    the beginning of one is held back until that is decided. Line breaks after a tag belong to it.

    Text about such tags is not changed: in code, in quotes, within a sentence.
    """

    def __init__(self) -> None:
        self.is_finished = False  # all further text is the answer: nothing is left to split
        self.has_tags = False  # a think tag has arrived
        # "start", "opened", "thinking", "closed"; "wrapped": in an answer between tags; "watching":
        # searching for a closing tag; "header", "body", "between": in Harmony messages; "answer".
        self._phase = "start"
        self._held = ""
        self._closings: tuple[str, ...] = ()  # tags that close the reasoning or a wrapped answer
        self._reasoned = False  # reasoning has arrived, so more needs an opening tag
        self._scan = CodeScanner()  # of the text in phase "watching"
        # Harmony:
        self._kind: type[Content] | type[Reasoning] = Content  # of the current message
        self._fresh = True  # the current message has no text yet
        self._last_kind: type[Content] | type[Reasoning] | None = None  # of the text before
        self._has_content = False  # a message with Content has had text

    def feed(self, text: str, out: PartBuilder) -> None:
        """Split a piece of text into deltas in `out`."""
        for start in range(0, len(text), SPLIT_MAX):
            piece = text[start : start + SPLIT_MAX]
            is_usual = not (self._held or may_hold_tag(piece))
            if is_usual and self._phase == "watching":
                self._scan.add(piece)
                out.add_text(Content, piece)
            elif is_usual and self._phase == "thinking":
                out.add_text(Reasoning, piece)
            else:
                self._split(self._held + piece, out, last=False)

    def end(self, out: PartBuilder) -> None:
        """End the text: the held text is emitted, unless it is the last tag."""
        self._split(self._held, out, last=True)
        held, self._held = self._held, ""
        if self._phase in ("opened", "thinking"):
            out.add_text(Reasoning, held)
        elif self._phase == "body":
            self._emit_message_text(held, out)
        elif self._phase not in ("closed", "between") or held.strip():
            out.add_text(Content, held)
        self._begin_answer()

    def note_reasoning(self, out: PartBuilder) -> None:
        """Note that reasoning arrived in a separate field: the server has split it itself."""
        self._reasoned = True
        if self._phase == "watching":
            out.add_text(Content, self._held)
            self._held = ""
            self._begin_answer()

    def note_tool_call(self, out: PartBuilder) -> None:
        """Note that a tool call follows: emit the held text before it."""
        if self._phase in ("start", "watching", "closed"):
            self.end(out)

    def _begin_answer(self) -> None:
        self._phase, self.is_finished = "answer", True

    def _split(self, text: str, out: PartBuilder, *, last: bool) -> None:
        """Process the text phase by phase until it is used up or more text is needed."""
        self._held = ""
        while text:
            if self._phase in ("start", "closed"):
                text = self._begin(text, out, last=last)
            elif self._phase == "opened":
                text = text.lstrip("\n")
                if text:
                    self._phase = "thinking"
            elif self._phase == "thinking":
                text = self._think(text, out)
            elif self._phase == "watching":
                text = self._watch(text, out, last=last)
            elif self._phase == "wrapped":
                text = self._unwrap(text, out, last=last)
            elif self._phase == "header":
                text = self._header(text, out, last=last)
            elif self._phase == "body":
                text = self._body(text, out)
            elif self._phase == "between":
                text = self._between(text, last=last)
            else:
                out.add_text(Content, text)
                text = ""

    def _hold(self, text: str) -> str:
        self._held = text
        return ""

    # --- opening tags -----------------------------------------------------------------------------

    def _begin(self, text: str, out: PartBuilder, *, last: bool) -> str:
        """Match a tag at the beginning of the answer or after reasoning; return the rest."""
        if self._phase == "closed":
            text = text.lstrip("\n")
        stripped = text.lstrip()
        if len(text) - len(stripped) <= BLANK_MAX:
            if not last and may_be_tag(stripped):
                return self._hold(text)
            if channel := CHANNEL.match(stripped):
                if not WORDS.isdisjoint(name_words(channel[1])):
                    self._open((CHANNEL_ENDS,), out)
                    return stripped[channel.end() :]
            elif self._phase == "start" and _HEADER.match(stripped):
                self._phase, self.has_tags = "header", True
                return stripped
            elif tag := TAG.match(stripped):
                rest = stripped[tag.end() :]
                ends = closes_reasoning(tag) and is_standalone("", rest[:AHEAD], last=last)
                if ends is None:
                    return self._hold(text)
                if self._take_tag(tag, ends, out):
                    return rest
        if self._phase == "start" and not self._reasoned:
            self._phase = "watching"
        else:
            self._begin_answer()
        return text

    def _take_tag(self, tag: re.Match[str], ends: bool, out: PartBuilder) -> bool:
        """Process a tag; return False if it is no think tag. `ends`: it can end reasoning."""
        if opens_reasoning(tag):
            self._open(closing_tags(tag[0]), out)
        elif ends:
            self._phase, self._reasoned, self.has_tags = "closed", True, True
        elif self._phase == "closed" and opens_answer(tag):
            self._phase = "wrapped"
            self._closings = closing_tags(tag[0])
        else:
            return False
        return True

    def _open(self, closings: tuple[str, ...], out: PartBuilder) -> None:
        """Start reasoning that ends with one of the closing tags."""
        if self._phase == "closed" and self._closings:
            out.add_text(Reasoning, "\n\n")  # between two blocks of reasoning
        self._phase, self._reasoned, self.has_tags = "opened", True, True
        self._closings = closings

    def _closing(self, text: str) -> re.Match[str] | None:
        """Return the first tag in the text that closes the reasoning or the wrapped answer.

        It uses no separate pattern for each closing tag: to compile one takes 200 us, as much as
        10,000 characters of text.
        """
        tags = TAG.finditer(text)
        return next((tag for tag in tags if tag[0].lower() in self._closings), None)

    def _think(self, text: str, out: PartBuilder) -> str:
        tag = self._closing(text)
        if tag is None:
            keep = overlap(text, self._closings)
            out.add_text(Reasoning, text[: len(text) - keep])
            return self._hold(text[len(text) - keep :])
        out.add_text(Reasoning, text[: tag.start()])
        self._phase = "closed"
        return text[tag.end() :]

    def _unwrap(self, text: str, out: PartBuilder, *, last: bool) -> str:
        """Process an answer between tags. A closing tag counts only at the end of the text."""
        tag = self._closing(text)
        if tag is None:
            keep = overlap(text, self._closings)
            out.add_text(Content, text[: len(text) - keep])
            return self._hold(text[len(text) - keep :])
        out.add_text(Content, text[: tag.start()])
        rest = text[tag.end() :]
        if rest.strip() or len(rest) > BLANK_MAX:
            out.add_text(Content, tag[0])
            return rest
        return "" if last else self._hold(text[tag.start() :])

    # --- closing tags without an opening one ------------------------------------------------------

    def _watch(self, text: str, out: PartBuilder, *, last: bool) -> str:
        done = 0  # characters that were emitted
        for tag in _ENDS.finditer(text):
            is_harmony = tag.lastindex is None
            if not is_harmony and not closes_reasoning(tag):
                continue
            before, done = text[done : tag.start()], tag.start()
            out.add_text(Content, before)
            line = self._scan.line(before)
            if self._scan.over:
                break
            ends: bool | None = line is not None
            if line is not None and not is_harmony:
                ahead = text[tag.end() : tag.end() + AHEAD]
                ends = is_standalone(line, ahead, last=last)
            if ends is None:
                return self._hold(text[done:])
            if ends:
                out.add_event(ReasoningEnd())
                self._reasoned = self.has_tags = True
                if not is_harmony:
                    self._phase = "closed"
                    return text[tag.end() :]
                self._phase, self._last_kind = "between", Reasoning
                return text[done:]
        rest = text[done:]
        keep = 0
        if self._scan.over:
            self._begin_answer()
        elif not last:
            maybe = CLOSING_MAYBE.search(rest[-AHEAD:])
            keep = len(maybe[0]) if maybe else 0
            if "<|" in rest or "<c" in rest:
                keep = max(keep, overlap(rest, _LATE))
        content = rest[: len(rest) - keep]
        self._scan.add(content)
        out.add_text(Content, content)
        return self._hold(rest[len(rest) - keep :])

    # --- Harmony ----------------------------------------------------------------------------------

    def _header(self, text: str, out: PartBuilder, *, last: bool) -> str:
        """Parse a message's header, up to its text."""
        header, tag, rest = text.partition(_MESSAGE)
        size = len(header) if tag else len(header) - overlap(header, (_MESSAGE,))
        if size > HEADER_MAX or "\n" in header:
            if self._last_kind is None:  # no Harmony message: the tags have another meaning
                self._begin_answer()
                return text
            first = _HEADER.match(text)
            assert first is not None  # noqa: S101 - the text begins with a header
            self._phase, self._kind = "body", Content
            self._emit_message_text(first[0], out)
            return text[first.end() :]  # as text of a message, in which tags may follow
        if not tag and last and self._last_kind and _HEADER_MAYBE.fullmatch(text):
            return ""
        if not tag:
            return self._hold(text)
        # A message to a tool is no part of the answer, so it counts as reasoning.
        is_reasoning = "analysis" in _CHANNEL_OF.findall(header)[-1:] or " to=" in header
        self._phase, self._kind, self._fresh = "body", Reasoning if is_reasoning else Content, True
        return rest

    def _body(self, text: str, out: PartBuilder) -> str:
        """Emit a message's text."""
        tag = _MESSAGE_OVER.search(text)
        if tag is None:
            keep = overlap(text, _HARMONY_TAGS)
            self._emit_message_text(text[: len(text) - keep], out)
            return self._hold(text[len(text) - keep :])
        self._emit_message_text(text[: tag.start()], out)
        self._phase = "between"
        return text[tag.start() :]

    def _between(self, text: str, *, last: bool) -> str:
        """Process the tags after a message."""
        text = text.lstrip()
        if tag := _MESSAGE_ENDS.match(text):
            return text[tag.end() :]
        if _HEADER.match(text):
            self._phase = "header"
        elif not last and any(harmony_tag.startswith(text) for harmony_tag in _HARMONY_TAGS):
            return self._hold(text)
        else:
            self._phase, self._kind, self._fresh = "body", Content, True
        return text

    def _emit_message_text(self, text: str, out: PartBuilder) -> None:
        """Emit text of a message; a blank line separates messages of the same kind."""
        if not text:
            return
        has_previous = self._has_content if self._kind is Content else self._last_kind is Reasoning
        if self._fresh and has_previous:
            out.add_text(self._kind, "\n\n")
        self._fresh, self._last_kind = False, self._kind
        self._has_content = self._has_content or self._kind is Content
        out.add_text(self._kind, text)
