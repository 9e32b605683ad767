"""Footnotes: `[^1]` in a text, and `[^1]: the note` anywhere in it.

The notes are shown at the end, in the order of their first references; those without a reference
follow. A reference without a note stays text. (mdit-py-plugins takes quadratic time for `[^[^[^`,
and drops notes without a reference.)

Only a whole text has footnotes: `environment()` turns them on. Otherwise all of it stays text.

The sanitizer allows neither identifiers nor links within the page, so the renderer writes marks
that a text cannot contain, and `link_notes` replaces them after the sanitizer.
"""

import re
from dataclasses import dataclass, field
from hashlib import blake2s
from itertools import count
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock, paragraph
from markdown_it.rules_core import StateCore
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token

INDENT = 2  # columns of the further blocks of a note; models write two or four
BACK_LINKS_MAX = 10  # of a note

_REFERENCE = re.compile(r"\[\^([^\s\[\]]{1,100})\](?!\()")
_DEFINITION = re.compile(r"\[\^([^\s\[\]]{1,100})\]:")
#: The marks in sanitized HTML. A text has no `<` outside of a tag, and no `"` within an attribute.
_MARKS = re.compile(r'<sup class="(note|back)">([0-9]+)\.([0-9]+)</sup>|<li class="note"')
_LINKED = re.compile(r'<(?:li id="n|a href="#n|a class="back" href="#r)([0-9a-f]{8})-[^<>]*>')


def add_footnotes(parser: MarkdownIt) -> None:
    """Add the rules for footnotes to a parser."""
    parser.block.ruler.before(
        "reference", "note", _note, {"alt": ["paragraph", "reference", "blockquote", "list"]}
    )
    parser.inline.ruler.before("link", "note_reference", _note_reference)
    parser.core.ruler.after("inline", "notes", _number_notes)


def environment() -> dict[str, Any]:
    """What the parser needs to find the footnotes of a whole text."""
    return {"notes": set()}


def link_notes(html_text: str, source: str) -> str:
    """Sanitized HTML with links between the references and the notes.

    The identifiers depend on the source, since several answers are on one page.
    """
    digest = blake2s(source.encode(), digest_size=4).hexdigest()
    numbers = count(1)

    def linked(mark: re.Match[str]) -> str:
        kind, note, reference = mark.groups()
        if not kind:
            return f'<li id="n{digest}-{next(numbers)}"'
        place = f"r{digest}-{note}-{reference}"
        if kind == "back":
            return (
                f'<a class="back" href="#{place}" role="doc-backlink" '
                'aria-label="Back to the text">\u21a9\ufe0e</a>'
            )
        place = f' id="{place}"' if reference != "0" else ""
        return f'<sup><a href="#n{digest}-{note}" role="doc-noteref"{place}>{note}</a></sup>'

    return _MARKS.sub(linked, html_text)


def with_notes_of(html_text: str, answer_id: str) -> str:
    """The HTML of `link_notes` with the identifiers of one answer: others may have its text."""
    if '<li id="n' not in html_text:
        return html_text
    return _LINKED.sub(lambda tag: tag[0].replace(tag[1], answer_id), html_text)


def _note(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """Block rule for a note; without footnotes, a paragraph."""
    at, stop = state.bMarks[start] + state.tShift[start], state.eMarks[start]
    if not state.src.startswith("[^", at) or state.is_code_block(start):
        return False
    match = _DEFINITION.match(state.src, at, stop)
    if not match or silent:
        return match is not None
    if "notes" not in state.env:  # a link definition has the same form, and is not shown
        return paragraph(state, start, end, False)
    label = match[1].casefold()
    state.env["notes"].add(label)
    token = state.push("note_open", "li", 1)
    token.meta["label"] = label
    line_before = state.bMarks[start], state.tShift[start], state.sCount[start]
    before = state.parentType, state.tight, state.blkIndent, state.lineMax
    text_at = match.end()
    while text_at < stop and state.src[text_at] in " \t":
        text_at += 1
    state.parentType = "note"
    state.blkIndent += INDENT
    state.bMarks[start], state.tShift[start], state.sCount[start] = text_at, 0, state.blkIndent
    # A line of text that is not indented ends the note, as models write it.
    stop_line = start + 1
    while stop_line < end and (
        state.isEmpty(stop_line) or state.sCount[stop_line] >= state.blkIndent
    ):
        stop_line += 1
    state.lineMax = stop_line
    state.md.block.tokenize(state, start, stop_line)
    state.bMarks[start], state.tShift[start], state.sCount[start] = line_before
    state.parentType, state.tight, state.blkIndent, state.lineMax = before
    state.push("note_close", "li", -1)
    return True


def _note_reference(state: StateInline, silent: bool) -> bool:
    """Inline rule for a reference to a note that the text has."""
    notes = state.env.get("notes")
    if not notes or state.linkLevel or not state.src.startswith("[^", state.pos):
        return False
    match = _REFERENCE.match(state.src, state.pos, state.posMax)
    if not match or match[1].casefold() not in notes:
        return False
    if not silent:
        token = state.push("note_reference", "sup", 0)
        token.content, token.meta = match[0], {"label": match[1].casefold()}
    state.pos = match.end()
    return True


@dataclass
class _Note:
    label: str
    tokens: list[Token] = field(default_factory=list)
    number: int = 0  # 0: none yet
    references: int = 0


def _number_notes(state: StateCore) -> None:
    """Core rule: moves the notes to the end and numbers them."""
    if not state.env.get("notes"):
        return
    text, notes = _without_notes(state.tokens)
    by_label: dict[str, _Note] = {}
    for note in notes:
        by_label.setdefault(note.label, note)
    ordered: list[_Note] = []

    def add(note: _Note) -> None:
        ordered.append(note)
        note.number = len(ordered)

    def number_references(tokens: list[Token]) -> None:
        for token in tokens:
            for child in token.children or ():
                if child.type == "note_reference":
                    note = by_label[child.meta["label"]]
                    if not note.number:
                        add(note)
                    note.references += 1
                    is_linked = note.references <= BACK_LINKS_MAX
                    child.meta = {"note": note.number, "at": note.references if is_linked else 0}

    number_references(text)
    numbered = 0
    for unused in [None, *notes]:
        if unused and not unused.number:
            add(unused)
        while numbered < len(ordered):  # the notes may refer to notes
            number_references(ordered[numbered].tokens)
            numbered += 1
    state.tokens = text
    state.tokens.append(_token("notes_open", "ol", 1))
    for note in ordered:
        state.tokens.append(_token("note_open", "li", 1, **{"class": "note"}))
        state.tokens += _with_back_links(note)
        state.tokens.append(_token("note_close", "li", -1))
    state.tokens.append(_token("notes_close", "ol", -1))


def _without_notes(tokens: list[Token]) -> tuple[list[Token], list[_Note]]:
    """The other tokens, without the lists and quotes that had notes alone; and the notes."""
    text: list[Token] = []
    notes: list[_Note] = []
    outputs = [text]
    for token in tokens:
        output = outputs[-1]
        if token.type == "note_open":
            if output and output[-1].nesting > 0:
                output[-1].meta["has_note"] = True
            notes.append(_Note(token.meta["label"]))
            outputs.append(notes[-1].tokens)
        elif token.type == "note_close":
            outputs.pop()
        elif token.nesting < 0 and output and output[-1].meta.get("has_note"):
            output.pop()
            if output and output[-1].nesting > 0:
                output[-1].meta["has_note"] = True
        else:
            output.append(token)
    return text, notes


def _with_back_links(note: _Note) -> list[Token]:
    """The note's tokens with its back links at the end of its last paragraph, or below it."""
    links = [
        Token("note_back", "sup", 0, meta={"note": note.number, "at": at})
        for at in range(1, min(note.references, BACK_LINKS_MAX) + 1)
    ]
    if len(note.tokens) >= 3 and note.tokens[-1].type == "paragraph_close":
        note.tokens[-2].children = [*(note.tokens[-2].children or ()), *links]
        return note.tokens
    if not links:
        return note.tokens
    inline = Token("inline", "", 0, children=links)
    paragraph_tokens = [
        _token("paragraph_open", "p", 1),
        inline,
        _token("paragraph_close", "p", -1),
    ]
    return note.tokens + paragraph_tokens


def _token(kind: str, tag: str, nesting: Any, **attributes: str) -> Token:
    return Token(kind, tag, nesting, attrs=dict(attributes), block=True)


def note_mark(token: Token) -> str:
    """The mark for a reference or a back link, which `link_notes` replaces."""
    kind = "note" if token.type == "note_reference" else "back"
    return f'<sup class="{kind}">{token.meta["note"]}.{token.meta["at"]}</sup>'
