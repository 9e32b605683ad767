"""Answers as models of several families write them, and the HTML that the page shows for each.

`texts/KIND.md` has the texts of one kind, each below a line `=== NUMBER NAME (FAMILY)`.
`expected/KIND.html` has their HTML in the same order, each below a line `=== NUMBER NAME`.
`python -m tests.gallery FOLDER` writes the expected HTML anew, and a page to look at.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from halt.rendering import markdown
from halt.rendering.highlighting import Colours

HERE = Path(__file__).parent
TEXTS = HERE / "texts"
EXPECTED = HERE / "expected"
#: The kinds of texts, in the order of the texts' numbers.
KINDS = (
    "math_inline",
    "math_display",
    "dollars",
    "line_breaks",
    "emphasis",
    "tags",
    "tasks",
    "footnotes",
    "details",
    "lists",
    "code",
    "tables",
    "scripts",
    "links",
    "quotes",
    "headings",
    "visible_html",
    "odd",
)
_HEAD = re.compile(r"^=== (\d{3}) ([a-z0-9-]+) \(([a-z]+)\)\n", re.MULTILINE)
_COLOURS = Colours()


@dataclass(frozen=True)
class Answer:
    """A text of a model. It ends without a newline."""

    number: str  # three digits
    name: str
    family: str  # of models: "local" means any small one
    source: str

    @property
    def title(self) -> str:
        return f"{self.number} {self.name}"

    @property
    def html(self) -> str:
        """Its HTML on the page, with colours."""
        return markdown.render(self.source, _COLOURS)


def answers_of(kind: str) -> list[Answer]:
    """The texts of a kind, in order."""
    before, *parts = _HEAD.split((TEXTS / f"{kind}.md").read_text("utf-8"))
    assert not before, f"{kind}.md begins with a line that is no head"
    fields = zip(*[iter(parts)] * 4, strict=True)
    return [Answer(number, name, family, text[:-1]) for number, name, family, text in fields]


def joined_html(answers: list[Answer]) -> str:
    """The content of an expected file."""
    return "".join(f"=== {answer.title}\n{answer.html.rstrip()}\n" for answer in answers)


def expected_path(kind: str) -> Path:
    return EXPECTED / f"{kind}.html"
