"""Removes secrets from texts for users and logs: servers and gateways quote the keys they got."""

from __future__ import annotations

import base64
import binascii
import html
import json
import re
from collections.abc import Iterator
from urllib.parse import quote, quote_plus

HIDDEN_KEY_MIN = 8  # characters; shorter keys ("none", "fake") are not secret
PART_MIN = 16  # characters of the beginning or the end of a secret that are removed anywhere
REMOVED = "[key]"  # in place of a secret

_ELLIPSIS = re.compile(r"(?:…|\.{3})\s*\Z")


def without_secrets(text: str, secrets: tuple[str, ...]) -> str:
    """The text with each occurrence of a secret replaced by REMOVED, however it is encoded.

    Also the beginning of one at the end of the text, where the text may have been cut, and its
    first or last PART_MIN characters or more anywhere. The few that are left of a key that its
    server has masked, as in sk-ab***yz, stay.
    """
    if not text:
        return text
    spellings = sorted({s for secret in secrets for s in _spellings(secret)}, key=len, reverse=True)
    for spelling in spellings:
        text = text.replace(spelling, REMOVED)
    for spelling in spellings:
        text = _without_parts(text, spelling)
    ellipsis = _ELLIPSIS.search(text)
    end = ellipsis.start() if ellipsis else len(text)
    cut = max((_begun(text[:end], spelling) for spelling in spellings), default=0)
    return f"{text[: end - cut]}{REMOVED}{text[end:]}" if cut else text


def _without_parts(text: str, spelling: str) -> str:
    """The text without the beginnings and the ends of a spelling, each as long as it is there."""
    if len(spelling) <= PART_MIN:
        return text
    at = text.find(spelling[:PART_MIN])
    while at >= 0:
        end = at + _common(text[at : at + len(spelling)], spelling)
        text = text[:at] + REMOVED + text[end:]
        at = text.find(spelling[:PART_MIN], at + len(REMOVED))
    end = text.rfind(spelling[-PART_MIN:]) + PART_MIN
    while end >= PART_MIN:
        before = text[max(0, end - len(spelling)) : end]
        at = end - _common(before[::-1], spelling[::-1])
        text = text[:at] + REMOVED + text[end:]
        end = text.rfind(spelling[-PART_MIN:], 0, at) + PART_MIN
    return text


def _common(one: str, other: str) -> int:
    """How many characters two texts have in common at their beginnings."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))


def _begun(text: str, spelling: str) -> int:
    """How many characters at the end of a text begin this spelling; 0 if they are too few."""
    longest = min(len(spelling) - 1, len(text))
    lengths = range(longest, HIDDEN_KEY_MIN - 1, -1)
    return next((length for length in lengths if text.endswith(spelling[:length])), 0)


def _spellings(secret: str) -> Iterator[str]:
    """A secret and its parts, plain and as URLs, JSON, HTML and base64 spell them."""
    for part in _parts(secret):
        if len(part) < HIDDEN_KEY_MIN:
            continue
        yield part
        for quoted in (quote(part, safe=""), quote(part), quote_plus(part)):
            yield quoted
            yield re.sub("%[0-9A-F]{2}", lambda match: match[0].lower(), quoted)
        for escaped in (json.dumps(part), json.dumps(part, ensure_ascii=False)):
            yield escaped[1:-1]
            yield escaped[1:-1].replace("/", "\\/")
        yield html.escape(part)
        yield from _base64_spellings(part.encode("utf-8", "surrogatepass"))


def _parts(secret: str) -> Iterator[str]:
    """A secret; of a header such as `Bearer KEY` also the key, of a Basic one the password."""
    yield secret
    scheme, _, credentials = secret.partition(" ")
    if not credentials or " " in credentials:
        return
    yield credentials
    if scheme.lower() == "basic":
        try:
            pair = base64.b64decode(credentials, validate=True).decode()
        except (binascii.Error, ValueError):
            return
        yield pair
        yield pair.partition(":")[2]


def _base64_spellings(data: bytes) -> Iterator[str]:
    """The characters that data has in the base64 form of any text that contains it.

    There are three, by the position of the data in a group of three bytes. Characters that hold
    bits of other data are left out.
    """
    for offset in range(3):
        encoded = base64.b64encode(bytes(offset) + data).decode()
        spelling = encoded[(0, 2, 3)[offset] : (offset + len(data)) * 8 // 6]
        if len(spelling) >= HIDDEN_KEY_MIN:
            yield spelling
            yield spelling.replace("+", "-").replace("/", "_")
