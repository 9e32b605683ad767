"""What a line of Markdown is by itself: a fence, a heading, a rule, an item of a list."""

import re

OPENING = re.compile(r"( {0,3})(?:(`{3,}+)[^`]*|(~{3,}+).*)")
MAYBE_OPENING = re.compile(r" {0,3}(?:`{0,2}|`{3,}+[^`]*|~{0,2}|~{3,}+.*)")
HEADING = re.compile(r"#{1,6}(?:[ \t].*)?")
RULE = re.compile(r"(?:-{3,}|\*{3,}|_{3,})[ \t]*")
MARKER = re.compile(r"( *)(?:[-+*]|[0-9]{1,9}[.)])(?=[ \t]|$)( {0,4}(?! ))?")


def is_closing(line: str, fence: str) -> bool:
    """Whether a line ends the code that this fence has opened."""
    bare = line.strip(" \t")
    return len(bare) >= len(fence) and not bare.strip(fence[0]) and indent(line) < 4


def indent(line: str) -> int:
    """Columns of white space at the line's start."""
    return len(line[: len(line) - len(line.lstrip(" \t"))].expandtabs(4))
