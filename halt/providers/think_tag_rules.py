"""What a tag of a model's thoughts is, and whether one stands in its place or is spoken of."""

from __future__ import annotations

import re

#: A tag's name means a thought where one of these is a word of it.
WORDS = frozenset(
    {"think", "thinking", "thought", "thoughts", "reasoning", "reflection"}
    | {"cot", "monologue", "scratchpad"}
)
#: Words of special tokens (`<|...|>`) around the answer that follows a thought.
ANSWERS = frozenset(["answer", "response", "solution", "text"])

BARS = "|\uff5c"
_NAME = r"[\w:.\u2581-]"
# What stands between the brackets is group 1, or 2 in square ones, or 3 or 4. Each branch begins
# with one character, so a search skips all others at once.
TAG = re.compile(
    rf"<([{BARS}]?/?{_NAME}{{1,40}}[{BARS}]?)>|\[(/?{_NAME}{{1,40}})\]"
    rf"|\u25c1(/?{_NAME}{{1,40}})[\u25b7\u27e9]|\u27e8(/?{_NAME}{{1,40}})[\u25b7\u27e9]"
)
_OPENERS = ("<", "[", "\u25c1", "\u27e8")  # what tags begin with
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
_OPENS = "([{<\u201c\u2018\u00ab\u300c/|=:"  # no tag stands directly behind these
_CLOSES = ".,;:!?)]}>'\u2019\u201d\u00bb\u300d\u2026/|`\u3002\uff0c\u3001"  # nor before these
AHEAD = 64  # characters behind a tag that are looked at
LINE_KEPT = 8_192  # characters of a line that are kept to be looked at again
HEAD_KEPT = 200  # of those, characters of its beginning
PIECES_MAX = 1_000  # pieces of text that are kept before they are looked at
TAGS_MAX = 100  # tags that turn out to be none, after which no other is looked for


def name_words(name: str) -> list[str]:
    return _SEPARATOR.split(name.lower())


def _inner(tag: re.Match[str]) -> str:
    """What stands between a tag's brackets."""
    return tag[1] or tag[2] or tag[3] or tag[4]


def begins_thought(tag: re.Match[str]) -> bool:
    inner = _inner(tag)
    if tag[2] and not inner.isupper():
        return False  # [thinking] is a word in brackets
    words = name_words(inner.strip(BARS))
    return not (words[0].startswith("/") or "end" in words or WORDS.isdisjoint(words))


def ends_thought(tag: re.Match[str]) -> bool:
    inner = _inner(tag).strip(BARS)
    words = name_words(inner.lstrip("/"))
    if tag[0].lower() == CHANNEL_ENDS:
        return True
    return not WORDS.isdisjoint(words) and (inner.startswith("/") or "end" in words)


def begins_answer(tag: re.Match[str]) -> bool:
    words = name_words(_inner(tag).strip(BARS))
    return tag[0][1] in BARS and "end" not in words and not ANSWERS.isdisjoint(words)


def may_hold_tag(text: str) -> bool:
    """Whether a tag, or a part of one, may begin in the text."""
    return any(opener in text for opener in _OPENERS)


def may_be_tag(text: str) -> bool:
    return not text or bool(_TAG_MAYBE.match(text) or _CHANNEL_MAYBE.match(text))


def closing_tags(tag: str) -> tuple[str, ...]:
    """The tags, in lower case, that end what this one begins."""
    tag = tag.lower()
    first = 2 if tag[1] in BARS else 1
    ended = re.sub(r"(?<![^\W_])(?:begin|start)(?![^\W_])", "end", tag)
    closing = f"{tag[:first]}/{tag[first:]}"
    return (closing,) if ended == tag else (closing, ended)


class Scan:
    """What of a text that comes in pieces is code. `over`: it speaks of thoughts' tags itself."""

    __slots__ = ("_fence", "_line", "_pieces", "_tags", "over")

    def __init__(self) -> None:
        self.over = False
        self._pieces: list[str] = []  # that were not looked at
        self._line = ""  # the last line, as far as it was, without most of a long one
        self._fence = ""  # what began the block of code that is open
        self._tags = 0  # how often `line` was asked for

    def add(self, text: str) -> None:
        self._pieces.append(text)
        if len(self._pieces) > PIECES_MAX:
            self._look()

    def line(self, text: str) -> str | None:
        """Add text; the line that it ends in, None within code."""
        self.add(text)
        self._look()
        self._tags += 1
        if self._fence:
            return None
        self.over = self.over or self._tags > TAGS_MAX or _speaks_of_thoughts(self._line)
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
    """A tag that begins a thought stands in the line, and not in code."""
    outside = "`".join(line.split("`")[::2])
    return any(map(begins_thought, TAG.finditer(outside)))


def stands_alone(line: str, ahead: str, *, last: bool) -> bool | None:
    """Whether a tag ends a thought, and is no word of a text about such tags; None: not clear.

    `line` is what stands before it in its line, `ahead` what follows. Models end a thought with the
    tag in a line of its own, or directly behind the last word or before the first one.
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


def overlap(text: str, tags: tuple[str, ...]) -> int:
    """How many characters at the end of `text` may be the beginning of one of the tags."""
    most = max(map(len, tags)) - 1
    first = min((at for tag in tags if (at := text.find(tag[0], -most)) >= 0), default=len(text))
    for start in range(first, len(text)):
        end = text[start:].lower()
        if any(tag.startswith(end) for tag in tags):
            return len(text) - start
    return 0
