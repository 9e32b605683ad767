"""The finish reasons of answers in OpenAI's terms, and sentences for incomplete answers.

stop            the model finished its answer
tool_calls      it calls tools
length          a token limit was reached
content_filter  a filter of the provider cut the answer
anything else   the provider's own word: the answer is incomplete
"""

from __future__ import annotations

STOP, LENGTH, TOOL_CALLS, CONTENT_FILTER = "stop", "length", "tool_calls", "content_filter"
FUNCTION_CALL = "function_call"  # OpenAI's older form of `tool_calls`

#: Reasons that the model chose. None: the provider gave no reason.
GOOD = frozenset({None, STOP, TOOL_CALLS, FUNCTION_CALL})

#: Texts for the known reasons of incomplete answers. For others see `unusual_end_note`.
CUT_OFF = {
    LENGTH: "Cut off at the token limit",
    CONTENT_FILTER: "Cut off by the provider's filter",
}
EMPTY = "The model ended its answer without a text."


def is_good(reason: str | None) -> bool:
    """Whether the model itself ended the answer."""
    return reason in GOOD


def unusual_end_note(reason: str | None) -> str:
    """The sentence about a reason that is neither in GOOD nor in CUT_OFF; "" for those."""
    if is_good(reason) or reason in CUT_OFF:
        return ""
    return f"The model's server ended the answer: {reason}."


def ending(reason: str | None) -> str:
    """The sentence about an incomplete answer; "" for a complete one."""
    note = CUT_OFF.get(reason or "")
    return f"{note}." if note else unusual_end_note(reason)
