"""The main loop's answers to requests that it refuses, and a filter of the log's lines on them."""

from __future__ import annotations

import logging
import time

SAID_EVERY = 60.0  # seconds between two lines of the log on the same shortage
REFUSALS_SAID = 10  # lines on malformed requests in that time


def _refusal(status: str, code: str, message: str) -> bytes:
    """A response that the main loop sends."""
    body = f'{{"error":{{"code":"{code}","message":"{message}","retryable":true}}}}\n'
    later = "Retry-After: 2\r\n" if status.startswith("503") else ""
    return (
        f"HTTP/1.1 {status}\r\nConnection: close\r\n{later}Content-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n{body}"
    ).encode()


_BUSY = "503 Service Unavailable", "at_capacity"
TOO_SLOW = _refusal("408 Request Timeout", "too_slow", "The request came too slowly.")
TOO_MANY = _refusal(*_BUSY, "Too many large requests wait. Try again in a few seconds.")
FILES_SHORT = _refusal(
    *_BUSY, "The server has no open file left for this. Try again in a few seconds."
)


class FewRefusals(logging.Filter):
    """Of the log's lines on malformed requests, REFUSALS_SAID in SAID_EVERY seconds are written.

    Strangers send such requests as fast as they like.
    """

    def __init__(self) -> None:
        super().__init__()
        self._until = 0.0
        self._left = 0

    def filter(self, record: logging.LogRecord) -> bool:
        """By any thread: a few more lines where two of them meet do no harm."""
        if not str(record.msg).startswith("Invalid request from"):
            return True
        if (at := time.monotonic()) >= self._until:
            self._until, self._left = at + SAID_EVERY, REFUSALS_SAID
        self._left -= 1
        if self._left == 0:
            record.msg = f"{record.msg} (further ones are not logged for {SAID_EVERY:g} s)"
        return self._left >= 0
