"""Runs without a service: a scripted upstream, a real relay, and what became of each run."""

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
from halt.core.tools import Toolbox
from halt.errors import CODES, UpstreamError
from tests.support.scripted_upstream import HI, Reader, ScriptedReply, ScriptedUpstream
from tests.support.waiting import WAIT_TIMEOUT, BackgroundCall, wait_until

ENDLESS = {"run_timeout": 1e9, "first_byte_timeout": 1e9, "gap_timeout": 1e9, "orphan_grace": 1e9}


class RunHost:
    """The host of one run; its threads are the stage's."""

    def __init__(self, stage: RunHarness, upstream: Upstream, config: Config) -> None:
        self.config = config
        self.upstream = upstream
        self.relay = stage.relay
        self._stage = stage

    def spawn(self, run: Run, work: Callable[[], None]) -> bool:
        return self._stage.spawn(run, work)

    def later(self, work: Callable[[], None]) -> None:
        self._stage.keeper.put(work)

    def release_place(self, run: Run) -> None:
        if run not in self._stage.released:  # it may be told twice
            self._stage.released.append(run)


class RunHarness:
    """Makes runs on scripted upstreams and knows what became of them."""

    def __init__(self) -> None:
        self.ended: list[Run] = []  # in the order of their `on_end`
        self.released: list[Run] = []
        self.upstreams: list[ScriptedUpstream] = []
        self.tools: Toolbox | None = None  # what the runs offer
        self.faults: list[BaseException] = []  # of the relay itself
        self.relay = Relay(self.faults.append)
        self.keeper = Serial("keeper")
        self._begun: list[Run] = []
        self.threads: list[BackgroundCall] = []

    def make(
        self, upstream: ScriptedUpstream | None = None, **settings: Any
    ) -> tuple[Run, ScriptedUpstream]:
        """A run that has not begun."""
        upstream = upstream or ScriptedUpstream()
        self.upstreams.append(upstream)
        host = RunHost(self, upstream, Config(**{**ENDLESS, **settings}))
        return self.run(host, ChatRequest(HI, model="asked-1")), upstream

    def run(self, host: RunHost, request: ChatRequest) -> Run:
        """The same, of a request."""
        return Run("a-stream", request, host, None, self.ended.append, self.tools)

    def spawn(self, run: Run, work: Callable[[], None]) -> bool:
        """A thread for what a run wants done."""
        self.threads.append(BackgroundCall(work))
        return True

    def work(self, run: Run) -> None:
        """Do in this thread what a run's first thread does."""
        self.start_threads()
        if run not in self._begun:
            self._begun.append(run)
        run.check_limits_soon()
        run.work()

    def start_threads(self) -> None:
        """The threads that serve all runs."""
        self.relay.start()
        self.keeper.start()

    def set_off(self, run: Run) -> Run:
        """Begin a run that was made, in a thread."""
        self.start_threads()
        self._begun.append(run)
        self.threads.append(BackgroundCall(lambda: self.work(run)))
        return run

    def race(
        self, *fed: str | Part | UpstreamError, then: tuple[ScriptedReply, ...] = ()
    ) -> tuple[Run, ScriptedReply]:
        """A run that has not begun, its whole answer there already; the only one on stage."""
        self.clear()
        reply = ScriptedReply()
        reply.feed(*fed)
        run, _ = self.make(ScriptedUpstream(reply, *then))
        self.start_threads()
        return run, reply

    def begin(
        self, upstream: ScriptedUpstream | None = None, **settings: Any
    ) -> tuple[Run, ScriptedUpstream]:
        """A run whose upstream is being opened."""
        run, upstream = self.make(upstream, **settings)
        return self.set_off(run), upstream

    def running(self, **settings: Any) -> tuple[Run, ScriptedReply]:
        """A run whose upstream was opened."""
        run, upstream = self.begin(**settings)
        return run, upstream.reply()

    def watched(self, **settings: Any) -> tuple[Run, ScriptedReply, Reader]:
        """A run whose viewer was shown "a"."""
        run, reply = self.running(**settings)
        reader = Reader(run)
        reply.feed("a")
        reader.wait_text("a")
        return run, reply, reader

    def look(self, run: Run) -> None:
        """Have the relay look at the run's limits, and wait until it has."""
        looked = threading.Event()
        run.check_limits_soon()
        self.relay.post(looked.set)
        assert looked.wait(WAIT_TIMEOUT)

    def wait_released(self, *runs: Run) -> None:
        """Wait until these have let go of everything, and no other has."""
        wait_until(lambda: self.released == list(runs))

    def clear(self) -> None:
        """End everything that is on stage."""
        for run in self._begun:
            run.cancel("stop")
        for thread in self.threads:
            thread.end()
        wait_until(lambda: set(self.released) >= set(self._begun))
        for upstream in self.upstreams:
            upstream.dispose()
        for each in (self.upstreams, self.threads, self._begun, self.ended, self.released):
            each.clear()

    def close(self) -> None:
        """The end of the test."""
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
    """Wait for the run's failure: its code."""
    wait_ended(run)
    ended = run.log.ended
    assert isinstance(ended, Failed), ended
    assert ended.error.message.startswith(CODES[ended.error.code][0])
    return ended.error.code


def error_code(fault: UpstreamError | None) -> str | None:
    """The code of the limit that is over."""
    return None if fault is None else fault.code
