"""Translates the servers' finish reasons to OpenAI's (`halt.core.finish_reasons`).

Servers write the same reason as `MAX_TOKENS`, `max_tokens`, `maxTokens` or
`FinishReason.MAX_TOKENS`, so reasons are compared word by word. The list of good ends is finite,
that of the others is not: an unknown reason means that the answer broke off, and is shown as the
server wrote it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from halt.core.finish_reasons import CONTENT_FILTER, FUNCTION_CALL, LENGTH, STOP, TOOL_CALLS

KNOWN = frozenset({STOP, LENGTH, TOOL_CALLS, FUNCTION_CALL, CONTENT_FILTER})

REASON_MAX = 100  # characters of an unknown reason

_WORD = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|\d+")
_MARK = re.compile(r"</?[^\s<>]+>")  # a model's end token, such as <|im_end|>

#: Compounds that servers write as one word.
_COMPOUNDS = {
    "contentfilter": ("content", "filter"),
    "endofsequence": ("eos",),
    "endoftext": ("eos",),
    "endofturn": ("eot",),
    "endturn": ("end", "turn"),
    "eostoken": ("eos", "token"),
    "functioncall": ("function", "call"),
    "maxlength": ("max", "length"),
    "maxtokens": ("max", "tokens"),
    "stopsequence": ("stop", "sequence"),
    "toolcall": ("tool", "call"),
    "toolcalls": ("tool", "calls"),
    "tooluse": ("tool", "use"),
}
_UNENDED = (  # some servers send these with every chunk
    {"null"}, {"none"}, {"false"}, {"unspecified"}, {"not", "finished"}, {"in", "progress"},
    {"not", "stopped"},
)  # fmt: skip


def _words(*lines: str) -> frozenset[str]:
    return frozenset(word for line in lines for word in line.split())


_CALLS = _words("tool tools function functions call calls called use uses")
_FILTERS = _words(
    "armor blacklist blocked blocklist censored copyright filter filtered filters guardrail",
    "guardrails harm harmful moderated moderation pii policy prohibited recitation refusal refused",
    "risk safety sensitive spii toxic toxicity unsafe violation",
)
_GOOD = _words("complete completed done end ended eom eos eot final finish finished normal stop",
               "succeeded success")  # fmt: skip
_BESIDE_GOOD = _words(
    "completion criteria found hit id im match matched message model natural of reached seq",
    "sequence sequences string text token turn with word",
)
_AMOUNTS = _words("budget exceeded exhausted full limit max maximum out overflow reached")
_AMOUNTED = _words("context generation new output predict predicted token tokens window")
_LIMITED = _words("hit limit max maximum reached stop stopped truncated")  # with nothing else
_NO_LENGTH = _words("day hour memory minute quota rate time")  # limits of another kind


def normalise_reason(reason: object) -> str | None:
    """Return OpenAI's word for a server's finish reason; an unknown reason is returned unchanged.

    None if the value means that the answer has not ended.
    """
    if isinstance(reason, str):
        return reason if reason in KNOWN else _translated(reason)
    if isinstance(reason, Mapping):  # {"reason": "length"}, {"type": "stop"}
        inner = reason.get("reason") or reason.get("type")
        return normalise_reason(inner) if isinstance(inner, str) else None
    return STOP if reason is True else None


def _translated(reason: str) -> str | None:
    if _MARK.fullmatch(reason.strip()):
        return STOP
    words: list[str] = []
    for word in _WORD.findall(reason[: 2 * REASON_MAX]):
        words += _COMPOUNDS.get(word.lower(), (word.lower(),))
    if words[1:2] == ["reason"] and words[0] in {"finish", "stop", "done"}:
        del words[:2]
    word_set = set(words)
    if not reason.strip() or word_set in _UNENDED:
        return None
    if not word_set:
        return _printable(reason)
    if word_set <= _CALLS:
        return TOOL_CALLS
    if word_set & _FILTERS:
        return CONTENT_FILTER
    if word_set & _GOOD and word_set <= _GOOD | _BESIDE_GOOD:
        return STOP
    if _is_length(word_set):
        return LENGTH
    return _printable(reason)


def _is_length(words: set[str]) -> bool:
    if words & _NO_LENGTH:
        return False
    if "length" in words or (words & _AMOUNTS and words & _AMOUNTED):
        return True
    return bool(words & {"limit", "max", "maximum", "truncated"}) and words <= _LIMITED


def _printable(reason: str) -> str:
    """Return the server's reason in a form that can be shown and logged."""
    text = " ".join("".join(c if c.isprintable() else " " for c in reason).split())
    return text[:REASON_MAX] or "unknown"
