r"""Converts a TeX formula to MathML, with math-core.

math-core raises on a command that it does not know; the caller then shows the formula's source.
Three of its properties need care, since TeX of a language model is untrusted:

- Its recursion has no limit: deep nesting ends the process. `_is_bounded` counts before the call.
- Each opening bracket without a closing one doubles its time. Only OPENED_MAX of them reach it;
  of a formula with more, plain ones are replaced by letters that are exchanged back afterwards.
- It writes style attributes, which the page's content security policy blocks. They become classes
  of static/css/answer.css; an unknown style is dropped.

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
    r"|(?<![\d.])\d{3,}+(?:\.\d*+)?\s*+(?:em|ex|mu|pt|pc|px|cm|mm|in|bp)(?![A-Za-z])|[\0\ue000\ue001]"
)
_NESTS = re.compile(r"\\(?:(left|begin)|(right|end))(?![A-Za-z])|\\.|([{}])", re.DOTALL)
#: Text and brackets of another kind, which stay; a bracket that may be replaced.
_BRACKETS = re.compile(
    r"\\(?:text[a-z]*|fbox|operatorname\*?|tag\*?)\s*\{[^{}]*\}"
    r"|\\(?:left|right|middle|[bB]igg?[lmr]?)(?![A-Za-z])\s*(?:\\[A-Za-z]+|\\.|.)"
    r"|(\(|\\\{)|\\.",
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
    r"\\(?:left|right|middle)(?![A-Za-z])\s*(?:\\[A-Za-z]+|\\.|.)|\\mathopen [\ue000\ue001]"
    r"|\\(?:bra|ket|pmod)\s*\{(?:[A-Za-z0-9+-]|\\(?:psi|phi|Psi|Phi)(?![A-Za-z]))++\}",
    re.DOTALL,
)
_REPLACED = {"(": "\ue000", r"\{": "\ue001"}
_PADDED = re.compile(r'<mpadded style="[^"]*"><mi>([\ue000\ue001])</mi></mpadded>')

_GROUP = r"\{([^{}]*+(?:\{[^{}]*+\}[^{}]*+)*+)\}"
#: What models write and math-core does not know, in words that it knows.
_REWRITES = tuple(
    (re.compile(pattern), words)
    for pattern, words in (
        (r"\\label\s*\{[^{}]*\}", ""),
        (r"(?<!\\)((?:\\\\)+)\s*(?:\*\s*)?\[\s*-?[\d.]+\s*[a-z]{2}\s*\]", r"\1 "),
        (r"\\(begin|end)\s*\{split\}", r"\\\1{aligned}"),
        (r"\\begin\s*\{eqnarray\*?\}", r"\\begin{array}{rcl}"),
        (r"\\end\s*\{eqnarray\*?\}", r"\\end{array}"),
        (r"\\begin\s*\{aligned(?:at)?\}\s*(?:\[[tcb]\]|\{\d\})", r"\\begin{aligned}"),
        (r"\\end\s*\{alignedat\}", r"\\end{aligned}"),
        (r"\\begin\s*\{alignat\*?\}\s*\{\d\}", r"\\begin{align}"),
        (r"\\end\s*\{alignat\*?\}", r"\\end{align}"),
        (r"\\(begin|end)\s*\{smallmatrix\}", r"\\\1{matrix}"),
        (r"\\substack\s*" + _GROUP, r"{\\begin{subarray}{c}\1\\end{subarray}}"),
        (r"\\(?:mbox|textnormal|textup)\s*(?=\{)", r"\\text"),
        (r"\\(?:mathds|mathbbm)(?![A-Za-z])", r"\\mathbb"),
        (r"\\operatorname\*?\s*(\{[^{}]*\})\s*\\limits(?![A-Za-z])", r"\\operatorname*\1"),
    )
)
#: Chromium draws an arrow below its label as long as any other; these are long from the start.
_ARROW = re.compile(
    r"\\x((?:left|right|Left|Right|leftright|Leftright)arrow|mapsto)"
    r"\s*(?:\[([^\[\]]*)\]\s*)?" + _GROUP
)
_REWRITTEN = re.compile(
    r"\\(?:label|\\\s*[*\[]|begin|substack|mbox|text[nu]|mathds|mathbbm|operatorname)"
)
#: Environments whose lines TeX numbers. A formula without `\tag` has no numbers, and no columns
#: for them.
_NUMBERED = re.compile(r"\\(begin|end)\s*\{(align|gather|equation|multline)\*?\}")
_UNNUMBERED = {"align": "aligned", "gather": "gathered", "multline": "gathered", "equation": ""}

_STYLE = re.compile(r' style="([^"]*)"')
#: Style declarations of math-core, by the class that has them in static/css/answer.css.
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
#: Colours that can be read on light and on dark paper: red, yellow, green, cyan, blue, violet.
COLOURS = ("#d64545", "#b3801d", "#4f8f2f", "#2a9187", "#3f7fd6", "#b04fc0")


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
    if "\ue000" in written or "\ue001" in written:
        written = _PADDED.sub(r'<mo stretchy="false">\1</mo>', written)
        written = written.replace("\ue000", "(").replace("\ue001", "{")
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
    """The formula with letters for plain brackets, if it has many; see OPENED_MAX."""
    if len(_OPENED.findall(tex)) <= OPENED_MAX:
        return tex
    return _BRACKETS.sub(
        lambda match: rf"\mathopen {_REPLACED[match[1]]}" if match[1] else match[0], tex
    )


def _rewritten(tex: str, display: bool) -> str:
    """The formula in words that math-core knows."""
    if _REWRITTEN.search(tex):
        for pattern, words in _REWRITES:
            tex = pattern.sub(words, tex)
    if "\\x" in tex:
        tex = _ARROW.sub(_long_arrow, tex)
    if "\\tag" in tex:
        tex, count = _NUMBERED.subn(r"\\\1{\2*}", tex)
        return tex if count or not display else rf"\begin{{equation*}}{tex}\end{{equation*}}"
    if "\\begin" in tex:
        return _NUMBERED.sub(_unnumbered, tex)
    if "\\\\" in tex:
        name = "aligned" if "&" in tex else "gathered"
        return rf"\begin{{{name}}}{tex}\end{{{name}}}"
    return tex


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
