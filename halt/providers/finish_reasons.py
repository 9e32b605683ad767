"""The servers' words for the end of an answer, as OpenAI's (`halt.core.finish_reasons`).

Servers write the same reason as `MAX_TOKENS`, `max_tokens`, `maxTokens` or
`FinishReason.MAX_TOKENS`, so a reason is compared word by word. The list of good ends is finite,
that of the others is not: a reason that is not known here counts as broken off, and is shown as the
server wrote it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from halt.core.finish_reasons import CONTENT_FILTER, FUNCTION_CALL, LENGTH, STOP, TOOL_CALLS

KNOWN = frozenset({STOP, LENGTH, TOOL_CALLS, FUNCTION_CALL, CONTENT_FILTER})

REASON_MAX = 100  # characters of a server's own word

_WORD = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|\d+")
_MARK = re.compile(r"</?[^\s<>]+>")  # a model's own token for its end, as <|im_end|>

#: Words that are written as one.
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
_UNENDED = (  # what some servers send with every piece
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


def known_reason(given: object) -> str | None:
    """A finish reason as a server gave it, in OpenAI's word; a word of its own stays as it is.

    None: it says that there is none yet.
    """
    if isinstance(given, str):
        return given if given in KNOWN else _compared(given)
    if isinstance(given, Mapping):  # {"reason": "length"}, {"type": "stop"}
        inner = given.get("reason") or given.get("type")
        return known_reason(inner) if isinstance(inner, str) else None
    return STOP if given is True else None


def _compared(given: str) -> str | None:
    if _MARK.fullmatch(given.strip()):
        return STOP
    words: list[str] = []
    for word in _WORD.findall(given[: 2 * REASON_MAX]):
        words += _COMPOUNDS.get(word.lower(), (word.lower(),))
    if words[1:2] == ["reason"] and words[0] in {"finish", "stop", "done"}:
        del words[:2]
    found = set(words)
    if not given.strip() or found in _UNENDED:
        return None
    if not found:
        return _own(given)
    if found <= _CALLS:
        return TOOL_CALLS
    if found & _FILTERS:
        return CONTENT_FILTER
    if found & _GOOD and found <= _GOOD | _BESIDE_GOOD:
        return STOP
    if _is_length(found):
        return LENGTH
    return _own(given)


def _is_length(words: set[str]) -> bool:
    if words & _NO_LENGTH:
        return False
    if "length" in words or (words & _AMOUNTS and words & _AMOUNTED):
        return True
    return bool(words & {"limit", "max", "maximum", "truncated"}) and words <= _LIMITED


def _own(given: str) -> str:
    """The server's own word, as it can be shown and logged."""
    text = " ".join("".join(c if c.isprintable() else " " for c in given).split())
    return text[:REASON_MAX] or "unknown"
