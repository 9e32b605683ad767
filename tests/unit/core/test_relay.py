"""The relay: fair among streams, quick for a Stop, replaced when it fails, one in each process.

Scripted models where the order matters, real servers for data over a connection.
"""

from __future__ import annotations

import contextlib
import gzip
import http.client
import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from halt.clock import now
from halt.config.settings import Config
from halt.core import keeper as module
from halt.core import run as run_module
from halt.core.events import Failed, ToolCall
from halt.core.relay import READ, Relay
from halt.core.request import ChatRequest, Part
from halt.core.run import Run
from halt.core.service import GenerationService
from halt.core.stop import StopRegistry
from halt.core.tools import Toolbox
from halt.errors import Draining
from halt.providers.chat_completions import ChatDecoder
from halt.providers.factory import make_upstream
from halt.testing.fake_openai import FakeOpenAI
from halt.transport.http1 import INFLATED_MAX, Body
from tests.support.faulty_server import FaultyServer
from tests.support.halt_server import halt_environment
from tests.support.library_halt import fake_config, halt_threads
from tests.support.raw_server import OK, Peer, RawServer
from tests.support.scripted_upstream import HI, Reader, ScriptedReply, ScriptedUpstream, text_part
from tests.support.stores import saved_events
from tests.support.waiting import SERVER_TIMEOUT, WAIT_TIMEOUT, BackgroundCall, wait_until
from tests.support.watched_selector import start_watched

FLOODS = 20


class FloodReply(ScriptedReply):
    """A model that always has more text to read."""

    def __init__(self, order: list[str]) -> None:
        super().__init__()
        self._order = order
        self.may_read = threading.RLock()  # a test that holds it stops the reads
        self.feed("a")

    @property
    def pending(self) -> bool:
        return True

    def next_part(self, timeout: float) -> Part:
        with self.may_read:
            self._order.append("flood")
        return text_part("x")


class RecordedClose(ScriptedReply):
    """A reply that records its close among the reads of others."""

    def __init__(self, order: list[str]) -> None:
        super().__init__()
        self._order = order

    def close(self) -> None:
        self._order.append("closed")
        super().close()


Make = Callable[..., GenerationService]


@pytest.fixture
def make() -> Iterator[Make]:
    """Services on a scripted or a real model; each is closed."""
    services: list[tuple[GenerationService, Any]] = []

    def make(upstream: Any, config: Config | None = None, **settings: Any) -> GenerationService:
        config = config or Config(**{"orphan_grace": 1e9, **settings})
        services.append((GenerationService(config, upstream, StopRegistry()), upstream))
        return services[-1][0]

    yield make
    for generations, upstream in services:
        generations.close()
        if isinstance(upstream, ScriptedUpstream):
            upstream.dispose()


def wait_run_end(run: Run) -> Run:
    wait_until(lambda: run.log.ended is not None)
    return run


# --- the loop -------------------------------------------------------------------------------------


def test_relay_does_posts_in_their_order(relay: Relay) -> None:
    """Posts are done in order, also those of the relay thread itself and those during others."""
    order: list[int] = []
    has_ended = threading.Event()

    def post_two() -> None:
        order.append(1)
        relay.post(lambda: order.append(3))
        relay.post(has_ended.set)

    may_continue = threading.Event()

    def block_relay() -> None:
        assert may_continue.wait(WAIT_TIMEOUT)

    relay.post(block_relay)
    relay.post(post_two)
    relay.post(lambda: order.append(2))
    may_continue.set()
    assert has_ended.wait(WAIT_TIMEOUT)
    assert order == [1, 2, 3]


@pytest.mark.parametrize("kind", ["works", "sockets"])
def test_relay_takes_posts_between_the_works_of_one_turn(relay: Relay, kind: str) -> None:
    """A Stop waits neither for readable sockets nor for the works of the turn before."""
    order: list[str] = []
    has_ended = threading.Event()
    pairs = [socket.socketpair() for _ in range(FLOODS)]

    def busy(number: int, _: int = 0) -> None:
        if not order:  # as another thread does, while this one works
            BackgroundCall(lambda: relay.post(lambda: order.append("stop"))).end()
        order.append(f"busy {number}")
        if kind == "sockets":
            relay.unwatch(pairs[number][0])
        if len(order) == FLOODS + 1:
            has_ended.set()

    def watch_pairs() -> None:
        for number, (near_socket, far_socket) in enumerate(pairs):
            if kind == "works":
                relay.call_next_turn(partial(busy, number))
            else:
                far_socket.send(b"!")
                relay.watch(near_socket, READ, partial(busy, number))

    relay.post(watch_pairs)
    assert has_ended.wait(WAIT_TIMEOUT)
    assert order.index("stop") == 1
    for near_socket, far_socket in pairs:
        near_socket.close()
        far_socket.close()


def test_relay_timers_are_called_by_time_except_cancelled_ones(relay: Relay) -> None:
    """Each due timer is called once, in the order of the times."""
    called_names: list[str] = []
    has_ended = threading.Event()

    def set_timers() -> None:
        start = now()
        relay.at(start + 0.02, lambda: called_names.append("second"))
        relay.at(start + 0.01, lambda: called_names.append("first"))
        relay.at(start + 0.015, lambda: called_names.append("cancelled")).cancel()
        relay.at(start + 0.03, has_ended.set)

    relay.post(set_timers)
    assert has_ended.wait(WAIT_TIMEOUT)
    assert called_names == ["first", "second"]


def test_relay_without_work_makes_no_turn() -> None:
    """The relay waits in its selector while there is nothing to do."""
    faults: list[BaseException] = []
    relay = Relay(faults.append)
    selector = start_watched(relay)
    has_started = threading.Event()
    relay.post(has_started.set)
    assert has_started.wait(WAIT_TIMEOUT)
    turns_before = selector.turns
    assert not threading.Event().wait(0.2)
    assert selector.turns - turns_before <= 1
    relay.close(WAIT_TIMEOUT)
    assert faults == []


# --- many runs ------------------------------------------------------------------------------------


def test_runs_without_readers_have_no_thread_of_their_own(make: Make) -> None:
    """The one relay reads 200 runs; a run has a thread only while it is opened."""
    upstream = ScriptedUpstream()
    generations = make(upstream, max_streams=200)
    runs = [generations.start(ChatRequest(HI)) for _ in range(200)]
    replies = [upstream.reply(n) for n in range(200)]
    wait_until(lambda: not [name for name in halt_threads() if name.startswith("halt-run")])
    for reply in replies:
        reply.feed("a")
    wait_until(lambda: all(run.log.last == 1 for run in runs))
    wait_until(lambda: sorted(halt_threads()) == ["halt-keeper", "halt-relay"])
    assert {name for reply in replies for name in reply.readers} == {"halt-relay"}


def test_stop_waits_for_at_most_one_read_of_a_flood(make: Make) -> None:
    """Models that send without pause are read at most once more before a Stop closes its
    connection."""
    order: list[str] = []
    floods = [FloodReply(order) for _ in range(FLOODS)]
    upstream = ScriptedUpstream(*floods)
    generations = make(upstream, max_answer_chars=10**9, log_bytes=100_000)
    for n in range(FLOODS):
        generations.start(ChatRequest(HI))
        upstream.reply(n)
    reply = RecordedClose(order)
    upstream.add(reply)
    run = generations.start(ChatRequest(HI))
    upstream.reply(FLOODS)
    reply.feed("b")
    wait_until(lambda: run.log.last == 1)
    wait_until(lambda: len(order) > 10 * FLOODS)
    post = generations.relay.post

    def post_without_reads(work: Callable[[], None]) -> None:
        with contextlib.ExitStack() as stack:  # no flood is read between the entry and the post
            for flood in floods:
                stack.enter_context(flood.may_read)
            if run.log.ended is not None:
                order.append("posted")
            post(work)

    generations.relay.post = post_without_reads  # type: ignore[method-assign]
    run.cancel("stop")
    assert reply.over.wait(WAIT_TIMEOUT)
    calls_between = order[order.index("posted") : order.index("closed")]
    assert calls_between.count("flood") <= 2


def test_relay_reads_streams_in_turns(make: Make) -> None:
    """A stream whose text has all arrived is read no more often than its neighbour."""
    order: list[str] = []
    flood = FloodReply(order)
    reply = ScriptedReply()
    upstream = ScriptedUpstream(flood, reply)
    generations = make(upstream, max_answer_chars=10**9, log_bytes=100_000)
    generations.start(ChatRequest(HI))
    upstream.reply(0)
    run = generations.start(ChatRequest(HI))
    upstream.reply(1)
    may_continue, is_held = threading.Event(), threading.Event()

    def block_relay() -> None:
        is_held.set()
        assert may_continue.wait(WAIT_TIMEOUT)

    generations.relay.post(block_relay)
    assert is_held.wait(WAIT_TIMEOUT)
    reply.feed("1", "2", "3")
    reads_before = len(order)
    may_continue.set()
    wait_until(lambda: run.log.last == 3)
    flood_reads = len(order) - reads_before
    assert len(run.timed_texts(0, 3)) == 3
    assert flood_reads >= 2, "the flood was read between the other's reads"


# --- over a wire ----------------------------------------------------------------------------------


def event(text: str) -> bytes:
    chunk = b'{"choices":[{"index":0,"delta":{"content":"%b"}}]}'
    return b"data: " + chunk % text.encode() + b"\n\n"


def test_inflated_megabytes_are_read_in_turns_of_64_kb(  # noqa: PLR0915
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between 64 kB parts of a gzip body others are read, and a Stop ends it."""
    compressed = gzip.compress(event("x" * 1000) * 8_000, 9)
    head = OK + b"Content-Type: text/event-stream\r\n"
    may_send = threading.Event()

    def send_bomb(peer: Peer) -> None:
        peer.request()
        length = b"Content-Length: %d\r\n" % (len(compressed) + 1)
        peer.send(head + b"Content-Encoding: gzip\r\n" + length + b"\r\n" + compressed)
        peer.wait_client_left()

    def send_plain(peer: Peer) -> None:
        peer.request()
        peer.send(head + b"Connection: close\r\n\r\n" + event("first"))
        may_send.wait(WAIT_TIMEOUT)
        peer.send(event("second"))
        peer.wait_client_left()

    reads: list[tuple[int, int]] = []  # body, bytes
    bodies: list[int] = []
    is_stopping, has_stopped = threading.Event(), threading.Event()
    original_read = Body.read

    def watched_read(self: Body) -> bytes:
        if threading.current_thread().name != "halt-relay":
            return original_read(self)
        if id(self) not in bodies:
            bodies.append(id(self))
        number = bodies.index(id(self))
        data = original_read(self)
        reads.append((number, len(data)))
        turns = [body for body, _ in reads].count(1)
        if number == 1 and turns == 3:  # the other server sends now
            may_send.set()
            assert readable(descriptors[0])
        if number == 1 and turns == 10:
            is_stopping.set()
            assert has_stopped.wait(WAIT_TIMEOUT)
        return data

    descriptors: list[int] = []
    with RawServer(send_plain, send_bomb) as server:
        config = Config(base_url=server.url, api_key="k", model="m", orphan_grace=1e9)
        generations = make(make_upstream(config), config)
        monkeypatch.setattr(Body, "read", watched_read)
        neighbour = generations.start(ChatRequest(HI))
        wait_until(lambda: neighbour.log.last == 1)
        assert neighbour.reply is not None
        descriptors.append(neighbour.reply.fileno())
        run = generations.start(ChatRequest(HI))
        assert is_stopping.wait(WAIT_TIMEOUT)
        is_posted, post = threading.Event(), generations.relay.post

        def noting_post(work: Callable[[], None]) -> None:
            post(work)
            if run.log.ended is not None:
                is_posted.set()

        monkeypatch.setattr(generations.relay, "post", noting_post)
        receipt = BackgroundCall(lambda: generations.stop(run.key))
        assert is_posted.wait(WAIT_TIMEOUT)
        has_stopped.set()
        assert receipt.end() is None
        assert run.connection.wait_closed(WAIT_TIMEOUT) == "closed"
        wait_until(lambda: neighbour.log.last == 2)
        generations.stop(neighbour.key)
    sizes = [size for number, size in reads if number == 1]
    assert max(sizes) == INFLATED_MAX
    assert len(sizes) == 10, "nothing is read behind a Stop"
    body_order = [number for number, _ in reads]
    third_read = [n for n, number in enumerate(body_order) if number == 1][2]
    assert 0 in body_order[third_read : third_read + 4], "the neighbour waits for one turn"


@pytest.mark.parametrize("ends", [True, False])
def test_relay_waits_shortly_for_the_end_of_an_answers_framing(
    make: Make, fake: FakeOpenAI, monkeypatch: pytest.MonkeyPatch, ends: bool
) -> None:
    """The relay waits for the framing's end, so that the connection can serve the next run; not for
    long."""
    monkeypatch.setattr(run_module, "DRAIN_SECONDS", WAIT_TIMEOUT if ends else 0.05)
    config = fake_config(fake)
    generations = make(make_upstream(config), config)
    run = wait_run_end(generations.start(ChatRequest(HI, model="late_terminator?n=2")))
    assert run.state == "done"
    if ends:
        assert generations.open_streams == 1, "its connection is in use still"
        fake.requests[0].release()
    else:
        assert fake.requests[0].closed.wait(WAIT_TIMEOUT)
    wait_until(lambda: generations.open_streams == 0)
    wait_run_end(generations.start(ChatRequest(HI, model="count?n=2")))
    assert [record.connection for record in fake.requests] == [1, 1 if ends else 2]


@pytest.mark.parametrize("ends", [True, False])
def test_relay_waits_shortly_for_the_end_of_a_rounds_framing(
    make: Make, fake: FakeOpenAI, monkeypatch: pytest.MonkeyPatch, ends: bool
) -> None:
    """The relay waits before the tools run, so that the connection can serve the next round."""
    monkeypatch.setattr(run_module, "DRAIN_SECONDS", WAIT_TIMEOUT if ends else 0.05)
    config = fake_config(fake)
    generations = make(make_upstream(config), config)
    has_started = threading.Event()

    def tool(city: str) -> str:
        has_started.set()
        return city

    model = "asks_tools?calls=1&late=1"
    run = generations.start(ChatRequest(HI, model=model), tools=Toolbox([tool]))
    if ends:
        wait_until(lambda: any(isinstance(event, ToolCall) for _, event in run.log.read(0)))
        assert not has_started.wait(0.1), "its connection is in use still"
        fake.requests[0].release()
    else:
        assert fake.wait_request().closed.wait(WAIT_TIMEOUT)
    assert wait_run_end(run).state == "done"
    assert has_started.is_set()
    assert [record.connection for record in fake.requests] == [1, 1 if ends else 2]


@pytest.mark.parametrize("cause", ["stop", "counted", "limit", "left"])
def test_end_during_a_rounds_framing_starts_no_tool(
    make: Make, fake: FakeOpenAI, monkeypatch: pytest.MonkeyPatch, cause: str
) -> None:
    """A run that ends during a round's framing starts no tool and closes its connection; received
    usage is reported.
    """
    monkeypatch.setattr(run_module, "DRAIN_SECONDS", WAIT_TIMEOUT)
    config = fake_config(fake, exact_usage=True, gap_timeout=1_000.0)
    generations = make(make_upstream(config), config)
    cities: list[str] = []
    usages: list[dict[str, Any]] = []

    def tool(city: str) -> str:
        cities.append(city)
        return city

    run = generations.start(
        ChatRequest(HI, model="asks_tools?calls=1&late=1"),
        tools=Toolbox([tool]),
        on_usage=(lambda _, usage: usages.append(usage)) if cause == "counted" else None,
        grace=0 if cause == "left" else None,
    )
    viewer = run.join()
    wait_until(lambda: any(isinstance(event, ToolCall) for _, event in run.log.read(0)))
    if cause == "left":
        run.leave(viewer)
    elif cause == "limit":
        run.meter.last_at -= 1_001.0
        run.check_limits_soon()
    else:
        generations.stop(run.key)
    assert wait_run_end(run).state == ("error" if cause == "limit" else "cancelled")
    assert fake.requests[0].closed.wait(WAIT_TIMEOUT)
    wait_until(lambda: generations.open_streams == 0 and run.reply is None)
    assert not cities
    if cause == "counted":
        wait_until(lambda: len(usages) == 1)


def readable(number: int) -> bool:
    """Wait until this descriptor can be read."""
    poller = select.poll()
    poller.register(number, select.POLLIN)
    return bool(poller.poll(WAIT_TIMEOUT * 1000))


# --- faults ---------------------------------------------------------------------------------------


def test_exception_in_one_runs_turn_ends_that_run_alone(
    make: Make, fake: FakeOpenAI, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An exception in one run's turn fails that run and is logged; other runs and the
    relay go on.
    """
    feed = ChatDecoder.feed

    def failing_feed(self: ChatDecoder, raw: bytes) -> Part:
        if b'"7 "' in raw:
            raise ZeroDivisionError("in the decoder")
        return feed(self, raw)

    monkeypatch.setattr(ChatDecoder, "feed", failing_feed)
    config = fake_config(fake)
    generations = make(make_upstream(config), config)
    other_run = generations.start(ChatRequest(HI, model="stall?n=1"))
    wait_until(lambda: other_run.log.last == 1)
    failed_run = wait_run_end(generations.start(ChatRequest(HI, model="stall?n=8")))
    assert isinstance(failed_run.log.ended, Failed)
    assert failed_run.log.ended.error.code == "internal"
    assert "in the decoder" not in failed_run.log.ended.error.message
    wait_until(lambda: "ZeroDivisionError: in the decoder" in caplog.text)
    wait_until(lambda: generations.open_streams == 1)
    assert fake.requests[1].closed.wait(WAIT_TIMEOUT)
    fake.requests[0].release()
    assert wait_run_end(other_run).state == "done"


def assert_relay_failed(
    generations: GenerationService, runs: list[Run], caplog: pytest.LogCaptureFixture
) -> None:
    """Assert what holds in a program whose relay has failed."""
    for run in runs:
        assert isinstance(wait_run_end(run).log.ended, Failed)
        assert run.log.ended.error.code == "internal"  # type: ignore[union-attr]
    wait_until(lambda: generations.open_streams == 0)
    wait_until(lambda: "the relay has failed" in caplog.text)
    with pytest.raises(Draining):
        generations.start(ChatRequest(HI))


def test_relay_exception_fails_every_run_and_new_starts(
    make: Make, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """After an exception of the relay every open run fails with an event, and new starts are
    refused.
    """
    upstream = ScriptedUpstream()
    generations = make(upstream)
    runs = [generations.start(ChatRequest(HI)) for _ in range(3)]
    readers = [Reader(run) for run in runs]

    def fail() -> None:
        raise ZeroDivisionError("in the loop")

    for n in range(3):
        upstream.reply(n).wait_reads()
    generations.relay.post(fail)
    assert_relay_failed(generations, runs, caplog)
    assert "ZeroDivisionError: in the loop" in caplog.text
    for reader in readers:
        assert isinstance(reader.finish()[-1][1], Failed)


def test_relay_turn_without_end_counts_as_a_failed_relay(
    make: Make, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A turn of the relay that hangs is found by the keeper, which fails the runs."""
    upstream = ScriptedUpstream()
    generations = make(upstream)
    run = generations.start(ChatRequest(HI))
    upstream.reply().wait_reads()
    monkeypatch.setattr(module, "STALL_MAX", 0.1)  # set late: a slow machine's first turns are long
    may_continue = threading.Event()

    def block_relay() -> None:
        may_continue.wait(WAIT_TIMEOUT)

    generations.relay.post(block_relay)
    try:
        assert_relay_failed(generations, [run], caplog)
    finally:
        may_continue.set()


def test_keeper_gives_the_relay_up_after_two_looks_at_one_long_turn(
    caplog: pytest.LogCaptureFixture, make: Make
) -> None:
    """The keeper gives the relay up at its second look at one turn, since the process may have been
    paused.

    The failure is logged once.
    """
    generations = make(ScriptedUpstream())  # without threads: nothing is started
    relay = generations.relay
    for relay.turn_began in (0.0, 1.0, None, 1.0):
        generations.keeper.tick()
        assert not generations.draining
    for _ in range(3):
        generations.keeper.tick()
    assert generations.draining
    assert caplog.text.count("the relay has failed") == 1


@pytest.mark.parametrize("cause", ["raise", "stall"])
def test_worker_with_a_failed_relay_is_replaced(
    fake: FakeOpenAI, cause: str, tmp_path: Path
) -> None:
    """A worker with a failed relay prints all stacks and is replaced; the saved text can
    be read.
    """
    env = {"OPENAI_BASE_URL": fake.base_url, "OPENAI_API_KEY": "fake", "TEST_STALL_MAX": "0.2"}
    server = FaultyServer({**env, "HALT_DATA": str(tmp_path)})
    try:
        client = server.client()
        events = client.chat("stall?n=3", id="kept-in-log").until_text("0 1 2 ")
        last_id = int(events.seen[-1].id)
        wait_until(lambda: saved_events(tmp_path, "kept-in-log") == last_id, SERVER_TIMEOUT)
        with contextlib.suppress(http.client.HTTPException, OSError):  # the worker may be gone
            server.client().post(f"/break/{cause}")
        server.wait_printed("the relay has failed: (ZeroDivision|Timeout)Error")
        server.wait_printed(r"hread 0x[0-9a-f]+ \(most recent call first\)")
        server.wait_printed(r'halt/core/relay.py", line \d+ in _')
        server.wait_printed("exited with code 70")  # its accepted connections are closed with it
        events.close()
        replay = client.follow("kept-in-log").to_end()
        assert replay.text == "0 1 2 "
        assert replay.terminal["error"]["code"] == "interrupted"
        assert client.chat("count?n=2").to_end().text == "0 1 "
    finally:
        server.close()


FORKS = """
import os, sys, threading
from halt import Halt

program = Halt(base_url=sys.argv[1], api_key="k", model="echo")
assert program.generate("before").result().text == "before"
mine = program.generate("x", model="stall?n=2")
for event in mine:
    if mine.text == "0 1 ":
        break
child = os.fork()
if not child:
    text = program.generate("in the child").result(20).text
    with Halt(base_url=sys.argv[1], api_key="k", model="echo") as another:
        text += "; " + another.generate("in another").result(20).text
    print(text, [t.name for t in threading.enumerate() if "relay" in t.name], flush=True)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert mine.state == "running", mine.state
print("forked", flush=True)
sys.stdin.readline()
print(mine.result(20).text, flush=True)
print(program.generate("after").result(20).text, flush=True)
program.close()
"""


def test_child_process_has_its_own_relay(fake: FakeOpenAI) -> None:
    """A forked child can use the library that its parent uses, and disturbs none of the parent's
    runs."""
    with subprocess.Popen(
        [sys.executable, "-c", FORKS, fake.base_url],
        env=halt_environment({"PYTHONPATH": os.getcwd()}),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as program:
        assert program.stdin is not None
        assert program.stdout is not None
        first_lines = program.stdout.readline() + program.stdout.readline()
        if not first_lines.endswith("forked\n"):
            program.kill()
            pytest.fail(first_lines + program.stdout.read())
        assert first_lines == "in the child; in another ['halt-relay']\nforked\n"
        stalled_record = next(record for record in fake.requests if record.body["model"] != "echo")
        stalled_record.release()
        output, _ = program.communicate("\n", 3 * WAIT_TIMEOUT)
    assert output == "0 1 2 3 4 5 6 \nafter\n"
    assert program.returncode == 0
