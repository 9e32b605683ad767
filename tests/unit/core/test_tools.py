"""Tools: what a model is told of a function, and what it is told back, whatever the function does."""

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
    """The parameters of a function as a model is told them."""
    parameters: dict[str, Any] = Tool(function).spec["function"]["parameters"]
    return parameters


def told(function: Callable[..., Any], arguments: str = "") -> tuple[str, bool]:
    """What a model is told when it calls the function."""
    return Tool(function).answer(arguments, threading.Event())


def results(*calls: ToolCall, tools: Toolbox) -> list[ToolResult]:
    """Run the calls to their end; the results as they came."""
    return list(tools.round(list(calls)).results())


# --- what a model is told of a function -----------------------------------------------------------


@dataclasses.dataclass
class Place:
    """Where something is."""

    name: str
    height: float = 0.0


def test_a_signature_becomes_a_schema() -> None:
    """Types, choices, lists, optional and described parameters, and defaults: all are told."""

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
    given = '{"text":"t","count":1,"kind":"b","many":[2],"share":1}'
    assert told(tool, given) == ("('t', 1, 'b', [2], 1.0, False, None)", True)


def test_a_dataclass_is_told_as_an_object() -> None:
    """A structured parameter is described where the schema refers to it, and comes as itself."""

    def tool(place: Place) -> str:
        return repr(place)

    parameters = schema(tool)
    assert parameters["properties"]["place"] == {"$ref": "#/$defs/Place"}
    assert parameters["$defs"]["Place"]["required"] == ["name"]
    assert told(tool, '{"place": {"name": "K2"}}') == ("Place(name='K2', height=0.0)", True)


def test_a_function_without_parameters_can_be_called_with_nothing() -> None:
    """Models write "", "{}" or blanks where there is nothing to say."""

    def tool() -> str:
        return "done"

    assert schema(tool)["properties"] == {}
    assert {told(tool, given) for given in ("", " ", "{}")} == {("done", True)}


def test_the_event_is_given_and_not_told() -> None:
    """A parameter of the type Event gets the call's own; one that is named `stop` is a parameter."""

    def tool(stop: str, ending: threading.Event) -> str:
        ending.set()
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
def test_what_can_be_no_tool_is_refused_where_it_is_registered(function: Any) -> None:
    """A function that no model can be told of is an error at the start, not in a conversation."""
    with pytest.raises(TypeError, match=getattr(function, "__name__", "no name for a tool")):
        Toolbox([function])


def test_two_tools_of_one_name_are_refused() -> None:
    """A model could not tell them apart."""
    with pytest.raises(ValueError, match="'calculator'"):
        Toolbox([calculator, Tool(current_time, name="calculator")])


# --- what it is told back -------------------------------------------------------------------------


def add(a: int, b: int = 1) -> int:
    """Add."""
    return a + b


@pytest.mark.parametrize(
    ("arguments", "says"),
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
def test_bad_arguments_are_told_to_the_model(arguments: str, says: str) -> None:
    """A model that got its arguments wrong is told how, and can try again."""
    said, ok = told(add, arguments)
    assert not ok
    assert "The arguments do not fit" in said
    assert says in said


def test_numbers_in_quotes_are_numbers() -> None:
    """Many a small model quotes its numbers; that is no reason to fail."""
    assert told(add, '{"a": "2", "b": 3.0}') == ("5", True)


def test_an_unknown_tool_is_told_with_those_that_are_there() -> None:
    """A model that invents a tool is told the real ones; the call is answered all the same."""
    (result,) = results(ToolCall("c1", "ad", "{}"), tools=Toolbox([add]))
    assert (result.id, result.name, result.ok) == ("c1", "ad", False)
    assert "'ad'" in result.result
    assert "add" in result.result


def raising(fault: BaseException) -> Callable[[], str]:
    def tool() -> str:
        raise fault

    return tool


@pytest.mark.parametrize(
    "fault", [ValueError("secret"), SystemExit("secret"), MemoryError("secret")]
)
def test_a_tool_that_raises_is_logged_and_told_by_kind(
    fault: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    """The operator gets the traceback; the model and the user only what kind of error it was."""
    said, ok = told(raising(fault))
    assert (said, ok) == (f"The tool failed ({type(fault).__name__}).", False)
    assert "secret" in caplog.text


def test_a_tool_error_is_told_in_its_own_words(caplog: pytest.LogCaptureFixture) -> None:
    """What a tool says on purpose reaches the model, and is no fault to be logged."""
    assert told(raising(ToolError("Closed on Sundays."))) == ("Closed on Sundays.", False)
    assert caplog.text == ""


def test_results_are_text() -> None:
    """A string goes as it is, what is none as JSON, what can be neither is a fault of the tool."""

    def structured() -> dict[str, Any]:
        return {"places": [Place("K2", 8611.0)]}

    def strange() -> object:
        return object()

    assert told(structured) == ('{"places":[{"name":"K2","height":8611.0}]}', True)
    assert told(strange) == ("The tool failed (TypeError).", False)


def test_a_result_that_is_too_long_is_cut() -> None:
    """The model is told the beginning, and that it is not all."""

    def endless() -> str:
        return "x" * 1_000_000

    (result,) = results(ToolCall("c", "endless", ""), tools=Toolbox([endless]))
    assert result.ok
    assert result.result == "x" * module.RESULT_MAX + "\n[cut off here]"


def test_half_a_character_in_a_result_harms_nobody() -> None:
    """What could not be sent as UTF-8 is replaced, so that readers get their event."""

    def half() -> str:
        return "a\ud800b"

    (result,) = results(ToolCall("c", "half", ""), tools=Toolbox([half]))
    assert result.result == "a?b"
    assert encode(result)


# --- a round --------------------------------------------------------------------------------------


def test_calls_of_a_round_run_side_by_side() -> None:
    """Three calls meet at one barrier: none waits for another. Results go back in order."""
    meeting = threading.Barrier(3)

    def meet(name: str) -> str:
        meeting.wait(WAIT_TIMEOUT)
        return name

    calls = [ToolCall(f"c{n}", "meet", f'{{"name": "{n}"}}') for n in range(3)]
    found = Toolbox([meet]).round(calls)
    assert sorted(each.result for each in found.results()) == ["0", "1", "2"]
    assert [each.id for each in found.finished_results] == ["c0", "c1", "c2"]


def test_a_call_over_its_time_is_given_up_and_told_to_stop() -> None:
    """Its Event is set, the others' results count, and what the late one returns is dropped."""
    gate, other = threading.Event(), threading.Event()
    threads: list[threading.Thread] = []

    def late(ending: threading.Event) -> str:
        threads.append(threading.current_thread())
        assert ending.wait(WAIT_TIMEOUT)
        gate.wait(WAIT_TIMEOUT)
        return "too late"

    def slow() -> str:
        other.wait(WAIT_TIMEOUT)
        return "in time"

    tools = Toolbox([Tool(late, timeout=0.02), slow])
    found = tools.round([ToolCall("c1", "late", ""), ToolCall("c2", "slow", "")])
    coming = found.results()
    first = next(coming)
    gate.set()
    threads[0].join(WAIT_TIMEOUT)
    other.set()
    assert (first.id, first.ok) == ("c1", False)
    assert first.result == "Given up: it took longer than 0.02 s."
    assert [each.result for each in coming] == ["in time"]
    assert [each.id for each in found.finished_results] == ["c1", "c2"]


def test_abort_ends_the_wait_at_once() -> None:
    """Nobody waits for a tool that does not look at its Event; the one that does is told."""
    running, gate = threading.Semaphore(0), threading.Event()
    events: list[threading.Event] = []

    def stubborn(ending: threading.Event) -> str:
        events.append(ending)
        running.release()
        gate.wait(WAIT_TIMEOUT)
        return ""

    found = Toolbox([stubborn]).round([ToolCall(f"c{n}", "stubborn", "") for n in range(2)])
    waiting = BackgroundCall(lambda: list(found.results()))
    assert running.acquire(timeout=WAIT_TIMEOUT)
    assert running.acquire(timeout=WAIT_TIMEOUT)
    found.abort()
    waiting.end()
    assert waiting.result == []
    assert all(event.is_set() for event in events)
    gate.set()


def test_an_abort_before_the_start_starts_nothing() -> None:
    """A round that was stopped before it began runs no tool at all."""
    ran: list[int] = []

    def tool() -> str:
        ran.append(1)
        return ""

    found = Toolbox([tool]).round([ToolCall("c", "tool", "")])
    found.abort()
    assert list(found.results()) == []
    assert ran == []


def test_threads_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls beyond the bound are refused, hanging ones count, and a free place is used again."""
    monkeypatch.setattr(module, "THREADS_MAX", 2)
    gate = threading.Event()

    def hang(name: str) -> str:
        gate.wait(WAIT_TIMEOUT)
        return name

    tool = Tool(hang, timeout=0.01)
    tools = Toolbox([tool])
    calls = [ToolCall(f"c{n}", "hang", '{"name": "x"}') for n in range(3)]
    first = results(*calls, tools=tools)
    assert ["Too many tools" in each.result for each in first] == [True, False, False]
    assert "Too many tools" in results(calls[0], tools=tools)[0].result
    before = [t for t in threading.enumerate() if t.name.startswith("halt-tool-hang")]
    assert len(before) == 2
    gate.set()
    for thread in before:
        thread.join(WAIT_TIMEOUT)
    tool.timeout = WAIT_TIMEOUT
    assert [each.result for each in results(*calls[:2], tools=tools)] == ["x", "x"]


def test_calls_of_one_round_are_bounded() -> None:
    """One answer cannot take all threads; the model is told, and each call has its result."""
    calls = [ToolCall(f"c{n}", "add", '{"a": 1}') for n in range(module.CALLS_MAX + 2)]
    came = {each.id: each for each in results(*calls, tools=Toolbox([add]))}
    assert len(came) == len(calls)
    assert [each.ok for each in (came[call.id] for call in calls)] == [True] * 16 + [False] * 2


def test_a_system_without_threads_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that cannot be had is a result like any other, and its place is free again."""

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    tools = Toolbox([add])
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        for _ in range(module.THREADS_MAX + 1):
            (result,) = results(ToolCall("c", "add", '{"a": 1}'), tools=tools)
            assert "could not be started" in result.result
    assert results(ToolCall("c", "add", '{"a": 1}'), tools=tools)[0].result == "2"


def test_result_against_time_limit_and_abort() -> None:
    """Law: each call has one result at most, whoever comes first; no round waits for ever."""

    def quick() -> str:
        return "quick"

    tools = Toolbox([Tool(quick, timeout=0.0005)])

    def play(found: ToolRound) -> int:
        return len(list(found.results()))

    def abort(found: ToolRound) -> int:
        found.abort()
        return 0

    for turn in range(REPEATS):
        found = tools.round([ToolCall(f"c{n}", "quick", "") for n in range(3)])
        bodies = [lambda: play(found), lambda: abort(found)] if turn % 2 else [lambda: play(found)]
        given = together(*bodies)[0]
        said = found.finished_results
        assert len(said) == len({each.id for each in said}) >= given
        assert turn % 2 or given == 3


# --- the tools that ship --------------------------------------------------------------------------


def test_settings_name_the_tools_that_ship() -> None:
    """What HALT_TOOLS allows is what is there, and none of it is offered by default."""
    assert set(SHIPPED_TOOLS) == set(BUILTIN_TOOLS)
    assert load({}).tools == ()
    assert load({"HALT_TOOLS": " current_time, calculator,,current_time"}).tools == (
        "current_time",
        "calculator",
    )


def test_an_unknown_tool_in_the_settings_is_refused() -> None:
    """One line names the tool that is not there, and those that are."""
    with pytest.raises(ConfigError) as caught:
        load({"HALT_TOOLS": "calculator,shell"})
    assert str(caught.value) == (
        "HALT_TOOLS='calculator,shell': there is no tool named 'shell'; "
        "use calculator, current_time."
    )


def test_every_tool_that_ships_is_told_with_descriptions() -> None:
    """A model knows when to use each, and what each parameter means."""
    for spec in Toolbox(BUILTIN_TOOLS.values()).specs:
        function = spec["function"]
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
def test_the_calculator_calculates(expression: str, value: str) -> None:
    """Whole numbers exactly, others as far as a float is sure."""
    assert calculator(expression) == value


@pytest.mark.parametrize(
    ("expression", "says"),
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
def test_the_calculator_refuses(expression: str, says: str) -> None:
    """Whatever is no arithmetic, or too much of it, is refused in words a model can use."""
    with pytest.raises(ToolError, match=re.escape(says)):
        calculator(expression)


def test_the_calculator_takes_little_memory() -> None:
    """The largest it can be made to hold is a few kilobytes a number: no power is tried first."""
    tracemalloc.start()
    try:
        for base in ("2", "9", "10**600", "-3"):
            for exponent in ("4000", "9**9", "9**9**9"):
                with pytest.raises(ToolError, match="too large"):
                    calculator(f"(({base})**{exponent})**9")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000


def test_the_calculator_is_not_led_too_deep() -> None:
    """Nesting ends in a number or in a clear refusal, never in a fault."""
    assert calculator("-" * 400 + "1") == "1"
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(limit - 700)
    try:
        with pytest.raises(ToolError, match="too deep"):
            calculator("-" * 499 + "1")
    finally:
        sys.setrecursionlimit(limit)


def test_the_time_in_a_zone() -> None:
    """Weekday, date, time, the zone, and how far it is from UTC."""
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
def test_an_unknown_zone_is_answered_with_help(zone: str, hint: str) -> None:
    """A city, a wrong case, a path: the model is told which names there are."""
    with pytest.raises(ToolError, match=re.escape(hint)) as caught:
        current_time(zone)
    assert len(str(caught.value)) < 300
