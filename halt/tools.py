"""Tools that a model may call: typed Python functions with a time limit, which Stop ends too.

    def lookup(city: str, stop: threading.Event) -> str:
        "Say how warm it is in a city."

The function's signature becomes the schema that the model is told; the model's arguments are
checked against it before the function runs. A parameter named `stop` is not told: it is given the
run's Event, which is set when the answer is stopped. Each call has a thread of its own. Nothing
waits for a tool that was stopped or is over its time: its result is dropped when it comes.
"""

from __future__ import annotations

import inspect
import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, get_type_hints

import msgspec

from halt.chat import ToolFunction, ToolSpec
from halt.events import ToolCall, ToolResult
from halt.metrics import now

RESULT_MAX = 100_000  # characters of a result that the model is told
THREADS_MAX = 64  # calls under way in the process, those that nobody waits for included
TIMEOUT = 30.0  # seconds for one call

logger = logging.getLogger(__name__)


class ToolError(Exception):
    """Raised by a tool to tell the model, in these words, why there is no result."""


class Tool:
    """A function that a model may call."""

    def __init__(
        self, function: Callable[..., Any], *, name: str = "", timeout: float = TIMEOUT
    ) -> None:
        """`timeout` in seconds. Raises TypeError where the signature can't be told to a model."""
        self.name = name or function.__name__
        self.timeout = timeout
        self._function = function
        hints = get_type_hints(function, include_extras=True)
        fields: list[Any] = []
        self._takes_stop = False
        for each in inspect.signature(function).parameters.values():
            if each.kind in {each.VAR_POSITIONAL, each.VAR_KEYWORD, each.POSITIONAL_ONLY}:
                raise TypeError(f"{self.name}: *args, **kwargs and positional-only have no schema")
            if each.name == "stop":
                self._takes_stop = True
                continue
            kind = hints.get(each.name)
            if kind is None:
                raise TypeError(f"{self.name}: the parameter {each.name!r} has no type")
            has_default = each.default is not each.empty
            fields.append((each.name, kind, each.default) if has_default else (each.name, kind))
        self._arguments = msgspec.defstruct(
            f"{self.name}_arguments", fields, kw_only=True, forbid_unknown_fields=True
        )
        (schema,), components = msgspec.json.schema_components(
            [self._arguments], ref_template="#/$defs/{name}"
        )
        parameters = dict(components.pop(schema["$ref"].rpartition("/")[2]))
        if components:
            parameters["$defs"] = components
        parameters.pop("title", None)
        self.spec = ToolSpec(ToolFunction(self.name, inspect.getdoc(function) or None, parameters))

    def __call__(self, arguments: str, stop: threading.Event) -> str:
        """Check the arguments and run. Raises ToolError, and whatever the function raises."""
        try:
            given = msgspec.json.decode(arguments.strip() or "{}", type=self._arguments)
        except (msgspec.DecodeError, UnicodeEncodeError) as exc:
            raise ToolError(f"The arguments do not fit: {exc}") from exc
        values = {name: getattr(given, name) for name in given.__struct_fields__}
        if self._takes_stop:
            values["stop"] = stop
        result = self._function(**values)
        return result if isinstance(result, str) else msgspec.json.encode(result).decode()


class Toolbox:
    """The tools of one application, by name."""

    def __init__(self, tools: Iterable[Tool | Callable[..., Any]] = ()) -> None:
        made = [tool if isinstance(tool, Tool) else Tool(tool) for tool in tools]
        self._tools = {tool.name: tool for tool in made}
        if len(self._tools) != len(made):
            raise ValueError("two tools have one name")
        self._free = threading.BoundedSemaphore(THREADS_MAX)

    def __bool__(self) -> bool:
        return bool(self._tools)

    @property
    def specs(self) -> list[ToolSpec]:
        """What a model is told of them."""
        return [tool.spec for tool in self._tools.values()]

    def round(self, calls: list[ToolCall], stop: threading.Event) -> ToolRound:
        """Start these calls at once."""
        return ToolRound(self, calls, stop)

    def begin(
        self, call: ToolCall, stop: threading.Event, done: Callable[[ToolResult], None]
    ) -> float:
        """Start one call in a thread; `done` gets its result. Returns its time limit in seconds."""
        began = now()
        tool = self._tools.get(call.name)

        def tell(result: str, *, ok: bool) -> None:
            if len(result) > RESULT_MAX:
                result = result[:RESULT_MAX] + "\n[cut off here]"
            took = round((now() - began) * 1000, 1)
            done(ToolResult(call.id, call.name, result, ok, took))

        if tool is None:
            tell(f"There is no tool named {call.name!r}.", ok=False)
            return 0.0

        def work(tool: Tool = tool) -> None:
            try:
                try:
                    result, ok = tool(call.arguments, stop), True
                except ToolError as exc:
                    result, ok = str(exc), False
                except Exception as exc:
                    logger.exception("tool %s", call.name)
                    result, ok = f"The tool failed: {type(exc).__name__}: {exc}", False
                tell(result, ok=ok)
            finally:
                self._free.release()

        if not self._free.acquire(blocking=False):
            tell("Too many tools are running. Try again later.", ok=False)
            return 0.0
        try:
            threading.Thread(target=work, name=f"halt-tool-{call.name[:16]}", daemon=True).start()
        except RuntimeError:  # the system has no more threads
            self._free.release()
            tell("The tool could not be started.", ok=False)
        return tool.timeout


class ToolRound:
    """The calls of one answer, under way together."""

    def __init__(self, toolbox: Toolbox, calls: list[ToolCall], stop: threading.Event) -> None:
        self._changed = threading.Condition()  # protects the three below
        self._results: list[ToolResult] = []
        self._waiting: dict[int, tuple[ToolCall, float]] = {}
        self._aborted = False
        self._began = now()
        for number, call in enumerate(calls):
            with self._changed:
                self._waiting[number] = (call, float("inf"))
            limit = toolbox.begin(call, stop, partial(self._done, number))
            with self._changed:
                if number in self._waiting:
                    self._waiting[number] = (call, self._began + limit)

    def _done(self, number: int, result: ToolResult) -> None:
        with self._changed:
            if self._waiting.pop(number, None) is not None:  # else it is over its time
                self._results.append(result)
                self._changed.notify_all()

    def abort(self) -> None:
        """Wait for none of them any longer."""
        with self._changed:
            self._aborted = True
            self._changed.notify_all()

    def results(self) -> Iterator[ToolResult]:
        """Each result as it comes, those of calls over their time included. Ends early on abort."""
        while True:
            with self._changed:
                while not self._results and self._waiting and not self._aborted:
                    soonest = min(deadline for _, deadline in self._waiting.values())
                    if soonest <= now():
                        self._give_up()
                    else:
                        self._changed.wait(min(soonest - now(), TIMEOUT))
                ready, self._results = self._results, []
                if self._aborted or not ready:
                    return
            yield from ready

    def _give_up(self) -> None:
        at = now()
        for number, (call, deadline) in list(self._waiting.items()):
            if deadline <= at:
                del self._waiting[number]
                took = round((at - self._began) * 1000, 1)
                text = f"The tool took longer than {deadline - self._began:g} s and was given up."
                self._results.append(ToolResult(call.id, call.name, text, False, took))
