"""What the HTML of an answer may contain."""

import re
from html.parser import HTMLParser

from halt.rendering.mathml.styles import COLOURS, MATH_CLASSES
from halt.rendering.sanitizing import MATH

#: Tags, their attributes, and a pattern for the whole value of each.
ALLOWED: dict[str, dict[str, str]] = {
    "a": {"href": r"(?i:https?://|mailto:).*|#[nr][0-9a-f]{8}(-\d+)+", "title": r"(?s:.*)"}
    | {"target": "_blank", "rel": "noopener noreferrer nofollow", "class": "back"}
    | {"role": "doc-(noteref|backlink)", "id": r"r[0-9a-f]{8}-\d+-\d+"}
    | {"aria-label": "Back to the text"},
    "details": {"open": ""},
    "code": {"class": r"highlight( language-[a-z0-9+-]+)?"},
    "div": {
        "class": "code|code-bar|table",
        "dir": "ltr|rtl",
        "tabindex": "0",
        "data-name": r"[\w .+-]{1,80}",
    },
    "ol": {"start": r"\d+", "class": "notes", "aria-label": "Footnotes"},
    "input": {"type": "checkbox", "disabled": "", "checked": "", "aria-label": "Done"},
    "li": {"class": "note|task", "id": r"n[0-9a-f]{8}-\d+"},
    "pre": {"tabindex": "0"},
    "span": {"class": "display|inline|math|[a-z]{1,2}", "tabindex": "0"},
    "td": {"class": "left|center|right"},
    "th": {"class": r"((left|center|right)( short)?|short)"},
} | {
    tag: {}
    for tag in (
        *("blockquote", "br", "em", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "kbd", "mark", "p"),
        *(
            "s",
            "small",
            "strong",
            "sub",
            "summary",
            "sup",
            "table",
            "tbody",
            "thead",
            "tr",
            "u",
            "ul",
            "wbr",
        ),
    )
}

for _tag in ("blockquote", "details", "li", "ol", "table", "ul"):
    ALLOWED[_tag]["dir"] = "ltr|rtl"
for _tag in ("h1", "h2", "h3", "h4", "h5", "h6", "p", "summary", "td", "th"):
    ALLOWED[_tag]["dir"] = "auto"
for _tag, _names in MATH.items():
    ALLOWED[_tag] = dict.fromkeys(_names.split(), r"[a-z ]*|-?\d{0,2}(\.\d*)?[a-z%]{0,2}")
for _tag in ("mtable", "mtd"):
    ALLOWED[_tag]["class"] = rf"({'|'.join(MATH_CLASSES)}| )+"
ALLOWED["mrow"]["mathcolor"] = "|".join(map(re.escape, COLOURS))


class Gate(HTMLParser):
    """Fails at the first tag, attribute or value that is not listed above."""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Each attribute has a listed name and a value that fits."""
        assert tag in ALLOWED, tag
        for name, value in attrs:
            assert name in ALLOWED[tag], (tag, name)
            assert re.fullmatch(ALLOWED[tag][name], value or ""), (tag, name, value)

    def handle_comment(self, data: str) -> None:
        """No comments."""
        raise AssertionError(data)

    def handle_decl(self, decl: str) -> None:
        """No declarations."""
        raise AssertionError(decl)

    def handle_pi(self, data: str) -> None:
        """No processing instructions."""
        raise AssertionError(data)


def gate(markup: str) -> str:
    """The markup, if it keeps to the allow-list."""
    parser = Gate()
    parser.feed(markup)
    parser.close()
    return markup
