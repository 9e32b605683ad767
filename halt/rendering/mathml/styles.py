"""Replaces the style attributes of math-core, which the content security policy blocks, by classes.

An unknown style is dropped.
"""

import re
from colorsys import rgb_to_hls

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


def with_classes(written: str) -> str:
    """The MathML with classes of static/css/formats.css."""
    return _STYLE.sub(_classes, _with_last_rules(written))


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
