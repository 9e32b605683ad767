"""Patterns for single lines of Markdown: a fence, a heading, a rule, a list item."""

import re

OPENING = re.compile(r"( {0,3})(?:(`{3,}+)[^`]*|(~{3,}+).*)")
MAYBE_OPENING = re.compile(r" {0,3}(?:`{0,2}|`{3,}+[^`]*|~{0,2}|~{3,}+.*)")
HEADING = re.compile(r"#{1,6}(?:[ \t].*)?")
RULE = re.compile(r"(?:-{3,}|\*{3,}|_{3,})[ \t]*")
MARKER = re.compile(r"( *)(?:[-+*]|[0-9]{1,9}[.)])(?=[ \t]|$)( {0,4}(?! ))?")


LABEL_MAX = 24  # characters of a fence's language that are shown


def fence_language(info: str) -> str:
    """The language that the text behind a fence's mark names, "" for none."""
    return (info.split() or [""])[0]


def is_closing(line: str, fence: str) -> bool:
    """Whether a line closes the code block that this fence mark opened."""
    bare = line.strip(" \t")
    return len(bare) >= len(fence) and not bare.strip(fence[0]) and indent(line) < 4


def indent(line: str) -> int:
    """Columns of white space at the start of the line; a tab ends at a multiple of 4."""
    return len(line[: len(line) - len(line.lstrip(" \t"))].expandtabs(4))
