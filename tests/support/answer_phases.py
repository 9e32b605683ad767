"""The phases of an answer in which a Stop must work."""

from __future__ import annotations

#: The phase -> the fake's model, and the text that shows that the phase has begun.
ANSWER_PHASES = {
    "waiting for headers": ("silent_headers", ""),
    "waiting for the first token": ("silent_first_token", ""),
    "flowing": ("count?n=100000&gap_ms=5", "9 "),
    "flooding": ("long?n=10000000", "9 "),
    "stalled": ("stall?n=10", "9 "),
}
