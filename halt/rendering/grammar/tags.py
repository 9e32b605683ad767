"""The HTML tags of models that have an effect within a text: `<br>`, and pairs such as `<sub>`.

A pair has no attributes, is written in lower or upper case and lies within one text (a paragraph, a
table cell), properly nested with emphasis and links. Every other tag stays text.
"""

import re
from collections import Counter

from markdown_it import MarkdownIt
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token

#: The element that each tag becomes.
ELEMENTS = {
    **{tag: tag for tag in ("em", "kbd", "mark", "s", "small", "strong", "sub", "sup", "u")},
    "b": "strong",
    "del": "s",
    "i": "em",
    "ins": "u",
}
NESTING_MAX = 8  # pairs within pairs

BREAK = re.compile(r"</?br[ \t]*/?>[ \t]*\n?[ \t]*", re.IGNORECASE)
_NAMES = "|".join(ELEMENTS)
_TAG = re.compile(f"<(/?)({_NAMES}|{_NAMES.upper()})>")


def add_tags(parser: MarkdownIt) -> None:
    """Add the rules for tags to a parser."""
    parser.inline.ruler.before("autolink", "break", _break)
    parser.inline.ruler.before("autolink", "tag", _tag)
    parser.inline.ruler2.before("fragments_join", "tag_pairs", _pair_tags)


def _break(state: StateInline, silent: bool) -> bool:
    """Inline rule for `<br>`."""
    match = BREAK.match(state.src, state.pos, state.posMax)
    if not match:
        return False
    if not silent:
        state.push("hardbreak", "br", 0).info = "tag"
    state.pos = match.end()
    return True


def _tag(state: StateInline, silent: bool) -> bool:
    """Inline rule for a tag of a pair; `_pair_tags` decides whether it is one."""
    match = _TAG.match(state.src, state.pos, state.posMax)
    if not match:
        return False
    if not silent:
        token = state.push("tag", match[2].lower(), 0)
        token.content, token.info = match[0], match[1]
    state.pos = match.end()
    return True


def _pair_tags(state: StateInline) -> None:
    """Post-processing rule: turns paired tags into elements, and the others into text.

    Linear: each token is added to the open ones and removed from them at most once.
    """
    if not any(token.type == "tag" for token in state.tokens):
        return
    open_tags: list[int] = []  # the indexes of the tags that are open in the innermost element
    outer: list[list[int]] = []  # those of each element around it
    counts: Counter[str] = Counter()  # of `open_tags`, by name
    for index, token in enumerate(state.tokens):
        if token.type == "tag":
            name = token.tag
            if not token.info:
                if len(open_tags) < NESTING_MAX:
                    open_tags.append(index)
                    counts[name] += 1
            elif counts[name]:
                while state.tokens[at := open_tags.pop()].tag != name:
                    counts[state.tokens[at].tag] -= 1
                counts[name] -= 1
                if at + 1 < index:  # an empty pair is about the tags themselves
                    _become(state.tokens[at], "_open", 1)
                    _become(token, "_close", -1)
        elif token.nesting > 0:
            outer.append(open_tags)
            open_tags, counts = [], Counter()
        elif token.nesting < 0 and outer:
            open_tags = outer.pop()
            counts = Counter(state.tokens[at].tag for at in open_tags)
    for token in state.tokens:
        if token.type == "tag":
            token.type = "text"


def _become(token: Token, suffix: str, nesting: int) -> None:
    token.tag = ELEMENTS[token.tag]
    token.type, token.nesting = token.tag + suffix, nesting  # type: ignore[assignment]
    token.content = token.info = ""
