"""Halt as a Python library: generate, read, wait, stop, callbacks, close.

With the fake upstream over real sockets, or a scripted one where a phase must be exact.
"""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import halt as package
from halt import Generation, GenerationError, Halt, Result, ToolError
from halt.config.settings import Config, ConfigError
from halt.core.events import Cancelled, Content, Done, Event, Failed, ToolCall, ToolResult
from halt.core.log import EventLog
from halt.core.request import ChatRequest, Message, Part
from halt.core.stream_key import StreamKey
from halt.errors import (
    AtCapacity,
    Draining,
    HaltError,
    OffsetLost,
    RequestError,
    StreamInUse,
    UnknownStream,
)
from halt.library import handle
from halt.library.halt import Options
from halt.testing.fake_openai import FakeOpenAI
from tests.support.halt_server import halt_environment
from tests.support.library_halt import (
    complete_text,
    fake_config,
    halt_threads,
    scripted_halt,
    service_of,
    wait_no_threads,
)
from tests.support.races import interrupt_in, together
from tests.support.scripted_upstream import ScriptedReply, ScriptedUpstream
from tests.support.waiting import WAIT_TIMEOUT, BackgroundCall, wait_until

ROOT = Path(__file__).parents[3]
NUMBERS = "".join(f"{n} " for n in range(20))


@pytest.fixture
def program(fake: FakeOpenAI) -> Iterator[Halt]:
    """A Halt as in a program; afterwards none of its threads is running."""
    with Halt(config=fake_config(fake)) as halt:
        yield halt
    wait_no_threads()


@pytest.fixture
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the waits for an end, so that a Ctrl-C is noticed soon."""
    monkeypatch.setattr(handle, "TICK", 0.05)


class RecordedCallbacks:
    """Callbacks that keep their calls in order."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.ended = threading.Event()

    def token(self, text: str) -> None:
        self.calls.append(("token", text))

    def complete(self, result: Result) -> None:
        self.calls.append(("complete", result))
        self.ended.set()

    def error(self, error: HaltError) -> None:
        self.calls.append(("error", error))
        self.ended.set()

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.calls]

    @property
    def text(self) -> str:
        return "".join(value for name, value in self.calls if name == "token")

    def all(self) -> dict[str, Any]:
        """The callbacks as arguments of `generate`."""
        return {"on_token": self.token, "on_complete": self.complete, "on_error": self.error}


# --- reading --------------------------------------------------------------------------------------


def test_text_stream_pieces_join_to_the_result(program: Halt) -> None:
    """The pieces join to the result's text; the result has finish reason, usage and figures."""
    gen = program.generate("ignored", model="count?n=20", id="my-stream-0001")
    pieces = list(gen.text_stream)
    result = gen.result()
    assert "".join(pieces) == result.text == gen.text == NUMBERS
    assert (gen.id, gen.state, result.id) == ("my-stream-0001", "done", "my-stream-0001")
    assert isinstance(result.terminal, Done)
    assert (result.finish_reason, result.stopped) == ("stop", False)
    assert result.usage is not None
    assert result.usage["completion_tokens"] == result.metrics.tokens == 20
    assert result.metrics == gen.metrics
    assert result.model == gen.model == "count?n=20"


def test_generation_can_be_iterated_again_and_concurrently(program: Halt) -> None:
    """Every reader gets all events, at the same time or later; `events` starts at a number."""
    gen = program.generate("x", model="count?n=200")
    first, second, third = together(*[lambda: list(gen)] * 3)
    assert first == second == third == list(gen)
    assert complete_text(first) == "".join(f"{n} " for n in range(200))
    numbered = list(gen.events(after=100))
    assert [seq for seq, _ in numbered] == list(range(101, len(first) + 1))
    assert [event for _, event in numbered] == first[100:]


def test_break_in_an_iteration_does_not_stop_the_generation(program: Halt) -> None:
    """A generation goes on to its end after a `break` in its iteration."""
    gen = program.generate("x", model="count?n=50&gap_ms=1")
    for event in gen:
        assert isinstance(event, Content)
        break
    assert gen.result().finish_reason == "stop"


def test_metrics_are_available_before_during_and_after(program: Halt, fake: FakeOpenAI) -> None:
    """Metrics are available before the first token, while the answer runs, and after its end."""
    gen = program.generate("x", model="stall?n=3&rest=2")
    assert gen.metrics.duration_ms >= 0
    events = iter(gen)
    while gen.metrics.chunks < 3:
        next(events)
    running_metrics = gen.metrics
    assert running_metrics.ttft_ms is not None
    assert running_metrics.streaming_ms is not None
    assert running_metrics.streaming_ms >= 0
    fake.wait_request().release()
    assert gen.result().metrics.chunks == 5


def test_generate_sends_messages_and_options(program: Halt, fake: FakeOpenAI) -> None:
    """Messages as structs or dicts and the request's options are sent to the model's server."""
    program.generate(
        [Message("system", "Be brief."), {"role": "user", "content": "hello"}],
        temperature=0.5,
        max_tokens=7,
        stop=["x"],
    ).result()
    body = fake.wait_request().body
    assert [m["content"] for m in body["messages"]] == ["Be brief.", "hello"]
    assert (body["temperature"], body["max_tokens"], body["stop"]) == (0.5, 7, ["x"])
    assert body["model"] == "echo"


def test_generate_options_override_a_chat_request(program: Halt, fake: FakeOpenAI) -> None:
    """A ChatRequest is accepted, and options override its fields."""
    request = ChatRequest([Message("user", "hello")], temperature=0.5, seed=1)
    assert program.generate(request, temperature=1.0).result().text == "hello"
    body = fake.wait_request().body
    assert (body["temperature"], body["seed"]) == (1.0, 1)


# --- stop -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["silent_headers", "silent_first_token", "stall?n=0"])
def test_stop_before_the_first_token_closes_the_upstream(
    program: Halt, fake: FakeOpenAI, model: str
) -> None:
    """A Stop before the first token closes the connection in every phase of the request."""
    gen = program.generate("x", model=model)
    record = fake.wait_request()
    waiting_call = BackgroundCall(gen.result)
    receipt = gen.stop()
    assert (receipt.status, receipt.upstream) == ("stopped", "closed")
    assert record.closed.wait(WAIT_TIMEOUT)
    assert waiting_call.end() is None
    assert isinstance(waiting_call.result, Result)
    assert (waiting_call.result.stopped, waiting_call.result.text) == (True, "")
    assert gen.stop().status == "finished"


def test_stop_from_another_thread_ends_an_iteration(program: Halt, fake: FakeOpenAI) -> None:
    """A Stop ends an iteration that waits in another thread; the text so far is kept."""
    gen = program.generate("x", model="stall?n=5")
    events: list[Event] = []
    reader = BackgroundCall(lambda: events.extend(gen))
    wait_until(lambda: gen.text == "0 1 2 3 4 ")
    assert gen.stop().upstream == "closed"
    reader.end()
    assert isinstance(events[-1], Cancelled)
    assert complete_text(events) == gen.text == "0 1 2 3 4 "
    assert list(gen.text_stream) == [e.content for e in events[:-1] if isinstance(e, Content)]
    assert fake.wait_request().closed.wait(WAIT_TIMEOUT)


def test_leaving_with_stops_the_generation(program: Halt, fake: FakeOpenAI) -> None:
    """Leaving `with` stops a running generation and closes its connection."""
    with program.generate("x", model="silent_headers") as gen:
        fake.wait_request()
    assert gen.state == "cancelled"
    assert fake.wait_request().closed.wait(WAIT_TIMEOUT)


def test_stop_before_the_start_ends_the_generation_at_once(program: Halt, fake: FakeOpenAI) -> None:
    """A generation whose ID was stopped before ends at once and sends no request."""
    assert program.stop("stopped-before").status == "pending"
    result = program.generate("x", id="stopped-before").result()
    assert (result.stopped, result.text, fake.requests) == (True, "", [])


@pytest.mark.usefixtures("short_waits", "ctrl_c")
@pytest.mark.parametrize("method_name", ["result", "for"])
def test_ctrl_c_during_a_wait_stops_the_generation(method_name: str) -> None:
    """Ctrl-C during `result` or an iteration stops the generation and raises KeyboardInterrupt."""
    upstream = ScriptedUpstream()
    with scripted_halt(upstream) as program:
        gen = program.generate("x")
        interrupt_call = BackgroundCall(lambda: interrupt_in(EventLog.wait.__code__))
        with pytest.raises(KeyboardInterrupt):
            gen.result() if method_name == "result" else list(gen)
        interrupt_call.end()
        assert gen.state == "cancelled"
        assert upstream.reply().over.wait(WAIT_TIMEOUT)
    wait_no_threads()
    upstream.dispose()


# --- failures -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "code", "text"),
    [
        ("drop?n=5", "upstream_dropped", "0 1 2 3 4 "),
        ("error_in_stream?n=2", "upstream_error", "0 1 "),
        ("401", "unauthorized", ""),
    ],
)
def test_failure_raises_an_error_with_the_partial_text(
    program: Halt, model: str, code: str, text: str
) -> None:
    """`result` and `text_stream` raise a GenerationError with the text so far; events end with
    it."""
    gen = program.generate("x", model=model)
    with pytest.raises(GenerationError) as error_info:
        gen.result()
    assert (error_info.value.code, error_info.value.text) == (code, text)
    assert error_info.value.result.metrics.characters == len(text)
    assert isinstance(error_info.value, HaltError)
    pieces: list[str] = []
    with pytest.raises(GenerationError):
        pieces.extend(gen.text_stream)
    assert "".join(pieces) == text
    assert isinstance(list(gen)[-1], Failed)


def test_result_timeout_leaves_the_generation_running(program: Halt, fake: FakeOpenAI) -> None:
    """A `result` that times out leaves the generation running and may be repeated."""
    gen = program.generate("x", model="stall?n=1&rest=1")
    with pytest.raises(TimeoutError):
        gen.result(timeout=0.02)
    assert gen.state == "running"
    fake.wait_request().release()
    assert gen.result(timeout=WAIT_TIMEOUT).text == "0 1 "


@pytest.mark.parametrize(
    ("prompt", "options", "field"),
    [
        ([], {}, "messages"),
        (5, {}, "messages"),
        ([{"content": "x"}], {}, "messages[0].role"),
        ([{"role": "user", "content": [{"x": float("nan")}]}], {}, "messages"),
        ("x", {"temperature": 3}, "temperature"),
        ("x", {"bogus": 1}, "bogus"),
        ("x", {"id": "a b"}, "id"),
        ("x", {"model": object()}, "body"),
        ("\ud800", {}, "messages"),
        ("x", {"seed": 2**63}, "seed"),
        ("x", {"seed": -(2**70)}, "seed"),
        ("x", {"seed": 10**5000}, "seed"),
        ("x", {"seed": 1.5}, "seed"),
        ("x", {"max_tokens": 2**64}, "max_tokens"),
        ("x", {"temperature": float("nan")}, "temperature"),
        ("x", {"extra_body": {"a": [float("nan")]}}, "extra_body"),
        ("x", {"extra_body": {"a": float("inf")}}, "extra_body"),
        ("x", {"extra_body": {"a": 10**5000}}, "extra_body"),
        ("x", {"response_format": {"a": float("nan")}}, "response_format"),
        (ChatRequest([]), {}, "messages"),
    ],
)
def test_wrong_request_is_refused_with_its_field(
    program: Halt, prompt: Any, options: dict[str, Any], field: str
) -> None:
    """A wrong request is refused before a start; the error names the field."""
    with pytest.raises(RequestError) as error_info:
        program.generate(prompt, **options)
    assert error_info.value.field == field
    assert service_of(program).open_streams == 0


def test_options_are_the_fields_of_a_request() -> None:
    """The options of `generate` are the fields of a request, except messages, tools and stream."""
    other_fields = {"messages", "tools", "stream"}
    assert {*Options.__annotations__} | other_fields == {*ChatRequest.__struct_fields__}


def test_generate_and_get_refuse_impossible_requests(fake: FakeOpenAI) -> None:
    """A used ID, an unknown ID, a full Halt and a closed Halt raise their errors."""
    with Halt(config=fake_config(fake, max_streams=1)) as program:
        gen = program.generate("x", model="silent_headers", id="the-only-one")
        with pytest.raises(AtCapacity):
            program.generate("x")
        gen.stop()
        wait_until(lambda: service_of(program).open_streams == 0)
        with pytest.raises(StreamInUse):
            program.generate("x", id="the-only-one")
        with pytest.raises(UnknownStream):
            program.get("no-such-stream")
        assert program.get("the-only-one").state == "cancelled"
    with pytest.raises(Draining):
        program.generate("x")
    wait_no_threads()


def test_callbacks_without_a_place_stop_the_generation(fake: FakeOpenAI) -> None:
    """A generation whose callbacks get no reader's place is refused and stopped."""
    with Halt(config=fake_config(fake, max_streams=2)) as program:
        callbacks = RecordedCallbacks()
        open_generation = program.generate("x", model="silent_headers", id="held-open-1")
        second = program.generate("x", model="silent_headers", **callbacks.all())
        reader = program.merge([second])
        open_generation.stop()
        wait_until(lambda: service_of(program).open_streams == 1)
        with pytest.raises(AtCapacity):
            program.generate("x", model="silent_headers", id="no-place-1", **callbacks.all())
        assert program.get("no-place-1").state == "cancelled"
        reader.stop()
    wait_no_threads()


# --- callbacks ------------------------------------------------------------------------------------


def test_callbacks_receive_each_piece_and_the_result_once(program: Halt) -> None:
    """`on_token` gets each piece in order, then `on_complete` gets the result once."""
    callbacks = RecordedCallbacks()
    program.generate("x", model="count?n=20", **callbacks.all())
    assert callbacks.ended.wait(WAIT_TIMEOUT)
    wait_followers_end()
    assert callbacks.text == NUMBERS
    assert callbacks.names[-1] == "complete"
    assert callbacks.names.count("complete") == 1
    assert "error" not in callbacks.names
    result = callbacks.calls[-1][1]
    assert isinstance(result, Result)
    assert (result.text, result.finish_reason) == (NUMBERS, "stop")


def wait_followers_end() -> None:
    wait_until(lambda: not [name for name in halt_threads() if name.startswith("halt-follow")])


def test_on_error_receives_the_failure_once(program: Halt) -> None:
    """After the text so far `on_error` gets the error once."""
    callbacks = RecordedCallbacks()
    program.generate("x", model="drop?n=5", **callbacks.all())
    assert callbacks.ended.wait(WAIT_TIMEOUT)
    wait_followers_end()
    assert callbacks.text == "0 1 2 3 4 "
    assert callbacks.names.count("error") == 1
    assert "complete" not in callbacks.names
    error = callbacks.calls[-1][1]
    assert isinstance(error, GenerationError)
    assert (error.code, error.text) == ("upstream_dropped", "0 1 2 3 4 ")


def test_stop_calls_on_complete_with_a_stopped_result(program: Halt, fake: FakeOpenAI) -> None:
    """After a Stop `on_complete` gets a result that says so."""
    callbacks = RecordedCallbacks()
    gen = program.generate("x", model="stall?n=2", **callbacks.all())
    wait_until(lambda: callbacks.text == "0 1 ")
    gen.stop()
    assert callbacks.ended.wait(WAIT_TIMEOUT)
    assert callbacks.names[-1] == "complete"
    assert callbacks.calls[-1][1].stopped


def test_callback_may_stop_its_own_generation(program: Halt) -> None:
    """Stopping and waiting for the result inside a callback blocks neither."""
    results: list[Result] = []
    has_text = threading.Event()

    def token(_: str) -> None:
        assert has_text.wait(WAIT_TIMEOUT)
        if not results:
            gen.stop()
            results.append(gen.result())

    gen = program.generate("x", model="stall?n=1", on_token=token)
    has_text.set()
    assert gen.result().stopped
    wait_until(lambda: bool(results))
    assert results[0].stopped


@pytest.mark.parametrize("fault", [ZeroDivisionError, SystemExit])
def test_exception_in_a_callback_is_logged_once(
    program: Halt, caplog: pytest.LogCaptureFixture, fault: type[BaseException]
) -> None:
    """A callback's exception is logged once for each callback; further calls follow."""
    calls: list[str] = []
    has_ended = threading.Event()

    def token(text: str) -> None:
        calls.append(text)
        raise fault("in on_token")

    def complete(result: Result) -> None:
        has_ended.set()
        raise fault("in on_complete")

    gen = program.generate("x", model="count?n=20", on_token=token, on_complete=complete)
    assert has_ended.wait(WAIT_TIMEOUT)
    wait_followers_end()
    assert gen.result().text == "".join(calls) == NUMBERS
    reports = [r for r in caplog.records if r.exc_info and r.exc_info[0] is fault]
    assert [r.getMessage() for r in reports] == [
        f"on_token of stream {gen.id}",
        f"on_complete of stream {gen.id}",
    ]


def test_callback_slower_than_the_log_receives_offset_lost() -> None:
    """A callback for which the log has lost events gets OffsetLost; the result has all text."""
    upstream, callbacks, may_continue = ScriptedUpstream(), RecordedCallbacks(), threading.Event()

    def token(text: str) -> None:
        callbacks.token(text)
        assert may_continue.wait(WAIT_TIMEOUT)

    with scripted_halt(upstream, log_bytes=1024) as program:
        gen = program.generate("x", **{**callbacks.all(), "on_token": token})
        upstream.reply().feed("first")
        wait_until(lambda: callbacks.text == "first")
        upstream.reply().feed(*["x" * 300] * 10)
        upstream.reply().end()
        result = gen.result()
        may_continue.set()
        assert callbacks.ended.wait(WAIT_TIMEOUT)
    assert callbacks.names == ["token", "error"]
    assert isinstance(callbacks.calls[-1][1], OffsetLost)
    assert result.text == "first" + "x" * 3000
    upstream.dispose()


# --- abandoned generations ------------------------------------------------------------------------


def state_much_later(program: Halt, stream_id: str) -> str:
    """The state of a run after the relay has checked it 1000 seconds later."""
    generations = service_of(program)
    run = generations.run(StreamKey("", stream_id))

    def check_limits() -> None:
        has_checked = threading.Event()
        run.check_limits_soon()
        generations.relay.post(has_checked.set)
        assert has_checked.wait(WAIT_TIMEOUT)

    check_limits()  # the relay notices a viewer that has just left
    run.watched_at -= 1000.0
    check_limits()
    return run.state


def test_handle_or_callback_keeps_the_generation_running() -> None:
    """A handle or a callback alone keeps a generation running; without both it is abandoned."""
    long_limits = {"gap_timeout": 80000.0, "run_timeout": 80000.0, "orphan_grace": 100.0}
    upstream, callbacks = ScriptedUpstream(), RecordedCallbacks()
    with scripted_halt(upstream, **long_limits) as program:
        open_generation = program.generate("x", id="held-handle")
        upstream.reply(0).feed("a")
        program.generate("x", id="followed-only", on_token=callbacks.token)
        upstream.reply(1).feed("a")
        wait_until(lambda: callbacks.text == "a")
        gc.collect()
        assert state_much_later(program, "held-handle") == "running"
        assert state_much_later(program, "followed-only") == "running"
        assert open_generation.state == "running"
        del open_generation
        gc.collect()
        assert state_much_later(program, "held-handle") == "cancelled"
    upstream.dispose()
    wait_no_threads()


def test_dropped_handle_stops_the_generation_after_the_grace(fake: FakeOpenAI) -> None:
    """When the last handle is dropped, the generation is stopped after the grace period."""
    with Halt(config=fake_config(fake, orphan_grace=0.0)) as program:
        handle = program.generate("x", model="stall?n=1", id="dropped-handle")
        record = fake.wait_request()
        del handle
        gc.collect()
        assert record.closed.wait(WAIT_TIMEOUT)
        terminal = program.get("dropped-handle").result().terminal
        assert isinstance(terminal, Cancelled)
        assert terminal.reason == "no_viewer"
    wait_no_threads()


# --- close ----------------------------------------------------------------------------------------


def test_close_interrupts_all_generations_and_leaves_no_thread(fake: FakeOpenAI) -> None:
    """Closing ends each generation as interrupted for readers and callbacks and leaves no
    thread."""
    callbacks, program = RecordedCallbacks(), Halt(config=fake_config(fake))
    silent_generation = program.generate("x", model="silent_headers")
    stalled_generation = program.generate("x", model="stall?n=2", **callbacks.all())
    waiting_call = BackgroundCall(silent_generation.result)
    wait_until(lambda: callbacks.text == "0 1 ")
    program.close()
    assert not [name for name in halt_threads() if name.startswith("halt-follow")]
    assert callbacks.names[-1] == "error"
    fault = waiting_call.end()
    assert isinstance(fault, GenerationError)
    assert (fault.code, callbacks.calls[-1][1].code) == ("interrupted", "interrupted")
    assert complete_text(list(stalled_generation)) == "0 1 "
    program.close()
    wait_no_threads()
    assert all(record.closed.wait(WAIT_TIMEOUT) for record in fake.requests)


def test_callback_may_close_halt(fake: FakeOpenAI) -> None:
    """`close` inside a callback waits for all threads except its own."""
    program, closed = Halt(config=fake_config(fake)), threading.Event()

    def complete(_: Result) -> None:
        program.close()
        closed.set()

    program.generate("hello", on_complete=complete)
    assert closed.wait(WAIT_TIMEOUT)
    wait_no_threads()


def test_close_logs_a_callback_that_does_not_return(
    fake: FakeOpenAI, caplog: pytest.LogCaptureFixture
) -> None:
    """Waiting for callbacks has a time limit, and a callback that still runs is logged."""
    program = Halt(config=fake_config(fake, graceful_timeout=1))
    has_begun, may_return = threading.Event(), threading.Event()

    def complete(_: Result) -> None:
        has_begun.set()
        may_return.wait(WAIT_TIMEOUT)

    program.generate("hello", on_complete=complete)
    assert has_begun.wait(WAIT_TIMEOUT)
    program.close()
    assert "is still in a callback" in caplog.text
    may_return.set()
    program.close()
    wait_no_threads()


# --- races ----------------------------------------------------------------------------------------


def test_concurrent_stop_end_and_close_leave_one_terminal_event() -> None:
    """Property: a Stop, the end and `close` at once leave one terminal event and one last callback."""
    for number in range(60):
        upstream, callbacks = ScriptedUpstream(), RecordedCallbacks()
        program = scripted_halt(upstream)
        gen = program.generate("x", **callbacks.all())
        reply = upstream.reply()
        reply.feed("a")
        reply.end()
        ends: list[Callable[[], Any]] = [gen.stop, program.close][number % 2 :]
        *_, first, second = together(*ends, lambda: list(gen), lambda: list(gen))
        program.close()
        assert first == second == list(gen)
        complete_text(first)
        assert callbacks.ended.wait(WAIT_TIMEOUT)
        wait_no_threads()
        last_type = "error" if isinstance(first[-1], Failed) else "complete"
        assert [name for name in callbacks.names if name != "token"] == [last_type]
        upstream.dispose()


# --- tools ----------------------------------------------------------------------------------------


def feed_tool_call(reply: ScriptedReply, name: str, arguments: str, usage: int) -> None:
    """The model calls a tool and ends its round."""
    reply.finish_reason, reply.usage = "tool_calls", {"completion_tokens": usage}
    end_part = Part(ended=True)  # the body is read behind its end
    reply.feed(Part((ToolCall("call_1", name, arguments),), 1, ended=True), end_part)


def test_function_tool_runs_and_the_model_continues() -> None:
    """A typed function runs when the model calls it, and its result goes back to the model."""

    def warmth(city: str) -> str:
        """Say how warm it is in a city."""
        if city == "Atlantis":
            raise ToolError("There is no such city.")
        return f"20 degrees in {city}"

    upstream = ScriptedUpstream()
    config = Config(base_url="http://scripted/v1")
    with Halt(config=config, upstream=upstream, tools=[warmth]) as program:
        gen = program.generate("x")
        events: list[Event] = []
        reader = BackgroundCall(lambda: events.extend(gen))
        upstream.reply().feed("Let me see.")
        feed_tool_call(upstream.reply(), "warmth", '{"city": "Rome"}', 3)
        second = upstream.reply(1)
        second.feed("Warm.")
        second.end(usage={"completion_tokens": 4})
        reader.end()
        results = [event for event in events if isinstance(event, ToolResult)]
        assert [(r.result, r.ok) for r in results] == [("20 degrees in Rome", True)]
        assert gen.result().text == "Let me see.\n\nWarm."
        assert gen.result().usage == {"completion_tokens": 7}
        program.generate("x", tools=[]).cancel()
        upstream.wait_requests(3)
    tool_names = [
        request.tools and request.tools[0]["function"]["name"] for request in upstream.requests
    ]
    assert tool_names == ["warmth", "warmth", None]
    upstream.dispose()
    wait_no_threads()


# --- settings and imports -------------------------------------------------------------------------


def test_halt_without_arguments_uses_the_environment(
    fake: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`Halt()` uses the environment's settings; arguments override them."""
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY", "HALT_MODEL"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="base_url or api_key"):
        Halt()
    with pytest.raises(ConfigError, match="is not an address"):
        Halt(base_url="example.org")
    monkeypatch.setenv("OPENAI_BASE_URL", fake.base_url)
    monkeypatch.setenv("HALT_MODEL", "count?n=2")
    with Halt() as program:
        assert program.generate("hello").result().text == "0 1 "
    with Halt(model="echo") as program:
        assert program.generate("hello").result().text == "hello"


def test_package_import_loads_the_library_on_demand() -> None:
    """Importing the package loads no client library; the library never loads Flask or gunicorn."""
    code = """
import sys, halt, halt.providers.embedded_model
assert "openai" not in sys.modules and "msgspec" not in sys.modules
from halt import Halt
assert "openai" in sys.modules
assert not {"flask", "werkzeug", "gunicorn"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_public_names_are_available_and_typed() -> None:
    """Every name in `__all__` is available and no other, and the package is marked as typed."""
    for name in package.__all__:
        assert getattr(package, name).__name__ == name
        assert name in dir(package)
    assert not hasattr(package, "no_such_name")
    assert (ROOT / "halt" / "py.typed").exists()
    assert Generation.__doc__


def test_program_end_waits_for_the_callbacks(fake: FakeOpenAI) -> None:
    """A script that reaches its end still runs all callbacks of its generation."""
    code = """
from halt import Halt
Halt().generate("hello there", on_token=lambda t: print(t, end=""), on_complete=lambda r: print())
"""
    env = halt_environment({"OPENAI_BASE_URL": fake.base_url, "HALT_MODEL": "echo?gap_ms=20"})
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=True
    )
    assert (process.stdout, process.stderr) == ("hello there\n", "")
