r"""Rewrites what models write and math-core does not know, in words that it knows."""

import re

INNER = r"\{[^{}]*+(?:\{[^{}]*+\}[^{}]*+)*+\}"
#: A pattern for a group in braces, with two levels of groups in it. Captures its content.
GROUP = r"\{([^{}]*+(?:" + INNER + r"[^{}]*+)*+)\}"
#: Commands by their names.
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
        (r"\\substack\s*" + GROUP, r"{\\begin{subarray}{c}\1\\end{subarray}}"),
        (r"\\operatorname\*?\s*(\{[^{}]*\})\s*\\limits(?![A-Za-z])", r"\\operatorname*\1"),
        (
            r"\\mathop\s*\{\s*\\(?:(?:mathrm|text|operatorname)\s*\{([^{}]*)\}|rm\s+([A-Za-z]+))"
            r"\s*\}\s*(?:\\limits(?![A-Za-z]))?",
            r"\\operatorname*{\1\2}",
        ),
        (r"\\mathop\s*" + GROUP + r"\s*\\limits\s*_\s*" + GROUP, r"\\underset{\2}{\1}"),
        (r"(\\begin\s*\{[bBpvV]?matrix\})\s*\[[lcr|]{2,}\]", r"\1"),
        (r"\\tag(\*?)\s*\{\s*\$([^\\${}]*)\$\s*\}", r"\\tag\1{\2}"),
        (r"\\hspace\*", r"\\hspace"),
        (r"\\displaylines\s*" + GROUP, r"\\begin{gathered}\1\\end{gathered}"),
        (r"(?:\\\\\s*)?\\(?:short)?intertext\s*" + GROUP, r"\\\\ & \\text{\1} \\\\ "),
        (r"\\(left|right)\s*<", r"\\\1\\langle "),
        (r"\\(left|right)\s*>", r"\\\1\\rangle "),
        (r"\\textcolor\s*\{\s*#([0-9A-Fa-f]{6})\s*\}\s*" + GROUP, r"{\\color[HTML]{\1}\2}"),
        (r"\\color\s*\{\s*#([0-9A-Fa-f]{6})\s*\}", r"\\color[HTML]{\1}"),
        (r"\\colorbox\s*\{[^{}]*\}\s*(?=\{)", r"\\text"),
        (r"\\abs\*?\s*" + GROUP, r"\\left|\1\\right|"),
        (r"\\norm\*?\s*" + GROUP, r"\\left\\|\1\\right\\|"),
        (r"\\dv\s*" + GROUP + r"\s*" + GROUP, r"\\frac{\\mathrm{d}\1}{\\mathrm{d}\2}"),
        (r"\\pdv\s*" + GROUP + r"\s*" + GROUP, r"\\frac{\\partial \1}{\\partial \2}"),
        (r"\\dv\s*" + GROUP, r"\\frac{\\mathrm{d}}{\\mathrm{d}\1}"),
        (r"\\pdv\s*" + GROUP, r"\\frac{\\partial}{\\partial \1}"),
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
_TEXT = re.compile(r"\\(text(?:bf|it|rm|sf|tt)?|emph|fbox)\s*" + GROUP)
_IN_TEXT = re.compile(
    r"(?<!\\)(?:\$((?:[^$\\]++|\\.)*+)\$|([_^](?:\{[^{}]*\}|\d)|\^\w))"
    r"|(?<!\\)\\\(((?:[^\\]++|\\[^()])*+)\\\)"
)
_UNESCAPED = re.compile(r"(\\.)|([_&#%])", re.DOTALL)
#: The columns of an array, of which math-core knows letters and rules.
_COLUMNS = re.compile(r"\\begin\s*+\{array\}\s*+(?:\[[tcb]\]\s*+)?" + GROUP)
_REPEATED = re.compile(r"\*\s*\{(\d)\}\s*\{([lcr|]+)\}")
_BETWEEN = re.compile(r"[@!<>]\s*" + INNER + r"|(?<=[pmb])\s*\{[^{}]*\}|\s")
_WIDE_COLUMN = re.compile(r"[pmbX]")
#: Chromium draws an arrow below its label as long as any other; these are long from the start.
_ARROW = re.compile(
    r"\\x((?:left|right|Left|Right|leftright|Leftright)arrow|mapsto)"
    r"\s*(?:\[([^\[\]]*)\]\s*)?" + GROUP
)
#: Environments whose lines TeX numbers. A formula without `\tag` has no numbers, and no columns
#: for them.
_NUMBERED = re.compile(r"\\(begin|end)\s*\{(align|gather|equation|multline)\*?\}")
_UNNUMBERED = {"align": "aligned", "gather": "gathered", "multline": "gathered", "equation": ""}


def known_words(tex: str, *, display: bool) -> str:
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
