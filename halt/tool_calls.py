"""Whole tool calls from the fragments in which servers send them."""

from __future__ import annotations

import contextlib
import secrets
from typing import Any

import msgspec
from msgspec import UNSET

from halt.errors import UpstreamError
from halt.events import ToolCall, ToolCallDelta
from halt.gathering import Gathering

CALLS_MAX = 64  # tool calls of one answer


class _Assembly:
    """A tool call that is coming in."""

    __slots__ = ("arguments", "extra", "given", "id", "name", "number")

    def __init__(self, number: int, given: str, own: str, name: str) -> None:
        self.number = number
        self.given = given  # the ID as the server gave it, perhaps none
        self.id = own
        self.name = name
        self.arguments: list[str] = []
        self.extra: dict[str, Any] = {}

    def is_whole(self) -> bool:
        """Its arguments are a complete JSON value."""
        with contextlib.suppress(msgspec.DecodeError):
            msgspec.json.decode("".join(self.arguments))
            return True
        return False


class CallAssembler:
    """Tool calls from their fragments: several at once, arguments in pieces, the IDs only once.

    Servers differ. Some leave the index out; Ollama gives whole calls that all have index 0 and an
    ID each; some give no IDs, or a new one with every piece. What begins a call has a name.
    """

    def __init__(self) -> None:
        self._calls: list[_Assembly] = []
        self._slots: dict[int, _Assembly] = {}  # the server's index -> the call it means now

    def fragment(
        self,
        index: int | None,
        id_: str,
        name: str,
        pieces: str,
        out: Gathering,
        extra: dict[str, Any] | None = None,
    ) -> None:
        """Add a fragment. Raises UpstreamError where there are too many calls.

        `extra`: fields of it that Halt does not know; the whole call has those of all fragments.
        """
        call = self._find(index, id_)
        if call is None or self._begins(call, id_, name, pieces):
            call = self._begin(id_, name)
        elif name and not call.name:
            call.name = name
        if index is not None:
            self._slots[index] = call
        if pieces:
            call.arguments.append(pieces)
        if extra:
            merge(call.extra, extra)
        out.add(ToolCallDelta(call.number, call.id, call.name, pieces, extra=extra or UNSET))

    def finish(self, out: Gathering) -> None:
        """Give out the whole calls, in the order in which they began."""
        for call in self._calls:
            arguments = "".join(call.arguments)
            out.add(ToolCall(call.id, call.name, arguments, extra=call.extra or UNSET))
        self._calls.clear()
        self._slots.clear()

    def _find(self, index: int | None, id_: str) -> _Assembly | None:
        if index is not None:
            return self._slots.get(index)
        if id_:
            same = [call for call in self._calls if call.given == id_]
            if same:
                return same[-1]
        return self._calls[-1] if self._calls else None

    def _begins(self, call: _Assembly, id_: str, name: str, pieces: str) -> bool:
        """The fragment is not a piece of this call, though the server put it in its place."""
        if not name or not call.name:
            return False
        if id_ and call.given:
            return id_ != call.given
        return name != call.name or (bool(pieces) and call.is_whole())

    def _begin(self, given: str, name: str) -> _Assembly:
        if len(self._calls) >= CALLS_MAX:
            raise UpstreamError("upstream_invalid", "too many tool calls")
        taken = {call.id for call in self._calls}
        own = given if given and given not in taken else f"call_{secrets.token_hex(8)}"
        call = _Assembly(len(self._calls), given, own, name)
        self._calls.append(call)
        return call


def merge(into: dict[str, Any], more: dict[str, Any]) -> None:
    """Add fields to others: objects are merged, the newer of two other values counts."""
    for name, value in more.items():
        known = into.get(name)
        if isinstance(known, dict) and isinstance(value, dict):
            into[name] = known = dict(known)
            merge(known, value)
        elif value is not None or name not in into:
            into[name] = value
