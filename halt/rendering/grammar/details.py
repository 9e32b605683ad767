"""`<details>` and `<summary>`: a part of a text that is opened by its title.

Tags count at the beginning of a line, and `</details>` also at the end of a paragraph. They are
paired once, after the blocks are parsed, within one list item or quote; a tag without its partner
stays text.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock
from markdown_it.rules_core import StateCore
from markdown_it.token import Token

NESTING_MAX = 8  # details within details
SUMMARY_LINES_MAX = 4  # lines of a summary

_TAG = re.compile(
    r"(?P<open><details(?P<is_open> open(?:=(?:\"[a-z]*\"|'[a-z]*'|[a-z]+))?)?[ \t]*>)"
    r"|(?P<close></details>)|<summary>",
    re.IGNORECASE,
)
_SUMMARY_END = re.compile("</summary>", re.IGNORECASE)
_HEADING = re.compile(r"<(h[1-6])>(.*)</\1>", re.IGNORECASE | re.DOTALL)
_CLOSE_AT_END = re.compile(r"</details>\s*\Z", re.IGNORECASE)


def add_details(parser: MarkdownIt) -> None:
    """Add the rules for details to a parser."""
    parser.block.ruler.before(
        "reference", "details", _tags, {"alt": ["paragraph", "reference", "blockquote", "list"]}
    )
    parser.core.ruler.after("block", "details", _pair_tags)


def flat_details(state: StateCore) -> None:
    """Core rule for a terminal, in place of "details": summaries in bold, and no tags."""
    tokens: list[Token] = []
    for token in state.tokens:
        if token.type == "details_tag":
            if token.meta["kind"] == "summary":
                tokens += _paragraph(f"<b>{_title(token)}</b>", token.level)
            continue
        if token.type == "inline":
            token.content = _CLOSE_AT_END.sub("", token.content)
        tokens.append(token)
    state.tokens = tokens


def _tags(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """Block rule for the tags at the beginning of a line; what follows them is another block."""
    line = start
    at, stop = state.bMarks[line] + state.tShift[line], state.eMarks[line]
    if not state.src.startswith("<", at) or state.is_code_block(start):
        return False
    if silent:
        return _TAG.match(state.src, at, stop) is not None
    while match := _TAG.match(state.src, at, stop):
        title = ""
        if match["open"]:
            kind = "open"
        elif match["close"]:
            kind = "close"
        elif (summary := _summary(state, line, match.end(), end)) is not None:
            kind = "summary"
            title, line, after = summary
        else:
            break
        token = state.push("details_tag", "", 0)
        token.meta = {"kind": kind, "title": title, "is_open": bool(match["is_open"])}
        token.content = match[0] if kind != "summary" else f"<summary>{title}</summary>"
        at, stop = after if kind == "summary" else match.end(), state.eMarks[line]
        while at < stop and state.src[at] in " \t":
            at += 1
    if at == state.bMarks[start] + state.tShift[start]:
        return False
    state.line = line + 1
    if at < stop:
        _parse_rest(state, line, at, end)
    return True


def _summary(state: StateBlock, line: int, at: int, end: int) -> tuple[str, int, int] | None:
    """The title that begins at `at`, the line of its end tag, and the place after that tag."""
    parts: list[str] = []
    for last in range(line, min(line + SUMMARY_LINES_MAX, end)):
        if last > line:
            if state.isEmpty(last) or state.sCount[last] < state.blkIndent:
                return None
            at = state.bMarks[last] + state.tShift[last]
        if match := _SUMMARY_END.search(state.src, at, state.eMarks[last]):
            parts.append(state.src[at : match.start()])
            return "\n".join(parts).strip(), last, match.end()
        parts.append(state.src[at : state.eMarks[last]])
    return None


def _parse_rest(state: StateBlock, line: int, at: int, end: int) -> None:
    """Parse the block that begins within a line."""
    before = state.bMarks[line], state.tShift[line], state.sCount[line]
    state.bMarks[line], state.tShift[line], state.sCount[line] = at, 0, state.blkIndent
    for rule in state.md.block.ruler.getRules(""):
        if rule(state, line, end, False):
            break
    state.bMarks[line], state.tShift[line], state.sCount[line] = before


@dataclass
class _Tag:
    """A tag among the tokens; each one that has a partner becomes an element."""

    token: Token
    is_paired: bool = False


def _pair_tags(state: StateCore) -> None:
    """Core rule: turns paired tags into elements, and the others into text. Linear."""
    if not any(token.type == "details_tag" for token in state.tokens):
        return
    tokens: list[Token | _Tag] = []
    opened: list[_Tag] = []  # in the innermost list item or quote
    outer: list[list[_Tag]] = []  # those around it

    def close(tag: _Tag) -> None:
        tokens.append(tag)
        if opened:
            opened.pop().is_paired = tag.is_paired = True

    closing = 0  # tags at the end of the paragraph that is not closed yet
    for token in state.tokens:
        if token.type == "details_tag":
            tag = _Tag(token)
            kind = token.meta["kind"]
            if kind == "close":
                close(tag)
                continue
            previous = tokens[-1] if tokens else None
            if kind == "open" and len(opened) < NESTING_MAX:
                opened.append(tag)
            elif kind == "summary" and opened and previous is opened[-1]:
                previous.token.meta["summary"] = tag
            tokens.append(tag)
            continue
        if token.nesting > 0:
            outer.append(opened)
            opened = opened if token.type == "paragraph_open" else []
        elif token.nesting < 0 and outer:
            opened = outer.pop()
        elif token.type == "inline":
            while closing < len(opened) and (match := _CLOSE_AT_END.search(token.content)):
                token.content = token.content[: match.start()]
                closing += 1
        tokens.append(token)
        while closing and token.type == "paragraph_close":
            close(_Tag(Token("details_tag", "", 0, level=token.level, meta={"kind": "close"})))
            closing -= 1
    state.tokens = list(_elements(tokens))


def _elements(tokens: list[Token | _Tag]) -> Iterator[Token]:
    """The tokens, with elements for the paired tags and paragraphs for the others."""
    texts: list[str] = []  # of adjacent tags without partners
    level = 0
    for item in tokens:
        if isinstance(item, _Tag) and not item.is_paired:
            texts.append(item.token.content)
            level = item.token.level
            continue
        if texts:
            yield from _paragraph("\n".join(texts), level)
            texts = []
        if isinstance(item, Token):
            yield item
            continue
        level = item.token.level
        if item.token.meta["kind"] == "close":
            yield Token("details_close", "details", -1, level=level, block=True)
        elif item.token.meta["kind"] == "open":
            token = Token("details_open", "details", 1, level=level, block=True)
            if item.token.meta["is_open"]:
                token.attrs["open"] = ""
            yield token
            summary = item.token.meta.get("summary")
            if summary:
                summary.is_paired = True
            title = _title(summary.token) if summary else "Details"
            yield from _block("summary", title, level)
    if texts:
        yield from _paragraph("\n".join(texts), level)


def _title(summary: Token) -> str:
    """The text of a summary, without the tags of a heading around it."""
    title = str(summary.meta["title"])
    match = _HEADING.fullmatch(title)
    return (match[2].strip() if match else title) or "Details"


def _paragraph(content: str, level: int) -> tuple[Token, ...]:
    return _block("paragraph", content, level, "p")


def _block(kind: str, content: str, level: int, tag: str = "") -> tuple[Token, ...]:
    tag = tag or kind
    return (
        Token(f"{kind}_open", tag, 1, level=level, block=True),
        Token("inline", "", 0, level=level + 1, content=content, children=[]),
        Token(f"{kind}_close", tag, -1, level=level, block=True),
    )
