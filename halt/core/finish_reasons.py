"""Why a model's answer ended, in OpenAI's words, and what is said of ends that are no good ones.

stop            the model came to its end
tool_calls      it asks for tools
length          at a limit of tokens
content_filter  by a filter of the provider's
anything else   the server's own word: the answer broke off
"""

from __future__ import annotations

STOP, LENGTH, TOOL_CALLS, CONTENT_FILTER = "stop", "length", "tool_calls", "content_filter"
FUNCTION_CALL = "function_call"  # OpenAI's older form of `tool_calls`

#: Ends that a model chose. None: the server gave no reason.
GOOD = frozenset({None, STOP, TOOL_CALLS, FUNCTION_CALL})

#: Ends that are not whole, in words. Others: `broken_off`.
CUT_OFF = {
    LENGTH: "Cut off at the token limit",
    CONTENT_FILTER: "Cut off by the provider's filter",
}
EMPTY = "The model ended its answer without a text."


def is_good(reason: str | None) -> bool:
    """Whether the model itself came to this end."""
    return reason in GOOD


def broken_off(reason: str | None) -> str:
    """The sentence about an end that no server of ours has a good word for; else nothing."""
    if is_good(reason) or reason in CUT_OFF:
        return ""
    return f"The model's server ended the answer: {reason}."


def ending(reason: str | None) -> str:
    """The sentence about an answer that is not whole; nothing about one that is."""
    note = CUT_OFF.get(reason or "")
    return f"{note}." if note else broken_off(reason)
