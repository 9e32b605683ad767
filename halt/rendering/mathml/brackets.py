r"""Opening brackets of a formula, each of which doubles the time of math-core while it is open.

Of a formula with more than OPENED_MAX, closed or not, the opening ones are replaced by letters that
are exchanged back in its MathML.
"""

import re

from halt.rendering.mathml.known_words import GROUP

OPENED_MAX = 6  # brackets without an end: 2 ms for a formula of SOURCE_MAX characters

#: Text and brackets of another kind, which stay; a large bracket; a bracket that is replaced.
_BRACKETS = re.compile(
    r"\\(?:text[a-z]*|fbox|operatorname\*?|tag\*?)\s*\{[^{}]*\}"
    r"|\\(?:left|right|middle|[bB]igg?[mr]?)(?![A-Za-z])\s*(?:\\[A-Za-z]+|\\.|.)"
    r"|\\(?:sqrt|x[A-Za-z]+)\s*\["
    r"|\\([bB]igg?)l(?![A-Za-z])\s*(\\[A-Za-z]+|\\.|.)"
    r"|(\\(?:lang(?:le)?|lbrace|lbrack|lceil|lfloor|lvert|lVert)(?![A-Za-z])|\\\{|[(\[⌈⌊⟨])|\\.",
    re.DOTALL,
)
#: What math-core takes for an opening bracket, and more; and what is certainly none.
_OPENED = re.compile(
    r"\\(?:l(?:[aA]ngle|[bB]race|[vV]ert|ang|brack|ceil|floor|group|langle|lbracket|lcorner"
    r"|lparenthesis|moustache|paren)|ulcorner|\{|mathopen|[bB]igg?l"
    r"|(?:[bB]ra|[kK]et|[bB]raket|[sS]et|pmod|pod)(?![A-Za-z]))"
    r"|[(\[\u2308\u230a\u231c\u231e\u23b0\u2772\u27c5\u27e6-\u27ee\u2983-\u2997\u29d8-\u29fc]"
)
_PAIRED = re.compile(
    r"\\(?:left|right|middle|mathopen ?\\[bB]igg?)(?![A-Za-z])\s*(?:\\[A-Za-z]+|\\.|.)"
    r"|\\mathopen [\ue000-\ue007]|\\text[a-z]*\s*\{[^{}\\]*\}|\\sqrt\s*\[[A-Za-z0-9+-]*\]"
    r"|\\(?:bra|ket|pmod)\s*\{(?:[A-Za-z0-9+-]|\\(?:psi|phi|Psi|Phi)(?![A-Za-z]))++\}",
    re.DOTALL,
)
_SIGNS = "({[⟨⌊⌈|‖"
_LETTERS = {chr(0xE000 + index): sign for index, sign in enumerate(_SIGNS)}
_REPLACED = {
    words: chr(0xE000 + _SIGNS.index(sign))
    for sign, names in zip(
        _SIGNS,
        (
            "(",
            r"\{ \lbrace",
            r"[ \lbrack",
            r"⟨ \langle \lang",
            r"⌊ \lfloor",
            r"⌈ \lceil",
            r"\lvert",
            r"\lVert",
        ),
        strict=True,
    )
    for words in names.split()
}
#: What keeps a large bracket small.
_LARGE = re.compile(r' stretchy="false"(?=[^<>]* minsize=)')
_PADDED = re.compile(r'<mpadded style="[^"]*"><mi>([\ue000-\ue007])</mi></mpadded>')

#: Commands with brackets of their own, with those brackets.
_BRACKETED = tuple(
    (re.compile(rf"\\{name}\s*" + GROUP), words)
    for name, words in (
        ("bra", r"\\langle{\1}\\rvert "),
        ("braket", r"\\langle{\1}\\rangle "),
        ("ket", r"\\lvert{\1}\\rangle "),
        ("pmod", r"\\quad(\\mathrm{mod}\\;{\1})"),
    )
)


def without_open_brackets(tex: str) -> str:
    """The formula with letters for its opening brackets, if it has many; see OPENED_MAX."""
    if len(_OPENED.findall(tex)) <= OPENED_MAX:
        return tex
    for pattern, words in _BRACKETED:
        tex = pattern.sub(words, tex)
    return _BRACKETS.sub(_replaced, tex)


def has_many(tex: str) -> bool:
    """Whether more than OPENED_MAX opening brackets may be left."""
    return len(_OPENED.findall(_PAIRED.sub("", tex))) > OPENED_MAX


def with_brackets(written: str) -> str:
    """The MathML with brackets in place of the letters."""
    written = _LARGE.sub("", written)
    written = _PADDED.sub(r'<mo stretchy="false" form="prefix">\1</mo>', written)
    for letter, sign in _LETTERS.items():
        written = written.replace(letter, sign)
    return written


def _replaced(match: re.Match[str]) -> str:
    large, delimiter, bracket = match.groups()
    if large:
        return rf"\mathopen\{large}{delimiter} "
    return rf"\mathopen {_REPLACED[bracket]}" if bracket else match[0]
