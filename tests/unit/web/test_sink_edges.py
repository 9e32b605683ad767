"""A client's socket at the relay: silence, a worker that leaves, a refusal of the selector."""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import threading
import warnings
from collections.abc import Callable, Iterator
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest

from halt.config.settings import Config
from halt.core import relay as relay_module
from halt.core.events import FINAL_FRAME
from halt.core.generation import Generation
from halt.core.relay import Departure, Relay
from halt.core.request import ChatRequest
from halt.core.service import GenerationService
from halt.core.stop import StopRegistry
from halt.core.stream_key import StreamKey
from halt.web.event_stream import EventStream, TextStream, json_frames
from halt.web.sink import Sink
from tests.support.cluster_workers import StartWorker
from tests.support.raw_server import receive_until
from tests.support.scripted_upstream import HI, ScriptedUpstream
from tests.support.waiting import WAIT_TIMEOUT, BackgroundCall, wait_until

BIG = "x" * 10_000


@pytest.fixture
def scripted() -> Iterator[tuple[GenerationService, ScriptedUpstream]]:
    upstream = ScriptedUpstream()
    generations = GenerationService(
        Config(orphan_grace=1e9, heartbeat=0.01), upstream, StopRegistry()
    )
    yield generations, upstream
    generations.close()
    upstream.dispose()


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The server's end of a connection, and the client's."""
    server, client = socket.socketpair()
    with server, client:
        client.settimeout(WAIT_TIMEOUT)
        yield server, client


def response(server: socket.socket) -> Any:
    """The attributes of gunicorn's response that a sink uses."""
    return SimpleNamespace(sock=server, sent=0)


def make_event_stream(generations: GenerationService, run: Generation) -> EventStream:
    return EventStream(generations, run, None, 0, json_frames, empty_message=FINAL_FRAME)


def is_full(sock: socket.socket) -> bool:
    """Whether the kernel takes no more bytes for the socket's peer."""
    poller = select.poll()
    poller.register(sock, select.POLLOUT)
    return not poller.poll(0)


def test_text_stream_in_silence_wakes_the_relay_once_a_heartbeat(
    scripted: tuple[GenerationService, ScriptedUpstream],
    ends: tuple[socket.socket, socket.socket],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A silent text stream wakes the relay once in a heartbeat, although its comment is empty."""
    generations, upstream = scripted
    run = generations.start(ChatRequest(HI))
    upstream.reply()
    due_times: list[float] = []
    set_timer = generations.relay.at

    def noting_at(time: float, work: Callable[[], None]) -> Any:
        if getattr(work, "__name__", "") == "_beat":
            due_times.append(time)
        return set_timer(time, work)

    monkeypatch.setattr(generations.relay, "at", noting_at)
    with TextStream(generations, run, None) as stream:
        sink = Sink(stream, response(ends[0]))
        wait_until(lambda: len(due_times) > 10)
        steps = [later - earlier for earlier, later in pairwise(due_times)]
        assert min(steps) >= 0.9 * generations.config.heartbeat
        run.cancel("stop")
        assert BackgroundCall(sink.wait).end() is None


@pytest.mark.parametrize("is_behind", [False, True], ids=["up to date", "behind"])
def test_reader_of_a_leaving_worker_ends_with_a_whole_response(
    start_worker: StartWorker,
    ends: tuple[socket.socket, socket.socket],
    monkeypatch: pytest.MonkeyPatch,
    is_behind: bool,
) -> None:
    """A worker that leaves ends its readers of another worker's stream with a whole response."""
    monkeypatch.setattr("halt.cluster.service.LEAVE_GRACE", -1.0)
    producer, leaving_worker = start_worker(), start_worker()
    run, _ = producer.start("a-stream", *([BIG] * 60 if is_behind else ["one "]))
    remote = leaving_worker.service.get(StreamKey("", "a-stream"))
    server, client = ends
    with make_event_stream(leaving_worker.service, remote) as stream:
        sink = Sink(stream, response(server))
        waiting_call = BackgroundCall(sink.wait)
        if is_behind:
            wait_until(lambda: is_full(server))
        else:
            receive_until(client, b'"one "}\n\n\r\n')
        leaving_worker.workers.leave()
        if is_behind:
            posts_are_done = threading.Event()
            leaving_worker.service.relay.post(posts_are_done.set)
            assert posts_are_done.wait(WAIT_TIMEOUT)
            client.setblocking(False)
            received = 0

            def is_over() -> bool:
                nonlocal received
                with contextlib.suppress(BlockingIOError):
                    received += len(client.recv(65_536))
                return not waiting_call.is_alive()

            wait_until(is_over)
            assert received > len(BIG)
        assert waiting_call.end() is None
        assert waiting_call.result is True, "the response ends as a whole one"
    assert run.state == "running"


def test_socket_refused_by_the_selector_ends_its_reader_alone(
    scripted: tuple[GenerationService, ScriptedUpstream],
    ends: tuple[socket.socket, socket.socket],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A socket that the selector refuses ends its reader; the relay and the run go on."""
    generations, upstream = scripted
    run = generations.start(ChatRequest(HI))
    upstream.reply().wait_reads()

    def refuse_socket(*_: object) -> None:
        raise OSError(errno.ENOSPC, "max_user_watches")

    with make_event_stream(generations, run) as stream:
        with monkeypatch.context() as patch:
            patch.setattr(generations.relay, "watch", refuse_socket)
            waiting_call = BackgroundCall(Sink(stream, response(ends[0])).wait)
            assert waiting_call.end() is None
        assert waiting_call.result is False
    assert generations.relay.is_running
    assert run.state == "running"


def test_departure_cancelled_between_two_checks_closes_its_descriptor(
    ends: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A departure cancelled while it waits for its next check leaves no open descriptor."""
    monkeypatch.setattr(relay_module, "PIPELINED_LOOK", WAIT_TIMEOUT)
    relay, is_waiting = Relay(lambda _: None), threading.Event()
    set_timer = relay.at

    def noting_at(time: float, work: Callable[[], None]) -> Any:
        timer = set_timer(time, work)
        is_waiting.set()
        return timer

    monkeypatch.setattr(relay, "at", noting_at)
    server, client = ends
    client.send(b"GET")
    departure = Departure(relay, server, lambda: None)
    relay.start()
    with warnings.catch_warnings(record=True) as caught_warnings:
        warnings.simplefilter("always")
        assert is_waiting.wait(WAIT_TIMEOUT)
        departure.cancel()
        relay.close(WAIT_TIMEOUT)
    assert caught_warnings == []
