"""Iterates over the items of a JSON list without holding the interpreter's lock for long.

msgspec decodes a list in one call that blocks all other threads: 1,000,000 messages took 1.8 s.
This module reads the list in steps of STEP bytes; the caller decodes the items.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

STEP = 65_536  # bytes that one call reads at most

_QUOTE, _BACKSLASH, _COMMA = b'"\\,'
_OPENING, _CLOSING, _LIST, _LIST_END = b"{[", b"}]", ord("["), ord("]")
_BLANKS = b" \t\n\r"
_BLANK = re.compile(rb"[ \t\n\r]*+")
#: Text without brackets, and strings that end within the step. Possessive: no byte is read twice.
_PLAIN = re.compile(rb'(?:[^"{}\[\]]++|"(?:[^"\\]++|\\.)*+")*+', re.DOTALL)
_STRING = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)
_SCALAR = re.compile(rb"[^,\]\s]*+")


def items(data: bytes | memoryview) -> Iterator[memoryview]:
    """The items of a well-formed JSON list, each as undecoded JSON that is not copied.

    Yields nothing for any other value.
    """
    raw = memoryview(data)
    at = _skip(raw, 0)
    if not is_list(raw):
        return
    at = _skip(raw, at + 1)
    while at < len(raw) and raw[at] != _LIST_END:
        end = _end(raw, at)
        if end <= at:
            return
        yield raw[at:end]
        at = _skip(raw, end)
        if at < len(raw) and raw[at] == _COMMA:
            at = _skip(raw, at + 1)


def is_list(raw: memoryview) -> bool:
    """Whether this JSON is a list."""
    at = _skip(raw, 0)
    return at < len(raw) and raw[at] == _LIST


def _step(pattern: re.Pattern[bytes], raw: memoryview, at: int) -> int:
    """The end of a match at `at` within the next STEP bytes; `at` if there is none."""
    match = pattern.match(raw, at, at + STEP)
    return at if match is None else match.end()


def _skip(raw: memoryview, at: int) -> int:
    """The position after the white space at `at`."""
    while at < len(raw) and raw[at] in _BLANKS:
        at = _step(_BLANK, raw, at)
    return at


def _end(raw: memoryview, at: int) -> int:
    """The end of the value that starts at `at`."""
    if raw[at] == _QUOTE:
        return _string_end(raw, at)
    if raw[at] not in _OPENING:
        while (end := _step(_SCALAR, raw, at)) == at + STEP:
            at = end
        return end
    depth = 0
    while (at := _step(_PLAIN, raw, at)) < len(raw):
        byte = raw[at]
        if byte == _QUOTE:
            at = _string_end(raw, at)
        elif byte in _OPENING:
            depth, at = depth + 1, at + 1
        elif byte in _CLOSING:
            depth, at = depth - 1, at + 1
            if not depth:
                return at
    return len(raw)


def _string_end(raw: memoryview, at: int) -> int:
    """The position after the string that starts at `at`."""
    at += 1
    while at < len(raw) and raw[at] != _QUOTE:
        # A step may end between a backslash and the escaped character.
        at = max(_step(_STRING, raw, at), at + 2 if raw[at] == _BACKSLASH else at)
    return min(at + 1, len(raw))
