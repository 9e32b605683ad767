"""Fences of code: the line that closes one, for the parser and for a text that is being written.

Differences from CommonMark, each as models write them: a fence in a ```markdown fence does not end
it at its own closing mark, and a fence in a list item ends at its closing mark, however that and
the code are indented.
"""

import re

from markdown_it.rules_block import StateBlock

INFO_MAX = 100  # characters of a label that are read


_MARKS = {"`": re.compile("`{3,}+"), "~": re.compile("~{3,}+")}
_OPENING = re.compile("(`{3,}+)[^`]*|(~{3,}+).*")
#: Labels of Markdown, alone or as the suffix of a file's name.
_MARKDOWN = re.compile(r"(?:[^\s]*\.)?(?:md|mdx|markdown)(?:[:{,][^\s]*)?", re.IGNORECASE)


class OpenFence:
    """A fence whose opening line is known. Its following lines are taken one by one."""

    def __init__(self, mark: str, info: str) -> None:
        self.mark = mark
        self.info = info
        #: The fences in it that are open, outermost first: the length of the mark, and whether a
        #: fence may open within it.
        self._open = [(len(mark), _is_markdown(info))]

    def closes(self, bare: str) -> bool:
        """Take the next line, without its indentation; return whether it closes the fence.

        A line that is indented by four columns or more is code and is not passed.
        """
        mark = _MARKS[self.mark[0]].match(bare)
        if not mark:
            return False
        length, info = mark.end(), bare[mark.end() :].strip(" \t")
        needed, nests = self._open[-1]
        if info:
            if nests and length >= len(self.mark) and (self.mark[0] == "~" or "`" not in info):
                self._open.append((length, _is_markdown(info)))
        elif length >= needed:
            self._open.pop()
        return not self._open


def fence_language(info: str) -> str:
    """The language that the text behind a fence's mark names, "" for none."""
    return (info.split() or [""])[0]


def _is_markdown(info: str) -> bool:
    return bool(_MARKDOWN.fullmatch(fence_language(info)[:INFO_MAX]))


def opened_fence(bare: str) -> OpenFence | None:
    """The fence that a line opens, None for another line. The line has no indentation."""
    opening = _OPENING.fullmatch(bare)
    if not opening:
        return None
    mark = opening[1] or opening[2]
    return OpenFence(mark, bare[len(mark) :])


def fence(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """Block rule of the parser."""
    at = state.bMarks[start] + state.tShift[start]
    if state.is_code_block(start) or state.src[at : at + 3] not in ("```", "~~~"):
        return False
    open_fence = opened_fence(state.src[at : state.eMarks[start]])
    if not open_fence:
        return False
    if silent:
        return True
    line, is_closed = start + 1, False
    # A negative indentation is that of a line behind a quote.
    while line < end and not is_closed and state.sCount[line] >= 0:
        first = state.bMarks[line] + state.tShift[line]
        if state.src[first : first + 1] == open_fence.mark[0] and not state.is_code_block(line):
            is_closed = open_fence.closes(state.src[first : state.eMarks[line]])
        line += 1
    state.line = line
    token = state.push("fence", "code", 0)
    token.info, token.markup = open_fence.info, open_fence.mark
    token.map = [start, line]
    token.content = state.getLines(start + 1, line - is_closed, state.sCount[start], True)
    return True
