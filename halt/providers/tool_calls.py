"""Whole tool calls from the fragments in which servers send them."""

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


#: Arguments that say nothing yet, or nothing at all: PHP has one kind of empty array.
EMPTY = frozenset({"", "{}", "[]", "null"})


class _Nesting:
    """How deep a JSON text is nested where it ends. It may be cut anywhere."""

    __slots__ = ("_in_string", "_is_escaped", "depth")

    def __init__(self) -> None:
        self.depth = 0
        self._in_string = self._is_escaped = False

    def feed(self, text: str) -> None:
        """More of the text."""
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
    """A tool call that is coming in."""

    def __init__(self, number: int, server_id: str, own: str, name: str) -> None:
        self.number = number
        self.server_id = server_id  # the ID as the server gave it, perhaps none
        self.id = own
        self.name = name
        self.arguments: list[str] = []
        self.extra: dict[str, Any] = {}
        self.placeholder = False  # arguments came that may stand for others
        self._nesting = _Nesting()
        self._size = 0  # characters of the arguments
        #: The arguments as `_canonical` has them; b"" where they are no whole value and no more can
        #: make them one; None where they are not whole yet.
        self._value: bytes | None = None

    def add(self, pieces: str) -> None:
        self.arguments.append(pieces)
        self._size += len(pieces)
        self._nesting.feed(pieces)
        if self._value is None:
            # Arguments are an object or a list, so they are looked at once, where all is closed.
            # With each piece it took 16 s of CPU for 200,000 blanks behind an object.
            if self._nesting.depth <= 0 and pieces.rstrip()[-1:] in ("}", "]"):
                self._value = _canonical(self.text)
        elif not pieces.isspace():
            self._value = b""  # there is something behind the value

    @property
    def text(self) -> str:
        if len(self.arguments) > 1:
            self.arguments = ["".join(self.arguments)]
        return self.arguments[0] if self.arguments else ""

    def begins(self, pieces: str) -> bool:
        """The pieces are its arguments so far, and perhaps more."""
        return len(pieces) >= self._size and pieces.startswith(self.text)

    def is_whole(self) -> bool:
        """Its arguments are a complete JSON value."""
        return bool(self._value)

    def is_open(self) -> bool:
        """Its arguments have begun and are not at their end."""
        return not self._value and self._nesting.depth > 0

    def repeated(self, pieces: str) -> bool:
        """The pieces are its whole arguments once more."""
        return bool(self._value) and _canonical(pieces) == self._value


def _canonical(text: str) -> bytes:
    """A JSON list or object without blanks and with its fields in order; b"" of anything else."""
    if text.rstrip()[-1:] in ("}", "]"):
        with contextlib.suppress(*UNREADABLE):
            return msgspec.json.encode(msgspec.json.decode(text), order="deterministic")
    return b""


class CallAssembler:
    """Tool calls from their fragments: several at once, arguments in pieces, the IDs only once.

    Servers differ. Some leave the index out; Ollama gives whole calls that all have index 0 and an
    ID each; some give no IDs, or a new one with every piece; some repeat the name, or all of the
    arguments so far; some begin with arguments that are empty. What begins a call has a name, and a
    piece with neither ID nor name belongs to a call that is not whole, whatever its index says.
    """

    def __init__(self) -> None:
        self._calls: list[_PartialCall] = []
        self._slots: dict[int, _PartialCall] = {}  # the server's index -> the call it means now

    def add_fragment(
        self,
        index: int | None,
        id_: str,
        name: str,
        pieces: str,
        out: PartBuilder,
        extra: dict[str, Any] | None = None,
    ) -> None:
        """Add a fragment. Raises UpstreamError where there are too many calls.

        `extra`: fields of it that Halt does not know; the whole call has those of all fragments.
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
            pieces = ""  # `finish` gives out what stays empty
        if pieces:
            call.add(pieces)
        if extra:
            merge(call.extra, extra)
        out.arrived += max(1, size)  # one that adds nothing counts, so that there is an end to them
        out.add_event(
            ToolCallDelta(call.number, call.id, call.name, pieces, extra=extra or msgspec.UNSET)
        )

    def finish(self, out: PartBuilder) -> None:
        """Give out the whole calls, in the order in which they began."""
        for call in self._calls:
            extra = call.extra or msgspec.UNSET
            if not call.arguments:
                if not call.name and not call.extra:
                    continue  # an ID alone
                out.add_event(ToolCallDelta(call.number, call.id, call.name, "{}"))
            out.add_event(ToolCall(call.id, call.name, call.text or "{}", extra=extra))
        self._calls.clear()
        self._slots.clear()

    def _find(self, index: int | None, id_: str, name: str, pieces: str) -> _PartialCall | None:
        """The call that the fragment belongs to; None: it begins one."""
        call = self._place(index, id_, name)
        if call is None:
            return None if name or not pieces.strip() else self._open_call()
        if name and call.name:
            return None if self._begins(call, id_, name, pieces) else call
        if pieces.strip() and call.is_whole():
            return self._open_call() or call
        return call

    def _place(self, index: int | None, id_: str, name: str) -> _PartialCall | None:
        """The call in the place of the fragment, as its ID or its index says."""
        call = None if index is None else self._slots.get(index)
        if id_ and not (call is not None and call.server_id == id_) and (index is None or not name):
            same = [each for each in self._calls if each.server_id == id_]
            if same:
                return same[-1]
        if index is None and self._calls:
            return self._calls[-1]
        return call

    def _open_call(self) -> _PartialCall | None:
        """The newest call that is not whole."""
        return next((each for each in reversed(self._calls) if not each.is_whole()), None)

    def _begins(self, call: _PartialCall, id_: str, name: str, pieces: str) -> bool:
        """A fragment with a name is another call than this one, though it is in its place."""
        if id_ and call.server_id:
            if id_ == call.server_id:
                return False
            return not (call.is_open() and name == call.name)  # else each piece has its own ID
        if name == call.name:
            return bool(pieces) and (call.placeholder or call.is_whole())
        return bool(call.arguments) or not call.server_id  # else it is more of the name

    def _take_name(self, call: _PartialCall, name: str, pieces: str) -> str:
        """Take the name of a fragment; what its pieces add to the call's arguments.

        A server that says the name again may say the arguments so far again, too.
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
        taken = {call.id for call in self._calls}
        own = server_id if server_id and server_id not in taken else f"call_{secrets.token_hex(8)}"
        call = _PartialCall(len(self._calls), server_id, own, name)
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
