"""The marks by which models set their thoughts apart within the text of an answer.

A mark is a name in brackets of one of the forms below, whatever its case, and the name has a word
for a thought in it. Servers hand such models' output through as it is:

    <think>...</think>                      also <thinking>, <seed:think>, <longcat_think>, ...
    [THINK]...[/THINK]                      Magistral
    <|START_THINKING|>...<|END_THINKING|>   Command A; <|begin_of_thought|>...<|end_of_thought|>
    <|channel>thought\n...<channel|>        Gemma
    ...</think>                             where the prompt's template has opened the thought
    <|channel|>analysis<|message|>...       gpt-oss: each message has a channel
"""

from __future__ import annotations

import re

from halt.core.events import Content, Reasoning, ReasoningEnd
from halt.providers.gathering import Gathering

#: A mark's name means a thought where one of these is a word of it.
WORDS = frozenset(
    {"think", "thinking", "thought", "thoughts", "reasoning", "reflection"}
    | {"cot", "monologue", "scratchpad"}
)
#: Words of special tokens (`<|...|>`) around the answer that follows a thought.
ANSWERS = frozenset(["answer", "response", "solution", "text"])

_BARS = "|\uff5c"
_NAME = r"[\w:.\u2581-]"
# What stands between the brackets is group 1, or 2 in square ones, or 3 or 4. Each branch begins
# with one character, so a search skips all others at once.
_MARK = re.compile(
    rf"<([{_BARS}]?/?{_NAME}{{1,40}}[{_BARS}]?)>|\[(/?{_NAME}{{1,40}})\]"
    rf"|\u25c1(/?{_NAME}{{1,40}})[\u25b7\u27e9]|\u27e8(/?{_NAME}{{1,40}})[\u25b7\u27e9]"
)
_OPENERS = ("<", "[", "\u25c1", "\u27e8")  # what marks begin with
_MARK_MAYBE = re.compile(
    rf"(?:<[{_BARS}]?/?{_NAME}{{0,40}}[{_BARS}]?|[\[\u25c1\u27e8]/?{_NAME}{{0,40}})\Z"
)
_CLOSING_MAYBE = re.compile(
    rf"(?:<|</{_NAME}{{0,40}}|<[{_BARS}]/?{_NAME}{{0,40}}[{_BARS}]?"
    rf"|[\[\u25c1\u27e8](?:/{_NAME}{{0,40}})?)\Z"
)
_CJK = re.compile("[\u0e00-\u0eff\u2e80-\u2fdf\u3041-\u30ff\u3400-\u9fff\uac00-\ud7af]")
_SEPARATOR = re.compile(r"[_:.\u2581-]+")
_CHANNEL = re.compile(r"<\|channel>([a-z_]{1,40})\n", re.IGNORECASE)
_CHANNEL_MAYBE = re.compile(r"<\|channel>[a-z_]{0,40}\Z", re.IGNORECASE)
_CHANNEL_ENDS = "<channel|>"

# Harmony, gpt-oss's form: <|start|>ROLE<|channel|>CHANNEL<|message|>TEXT<|end|>, in turn.
_HEADER = re.compile(r"<\|(?:start|channel)\|>")
_HEADER_MAYBE = re.compile(
    r"(?:<\|(?:start|channel|constrain)\|>\s*+(?:(?!to=)\w++)?+(?:\s*+to=[\w.]*+)?\s*+)+"
)
_MESSAGE = "<|message|>"
_MESSAGE_ENDS = re.compile(r"<\|(?:end|return|call)\|>")
_MESSAGE_OVER = re.compile(r"<\|(?:end|return|call|start|channel)\|>")
_HARMONY_MARKS = ("<|end|>", "<|return|>", "<|call|>", "<|start|>", "<|channel|>")
_LATE = ("<|end|><|start|>", "<|channel|>final<|message|>", _CHANNEL_ENDS)  # behind a thought
_CHANNEL_OF = re.compile(r"<\|channel\|>\s*(\w+)")
HEADER_MAX = 200  # characters of a message's header

# A mark that ends what no other mark began.
_ENDS = re.compile(rf"<\|end\|>(?=<\|start\|>)|<\|channel\|>(?=final<\|message\|>)|{_MARK.pattern}")
_FENCE = re.compile(r"[ \t>]*(?:(?:[-*+]|\d+[.)])[ \t]+)?(`{3,}|~{3,})")
_SENTENCE_ENDS = ".!?\u2026\u3002\uff01\uff1f)]}*_\"'\u201d\u2019\u300d"
_OPENS = "([{<\u201c\u2018\u00ab\u300c/|=:"  # no mark stands directly behind these
_CLOSES = ".,;:!?)]}>'\u2019\u201d\u00bb\u300d\u2026/|`\u3002\uff0c\u3001"  # nor before these
SORTED_MAX = 4_096  # characters that are sorted together: each mark copies what is behind it
BLANK_MAX = 1_000  # characters of white space behind which a mark is not looked for
AHEAD = 64  # characters behind a mark that are looked at
LINE_KEPT = 8_192  # characters of a line that are kept to be looked at again
HEAD_KEPT = 200  # of those, characters of its beginning
PIECES_MAX = 1_000  # pieces of text that are kept before they are looked at
MARKS_MAX = 100  # marks that turn out to be none, after which no other is looked for


def _words(name: str) -> list[str]:
    return _SEPARATOR.split(name.lower())


def _inner(mark: re.Match[str]) -> str:
    """What stands between a mark's brackets."""
    return mark[1] or mark[2] or mark[3] or mark[4]


def _begins_thought(mark: re.Match[str]) -> bool:
    inner = _inner(mark)
    if mark[2] and not inner.isupper():
        return False  # [thinking] is a word in brackets
    words = _words(inner.strip(_BARS))
    return not (words[0].startswith("/") or "end" in words or WORDS.isdisjoint(words))


def _ends_thought(mark: re.Match[str]) -> bool:
    inner = _inner(mark).strip(_BARS)
    words = _words(inner.lstrip("/"))
    if mark[0].lower() == _CHANNEL_ENDS:
        return True
    return not WORDS.isdisjoint(words) and (inner.startswith("/") or "end" in words)


def _begins_answer(mark: re.Match[str]) -> bool:
    words = _words(_inner(mark).strip(_BARS))
    return mark[0][1] in _BARS and "end" not in words and not ANSWERS.isdisjoint(words)


def _may_hold_mark(text: str) -> bool:
    """Whether a mark, or a part of one, may begin in the text."""
    return any(opener in text for opener in _OPENERS)


def _may_be_mark(text: str) -> bool:
    return not text or bool(_MARK_MAYBE.match(text) or _CHANNEL_MAYBE.match(text))


def _closings(mark: str) -> tuple[str, ...]:
    """The marks, in lower case, that end what this one begins."""
    mark = mark.lower()
    first = 2 if mark[1] in _BARS else 1
    ended = re.sub(r"(?<![^\W_])(?:begin|start)(?![^\W_])", "end", mark)
    closing = f"{mark[:first]}/{mark[first:]}"
    return (closing,) if ended == mark else (closing, ended)


class ThinkSplitter:
    """Tells a model's thoughts from its answer where both come as text.

    A marked thought stands at the beginning of the answer, or directly behind another. A mark that
    only ends a thought makes one of all text before it; that text was given out as the answer's, so
    a `ReasoningEnd` tells it. Marks may be cut anywhere; what might be the beginning of one is held
    back until that is clear. Line breaks behind a mark belong to it.

    Text that speaks of such marks stays as it is: in code, in quotes, within a sentence.
    """

    __slots__ = (
        "_closings",
        "_fresh",
        "_held",
        "_kind",
        "_last_kind",
        "_phase",
        "_reasoned",
        "_said",
        "_scan",
        "marked",
        "through",
    )

    def __init__(self) -> None:
        self.through = False  # nothing is left to be split: what comes is the answer
        self.marked = False  # a mark has come
        # "start", "opened", "thinking", "closed"; "wrapped": an answer between marks; "watching":
        # for the end of a thought; "header", "body", "between": Harmony's; "answer".
        self._phase = "start"
        self._held = ""
        self._closings: tuple[str, ...] = ()  # of the thought, or of the answer between marks
        self._reasoned = False  # there was a thought, so none can begin without its mark
        self._scan = _Scan()  # of the text that is watched
        # Of Harmony's message; whether none of its text has come; of the text before; whether any
        # was the answer's.
        self._kind: type[Content] | type[Reasoning] = Content
        self._fresh = True
        self._last_kind: type[Content] | type[Reasoning] | None = None
        self._said = False

    def feed(self, text: str, out: Gathering) -> None:
        """Sort a piece of text into `out`."""
        for start in range(0, len(text), SORTED_MAX):
            piece = text[start : start + SORTED_MAX]
            is_usual = not (self._held or _may_hold_mark(piece))
            if is_usual and self._phase == "watching":
                self._scan.add(piece)
                out.text(Content, piece)
            elif is_usual and self._phase == "thinking":
                out.text(Reasoning, piece)
            else:
                self._sort(self._held + piece, out, last=False)

    def end(self, out: Gathering) -> None:
        """The text is complete: what was held back is no mark, or the last one."""
        self._sort(self._held, out, last=True)
        held, self._held = self._held, ""
        if self._phase in ("opened", "thinking"):
            out.text(Reasoning, held)
        elif self._phase == "body":
            self._say(held, out)
        elif self._phase not in ("closed", "between") or held.strip():
            out.text(Content, held)
        self._begin_answer()

    def reasoned(self, out: Gathering) -> None:
        """A thought came beside the text: the server tells them apart itself."""
        self._reasoned = True
        if self._phase == "watching":
            out.text(Content, self._held)
            self._held = ""
            self._begin_answer()

    def called(self, out: Gathering) -> None:
        """A tool call follows: text that was held back comes before it."""
        if self._phase in ("start", "watching", "closed"):
            self.end(out)

    def _begin_answer(self) -> None:
        self._phase, self.through = "answer", True

    def _sort(self, text: str, out: Gathering, *, last: bool) -> None:
        """Go from phase to phase until the text is used up or more of it is needed."""
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
                out.text(Content, text)
                text = ""

    def _hold(self, text: str) -> str:
        self._held = text
        return ""

    # --- the beginning of an answer, and what follows a thought -----------------------------------

    def _begin(self, text: str, out: Gathering, *, last: bool) -> str:
        """Look for a mark at the beginning; what is left of the text."""
        if self._phase == "closed":
            text = text.lstrip("\n")
        begun = text.lstrip()
        if len(text) - len(begun) <= BLANK_MAX:
            if not last and _may_be_mark(begun):
                return self._hold(text)
            if channel := _CHANNEL.match(begun):
                if not WORDS.isdisjoint(_words(channel[1])):
                    self._open((_CHANNEL_ENDS,), out)
                    return begun[channel.end() :]
            elif self._phase == "start" and _HEADER.match(begun):
                self._phase, self.marked = "header", True
                return begun
            elif mark := _MARK.match(begun):
                rest = begun[mark.end() :]
                ends = _ends_thought(mark) and _stands_alone("", rest[:AHEAD], last=last)
                if ends is None:
                    return self._hold(text)
                if self._take_mark(mark, ends, out):
                    return rest
        if self._phase == "start" and not self._reasoned:
            self._phase = "watching"
        else:
            self._begin_answer()
        return text

    def _take_mark(self, mark: re.Match[str], ends: bool, out: Gathering) -> bool:
        """Take a mark at the beginning; False: it is none. `ends`: it can end a thought."""
        if _begins_thought(mark):
            self._open(_closings(mark[0]), out)
        elif ends:
            self._phase, self._reasoned, self.marked = "closed", True, True
        elif self._phase == "closed" and _begins_answer(mark):
            self._phase = "wrapped"
            self._closings = _closings(mark[0])
        else:
            return False
        return True

    def _open(self, closings: tuple[str, ...], out: Gathering) -> None:
        """A thought begins."""
        if self._phase == "closed" and self._closings:
            out.text(Reasoning, "\n\n")  # between two
        self._phase, self._reasoned, self.marked = "opened", True, True
        self._closings = closings

    def _closing(self, text: str) -> re.Match[str] | None:
        """The first mark in the text that ends the thought, or the answer between marks.

        Not a pattern of its own for each thought: to compile one takes 200 us, as much as 10,000
        characters of text.
        """
        marks = _MARK.finditer(text)
        return next((mark for mark in marks if mark[0].lower() in self._closings), None)

    def _think(self, text: str, out: Gathering) -> str:
        mark = self._closing(text)
        if mark is None:
            keep = _overlap(text, self._closings)
            out.text(Reasoning, text[: len(text) - keep])
            return self._hold(text[len(text) - keep :])
        out.text(Reasoning, text[: mark.start()])
        self._phase = "closed"
        return text[mark.end() :]

    def _unwrap(self, text: str, out: Gathering, *, last: bool) -> str:
        """An answer between marks. The second one has nothing behind it."""
        mark = self._closing(text)
        if mark is None:
            keep = _overlap(text, self._closings)
            out.text(Content, text[: len(text) - keep])
            return self._hold(text[len(text) - keep :])
        out.text(Content, text[: mark.start()])
        rest = text[mark.end() :]
        if rest.strip() or len(rest) > BLANK_MAX:
            out.text(Content, mark[0])
            return rest
        return "" if last else self._hold(text[mark.start() :])

    # --- the end of a thought whose beginning was no part of the answer ---------------------------

    def _watch(self, text: str, out: Gathering, *, last: bool) -> str:
        done = 0  # characters that were given out
        for mark in _ENDS.finditer(text):
            late = mark.lastindex is None  # one of Harmony's
            if not late and not _ends_thought(mark):
                continue
            before, done = text[done : mark.start()], mark.start()
            out.text(Content, before)
            line = self._scan.line(before)
            if self._scan.over:
                break
            ends: bool | None = line is not None
            if line is not None and not late:
                ahead = text[mark.end() : mark.end() + AHEAD]
                ends = _stands_alone(line, ahead, last=last)
            if ends is None:
                return self._hold(text[done:])
            if ends:
                out.add(ReasoningEnd())
                self._reasoned = self.marked = True
                if not late:
                    self._phase = "closed"
                    return text[mark.end() :]
                self._phase, self._last_kind = "between", Reasoning
                return text[done:]
        rest = text[done:]
        keep = 0
        if self._scan.over:
            self._begin_answer()
        elif not last:
            maybe = _CLOSING_MAYBE.search(rest[-AHEAD:])
            keep = len(maybe[0]) if maybe else 0
            if "<|" in rest or "<c" in rest:
                keep = max(keep, _overlap(rest, _LATE))
        shown = rest[: len(rest) - keep]
        self._scan.add(shown)
        out.text(Content, shown)
        return self._hold(rest[len(rest) - keep :])

    # --- Harmony ----------------------------------------------------------------------------------

    def _header(self, text: str, out: Gathering, *, last: bool) -> str:
        """A message's header, up to its text."""
        header, mark, rest = text.partition(_MESSAGE)
        if len(header) > HEADER_MAX or "\n" in header:
            if self._last_kind is None:  # another use of such marks
                self._begin_answer()
            else:
                self._phase, self._kind = "body", Content
                self._say(header, out)
                text = mark + rest
            return text
        if not mark and last and self._last_kind and _HEADER_MAYBE.fullmatch(text):
            return ""
        if not mark:
            return self._hold(text)
        # What is written to a tool is nothing for the reader of the answer.
        thinks = "analysis" in _CHANNEL_OF.findall(header)[-1:] or " to=" in header
        self._phase, self._kind, self._fresh = "body", Reasoning if thinks else Content, True
        return rest

    def _body(self, text: str, out: Gathering) -> str:
        """A message's text."""
        mark = _MESSAGE_OVER.search(text)
        if mark is None:
            keep = _overlap(text, _HARMONY_MARKS)
            self._say(text[: len(text) - keep], out)
            return self._hold(text[len(text) - keep :])
        self._say(text[: mark.start()], out)
        self._phase = "between"
        return text[mark.start() :]

    def _between(self, text: str, *, last: bool) -> str:
        """Behind a message."""
        text = text.lstrip()
        if mark := _MESSAGE_ENDS.match(text):
            return text[mark.end() :]
        if _HEADER.match(text):
            self._phase = "header"
        elif not last and any(each.startswith(text) for each in _HARMONY_MARKS):
            return self._hold(text)
        else:
            self._phase, self._kind, self._fresh = "body", Content, True
        return text

    def _say(self, text: str, out: Gathering) -> None:
        """More text of a message; messages of one kind are paragraphs."""
        if not text:
            return
        if self._fresh and (self._said if self._kind is Content else self._last_kind is Reasoning):
            out.text(self._kind, "\n\n")
        self._fresh, self._last_kind = False, self._kind
        self._said = self._said or self._kind is Content
        out.text(self._kind, text)


class _Scan:
    """What of a text that comes in pieces is code. `over`: it speaks of thoughts' marks itself."""

    __slots__ = ("_fence", "_line", "_marks", "_pieces", "over")

    def __init__(self) -> None:
        self.over = False
        self._pieces: list[str] = []  # that were not looked at
        self._line = ""  # the last line, as far as it was, without most of a long one
        self._fence = ""  # what began the block of code that is open
        self._marks = 0  # how often `line` was asked for

    def add(self, text: str) -> None:
        self._pieces.append(text)
        if len(self._pieces) > PIECES_MAX:
            self._look()

    def line(self, text: str) -> str | None:
        """Add text; the line that it ends in, None within code."""
        self.add(text)
        self._look()
        self._marks += 1
        if self._fence:
            return None
        self.over = self.over or self._marks > MARKS_MAX or _speaks_of_thoughts(self._line)
        return None if self._line.count("`") % 2 else self._line

    def _look(self) -> None:
        *lines, self._line = (self._line + "".join(self._pieces)).split("\n")
        self._pieces.clear()
        for line in lines:
            fence = _FENCE.match(line)
            if self._fence:
                if fence and fence[1].startswith(self._fence) and not line[fence.end() :].strip():
                    self._fence = ""
            elif fence and "`" not in line[fence.end() :]:
                self._fence = fence[1]
            else:
                self.over = self.over or _speaks_of_thoughts(line)
        if len(self._line) > LINE_KEPT:
            self._shorten()

    def _shorten(self) -> None:
        """Keep the beginning and the end of the line, and what tells code and quotes in between.

        So that a long line is not looked at again with each piece of it.
        """
        line, cut = self._line, len(self._line) - LINE_KEPT // 2
        self.over = self.over or (not self._fence and _speaks_of_thoughts(line[: cut + AHEAD]))
        between = line[HEAD_KEPT:cut]
        ticks = between.count("`")
        kept = [line[:HEAD_KEPT], "" if between.isspace() else "x"]
        kept += ["`" * (2 - ticks % 2) if ticks else "", '"' * (between.count('"') % 2), line[cut:]]
        self._line = "".join(kept)


def _speaks_of_thoughts(line: str) -> bool:
    """A mark that begins a thought stands in the line, and not in code."""
    outside = "`".join(line.split("`")[::2])
    return any(map(_begins_thought, _MARK.finditer(outside)))


def _stands_alone(line: str, ahead: str, *, last: bool) -> bool | None:
    """Whether a mark ends a thought, and is no word of a text about such marks; None: not clear.

    `line` is what stands before it in its line, `ahead` what follows. Models end a thought with the
    mark in a line of its own, or directly behind the last word or before the first one.
    """
    after = ahead.lstrip(" \t")
    if not after and not last and len(ahead) < AHEAD:
        return None
    following = after[:1]
    if not line.strip():
        if len(line.expandtabs(4)) > 3:
            return False  # a block of code
        line = ""
    behind_blank, before = line[-1:].isspace(), line.rstrip()[-1:]
    ends_sentence = not before or before in _SENTENCE_ENDS
    if (behind_blank and not ends_sentence) or (before and before in _OPENS):
        return False
    if line.count('"') % 2:
        return False
    if not following or following in "\r\n":
        return True
    if following in "*_~" and (behind_blank or not line.rstrip("*_~")[-1:].strip()):
        return False  # **</think>**
    if _CJK.match(before) and _CJK.match(following):
        return False  # a sentence of a script without blanks goes on
    if len(after) < len(ahead):
        return ends_sentence and not following.islower() and following not in _CLOSES
    return following not in _CLOSES and (following != '"' or ends_sentence)


def _overlap(text: str, tags: tuple[str, ...]) -> int:
    """How many characters at the end of `text` may be the beginning of one of the tags."""
    most = max(map(len, tags)) - 1
    first = min((at for tag in tags if (at := text.find(tag[0], -most)) >= 0), default=len(text))
    for start in range(first, len(text)):
        end = text[start:].lower()
        if any(tag.startswith(end) for tag in tags):
            return len(text) - start
    return 0
