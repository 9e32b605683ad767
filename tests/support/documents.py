"""The documents of the repository, and the code examples in them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").glob("*.md")),
]


class Example(NamedTuple):
    """A fenced block of code in a document."""

    document: str  # the file's name
    heading: str  # the heading above it
    language: str  # "" where the fence names none
    code: str


def examples() -> list[Example]:
    """All fenced blocks, in the order of the documents."""
    blocks: list[Example] = []
    for document in DOCUMENTS:
        heading, language = "", ""
        lines: list[str] = []
        is_inside = False
        for line in document.read_text("utf-8").splitlines():
            if line.startswith("```"):
                if is_inside:
                    code = "".join(f"{part}\n" for part in lines)
                    blocks.append(Example(document.name, heading, language, code))
                is_inside, language, lines = not is_inside, line.strip("` "), []
            elif is_inside:
                lines.append(line)
            elif title := re.match(r"#+ (.*)", line):
                heading = title[1]
        assert not is_inside, f"{document.name}: a fence is not closed"
    return blocks


def headings(text: str) -> list[str]:
    """The headings of a document, without lines of its examples."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"^#+ (.*)$", text, re.MULTILINE)


def anchor(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading.lower())
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


def table_rows(text: str) -> list[list[str]]:
    """The cells of each row of a document's tables, without the rule below the head."""
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    split = [re.split(r"(?<!\\)\|", row.strip().strip("|")) for row in rows]
    return [[cell.strip() for cell in cells] for cells in split]
