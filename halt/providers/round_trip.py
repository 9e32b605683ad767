"""What an answer's message holds for its server: it goes back with the results of its tools.

DeepSeek and Kimi want their thoughts back, Gemini its signatures, OpenRouter `reasoning_details`;
some refuse a tool's result without them. Groq and Mistral refuse the same fields by name.
"""

from __future__ import annotations

from typing import Any

from halt.core.events import Extra
from halt.core.extra_fields import Extras
from halt.core.request import OF_ANSWERS, Message, ToolTurn
from halt.providers.loose_json import valid_text

#: Fields of a call that every server takes.
CALL_FIELDS = frozenset({"id", "type", "function"})


def outgoing_message(message: Message, refused: frozenset[str] = frozenset()) -> dict[str, Any]:
    """A message for a server of OpenAI's kind, without the returned fields that it has refused.

    It may be the message itself, so it is not to be changed.
    """
    if isinstance(message, ToolTurn):
        back = message.opaque or {}
        calls = [
            {k: v for k, v in call.items() if k in CALL_FIELDS or k not in refused}
            for call in message["tool_calls"]
        ]
        kept = {k: v for k, v in back.items() if k not in refused}
        return {**message, **kept, "tool_calls": calls}
    if refused and message.role == "assistant":
        return {k: v for k, v in message.items() if k not in OF_ANSWERS or k not in refused}
    return message


def round_trip_names(message: Message) -> set[str]:
    """The fields of a message that can be left out where a server refuses them."""
    if isinstance(message, ToolTurn):
        calls = {name for call in message["tool_calls"] for name in call}
        return {*(message.opaque or {}), *(calls - CALL_FIELDS)}
    return {*OF_ANSWERS & message.keys()} if message.role == "assistant" else set()


class RoundTripFields:
    """The fields of an answer's message that its server may want back with its tools' results.

    Thoughts under the name under which they came, the text with the thoughts that were marked in
    it, and what else the server put into the message.
    """

    __slots__ = ("_extras", "_parts", "name")

    def __init__(self) -> None:
        self.name = ""  # of the field that thoughts came in
        self._parts: list[Any] = []
        self._extras = Extras()

    def take_parts(self, content: list[Any]) -> None:
        """Take the parts of a content that came as a list."""
        self._parts += [
            part for part in content if isinstance(part, dict) and part.get("type") != "text"
        ]

    def take_fields(self, delta: dict[str, Any]) -> None:
        """Take what came beside text, thoughts and calls."""
        self._extras.add(Extra(delta=delta))

    def fields(
        self, thoughts: list[str], texts: list[str], *, marked: bool
    ) -> dict[str, Any] | None:
        """All of them, None where there are none. `marked`: there are thoughts in the texts."""
        fields = self._extras.delta
        text = valid_text("".join(texts))
        if self.name:
            fields[self.name] = valid_text("".join(thoughts))
        if self._parts:
            said = [{"type": "text", "text": text}] if text.strip() else []
            fields["content"] = _parts([*self._parts, *said])
        elif marked:
            fields["content"] = text
        return fields or None


#: Parts that come in pieces. Each has its text, or parts of its own, in the field of its kind.
GROWING = frozenset({"text", "thinking"})


def _parts(pieces: list[Any]) -> list[Any]:
    """Parts; those of a growing kind that follow one another are pieces of one."""
    runs: list[list[Any]] = []
    for piece in pieces:
        kind = piece.get("type") if isinstance(piece, dict) else None
        if runs and kind in GROWING and kind == runs[-1][0].get("type"):
            runs[-1].append(piece)
        else:
            runs.append([piece])
    return [run[0] if len(run) == 1 else _grown(run) for run in runs]


def _grown(run: list[dict[str, Any]]) -> dict[str, Any]:
    """One part of its pieces."""
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
