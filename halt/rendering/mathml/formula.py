r"""Converts a TeX formula to MathML, with math-core.

math-core raises on a command that it does not know; the caller then shows the formula's source.
Three of its properties need care, since TeX of a language model is untrusted: its recursion has no
limit, so deep nesting ends the process (`_is_bounded` counts before the call); open brackets take
exponential time (`brackets`); it writes style attributes (`styles`).

Formulas have no state: no numbers of equations (but `\tag` works), no labels and references, no
definitions of macros.
"""

import re

from math_core import LatexError, LatexToMathML

from halt.rendering.mathml import brackets
from halt.rendering.mathml.accents import with_accents
from halt.rendering.mathml.known_words import known_words
from halt.rendering.mathml.styles import with_classes

SOURCE_MAX = 2_000  # characters of a formula
NESTING_MAX = 100  # braces, \left and \begin that are open at once; math-core fails at about 3,000
# Characters of MathML for each of TeX. Ordinary formulas have 10 to 25, a table with many lines 60.
GROWTH_MAX, GROWTH_MIN = 60, 2_000

_CONVERTER = LatexToMathML(fancy_error=False, max_expansions=200, allow_unreliable_rendering=True)

#: Definitions, references and what changes the size of the page around a formula.
_REFUSED = re.compile(
    r"\\(?:def|let|global|(?:re)?newcommand|providecommand|begingroup|eqref|raisebox|phase|angln?)"
    r"(?![A-Za-z])"
    r"|(?<![\d.])\d{3,}+(?:\.\d*+)?\s*+(?:em|ex|mu|pt|pc|px|cm|mm|in|bp)(?![A-Za-z])|[\0\ue000-\ue007]"
)
_NESTS = re.compile(r"\\(?:(left|begin)|(right|end))(?![A-Za-z])|\\.|([{}])", re.DOTALL)


def math_html(tex: str, *, display: bool) -> str | None:
    """The formula as a `math` element, not yet sanitized; None if it must be shown as source."""
    if not tex or len(tex) > SOURCE_MAX or _REFUSED.search(tex) or not _is_bounded(tex):
        return None
    rewritten = brackets.without_open_brackets(known_words(tex, display=display))
    if brackets.has_many(rewritten):
        return None
    try:
        written = _CONVERTER.convert_with_local_state(rewritten, displaystyle=display)
    except LatexError:
        return None
    if len(written) > GROWTH_MIN + GROWTH_MAX * len(tex):
        return None
    if "\\mathopen" in rewritten:
        written = brackets.with_brackets(written)
    written = with_accents(written)
    if "<mtext>" in written:
        for tag, name in (("b", "strong"), ("i", "em")):
            written = written.replace(f"<{tag}>", f"<{name}>").replace(f"</{tag}>", f"</{name}>")
    if " style=" in written:
        written = with_classes(written)
    return written


def _is_bounded(tex: str) -> bool:
    """True if at most NESTING_MAX braces, brackets and environments are open at once."""
    if tex.count("{") + tex.count("\\left") <= NESTING_MAX:
        return True
    depth = 0
    for match in _NESTS.finditer(tex):
        opens, closes, brace = match.groups()
        if opens or brace == "{":
            depth += 1
            if depth > NESTING_MAX:
                return False
        elif (closes or brace) and depth:
            depth -= 1
    return True
