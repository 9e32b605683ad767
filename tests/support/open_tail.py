"""The HTML of an open block's tail, which comes in pieces."""

import re

from halt.rendering.streaming.provisional import CODE_EDGE


def merged(tail: str) -> str:
    """The tail with the pieces of an element as one element."""
    tail, count = tail.replace(CODE_EDGE, "\0"), 1
    while count:
        tail, count = re.subn(r"</(\w+)><\1>", "", tail)
    return tail.replace("\0", CODE_EDGE)


def text_of_tail(tail: str) -> str:
    """The escaped text of a tail, without the elements that it may have."""
    return re.sub(r"</?(?:em|strong|s|code)>", "", tail)
