"""Provider-specific fields of an answer that go back to the server with the results of its tools.

DeepSeek and Kimi need their reasoning back, Gemini its signatures, OpenRouter `reasoning_details`;
some refuse a tool's result without them. Groq and Mistral refuse the same fields by name.
"""

from __future__ import annotations

from typing import Any

from halt.core.events import Extra
from halt.core.extra_fields import Extras
from halt.core.request import OF_ANSWERS, Message, ToolTurn
from halt.providers.loose_json import valid_text

#: Fields of a tool call that every server accepts.
CALL_FIELDS = frozenset({"id", "type", "function"})


def outgoing_message(message: Message, refused: frozenset[str] = frozenset()) -> dict[str, Any]:
    """Return the message to send to an OpenAI-compatible server.

    It has the round-trip fields, apart from those in `refused`. It may be `message` itself, so
    callers must not change it.
    """
    if isinstance(message, ToolTurn):
        fields = message.opaque or {}
        calls = [
            {k: v for k, v in call.items() if k in CALL_FIELDS or k not in refused}
            for call in message["tool_calls"]
        ]
        accepted_fields = {k: v for k, v in fields.items() if k not in refused}
        return {**message, **accepted_fields, "tool_calls": calls}
    if refused and message.role == "assistant":
        return {k: v for k, v in message.items() if k not in OF_ANSWERS or k not in refused}
    return message


def round_trip_names(message: Message) -> set[str]:
    """Return the names of a message's fields that may be left out if a server refuses them."""
    if isinstance(message, ToolTurn):
        call_fields = {name for call in message["tool_calls"] for name in call}
        return {*(message.opaque or {}), *(call_fields - CALL_FIELDS)}
    return {*OF_ANSWERS & message.keys()} if message.role == "assistant" else set()


class RoundTripFields:
    """Collects the fields of an answer that its server may need back with the tools' results.

    These are the reasoning, under the field name in which it arrived; the text, if it has think
    tags; and all other fields of the message that Halt does not know.
    """

    __slots__ = ("_extras", "_parts", "name")

    def __init__(self) -> None:
        self.name = ""  # of the field in which reasoning arrived
        self._parts: list[Any] = []
        self._extras = Extras()

    def take_parts(self, content: list[Any]) -> None:
        """Add the parts of a `content` that is a list, apart from its text."""
        self._parts += [
            part for part in content if isinstance(part, dict) and part.get("type") != "text"
        ]

    def take_fields(self, delta: dict[str, Any]) -> None:
        """Add the fields of a delta other than text, reasoning and calls."""
        self._extras.add(Extra(delta=delta))

    def fields(
        self, reasoning_texts: list[str], texts: list[str], *, marked: bool
    ) -> dict[str, Any] | None:
        """Return the collected fields, None if there are none. `marked`: `texts` has think tags."""
        fields = self._extras.delta
        text = valid_text("".join(texts))
        if self.name:
            fields[self.name] = valid_text("".join(reasoning_texts))
        if self._parts:
            text_parts = [{"type": "text", "text": text}] if text.strip() else []
            fields["content"] = _parts([*self._parts, *text_parts])
        elif marked:
            fields["content"] = text
        return fields or None


#: Types of parts that arrive in pieces. The field named like the type has the text or the parts.
GROWING = frozenset({"text", "thinking"})


def _parts(pieces: list[Any]) -> list[Any]:
    """Return the parts, with consecutive pieces of one growing type merged."""
    runs: list[list[Any]] = []
    for piece in pieces:
        kind = piece.get("type") if isinstance(piece, dict) else None
        if runs and kind in GROWING and kind == runs[-1][0].get("type"):
            runs[-1].append(piece)
        else:
            runs.append([piece])
    return [run[0] if len(run) == 1 else _merged(run) for run in runs]


def _merged(run: list[dict[str, Any]]) -> dict[str, Any]:
    """Merge the pieces of one part."""
    part: dict[str, Any] = {}
    for piece in run:
        part |= piece
    field = part["type"]
    values = [piece.get(field) for piece in run]
    if all(isinstance(value, str) for value in values):
        part[field] = "".join(map(str, values))
    else:
        part[field] = _parts([item for v in values if isinstance(v, list) for item in v])
    return part
