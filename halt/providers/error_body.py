"""Decides whether a body is an error, and extracts its message, labels and seconds to wait.

Servers do not agree on the shape of an error. It is an object, a list or a text, may hold another
error as JSON text, and may be a web page. The same rules apply to all of them here;
`halt.providers.error_code` decides what the error means.
"""

from __future__ import annotations

import ast
import html
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from halt.providers.loose_json import clean, parse_index, valid_text

DEPTH_MAX = 8  # levels of a body that are read
TEXT_MAX = 20_000  # characters of a body that are read
ITEMS_MAX = 8  # errors of a list that the message includes
WRAPPED_MAX = 8  # levels of WRAPPERS that are searched
VALUES_MAX = 200  # values of a body that are read; one value may be read under several names
DURATION_MAX = 100  # characters of a text that is parsed as a duration

# Names of fields are in the form that `plain_name` returns.

#: Fields with the message of an error, if a code beside them says that there is an error.
_FAULTS = ("error", "message", "msg", "errormessage", "errormsg", "errmsg", "statusmsg")
#: Fields with text for people. The message includes all of them, the outer first.
_WORDS = (
    *_FAULTS,
    *("statusmessage", "errordescription", "faultstring", "detail", "errors", "err", "fault"),
    *("baseresp", "raw", "innererror", "upstreamerror"),
)
#: Fields in which some gateways put a whole answer, or an error.
WRAPPERS = ("data", "response", "result", "output", "header")
#: Fields with text that is used only if there is no other.
_OTHER_WORDS = (
    *("title", "reason", "description", "details", "cause", "info", "response", "body"),
    *("data", "result", "output", "header"),
)
_CODES = ("code", "errorcode", "errcode", "statuscode", "status", "errno")
#: Fields that hold a label (an error's code or type).
_LABELS = frozenset(_CODES) - {"errno"} | {"type", "errortype", "reason"}
#: Fields that hold a number of seconds, a text such as "1.5s", or milliseconds.
_WAITS = frozenset(("retrydelay", "retryafter", "retryafterseconds", "estimatedtime"))
#: Fields without information for a person.
_SILENT = (
    _LABELS
    | {"id", "requestid", "traceid", "trace", "timestamp", "object", "model", "path", "param"}
    | {"created", "event"}
)
#: Values of error fields that mean success.
_SUCCESS = frozenset(("", "0", "ok", "success", "succeeded", "successful", "completed", "none"))

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_DURATION = (
    r"\d+(?:\.\d+)?\s*"
    r"(?:ms|milliseconds?|s|secs?|seconds?|m|mins?|minutes?|h|hrs?|hours?|d|days?)\b"
)
_ONE = re.compile(r"(?<!\d)(\d++(?:\.\d++)?)\s*+(ms|milli|s|m|h|d)", re.IGNORECASE)
_GLUED = r"(?:\d+[dhm](?=\d))*"  # 1h2m3s
#: The time to wait in a sentence: "Please try again in 6m0s".
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
FAILURE = re.compile(r"error|exception|fail", re.IGNORECASE)
_CUT_JSON = re.compile(r"""["'](?:message|msg|detail|error)["']\s*:\s*"((?:[^"\\]|\\.)+)""")
_PYTHON = re.compile(r"[{\[]\s*'")


@dataclass
class ErrorInfo:
    """The facts of an error. `labels` are its codes and types in snake_case."""

    message: str = ""
    labels: list[str] = field(default_factory=list)
    status: int | None = None  # an HTTP status that the body names
    retry_after: float | None = None  # seconds to wait
    is_page: bool = False  # the body is a web page
    has_reasons: bool = False  # the body lists reasons why the content was refused
    rate_headers: dict[str, Any] = field(default_factory=dict)  # headers that a router passes on
    values_left: int = VALUES_MAX  # values that may still be read

    def has(self, *parts: str) -> bool:
        """Whether a label contains one of the parts."""
        return any(part in label for label in self.labels for part in parts)


def parse_error_info(value: object) -> ErrorInfo:
    """Extract the facts of an error from a decoded JSON value, or from a text."""
    info = ErrorInfo()
    info.message = _joined(_messages(value, info, 0)) or _joined(
        _messages({"error": value}, info, 0)
    )
    if not info.message:
        info.message = valid_text(next((label for label in info.labels if not label.isdigit()), ""))
    if info.retry_after is None and (match := _WAIT.search(info.message)):
        info.retry_after = parse_seconds(match[1].lower())
    return info


def single_line(text: str) -> str:
    """Return the text in one line, without unprintable characters."""
    return "".join(c for c in " ".join(text.split()) if c.isprintable())


def parse_seconds(value: object, unit: str = "s") -> float | None:
    """Return the seconds of a number, or of a text such as "30s", "1m20s" or "2 minutes".

    `unit`: of a bare number. None if the value is no duration.
    """
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


def page_text(text: str) -> str:
    """Return the title of a web page or other markup, else its first heading, else its text."""
    text = text[:TEXT_MAX]
    for pattern in _TITLES:
        match = pattern.search(text)
        title = _unmarked(match[1]) if match else ""
        if title and not _EMPTY_TITLE.fullmatch(title):
            return title
    return _unmarked(_HIDDEN.sub(" ", text))


def is_markup(text: str) -> bool:
    """Whether the text is HTML or XML."""
    return _MARKUP.match(text) is not None


def plain_name(name: object) -> str:
    """Return a field's name in lower case without separators, on which servers do not agree."""
    return re.sub(r"[^a-z0-9]", "", str(name).lower())


def plain_fields(value: Mapping[Any, Any]) -> dict[str, Any]:
    """Return an object's fields by their plain names."""
    return {plain_name(name): entry for name, entry in value.items()}


def _unmarked(text: str) -> str:
    return single_line(html.unescape(_TAG.sub(" ", text)))


def _label(value: object) -> str:
    """Return a code or type in snake_case, empty if the value is none."""
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        return ""
    text = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", str(value)).lower()
    return "" if " " in text or len(text) > 80 else text.replace("-", "_")


def _joined(pieces: Iterable[str]) -> str:
    """Join the pieces to one text, without those that another piece contains."""
    unique_pieces: list[str] = []
    for piece in pieces:
        low = piece.lower().rstrip(" .")
        if not low or any(low in other.lower() for other in unique_pieces):
            continue
        unique_pieces = [other for other in unique_pieces if other.lower().rstrip(" .") not in low]
        unique_pieces.append(piece)
    return ": ".join(
        [*(piece.rstrip(" .:;-") for piece in unique_pieces[:-1]), *unique_pieces[-1:]]
    )


def _messages(value: object, info: ErrorInfo, depth: int) -> list[str]:
    if not isinstance(value, str | list | dict) or depth > DEPTH_MAX or info.values_left <= 0:
        return []
    info.values_left -= 1
    if isinstance(value, str):
        return _text_messages(value, info, depth)
    if isinstance(value, list):
        items = (_joined(_messages(item, info, depth + 1)) for item in value[:ITEMS_MAX])
        message = "; ".join(dict.fromkeys(item for item in items if item))
        return [message] if message else []
    return _object_messages(value, info, depth)


def _object_messages(value: Mapping[Any, Any], info: ErrorInfo, depth: int) -> list[str]:
    fields = plain_fields(value)
    _add_facts(fields, info)
    pieces = list(_field_messages(fields, _WORDS, info, depth))
    for name, entry in fields.items():
        if name.endswith("exception"):
            pieces += _messages(entry, info, depth + 1)
    metadata = fields.get("metadata")
    if isinstance(metadata, dict):
        inner = plain_fields(metadata)
        info.has_reasons = info.has_reasons or bool(
            inner.get("reasons") or inner.get("flaggedinput")
        )
        if isinstance(inner.get("headers"), dict):
            info.rate_headers.update({str(k).lower(): v for k, v in inner["headers"].items()})
        pieces += _field_messages(inner, ("raw", "upstreamerror"), info, depth)
    details = fields.get("details")
    if isinstance(details, list):  # Google's: they hold the time to wait, and labels
        for detail in details[:ITEMS_MAX]:
            if isinstance(detail, dict):
                _add_facts(plain_fields(detail), info)
    if not pieces:
        pieces = list(_field_messages(fields, _OTHER_WORDS, info, depth))
    if not pieces and depth:
        pieces = list(_other_messages(value, info, depth))
    place = fields.get("loc", fields.get("field"))
    if isinstance(place, list):
        place = ".".join(str(part) for part in place if isinstance(part, str | int))
    if pieces and isinstance(place, str) and place and place not in pieces[0]:
        pieces[0] = f"{place}: {pieces[0]}"
    return pieces


def _field_messages(
    fields: Mapping[str, Any], names: Iterable[str], info: ErrorInfo, depth: int
) -> Iterator[str]:
    labels = []
    for name in names:
        entry = fields.get(name)
        pieces = _messages(entry, info, depth + 1)
        if name == "error" and isinstance(entry, str) and (label := _label(entry.strip())):
            info.labels.append(label)  # {"error": "invalid_client", "error_description": ...}
            labels += pieces
        else:
            yield from pieces
    yield from labels


def _other_messages(value: Mapping[Any, Any], info: ErrorInfo, depth: int) -> Iterator[str]:
    """Yield the messages of fields with unknown names: {"max_tokens": ["must be at most 4096"]}."""
    for name, entry in list(value.items())[:ITEMS_MAX]:
        if plain_name(name) in _SILENT or not isinstance(entry, str | list | dict):
            continue
        message = _joined(_messages(entry, info, depth + 1))
        if message:
            yield f"{single_line(str(name))}: {message}"


def _add_facts(fields: Mapping[str, Any], info: ErrorInfo) -> None:
    """Add an object's labels, status and time to wait to `info`."""
    for name, entry in fields.items():
        if name in _LABELS and (label := _label(entry)):
            info.labels.append(label)
            status = parse_index(label)
            if status is not None and 400 <= status <= 599 and info.status is None:
                info.status = status
        elif name in _WAITS and info.retry_after is None:
            info.retry_after = parse_seconds(entry)
        elif name in {"retryafterms", "retrydelayms"} and info.retry_after is None:
            info.retry_after = parse_seconds(entry, "ms")


def _text_messages(text: str, info: ErrorInfo, depth: int) -> list[str]:
    text = text[:TEXT_MAX].strip()
    if is_markup(text):
        info.is_page = True
        words = page_text(text)
        return [words] if words else []
    if "{" in text:
        inner = _embedded(text, info, depth)
        if inner:
            return inner
    text = single_line(text)
    return [text] if text else []


def _embedded(text: str, info: ErrorInfo, depth: int) -> list[str]:
    """Return the messages of a text that holds an error as JSON or as a Python literal."""
    text = _FIELD_PREFIX.sub("", text)
    start = min(at for at in (text.find("{"), text.find("[")) if at >= 0)
    for at in {start, text.find("{")}:
        value, end = _decoded(text, at)
        inner = ErrorInfo(values_left=info.values_left)
        pieces = _messages(value, inner, depth + 1) if _is_error_like(value) else []
        info.values_left = inner.values_left
        if pieces:
            info.labels += inner.labels
            info.status = info.status or inner.status
            info.retry_after = (
                info.retry_after if info.retry_after is not None else inner.retry_after
            )
            info.has_reasons = info.has_reasons or inner.has_reasons
            before = single_line(re.sub(r"\bb?['\"]$", "", text[:at].rstrip())).rstrip(" -:")
            after = single_line(text[end:]).strip(" '\"")
            return [piece for piece in (before, *pieces, after) if piece]
    if text.startswith(("{", "[")) and (match := _CUT_JSON.search(text)):
        return [single_line(match[1].replace("\\n", " ").replace('\\"', '"'))]
    return []


def _decoded(text: str, start: int) -> tuple[object, int]:
    """Return the JSON or Python value at `start`, None if there is none, and its end."""
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


def python_value(text: str) -> object:
    """Parse an object that may be a Python literal; return the text if it is none, or is long."""
    is_short = text.startswith("{") and len(text) <= TEXT_MAX
    value, _ = _decoded(text, 0) if is_short else (None, 0)
    return text if value is None else value


def _is_error_like(value: object) -> bool:
    """Whether a value has a message field, so that it is no schema or example in a sentence."""
    if isinstance(value, list):
        value = value[0] if value else None
    return isinstance(value, dict) and any(
        plain_name(name) in _WORDS or str(name).lower().endswith("exception") for name in value
    )


# --- whether an object is an error ---------------------------------------------------------------


def error_part(value: Mapping[str, Any]) -> object:
    """Return the part of an object that holds the error; for a chunk that is not its deltas."""
    choices = value.get("choices")
    if isinstance(choices, list):
        errors = [
            choice["error"]
            for choice in choices
            if isinstance(choice, dict) and choice.get("error")
        ]
        if errors:
            return {"error": errors[0]}
    return {
        name: entry for name, entry in value.items() if name not in {"choices", "usage", "data"}
    }


def is_error(value: Mapping[str, Any], depth: int = 0) -> bool:
    """Whether a decoded JSON object is an error."""
    fields = plain_fields(value)
    choices = fields.get("choices")
    if _has_error(fields.get("error")) or _is_failure_object(fields.get("baseresp")):
        return True
    if isinstance(choices, list) and any(isinstance(choice, dict) for choice in choices):
        return any(
            isinstance(choice, dict) and _has_error(choice.get("error")) for choice in choices
        )
    kinds = (fields.get("object"), fields.get("type"), fields.get("event"))
    if any(isinstance(kind, str) and FAILURE.search(kind) for kind in kinds):
        return True
    if _has_error(fields.get("errors")):
        return True
    wrapped = (fields.get(name) for name in WRAPPERS)
    if depth < WRAPPED_MAX and any(
        isinstance(entry, dict) and is_error(entry, depth + 1) for entry in wrapped
    ):
        return True
    if any(
        _has_error(fields.get(name)) for name in ("detail", "errormessage", "errormsg", "errmsg")
    ):
        return not _is_success_object(fields)
    if any(name.endswith("exception") and _has_error(entry) for name, entry in fields.items()):
        return True
    return _is_failure_object(fields)


def _has_error(value: object) -> bool:
    """Whether the value of an error field is an error."""
    if isinstance(value, dict):
        fields = plain_fields(value)
        return any(map(_is_meaningful, fields.values())) and not _is_success_object(fields)
    if isinstance(value, str):
        return value.strip().lower() not in {*_SUCCESS, "null", "false"}
    return value is True or (
        isinstance(value, list) and any(_has_error(x) for x in value if not isinstance(x, list))
    )


def _is_meaningful(value: object) -> bool:
    """Whether a value in an error object is an error; {"code": 0, "message": ""} has none."""
    return bool(value) and str(value).strip().lower() not in _SUCCESS


def _is_success_object(fields: Mapping[str, Any]) -> bool:
    """Whether an object with a code means success: {"code": 0, "message": "success"}."""
    codes = [str(fields[name]).lower() for name in _CODES if fields.get(name) is not None]
    message = str(fields.get("message") or fields.get("msg") or "").strip().lower()
    return message in _SUCCESS and bool(codes) and all(map(_is_success, codes))


def _is_success(code: str) -> bool:
    return code in _SUCCESS or 200 <= (parse_index(code) or 0) < 300


def _is_failure_object(value: object) -> bool:
    """Whether an object has the code of a failure, and a message."""
    if not isinstance(value, dict):
        return False
    fields = plain_fields(value)
    if not any(isinstance(fields.get(name), str | dict | list) for name in (*_FAULTS, "detail")):
        return False
    if str(fields.get("message") or fields.get("msg") or "x").strip().lower() in _SUCCESS:
        return False
    if fields.get("success") is False or fields.get("ok") is False:
        return True
    for name in _CODES:
        code = fields.get(name)
        if code is None or isinstance(code, bool | dict | list):
            continue
        text = str(code).strip().lower()
        number = parse_index(text)
        if name == "status" and number is None:  # "completed", "in_progress", "failed"
            if text.startswith(("err", "fail")):
                return True
        elif name == "status" and number is not None and number < 400:
            continue
        elif not _is_success(text):
            return True
    return False
