"""Tools: the schema of a function for the model, and the result of a call in every case."""

from __future__ import annotations

import dataclasses
import math
import re
import sys
import threading
import tracemalloc
from collections.abc import Callable
from typing import Annotated, Any, Literal

import msgspec
import pytest

from halt.chat.builtin_tools import BUILTIN_TOOLS, calculator, current_time
from halt.config.environment import load
from halt.config.settings import SHIPPED_TOOLS, ConfigError
from halt.core import tools as module
from halt.core.events import ToolCall, ToolResult, encode
from halt.core.tools import Tool, Toolbox, ToolError, ToolRound
from tests.support.races import together
from tests.support.waiting import WAIT_TIMEOUT, BackgroundCall

REPEATS = 250


def schema(function: Callable[..., Any]) -> dict[str, Any]:
    """The JSON schema of a function's parameters, as a model gets it."""
    parameters: dict[str, Any] = Tool(function).spec["function"]["parameters"]
    return parameters


def answer_of(function: Callable[..., Any], arguments: str = "") -> tuple[str, bool]:
    """The text that a model gets for a call of the function, and whether it is a result."""
    return Tool(function).answer(arguments, threading.Event())


def round_results(*calls: ToolCall, tools: Toolbox) -> list[ToolResult]:
    """Run the calls to their end. Returns the results in the order of their ends."""
    return list(tools.round(list(calls)).results())


# --- the schema of a function ---------------------------------------------------------------------


@dataclasses.dataclass
class Place:
    """Where something is."""

    name: str
    height: float = 0.0


def test_tool_schema_has_types_defaults_and_descriptions() -> None:
    """Types, choices, lists, optional and described parameters, and defaults are in the schema."""

    def tool(
        text: str,
        count: int,
        kind: Literal["a", "b"],
        many: list[int],
        share: Annotated[float, msgspec.Meta(description="from 0 to 1", ge=0, le=1)] = 0.5,
        flag: bool = False,
        perhaps: int | None = None,
    ) -> str:
        """Do it."""
        return f"{text, count, kind, many, share, flag, perhaps}"

    assert schema(tool) == {
        "type": "object",
        "properties": {
            "text": {"type": "string"},
            "count": {"type": "integer"},
            "kind": {"enum": ["a", "b"]},
            "many": {"type": "array", "items": {"type": "integer"}},
            "share": {
                "type": "number",
                "minimum": 0,
                "maximum": 1,
                "description": "from 0 to 1",
                "default": 0.5,
            },
            "flag": {"type": "boolean", "default": False},
            "perhaps": {"anyOf": [{"type": "integer"}, {"type": "null"}], "default": None},
        },
        "required": ["text", "count", "kind", "many"],
        "additionalProperties": False,
    }
    assert Tool(tool).spec["function"]["name"] == "tool"
    assert Tool(tool).spec["function"]["description"] == "Do it."
    arguments = '{"text":"t","count":1,"kind":"b","many":[2],"share":1}'
    assert answer_of(tool, arguments) == ("('t', 1, 'b', [2], 1.0, False, None)", True)


def test_tool_schema_of_a_dataclass_is_an_object() -> None:
    """A structured parameter is described by reference, and the function gets the dataclass."""

    def tool(place: Place) -> str:
        return repr(place)

    parameters = schema(tool)
    assert parameters["properties"]["place"] == {"$ref": "#/$defs/Place"}
    assert parameters["$defs"]["Place"]["required"] == ["name"]
    assert answer_of(tool, '{"place": {"name": "K2"}}') == ("Place(name='K2', height=0.0)", True)


def test_tool_without_parameters_accepts_empty_arguments() -> None:
    """A tool without parameters accepts "", "{}" or blanks as its arguments."""

    def tool() -> str:
        return "done"

    assert schema(tool)["properties"] == {}
    assert {answer_of(tool, arguments) for arguments in ("", " ", "{}")} == {("done", True)}


def test_tool_schema_leaves_out_the_event_parameter() -> None:
    """A parameter of type Event gets the call's own; one that is named `stop` is a parameter."""

    def tool(stop: str, abandoned: threading.Event) -> str:
        abandoned.set()
        return stop

    event = threading.Event()
    assert schema(tool)["required"] == ["stop"]
    assert Tool(tool).answer('{"stop": "Central"}', event) == ("Central", True)
    assert event.is_set()


def untyped(x) -> str:  # type: ignore[no-untyped-def]
    return str(x)


def starred(*x: int) -> str:
    return str(x)


def positional(x: int, /) -> str:
    return str(x)


def unknown_type(x: Nowhere) -> str:  # type: ignore[name-defined]  # noqa: F821
    return str(x)


def untellable(x: threading.Thread) -> str:
    return str(x)


async def asynchronous() -> str:
    return ""


@pytest.mark.parametrize(
    "function",
    [untyped, starred, positional, unknown_type, untellable, asynchronous, lambda: "", 5],
)
def test_toolbox_refuses_a_function_that_can_be_no_tool(function: Any) -> None:
    """A function that has no schema is an error at the start, not in a conversation."""
    with pytest.raises(
        TypeError, match=getattr(function, "__name__", "5 is no tool: use a Tool or a function")
    ):
        Toolbox([function])


def test_toolbox_refuses_two_tools_of_one_name() -> None:
    """Two tools of one name are refused, since a model could not distinguish them."""
    with pytest.raises(ValueError, match="'calculator'"):
        Toolbox([calculator, Tool(current_time, name="calculator")])


# --- the result of a call --------------------------------------------------------------------------


def add(a: int, b: int = 1) -> int:
    """Add."""
    return a + b


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ('{"a": "one"}', "Expected `int`"),
        ('{"b": 1}', "missing required field `a`"),
        ('{"a": 1, "c": 2}', "unknown field `c`"),
        ('{"a": 1', "truncated"),
        ("a=1", "malformed"),
        ("[1]", "Expected `object`"),
        ("[" * 100_000, "Expected `object`"),
        ('{"a": ' + "[" * 100_000, "fit"),
        ('{"a": "\ud800"}', "fit"),
    ],
)
def test_answer_to_bad_arguments_explains_the_error(arguments: str, message: str) -> None:
    """The result of a call with wrong arguments explains the error, so that the model can try
    again.
    """
    text, ok = answer_of(add, arguments)
    assert not ok
    assert "The arguments do not fit" in text
    assert message in text


def test_answer_accepts_numbers_in_quotes() -> None:
    """Many small models quote their numbers; the call works all the same."""
    assert answer_of(add, '{"a": "2", "b": 3.0}') == ("5", True)


def test_result_for_an_unknown_tool_names_the_known_ones() -> None:
    """The result of a call of an unknown tool names the known ones."""
    (result,) = round_results(ToolCall("c1", "ad", "{}"), tools=Toolbox([add]))
    assert (result.id, result.name, result.ok) == ("c1", "ad", False)
    assert "'ad'" in result.result
    assert "add" in result.result


def raising_tool(fault: BaseException) -> Callable[[], str]:
    def tool() -> str:
        raise fault

    return tool


@pytest.mark.parametrize(
    "fault", [ValueError("secret"), SystemExit("secret"), MemoryError("secret")]
)
def test_answer_of_a_tool_that_raises_has_the_type_alone(
    fault: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    """The result of a tool that raises has only the exception's type; the log has the traceback."""
    text, ok = answer_of(raising_tool(fault))
    assert (text, ok) == (f"The tool failed ({type(fault).__name__}).", False)
    assert "secret" in caplog.text


def test_answer_of_a_tool_error_is_its_text(caplog: pytest.LogCaptureFixture) -> None:
    """The text of a ToolError reaches the model and is not logged."""
    assert answer_of(raising_tool(ToolError("Closed on Sundays."))) == ("Closed on Sundays.", False)
    assert caplog.text == ""


def test_answer_is_text_or_json() -> None:
    """A string is sent unchanged, another value as JSON; a value that is neither is the tool's
    fault."""

    def structured() -> dict[str, Any]:
        return {"places": [Place("K2", 8611.0)]}

    def strange() -> object:
        return object()

    assert answer_of(structured) == ('{"places":[{"name":"K2","height":8611.0}]}', True)
    assert answer_of(strange) == ("The tool failed (TypeError).", False)


def test_result_over_the_limit_is_cut() -> None:
    """The model gets the beginning and a note that it is cut."""

    def endless() -> str:
        return "x" * 1_000_000

    (result,) = round_results(ToolCall("c", "endless", ""), tools=Toolbox([endless]))
    assert result.ok
    assert result.result == "x" * module.RESULT_MAX + "\n[cut off here]"


def test_result_with_a_lone_surrogate_can_be_encoded() -> None:
    """Characters that UTF-8 cannot hold are replaced, so that readers get the event."""

    def half() -> str:
        return "a\ud800b"

    (result,) = round_results(ToolCall("c", "half", ""), tools=Toolbox([half]))
    assert result.result == "a?b"
    assert encode(result)


# --- a round --------------------------------------------------------------------------------------


def test_round_runs_its_calls_in_parallel() -> None:
    """The calls of a round run in parallel (three meet at one barrier), and results are sent in
    order.
    """
    meeting = threading.Barrier(3)

    def meet(name: str) -> str:
        meeting.wait(WAIT_TIMEOUT)
        return name

    calls = [ToolCall(f"c{n}", "meet", f'{{"name": "{n}"}}') for n in range(3)]
    tool_round = Toolbox([meet]).round(calls)
    assert sorted(result.result for result in tool_round.results()) == ["0", "1", "2"]
    assert [result.id for result in tool_round.finished_results] == ["c0", "c1", "c2"]


def test_call_over_its_time_is_given_up_and_its_event_set() -> None:
    """A call over its time is timed out and its Event is set; other results count, its own late one
    is dropped.
    """
    gate, slow_may_end, late_began = threading.Event(), threading.Event(), threading.Event()
    threads: list[threading.Thread] = []

    def late(abandoned: threading.Event) -> str:
        threads.append(threading.current_thread())
        late_began.set()
        assert abandoned.wait(WAIT_TIMEOUT)
        gate.wait(WAIT_TIMEOUT)
        return "too late"

    def slow() -> str:
        slow_may_end.wait(WAIT_TIMEOUT)
        return "in time"

    tools = Toolbox([Tool(late, timeout=0.02), slow])
    tool_round = tools.round([ToolCall("c1", "late", ""), ToolCall("c2", "slow", "")])
    later_results = tool_round.results()
    first = next(later_results)
    assert late_began.wait(WAIT_TIMEOUT)
    gate.set()
    threads[0].join(WAIT_TIMEOUT)
    slow_may_end.set()
    assert (first.id, first.ok) == ("c1", False)
    assert first.result == "Timed out after 0.02 s."
    assert [result.result for result in later_results] == ["in time"]
    assert [result.id for result in tool_round.finished_results] == ["c1", "c2"]


def test_abort_ends_the_wait_for_running_tools() -> None:
    """An abort sets every Event and ends the wait, also for a tool that does not check
    its Event.
    """
    running_calls, gate = threading.Semaphore(0), threading.Event()
    events: list[threading.Event] = []

    def stubborn(abandoned: threading.Event) -> str:
        events.append(abandoned)
        running_calls.release()
        gate.wait(WAIT_TIMEOUT)
        return ""

    tool_round = Toolbox([stubborn]).round([ToolCall(f"c{n}", "stubborn", "") for n in range(2)])
    waiting_call = BackgroundCall(lambda: list(tool_round.results()))
    assert running_calls.acquire(timeout=WAIT_TIMEOUT)
    assert running_calls.acquire(timeout=WAIT_TIMEOUT)
    tool_round.abort()
    waiting_call.end()
    assert waiting_call.result == []
    assert all(event.is_set() for event in events)
    gate.set()


def test_abort_before_the_start_starts_no_tool() -> None:
    """A round that is stopped before it began runs no tool."""
    calls_run: list[int] = []

    def tool() -> str:
        calls_run.append(1)
        return ""

    tool_round = Toolbox([tool]).round([ToolCall("c", "tool", "")])
    tool_round.abort()
    assert list(tool_round.results()) == []
    assert calls_run == []


def test_calls_over_the_thread_limit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls beyond the limit are refused, hanging ones count, and a free place is used again."""
    monkeypatch.setattr(module, "THREADS_MAX", 2)
    gate = threading.Event()

    def hang(name: str) -> str:
        gate.wait(WAIT_TIMEOUT)
        return name

    tool = Tool(hang, timeout=0.01)
    tools = Toolbox([tool])
    calls = [ToolCall(f"c{n}", "hang", '{"name": "x"}') for n in range(3)]
    first = round_results(*calls, tools=tools)
    assert ["Too many tools" in result.result for result in first] == [True, False, False]
    assert "Too many tools" in round_results(calls[0], tools=tools)[0].result
    hanging_threads = [t for t in threading.enumerate() if t.name.startswith("halt-tool-hang")]
    assert len(hanging_threads) == 2
    gate.set()
    for thread in hanging_threads:
        thread.join(WAIT_TIMEOUT)
    tool.timeout = WAIT_TIMEOUT
    assert [result.result for result in round_results(*calls[:2], tools=tools)] == ["x", "x"]


def test_calls_over_the_round_limit_are_refused() -> None:
    """Calls over the limit of a round are refused with a result each: one answer cannot take all
    threads.
    """
    calls = [ToolCall(f"c{n}", "add", '{"a": 1}') for n in range(module.CALLS_MAX + 2)]
    by_id = {result.id: result for result in round_results(*calls, tools=Toolbox([add]))}
    assert len(by_id) == len(calls)
    assert [by_id[call.id].ok for call in calls] == [True] * 16 + [False] * 2


def test_call_without_a_thread_has_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call whose thread cannot be started has a result, and its place is free again."""

    def refuse_thread(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    tools = Toolbox([add])
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse_thread)
        for _ in range(module.THREADS_MAX + 1):
            (result,) = round_results(ToolCall("c", "add", '{"a": 1}'), tools=tools)
            assert "could not be started" in result.result
    assert round_results(ToolCall("c", "add", '{"a": 1}'), tools=tools)[0].result == "2"


def test_result_racing_time_limit_and_abort_comes_once() -> None:
    """Property: each call has at most one result, and no round waits for ever."""

    def quick() -> str:
        return "quick"

    tools = Toolbox([Tool(quick, timeout=0.0005)])

    def count_results(tool_round: ToolRound) -> int:
        return len(list(tool_round.results()))

    def abort(tool_round: ToolRound) -> int:
        tool_round.abort()
        return 0

    for number in range(REPEATS):
        tool_round = tools.round([ToolCall(f"c{n}", "quick", "") for n in range(3)])
        calls = (
            [lambda: count_results(tool_round), lambda: abort(tool_round)]
            if number % 2
            else [lambda: count_results(tool_round)]
        )
        result_count = together(*calls)[0]
        finished_results = tool_round.finished_results
        assert (
            len(finished_results) == len({result.id for result in finished_results}) >= result_count
        )
        assert number % 2 or result_count == 3


# --- the tools that ship --------------------------------------------------------------------------


def test_halt_tools_setting_allows_the_builtin_tools() -> None:
    """HALT_TOOLS allows exactly the built-in tools, and none is offered by default."""
    assert set(SHIPPED_TOOLS) == set(BUILTIN_TOOLS)
    assert load({}).tools == ()
    assert load({"HALT_TOOLS": " current_time, calculator,,current_time"}).tools == (
        "current_time",
        "calculator",
    )


def test_halt_tools_setting_refuses_an_unknown_tool() -> None:
    """An unknown tool in HALT_TOOLS is refused in one line with the known ones."""
    with pytest.raises(ConfigError) as error_info:
        load({"HALT_TOOLS": "calculator,shell"})
    assert str(error_info.value) == (
        "HALT_TOOLS='calculator,shell': there is no tool named 'shell'; "
        "use calculator, current_time."
    )


def test_builtin_tools_have_descriptions() -> None:
    """Each tool and each of its parameters has a description for the model."""
    for tool_spec in Toolbox(BUILTIN_TOOLS.values()).specs:
        function = tool_spec["function"]
        assert function["description"]
        assert function["parameters"]
        assert all("description" in p for p in function["parameters"]["properties"].values())


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("1 + 2 * 3", "7"),
        ("(1 + 2) * -3", "-9"),
        ("7 / 7", "1"),
        ("6 / 4", "1.5"),
        ("0.1 + 0.2", "0.3"),
        ("7 // 2 + 7 % 2", "4"),
        ("2 ** 100", str(2**100)),
        ("2 ** -1", "0.5"),
        ("-2 ** 2", "-4"),
        ("sqrt(16)", "4"),
        ("log(e) + log(8, 2)", "4"),
        ("round(sin(pi / 2) + cos(0), 3)", "2"),
        ("round(2.567, 2)", "2.57"),
        ("max(1, 2.5, 2) - min(3, 1) - abs(-1)", "0.5"),
        ("-0.0", "0"),
        (" 1_000 ", "1000"),
        ("0 ** 10 ** 20 + 1 ** 10 ** 20", "1"),
        ("pi", f"{math.pi:.15g}"),
    ],
)
def test_calculator_computes(expression: str, value: str) -> None:
    """Integers are exact, other numbers as precise as a float."""
    assert calculator(expression) == value


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("", "no expression"),
        ("1 +", "no expression"),
        ("1 / 0", "Division by zero"),
        ("5 % 0", "Division by zero"),
        ("sqrt(-1)", "no such number"),
        ("(-8) ** 0.5", "no such power"),
        ("2 ^ 3", "**"),
        ("1,000", "1000"),
        ("x", "'x' is not allowed"),
        ("True + 1", "'True' is not allowed"),
        ("1j", "'1j' is not allowed"),
        ("'a' * 10", "\"'a'\" is not allowed"),
        ("(1).real", "not allowed"),
        ("[1][0]", "not allowed"),
        ("(lambda: 1)()", "not allowed"),
        ("[x for x in (1,)]", "not allowed"),
        ("__import__('os').system('true')", "not allowed"),
        ("open('/etc/passwd')", "not allowed"),
        ("max(*[1])", "not allowed"),
        ("round(1, digits=1)", "not allowed"),
        ("max()", "max does not take 0"),
        ("log(1, 2, 3)", "log does not take 3"),
        ("9 ** 9 ** 9", "too large"),
        ("9 ** 9 ** 9 ** 9", "too large"),
        ("-9 ** 9 ** 9", "too large"),
        ("(10 ** 1200) * (10 ** 1200)", "too large"),
        ("1e308 * 10", "too large"),
        ("1e400", "too large"),
        ("10 ** 400 / 3", "too large"),
        ("2.5 ** 10 ** 9", "too large"),
        ("round(5, -10 ** 9)", "at most 300"),
        ("1" + "+1" * 250, "longer than 500"),
        ("(" * 240 + "1" + ")" * 240, "no expression"),
        ("\ud800", "no such number"),
        ("\0", "no expression"),
    ],
)
def test_calculator_refuses_other_expressions(expression: str, message: str) -> None:
    """An expression that is no arithmetic, or too large, is refused in words that a model can use."""
    with pytest.raises(ToolError, match=re.escape(message)):
        calculator(expression)


def test_calculator_takes_little_memory() -> None:
    """The calculator makes no number of more than a few kilobytes: larger powers are refused
    before.
    """
    tracemalloc.start()
    try:
        for base in ("2", "9", "10**600", "-3"):
            for exponent in ("4000", "9**9", "9**9**9"):
                with pytest.raises(ToolError, match="too large"):
                    calculator(f"(({base})**{exponent})**9")
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 1_000_000


def test_calculator_refuses_deep_nesting() -> None:
    """Nesting ends in a number or in a clear refusal, never in a fault."""
    assert calculator("-" * 400 + "1") == "1"
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(limit - 700)
    try:
        with pytest.raises(ToolError, match="too deep"):
            calculator("-" * 499 + "1")
    finally:
        sys.setrecursionlimit(limit)


def test_current_time_has_weekday_date_time_zone_and_offset() -> None:
    """The text has weekday, date, time, zone and offset from UTC."""
    form = r"(Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day, \d{4}-\d\d-\d\d \d\d:\d\d:\d\d "
    assert re.fullmatch(form + r"UTC \(UTC\+00:00\)", current_time())
    assert re.fullmatch(form + r"Asia/Kolkata \(UTC\+05:30\)", current_time("Asia/Kolkata"))


@pytest.mark.parametrize(
    ("zone", "hint"),
    [
        ("Berlin", "Europe/Berlin?"),
        ("new york", "America/New_York?"),
        ("europe/berlin", "Europe/Berlin"),
        ("Europe", "Europe/"),
        ("", "UTC"),
        ("../../etc/passwd", "UTC"),
        ("/etc/passwd", "UTC"),
        ("a\0b", "UTC"),
        ("x" * 10_000, "UTC"),
    ],
)
def test_current_time_of_an_unknown_zone_names_known_ones(zone: str, hint: str) -> None:
    """For an unknown zone (a city, a wrong case, a path) the result has names of existing ones."""
    with pytest.raises(ToolError, match=re.escape(hint)) as error_info:
        current_time(zone)
    assert len(str(error_info.value)) < 300
