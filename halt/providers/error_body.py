"""What the body of an error says: its words, its labels and how long to wait.

Servers do not agree on the shape of an error. It is an object, a list or a text, may hold another
error as JSON text, and may be a web page. All of them are read by the same rules here; `faults`
decides what the error means.
"""

from __future__ import annotations

import ast
import html
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from halt.providers.loose_json import clean, index_of, whole

DEPTH_MAX = 8  # levels of a body that are read
TEXT_MAX = 20_000  # characters of a body that are read
ITEMS_MAX = 8  # errors of a list that are told
VALUES_MAX = 200  # values of a body that are read; one may be read under several names
DURATION_MAX = 100  # characters of a text that is read as a time

#: Fields that hold words, as `_plain` writes their names. All of them are told, the outer first.
_WORDS = (
    "error",
    "message",
    "msg",
    "errormessage",
    "errormsg",
    "errmsg",
    "statusmsg",
    "statusmessage",
    "errordescription",
    "faultstring",
    "detail",
    "errors",
    "err",
    "fault",
    "baseresp",
    "raw",
    "innererror",
    "upstreamerror",
)
#: Fields whose words are told where there are no others.
_OTHER_WORDS = (
    *("title", "reason", "description", "details", "cause", "info", "response", "body"),
    *("data", "result", "output", "header"),
)
#: Fields that hold a label.
_LABELS = frozenset(
    ("code", "type", "status", "statuscode", "errorcode", "errortype", "errcode", "reason")
)
#: Fields that hold a number of seconds, a text such as "1.5s", or milliseconds.
_WAITS = frozenset(("retrydelay", "retryafter", "retryafterseconds", "estimatedtime"))
#: Fields that say nothing to a person.
_SILENT = _LABELS | {
    "id",
    "requestid",
    "traceid",
    "trace",
    "timestamp",
    "object",
    "model",
    "path",
    "param",
    "created",
    "event",
}

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_DURATION = (
    r"\d+(?:\.\d+)?\s*"
    r"(?:ms|milliseconds?|s|secs?|seconds?|m|mins?|minutes?|h|hrs?|hours?|d|days?)\b"
)
_ONE = re.compile(r"(?<!\d)(\d++(?:\.\d++)?)\s*+(ms|milli|s|m|h|d)", re.IGNORECASE)
_GLUED = r"(?:\d+[dhm](?=\d))*"  # 1h2m3s
_WAIT = re.compile(
    rf"\b(?:again|retry|retrying|wait|resets?|available in)\b(?:\W+[a-z]+){{0,3}}?\W+"
    rf"({_GLUED}{_DURATION}(?:(?:,|\s|\band\b)*{_DURATION})*)",
    re.IGNORECASE,
)
_MARKUP = re.compile(r"\s*<[!?a-z]", re.IGNORECASE)
_HIDDEN = re.compile(r"<(script|style|svg|title)\b.*?(?:</\1\s*>|\Z)", re.IGNORECASE | re.DOTALL)
_TAG = re.compile(r"<[^<>]*>")
_TITLES = tuple(
    re.compile(rf"<{tag}\b[^<>]*>(.*?)(?:</{tag}\s*>|\Z)", re.IGNORECASE | re.DOTALL)
    for tag in ("title", "h1", "h2", "message")
)
_EMPTY_TITLE = re.compile(r"error(?: response)?!?", re.IGNORECASE)
_FIELD_PREFIX = re.compile(r"^(?:(?:data|error):|event: ?\w+\s*)\s*", re.MULTILINE)
_CUT_JSON = re.compile(r"""["'](?:message|msg|detail|error)["']\s*:\s*"((?:[^"\\]|\\.)+)""")
_PYTHON = re.compile(r"[{\[]\s*'")


@dataclass
class Said:
    """What an error says. `wait` is in seconds; `labels` are its codes and types in snake_case."""

    words: str = ""
    labels: list[str] = field(default_factory=list)
    status: int | None = None
    wait: float | None = None
    is_page: bool = False
    reasons: bool = False  # it lists reasons for which content was refused
    limits: dict[str, Any] = field(default_factory=dict)  # headers that a router passes on
    left: int = VALUES_MAX  # values that may still be read

    def has(self, *parts: str) -> bool:
        """Whether a label contains one of these."""
        return any(part in label for label in self.labels for part in parts)


def read(value: object) -> Said:
    """What this decoded JSON value, or text, says."""
    said = Said()
    said.words = _joined(_pieces(value, said, 0)) or _joined(_pieces({"error": value}, said, 0))
    if not said.words:
        said.words = whole(next((label for label in said.labels if not label.isdigit()), ""))
    if said.wait is None:
        said.wait = wait_in(said.words)
    return said


def collapsed(text: str) -> str:
    """This text in one line, without what no screen shows."""
    return "".join(c for c in " ".join(text.split()) if c.isprintable())


def seconds_of(value: object, unit: str = "s") -> float | None:
    """The seconds of a number, or of a text such as "30s", "1m20s" or "2 minutes"."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int | float):
        count = clean(value)
        return count * _UNITS[unit] if count is not None and count >= 0 else None
    text = str(value)[:DURATION_MAX].strip()
    try:
        number = float(text)
    except ValueError:
        pairs = _ONE.findall(text) if re.match(r"\d", text) else []
        return sum(float(n) * _UNITS["ms" if u == "milli" else u] for n, u in pairs) or None
    return number * _UNITS[unit] if 0 <= number < float("inf") else None


def wait_in(words: str) -> float | None:
    """The seconds that a sentence wants us to wait: "Please try again in 6m0s"."""
    match = _WAIT.search(words)
    return seconds_of(match[1].lower()) if match else None


def page_words(text: str) -> str:
    """What a web page, or another document of markup, says: its title or its first heading."""
    text = text[:TEXT_MAX]
    for pattern in _TITLES:
        match = pattern.search(text)
        title = _unmarked(match[1]) if match else ""
        if title and not _EMPTY_TITLE.fullmatch(title):
            return title
    return _unmarked(_HIDDEN.sub(" ", text))


def is_markup(text: str) -> bool:
    """Whether this is HTML or XML."""
    return _MARKUP.match(text) is not None


def plain_name(name: object) -> str:
    """A field's name without case and separators, which servers write as they like."""
    return re.sub(r"[^a-z0-9]", "", str(name).lower())


def _unmarked(text: str) -> str:
    return collapsed(html.unescape(_TAG.sub(" ", text)))


def _label(value: object) -> str:
    """A code or type in snake_case, empty where it is none."""
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        return ""
    text = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", str(value)).lower()
    return "" if " " in text or len(text) > 80 else text.replace("-", "_")


def _joined(pieces: Iterable[str]) -> str:
    """Pieces in one text, those left out that another one holds."""
    kept: list[str] = []
    for piece in pieces:
        low = piece.lower().rstrip(" .")
        if not low or any(low in other.lower() for other in kept):
            continue
        kept = [other for other in kept if other.lower().rstrip(" .") not in low]
        kept.append(piece)
    return ": ".join([*(piece.rstrip(" .:;-") for piece in kept[:-1]), *kept[-1:]])


def _pieces(value: object, said: Said, depth: int) -> list[str]:
    if not isinstance(value, str | list | dict) or depth > DEPTH_MAX or said.left <= 0:
        return []
    said.left -= 1
    if isinstance(value, str):
        return _of_text(value, said, depth)
    if isinstance(value, list):
        items = (_joined(_pieces(item, said, depth + 1)) for item in value[:ITEMS_MAX])
        told = "; ".join(dict.fromkeys(item for item in items if item))
        return [told] if told else []
    return _of_object(value, said, depth)


def _of_object(value: Mapping[Any, Any], said: Said, depth: int) -> list[str]:
    fields = {plain_name(name): each for name, each in value.items()}
    _note(fields, said)
    pieces = list(_of_fields(fields, _WORDS, said, depth))
    for name, each in fields.items():
        if name.endswith("exception"):
            pieces += _pieces(each, said, depth + 1)
    metadata = fields.get("metadata")
    if isinstance(metadata, dict):
        inner = {plain_name(name): each for name, each in metadata.items()}
        said.reasons = said.reasons or bool(inner.get("reasons") or inner.get("flaggedinput"))
        if isinstance(inner.get("headers"), dict):
            said.limits.update({str(k).lower(): v for k, v in inner["headers"].items()})
        pieces += _of_fields(inner, ("raw", "upstreamerror"), said, depth)
    details = fields.get("details")
    if isinstance(details, list):  # they say how long to wait, and why, in labels
        for detail in details[:ITEMS_MAX]:
            if isinstance(detail, dict):
                _note({plain_name(name): each for name, each in detail.items()}, said)
    if not pieces:
        pieces = list(_of_fields(fields, _OTHER_WORDS, said, depth))
    if not pieces and depth:
        pieces = list(_of_rest(value, said, depth))
    place = fields.get("loc", fields.get("field"))
    if isinstance(place, list):
        place = ".".join(str(part) for part in place if isinstance(part, str | int))
    if pieces and isinstance(place, str) and place and place not in pieces[0]:
        pieces[0] = f"{place}: {pieces[0]}"
    return pieces


def _of_fields(
    fields: Mapping[str, Any], names: Iterable[str], said: Said, depth: int
) -> Iterator[str]:
    labels = []
    for name in names:
        each = fields.get(name)
        pieces = _pieces(each, said, depth + 1)
        if name == "error" and isinstance(each, str) and (label := _label(each.strip())):
            said.labels.append(label)  # {"error": "invalid_client", "error_description": ...}
            labels += pieces
        else:
            yield from pieces
    yield from labels


def _of_rest(value: Mapping[Any, Any], said: Said, depth: int) -> Iterator[str]:
    """Fields of unknown names: {"max_tokens": ["must be at most 4096"]}."""
    for name, each in list(value.items())[:ITEMS_MAX]:
        if plain_name(name) in _SILENT or not isinstance(each, str | list | dict):
            continue
        told = _joined(_pieces(each, said, depth + 1))
        if told:
            yield f"{collapsed(str(name))}: {told}"


def _note(fields: Mapping[str, Any], said: Said) -> None:
    """Keep an object's labels, its status and how long it wants us to wait."""
    for name, each in fields.items():
        if name in _LABELS and (label := _label(each)):
            said.labels.append(label)
            status = index_of(label)
            if status is not None and 400 <= status <= 599 and said.status is None:
                said.status = status
        elif name in _WAITS and said.wait is None:
            said.wait = seconds_of(each)
        elif name in {"retryafterms", "retrydelayms"} and said.wait is None:
            said.wait = seconds_of(each, "ms")


def _of_text(text: str, said: Said, depth: int) -> list[str]:
    text = text[:TEXT_MAX].strip()
    if is_markup(text):
        said.is_page = True
        words = page_words(text)
        return [words] if words else []
    if "{" in text:
        inner = _embedded(text, said, depth)
        if inner:
            return inner
    text = collapsed(text)
    return [text] if text else []


def _embedded(text: str, said: Said, depth: int) -> list[str]:
    """The words of a text that holds an error as JSON, or as Python writes it."""
    text = _FIELD_PREFIX.sub("", text)
    start = min(at for at in (text.find("{"), text.find("[")) if at >= 0)
    for at in {start, text.find("{")}:
        value, end = _decoded(text, at)
        inner = Said(left=said.left)
        pieces = _pieces(value, inner, depth + 1) if _is_error_like(value) else []
        said.left = inner.left
        if pieces:
            said.labels += inner.labels
            said.status = said.status or inner.status
            said.wait = said.wait if said.wait is not None else inner.wait
            said.reasons = said.reasons or inner.reasons
            before = collapsed(re.sub(r"\bb?['\"]$", "", text[:at].rstrip())).rstrip(" -:")
            after = collapsed(text[end:]).strip(" '\"")
            return [each for each in (before, *pieces, after) if each]
    if text.startswith(("{", "[")) and (match := _CUT_JSON.search(text)):
        return [collapsed(match[1].replace("\\n", " ").replace('\\"', '"'))]
    return []


def _decoded(text: str, start: int) -> tuple[object, int]:
    """The value that begins here, and where it ends; None where there is none."""
    try:
        value, end = json.JSONDecoder(strict=False).raw_decode(text, start)
    except (ValueError, RecursionError):
        pass
    else:
        return value, end
    if _PYTHON.match(text, start):
        end = max(text.rfind("}"), text.rfind("]")) + 1
        try:
            return clean(ast.literal_eval(text[start:end])), end
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            pass
    return None, start


def written(text: str) -> object:
    """The value of an object as Python writes it; the text where it is none, or is long."""
    is_short = text.startswith("{") and len(text) <= TEXT_MAX
    value, _ = _decoded(text, 0) if is_short else (None, 0)
    return text if value is None else value


def _is_error_like(value: object) -> bool:
    """Whether a value has a field for words, so that it is no schema or example in a sentence."""
    if isinstance(value, list):
        value = value[0] if value else None
    return isinstance(value, dict) and any(
        plain_name(name) in _WORDS or str(name).lower().endswith("exception") for name in value
    )
