"""Assembles tool calls from the fragments in which servers send them."""

from __future__ import annotations

import contextlib
import re
import secrets
from typing import Any

import msgspec

from halt.core.decoding import UNREADABLE
from halt.core.events import ToolCall, ToolCallDelta
from halt.errors import UpstreamError
from halt.providers.part_builder import PartBuilder

CALLS_MAX = 64  # tool calls of one answer


#: Empty arguments; the real ones may follow. PHP encodes an empty object as [].
EMPTY = frozenset({"", "{}", "[]", "null"})


class _Nesting:
    """Counts the open brackets of a JSON text that arrives in pieces, which may be cut anywhere."""

    __slots__ = ("_in_string", "_is_escaped", "depth")

    def __init__(self) -> None:
        self.depth = 0
        self._in_string = self._is_escaped = False

    def feed(self, text: str) -> None:
        """Add a piece of the text."""
        at = 0
        if self._is_escaped:
            self._is_escaped = False
            at = 1
        while at < len(text):
            if self._in_string:
                at = _IN_STRING.match(text, at).end()  # type: ignore[union-attr]  # it may be empty
                if at == len(text):
                    return
                self._is_escaped = text[at] == "\\"  # the text ends with it
                self._in_string = self._is_escaped
                at += 1
            else:
                quote = text.find('"', at)
                end = len(text) if quote < 0 else quote
                for opening, closing in ("{}", "[]"):
                    self.depth += text.count(opening, at, end) - text.count(closing, at, end)
                self._in_string = quote >= 0
                at = end + 1


_IN_STRING = re.compile(r'(?:[^"\\]++|\\.)*+', re.DOTALL)


class _PartialCall:
    """A tool call whose fragments are arriving."""

    def __init__(self, number: int, server_id: str, call_id: str, name: str) -> None:
        self.number = number
        self.server_id = server_id  # the ID from the server, empty if it sent none
        self.id = call_id
        self.name = name
        self.arguments: list[str] = []
        self.extra: dict[str, Any] = {}
        self.placeholder = False  # empty arguments arrived; the real ones may follow
        self._nesting = _Nesting()
        self._size = 0  # characters of the arguments
        #: The arguments in the form of `_canonical`; None while they are incomplete; b"" if they
        #: are not a JSON value and cannot become one.
        self._value: bytes | None = None

    def add(self, pieces: str) -> None:
        self.arguments.append(pieces)
        self._size += len(pieces)
        self._nesting.feed(pieces)
        if self._value is None:
            # Arguments are an object or a list: parse them once, when all brackets are closed. To
            # parse them with each piece took 16 s of CPU for 200,000 spaces after an object.
            if self._nesting.depth <= 0 and pieces.rstrip()[-1:] in ("}", "]"):
                self._value = _canonical(self.text)
        elif not pieces.isspace():
            self._value = b""  # there is text after the value

    @property
    def text(self) -> str:
        if len(self.arguments) > 1:
            self.arguments = ["".join(self.arguments)]
        return self.arguments[0] if self.arguments else ""

    def begins(self, pieces: str) -> bool:
        """Whether `pieces` begins with all arguments so far."""
        return len(pieces) >= self._size and pieces.startswith(self.text)

    def is_whole(self) -> bool:
        """Whether its arguments are a complete JSON value."""
        return bool(self._value)

    def is_open(self) -> bool:
        """Whether its arguments have started and are incomplete."""
        return not self._value and self._nesting.depth > 0

    def repeated(self, pieces: str) -> bool:
        """Whether `pieces` is a repeat of its complete arguments."""
        return bool(self._value) and _canonical(pieces) == self._value


def _canonical(text: str) -> bytes:
    """Return a JSON list or object without white space, its fields sorted; b"" for other text."""
    if text.rstrip()[-1:] in ("}", "]"):
        with contextlib.suppress(*UNREADABLE):
            return msgspec.json.encode(msgspec.json.decode(text), order="deterministic")
    return b""


class CallAssembler:
    """Assembles tool calls from fragments. Several calls may arrive at once, arguments in pieces.

    Servers differ. Some omit the index; Ollama sends complete calls that all have index 0, each
    with an ID; some send no IDs, or a new one with every piece; some repeat the name, or all
    arguments so far; some begin with empty arguments. The first fragment of a call has a name. A
    fragment with neither ID nor name belongs to an incomplete call, whatever its index says.
    """

    def __init__(self) -> None:
        self._calls: list[_PartialCall] = []
        self._slots: dict[int, _PartialCall] = {}  # the server's index -> its current call

    def add_fragment(
        self,
        index: int | None,
        id_: str,
        name: str,
        pieces: str,
        out: PartBuilder,
        extra: dict[str, Any] | None = None,
    ) -> None:
        """Add a fragment. Raises UpstreamError if there are too many calls.

        `extra`: its fields that Halt does not know; the call gets those of all its fragments.
        """
        call = self._find(index, id_, name, pieces)
        if call is None:
            if not (id_ or name or pieces.strip() or extra):
                return
            call = self._begin(id_, name)
        else:
            if name:
                pieces = self._take_name(call, name, pieces)
            elif call.is_whole() and call.repeated(pieces):
                pieces = ""
            call.server_id = call.server_id or id_
        if index is not None:
            self._slots[index] = call
        size = len(pieces)
        if not call.arguments and pieces.strip() in EMPTY:
            call.placeholder = call.placeholder or bool(pieces.strip())
            pieces = ""  # `finish` emits the arguments that stay empty
        if pieces:
            call.add(pieces)
        if extra:
            merge(call.extra, extra)
        out.arrived += max(1, size)  # an empty fragment counts, so that the limits end a flood
        out.add_event(
            ToolCallDelta(call.number, call.id, call.name, pieces, extra=extra or msgspec.UNSET)
        )

    def finish(self, out: PartBuilder) -> None:
        """Emit the complete calls, in the order in which they started."""
        for call in self._calls:
            extra = call.extra or msgspec.UNSET
            if not call.arguments:
                if not call.name and not call.extra:
                    continue  # it has nothing but an ID
                out.add_event(ToolCallDelta(call.number, call.id, call.name, "{}"))
            out.add_event(ToolCall(call.id, call.name, call.text or "{}", extra=extra))
        self._calls.clear()
        self._slots.clear()

    def _find(self, index: int | None, id_: str, name: str, pieces: str) -> _PartialCall | None:
        """Return the call of the fragment, None if it starts a new one."""
        call = self._place(index, id_, name)
        if call is None:
            return None if name or not pieces.strip() else self._open_call()
        if name and call.name:
            return None if self._begins(call, id_, name, pieces) else call
        if pieces.strip() and call.is_whole():
            return self._open_call() or call
        return call

    def _place(self, index: int | None, id_: str, name: str) -> _PartialCall | None:
        """Return the call with the fragment's ID or index, None if there is none."""
        call = None if index is None else self._slots.get(index)
        if id_ and not (call is not None and call.server_id == id_) and (index is None or not name):
            matching_calls = [
                partial_call for partial_call in self._calls if partial_call.server_id == id_
            ]
            if matching_calls:
                return matching_calls[-1]
        if index is None and self._calls:
            return self._calls[-1]
        return call

    def _open_call(self) -> _PartialCall | None:
        """Return the newest incomplete call, None if there is none."""
        return next((call for call in reversed(self._calls) if not call.is_whole()), None)

    def _begins(self, call: _PartialCall, id_: str, name: str, pieces: str) -> bool:
        """Whether a fragment with a name starts another call in the place of `call`."""
        if id_ and call.server_id:
            if id_ == call.server_id:
                return False
            return not (call.is_open() and name == call.name)  # same name: an ID for each piece
        if name == call.name:
            return bool(pieces) and (call.placeholder or call.is_whole())
        return bool(call.arguments) or not call.server_id  # else the name continues

    def _take_name(self, call: _PartialCall, name: str, pieces: str) -> str:
        """Add the name of a fragment; return the new part of its arguments.

        A server that repeats the name may also repeat the arguments so far.
        """
        if not call.arguments and call.name:
            call.name = name if name.startswith(call.name) else call.name + name
        call.name = call.name or name
        if call.arguments and call.begins(pieces):
            return pieces[len(call.text) :]
        return "" if call.arguments and call.repeated(pieces) else pieces

    def _begin(self, server_id: str, name: str) -> _PartialCall:
        if len(self._calls) >= CALLS_MAX:
            raise UpstreamError("upstream_invalid", "too many tool calls")
        used_ids = {call.id for call in self._calls}
        is_usable = bool(server_id) and server_id not in used_ids
        call_id = server_id if is_usable else f"call_{secrets.token_hex(8)}"
        call = _PartialCall(len(self._calls), server_id, call_id, name)
        self._calls.append(call)
        return call


def merge(into: dict[str, Any], more: dict[str, Any]) -> None:
    """Add fields. Objects are merged; a newer value replaces another, unless it is None."""
    for name, value in more.items():
        known_value = into.get(name)
        if isinstance(known_value, dict) and isinstance(value, dict):
            into[name] = known_value = dict(known_value)
            merge(known_value, value)
        elif value is not None or name not in into:
            into[name] = value
