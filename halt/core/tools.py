"""Tools that a model may call: typed Python functions with a time limit, ended by a Stop.

    def lookup(city: str, stop: threading.Event) -> str:
        "Say how warm it is in a city."

The function's signature becomes the schema that the model gets; the model's arguments are checked
against it before the function runs. A parameter of the type `threading.Event` is not in the schema:
it gets an Event that is set when the answer is stopped or the call exceeds its time limit. Each
call has its own thread. No thread waits for a call after its time limit; its late result is
dropped. Exceptions of a tool are logged; the model, and with it the user, gets the exception's type
or the message of a ToolError.
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

RESULT_MAX = 100_000  # characters of a result that the model gets
THREADS_MAX = 256  # running calls of one toolbox, including those over their time limit
CALLS_MAX = 16  # calls of one round; more are refused, so that one answer does not take all
TIMEOUT = 30.0  # seconds for one call

NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")

logger = logging.getLogger(__name__)


class ToolError(Exception):
    """Raised by a tool that has no result. The model gets the message."""


class Tool:
    """A function that a model may call."""

    def __init__(
        self, function: Callable[..., Any], *, name: str = "", timeout: float = TIMEOUT
    ) -> None:
        """`timeout` in seconds. Raises TypeError if the signature has no schema."""
        if not callable(function):
            raise TypeError(f"{function!r:.100} is no tool: use a Tool or a function")
        self.name: str = name or getattr(function, "__name__", "")
        self.timeout = timeout
        self._function = function
        if not NAME.fullmatch(self.name):
            raise TypeError(f"{self.name!r} is no name for a tool: use A-Z, a-z, 0-9, _ and -")
        if inspect.iscoroutinefunction(function):
            raise TypeError(f"{self.name}: a tool is a plain function, which may block")
        self._events: list[str] = []  # parameters that get the call's Event
        try:
            arguments = self._struct()
            parameters = _schema(arguments)
            # Not strict: many models write "5" for a number. Made here, since several threads may
            # make the first calls at once.
            self._decoder = msgspec.json.Decoder(arguments, strict=False)
        except (NameError, TypeError) as exc:
            raise TypeError(f"{self.name}: {exc}") from exc
        self.spec = ToolSpec.of_function(self.name, inspect.getdoc(function) or None, parameters)

    def _struct(self) -> type[msgspec.Struct]:
        """A type that decodes and checks the model's arguments."""
        hints = get_type_hints(self._function, include_extras=True)
        fields: list[Any] = []
        for parameter in inspect.signature(self._function).parameters.values():
            name, default = parameter.name, parameter.default
            if parameter.kind not in {parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY}:
                raise TypeError("*args, **kwargs and positional-only parameters have no schema")
            if name not in hints:
                raise TypeError(f"the parameter {name!r} has no type")
            if hints[name] is threading.Event:
                self._events.append(name)
            elif default is parameter.empty:
                fields.append((name, hints[name]))
            else:
                fields.append((name, hints[name], default))
        return msgspec.defstruct(
            f"{self.name}_arguments", fields, kw_only=True, forbid_unknown_fields=True
        )

    def __call__(self, arguments: str, stop: threading.Event) -> str:
        """Check the arguments and run. Raises ToolError and every exception of the function."""
        try:
            decoded = self._decoder.decode(arguments.strip() or "{}")
        except (msgspec.DecodeError, UnicodeEncodeError, RecursionError) as exc:
            raise ToolError(f"The arguments do not fit: {exc}") from exc
        values = {name: getattr(decoded, name) for name in decoded.__struct_fields__}
        result = self._function(**values, **dict.fromkeys(self._events, stop))
        return result if isinstance(result, str) else msgspec.json.encode(result).decode()

    def answer(self, arguments: str, stop: threading.Event) -> tuple[str, bool]:
        """Run. Returns the text for the model, and whether it is a result. Raises nothing."""
        try:
            return self(arguments, stop), True
        except ToolError as exc:
            return str(exc), False
        except BaseException as exc:  # a SystemExit would end the thread silently
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
        """Raises TypeError for a function without a schema, ValueError for a duplicate name."""
        self._tools: dict[str, Tool] = {}
        for entry in tools:
            tool = entry if isinstance(entry, Tool) else Tool(entry)
            if tool.name in self._tools:
                raise ValueError(f"two tools are named {tool.name!r}")
            self._tools[tool.name] = tool
        self._free = threading.BoundedSemaphore(THREADS_MAX)

    def __bool__(self) -> bool:
        return bool(self._tools)

    @property
    def specs(self) -> list[ToolSpec]:
        """The tools' descriptions for the request."""
        return [tool.spec for tool in self._tools.values()]

    def round(self, calls: list[ToolCall]) -> ToolRound:
        """A round of these calls, not started yet."""
        return ToolRound(self, calls)

    def begin(
        self, call: ToolCall, stop: threading.Event, done: Callable[[str, bool], None]
    ) -> float:
        """Start one call in its own thread. Returns the call's time limit in seconds.

        `done` gets the text for the model, and whether it is a result.
        """
        tool = self._tools.get(call.name)
        if tool is None:
            tool_names = ", ".join(self._tools)
            done(f"There is no tool named {call.name[:64]!r}. The tools are: {tool_names}.", False)
            return 0.0

        request_id = current()

        def work() -> None:
            with named(request_id):
                text, ok = tool.answer(call.arguments, stop)
            self._free.release()
            done(text, ok)

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
    """The calls of one reply, which run in parallel."""

    def __init__(self, toolbox: Toolbox, calls: list[ToolCall]) -> None:
        self._toolbox = toolbox
        self._calls = [_Call(call) for call in calls]
        self._changed = threading.Condition()  # protects the three below, and each call's result
        self._fresh: list[ToolResult] = []  # not yet yielded
        self._open = 0  # started calls without a result
        self._aborted = False

    def results(self) -> Iterator[ToolResult]:
        """Start the calls and yield results as they come, also for calls over their time limit.

        Ends early on `abort`; after an `abort` before the start no call is started.
        """
        for number, running in enumerate(self._calls):
            self._begin(running, refused=number >= CALLS_MAX)
        while True:
            with self._changed:
                while not self._fresh and self._open and not self._aborted:
                    soonest = min(call.deadline for call in self._calls if call.result is None)
                    if (seconds_left := soonest - now()) > 0:
                        self._changed.wait(min(seconds_left, TIMEOUT))
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
            return [call.result for call in self._calls if call.result is not None]

    def messages(self, text: str, opaque: Any) -> list[Message]:
        """See `halt.core.tool_loop.Round`."""
        calls = [running.call for running in self._calls]
        return [
            ToolTurn(data_urls.replace_for_model(text) or None, calls, opaque),
            *(Message("tool", r.result, tool_call_id=r.id) for r in self.finished_results),
        ]

    def abort(self) -> None:
        """Signal all calls to stop, without waiting. Idempotent."""
        with self._changed:
            self._aborted = True
            self._changed.notify_all()
        for running in self._calls:
            running.stop.set()

    def _begin(self, running: _Call, *, refused: bool) -> None:
        with self._changed:
            if self._aborted:
                return
            self._open += 1
            running.began = now()

        def done(text: str, ok: bool) -> None:
            with self._changed:
                self._end(running, text, ok=ok)

        if refused:
            done(f"At most {CALLS_MAX} tools can be called at once. Try again.", False)
            return
        limit = self._toolbox.begin(running.call, running.stop, done)
        with self._changed:
            running.deadline = running.began + limit

    def _end(self, running: _Call, text: str, *, ok: bool) -> None:
        """Set a call's result; only the first one counts. The caller holds the lock."""
        if running.result is not None:
            return
        text = text.encode("utf-8", "replace").decode()  # replaces unpaired surrogates
        if len(text) > RESULT_MAX:
            text = text[:RESULT_MAX] + "\n[cut off here]"
        duration_ms = round((now() - running.began) * 1000, 1)
        running.result = ToolResult(running.call.id, running.call.name, text, ok, duration_ms)
        self._fresh.append(running.result)
        self._open -= 1
        self._changed.notify_all()

    def _give_up(self) -> None:
        """End the calls over their time limit. The caller holds the lock."""
        at = now()
        for running in self._calls:
            if running.result is None and running.deadline <= at:
                running.stop.set()
                limit = round(running.deadline - running.began, 3)
                self._end(running, f"Timed out after {limit:g} s.", ok=False)
