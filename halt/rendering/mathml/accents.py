"""Accents and primes whose signs browsers place or size badly.

Combining signs hang to the left of a letter, a bar that stretches is wider than one letter, and a
prime as a superscript is made small twice: the font's own sign is raised and small.
"""

import re

_PRIME = re.compile(
    r"<msup>(<m[in](?: mathvariant=\"\w+\")?>[^<]*</m[in]>)<mo>([\u2032-\u2034\u2057])</mo></msup>"
)
_BAR = re.compile(
    r"(<(mover) accent=\"true\">|<(munder) accentunder=\"true\">)"
    r"(<m[in](?: mathvariant=\"\w+\")?>[^<]</m[in]>)<mo stretchy=\"true\">\u0332</mo>"
)
_VECTOR = '<mo stretchy="false">\u20d7</mo>'
_ARROW = '<mo stretchy="false" mathsize="70%">→</mo>'


def with_accents(written: str) -> str:
    """The MathML with signs that are placed rightly."""
    written = _PRIME.sub(r'<mrow>\1<mo lspace="0" rspace="0">\2</mo></mrow>', written)
    if "\u0332" in written:
        written = _BAR.sub(_bar, written)
    return written.replace(_VECTOR, _ARROW)


def _bar(match: re.Match[str]) -> str:
    start, is_over, _, letter = match.groups()
    return f'{start}{letter}<mo stretchy="false">{"¯" if is_over else "_"}</mo>'
