"""Syntax highlighting: pygments lexers, and the CSS classes of their tokens.

`Colours.highlight` takes unbounded time for some texts: every lexer is quadratic somewhere, and
some patterns backtrack for ever. The server calls it through `halt.rendering.renderer`, whose child
process limits its CPU time with a signal.
"""

from __future__ import annotations

import html
import threading
from collections.abc import Callable
from functools import cache
from itertools import groupby
from typing import Any

from pygments import lexers  # type: ignore[import-untyped, unused-ignore]
from pygments import token as kinds  # type: ignore[import-untyped, unused-ignore]

from halt.rendering.cache import Cache, key_of
from halt.rendering.protocol import Rendered
from halt.rendering.sanitizing import cleaner

HIGHLIGHTED_MAX = 50_000  # characters of code: ordinary code takes 0.15 s

#: The highlighted languages, each by one of its aliases.
LANGUAGES = (
    "asm awk bash bat c clojure cmake cpp csharp css dart diff docker elixir erlang fortran fsharp"
    " go graphql groovy haskell html http java javascript jinja json jsx julia kotlin latex less"
    " lisp lua makefile markdown mysql nginx nim nix objective-c perl php postgresql powershell"
    " protobuf python r ruby rust scala scss solidity sql swift terraform toml tsx typescript typst"
    " vim vue xml yaml zig"
)
ALIASES: dict[str, str] = {
    alias: aliases[0]
    for _, aliases, _, _ in lexers.get_all_lexers(plugins=False)
    if not set(LANGUAGES.split()).isdisjoint(aliases)
    for alias in aliases
}

# CSS class of each kind of token; a kind that is not listed has its parent's. static/css/code.css
# styles these classes and no others.
TOKEN_CLASSES: dict[Any, str] = {
    kinds.Token: "",
    kinds.Comment: "c",
    kinds.Comment.Preproc: "k",
    kinds.Generic.Deleted: "gd",
    kinds.Generic.Heading: "gh",
    kinds.Generic.Inserted: "gi",
    kinds.Generic.Subheading: "gh",
    kinds.Keyword: "k",
    kinds.Keyword.Type: "nc",
    kinds.Name.Attribute: "na",
    kinds.Name.Builtin: "nb",
    kinds.Name.Class: "nc",
    kinds.Name.Decorator: "nf",
    kinds.Name.Exception: "nc",
    kinds.Name.Function: "nf",
    kinds.Name.Tag: "nt",
    kinds.Number: "m",
    kinds.Operator: "o",
    kinds.Operator.Word: "k",
    kinds.String: "s",
    kinds.String.Escape: "se",
    kinds.String.Interpol: "se",
}


@cache
def _token_class(kind: Any) -> str:
    while kind not in TOKEN_CLASSES:
        kind = kind.parent
    return TOKEN_CLASSES[kind]


def _highlighted(lexer: Any, code: str) -> str:
    """The code as escaped HTML, with a span for each coloured run of tokens."""
    runs = groupby(lexer.get_tokens(code), lambda token: _token_class(token[0]))
    escaped = (
        (css, html.escape("".join(text for _, text in run), quote=False)) for css, run in runs
    )
    return "".join(f'<span class="{css}">{text}</span>' if css else text for css, text in escaped)


_making_lexer = threading.Lock()

#: Calls the function for a text of this many characters; returns None if it took too long.
Limit = Callable[[int, Callable[[], str]], str | None]


def _unlimited(_: int, work: Callable[[], str]) -> str | None:
    return work()


class Colours:
    """Highlights code blocks; implements `halt.rendering.code_box.Colours`."""

    cleaner = cleaner(set(ALIASES.values()), set(TOKEN_CLASSES.values()) - {""})

    def __init__(self, limit: Limit = _unlimited, cache: Cache | None = None) -> None:
        """`limit` calls the highlighting function of each block, and may stop it.

        `cache` keeps the results: a block is highlighted while its answer is written, and again in
        the whole answer.
        """
        self._limit = limit
        self._cache = cache if cache is not None else Cache(0)

    def highlight(self, code: str, label: str) -> tuple[str, str | None]:
        """The language of a fence's label ("": unknown) and the code as HTML (None: uncoloured)."""
        language = ALIASES.get(label.lower(), "")
        if not language or len(code) > HIGHLIGHTED_MAX:
            return language, None
        key = key_of(language, code)
        if kept := self._cache.find(key):
            return language, kept.html
        # A new lexer for each block, because lexers have state. It is made before the time limit
        # starts, because the first lexer of a language is imported and compiled; under a lock,
        # because pygments modifies its rules while it compiles them; not at start-up, because all
        # lexers together take 0.6 s.
        with _making_lexer:
            lexer = lexers.get_lexer_by_name(language, stripnl=False, ensurenl=False)
        coloured = self._limit(len(code), lambda: _highlighted(lexer, code))
        if coloured is not None:
            self._cache.keep(key, Rendered(coloured))
        return language, coloured
