"""Finds out whether a server refuses a request for the files in it."""

from __future__ import annotations

import re

from halt.errors import UpstreamError

#: Codes of refusals that may have any words, and those that must speak of a file.
_ANY_WORDS = frozenset({"bad_request", "context_too_long"})
_FILE_WORDS = frozenset({"model_not_found", "endpoint_not_found", "upstream_server_error"})
_FILE = re.compile(
    r"\b(?:files?|pdfs?|documents?|modalit\w+|(?:content|part) type)\b", re.IGNORECASE
)
#: Words about this file, or about the size of the request.
_THIS_FILE = re.compile(
    r"\bpages?\b|password|protected|encrypt|damaged|corrupt|empty|not valid|invalid pdf|parse"
    r"|process|too (?:large|long|big|many)|exceed|maximum|size|tokens?\b|context",
    re.IGNORECASE,
)


def may_refuse_files(refusal: UpstreamError) -> bool:
    """Whether the request may be accepted without its files.

    The words differ between servers ("unsupported content[].type", "must be text or image_url"),
    so another request decides.
    """
    if refusal.upstream_status is None:  # no answer of the server
        return False
    is_named = refusal.code in _FILE_WORDS and _FILE.search(refusal.detail) is not None
    return refusal.code in _ANY_WORDS or is_named


def refuses_all_files(refusal: UpstreamError) -> bool:
    """Whether a refusal of files holds for others too: it says nothing of this one."""
    is_general = refusal.code != "context_too_long" and refusal.upstream_status != 413
    return is_general and _THIS_FILE.search(refusal.detail) is None
