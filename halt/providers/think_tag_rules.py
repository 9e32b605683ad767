"""Rules for think tags: what is a tag, and whether it is markup or part of a text about tags."""

from __future__ import annotations

import re

#: A tag is a think tag if its name contains one of these words.
WORDS = frozenset(
    {"think", "thinking", "thought", "thoughts", "reasoning", "reflection"}
    | {"cot", "monologue", "scratchpad"}
)
#: Words of special tokens (`<|...|>`) around the answer that follows the reasoning.
ANSWERS = frozenset(["answer", "response", "solution", "text"])

BARS = "|\uff5c"
_NAME = r"[\w:.\u2581-]"
# The text between the brackets is group 1 for <>, 2 for [], 3 or 4 for others. Each branch begins
# with a fixed character, so a search skips all other characters fast.
TAG = re.compile(
    rf"<([{BARS}]?/?{_NAME}{{1,40}}[{BARS}]?)>|\[(/?{_NAME}{{1,40}})\]"
    rf"|\u25c1(/?{_NAME}{{1,40}})[\u25b7\u27e9]|\u27e8(/?{_NAME}{{1,40}})[\u25b7\u27e9]"
)
_OPENERS = ("<", "[", "\u25c1", "\u27e8")  # first characters of tags
_TAG_MAYBE = re.compile(
    rf"(?:<[{BARS}]?/?{_NAME}{{0,40}}[{BARS}]?|[\[\u25c1\u27e8]/?{_NAME}{{0,40}})\Z"
)
CLOSING_MAYBE = re.compile(
    rf"(?:<|</{_NAME}{{0,40}}|<[{BARS}]/?{_NAME}{{0,40}}[{BARS}]?"
    rf"|[\[\u25c1\u27e8](?:/{_NAME}{{0,40}})?)\Z"
)
_CJK = re.compile("[\u0e00-\u0eff\u2e80-\u2fdf\u3041-\u30ff\u3400-\u9fff\uac00-\ud7af]")
_SEPARATOR = re.compile(r"[_:.\u2581-]+")
CHANNEL = re.compile(r"<\|channel>([a-z_]{1,40})\n", re.IGNORECASE)
_CHANNEL_MAYBE = re.compile(r"<\|channel>[a-z_]{0,40}\Z", re.IGNORECASE)
CHANNEL_ENDS = "<channel|>"

_FENCE = re.compile(r"[ \t>]*(?:(?:[-*+]|\d+[.)])[ \t]+)?(`{3,}|~{3,})")
_SENTENCE_ENDS = ".!?\u2026\u3002\uff01\uff1f)]}*_\"'\u201d\u2019\u300d"
_OPENS = "([{<\u201c\u2018\u00ab\u300c/|=:"  # no think tag directly follows these
_CLOSES = ".,;:!?)]}>'\u2019\u201d\u00bb\u300d\u2026/|`\u3002\uff0c\u3001"  # nor precedes these
AHEAD = 64  # characters after a tag that are checked
LINE_KEPT = 8_192  # characters of a line that are kept to be scanned again
HEAD_KEPT = 200  # characters of its beginning, as part of those
PIECES_MAX = 1_000  # pieces of text that are stored before they are scanned
TAGS_MAX = 100  # tags that are no markup, after which the search for tags stops


def name_words(name: str) -> list[str]:
    return _SEPARATOR.split(name.lower())


def _inner(tag: re.Match[str]) -> str:
    """Return the text between a tag's brackets."""
    return tag[1] or tag[2] or tag[3] or tag[4]


def opens_reasoning(tag: re.Match[str]) -> bool:
    inner = _inner(tag)
    if tag[2] and not inner.isupper():
        return False  # [thinking] in lower case is an ordinary word in brackets
    words = name_words(inner.strip(BARS))
    return not (words[0].startswith("/") or "end" in words or WORDS.isdisjoint(words))


def closes_reasoning(tag: re.Match[str]) -> bool:
    inner = _inner(tag).strip(BARS)
    words = name_words(inner.lstrip("/"))
    if tag[0].lower() == CHANNEL_ENDS:
        return True
    return not WORDS.isdisjoint(words) and (inner.startswith("/") or "end" in words)


def opens_answer(tag: re.Match[str]) -> bool:
    words = name_words(_inner(tag).strip(BARS))
    return tag[0][1] in BARS and "end" not in words and not ANSWERS.isdisjoint(words)


def may_hold_tag(text: str) -> bool:
    """Whether a tag, or part of one, may begin in the text."""
    return any(opener in text for opener in _OPENERS)


def may_be_tag(text: str) -> bool:
    return not text or bool(_TAG_MAYBE.match(text) or _CHANNEL_MAYBE.match(text))


def closing_tags(tag: str) -> tuple[str, ...]:
    """Return the closing tags, in lower case, of an opening tag."""
    tag = tag.lower()
    first = 2 if tag[1] in BARS else 1
    ended = re.sub(r"(?<![^\W_])(?:begin|start)(?![^\W_])", "end", tag)
    closing = f"{tag[:first]}/{tag[first:]}"
    return (closing,) if ended == tag else (closing, ended)


class CodeScanner:
    """Tracks code blocks and code spans in a text that arrives in pieces.

    `over`: the text itself is about think tags, or has too many, so no more are searched.
    """

    __slots__ = ("_fence", "_line", "_pieces", "_tags", "over")

    def __init__(self) -> None:
        self.over = False
        self._pieces: list[str] = []  # not scanned yet
        self._line = ""  # the last line as far as scanned; a long one is shortened
        self._fence = ""  # the fence of the open code block
        self._tags = 0  # number of calls of `line`

    def add(self, text: str) -> None:
        self._pieces.append(text)
        if len(self._pieces) > PIECES_MAX:
            self._scan()

    def line(self, text: str) -> str | None:
        """Add text; return the unfinished line at its end, None within code."""
        self.add(text)
        self._scan()
        self._tags += 1
        if self._fence:
            return None
        self.over = self.over or self._tags > TAGS_MAX or _mentions_think_tag(self._line)
        return None if self._line.count("`") % 2 else self._line

    def _scan(self) -> None:
        text = self._line + "".join(self._pieces)
        self._pieces.clear()
        complete, _, self._line = text.rpartition("\n")
        # Most texts have neither: without this check, 100,000 lines in one event took 70 ms.
        mentions = _mentions_think_tag(complete, code=True)
        if mentions or "```" in complete or "~~~" in complete:
            self._scan_lines(complete.split("\n"), mentions=mentions)
        if len(self._line) > LINE_KEPT:
            self._shorten()

    def _scan_lines(self, lines: list[str], *, mentions: bool) -> None:
        """Scan complete lines. `mentions`: one of them may have an opening think tag."""
        for line in lines:
            fence = _FENCE.match(line)
            if self._fence:
                if fence and fence[1].startswith(self._fence) and not line[fence.end() :].strip():
                    self._fence = ""
            elif fence and "`" not in line[fence.end() :]:
                self._fence = fence[1]
            elif mentions:
                self.over = self.over or _mentions_think_tag(line)

    def _shorten(self) -> None:
        """Keep the line's beginning and end, and the parity of code and quote marks in between.

        So a long line is not scanned again with each piece of it.
        """
        line, cut = self._line, len(self._line) - LINE_KEPT // 2
        self.over = self.over or (not self._fence and _mentions_think_tag(line[: cut + AHEAD]))
        between = line[HEAD_KEPT:cut]
        ticks = between.count("`")
        parts = [line[:HEAD_KEPT], "" if between.isspace() else "x"]
        parts += [
            "`" * (2 - ticks % 2) if ticks else "",
            '"' * (between.count('"') % 2),
            line[cut:],
        ]
        self._line = "".join(parts)


def _mentions_think_tag(text: str, *, code: bool = False) -> bool:
    """Whether a line has an opening think tag outside code spans; with `code` also within them."""
    searched = text if code else "`".join(text.split("`")[::2])
    return any(map(opens_reasoning, TAG.finditer(searched)))


def is_standalone(line: str, ahead: str, *, last: bool) -> bool | None:
    """Whether a tag ends the reasoning, and is not part of a text about tags; None: undecided.

    `line` is the text before the tag in its line, `ahead` the text after it. Models put the closing
    tag on a separate line, directly after the last word, or directly before the first one.
    """
    after = ahead.lstrip(" \t")
    if not after and not last and len(ahead) < AHEAD:
        return None
    following = after[:1]
    if not line.strip():
        if len(line.expandtabs(4)) > 3:
            return False  # an indented code block
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
        return False  # within a sentence of a script without spaces
    if len(after) < len(ahead):
        return ends_sentence and not following.islower() and following not in _CLOSES
    return following not in _CLOSES and (following != '"' or ends_sentence)


def overlap(text: str, tags: tuple[str, ...]) -> int:
    """Return how many characters at the end of `text` may be the beginning of one of the tags."""
    max_size = max(map(len, tags)) - 1
    first = min(
        (at for tag in tags if (at := text.find(tag[0], -max_size)) >= 0), default=len(text)
    )
    for start in range(first, len(text)):
        end = text[start:].lower()
        if any(tag.startswith(end) for tag in tags):
            return len(text) - start
    return 0
