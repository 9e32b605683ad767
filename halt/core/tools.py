"""Tools that a model may call: typed Python functions with a time limit, which Stop ends too.

    def lookup(city: str, stop: threading.Event) -> str:
        "Say how warm it is in a city."

The function's signature becomes the schema that the model is told; the model's arguments are
checked against it before the function runs. A parameter of the type `threading.Event` is not told:
it is given an Event that is set when the answer is stopped or the call is over its time. Each call
has a thread of its own, and nothing waits for one that was given up: its result is dropped when it
comes. What a tool raises is logged; the model, and with it the user, is told the kind of error, or
the words of a ToolError.
"""

from __future__ import annotations

import inspect
import logging
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, get_type_hints

import msgspec

from halt.clock import now
from halt.core.events import ToolCall, ToolResult
from halt.core.request import Message, ToolSpec, ToolTurn
from halt.core.request_ids import current, named
from halt.rendering import data_urls

RESULT_MAX = 100_000  # characters of a result that the model is told
THREADS_MAX = 256  # calls of one toolbox under way, those that were given up included
CALLS_MAX = 16  # calls of one round; further ones are refused, so that one answer takes not all
TIMEOUT = 30.0  # seconds for one call

NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")

logger = logging.getLogger(__name__)


class ToolError(Exception):
    """Raised by a tool to tell the model, in these words, why there is no result."""


class Tool:
    """A function that a model may call."""

    def __init__(
        self, function: Callable[..., Any], *, name: str = "", timeout: float = TIMEOUT
    ) -> None:
        """`timeout` in seconds. Raises TypeError where the signature can't be told to a model."""
        self.name: str = name or getattr(function, "__name__", "")
        self.timeout = timeout
        self._function = function
        if not NAME.fullmatch(self.name):
            raise TypeError(f"{self.name!r} is no name for a tool: use A-Z, a-z, 0-9, _ and -")
        if inspect.iscoroutinefunction(function):
            raise TypeError(f"{self.name}: a tool is a plain function, which may block")
        self._events: list[str] = []  # parameters that are given the call's Event
        try:
            arguments = self._struct()
            parameters = _schema(arguments)
            # Not strict: many a model writes "5" where a number is wanted. Made here, since the
            # first calls may come from several threads at once.
            self._decoder = msgspec.json.Decoder(arguments, strict=False)
        except (NameError, TypeError) as exc:
            raise TypeError(f"{self.name}: {exc}") from exc
        self.spec = ToolSpec.of_function(self.name, inspect.getdoc(function) or None, parameters)

    def _struct(self) -> type[msgspec.Struct]:
        """The arguments that the model gives, as a type that decodes and checks them."""
        hints = get_type_hints(self._function, include_extras=True)
        fields: list[Any] = []
        for each in inspect.signature(self._function).parameters.values():
            if each.kind in {each.VAR_POSITIONAL, each.VAR_KEYWORD, each.POSITIONAL_ONLY}:
                raise TypeError("*args, **kwargs and positional-only parameters have no schema")
            if each.name not in hints:
                raise TypeError(f"the parameter {each.name!r} has no type")
            kind = hints[each.name]
            if kind is threading.Event:
                self._events.append(each.name)
            elif each.default is each.empty:
                fields.append((each.name, kind))
            else:
                fields.append((each.name, kind, each.default))
        return msgspec.defstruct(
            f"{self.name}_arguments", fields, kw_only=True, forbid_unknown_fields=True
        )

    def __call__(self, arguments: str, stop: threading.Event) -> str:
        """Check the arguments and run. Raises ToolError, and whatever the function raises."""
        try:
            given = self._decoder.decode(arguments.strip() or "{}")
        except (msgspec.DecodeError, UnicodeEncodeError, RecursionError) as exc:
            raise ToolError(f"The arguments do not fit: {exc}") from exc
        values = {name: getattr(given, name) for name in given.__struct_fields__}
        result = self._function(**values, **dict.fromkeys(self._events, stop))
        return result if isinstance(result, str) else msgspec.json.encode(result).decode()

    def answer(self, arguments: str, stop: threading.Event) -> tuple[str, bool]:
        """Run: what the model is told, and whether that is a result. Raises nothing."""
        try:
            return self(arguments, stop), True
        except ToolError as exc:
            return str(exc), False
        except BaseException as exc:  # a SystemExit would end the thread without a word
            logger.exception("tool %s", self.name)
            return f"The tool failed ({type(exc).__name__}).", False


def _schema(struct: type[msgspec.Struct]) -> dict[str, Any]:
    (schema,), components = msgspec.json.schema_components([struct], ref_template="#/$defs/{name}")
    parameters: dict[str, Any] = dict(components.pop(schema["$ref"].rpartition("/")[2]))
    parameters.pop("title", None)
    if components:
        parameters["$defs"] = components
    return parameters


class Toolbox:
    """The tools of one application, by name."""

    def __init__(self, tools: Iterable[Tool | Callable[..., Any]] = ()) -> None:
        """Raises TypeError for a function that can be no tool, ValueError for a name used twice."""
        self._tools: dict[str, Tool] = {}
        for each in tools:
            tool = each if isinstance(each, Tool) else Tool(each)
            if tool.name in self._tools:
                raise ValueError(f"two tools are named {tool.name!r}")
            self._tools[tool.name] = tool
        self._free = threading.BoundedSemaphore(THREADS_MAX)

    def __bool__(self) -> bool:
        return bool(self._tools)

    @property
    def specs(self) -> list[ToolSpec]:
        """What a model is told of them."""
        return [tool.spec for tool in self._tools.values()]

    def round(self, calls: list[ToolCall]) -> ToolRound:
        """The calls of one answer, not begun yet."""
        return ToolRound(self, calls)

    def begin(
        self, call: ToolCall, stop: threading.Event, done: Callable[[str, bool], None]
    ) -> float:
        """Start one call in a thread of its own; `done` gets what the model is told of it.

        Returns the call's time limit in seconds.
        """
        tool = self._tools.get(call.name)
        if tool is None:
            known = ", ".join(self._tools)
            done(f"There is no tool named {call.name[:64]!r}. The tools are: {known}.", False)
            return 0.0

        request_id = current()

        def work() -> None:
            with named(request_id):
                told, ok = tool.answer(call.arguments, stop)
            self._free.release()
            done(told, ok)

        if not self._free.acquire(blocking=False):
            done("Too many tools are running. Try again later.", False)
            return 0.0
        try:
            threading.Thread(target=work, name=f"halt-tool-{tool.name[:16]}", daemon=True).start()
        except RuntimeError:  # the system has no more threads
            self._free.release()
            done("The tool could not be started. Try again later.", False)
        return tool.timeout


@dataclass(eq=False)
class _Call:
    """One call of a round."""

    call: ToolCall
    stop: threading.Event = field(default_factory=threading.Event)
    began: float = field(default_factory=now)
    deadline: float = float("inf")
    result: ToolResult | None = None


class ToolRound:
    """The calls of one answer, under way together."""

    def __init__(self, toolbox: Toolbox, calls: list[ToolCall]) -> None:
        self._toolbox = toolbox
        self._calls = [_Call(call) for call in calls]
        self._changed = threading.Condition()  # protects the three below, and each call's result
        self._fresh: list[ToolResult] = []  # not yet given out
        self._open = 0  # calls begun that have no result
        self._aborted = False

    def results(self) -> Iterator[ToolResult]:
        """Start the calls; each result as it comes, also of one that is over its time.

        Ends early on abort, which may come before the start: then nothing is started.
        """
        for number, each in enumerate(self._calls):
            self._begin(each, refused=number >= CALLS_MAX)
        while True:
            with self._changed:
                while not self._fresh and self._open and not self._aborted:
                    soonest = min(each.deadline for each in self._calls if each.result is None)
                    if (left := soonest - now()) > 0:
                        self._changed.wait(min(left, TIMEOUT))
                    else:
                        self._give_up()
                ready, self._fresh = self._fresh, []
                if self._aborted or not ready:
                    return
            yield from ready

    @property
    def finished_results(self) -> list[ToolResult]:
        """All results so far, in the order of the calls."""
        with self._changed:
            return [each.result for each in self._calls if each.result is not None]

    def messages(self, said: str, opaque: Any) -> list[Message]:
        """See `halt.core.tool_loop.Round`."""
        calls = [each.call for each in self._calls]
        return [
            ToolTurn(data_urls.replace_for_model(said) or None, calls, opaque),
            *(Message("tool", each.result, tool_call_id=each.id) for each in self.finished_results),
        ]

    def abort(self) -> None:
        """Tell all of them to stop, and wait for none. Harmless when repeated."""
        with self._changed:
            self._aborted = True
            self._changed.notify_all()
        for each in self._calls:
            each.stop.set()

    def _begin(self, each: _Call, *, refused: bool) -> None:
        with self._changed:
            if self._aborted:
                return
            self._open += 1
            each.began = now()

        def done(told: str, ok: bool) -> None:
            with self._changed:
                self._end(each, told, ok=ok)

        if refused:
            done(f"At most {CALLS_MAX} tools can be called at once. Try again.", False)
            return
        limit = self._toolbox.begin(each.call, each.stop, done)
        with self._changed:
            each.deadline = each.began + limit

    def _end(self, each: _Call, told: str, *, ok: bool) -> None:
        """The call has its result; the first one counts. The lock is held."""
        if each.result is not None:
            return
        told = told.encode("utf-8", "replace").decode()  # half a surrogate is no text
        if len(told) > RESULT_MAX:
            told = told[:RESULT_MAX] + "\n[cut off here]"
        took = round((now() - each.began) * 1000, 1)
        each.result = ToolResult(each.call.id, each.call.name, told, ok, took)
        self._fresh.append(each.result)
        self._open -= 1
        self._changed.notify_all()

    def _give_up(self) -> None:
        """End the calls that are over their time. The lock is held."""
        at = now()
        for each in self._calls:
            if each.result is None and each.deadline <= at:
                each.stop.set()
                limit = round(each.deadline - each.began, 3)
                self._end(each, f"Given up: it took longer than {limit:g} s.", ok=False)
