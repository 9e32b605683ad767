"""What comes in a stream's place, or between its events: web pages, lines of text, marks."""

from __future__ import annotations

import re

from halt.errors import UpstreamError
from halt.providers.error_body import page_text
from halt.providers.errors import parse_error

WORDS_MAX = 20_000  # bytes that are kept of lines which are no event

_PAGE = re.compile(
    rb"\s*+(?:<\?xml[^>]*+>\s*+|<!--(?>.*?-->)\s*+)*+<(?:!doctype\s+html|html|head|body|title|meta|h\d)\b",
    re.IGNORECASE | re.DOTALL,
)


def is_page(body: bytes) -> bool:
    """Whether this is the beginning of a web page."""
    return _PAGE.match(body[:WORDS_MAX]) is not None


def is_done(data: bytes) -> bool:
    """Whether this is OpenAI's mark of the end, in one of its forms."""
    return data[:6].upper() == b"[DONE]" or data[:20].strip(b" \"'[]<|>").upper() == b"DONE"


class StrayText:
    """The last lines of a body that were no event: they may say why there are no more."""

    def __init__(self) -> None:
        self.words = b""
        self.is_page = False  # they are those of a web page

    def add(self, line: bytes) -> None:
        """Keep a line, up to WORDS_MAX bytes in all."""
        if len(self.words) < WORDS_MAX:
            self.words += line[: WORDS_MAX - len(self.words)] + b"\n"

    def add_of_page(self, line: bytes) -> None:
        """Keep a line of a web page. Raises UpstreamError when its title has come."""
        self.is_page = True
        self.add(line)
        if b"</title" in line.lower() or len(self.words) >= WORDS_MAX:
            raise self._web_page()

    def incomplete(self, *, understood: bool, label: str) -> UpstreamError:
        """The fault of a body that ended before its answer did.

        `understood`: a part of an answer has come; `label`: see `EventDecoder.label`.
        """
        if self.is_page:
            return self._web_page()
        words = self._text()
        if not understood:
            if words and (fault := parse_error(words, event="error")):
                return fault
            if label:
                return UpstreamError("upstream_invalid", label)
        # A single word ("ping") is a sign of life, and says nothing of the end.
        return UpstreamError("upstream_incomplete", words if " " in words else "")

    def _web_page(self) -> UpstreamError:
        return UpstreamError("upstream_web_page", page_text(self._text()))

    def _text(self) -> str:
        """The lines, empty where they are no text."""
        text = self.words.decode("utf-8", "replace").strip()
        readable = sum(char.isprintable() or char.isspace() for char in text)
        return text if readable * 10 > len(text) * 9 and "\ufffd" not in text else ""
