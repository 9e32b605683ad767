"""Runs without a service: scripted upstreams, a real relay, and the end of each run."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from halt.config.settings import Config
from halt.core.events import Failed
from halt.core.relay import Relay
from halt.core.request import ChatRequest, Part, Upstream
from halt.core.run import Run
from halt.core.serial import Serial
from halt.core.stream_key import StreamKey
from halt.core.tools import Toolbox
from halt.errors import CODES, UpstreamError
from tests.support.scripted_upstream import HI, Reader, ScriptedReply, ScriptedUpstream
from tests.support.waiting import WAIT_TIMEOUT, BackgroundCall, wait_until

ENDLESS = {"run_timeout": 1e9, "first_byte_timeout": 1e9, "gap_timeout": 1e9, "orphan_grace": 1e9}


class RunHost:
    """The host of one run; the harness owns its threads."""

    def __init__(self, harness: RunHarness, upstream: Upstream, config: Config) -> None:
        self.config = config
        self.upstream = upstream
        self.relay = harness.relay
        self._harness = harness

    def spawn(self, run: Run, work: Callable[[], None]) -> bool:
        return self._harness.spawn(run, work)

    def later(self, work: Callable[[], None]) -> None:
        self._harness.keeper.put(work)

    def release_place(self, run: Run) -> None:
        if run not in self._harness.released:  # it may be called twice
            self._harness.released.append(run)


class RunHarness:
    """Creates runs on scripted upstreams; records which ended and which released their place."""

    def __init__(self) -> None:
        self.ended: list[Run] = []  # in the order of their `on_end`
        self.released: list[Run] = []
        self.upstreams: list[ScriptedUpstream] = []
        self.tools: Toolbox | None = None  # that the runs offer to the model
        self.faults: list[BaseException] = []  # raised in the relay's thread
        self.relay = Relay(self.faults.append)
        self.keeper = Serial("keeper")
        self._started: list[Run] = []
        self.threads: list[BackgroundCall] = []

    def new_run(
        self, upstream: ScriptedUpstream | None = None, **settings: Any
    ) -> tuple[Run, ScriptedUpstream]:
        """A run that has not started, and its upstream; `settings` are fields of Config."""
        upstream = upstream or ScriptedUpstream()
        self.upstreams.append(upstream)
        host = RunHost(self, upstream, Config(**{**ENDLESS, **settings}))
        return self.new_run_of(host, ChatRequest(HI, model="asked-1")), upstream

    def new_run_of(self, host: RunHost, request: ChatRequest) -> Run:
        """A run of this request that has not started."""
        return Run(StreamKey("", "a-stream"), request, host, self.ended.append, self.tools)

    def spawn(self, run: Run, work: Callable[[], None]) -> bool:
        """Do a run's work in a new thread; always True."""
        self.threads.append(BackgroundCall(work))
        return True

    def work_in_this_thread(self, run: Run) -> None:
        """Do the work of a run's first thread in this thread."""
        self.start_threads()
        if run not in self._started:
            self._started.append(run)
        run.check_limits_soon()
        run.work()

    def start_threads(self) -> None:
        """Start the threads that serve all runs."""
        self.relay.start()
        self.keeper.start()

    def start_run(self, run: Run) -> Run:
        """Start a new run in a thread; return the run."""
        self.start_threads()
        self._started.append(run)
        self.threads.append(BackgroundCall(lambda: self.work_in_this_thread(run)))
        return run

    def run_with_parts(
        self, *parts: str | Part | UpstreamError, later_replies: tuple[ScriptedReply, ...] = ()
    ) -> tuple[Run, ScriptedReply]:
        """A run that has not started, its reply already fed with `parts`, for races.

        All earlier runs of the harness are ended first. `later_replies`: the replies to later requests.
        """
        self.clear()
        reply = ScriptedReply()
        reply.feed(*parts)
        run, _ = self.new_run(ScriptedUpstream(reply, *later_replies))
        self.start_threads()
        return run, reply

    def started_run(
        self, upstream: ScriptedUpstream | None = None, **settings: Any
    ) -> tuple[Run, ScriptedUpstream]:
        """A started run, whose upstream is being opened."""
        run, upstream = self.new_run(upstream, **settings)
        return self.start_run(run), upstream

    def opened_run(self, **settings: Any) -> tuple[Run, ScriptedReply]:
        """A started run whose upstream is open, and its reply."""
        run, upstream = self.started_run(**settings)
        return run, upstream.reply()

    def watched_run(self, **settings: Any) -> tuple[Run, ScriptedReply, Reader]:
        """A started run whose viewer has received the text "a"."""
        run, reply = self.opened_run(**settings)
        reader = Reader(run)
        reply.feed("a")
        reader.wait_text("a")
        return run, reply, reader

    def check_limits(self, run: Run) -> None:
        """Let the relay check the run's limits; return after the check."""
        has_checked = threading.Event()
        run.check_limits_soon()
        self.relay.post(has_checked.set)
        assert has_checked.wait(WAIT_TIMEOUT)

    def wait_released(self, *runs: Run) -> None:
        """Wait until exactly these runs have released their places, in this order."""
        wait_until(lambda: self.released == list(runs))

    def clear(self) -> None:
        """End all runs, threads and upstreams."""
        for run in self._started:
            run.cancel("stop")
        for thread in self.threads:
            thread.end()
        wait_until(lambda: set(self.released) >= set(self._started))
        for upstream in self.upstreams:
            upstream.dispose()
        for items in (self.upstreams, self.threads, self._started, self.ended, self.released):
            items.clear()

    def close(self) -> None:
        """End the test: clear, stop the threads, and require that the relay had no fault."""
        try:
            self.clear()
        finally:
            self.relay.close(WAIT_TIMEOUT)
            self.keeper.close(WAIT_TIMEOUT)
        assert self.faults == []


def wait_ended(run: Run) -> None:
    assert run.switch.event.wait(WAIT_TIMEOUT), f"{run} does not end"
    wait_until(lambda: run.log.ended is not None)


def failure_code(run: Run) -> str:
    """Wait until the run has failed; return the error code."""
    wait_ended(run)
    ended = run.log.ended
    assert isinstance(ended, Failed), ended
    assert ended.error.message.startswith(CODES[ended.error.code][0])
    return ended.error.code


def error_code(fault: UpstreamError | None) -> str | None:
    """The error's code, None for no error."""
    return None if fault is None else fault.code
