r"""Converts a TeX formula to MathML, with math-core.

math-core raises on a command that it does not know; the caller then shows the formula's source.
Three of its properties need care, since TeX of a language model is untrusted:

- Its recursion has no limit: deep nesting ends the process. `_is_bounded` counts before the call.
- Each opening bracket without a closing one doubles its time. Only OPENED_MAX of them reach it;
  of a formula with more brackets, closed or not, the opening ones are replaced by letters that are
  exchanged back afterwards.
- It writes style attributes, which the page's content security policy blocks. They become classes
  of static/css/formats.css; an unknown style is dropped.

Formulas have no state: no numbers of equations (but `\tag` works), no labels and references, no
definitions of macros.
"""

import re
from colorsys import rgb_to_hls

from math_core import LatexError, LatexToMathML

SOURCE_MAX = 2_000  # characters of a formula
NESTING_MAX = 100  # braces, \left and \begin that are open at once; math-core fails at about 3,000
OPENED_MAX = 6  # brackets without an end: 2 ms for a formula of SOURCE_MAX
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

_INNER = r"\{[^{}]*+(?:\{[^{}]*+\}[^{}]*+)*+\}"
_GROUP = r"\{([^{}]*+(?:" + _INNER + r"[^{}]*+)*+)\}"
#: Commands with brackets of their own, with those brackets.
_BRACKETED = tuple(
    (re.compile(rf"\\{name}\s*" + _GROUP), words)
    for name, words in (
        ("bra", r"\\langle{\1}\\rvert "),
        ("braket", r"\\langle{\1}\\rangle "),
        ("ket", r"\\lvert{\1}\\rangle "),
        ("pmod", r"\\quad(\\mathrm{mod}\\;{\1})"),
    )
)
#: What models write and math-core does not know, in words that it knows: commands by their names.
_NAMES = {
    "AA": r"\text{Å}",
    "Bbb": r"\mathbb",
    "Huge": "",
    "LARGE": "",
    "Large": "",
    "adots": r"\iddots",
    "allowbreak": "",
    "arc": r"\overparen",
    "celsius": r"{}^\circ\mathrm{C}",
    "centerdot": r"\cdot",
    "centering": "",
    "dd": r"\mathrm{d}",
    "dotsb": r"\cdots",
    "dotsc": r"\ldots",
    "dotsi": r"\cdots",
    "dotsm": r"\cdots",
    "dotso": r"\ldots",
    "footnotesize": "",
    "framebox": r"\boxed",
    "hdots": r"\ldots",
    "hfill": r"\quad",
    "huge": "",
    "large": "",
    "mathbbm": r"\mathbb",
    "mathbfit": r"\boldsymbol",
    "mathclap": "",
    "mathds": r"\mathbb",
    "mathllap": "",
    "mathnormal": r"\mathit",
    "mathrlap": "",
    "mbox": r"\text",
    "nicefrac": r"\tfrac",
    "nobreak": "",
    "noindent": "",
    "normalsize": "",
    "ohm": r"\Omega",
    "overarc": r"\overparen",
    "pmb": r"\boldsymbol",
    "qed": r"\square",
    "scriptsize": "",
    "sfrac": r"\tfrac",
    "small": "",
    "smash": "",
    "sout": r"\cancel",
    "strut": "",
    "textmd": r"\text",
    "textnormal": r"\text",
    "textsl": r"\textit",
    "textup": r"\text",
    "tiny": "",
    "uline": r"\underline",
    "underbar": r"\underline",
    "vb": r"\mathbf",
    "wideparen": r"\overparen",
    **{
        name: rf"\operatorname{{{name}}}"
        for name in (
            "Tr",
            "arccot",
            "csch",
            "diag",
            "erf",
            "lcm",
            "rank",
            "sech",
            "sgn",
            "sign",
            "tr",
        )
    },
}
_NAMED = re.compile(r"\\(?:([A-Za-z]+)|.)", re.DOTALL)
_REWRITES = tuple(
    (re.compile(pattern), words)
    for pattern, words in (
        (r"\\(?:label|require|vspace\*?)\s*\{[^{}]*\}", ""),
        (r"(?<!\\)((?:\\\\)+)\s*(?:\*\s*)?\[\s*-?[\d.]+\s*[a-z]{2}\s*\]", r"\1 "),
        (r"\\(begin|end)\s*\{split\}", r"\\\1{aligned}"),
        (r"\\begin\s*\{eqnarray\*?\}", r"\\begin{array}{rcl}"),
        (r"\\end\s*\{eqnarray\*?\}", r"\\end{array}"),
        (r"\\begin\s*\{aligned(?:at)?\}\s*(?:\[[tcb]\]|\{\d\})", r"\\begin{aligned}"),
        (r"\\end\s*\{alignedat\}", r"\\end{aligned}"),
        (r"\\begin\s*\{alignat\*?\}\s*\{\d\}", r"\\begin{align}"),
        (r"\\end\s*\{alignat\*?\}", r"\\end{align}"),
        (r"\\(begin|end)\s*\{flalign\*?\}", r"\\\1{align}"),
        (r"\\(begin|end)\s*\{multlined\}", r"\\\1{gathered}"),
        (r"\\(begin|end)\s*\{smallmatrix\}", r"\\\1{matrix}"),
        (r"\\(begin|end)\s*\{([bBpvV]?matrix)\*\}(?:\s*\[[lcr]\])?", r"\\\1{\2}"),
        (r"\\(?:begin|end)\s*\{(?:subequations|displaymath|math)\}", ""),
        (r"\\hline(?:\s*\\hline)+|\\(?:top|mid|bottom)rule(?![A-Za-z])", r"\\hline"),
        (r"\\cline\s*\{[^{}]*\}", ""),
        (r"\\substack\s*" + _GROUP, r"{\\begin{subarray}{c}\1\\end{subarray}}"),
        (r"\\operatorname\*?\s*(\{[^{}]*\})\s*\\limits(?![A-Za-z])", r"\\operatorname*\1"),
        (
            r"\\mathop\s*\{\s*\\(?:(?:mathrm|text|operatorname)\s*\{([^{}]*)\}|rm\s+([A-Za-z]+))"
            r"\s*\}\s*(?:\\limits(?![A-Za-z]))?",
            r"\\operatorname*{\1\2}",
        ),
        (r"\\mathop\s*" + _GROUP + r"\s*\\limits\s*_\s*" + _GROUP, r"\\underset{\2}{\1}"),
        (r"(\\begin\s*\{[bBpvV]?matrix\})\s*\[[lcr|]{2,}\]", r"\1"),
        (r"\\tag(\*?)\s*\{\s*\$([^\\${}]*)\$\s*\}", r"\\tag\1{\2}"),
        (r"\\hspace\*", r"\\hspace"),
        (r"\\displaylines\s*" + _GROUP, r"\\begin{gathered}\1\\end{gathered}"),
        (r"(?:\\\\\s*)?\\(?:short)?intertext\s*" + _GROUP, r"\\\\ & \\text{\1} \\\\ "),
        (r"\\(left|right)\s*<", r"\\\1\\langle "),
        (r"\\(left|right)\s*>", r"\\\1\\rangle "),
        (r"\\textcolor\s*\{\s*#([0-9A-Fa-f]{6})\s*\}\s*" + _GROUP, r"{\\color[HTML]{\1}\2}"),
        (r"\\color\s*\{\s*#([0-9A-Fa-f]{6})\s*\}", r"\\color[HTML]{\1}"),
        (r"\\colorbox\s*\{[^{}]*\}\s*(?=\{)", r"\\text"),
        (r"\\abs\*?\s*" + _GROUP, r"\\left|\1\\right|"),
        (r"\\norm\*?\s*" + _GROUP, r"\\left\\|\1\\right\\|"),
        (r"\\dv\s*" + _GROUP + r"\s*" + _GROUP, r"\\frac{\\mathrm{d}\1}{\\mathrm{d}\2}"),
        (r"\\pdv\s*" + _GROUP + r"\s*" + _GROUP, r"\\frac{\\partial \1}{\\partial \2}"),
        (r"\\dv\s*" + _GROUP, r"\\frac{\\mathrm{d}}{\\mathrm{d}\1}"),
        (r"\\pdv\s*" + _GROUP, r"\\frac{\\partial}{\\partial \1}"),
        (r"(?<=\d)( ?)%(?!\n| *[A-Za-z])", r"\1\\%"),
        (r"&#0?39;", "'"),
        (r"&lt;", "<"),
        (r"&gt;", ">"),
        (r"&amp;", "&"),
        (r"√(\d+)", r"\\sqrt{\1}"),
        (r"√(?!\()", r"\\sqrt "),
    )
)
_REWRITTEN = re.compile(
    r"\\(?:abs|begin|cline|(?:text)?color|displaylines|hline|hspace\*|(?:short)?intertext|label"
    r"|(?:left|right)\s*[<>]|mathop|norm|operatorname|p?dv|require|substack|(?:top|mid|bottom)rule"
    r"|tag|vspace|\\\s*[*\[])|\d ?%|√|&[agl#]"
)
#: Text with what math-core knows only outside of it: a formula, signs that models do not escape.
_TEXT = re.compile(r"\\(text(?:bf|it|rm|sf|tt)?|emph|fbox)\s*" + _GROUP)
_IN_TEXT = re.compile(
    r"(?<!\\)(?:\$((?:[^$\\]++|\\.)*+)\$|([_^](?:\{[^{}]*\}|\d)|\^\w))"
    r"|\\\(((?:[^\\]++|\\[^()])*+)\\\)"
)
_UNESCAPED = re.compile(r"(\\.)|([_&#%])", re.DOTALL)
#: The columns of an array, of which math-core knows letters and rules.
_COLUMNS = re.compile(r"\\begin\s*\{array\}\s*(?:\[[tcb]\])?\s*" + _GROUP)
_REPEATED = re.compile(r"\*\s*\{(\d)\}\s*\{([lcr|]+)\}")
_BETWEEN = re.compile(r"[@!<>]\s*" + _INNER + r"|(?<=[pmb])\s*\{[^{}]*\}|\s")
_WIDE_COLUMN = re.compile(r"[pmbX]")
#: Chromium draws an arrow below its label as long as any other; these are long from the start.
_ARROW = re.compile(
    r"\\x((?:left|right|Left|Right|leftright|Leftright)arrow|mapsto)"
    r"\s*(?:\[([^\[\]]*)\]\s*)?" + _GROUP
)
#: Environments whose lines TeX numbers. A formula without `\tag` has no numbers, and no columns
#: for them.
_NUMBERED = re.compile(r"\\(begin|end)\s*\{(align|gather|equation|multline)\*?\}")
_UNNUMBERED = {"align": "aligned", "gather": "gathered", "multline": "gathered", "equation": ""}

_STYLE = re.compile(r' style="([^"]*)"')
#: Style declarations of math-core, by the class that has them in static/css/formats.css.
_STYLE_CLASSES = {
    "text-align: right": "right",
    "text-align: left": "left",
    "padding-right: 0": "to-right",
    "padding-left: 0": "to-left",
    "padding-left:1em": "apart",
    "padding-top: 0": "close",
    "width: 100%": "wide",
    "width: 50%": "half",
    **{
        f"border-{side}: 0.05em {line} currentcolor": f"rule-{side}"
        for side in ("top", "bottom", "left", "right")
        for line in ("solid", "dashed")
    },
}
MATH_CLASSES = frozenset(_STYLE_CLASSES.values())
#: A line of a table that has only the rule below the table, which belongs to the table itself.
_LAST_RULE = re.compile(
    r'<mtr><mtd style="border-top: 0.05em (?:solid|dashed) currentcolor;[^"]*"></mtd></mtr>'
    r"(?=</mtable>)"
)
_RULE = 'style="border-bottom: 0.05em solid currentcolor;'
#: Red, yellow, green, cyan, blue, violet: contrast of 5 and more on light and on dark paper. No
#: single colour has 4.5 on both.
COLOURS = (
    "light-dark(#b3261e,#f2807a)",
    "light-dark(#855b00,#d9a83c)",
    "light-dark(#2f7a1f,#7cc25c)",
    "light-dark(#0b756b,#4cc3b6)",
    "light-dark(#1f63c4,#77acf5)",
    "light-dark(#9236a6,#d48be0)",
)


def math_html(tex: str, *, display: bool) -> str | None:
    """The formula as a `math` element, not yet sanitized; None if it must be shown as source."""
    if not tex or len(tex) > SOURCE_MAX or _REFUSED.search(tex) or not _is_bounded(tex):
        return None
    rewritten = _without_open_brackets(_rewritten(tex, display))
    if len(_OPENED.findall(_PAIRED.sub("", rewritten))) > OPENED_MAX:
        return None
    try:
        written = _CONVERTER.convert_with_local_state(rewritten, displaystyle=display)
    except LatexError:
        return None
    if len(written) > GROWTH_MIN + GROWTH_MAX * len(tex):
        return None
    if "\\mathopen" in rewritten:
        written = _LARGE.sub("", written)
        written = _PADDED.sub(r'<mo stretchy="false" form="prefix">\1</mo>', written)
        for letter, sign in _LETTERS.items():
            written = written.replace(letter, sign)
    if "<mtext>" in written:
        for tag, name in (("b", "strong"), ("i", "em")):
            written = written.replace(f"<{tag}>", f"<{name}>").replace(f"</{tag}>", f"</{name}>")
    if " style=" in written:
        written = _STYLE.sub(_classes, _with_last_rules(written))
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


def _without_open_brackets(tex: str) -> str:
    """The formula with letters for its opening brackets, if it has many; see OPENED_MAX."""
    if len(_OPENED.findall(tex)) <= OPENED_MAX:
        return tex
    for pattern, words in _BRACKETED:
        tex = pattern.sub(words, tex)
    return _BRACKETS.sub(_replaced, tex)


def _replaced(match: re.Match[str]) -> str:
    large, delimiter, bracket = match.groups()
    if large:
        return rf"\mathopen\{large}{delimiter} "
    return rf"\mathopen {_REPLACED[bracket]}" if bracket else match[0]


def _rewritten(tex: str, display: bool) -> str:
    """The formula in words that math-core knows."""
    tex = _NAMED.sub(_named, tex)
    if _REWRITTEN.search(tex):
        for pattern, words in _REWRITES:
            tex = pattern.sub(words, tex)
    if "{array}" in tex:
        tex = _COLUMNS.sub(_columns, tex)
    if "\\text" in tex or "\\emph" in tex or "\\fbox" in tex:
        tex = _TEXT.sub(_text, tex)
    if "\\x" in tex:
        tex = _ARROW.sub(_long_arrow, tex)
    if "\\tag" in tex:
        tex, count = _NUMBERED.subn(r"\\\1{\2*}", tex)
        return tex if count or not display else rf"\begin{{equation*}}{tex}\end{{equation*}}"
    if "\\begin" in tex:
        return _NUMBERED.sub(_unnumbered, tex)
    if "\\\\" in tex or "&=" in tex:
        name = "aligned" if "&" in tex else "gathered"
        return rf"\begin{{{name}}}{tex}\end{{{name}}}"
    return tex


def _named(match: re.Match[str]) -> str:
    return _NAMES.get(match[1], match[0])


def _columns(match: re.Match[str]) -> str:
    columns = _REPEATED.sub(lambda repeated: int(repeated[1]) * repeated[2], match[1])
    columns = _WIDE_COLUMN.sub("l", _BETWEEN.sub("", columns))
    return rf"\begin{{array}}{{{columns}}}"


def _text(match: re.Match[str]) -> str:
    name, text = match.groups()
    parts = _IN_TEXT.split(text)
    words = [rf"\{name}{{{_UNESCAPED.sub(_escaped, part)}}}" for part in parts[::4]]
    if len(words) == 1:
        return words[0]
    if any(part.count("{") != part.count("}") for part in parts[::4]):
        return match[0]
    formulas = (
        script or formula or other
        for formula, script, other in zip(parts[1::4], parts[2::4], parts[3::4], strict=True)
    )
    pairs = zip(words, (f"{{{{}}{formula}}}" for formula in formulas), strict=False)
    return f"{{{''.join(map(''.join, pairs))}{words[-1]}}}"


def _escaped(match: re.Match[str]) -> str:
    return match[1] or rf"\{match[2]}"


def _long_arrow(match: re.Match[str]) -> str:
    name, below, above = match.groups()
    long = "long" if name.islower() else "Long"
    arrow = rf"\overset{{{above}}}{{\{long}{name.lower()}}}"
    return rf"\underset{{{below}}}{{{arrow}}}" if below else arrow


def _unnumbered(match: re.Match[str]) -> str:
    name = _UNNUMBERED[match[2]]
    return f"\\{match[1]}{{{name}}}" if name else ("{" if match[1] == "begin" else "}")


def _with_last_rules(written: str) -> str:
    """The MathML with a border instead of a line with only a rule."""
    while match := _LAST_RULE.search(written):
        before, after = written[: match.start()], written[match.end() :]
        start, tag, rest = before.rpartition("<mtable ")
        rest = rest[7:] if rest.startswith('style="') else f'" {rest}'
        written = start + tag + _RULE + rest + after
    return written


def _classes(match: re.Match[str]) -> str:
    if match[1].startswith("color:#"):
        return _legible(match[1][7:13])
    names = [_STYLE_CLASSES.get(part.strip(), "") for part in match[1].split(";")]
    classes = " ".join(filter(None, names))
    return f' class="{classes}"' if classes else ""


def _legible(colour: str) -> str:
    """The attribute for a colour of six hexadecimal digits: that of COLOURS with its hue."""
    hue, _, saturation = rgb_to_hls(*(int(colour[at : at + 2], 16) / 255 for at in (0, 2, 4)))
    name = COLOURS[round(6 * hue) % 6] if saturation > 0.1 else ""
    return f' mathcolor="{name}"' if name else ""
