"""Responses that refuse a request before a thread has it, and a filter for log lines on them."""

from __future__ import annotations

import logging
import time

LOG_EVERY = 60.0  # seconds between two log lines on the same shortage
REFUSALS_LOGGED = 10  # log lines on malformed requests in that time


def _refusal(status: str, code: str, message: str) -> bytes:
    """The bytes of a response with this JSON error."""
    body = f'{{"error":{{"code":"{code}","message":"{message}","retryable":true}}}}\n'
    retry_after = "Retry-After: 2\r\n" if status.startswith("503") else ""
    return (
        f"HTTP/1.1 {status}\r\nConnection: close\r\n{retry_after}Content-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n{body}"
    ).encode()


_BUSY = "503 Service Unavailable", "at_capacity"
TOO_SLOW = _refusal("408 Request Timeout", "too_slow", "The request came too slowly.")
TOO_MANY = _refusal(*_BUSY, "Too many large requests are waiting. Try again in a few seconds.")
FILES_SHORT = _refusal(*_BUSY, "The server has too many open files. Try again in a few seconds.")


class FewRefusals(logging.Filter):
    """Limits log lines on malformed requests to REFUSALS_LOGGED in LOG_EVERY seconds.

    Any client can send such requests at any rate.
    """

    def __init__(self) -> None:
        super().__init__()
        self._until = 0.0
        self._left = 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Called by any thread, without a lock: a race adds a few lines, which is harmless."""
        if not str(record.msg).startswith("Invalid request from"):
            return True
        if (at := time.monotonic()) >= self._until:
            self._until, self._left = at + LOG_EVERY, REFUSALS_LOGGED
        self._left -= 1
        if self._left == 0:
            record.msg = f"{record.msg} (further ones are not logged for {LOG_EVERY:g} s)"
        return self._left >= 0
